"""A feature of an inventory problem: one of the pieces that are put together."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from hpo_torchrl.core.checks import check_float, check_floats, entries_of
from hpo_torchrl.envs.pieces import Breakpoint, Gap

# Not to order at all is a piece of its own.
ALONE = Breakpoint(0.0, "alone")


class Feature:
    """A piece of an inventory problem; it does nothing until a method is overridden.

    It is one equation, in its original form: a function of the quantities q, with its jumps.
    :class:`~hpo_torchrl.problems.InventoryEnv` adds features up and turns the jumps into discrete
    actions. Those of the package are in ``order_costs``, ``order_quantities``, ``lead_times`` and
    ``sales``, beside this module; ``ordering`` imports all four, which makes their names known.

    ``class Mine(Feature, name="mine")`` can also be written ``{name: mine}`` in a configuration.

    Quantities are ``(*B, n)``, costs ``(*B,)``; ``supplier`` ``(*B,)`` is the one that was chosen
    of ``Suppliers``. Breakpoints are those of the *total* quantity where ``joint``, else of
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


class Schedule(Feature):
    """Prices, costs or lead times that change at quantities: of the total, or of each item's own.

    Args:
        breaks: the quantities, in ascending order; or such a list for each item.
        values: what holds below the first break, from the first on, and so on.
        name: of the values, which are an attribute of that name.

    Raises:
        ValueError: breaks do not ascend, or there is not one more value than breaks.
    """

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
        breaks, values = (like(amounts, row) for row in (self.breaks, self.values))
        return values[(amounts.detach().unsqueeze(-1) >= breaks).sum(-1)]


def built_in(feature: Feature) -> bool:
    """Return whether a feature is one of this package, not a user's own."""
    return type(feature).__module__.rpartition(".")[0] == __name__.rpartition(".")[0]


def values(name: str, value: Any, *, strict: bool = False) -> Any:
    """Return a number >= 0 (strict: > 0), or a list of numbers >= 0 with one per item."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return check_float(name, value, minimum=0.0, strict=strict)
    return check_floats(name, value)


def like(quantity: Tensor, value: Any) -> Tensor:
    """Return numbers as a tensor of a quantity's type."""
    return torch.as_tensor(value, dtype=quantity.dtype, device=quantity.device)
