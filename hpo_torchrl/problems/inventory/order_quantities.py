"""Constraints on the quantities of an order: a minimum, whole packs, a budget, storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.envs.pieces import Breakpoint, Gap
from hpo_torchrl.problems.inventory.features import ALONE, Feature, like, values

# What an order exceeds whole packs by is rounding, up to this share of a pack.
_ROUNDING = 1e-3


class MinimumOrder(Feature, name="minimum_order"):
    r"""An order below the minimum is not accepted: :math:`a_i = q_i\,1\{q_i \ge Q_i\}`.

    Args:
        minimum: Q, for each item by itself: one number above 0, or one per item, where 0 is none.
    """

    joint = False
    by_item = ("minimum",)

    def __init__(self, minimum: float | Sequence[float]) -> None:
        self.minimum = values("MinimumOrder.minimum", minimum, strict=True)

    def breakpoints(self) -> list[Breakpoint]:
        """No order stands alone; the minimum itself is accepted."""
        return [ALONE, *([Breakpoint(self.minimum)] if self.minimum else [])]

    def gaps(self) -> list[Gap]:
        """Less than the minimum does what nothing does."""
        return [Gap(0.0, self.minimum, 0.0)] if self.minimum else []

    def delivered(self, quantity: Tensor) -> Tensor:
        """Deliver what reaches the minimum."""
        enough = quantity >= like(quantity, self.minimum)
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
        self.size = self.minimum = values("Packs.size", size, strict=True)

    def breakpoints(self) -> list[Breakpoint]:
        """No order stands alone."""
        return [ALONE]

    def delivered(self, quantity: Tensor) -> Tensor:
        """Deliver whole packs."""
        size = like(quantity, self.size)
        number = quantity.detach() / torch.where(size > 0, size, torch.ones_like(size))
        packs = (number - _ROUNDING).ceil().clamp_min(1.0) * size
        whole = torch.where((size > 0) & (quantity > 0), packs, quantity.detach())
        return whole + (quantity - quantity.detach())


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
        self.prices = None if prices is None else values("Budget.prices", prices)

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
        self.volumes = None if volumes is None else values("Storage.volumes", volumes)

    def limited(self, quantity: Tensor, position: Tensor) -> Tensor:
        """Order what there is room for."""
        taken = (_weights(position, self.volumes) * position.clamp_min(0.0)).sum(-1)
        return _cut(quantity, self.volumes, (self.capacity - taken).clamp_min(0.0))


def _weights(quantity: Tensor, value: Any) -> Tensor:
    return like(quantity, 1.0 if value is None else value)


def _cut(quantity: Tensor, weights: Any, room: Tensor) -> Tensor:
    """Scale quantities ``(*B, n)`` so that their weighted sum is at most ``room`` ``(*B,)``."""
    total = (_weights(quantity, weights) * quantity).sum(-1)
    share = torch.where(total > room, room / torch.where(total > room, total, 1.0), 1.0)
    return share.unsqueeze(-1) * quantity
