"""The one notion of finite, and the search for what was spoilt first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.utils import get_total_norm

# What a learner adds to a batch, from the first to the last.
_ADDED = ("state_value", "critic_value", "value_target", "advantage")
# The parts of an action, in the order in which they follow from one another.
_PARTS = {
    "logits": (2, "the logits"),
    "discrete_log_prob": (2, "the logits (by {})"),
    "loc": (3, "the loc"),
    "continuous": (4, "the continuous action {}"),
    "scale": (5, "the scale"),
    "action_log_prob": (5, "the density of the continuous action ({})"),
}


class NonFiniteError(RuntimeError, ValueError):
    """A weight, a batch entry, a loss or a cost became NaN or infinite; the message names it.

    Attributes:
        seed_index: place of the seed among those trained together; ``None`` in an ordinary run.
    """

    def __init__(self, message: str, seed_index: int | None = None) -> None:
        super().__init__(message)
        self.seed_index = seed_index


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether the norm of all together is finite: one fused computation, and one wait for it.

    A norm may overflow where no entry does.
    """
    known = list(tensors)
    return not known or bool(get_total_norm(known).isfinite())


def not_finite(state: Any) -> str | None:
    """Return the dotted name of the first tensor that holds NaN or infinity; ``None`` if none.

    Args:
        state: a tensor, or mappings and sequences of tensors, of any depth.
    """
    named = list(_leaves(state, ""))
    if all_finite(value for _, value in named):
        return None
    return next((name for name, value in named if not bool(value.isfinite().all())), None)


def _leaves(state: Any, at: str) -> Iterator[tuple[str, Tensor]]:
    items: Any = ()
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield at, state
    elif isinstance(state, Mapping):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    for key, one in items:
        yield from _leaves(one, f"{at}.{key}".lstrip("."))


def spoilt_in_env(env: Any) -> str | None:
    """Return the name of the first tensor of an environment's own that holds NaN.

    Infinity may be meant, as the end of an unbounded range.
    """
    for one in (getattr(env, "base_env", env), *getattr(env, "members", ())):
        for name, value in vars(one).items():
            if isinstance(value, Tensor) and bool(value.isnan().any()):
                return f"the environment's {name}"
    return None


def spoilt_in_batch(
    batch: TensorDictBase, states: Collection[str] = (), *, many: bool = False
) -> tuple[str, int | None] | None:
    """Return what of a batch is not finite first, in words, and the place of the seed it is of.

    Time steps are walked in their order; within one state and observation, logits, continuous
    action, reward, and what the step leads to; values and advantages after all of them.

    Args:
        batch: rollouts ``(*B, T)``; with seeds ``(S, *B, T)``.
        states: names of the entries that are the environment's state.
        many: whether there is an axis of seeds.
    """
    found = []
    for key, value in batch.items(True, True):
        bad = ~value.isfinite().reshape(*batch.shape, -1).all(-1)
        if bool(bad.any()):
            time = int(bad.reshape(-1, batch.shape[-1]).any(0).nonzero()[0])
            seed = int(bad[..., time].reshape(len(bad), -1).any(-1).nonzero()[0]) if many else None
            stage, words = _named(key, states)
            found.append(((stage > 9, time, stage), f"{words} at time step {time}", seed))
    if not found:
        return None
    (late, time, stage), words, seed = min(found, key=lambda one: one[0])
    if stage == 6:  # a step that spoils the state may spoil its reward by that
        states_too = [other for at, other, _ in found if at in ((late, time, 7), (late, time, 8))]
        words = " and ".join([words, *states_too])
    return words, seed


def _named(key: Any, states: Collection[str]) -> tuple[int, str]:
    """Return when an entry comes about within a time step, and what it is called."""
    after, name = (
        isinstance(key, tuple) and key[0] == "next",
        key if isinstance(key, str) else key[-1],
    )
    if name in _ADDED:
        return 10 + _ADDED.index(name), f"the {name} {key!r}"
    if name == "reward":
        return 6, f"the reward {key!r}"
    if not after and name in _PARTS:
        stage, words = _PARTS[name]
        return stage, words.format(repr(key))
    if name in states:
        return 7 * after, f"the state {key!r}"
    return 7 * after + 1, f"the observation {key!r}"
