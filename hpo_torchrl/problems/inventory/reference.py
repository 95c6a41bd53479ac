"""What the best inventory policy costs, where it is known."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch

from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.problems.inventory.features import FixedCost, ItemFixedCost, Profit
from hpo_torchrl.problems.inventory.optima.items import Items
from hpo_torchrl.problems.inventory.optima.joint_replenishment import (
    joint_replenishment_lower_bound,
    joint_replenishment_optimum,
)
from hpo_torchrl.problems.inventory.optima.lost_sales import lost_sales_optimum
from hpo_torchrl.problems.inventory.optima.order_cost import OrderCost, order_cost_optimum
from hpo_torchrl.problems.inventory.optima.s_S import optimal_s_S
from hpo_torchrl.problems.inventory.rules import PeriodicPolicy, TotalDemandPolicy

# Items up to which a grid of all positions is solved in seconds where each item in an order has a
# cost of its own. With a joint cost alone, joint_replenishment_optimum draws the line itself.
_EXACT_ITEMS = 2


def inventory_reference(env: Any, test: Test) -> Reference:
    """Return the exact optimum of an inventory problem, bounds on it, or the best rule's cost.

    On recorded demand the best rule of the training periods is run on the test. Otherwise, with
    Poisson demand, the optimum is known of a single item with any order cost whose breakpoints are
    integers, backlogged or (up to a lead time of 2) with lost sales; of up to three items with a
    joint fixed cost, and two with fixed costs for each item as well. More items with a joint cost
    have bounds. Profit is income less cost: where all demand is sold in the end the income is what
    it is, and a sale that is lost costs its price on top of p.

    Args:
        env: the problem in its original form.
        test: the test to compare with.

    Returns:
        The reference, per item and period; all ``None`` where nothing is known.
    """
    if env.recorded:
        policy = TotalDemandPolicy.best(env)
        cost = test.run(policy).mean
        # The same starts and the same demand: no sampling error of the test is in the comparison.
        baselines = {"(s, S) rule": cost}
        return Reference(upper_bound=cost, baselines=baselines, policy=policy, paired=True)
    # Beyond what the solvers search: no reason to refuse a training.
    with contextlib.suppress(ValueError):
        if env.demand.poisson and env.suppliers is None and bool((env.holding_cost > 0).all()):
            return _stationary_reference(env)
    return Reference()


def _stationary_reference(env: Any) -> Reference:
    n, L, features = env.num_items, env.lead_time, env.features
    rows = (env.demand_mean, env.holding_cost, env.shortage_cost)
    mean, h, p = (row.double().tolist() for row in rows)
    price = sum(f.price for f in features if isinstance(f, Profit))
    income = price * sum(mean)
    # Backlogged demand is all bought in the end, whatever the policy.
    bought = float((env.demand_mean * env.procurement_cost).double().sum())

    def per_item(cost: float) -> float:
        return (cost + bought - income) / n

    if all(type(f) in (FixedCost, ItemFixedCost, Profit) for f in features):
        joint = _total(features, FixedCost)
        minor = _total(features, ItemFixedCost)
        if not env.lost_sales and n == 1:
            found = optimal_s_S(mean[0], h[0], p[0], joint + minor, L)
            S = round(float(found.policy.S))
            details = {"optimal_s": S - round(found.policy.Q), "optimal_S": S}
            return Reference(optimal_cost=per_item(found.cost), details=details)
        if not env.lost_sales and (minor == 0 or n <= _EXACT_ITEMS):
            return _joint_reference(Items(mean, h, p, joint, L), minor, per_item)
    if n > 1 or not all(float(at).is_integer() for at, _ in env.breakpoints()):
        return Reference()
    if env.lost_sales:
        found = lost_sales_optimum(mean[0], h[0], p[0] + price, _order_cost(env), L)
    else:
        found = order_cost_optimum(mean[0], h[0], p[0], _order_cost(env), L)
    return Reference(optimal_cost=found.cost - income)


def _joint_reference(items: Items, minor: float, per_item: Any) -> Reference:
    if minor > 0:
        found = joint_replenishment_optimum(items, minor_costs=minor)
        return Reference(optimal_cost=per_item(found.cost))
    rules = {
        "(Q, S) rule": per_item(TotalDemandPolicy.optimum(items).cost),
        "(R, S) rule": per_item(PeriodicPolicy.optimum(items).cost),
    }
    with contextlib.suppress(ValueError):  # too many items or positions
        optimum = per_item(joint_replenishment_optimum(items).cost)
        return Reference(optimal_cost=optimum, baselines=rules)
    bound = None
    with contextlib.suppress(ValueError):
        bound = per_item(joint_replenishment_lower_bound(items)[0])
    return Reference(lower_bound=bound, upper_bound=min(rules.values()), baselines=rules)


def _total(features: Any, kind: Any) -> float:
    return float(sum(f.cost for f in features if type(f) is kind))


def _order_cost(env: Any) -> OrderCost:
    """Return the cost of ordering 0, 1, 2, ... units; infinite where they are not delivered."""
    unit = float(env.procurement_cost.double())

    def cost(quantities: np.ndarray) -> np.ndarray:
        asked = torch.as_tensor(quantities, dtype=torch.float64).unsqueeze(-1)
        given, discrete = asked, torch.zeros(len(asked), dtype=torch.int64)
        for feature in env.features:
            given = feature.delivered(given)
        total = unit * given.sum(-1)
        for feature in env.features:
            total = total + feature.order_cost(given, discrete)
        return torch.where((given == asked).all(-1), total, torch.inf).numpy()

    return cost
