"""Slow and independent computations of what inventory policies cost."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import linprog
from scipy.stats import poisson

# demand_mean, holding_cost, shortage_cost, fixed_cost, lead_time.
INSTANCES = [
    (0.05, 1.0, 9.0, 2.0, 0),
    (0.05, 1.0, 200.0, 30.0, 3),
    (2.5, 0.3, 4.0, 10.0, 1),
    (10, 1, 9, 64, 2),
    (7.3, 2.0, 1.0, 25.0, 0),
    (10, 1.0, 0.05, 50.0, 0),
]
ITEM = {"demand_mean": 10.0, "holding_cost": 1.0, "shortage_cost": 9.0}


def falls(means, size):
    """Chances of each level (column) after the demand of a period, by the one before it (row)."""
    found = np.zeros((len(means), size, size))
    for fall, mean in zip(found, means, strict=True):
        for y in range(size):
            np.add.at(fall[y], np.maximum(y - np.arange(60), 0), poisson.pmf(np.arange(60), mean))
    return found


def expected_cost(levels, mean, h, p):
    """Sum the cost over demand outcomes, without the closed form under test."""
    demand = np.arange(int(mean + 40 * math.sqrt(mean) + 60))
    net = np.asarray(levels)[..., None] - demand
    return np.where(net > 0, h * net, -p * net) @ poisson.pmf(demand, mean)


def simulate(decide, mean, h, p, order_cost, lead_time, start, *, lost=False, periods=2200):
    """Costs per period of 200 independent runs of n items, with an explicit pipeline.

    ``decide(t, level, pipeline)`` returns quantities ``(runs, n)``; a tenth of the periods warm up.
    """
    ignored, runs = periods // 11, 200
    rng = np.random.default_rng(5)
    level = np.tile(np.asarray(start), (runs, 1))
    pipeline = [np.zeros_like(level) for _ in range(lead_time)]
    total = np.zeros(runs)
    for t in range(periods):
        quantity = np.asarray(decide(t, level, pipeline))
        assert (quantity >= 0).all()
        # With a lead time, the order of this period comes into use in the period it is due.
        pipeline.append(quantity)
        level = level + pipeline.pop(0) - rng.poisson(mean, level.shape)
        cost = np.where(level > 0, np.asarray(h) * level, -np.asarray(p) * level).sum(axis=1)
        if lost:
            level = np.maximum(level, 0)
        if t >= ignored:
            total += cost + order_cost(quantity)
    return total / (periods - ignored)


def z_score(costs, exact):
    """Distance of a simulated mean from an exact one, in standard errors."""
    return (costs.mean() - exact) / (costs.std(ddof=1) / math.sqrt(costs.size))


def certified(found, tolerance=1e-6):
    """Say whether the bounds are in order and as narrow as promised."""
    return 0.0 <= found.cost - found.lower <= tolerance * found.cost


def cheapest_average(states, actions):
    """Least average cost of a finite decision problem, as a linear program.

    ``actions(state)`` yields the cost of each action and the chances of the states to come.
    """
    number = {state: i for i, state in enumerate(states)}
    costs, columns = [], []
    for state in states:
        for cost, chances in actions(state):
            column = np.zeros(len(states) + 1)
            column[number[state]] += 1.0
            for target, chance in chances:
                column[number[target]] -= chance
            column[-1] = 1.0  # one balance is redundant, but the probabilities sum to 1
            costs.append(cost)
            columns.append(column)
    balance = np.append(np.zeros(len(states)), 1.0)
    # Balances are met to 1e-7, which shows in the seventh digit of the cost.
    found = linprog(costs, A_eq=np.stack(columns, axis=1), b_eq=balance, method="highs")
    assert found.status == 0
    return found.fun
