"""Rules of operations research and control as policies: lines to beat, and starting points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from hpo_torchrl._checks import check_int


class _RulePolicy(TensorDictModuleBase):
    """Reads the state, writes ``("action", "discrete")`` and ``("action", "continuous")``."""

    out_keys = [("action", "discrete"), ("action", "continuous")]  # noqa: RUF012

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Decide for every system."""
        discrete, continuous = self.decide(*(tensordict.get(key) for key in self.in_keys))
        action = {"discrete": discrete, "continuous": continuous}
        return tensordict.set("action", TensorDict(action, batch_size=tensordict.batch_size))

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Return options ``(*B,)`` and continuous actions ``(*B, n)``."""
        raise NotImplementedError


class OrderUpToPolicy(_RulePolicy):
    """Order every period, each item up to its level S: the base-stock rule.

    Args:
        S: order-up-to level of each item, in units of inventory position.

    Examples:
        >>> from hpo_torchrl.envs import InventoryEnv
        >>> from hpo_torchrl.modules import OrderUpToPolicy
        >>> env = InventoryEnv(num_items=2, batch_size=4)
        >>> env.rollout(3, OrderUpToPolicy([38, 38]))["action", "discrete"].all().item()
        True
    """

    in_keys = ["inventory"]  # noqa: RUF012

    def __init__(self, S: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.register_buffer("S", torch.as_tensor(S, dtype=torch.float64))

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Order what is missing to S."""
        position = state[0].sum(-1)
        return self.orders(position, state), (self.S.to(position) - position).clamp_min(0.0)

    def orders(self, position: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Say which systems order, int64 ``(*B,)``."""
        return torch.ones(position.shape[:-1], dtype=torch.int64, device=position.device)


class TotalDemandPolicy(OrderUpToPolicy):
    """Order all items up to S as soon as they lack ``Q`` together: (s, S) of a joint fixed cost.

    For one item this is the (s, S) rule with s = S - Q.

    Args:
        Q: units that must be missing in all.
        S: order-up-to level of each item.
    """

    def __init__(self, Q: float, S: Sequence[float] | Tensor) -> None:
        super().__init__(S)
        self.Q = float(Q)

    def orders(self, position: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Order where at least Q is missing."""
        return ((self.S.to(position) - position).sum(-1) >= self.Q).long()


class PeriodicPolicy(OrderUpToPolicy):
    """Order all items up to S every ``R`` periods: (R, S).

    Args:
        R: periods between orders.
        S: order-up-to level of each item.
    """

    in_keys = ["inventory", "step"]  # noqa: RUF012

    def __init__(self, R: int, S: Sequence[float] | Tensor) -> None:
        super().__init__(S)
        self.R = check_int("R", R, minimum=1)

    def orders(self, position: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Order in every R-th period of an episode."""
        return (state[1].squeeze(-1) % self.R == 0).long()


class FixedModePolicy(_RulePolicy):
    """Stay in one mode of a switched linear system and feed back linearly, u = -K x.

    Args:
        mode: the mode.
        gains: K with 0, 1, ..., T - 1 steps gone, ``(T, m, n)``.
    """

    in_keys = ["x", "step"]  # noqa: RUF012

    def __init__(self, mode: int, gains: Any) -> None:
        super().__init__()
        self.mode = check_int("mode", mode, minimum=0)
        self.register_buffer("gains", torch.as_tensor(gains))

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Feed back by the gain of the step."""
        x, step = state
        gain = self.gains.to(x)[step.squeeze(-1).clamp_max(len(self.gains) - 1)]
        u = -(gain @ x.unsqueeze(-1)).squeeze(-1)
        return torch.full(x.shape[:-1], self.mode, device=x.device), u
