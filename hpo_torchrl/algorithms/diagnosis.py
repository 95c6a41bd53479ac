"""Why an update stopped: the tensor that was spoilt first, found when it is too late."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from tensordict import TensorDictBase
from torch import Tensor

from hpo_torchrl.core.finite import NonFiniteError, not_finite, spoilt_in_batch, spoilt_in_env

if TYPE_CHECKING:
    from hpo_torchrl.algorithms.learner import Learner

Spoilt = tuple[str, int | None]


def spoilt_in_learner(learner: Learner, without: Collection[str] = ("buffer",)) -> Spoilt | None:
    """Return what of all that a checkpoint holds is not finite, and the place of the seed it is of.

    The optimizer's state comes first: it is the cause of the weights that it moved.

    Args:
        learner: the learner, between two updates or in one.
        without: names of components that are left out: a replay buffer's batches were checked.
    """
    for at in [None] if learner.num_seeds is None else range(learner.num_seeds):
        parts = learner.components(at)
        held = {name: part.state_dict() for name, part in parts.items() if name not in without}
        weights = [name for own in learner.optimization.members[at or 0].values() for name in own]
        moments = held.pop("optimizer")["state"]
        held = {"optimizer": {weights[place]: own for place, own in moments.items()}} | held
        if bad := not_finite(held):
            return bad, at
    return None


def explained(
    learner: Learner, error: ValueError, batch: TensorDictBase | None, reward: Tensor | None
) -> ValueError:
    """Return the error that names what was spoilt first; the very error if it was something else.

    Args:
        learner: whose update failed.
        error: what it failed by: it names the place where NaN or infinity was noticed.
        batch: the batch, if it was collected.
        reward: its rewards as the environment gave them.
    """
    first = spoilt_in_learner(learner, without=("collector", "buffer"))
    if first is None and (bad := spoilt_in_env(learner.env)):
        first = bad, getattr(error, "seed_index", None)
    if batch is not None and reward is not None:
        batch = batch.detach().copy().set(("next", "reward"), reward)
    elif learner.collector.carried is not None:  # where a rollout that failed has come to
        batch = learner.collector.carried.unsqueeze(-1)
    if first is None and batch is not None:
        states = getattr(learner.env, "state_names", ())
        first = spoilt_in_batch(batch, states, many=learner.num_seeds is not None)
    if first is not None:
        what, at = first
        text = f"{what} is not finite, the first that was spoilt; this was noticed by: {error}"
    elif isinstance(error, NonFiniteError):
        text, at = str(error), error.seed_index
    else:
        return error
    who = "" if at is None or learner.seeds is None else f"Seed {learner.seeds[at]}: "
    return NonFiniteError(who + text, at)
