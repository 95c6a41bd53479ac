"""The cost and the effect of an order: features together, and the pieces between their jumps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo_torchrl.core.checks import check_float, entries_of, in_dtype, shown
from hpo_torchrl.envs.differentiable import Action
from hpo_torchrl.envs.pieces import ActionPieces, Breakpoint, Gap, Pieces
from hpo_torchrl.problems.inventory.demand import from_mapping
from hpo_torchrl.problems.inventory.features import Feature, built_in
from hpo_torchrl.problems.inventory.lead_times import Suppliers
from hpo_torchrl.problems.inventory.order_costs import FixedCost, ItemFixedCost, Truckloads
from hpo_torchrl.problems.inventory.order_quantities import Packs
from hpo_torchrl.problems.inventory.sales import LostSales, Profit

# The joint fixed cost of an item where nothing else is said.
_USUAL_FIXED_COST = 64.0


class Ordering:
    """The features of an inventory problem, added up, and what they make of an action.

    Args:
        features: the features, in order.
        num_items: number of items n.
        hybrid: whether the discrete action picks the piece of the quantity.
        place: dtype and device.

    Attributes:
        delays: the feature that decides when an order arrives, if there is one.
        draws: numbers from [0, 1) that it takes in every period; they then stand in the place of
            the supplier, in what :meth:`reward` and :meth:`Feature.arriving` are given.
        lost_sales: whether unmet demand is lost.
        least: the smallest order of each item that is accepted, doubles ``(n,)``.
        limited: whether there is a limit on all orders together, such as a budget.
        fixed_cost: what the smallest order costs.
        joint_cost: what an order costs, whatever it contains.
        only_fixed_cost: whether an order costs nothing besides its units and the joint fixed cost,
            and is delivered as it is.
        other_costs: names of the features with costs or income that are no fixed cost, and of one
            that decides lead times.
        cut_per_item: whether every item has breakpoints of its own.
        pieces: the pieces of the quantity; ``None`` in the original form.
        simple: whether only the joint fixed cost jumps: then d = 1{q > 0}, the projection of q is
            d max(q, 0), and policies need no ends of their own.

    Raises:
        ValueError: some features jump in the total quantity, others in each item's; a feature has
            values for another number of items, lacks some, or does not go with another.
    """

    def __init__(
        self, features: Sequence[Feature], num_items: int, *, hybrid: bool = True, **place: Any
    ) -> None:
        # Whole packs are of what is accepted.
        features = sorted(features, key=lambda feature: type(feature) is Packs)
        self.features, self.num_items = tuple(features), num_items
        for feature in features:
            kind = type(feature)
            _check_values(feature, num_items)
            if built_in(feature):  # others may hold what is no number
                for name, value in vars(feature).items():
                    if value is not None and name != "by_item":
                        in_dtype(f"{kind.__name__}.{name}", value, place["dtype"])
        self.fixed_cost = float(sum(feature.fixed_cost for feature in features))
        self.lost_sales = any(isinstance(f, LostSales) for f in features)
        minima = [torch.as_tensor(f.minimum).double().expand(num_items) for f in features]
        self.least = torch.stack([*minima, torch.zeros(num_items).double()]).amax(0)
        delaying = [feature for feature in features if feature.lead_times]
        if len(delaying) > 1:
            names = " and ".join(type(feature).__name__ for feature in delaying)
            raise ValueError(f"Both {names} decide the lead time of an order; leave one out.")
        self.delays = delaying[0] if delaying else None
        self.draws = 0 if self.delays is None else self.delays.draws
        self.only_fixed_cost = {type(f) for f in features} <= {FixedCost, LostSales}
        jumping = [feature for feature in features if feature.of_item(0).breakpoints()]
        self.cut_per_item = num_items > 1 and not all(feature.joint for feature in jumping)
        self._limits = [f for f in features if type(f).limited is not Feature.limited]
        self.limited = bool(self._limits)
        self._check_limits()
        # Which supplier is a discrete action of its own.
        self.num_discrete = next(
            (len(f.lead_times) for f in features if isinstance(f, Suppliers)), 1
        )
        self.pieces: ActionPieces | None = None
        self.simple = False
        if hybrid:
            place |= {"per_item": self.cut_per_item, "choices": self.num_discrete}
            self.pieces = ActionPieces(self._cuts(), num_items, **place)
            self.num_discrete *= self.pieces.num_discrete
            self.simple = {type(f) for f in jumping} == {FixedCost}
            self.simple &= self.delays is None and not self.limited
        self.joint_cost = float(sum(f.cost for f in features if type(f) is FixedCost))
        # Nothing is added for a feature that has no cost or income of its own.
        others = [f for f in features if type(f) is not FixedCost]
        self._costing = [f for f in others if type(f).order_cost is not Feature.order_cost]
        self._earning = [f for f in others if type(f).revenue is not Feature.revenue]
        parts = [*self._costing, *self._earning, *(f for f in delaying if f not in self._costing)]
        self.other_costs = [type(f).__name__ for f in parts if type(f) is not ItemFixedCost]

    def breakpoints(self) -> list[Breakpoint]:
        """Return the breakpoints of all features, where they are those of all items.

        Raises:
            ValueError: items have breakpoints of their own.
        """
        return self._shared("breakpoints")

    def gaps(self) -> list[Gap]:
        """Return the quantities that do what another one does, like :meth:`breakpoints`."""
        return self._shared("gaps")

    def _shared(self, what: str) -> list[Any]:
        found = [self._of_item(what, item) for item in range(self.num_items)]
        if any(each != found[0] for each in found):
            raise ValueError(
                f"The {what} of these features differ by item, got {found}; the environment itself "
                "is hybrid (hybrid=True), with pieces for each."
            )
        return found[0]

    def _of_item(self, what: str, item: int) -> list[Any]:
        """Return breakpoints or gaps of an item."""
        found = []
        for feature in self.features:
            own = getattr(feature.of_item(item), what)()
            # Whether anything is ordered follows from whether each item is; nothing else does.
            if self.cut_per_item and feature.joint and any(each[0] != 0.0 for each in own):
                raise ValueError(
                    f"{type(feature).__name__} jumps in the total quantity and another feature in "
                    "each item's: their breakpoints make no common set of discrete actions. Use "
                    "one item, or leave one of them out."
                )
            found += own
        return found

    def _cuts(self) -> list[Pieces]:
        """Return the pieces of each item, or of the total."""
        return [
            Pieces.cut(self._of_item("breakpoints", item), low=0.0).without(
                self._of_item("gaps", item)
            )
            for item in range(self.num_items if self.cut_per_item else 1)
        ]

    def _check_limits(self) -> None:
        """Refuse what would jump, or break, where a limit cuts all items alike."""
        kinds = {type(feature) for feature in self.features}
        cutting = [*self._limits, *(f for f in self.features if type(f) is Truckloads)]
        if cutting and Packs in kinds:
            raise ValueError(
                f"{type(cutting[0]).__name__} cuts all items alike, which breaks whole packs; "
                "leave it or Packs out."
            )
        for feature in self.features if self.limited and self.num_items > 1 else ():
            limit = type(self._limits[0]).__name__
            priced = type(feature).order_cost is not Feature.order_cost or feature.lead_times
            points = [at for at, _ in feature.of_item(0).breakpoints()]
            if priced and any(points):
                raise ValueError(
                    f"{type(feature).__name__} jumps at quantities that {limit} may cut to, "
                    "whatever was ordered: no piece ends there. Use one item, or leave one of them "
                    "out."
                )

    def placed(self, action: Action, inventory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the delivery ``(*B, n)``, whether there is one ``(*B,)``, and the supplier.

        Args:
            action: the action.
            inventory: on hand and on order, ``(*B, n, slots)``, before it.
        """
        discrete, quantity = action["discrete"], action["continuous"]
        if self.simple:
            ordering = discrete.to(quantity.dtype)
            quantity = ordering.unsqueeze(-1) * quantity.clamp_min(0.0)
            return self.delivered(quantity, inventory), ordering, discrete
        executed = action if self.pieces is None else self.pieces.executed(action)
        order = self.delivered(executed["continuous"].clamp_min(0.0), inventory)
        return order, (order.detach().sum(-1) > 0).to(order.dtype), executed["discrete"]

    def encoded(self, quantity: Tensor) -> dict[str, Tensor]:
        """Return the action that orders quantities ``(*B, n)``, with the first of suppliers."""
        own = torch.zeros(quantity.shape[:-1], dtype=torch.int64, device=quantity.device)
        if self.pieces is not None:
            piece, _, offered = self.pieces.find(quantity)
            moved = self.pieces.project(piece, quantity)
            quantity = torch.where(offered.unsqueeze(-1), quantity, moved)
        action = {"discrete": own, "continuous": quantity}
        return action if self.pieces is None else self.pieces.encoded(action)

    def delivered(self, quantity: Tensor, inventory: Tensor) -> Tensor:
        """Return what is accepted of an order, within the limits, ``(*B, n)``."""
        for feature in self.features:
            quantity = feature.delivered(quantity)
        for feature in self._limits:
            quantity = feature.limited(quantity, inventory.sum(-1))
        return quantity

    def packs(self, usual: float) -> NDArray[np.float64]:
        """Return the units in a pack of each item, ``(n,)``, ``usual`` where any number will do."""
        found = np.full(self.num_items, usual)
        for size in (f.size for f in self.features if isinstance(f, Packs)):
            own = np.broadcast_to(np.asarray(size), found.shape)
            found = np.where(own > 0, own, found)
        return found

    def rounded(self, order: NDArray[np.float64], pack: NDArray[np.float64]) -> Any:
        """Return orders ``(n,)`` in whole packs (0: any quantity) that are accepted as well.

        To the nearest number of packs, but up to the least one that is accepted, and down where all
        orders together have a limit.
        """
        size = np.where(pack > 0, pack, 1.0)
        number = order / size
        # Rounding of the type alone takes no pack away.
        nearest = np.floor(number + 1e-4) if self.limited else np.round(number)
        least = np.where(nearest > 0, np.ceil(self.least.numpy() / size - 1e-9), 0.0)
        if not self.limited:
            nearest = np.maximum(nearest, least)
        return np.where(pack > 0, nearest * size, order)

    def reward(
        self, cost: Tensor, placed: tuple[Tensor, Tensor, Tensor], available: Tensor, demand: Tensor
    ) -> Tensor:
        """Return the income of a period less all costs, those of the order added, ``(*B,)``."""
        order, ordering, supplier = placed
        cost = cost + self.joint_cost * ordering
        for feature in self._costing:
            cost = cost + feature.order_cost(order, supplier)
        reward, sold = -cost, demand
        for feature in self.features if self._earning else ():
            sold = feature.sold(available, demand, sold)
        for feature in self._earning:
            reward = reward + feature.revenue(sold)
        return reward


def make_features(
    entries: Sequence[Feature | Mapping[str, Any]] | None,
    fixed_cost_per_item: float | None,
    num_items: int,
    lost_sales: bool,
    items: Mapping[str, Any] | None = None,
) -> list[Feature]:
    """Return the features that are meant, with :class:`LostSales` among them if sales are lost.

    Args:
        entries: features, or mappings with their names; ``None`` is the joint fixed cost.
        fixed_cost_per_item: that cost, divided by n; ``None`` is 64.
        num_items: number of items n.
        lost_sales: whether unmet demand is lost.
        items: what is known of the items, for features that were not told.

    Raises:
        ValueError: a feature or an argument is unknown, two are of a kind, or there are features
            and a fixed cost besides.
    """
    if entries is None:
        each = joint_cost(entries, fixed_cost_per_item)
        entries = [FixedCost(check_float("fixed_cost_per_item", each, minimum=0.0) * num_items)]
    elif fixed_cost_per_item is not None:
        raise ValueError(
            f"fixed_cost_per_item={fixed_cost_per_item} is of the default's only feature, but "
            "features are given as well; leave one of them out (on the command line: "
            "env.fixed_cost_per_item=null), or add {name: fixed_cost, cost: ...} to the features."
        )
    example = "{name: fixed_cost, cost: 64}"
    found = [
        e if isinstance(e, Feature) else from_mapping("features", e, Feature.KINDS, example)
        for e in entries_of("features", entries)
    ]
    if lost_sales and not any(type(feature) is LostSales for feature in found):
        found.append(LostSales())
    found = [feature.filled(items or {}) for feature in found]
    kinds = [type(feature).__name__ for feature in found]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(
                f"features must be of different kinds, got {kind} twice; put both into one."
            )
    return found


def joint_cost(entries: Any, fixed_cost_per_item: float | None) -> float:
    """Return the joint fixed cost per item, where it is not among the features: 64 if not given."""
    if fixed_cost_per_item is not None:
        return fixed_cost_per_item
    return _USUAL_FIXED_COST if entries is None else 0.0


def _check_values(feature: Feature, num_items: int) -> None:
    """Raise an error if a feature lacks a value of the items, or has too few or too many."""
    kind = type(feature).__name__
    for name in feature.by_item:
        value = getattr(feature, name)
        if isinstance(value, list) and len(value) != num_items:
            raise ValueError(
                f"{kind}.{name} must be a number or hold one entry per item: expected "
                f"num_items={num_items} entries, got {len(value)}: {shown(value)}."
            )
    if isinstance(feature, Profit) and feature.price is None:
        raise ValueError(
            f"{kind}.price must be given: {{name: profit, price: 5}}, or by a column price of "
            "items=FILE."
        )
