"""What becomes of demand: what is sold, at what income, and whether the rest is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hpo_torchrl.problems.inventory.features import Feature, like, values


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
        self.price = None if price is None else values("Profit.price", price)

    def revenue(self, sold: Tensor) -> Tensor:
        """The price of what is sold."""
        return (like(sold, self.price) * sold).sum(-1)
