"""What the best inventory policy costs, where it is known."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch

from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.problems.inventory.features import FixedCost, ItemFixedCost, Profit
from hpo_torchrl.problems.inventory.optima.joint_replenishment import (
    joint_replenishment_lower_bound,
    joint_replenishment_optimum,
)
from hpo_torchrl.problems.inventory.optima.lost_sales import lost_sales_optimum
from hpo_torchrl.problems.inventory.optima.order_cost import order_cost_optimum
from hpo_torchrl.problems.inventory.optima.periodic_rule import best_periodic_rule
from hpo_torchrl.problems.inventory.optima.s_S import optimal_s_S
from hpo_torchrl.problems.inventory.optima.total_demand_rule import best_total_demand_rule
from hpo_torchrl.problems.inventory.rules import TotalDemandPolicy, recorded_rule

# Items up to which value iteration on all positions is a matter of seconds.
_EXACT_ITEMS = 3


def inventory_reference(env) -> Reference:
    if not env.solvable:
        return Reference()
    n, K, L = env.num_items, env.fixed_cost, env.lead_time
    rows = (env.demand_mean, env.holding_cost, env.shortage_cost)
    costs: Any = (*(row.double().tolist() for row in rows), K, L)
    # Backlogged demand is all bought in the end, whatever the policy.
    bought = float((env.demand_mean * env.procurement_cost).double().sum())

    def per_item(cost: float) -> float:
        return (cost + bought) / n

    try:
        if n == 1:
            mean, holding, shortage = (float(row) for row in rows)
            s, S, cost = optimal_s_S(mean, holding, shortage, K, L)
            return Reference(optimal_cost=per_item(cost), s=s, S=S)
        rules = {
            "(Q, S) rule": per_item(best_total_demand_rule(*costs).cost),
            "(R, S) rule": per_item(best_periodic_rule(*costs).cost),
        }
    except ValueError:  # beyond what the oracles search: no reason to refuse a training
        return Reference()
    if n <= _EXACT_ITEMS:
        with contextlib.suppress(ValueError):  # too many positions for value iteration
            optimum = per_item(joint_replenishment_optimum(*costs).cost)
            return Reference(optimal_cost=optimum, baselines=rules)
    bound = None
    with contextlib.suppress(ValueError):
        bound = per_item(joint_replenishment_lower_bound(*costs).cost)
    return Reference(lower_bound=bound, upper_bound=min(rules.values()), baselines=rules)


def recorded_reference(env, test: Test) -> Reference:
    rule = recorded_rule(env)
    policy: Any = TotalDemandPolicy(rule.Q, rule.S).to(env.device)
    cost = test.run(policy).mean
    # The same starts and the same demand: no sampling error of the test is in the comparison.
    return Reference(upper_bound=cost, baselines={"(s, S) rule": cost}, policy=policy, paired=True)


# Items up to which value iteration on all positions is a matter of seconds.
_EXACT_VARIANT_ITEMS = 2


def variant_reference(env) -> Reference:
    """Return the optimum of an inventory problem with features, where an oracle knows it.

    Known are a single item with any order cost whose breakpoints are integers, backlogged or (up to
    a lead time of 2) with lost sales, and two items with fixed costs for the order and each item.
    Profit is income less cost: where all demand is sold in the end the income is what it is, and a
    sale that is lost costs its price on top of p.

    Args:
        env: the problem in its original form.

    Returns:
        The reference, per item and period; all ``None`` where nothing is known.
    """
    plain = env.demand.poisson and env.suppliers is None
    integer = all(float(at).is_integer() for at, _ in env.breakpoints())
    if not (plain and integer) or bool((env.holding_cost <= 0).any()):
        return Reference()
    n, rows = env.num_items, (env.demand_mean, env.holding_cost, env.shortage_cost)
    mean, holding, shortage = (row.double().tolist() for row in rows)
    price = sum(f.price for f in env.features if isinstance(f, Profit))
    income = price * sum(mean)
    found = None
    # Beyond what the oracles search: no reason to refuse a training.
    with contextlib.suppress(ValueError):
        if n == 1 and env.lost_sales:
            found = lost_sales_optimum(
                mean[0], holding[0], shortage[0] + price, _order_cost(env), env.lead_time
            ).cost
        elif n == 1:
            found = order_cost_optimum(
                mean[0], holding[0], shortage[0], _order_cost(env), env.lead_time
            ).cost
        elif n <= _EXACT_VARIANT_ITEMS and not env.lost_sales and _only_fixed(env):
            joint = sum(f.cost for f in env.features if type(f) is FixedCost)
            minor = sum(f.cost for f in env.features if type(f) is ItemFixedCost)
            found = joint_replenishment_optimum(
                mean, holding, shortage, joint, env.lead_time, minor_costs=[minor] * n
            ).cost
            found += float((env.demand_mean * env.procurement_cost).double().sum())
    return Reference() if found is None else Reference(optimal_cost=(found - income) / n)


def _only_fixed(env) -> bool:
    return all(type(f) in (FixedCost, ItemFixedCost, Profit) for f in env.features)


def _order_cost(env):
    """Cost of ordering each of q = 0, 1, 2, ... units; infinite where they are not delivered."""
    unit = float(env.procurement_cost.double())

    def cost(quantities: np.ndarray) -> np.ndarray:
        asked = torch.as_tensor(quantities, dtype=torch.float64).unsqueeze(-1)
        given, option = asked, torch.zeros(len(asked), dtype=torch.int64)
        for feature in env.features:
            given = feature.delivered(given)
        total = unit * given.sum(-1)
        for feature in env.features:
            total = total + feature.order_cost(given, option)
        return torch.where((given == asked).all(-1), total, torch.inf).numpy()

    return cost
