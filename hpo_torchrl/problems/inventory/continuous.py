"""Inventory in its original form: the quantities are the action, and costs may jump in them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hpo_torchrl.core.checks import check_choice, did_you_mean
from hpo_torchrl.core.pieces import Breakpoint, Gap, merge_breakpoints
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.envs.differentiable import Action, State
from hpo_torchrl.envs.hybridize import HybridizedEnv, hybridize
from hpo_torchrl.problems.inventory.features import (
    FEATURES,
    Feature,
    LostSales,
    MinimumOrder,
    Suppliers,
)
from hpo_torchrl.problems.inventory.reference import inventory_reference
from hpo_torchrl.problems.inventory.stock import StockEnv


class ContinuousInventoryEnv(StockEnv):
    r"""n items whose order quantities are the whole action, with features that are put together.

    With quantities :math:`q \ge 0`, on-hand inventory :math:`x_0` and demand :math:`D`, one period
    is

    .. math::
        a &= \text{delivered}(q), \qquad y = x_0 - D \quad (y = x_0 + a - D \text{ if } L = 0) \\
        r &= \text{revenue} - \text{order cost}(a)
            - \textstyle\sum_i \left[ h_i y_i^+ + p_i y_i^- + v_i a_i \right]

    then the pipeline moves on as in :class:`InventoryEnv`. What is delivered, what an order costs,
    what is sold and what is carried over is up to the features
    (:mod:`hpo_torchrl.problems.inventory.features`), in the order in which they are given. Their
    costs jump in
    q: make the problem hybrid with :func:`hybridize`, or at once with :meth:`hybrid`.

    The discrete action has one option, or one for each supplier.

    Args:
        features: the features, or mappings such as ``{"name": "fixed_cost", "cost": 64.0}``.
        stock: further arguments, of :class:`StockEnv`: items, lead time, demand, costs, batch.
            With :class:`~hpo_torchrl.problems.inventory.features.Suppliers` the lead time is the
            longest of theirs.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, a feature is unknown, or there are two of a kind.

    Examples:
        >>> from hpo_torchrl.problems import ContinuousInventoryEnv
        >>> from hpo_torchrl.problems.inventory.features import FixedCost, LostSales
        >>> env = ContinuousInventoryEnv(features=[FixedCost(64.0), LostSales()], batch_size=4)
        >>> env.rollout(5)["action", "continuous"].shape
        torch.Size([4, 5, 1])
        >>> ContinuousInventoryEnv.hybrid([{"name": "fixed_cost", "cost": 64.0}]).num_discrete
        2
    """

    def __init__(self, features: Sequence[Feature | Mapping[str, Any]] = (), **stock) -> None:
        chosen = [_feature(entry) for entry in features]
        if stock.pop("lost_sales", False) and not any(isinstance(f, LostSales) for f in chosen):
            chosen.append(LostSales())
        kinds = [type(feature) for feature in chosen]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice is not None:
            raise ValueError(
                f"features must be of different kinds, got {twice.__name__} twice; put both "
                "into one."
            )
        suppliers = next((f for f in chosen if isinstance(f, Suppliers)), None)
        if suppliers is not None:
            stock["lead_time"] = max(suppliers.lead_times)
        super().__init__(
            1 if suppliers is None else len(suppliers.lead_times),
            sum(feature.fixed_cost for feature in chosen),
            lost_sales=LostSales in kinds,
            **stock,
        )
        self.features, self.suppliers = tuple(chosen), suppliers
        least = max((f.minimum for f in chosen if isinstance(f, MinimumOrder)), default=0.0)
        interval = math.ceil(least / float(self.demand_mean.min()))
        if interval > self.order_interval:  # smaller orders would not be accepted
            self.order_interval = interval
            self.action_scale = interval * self.demand_mean

    @classmethod
    def hybrid(
        cls, features: Sequence[Feature | Mapping[str, Any]] = (), **others
    ) -> HybridizedEnv:
        """Make the problem and hybridize it.

        Args:
            features: see the class.
            others: see the class.
        """
        env: Any = hybridize(cls(features, **others))
        return env

    @property
    def cut_per_item(self) -> bool:
        """Whether every item has breakpoints of its own."""
        return self.num_items > 1 and not all(
            feature.joint or not feature.breakpoints() for feature in self.features
        )

    def breakpoints(self) -> list[Breakpoint]:
        """Return the breakpoints of all features, merged.

        Raises:
            ValueError: some are of the total quantity, others of each item, and none is implied.
        """
        if self.cut_per_item:
            for feature in self.features:
                # Whether anything is ordered follows from whether each item is; nothing else does.
                if feature.joint and any(at != 0.0 for at, _ in feature.breakpoints()):
                    raise ValueError(
                        f"{type(feature).__name__} jumps in the total quantity and another feature "
                        "in each item's: their breakpoints make no common set of options. Use one "
                        "item, or leave one of them out."
                    )
        return merge_breakpoints(*(feature.breakpoints() for feature in self.features))

    def gaps(self) -> list[Gap]:
        """Return the quantities that do what another one does."""
        return [gap for feature in self.features for gap in feature.gaps()]

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Serve one period of demand; the equations stand in the class docstring.

        Args:
            state: ``"inventory"``, ``(*B, n, max(L, 1))``.
            action: ``"discrete"`` ``(*B,)``, the supplier, and ``"continuous"`` ``(*B, n)``.
            noise: the demand of the period, ``(*B, n)``.

        Returns:
            The next state and the reward ``(*B,)``.
        """
        order, option = action["continuous"].clamp_min(0.0), action["discrete"]
        for feature in self.features:
            order = feature.delivered(order)
        available, *pipeline = state["inventory"].unbind(-1)
        if self.lead_time == 0:
            available = available + order
        level, sold = available - noise, noise
        cost = (
            self.holding_cost * level.clamp_min(0.0)
            + self.shortage_cost * (-level).clamp_min(0.0)
            + self.procurement_cost * order
        ).sum(-1)
        revenue: Tensor | float = 0.0
        for feature in self.features:
            cost = cost + feature.order_cost(order, option)
            sold = feature.sold(available, noise, sold)
        for feature in self.features:
            revenue = revenue + feature.revenue(sold)
            level = feature.carried_over(level)
        if self.suppliers is None:
            return self.after_period(pipeline, order, level), revenue - cost
        after = self.after_period(pipeline, torch.zeros_like(order), level)["inventory"]
        slots = torch.tensor(self.suppliers.lead_times, device=order.device)[option] - 1
        arrival = F.one_hot(slots, after.shape[-1]).to(order.dtype).unsqueeze(-2)
        return {"inventory": after + order.unsqueeze(-1) * arrival}, revenue - cost

    def reference(self, test: Test) -> Reference:
        """Return the exact optimum where one is known; see :func:`inventory_reference`."""
        return inventory_reference(self, test)

    def order_action(self, ordering: Tensor, quantity: Tensor) -> dict[str, Tensor]:
        """Return the action that orders ``quantity`` ``(*B, n)`` where ``ordering`` ``(*B,)``."""
        quantity = quantity * ordering.unsqueeze(-1)
        return {"discrete": torch.zeros_like(ordering, dtype=torch.int64), "continuous": quantity}

    def rough_action(self, observation: Tensor) -> dict[str, Tensor]:
        """Order up to the rough S when the lead time and one period are no longer covered."""
        position = observation.unflatten(-1, (self.num_items, -1)).sum(-1)
        ordering = position.mean(-1) <= self.lead_time + 1
        missing = (self.order_up_to - position * self.demand_mean).clamp_min(0.0)
        return self.order_action(ordering, missing)


def _feature(entry: Feature | Mapping[str, Any]) -> Feature:
    if isinstance(entry, Feature):
        return entry
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise ValueError(
            "features must hold features, or mappings with a name such as "
            f"{{name: fixed_cost, cost: 64}}, got {entry!r}."
        )
    arguments = dict(entry)
    kind = FEATURES[check_choice("features.name", arguments.pop("name"), FEATURES)]
    known = list(inspect.signature(kind).parameters)
    for key in arguments:
        if key not in known:
            raise ValueError(
                f"Unknown key {key!r} of feature {entry['name']!r}.{did_you_mean(key, known)} It "
                f"takes {', '.join(known) or 'nothing'}."
            )
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"Feature {entry['name']!r}: {error}") from error
