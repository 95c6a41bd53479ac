"""Costs and effects of an order: pieces of an inventory problem that can be put together.

Each is one equation, in its original form: a function of the quantities q, with its jumps.
:class:`~hpo_torchrl.problems.InventoryEnv` adds them up and turns the jumps into discrete actions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_floats, check_int, entries_of
from hpo_torchrl.envs.pieces import Breakpoint, Gap

# Not to order at all is a piece of its own.
_ALONE = Breakpoint(0.0, "alone")


class Feature:
    """A piece of an inventory problem; it does nothing until a method is overridden.

    ``class Mine(Feature, name="mine")`` can also be written ``{name: mine}`` in a configuration.

    Quantities are ``(*B, n)``, costs ``(*B,)``; ``supplier`` ``(*B,)`` is the one that was chosen
    of :class:`Suppliers`. Breakpoints are those of the *total* quantity where ``joint``, else of
    each item's.
    """

    KINDS: ClassVar[dict[str, type[Feature]]] = {}
    #: Whether it depends on the quantities by their total (of a single item that is the same).
    joint = True
    #: What the smallest order costs.
    fixed_cost = 0.0
    #: The smallest order that is accepted.
    minimum = 0.0
    #: Lead times that it chooses from; without any it leaves that of the environment.
    lead_times: Sequence[int] = ()

    def __init_subclass__(cls, name: str | None = None) -> None:
        if name is not None:
            cls.KINDS[name] = cls

    def breakpoints(self) -> list[Breakpoint]:
        """Quantities at which the feature jumps, or its slope does."""
        return []

    def gaps(self) -> list[Gap]:
        """Quantities that do what another one does."""
        return []

    def delivered(self, quantity: Tensor) -> Tensor:
        """Return what is delivered of an order, ``(*B, n)``."""
        return quantity

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor | float:
        """Return what a delivered order costs, ``(*B,)``."""
        return 0.0

    def lead_time(self, order: Tensor, supplier: Tensor) -> Tensor:
        """Return the lead time of an order, ``(*B,)``, where there are several."""
        raise NotImplementedError

    def arriving(self, order: Tensor, supplier: Tensor) -> Tensor:
        """Return what arrives of an order in one period, in two, and so on: ``(*B, n, L)``."""
        slots = self.lead_time(order, supplier) - 1
        arrival = torch.nn.functional.one_hot(slots, max(self.lead_times))
        return order.unsqueeze(-1) * arrival.to(order.dtype).unsqueeze(-2)

    def carried_over(self, level: Tensor) -> Tensor:
        """Return what is left of the stock at the end of a period, ``(*B, n)``."""
        return level

    def sold(self, available: Tensor, demand: Tensor, sold: Tensor) -> Tensor:
        """Return what is sold, ``(*B, n)``, given what the features before had sold."""
        return sold

    def revenue(self, sold: Tensor) -> Tensor | float:
        """Return the income of a period, ``(*B,)``."""
        return 0.0


class FixedCost(Feature, name="fixed_cost"):
    r"""A cost of ordering at all: :math:`K\,1\{\sum_i q_i > 0\}`.

    Args:
        cost: K, per order.
    """

    def __init__(self, cost: float) -> None:
        self.cost = self.fixed_cost = check_float("FixedCost.cost", cost, minimum=0.0)

    def breakpoints(self) -> list[Breakpoint]:
        """No order stands alone."""
        return [_ALONE]

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """K where anything is ordered."""
        return self.cost * (quantity.sum(-1) > 0).to(quantity.dtype)


class ItemFixedCost(FixedCost, name="item_fixed_cost"):
    r"""A cost for each item that is ordered: :math:`\sum_i k\,1\{q_i > 0\}`.

    Args:
        cost: k, per item and order.
    """

    joint = False

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """The cost k for each item that is ordered."""
        return self.cost * (quantity > 0).to(quantity.dtype).sum(-1)


class MinimumOrder(Feature, name="minimum_order"):
    r"""An order below the minimum is not accepted: :math:`a_i = q_i\,1\{q_i \ge Q\}`.

    Args:
        minimum: Q, for each item by itself.
    """

    joint = False

    def __init__(self, minimum: float) -> None:
        self.minimum = check_float("MinimumOrder.minimum", minimum, minimum=0.0, strict=True)

    def breakpoints(self) -> list[Breakpoint]:
        """No order stands alone; the minimum itself is accepted."""
        return [_ALONE, Breakpoint(self.minimum)]

    def gaps(self) -> list[Gap]:
        """Less than the minimum does what nothing does."""
        return [Gap(0.0, self.minimum, 0.0)]

    def delivered(self, quantity: Tensor) -> Tensor:
        """Deliver what reaches the minimum."""
        return torch.where(quantity >= self.minimum, quantity, torch.zeros_like(quantity))


class _Schedule(Feature):
    """Prices or costs that change at quantities ``breaks``."""

    def __init__(self, breaks: Sequence[float], values: Sequence[float], name: str) -> None:
        kind = type(self).__name__
        self.breaks = check_floats(f"{kind}.breaks", breaks, strict=True)
        setattr(self, name, check_floats(f"{kind}.{name}", values))
        self.values = getattr(self, name)
        if any(one >= other for one, other in itertools.pairwise(self.breaks)):
            raise ValueError(f"{kind}.breaks must be in ascending order, got {list(breaks)}.")
        if len(self.values) != len(self.breaks) + 1:
            raise ValueError(
                f"{kind} needs one more of {name} than of breaks (below the first, between, beyond "
                f"the last), got {len(self.values)} {name} for {len(self.breaks)} breaks."
            )

    def breakpoints(self) -> list[Breakpoint]:
        """A break belongs to what begins there."""
        return [Breakpoint(at) for at in self.breaks]

    def _value_at(self, total: Tensor) -> Tensor:
        breaks, values = (
            torch.tensor(row, dtype=total.dtype, device=total.device)
            for row in (self.breaks, self.values)
        )
        return values[torch.bucketize(total.detach(), breaks, right=True)]


class AllUnitsDiscount(_Schedule, name="all_units_discount"):
    r"""From a break on, *all* units have the lower price: :math:`v_j\,q` for :math:`b_j \le q`.

    With :math:`q = \sum_i q_i` and j the last break that q reaches; the cost drops at a break.

    Args:
        breaks: quantities :math:`b_1 < b_2 < \dots` from which a new price holds.
        prices: price per unit below the first break, from the first, and so on.
    """

    def __init__(self, breaks: Sequence[float], prices: Sequence[float]) -> None:
        super().__init__(breaks, prices, "prices")

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """The quantity at the price that it reaches."""
        total = quantity.sum(-1)
        return self._value_at(total) * total


class IncrementalDiscount(AllUnitsDiscount, name="incremental_discount"):
    r"""Only the units beyond a break have the lower price: :math:`\int_0^q v(z)\,dz`.

    The cost is continuous in :math:`q = \sum_i q_i`; its slope jumps at a break.

    Args:
        breaks: quantities at which the price changes.
        prices: price of a unit below the first break, from the first on, and so on.
    """

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """The sum over the price's steps."""
        total = quantity.sum(-1)
        cost = self.values[0] * total
        for at, (one, other) in zip(self.breaks, itertools.pairwise(self.values), strict=True):
            cost = cost + (other - one) * (total - at).clamp_min(0.0)
        return cost


class StepCost(_Schedule, name="step_cost"):
    r"""A fixed cost by the size of the order: :math:`K_j` for :math:`b_j \le q < b_{j+1}`, q > 0.

    Args:
        breaks: quantities :math:`b_1 < b_2 < \dots` of :math:`q = \sum_i q_i`.
        costs: cost of an order below the first break, from the first on, and so on.
    """

    def __init__(self, breaks: Sequence[float], costs: Sequence[float]) -> None:
        super().__init__(breaks, costs, "costs")
        self.fixed_cost = self.values[0]

    def breakpoints(self) -> list[Breakpoint]:
        """No order stands alone where the smallest one costs something."""
        return [_ALONE, *super().breakpoints()] if self.fixed_cost else super().breakpoints()

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """The cost of the step that the quantity is on."""
        total = quantity.sum(-1)
        return self._value_at(total) * (total > 0).to(total.dtype)


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
        return [_ALONE, *full]

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


class LeadTimes(_Schedule, name="lead_times"):
    r"""A lead time by the size of the order: :math:`L_j` for :math:`b_j \le q < b_{j+1}`.

    Args:
        breaks: quantities :math:`b_1 < b_2 < \dots` of :math:`q = \sum_i q_i`.
        lead_times: periods until an order below the first break can be used, from the first on,
            and so on; 1 and up.
    """

    def __init__(self, breaks: Sequence[float], lead_times: Sequence[int]) -> None:
        for at, periods in enumerate(entries_of("LeadTimes.lead_times", lead_times)):
            check_int(f"LeadTimes.lead_times[{at}]", periods, minimum=1)
        super().__init__(breaks, lead_times, "lead_times")
        self.lead_times = [*map(int, lead_times)]

    def lead_time(self, order: Tensor, supplier: Tensor) -> Tensor:
        """The lead time of the step that the quantity is on."""
        return self._value_at(order.sum(-1)).long()


class Suppliers(Feature, name="suppliers"):
    r"""A choice of supplier s, a discrete action of its own: price :math:`v_s\,q`, lead time L_s.

    Args:
        lead_times: periods until an order of each supplier can be used, 1 and up.
        prices: price per unit of each supplier.
        fixed_costs: cost of an order with each supplier.
    """

    def __init__(
        self,
        lead_times: Sequence[int],
        prices: Sequence[float],
        fixed_costs: Sequence[float] | None = None,
    ) -> None:
        self.lead_times = [
            check_int("Suppliers.lead_times", L, minimum=1)
            for L in entries_of("Suppliers.lead_times", lead_times)
        ]
        self.prices = check_floats("Suppliers.prices", prices)
        none = [0.0] * len(self.lead_times)
        self.fixed_costs = check_floats("Suppliers.fixed_costs", fixed_costs or none)
        if not 0 < len(self.lead_times) == len(self.prices) == len(self.fixed_costs):
            raise ValueError(
                "Suppliers needs as many lead_times as prices and fixed_costs, got "
                f"{len(self.lead_times)}, {len(self.prices)} and {len(self.fixed_costs)}."
            )
        self.fixed_cost = min(self.fixed_costs)

    def breakpoints(self) -> list[Breakpoint]:
        """No order stands alone where one costs something."""
        return [_ALONE] if any(self.fixed_costs) else []

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """Price and fixed cost of the supplier."""
        total = quantity.sum(-1)
        price, fixed = torch.tensor([self.prices, self.fixed_costs]).to(total)[:, supplier]
        return price * total + fixed * (total > 0).to(total.dtype)

    def lead_time(self, order: Tensor, supplier: Tensor) -> Tensor:
        """The lead time of the supplier."""
        return torch.tensor(self.lead_times, device=order.device)[supplier]


class LostSales(Feature, name="lost_sales"):
    r"""Unmet demand is lost: :math:`y^+` is carried over, :math:`\min(D, x^+)` is sold."""

    def carried_over(self, level: Tensor) -> Tensor:
        """Carry over what is left."""
        return level.clamp_min(0.0)

    def sold(self, available: Tensor, demand: Tensor, sold: Tensor) -> Tensor:
        """Sell at most what is there."""
        return torch.minimum(demand, available.clamp_min(0.0))


class Profit(Feature, name="profit"):
    r"""The objective is profit: income :math:`\sum_i \pi\,\text{sold}_i` less all costs.

    Without :class:`LostSales` all demand is sold in the end, and is counted when it occurs.

    Args:
        price: selling price per unit.
    """

    def __init__(self, price: float) -> None:
        self.price = check_float("Profit.price", price, minimum=0.0)

    def revenue(self, sold: Tensor) -> Tensor:
        """The price of what is sold."""
        return self.price * sold.sum(-1)
