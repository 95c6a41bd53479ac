"""Why an update stopped: the tensor that was spoilt first, found when it is too late."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from tensordict import TensorDictBase
from torch import Tensor

from hpo_torchrl.core import ranks
from hpo_torchrl.core.finite import NonFiniteError, all_finite, leaves, not_finite, spoilt_first

if TYPE_CHECKING:
    from hpo_torchrl.algorithms.learner import Learner


def check_lasting(learner: Learner) -> None:
    """Raise a :class:`NonFiniteError` if something is not finite that the next update starts from.

    Weights and reward scale were checked where they changed, and a replay buffer's batches before.
    """
    kept = [list(own.values()) for o in learner.optimization.optimizers for own in o.state.values()]
    kept += [list(loss.buffers()) for loss in learner.losses()]
    if (carried := learner.collector.carried) is not None:
        kept.append(list(carried.values(True, True)))
    if ranks.anywhere(not all_finite(value for _, value in leaves(kept))):
        _name_lasting(learner, ("buffer",))


def _name_lasting(learner: Learner, without: Collection[str]) -> None:
    """Raise an error that names what of all that a checkpoint holds is not finite, if anything.

    The optimizer's state comes first: it is the cause of the weights that it moved.
    """
    for at in [None] if learner.num_seeds is None else range(learner.num_seeds):
        parts = learner.components(at)
        held = {name: part.state_dict() for name, part in parts.items() if name not in without}
        weights = [name for own in learner.optimization.members[at or 0].values() for name in own]
        moments = held.pop("optimizer")["state"]
        held = {"optimizer": {weights[place]: own for place, own in moments.items()}} | held
        if bad := not_finite(held):
            raise NonFiniteError(f"{bad} is not finite.", at)


def explain(
    learner: Learner, error: ValueError, batch: TensorDictBase | None, reward: Tensor | None
) -> None:
    """Raise a :class:`NonFiniteError` that names what was spoilt first, if anything was.

    Args:
        learner: whose update failed.
        error: what it failed by: it names the place where NaN or infinity was noticed.
        batch: the batch, if it was collected.
        reward: its rewards as the environment gave them.
    """
    if batch is not None and reward is not None:
        batch = batch.detach().copy().set(("next", "reward"), reward)
    elif learner.collector.carried is not None:  # where a rollout that failed has come to
        batch = learner.collector.carried.unsqueeze(-1)
    try:
        _name_lasting(learner, without=("collector", "buffer"))
        first = spoilt_first(learner.env, batch, many=learner.num_seeds is not None)
    except NonFiniteError as spoilt:
        first = str(spoilt).removesuffix(" is not finite."), spoilt.seed_index
    if first is None and not isinstance(error, NonFiniteError):
        return
    text, at = str(error), getattr(error, "seed_index", None)
    if first is not None:
        text = f"{first[0]} is not finite, and was spoilt first. Noticed: {error}"
        at = at if first[1] is None else first[1]
    who = "" if at is None or learner.seeds is None else f"Seed {learner.seeds[at]}: "
    raise NonFiniteError(who + text, at) from error
