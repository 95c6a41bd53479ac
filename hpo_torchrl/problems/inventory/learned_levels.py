"""A structured policy: order-up-to levels learned by gradient, beside a net that says when."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchrl.envs import EnvBase

from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.modules import HybridNetwork, HybridPolicy
from hpo_torchrl.modules.action_range import START
from hpo_torchrl.problems.inventory.env import InventoryEnv


class LearnedLevels(nn.Module):
    r"""Order each item up to a level of its own, of which only the level is learned.

    In units c of the orders, the raw output is :math:`z_i = (S_i - x_i) / c_i - 1.3` with the
    inventory position :math:`x_i`, so that the range of an order (a sharp softplus of z + 1.3)
    makes it :math:`(S_i - x_i)^+`, rounded off over a quarter of a unit. It is what the best
    policies of joint replenishment look like; a continuous net finds that shape by itself.

    Args:
        levels: S at the start, ``(n,)``.
        unit: c, the environment's ``action_scale``, ``(n,)``.
        mean: mean demand, in which the observation is measured, ``(n,)``.
        slots: entries of the observation that belong to an item.
        num_discrete: number M of discrete actions; the levels are the same in each.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.problems.inventory.learned_levels import LearnedLevels
        >>> env = InventoryEnv(num_items=2, batch_size=1)
        >>> policy = LearnedLevels.for_env(env)
        >>> position = env.reset()["inventory"].sum(-1)
        >>> quantity = policy(env.reset())["loc"][0, 1]
        >>> bool((quantity + position - env.order_up_to).abs().max() < 0.1)
        True
    """

    weight: Tensor

    def __init__(
        self, levels: Tensor, unit: Tensor, mean: Tensor, slots: int, num_discrete: int
    ) -> None:
        super().__init__()
        self.level = nn.Parameter(levels / unit)
        self.register_buffer("weight", (mean / unit).repeat_interleave(slots))
        self.slots, self.num_discrete = slots, num_discrete

    @classmethod
    def for_env(cls, env: EnvBase, **arguments: Any) -> HybridPolicy:
        """Build the policy of a joint replenishment; the levels start at ``env.order_up_to``.

        Args:
            env: an :class:`InventoryEnv` whose discrete action is whether to order.
            arguments: further ones of :meth:`HybridPolicy.for_env`; those of the net are of the
                one that says when to order.

        Raises:
            ValueError: it is another environment.
        """
        inner: Any = plain(env)
        if not (isinstance(inner, InventoryEnv) and inner.ordering.simple):
            raise ValueError(
                "policy=order_up_to needs an InventoryEnv whose discrete action is whether to "
                f"order, got {type(inner).__name__}; choose policy=mlp."
            )
        facts = inner.order_up_to, inner.action_scale, inner.demand_mean, max(inner.lead_time, 1)
        control = cls(*facts, num_discrete=2)
        return HybridPolicy.for_env(
            env, network=HybridNetwork, control=control, find_scales=False, **arguments
        )

    def forward(self, observation: Tensor) -> Tensor:
        """Return the raw outputs ``(*B, M n)`` at an observation ``(*B, k)`` as it comes."""
        inventory = observation[..., : len(self.weight)] * self.weight
        missing = self.level - inventory.unflatten(-1, (-1, self.slots)).sum(-1)
        return torch.cat([missing - START] * self.num_discrete, -1)
