"""Costs of an order: fixed costs, discounts, steps and trucks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.envs.pieces import Breakpoint, Gap
from hpo_torchrl.problems.inventory.features import ALONE, Feature, Schedule, like, values


class FixedCost(Feature, name="fixed_cost"):
    r"""A cost of ordering at all: :math:`K\,1\{\sum_i q_i > 0\}`.

    Args:
        cost: K, per order.
    """

    def __init__(self, cost: float) -> None:
        self.cost = self.fixed_cost = check_float("FixedCost.cost", cost, minimum=0.0)

    def breakpoints(self) -> list[Breakpoint]:
        """No order stands alone."""
        return [ALONE]

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """K where anything is ordered."""
        return self.cost * (quantity.sum(-1) > 0).to(quantity.dtype)


class ItemFixedCost(FixedCost, name="item_fixed_cost"):
    r"""A cost for each item that is ordered: :math:`\sum_i k_i\,1\{q_i > 0\}`.

    Args:
        cost: k, per item and order, one number or one per item.
    """

    joint = False
    by_item = ("cost",)

    def __init__(self, cost: float | Sequence[float]) -> None:
        self.cost = values("ItemFixedCost.cost", cost)
        self.fixed_cost = min(self.cost) if isinstance(self.cost, list) else self.cost

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """The cost k for each item that is ordered."""
        return self.costs(quantity).sum(-1)

    def costs(self, quantity: Tensor) -> Tensor:
        """Return the cost by item, ``(*B, n)``."""
        return like(quantity, self.cost) * (quantity > 0).to(quantity.dtype)


class AllUnitsDiscount(Schedule, name="all_units_discount"):
    r"""From a break on, *all* units have the lower price: :math:`v_j\,q` for :math:`b_j \le q`.

    With :math:`q = \sum_i q_i` and j the last break that q reaches; the cost drops at a break.

    Args:
        breaks: quantities :math:`b_1 < b_2 < \dots` from which a new price holds; or such a list
            for each item, of its own quantity.
        prices: price per unit below the first break, from the first, and so on.
    """

    def __init__(self, breaks: Sequence[float], prices: Sequence[float]) -> None:
        super().__init__(breaks, prices, "prices")

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """The quantity at the price that it reaches."""
        amounts = self._amounts(quantity)
        return (self._value_at(amounts) * amounts).sum(-1)


class IncrementalDiscount(AllUnitsDiscount, name="incremental_discount"):
    r"""Only the units beyond a break have the lower price: :math:`\int_0^q v(z)\,dz`.

    The cost is continuous in :math:`q = \sum_i q_i`; its slope jumps at a break.

    Args:
        breaks: quantities at which the price changes; or a list of them for each item.
        prices: price of a unit below the first break, from the first on, and so on.
    """

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """The sum over the price's steps."""
        amounts = self._amounts(quantity)
        cost, breaks = self.values[0] * amounts, like(amounts, self.breaks).unbind(-1)
        for at, (one, other) in zip(breaks, itertools.pairwise(self.values), strict=True):
            cost = cost + (other - one) * (amounts - at).clamp_min(0.0)
        return cost.sum(-1)


class StepCost(Schedule, name="step_cost"):
    r"""A fixed cost by the size of the order: :math:`K_j` for :math:`b_j \le q < b_{j+1}`, q > 0.

    Args:
        breaks: quantities :math:`b_1 < b_2 < \dots` of :math:`q = \sum_i q_i`; or such a list for
            each item, of its own quantity.
        costs: cost of an order below the first break, from the first on, and so on.
    """

    def __init__(self, breaks: Sequence[float], costs: Sequence[float]) -> None:
        super().__init__(breaks, costs, "costs")
        self.fixed_cost = self.values[0]

    def breakpoints(self) -> list[Breakpoint]:
        """No order stands alone where the smallest one costs something."""
        return [ALONE, *super().breakpoints()] if self.fixed_cost else super().breakpoints()

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """The cost of the step that the quantity is on."""
        amounts = self._amounts(quantity)
        return (self._value_at(amounts) * (amounts > 0).to(amounts.dtype)).sum(-1)


class Truckloads(Feature, name="truckloads"):
    r"""A cost for each truck that is begun: :math:`c\,\lceil q / C \rceil`, with a fleet of N.

    Args:
        capacity: C, units of :math:`q = \sum_i q_i` that a truck holds.
        cost: c, per truck.
        num_trucks: N; what exceeds N trucks is not delivered (all items are cut alike).
    """

    def __init__(self, capacity: float, cost: float, num_trucks: int) -> None:
        self.capacity = check_float("Truckloads.capacity", capacity, minimum=0.0, strict=True)
        self.cost = self.fixed_cost = check_float("Truckloads.cost", cost, minimum=0.0)
        self.num_trucks = check_int("Truckloads.num_trucks", num_trucks, minimum=1)

    def breakpoints(self) -> list[Breakpoint]:
        """A full truck belongs to the loads below it."""
        full = [Breakpoint(self.capacity * k, "left") for k in range(1, self.num_trucks + 1)]
        return [ALONE, *full]

    def gaps(self) -> list[Gap]:
        """More than the fleet holds does what the full fleet does."""
        most = self.capacity * self.num_trucks
        return [Gap(most, float("inf"), most)]

    def delivered(self, quantity: Tensor) -> Tensor:
        """Deliver what the fleet holds."""
        most = self.capacity * self.num_trucks
        total = quantity.sum(-1, keepdim=True)
        return torch.where(total > most, quantity / total.clamp_min(most) * most, quantity)

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """The trucks that are begun."""
        total = quantity.sum(-1)
        begun = [total > self.capacity * k for k in range(self.num_trucks)]
        return self.cost * torch.stack(begun).sum(0).to(total.dtype)
