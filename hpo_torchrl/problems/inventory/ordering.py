"""The cost and the effect of an order: features together, and the pieces between their jumps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hpo_torchrl.core.checks import check_float, entries_of, in_dtype
from hpo_torchrl.envs.differentiable import Action
from hpo_torchrl.envs.pieces import ActionPieces, Breakpoint, Gap, Pieces
from hpo_torchrl.problems.inventory.demand import from_mapping
from hpo_torchrl.problems.inventory.features import Feature, FixedCost, LostSales, Suppliers


class Ordering:
    """The features of an inventory problem, added up, and what they make of an action.

    Args:
        features: the features, in order.
        num_items: number of items n.
        hybrid: whether the discrete action picks the piece of the quantity.
        place: dtype and device.

    Attributes:
        delays: the feature that decides when an order arrives, if there is one.
        lost_sales: whether unmet demand is lost.
        least: the smallest order that is accepted.
        fixed_cost: what the smallest order costs.
        only_fixed_cost: whether an order costs nothing besides its units and the joint fixed cost.
        cut_per_item: whether every item has breakpoints of its own.
        pieces: the pieces of the quantity; ``None`` in the original form.
        simple: whether only the joint fixed cost jumps: then d = 1{q > 0}, the projection of q is
            d max(q, 0), and policies need no ends of their own.

    Raises:
        ValueError: some features jump in the total quantity, others in each item's.
    """

    def __init__(
        self, features: Sequence[Feature], num_items: int, *, hybrid: bool = True, **place: Any
    ) -> None:
        self.features = tuple(features)
        for feature in features:
            kind = type(feature)
            if kind.__module__ == Feature.__module__:  # others may hold what is no number
                for name, value in vars(feature).items():
                    in_dtype(f"{kind.__name__}.{name}", value, place["dtype"])
        self.fixed_cost = float(sum(feature.fixed_cost for feature in features))
        self.lost_sales = any(isinstance(f, LostSales) for f in features)
        self.least = max((feature.minimum for feature in features), default=0.0)
        delaying = [feature for feature in features if feature.lead_times]
        if len(delaying) > 1:
            names = " and ".join(type(feature).__name__ for feature in delaying)
            raise ValueError(f"Both {names} decide the lead time of an order; leave one out.")
        self.delays = delaying[0] if delaying else None
        self.only_fixed_cost = {type(f) for f in features} <= {FixedCost, LostSales}
        jumping = [feature for feature in features if feature.breakpoints()]
        self.cut_per_item = num_items > 1 and not all(feature.joint for feature in jumping)
        # Which supplier is a discrete action of its own.
        self.num_discrete = next(
            (len(f.lead_times) for f in features if isinstance(f, Suppliers)), 1
        )
        self.pieces: ActionPieces | None = None
        self.simple = False
        if hybrid:
            cut = Pieces.cut(self.breakpoints(), low=0.0).without(self.gaps())
            place |= {"per_item": self.cut_per_item, "choices": self.num_discrete}
            self.pieces = ActionPieces(cut, num_items, **place)
            self.num_discrete *= self.pieces.num_discrete
            self.simple = {type(f) for f in jumping} == {FixedCost} and self.delays is None
        self._joint_cost = float(sum(f.cost for f in features if type(f) is FixedCost))
        # Nothing is added for a feature that has no cost or income of its own.
        others = [f for f in features if type(f) is not FixedCost]
        self._costing = [f for f in others if type(f).order_cost is not Feature.order_cost]
        self._earning = [f for f in others if type(f).revenue is not Feature.revenue]

    def breakpoints(self) -> list[Breakpoint]:
        """Return the breakpoints of all features."""
        for feature in self.features if self.cut_per_item else ():
            # Whether anything is ordered follows from whether each item is; nothing else does.
            if feature.joint and any(at != 0.0 for at, _ in feature.breakpoints()):
                raise ValueError(
                    f"{type(feature).__name__} jumps in the total quantity and another feature in "
                    "each item's: their breakpoints make no common set of discrete actions. Use "
                    "one item, or leave one of them out."
                )
        return [point for feature in self.features for point in feature.breakpoints()]

    def gaps(self) -> list[Gap]:
        """Return the quantities that do what another one does."""
        return [gap for feature in self.features for gap in feature.gaps()]

    def placed(self, action: Action) -> tuple[Tensor, Tensor, Tensor]:
        """Return the delivery ``(*B, n)``, whether there is one ``(*B,)``, and the supplier."""
        discrete, quantity = action["discrete"], action["continuous"]
        if self.simple:
            ordering = discrete.to(quantity.dtype)
            quantity = ordering.unsqueeze(-1) * quantity.clamp_min(0.0)
            return self.delivered(quantity), ordering, discrete
        executed = action if self.pieces is None else self.pieces.executed(action)
        order = self.delivered(executed["continuous"].clamp_min(0.0))
        return order, (order.detach().sum(-1) > 0).to(order.dtype), executed["discrete"]

    def delivered(self, quantity: Tensor) -> Tensor:
        """Return what is delivered of an order, ``(*B, n)``."""
        for feature in self.features:
            quantity = feature.delivered(quantity)
        return quantity

    def reward(
        self, cost: Tensor, placed: tuple[Tensor, Tensor, Tensor], available: Tensor, demand: Tensor
    ) -> Tensor:
        """Return the income of a period less all costs, those of the order added, ``(*B,)``."""
        order, ordering, supplier = placed
        cost = cost + self._joint_cost * ordering
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
) -> list[Feature]:
    """Return the features that are meant, with :class:`LostSales` among them if sales are lost.

    Args:
        entries: features, or mappings with their names; ``None`` is the joint fixed cost.
        fixed_cost_per_item: that cost, divided by n; ``None`` is 64.
        num_items: number of items n.
        lost_sales: whether unmet demand is lost.

    Raises:
        ValueError: a feature or an argument is unknown, two are of a kind, or there are features
            and a fixed cost besides.
    """
    if entries is None:
        each = 64.0 if fixed_cost_per_item is None else fixed_cost_per_item
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
    kinds = [type(feature).__name__ for feature in found]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(
                f"features must be of different kinds, got {kind} twice; put both into one."
            )
    return found
