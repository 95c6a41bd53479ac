"""Costs and effects of an order: pieces of an inventory problem that can be put together.

Each is one equation, in its original form: a function of the quantities q, with its jumps.
:class:`~hpo_torchrl.problems.InventoryEnv` adds them up and turns the jumps into discrete actions.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from hpo_torchrl.core.checks import check_float, check_floats, check_int, entries_of
from hpo_torchrl.envs.pieces import Breakpoint, Gap

# Not to order at all is a piece of its own.
_ALONE = Breakpoint(0.0, "alone")
# What an order exceeds whole packs by is rounding, up to this share of a pack.
_ROUNDING = 1e-3


class Feature:
    """A piece of an inventory problem; it does nothing until a method is overridden.

    ``class Mine(Feature, name="mine")`` can also be written ``{name: mine}`` in a configuration.

    Quantities are ``(*B, n)``, costs ``(*B,)``; ``supplier`` ``(*B,)`` is the one that was chosen
    of :class:`Suppliers`. Breakpoints are those of the *total* quantity where ``joint``, else of
    each item's. Values named in ``by_item`` may be lists with one entry per item; the methods
    ``breakpoints`` and ``gaps`` are then asked of :meth:`of_item`.
    """

    KINDS: ClassVar[dict[str, type[Feature]]] = {}
    #: Whether it depends on the quantities by their total (of a single item that is the same).
    joint = True
    #: What the smallest order costs.
    fixed_cost = 0.0
    #: The smallest order that is accepted, one number or one per item.
    minimum: Any = 0.0
    #: Attributes that may hold a value for each item.
    by_item: tuple[str, ...] = ()
    #: Attributes that items know, where they are ``None``, by the name that items have for them.
    from_items: ClassVar[Mapping[str, str]] = {}
    #: Lead times that it chooses from; without any it leaves that of the environment.
    lead_times: Sequence[int] = ()
    #: Numbers from [0, 1) that are drawn in every period, for lead times that are random.
    draws = 0

    def __init_subclass__(cls, name: str | None = None) -> None:
        if name is not None:
            cls.KINDS[name] = cls

    def of_item(self, item: int) -> Self:
        """Return the feature of a single item, from 0."""
        alone = copy.copy(self)
        for name in self.by_item:
            value = getattr(self, name)
            setattr(alone, name, value[item] if isinstance(value, list) else value)
        return alone

    def filled(self, items: Mapping[str, Any]) -> Self:
        """Return the feature with what it lacks of the values that items have, by their name."""
        found = copy.copy(self)
        for name, known in self.from_items.items():
            if getattr(self, name) is None and known in items:
                value = items[known]
                setattr(found, name, value if isinstance(value, (int, float)) else [*value])
        return found

    def breakpoints(self) -> list[Breakpoint]:
        """Quantities at which the feature jumps, or its slope does."""
        return []

    def gaps(self) -> list[Gap]:
        """Quantities that do what another one does."""
        return []

    def delivered(self, quantity: Tensor) -> Tensor:
        """Return what is delivered of an order, ``(*B, n)``."""
        return quantity

    def limited(self, quantity: Tensor, position: Tensor) -> Tensor:
        """Return how much of what would be delivered there is room or money for, ``(*B, n)``.

        ``position``, ``(*B, n)``, is on hand and on order. It must not jump in the quantity.
        """
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
    r"""A cost for each item that is ordered: :math:`\sum_i k_i\,1\{q_i > 0\}`.

    Args:
        cost: k, per item and order, one number or one per item.
    """

    joint = False
    by_item = ("cost",)

    def __init__(self, cost: float | Sequence[float]) -> None:
        self.cost = _values("ItemFixedCost.cost", cost)
        self.fixed_cost = min(self.cost) if isinstance(self.cost, list) else self.cost

    def order_cost(self, quantity: Tensor, supplier: Tensor) -> Tensor:
        """The cost k for each item that is ordered."""
        return self.costs(quantity).sum(-1)

    def costs(self, quantity: Tensor) -> Tensor:
        """Return the cost by item, ``(*B, n)``."""
        return _like(quantity, self.cost) * (quantity > 0).to(quantity.dtype)


class MinimumOrder(Feature, name="minimum_order"):
    r"""An order below the minimum is not accepted: :math:`a_i = q_i\,1\{q_i \ge Q_i\}`.

    Args:
        minimum: Q, for each item by itself: one number above 0, or one per item, where 0 is none.
    """

    joint = False
    by_item = ("minimum",)

    def __init__(self, minimum: float | Sequence[float]) -> None:
        self.minimum = _values("MinimumOrder.minimum", minimum, strict=True)

    def breakpoints(self) -> list[Breakpoint]:
        """No order stands alone; the minimum itself is accepted."""
        return [_ALONE, *([Breakpoint(self.minimum)] if self.minimum else [])]

    def gaps(self) -> list[Gap]:
        """Less than the minimum does what nothing does."""
        return [Gap(0.0, self.minimum, 0.0)] if self.minimum else []

    def delivered(self, quantity: Tensor) -> Tensor:
        """Deliver what reaches the minimum."""
        enough = quantity >= _like(quantity, self.minimum)
        return torch.where(enough, quantity, torch.zeros_like(quantity))


class Packs(Feature, name="packs"):
    r"""Orders are rounded up to whole packs: :math:`a_i = z_i \lceil q_i / z_i \rceil`.

    What is delivered, stocked and paid for are whole packs, in training too. In the pieces
    :math:`\{0\}` and :math:`(0, \infty)` the quantity jumps at every whole pack, by one pack, which
    no discrete action picks: the gradient passes as if :math:`a_i = q_i` (straight-through), so it
    is biased by what one pack more or less costs.

    Args:
        size: z, units in a pack: one number above 0, or one per item, where 0 is any quantity.
    """

    joint = False
    by_item = ("size", "minimum")

    def __init__(self, size: float | Sequence[float]) -> None:
        self.size = self.minimum = _values("Packs.size", size, strict=True)

    def breakpoints(self) -> list[Breakpoint]:
        """No order stands alone."""
        return [_ALONE]

    def delivered(self, quantity: Tensor) -> Tensor:
        """Deliver whole packs."""
        size = _like(quantity, self.size)
        number = quantity.detach() / torch.where(size > 0, size, torch.ones_like(size))
        packs = (number - _ROUNDING).ceil().clamp_min(1.0) * size
        whole = torch.where((size > 0) & (quantity > 0), packs, quantity.detach())
        return whole + (quantity - quantity.detach())


class _Schedule(Feature):
    """Prices or costs that change at quantities ``breaks``: of the total, or of each item's own."""

    def __init__(self, breaks: Sequence[Any], values: Sequence[float], name: str) -> None:
        kind = type(self).__name__
        rows = entries_of(f"{kind}.breaks", breaks)
        self.joint = not any(isinstance(row, (list, tuple)) for row in rows)
        each = [
            check_floats(f"{kind}.breaks", row, strict=True)
            for row in ([rows] if self.joint else rows)
        ]
        self.breaks: list[Any] = each[0] if self.joint else each
        self.by_item = () if self.joint else ("breaks",)
        setattr(self, name, check_floats(f"{kind}.{name}", values))
        self.values = getattr(self, name)
        if any(one >= other for row in each for one, other in itertools.pairwise(row)):
            raise ValueError(f"{kind}.breaks must be in ascending order, got {list(breaks)}.")
        for row in each:
            if len(self.values) != len(row) + 1:
                raise ValueError(
                    f"{kind} needs one more of {name} than of breaks (below the first, between, "
                    f"beyond the last), got {len(self.values)} {name} for {len(row)} breaks."
                )

    def breakpoints(self) -> list[Breakpoint]:
        """A break belongs to what begins there."""
        return [Breakpoint(at) for at in self.breaks]

    def _amounts(self, quantity: Tensor) -> Tensor:
        """Return the total, ``(*B, 1)``, or the quantity of each item, ``(*B, n)``."""
        return quantity.sum(-1, keepdim=True) if self.joint else quantity

    def _value_at(self, amounts: Tensor) -> Tensor:
        breaks, values = (_like(amounts, row) for row in (self.breaks, self.values))
        return values[(amounts.detach().unsqueeze(-1) >= breaks).sum(-1)]


class AllUnitsDiscount(_Schedule, name="all_units_discount"):
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
        cost, breaks = self.values[0] * amounts, _like(amounts, self.breaks).unbind(-1)
        for at, (one, other) in zip(breaks, itertools.pairwise(self.values), strict=True):
            cost = cost + (other - one) * (amounts - at).clamp_min(0.0)
        return cost.sum(-1)


class StepCost(_Schedule, name="step_cost"):
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
        return [_ALONE, *super().breakpoints()] if self.fixed_cost else super().breakpoints()

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
        if not self.joint:
            raise ValueError(f"LeadTimes.breaks are of the total quantity, got {list(breaks)}.")
        self.lead_times = [*map(int, lead_times)]

    def lead_time(self, order: Tensor, supplier: Tensor) -> Tensor:
        """The lead time of the step that the quantity is on."""
        return self._value_at(self._amounts(order)).squeeze(-1).long()


class RandomLeadTimes(Feature, name="random_lead_times"):
    r"""Lead times that are drawn anew for every order, from those that were observed.

    Each observed one is equally likely: give it as often as it was seen. A later order may arrive
    before an earlier one.

    Args:
        periods: observed periods until an order can be used, 1 and up, which all items of an order
            have in common; or a list of them for each item, whose lead times are drawn apart.
    """

    def __init__(self, periods: Sequence[int] | Sequence[Sequence[int]]) -> None:
        rows = entries_of("RandomLeadTimes.periods", periods)
        apart = any(not isinstance(row, int) for row in rows)
        seen = [entries_of("RandomLeadTimes.periods", row) for row in rows] if apart else [rows]
        if not seen or not all(seen):
            raise ValueError("RandomLeadTimes.periods must hold one observed lead time at least.")
        for L in itertools.chain.from_iterable(seen):
            check_int("RandomLeadTimes.periods", L, minimum=1)
        self.lead_times = sorted(set(itertools.chain.from_iterable(seen)))
        self.counts, self.draws = [len(row) for row in seen], len(seen)
        # All of one length: a draw in [0, 1) picks one of an item's own.
        self.periods = [row + [row[-1]] * (max(self.counts) - len(row)) for row in seen]
        self.by_item = ("periods",) if apart else ()

    def arriving(self, order: Tensor, supplier: Tensor) -> Tensor:
        """Return what arrives in one period, in two, and so on: ``(*B, n, L)``.

        Args:
            order: ``(*B, n)``.
            supplier: draws from [0, 1), ``(*B, 1)``, or ``(*B, n)`` for items apart.
        """
        place: dict[str, Any] = {"device": order.device}
        seen, counts = torch.tensor(self.periods, **place), torch.tensor(self.counts, **place)
        picked = torch.minimum((supplier * counts).long(), counts - 1)
        slots = seen[torch.arange(len(counts), **place), picked] - 1
        arrival = torch.nn.functional.one_hot(slots, max(self.lead_times))
        return order.unsqueeze(-1) * arrival.to(order.dtype)


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


class Budget(Feature, name="budget"):
    r"""The orders of a period cost at most B: :math:`a = q \min(1, B / \sum_i v_i q_i)`.

    All items are cut alike. The cut is continuous in q, so that no piece begins or ends there;
    where it acts, more of everything changes nothing, and no gradient says so.

    Args:
        amount: B, per period.
        prices: v, price per unit, one number or one per item; ``None`` are the procurement costs.
    """

    by_item = ("prices",)
    from_items: ClassVar[Mapping[str, str]] = {"prices": "procurement_cost"}

    def __init__(self, amount: float, prices: float | Sequence[float] | None = None) -> None:
        self.amount = check_float("Budget.amount", amount, minimum=0.0, strict=True)
        self.prices = None if prices is None else _values("Budget.prices", prices)

    def limited(self, quantity: Tensor, position: Tensor) -> Tensor:
        """Buy what there is money for."""
        return _cut(quantity, self.prices, torch.full_like(quantity[..., 0], self.amount))


class Storage(Feature, name="storage"):
    r"""What is on hand and on order takes up at most C of a shared storage.

    With the position :math:`x_i` of each item, on hand and on order, and its volume :math:`w_i`,
    :math:`a = q \min(1, R / \sum_i w_i q_i)` where
    :math:`R = (C - \sum_i w_i x_i^+)^+` is the room left; all items are cut alike, as by
    :class:`Budget`. What was ordered can then always be stored.

    Args:
        capacity: C, in units of volume.
        volumes: w, of a unit, one number or one per item; ``None`` is 1.
    """

    by_item = ("volumes",)
    from_items: ClassVar[Mapping[str, str]] = {"volumes": "volume"}

    def __init__(self, capacity: float, volumes: float | Sequence[float] | None = None) -> None:
        self.capacity = check_float("Storage.capacity", capacity, minimum=0.0, strict=True)
        self.volumes = None if volumes is None else _values("Storage.volumes", volumes)

    def limited(self, quantity: Tensor, position: Tensor) -> Tensor:
        """Order what there is room for."""
        taken = (_weights(position, self.volumes) * position.clamp_min(0.0)).sum(-1)
        return _cut(quantity, self.volumes, (self.capacity - taken).clamp_min(0.0))


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
        price: selling price per unit, one number or one per item; ``None`` is that of the items.
    """

    by_item = ("price",)
    from_items: ClassVar[Mapping[str, str]] = {"price": "price"}

    def __init__(self, price: float | Sequence[float] | None = None) -> None:
        self.price = None if price is None else _values("Profit.price", price)

    def revenue(self, sold: Tensor) -> Tensor:
        """The price of what is sold."""
        return (_like(sold, self.price) * sold).sum(-1)


def _values(name: str, value: Any, *, strict: bool = False) -> Any:
    """Return a number >= 0 (strict: > 0), or a list of numbers >= 0 with one per item."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return check_float(name, value, minimum=0.0, strict=strict)
    return check_floats(name, value)


def _like(quantity: Tensor, value: Any) -> Tensor:
    """Return numbers as a tensor of a quantity's type."""
    return torch.as_tensor(value, dtype=quantity.dtype, device=quantity.device)


def _weights(quantity: Tensor, value: Any) -> Tensor:
    return _like(quantity, 1.0 if value is None else value)


def _cut(quantity: Tensor, weights: Any, room: Tensor) -> Tensor:
    """Scale quantities ``(*B, n)`` so that their weighted sum is at most ``room`` ``(*B,)``."""
    total = (_weights(quantity, weights) * quantity).sum(-1)
    share = torch.where(total > room, room / torch.where(total > room, total, 1.0), 1.0)
    return share.unsqueeze(-1) * quantity
