"""The optimum of inventory problems that are put together from features."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from hpo_torchrl.envs import ContinuousInventoryEnv
from hpo_torchrl.envs.features import FixedCost, ItemFixedCost, Profit
from hpo_torchrl.oracles import (
    joint_replenishment_optimum,
    lost_sales_optimum,
    order_cost_optimum,
)
from hpo_torchrl.training.bounds import Reference

# Items up to which value iteration on all positions is a matter of seconds.
_EXACT_ITEMS = 2


def variant_reference(env: ContinuousInventoryEnv) -> Reference:
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
    plain = env.demand == "poisson" and env.demand_traces is None and env.suppliers is None
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
        elif n <= _EXACT_ITEMS and not env.lost_sales and _only_fixed(env):
            joint = sum(f.cost for f in env.features if type(f) is FixedCost)
            minor = sum(f.cost for f in env.features if type(f) is ItemFixedCost)
            found = joint_replenishment_optimum(
                mean, holding, shortage, joint, env.lead_time, minor_costs=[minor] * n
            ).cost
            found += float((env.demand_mean * env.procurement_cost).double().sum())
    return Reference() if found is None else Reference(optimal_cost=(found - income) / n)


def _only_fixed(env: ContinuousInventoryEnv) -> bool:
    return all(type(f) in (FixedCost, ItemFixedCost, Profit) for f in env.features)


def _order_cost(env: ContinuousInventoryEnv):
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
