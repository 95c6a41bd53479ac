"""Economic dispatch: the cheapest powers of the units that are on, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MeritOrder(NamedTuple):
    """Powers of all units along a rising marginal cost; between two points they move linearly.

    Attributes:
        power: powers at 2 G points, ``(*b, 2 G, G)`` in MW: at each point one more unit leaves its
            lower limit, or reaches its upper one.
        price: the marginal cost at each point, ``(*b, 2 G)`` in $/MWh.
    """

    power: Tensor
    price: Tensor


def merit_order(low: Tensor, high: Tensor, linear: Tensor, quadratic: Tensor) -> MeritOrder:
    r"""Return how the cheapest powers move as the load rises.

    At the marginal cost :math:`\lambda` a unit with costs :math:`b p + c p^2` gives
    :math:`(\lambda - b) / 2c` between its limits: it leaves the lower one at :math:`b + 2 c\,low`
    and reaches the upper one at :math:`b + 2 c\,high`. Between two such points in a row, whatever
    units are on, powers and load are linear in :math:`\lambda`; where c is 0, one unit alone moves.

    Source: A. J. Wood, B. F. Wollenberg and G. B. Sheblé (2013), "Power generation, operation, and
    control", 3rd edition, section 3.1 (lambda iteration, of which this is the exact end).

    Args:
        low: lower limits of the powers, ``(*b, G)`` in MW.
        high: upper limits, likewise.
        linear: b, ``(*b, G)`` in $/MWh.
        quadratic: c, ``(*b, G)`` in $/MW²h, not negative.
    """
    ends = torch.cat([low, high], -1)
    twice = torch.cat([quadratic, quadratic], -1) * 2
    marginal = torch.cat([linear, linear], -1) + twice * ends
    # A unit without a quadratic cost begins and ends at one price: it moves between two points.
    price, order = marginal.sort(dim=-1, stable=True)
    rank = order.argsort(-1)
    starts, stops = rank.split(low.shape[-1], -1)
    at = torch.arange(rank.shape[-1], device=low.device).unsqueeze(-1)
    slope = torch.where(quadratic > 0, 0.5 / quadratic.clamp_min(1e-12), 0.0).unsqueeze(-2)
    inside = low.unsqueeze(-2) + slope * (
        price.unsqueeze(-1) - (linear + 2 * quadratic * low).unsqueeze(-2)
    )
    power = torch.where(at <= starts.unsqueeze(-2), low.unsqueeze(-2), inside)
    return MeritOrder(torch.where(at >= stops.unsqueeze(-2), high.unsqueeze(-2), power), price)


def economic_dispatch(load: Tensor, on: Tensor, order: MeritOrder) -> Tensor:
    """Return the cheapest powers of the units that are on, exact and differentiable.

    The load is met as far as the limits allow: below the sum of the lower ones all units give
    theirs, above that of the upper ones likewise. Gradients reach the load and, through the merit
    order, the limits and costs; at a point where a unit begins or stops to move they are those of
    one side.

    Args:
        load: what the units are to give, ``(*B,)`` in MW.
        on: 1 where a unit is on, else 0, ``(*B, G)``.
        order: of the units; its ``*b`` broadcast with ``*B``.

    Returns:
        Powers in MW, ``(*B, G)``; 0 where a unit is off.

    Examples:
        >>> import torch
        >>> low, high = torch.tensor([10.0, 10.0]), torch.tensor([100.0, 50.0])
        >>> order = merit_order(low, high, torch.tensor([20.0, 22.0]), torch.tensor([0.05, 0.02]))
        >>> economic_dispatch(torch.tensor(80.0), torch.ones(2), order)  # both at 23.714 $/MWh
        tensor([37.1429, 42.8571])
    """
    power = order.power
    shared = power.ndim == 2
    total = on @ power.mT if shared else (power @ on.unsqueeze(-1)).squeeze(-1)
    last = total.shape[-1] - 1
    with torch.no_grad():
        place = (total <= load.unsqueeze(-1)).sum(-1, keepdim=True).clamp(1, last)
    below, above = total.gather(-1, place - 1), total.gather(-1, place)
    share = (load.unsqueeze(-1) - below) / (above - below).clamp_min(1e-9)
    share = share.clamp(0.0, 1.0)
    if shared:
        first, second = power[place.squeeze(-1) - 1], power[place.squeeze(-1)]
    else:
        index = place.unsqueeze(-1).expand(*place.shape[:-1], 1, power.shape[-1])
        first = power.gather(-2, index - 1).squeeze(-2)
        second = power.gather(-2, index).squeeze(-2)
    return on * (first + share * (second - first))
