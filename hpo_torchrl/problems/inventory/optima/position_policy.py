"""The exact cost of any policy that looks at the inventory position of one item alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import gammainc

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.problems.inventory.optima.items import check_item, falls, one_period_cost
from hpo_torchrl.problems.inventory.rules import whole


def position_policy_cost(
    lowest: int,
    orders: Any,
    demand_mean: float,
    holding_cost: float,
    shortage_cost: float,
    fixed_cost: float,
    lead_time: int,
) -> float:
    r"""Compute the exact long-run average cost per period of orders by inventory position.

    The position after ordering is a Markov chain: with :math:`T(x) = x + q(x)` and Poisson demand
    D, :math:`y' = T(y - D)`. With its stationary distribution :math:`\pi`,

    .. math::
        c = \sum_y \pi(y) \left[ G(y) + K\,P(q(y - D) > 0) \right]

    where G(y) is the expected holding and shortage cost at the end of the period in which an order
    arrives, as for :func:`s_S_cost`. An order of nothing costs nothing.

    Args:
        lowest: the position that ``orders`` begins with; below it, what is missing to it is
            ordered as well.
        orders: q(x) in whole units at ``lowest``, ``lowest + 1``, ..., at least 0, and above 0 at
            ``lowest``; above the last position, nothing is ordered.
        demand_mean: mean of the Poisson demand, in units per period; above 0.
        holding_cost: cost per unit on hand at the end of a period.
        shortage_cost: cost per unit backlogged at the end of a period.
        fixed_cost: cost per order placed; at least 0.
        lead_time: whole periods from placing an order to its arrival; at least 0.

    Returns:
        The average cost per period.

    Raises:
        TypeError: an argument is not a number, or ``lead_time`` no integer.
        ValueError: an argument is out of range, or ``orders`` are none of the kind.

    Examples:
        >>> from hpo_torchrl.problems.inventory.optima.s_S import s_S_cost
        >>> orders = [62 - x if x <= 26 else 0 for x in range(63)]
        >>> cost = position_policy_cost(0, orders, 10, 1, 9, 64, 2)
        >>> round(cost, 4), round(s_S_cost(26, 62, 10, 1, 9, 64, 2), 4)
        (37.0644, 37.0644)
    """
    mean, h, p, L = check_item(demand_mean, holding_cost, shortage_cost, lead_time, free=True)
    K, q = check_float("fixed_cost", fixed_cost, minimum=0.0), whole("orders", orders)
    if q.ndim != 1 or q.size == 0 or q.min() < 0 or q[0] == 0:
        raise ValueError(
            "orders must be a row of whole numbers >= 0, the first above 0 so that stock does not "
            f"run down for ever; got {q.tolist()[:9]}{' ...' if q.size > 9 else ''}."
        )
    after = np.arange(q.size) + q
    # Positions after an order are recurrent, and those from which no order is placed.
    high = int(after[0])
    while (reached := int(after[: high + 1].max())) > high:
        high = reached
    after = np.concatenate([after, np.arange(q.size, high + 1)])[: high + 1]
    kept = np.unique(after)
    # fall[y, x] = P(D = y - x); all that falls below the table is at its first position.
    fall = falls(mean, high + 1)[kept]
    fall[:, 0] += gammainc(kept + 1.0, mean)
    chain = fall @ (after[:, None] == kept)
    balance = chain.T - np.eye(kept.size)
    balance[-1] = 1.0
    share = np.linalg.solve(balance, np.eye(kept.size)[-1])
    costs = one_period_cost(lowest + kept, (L + 1) * mean, h, p)
    return float(share @ (costs + K * (fall @ (after > np.arange(after.size)))))
