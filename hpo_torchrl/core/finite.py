"""The one notion of finite, and the search for what was spoilt first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.parameter import is_lazy
from torch.nn.utils import get_total_norm

# Entries that a learner adds to a batch, and all of one, as they follow from one another.
_ADDED = ["state_value", "critic_value", "value_target", "advantage"]
_KINDS = {
    "logits": "logit",
    "discrete_log_prob": "logit",
    "loc": "continuous action",
    "continuous": "continuous action",
    "scale": "density",
    "action_log_prob": "density",
    "reward": "reward",
    **dict.fromkeys(_ADDED, "estimate"),
}
_ORDER = ["state", "observation", "logit", "continuous action", "density", "reward", "next state"]
_ORDER += ["next observation", "estimate"]


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
    named = list(leaves(state))
    if all_finite(value for _, value in named):
        return None
    return next((name for name, value in named if not bool(value.isfinite().all())), None)


def leaves(state: Any, at: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors in mappings and sequences, each with its dotted name."""
    if isinstance(state, Tensor):
        if state.is_floating_point() and not is_lazy(state):
            yield at, state
    elif isinstance(state, (Mapping, list, tuple)):
        for key, one in state.items() if isinstance(state, Mapping) else enumerate(state):
            yield from leaves(one, f"{at}.{key}".lstrip("."))


def spoilt_first(
    env: Any, batch: TensorDictBase | None, *, many: bool = False
) -> tuple[str, int | None] | None:
    """Return what was not finite first, in words, and the place of the seed it is of.

    Tensors of the environment's own are looked at first, for NaN: infinity may be meant there.
    Then time steps are walked in their order; within one state and observation, logits, continuous
    action, reward, and what the step leads to. Values and advantages come after all of them.

    Args:
        env: the environment.
        batch: rollouts ``(*B, T)``; with seeds ``(S, *B, T)``.
        many: whether there is an axis of seeds.
    """
    for one in (getattr(env, "base_env", env), *getattr(env, "members", ())):
        for name, value in vars(one).items():
            if isinstance(value, Tensor) and bool(value.isnan().any()):
                return f"the environment's {name}", None
    if batch is None:
        return None
    found, states = [], getattr(env, "state_names", ())
    for key, value in batch.items(True, True):
        if isinstance(value, Tensor) and not bool(value.isfinite().all()):
            bad = ~value.isfinite().reshape(*batch.shape, -1).all(-1)
            time = int(bad.reshape(-1, batch.shape[-1]).any(0).nonzero()[0])
            seed = int(bad[..., time].reshape(len(bad), -1).any(-1).nonzero()[0]) if many else None
            name = key if isinstance(key, str) else key[-1]
            kind = _KINDS.get(name, "state" if name in states else "observation")
            kind = f"next {kind}" if key[0] == "next" and kind in _ORDER[:2] else kind
            order = (0, time, _ORDER.index(kind))
            if name in _ADDED:  # an advantage comes of all later steps
                order = (1, _ADDED.index(name), 0)
            when = f" at time step {time}" if batch.shape[-1] > 1 else ""
            found.append((order, kind, f"the {kind} {key!r}{when}", seed))
    if not found:
        return None
    order, kind, words, seed = min(found, key=lambda one: one[0])
    if kind == "reward":  # a step that spoils the state may spoil its reward by that
        same = [one[2] for one in found if one[0][:2] == order[:2] and one[0] > order]
        words = " and ".join([words, *same])
    return words, seed


def vmapped(value: Tensor) -> bool:
    """Whether a tensor is one of ``torch.func.vmap``, whose values cannot be looked at."""
    return torch._C._functorch.is_functorch_wrapped_tensor(value)


def traced() -> bool:
    """Whether operations are being traced by ``make_fx``, for all values to come."""
    return get_proxy_mode() is not None
