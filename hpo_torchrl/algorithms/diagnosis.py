"""Why an update stopped: the tensor that was spoilt first, found when it is too late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensordict import TensorDictBase
from torch import Tensor

from hpo_torchrl.core.finite import NonFiniteError, not_finite, spoilt_in_batch, spoilt_in_env

if TYPE_CHECKING:
    from hpo_torchrl.algorithms.learner import Learner

# What follows from a batch, and comes after it.
_FILLED = ("collector", "randomness", "buffer")


def check_lasting(learner: Learner) -> None:
    """Raise a :class:`NonFiniteError` if what the next update starts from is not finite.

    That is all that a checkpoint holds, but for a replay buffer, whose batches were checked.
    """
    for at in places(learner):
        parts = learner.components(at)
        held = {name: part.state_dict() for name, part in parts.items() if name != "buffer"}
        if bad := not_finite(held):
            raise NonFiniteError(f"{bad} is not finite after the update.", at)


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
    first = _in_networks(learner) or _in_batch(learner, batch, reward)
    if first is not None:
        what, at = first
        text = f"{what} is not finite, the first that was spoilt; this was noticed by: {error}"
    elif isinstance(error, NonFiniteError):
        text, at = str(error), error.seed_index
    else:
        return error
    who = "" if at is None or learner.seeds is None else f"Seed {learner.seeds[at]}: "
    return NonFiniteError(who + text, at)


def places(learner: Learner) -> list[Any]:
    """Return the places of the seeds; ``[None]`` in an ordinary run."""
    return [None] if learner.num_seeds is None else list(range(learner.num_seeds))


def _in_networks(learner: Learner) -> tuple[str, int | None] | None:
    """Look for what was not finite before the batch was; the optimizer's state is the cause of the
    weights that it moved.
    """
    for at in places(learner):
        parts: dict[str, Any] = dict(learner.components(at))
        weights = [
            name for named in learner.optimization.members[at or 0].values() for name in named
        ]
        moments = parts.pop("optimizer").state_dict()["state"]
        held = {"optimizer": {weights[place]: own for place, own in moments.items()}}
        held |= {name: part.state_dict() for name, part in parts.items() if name not in _FILLED}
        if bad := not_finite(held):
            return bad, at
    bad = spoilt_in_env(learner.env)
    return None if bad is None else (bad, None)


def _in_batch(
    learner: Learner, batch: TensorDictBase | None, reward: Tensor | None
) -> tuple[str, int | None] | None:
    if batch is not None:
        batch = batch.detach().copy()
        if reward is not None:
            batch.set(("next", "reward"), reward)
    elif learner.collector.carried is not None:
        batch = learner.collector.carried.unsqueeze(-1)
    if batch is None:
        return None
    states = getattr(learner.env, "state_names", ())
    return spoilt_in_batch(batch, states, many=learner.num_seeds is not None)
