"""A structured policy: order-up-to levels learned by gradient, beside a net that says when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.envs import EnvBase

from hpo_torchrl.core.checks import check_bool
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.modules import HybridNetwork, HybridPolicy, SetNet
from hpo_torchrl.modules.action_range import START, raw_of
from hpo_torchrl.problems.inventory.env import InventoryEnv

# Nats by which an order becomes likelier with each period of demand that is missing beyond Q; what
# less, in periods of demand, still counts as Q, for rounding; log-odds where the rule never orders.
_STEEPNESS, _ROUNDING, _NEVER = 2.0, 1e-5, -6.0


class ItemViews(nn.Module):
    """Lay out an observation by item: all that shows one item, and what belongs to none.

    Args:
        env: the environment, whose observation begins with the inventory and the recent demand.
    """

    facts: Tensor

    def __init__(self, env: InventoryEnv) -> None:
        super().__init__()
        self.num_items, self.slots = env.num_items, max(env.lead_time, 1)
        self.history = getattr(env.demand, "history", 0)
        # What tells one item from another: the logarithms of its numbers, less their average.
        each = torch.stack([env.demand_mean, env.holding_cost, env.shortage_cost], -1)
        known = each.clamp_min(1e-6).log()
        self.register_buffer("facts", known - known.mean(0))
        own = self.num_items * (self.slots + self.history)
        self.length = (
            self.slots + 1 + self.history + 3 + env.observation_spec["observation"].shape[-1] - own
        )

    def position(self, observation: Tensor) -> Tensor:
        """Return the inventory position of each item in periods of mean demand, ``(*B, n)``."""
        inventory = observation[..., : self.num_items * self.slots]
        return inventory.unflatten(-1, (self.num_items, self.slots)).sum(-1)

    def forward(self, observation: Tensor, missing: Tensor) -> Tensor:
        """Return what a net of items sees, ``(*B, n, k)``.

        Args:
            observation: ``(*B, m)``.
            missing: what each item lacks to its level, in its unit, ``(*B, n)``.
        """
        n, sizes = self.num_items, (self.num_items * self.slots, self.num_items * self.history)
        inventory, recent, common = observation.split(
            [*sizes, observation.shape[-1] - sum(sizes)], -1
        )
        parts = [
            inventory.unflatten(-1, (n, self.slots)),
            missing.unsqueeze(-1),
            self.facts.expand(*missing.shape, -1),
            common.unsqueeze(-2).expand(*missing.shape, -1),
        ]
        if self.history:
            parts.append(recent.unflatten(-1, (n, self.history)))
        return torch.cat(parts, -1)


class OrderNet(nn.Module):
    r"""Logits of ordering nothing and of ordering: those of a rule, and what a net of items adds.

    The rule's log-odds of an order are :math:`2 (\sum_i (S_i - x_i) - Q) / \sum_i \mu_i`, so that
    its most probable action is the rule's own. The net says a number of each item; the average is
    added.

    Args:
        rule: the best rule, with Q and S.
        views: of the environment.
        mean: mean demand of the items.
        net: the net.
    """

    levels: Tensor
    mean: Tensor
    quantity: Tensor

    def __init__(self, rule: Any, views: ItemViews, mean: Tensor, net: SetNet) -> None:
        super().__init__()
        self.views, self.net = views, net
        self.register_buffer("levels", rule.S.to(mean).expand(len(mean)) / mean)
        self.register_buffer("mean", mean)
        self.register_buffer("quantity", mean.new_tensor(rule.Q))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the logits ``(*B, 2)``."""
        missing = self.levels - self.views.position(observation)
        odds = self.net(self.views(observation, missing)).mean(-2)
        beyond = (missing * self.mean).sum(-1, keepdim=True) - self.quantity
        rule = _STEEPNESS * (beyond / self.mean.sum() + _ROUNDING)
        odds = odds + torch.where(self.quantity.isinf(), _NEVER, rule)
        return torch.cat([torch.zeros_like(odds), odds], -1)


class LearnedLevels(nn.Module):
    r"""Order each item up to a level of its own that is learned.

    In units c of the orders, the raw output is :math:`z_i = (S_i - x_i) / c_i - 1.3` with the
    inventory position :math:`x_i`, so that the range of an order (a sharp softplus of z + 1.3)
    makes it :math:`(S_i - x_i)^+`, rounded off over a quarter of a unit. It is what the best
    policies of joint replenishment look like; a continuous net finds that shape by itself.

    With a net of items the levels are :math:`S_i + c_i\,f_i`, of which it says f, and the corner
    is a sharp one.

    Args:
        levels: S at the start, ``(n,)``.
        unit: c, the environment's ``action_scale``, ``(n,)``.
        mean: mean demand, in which the observation is measured, ``(n,)``.
        views: of the environment.
        num_discrete: number M of discrete actions; the levels are the same in each.
        net: a net of items that moves the levels; without one they are constant.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.problems.inventory.learned_levels import LearnedLevels
        >>> env = InventoryEnv(num_items=2, batch_size=1)
        >>> policy = LearnedLevels.for_env(env)
        >>> position = env.reset()["inventory"].sum(-1)
        >>> quantity = policy(env.reset())["loc"][0, 1]
        >>> bool((quantity + position - env.order_up_to).abs().max() < 0.1)
        True
        >>> policy = LearnedLevels.for_env(env, from_rule=True)  # a correction of the best rule
        >>> rule = env.rules()["s_S"]()
        >>> bool((policy(env.reset())["loc"][0, 1] + position - rule.S).abs().max() < 0.1)
        True
    """

    weight: Tensor

    def __init__(
        self,
        levels: Tensor,
        unit: Tensor,
        mean: Tensor,
        views: ItemViews,
        num_discrete: int,
        net: SetNet | None = None,
    ) -> None:
        super().__init__()
        self.level = nn.Parameter(levels / unit)
        self.register_buffer("weight", mean / unit)
        self.views, self.num_discrete, self.net = views, num_discrete, net

    @classmethod
    def for_env(
        cls,
        env: EnvBase,
        *,
        from_rule: bool | None = False,
        hidden: int | Sequence[int] = (64, 64),
        activation: str = "relu",
        **arguments: Any,
    ) -> HybridPolicy:
        """Build the policy of a joint replenishment.

        Args:
            env: an :class:`InventoryEnv` whose discrete action is whether to order.
            from_rule: whether it begins as the best (s, S) rule of the environment, and two nets of
                items learn corrections of its levels and of its choice. Otherwise the levels begin
                at ``env.order_up_to`` and stay constant over states, and a net of its own says when
                to order. ``None`` begins as the rule where there is one, and is a plain policy of
                nets for any other environment.
            hidden: width of each hidden layer of these nets.
            activation: see :class:`HybridNetwork`.
            arguments: further ones of :meth:`HybridPolicy.for_env`.

        Raises:
            ValueError: it is another environment.
        """
        inner: Any = plain(env)
        own: dict[str, Any] = {"hidden": hidden, "activation": activation}
        # The quantities of a family are levels already.
        simple = isinstance(inner, InventoryEnv) and inner.ordering.simple
        simple = simple and not inner.item_numbers
        known = simple and "s_S" in inner.rules() and (inner.recorded or inner.solvable)
        if from_rule is None and not known:
            return HybridPolicy.for_env(env, **own, **arguments)
        if not simple or (from_rule and not known):
            needed = "an (s, S) rule" if simple else "a discrete action that is whether to order"
            raise ValueError(
                f"policy=order_up_to needs an InventoryEnv with {needed}, got "
                f"{type(inner).__name__}; choose policy=mlp."
            )
        views, mean = ItemViews(inner).to(inner.device), inner.demand_mean
        levels, net, choice = inner.order_up_to, None, None
        if from_rule is None or check_bool("from_rule", from_rule):
            rule: Any = inner.rules()["s_S"]()
            place: dict[str, Any] = {"device": inner.device, "dtype": inner.float_dtype}
            net, other = (SetNet(views.length, 1, **own).to(**place) for _ in range(2))
            levels = rule.S.to(levels).expand(inner.num_items)
            choice = OrderNet(rule, views, mean, other)
        control = cls(levels, inner.action_scale, mean, views, 2, net)
        more = own | arguments | {"control": control, "choice": choice, "find_scales": False}
        return HybridPolicy.for_env(env, network=HybridNetwork, **more)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the raw outputs ``(*B, M n)`` at an observation ``(*B, k)`` as it comes."""
        missing = self.level - self.views.position(observation) * self.weight
        if self.net is None:
            raw = missing - START
        else:
            raw = raw_of(missing + self.net(self.views(observation, missing)).squeeze(-1))
        return torch.cat([raw] * self.num_discrete, -1)
