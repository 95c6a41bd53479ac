"""What the solvers see of an environment: batteries as numbers, and the market that they face."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpo_torchrl.problems.storage.optimum import Market, Store


def stores_of(env: Any) -> list[Store]:
    """Return each battery's numbers."""
    rows = [row.double().cpu().tolist() for row in env.batteries[:-1]]
    return [Store._make([*numbers, env.running_cost, False]) for numbers in zip(*rows, strict=True)]


def fleet_of(env: Any) -> Store:
    """Return one battery that can do on average whatever the batteries can, at no higher cost.

    One battery is itself. Contents and powers of many add up to those of a battery of their mean
    capacity and ratings. Where they differ, it has the best of the efficiencies and costs, and it
    may lose as much by itself as any of them.
    """
    stores = stores_of(env)
    if len(stores) == 1:
        return stores[0]
    rows = np.array([store[:7] for store in stores])
    capacity, charge, discharge = rows[:, :3].mean(0)
    # Wear and running are counted by the energy drawn, which the worst battery makes least of.
    wasted = rows[:, 4].min() / rows[:, 4].max()
    # A battery runs for at least the share of its rating that it uses.
    share = (rows[:, 1:3].mean(0) / rows[:, 1:3].max(0)).min()
    return Store(
        capacity=capacity,
        charge_rating=charge,
        discharge_rating=discharge,
        charge_efficiency=rows[:, 3].max(),
        discharge_efficiency=rows[:, 4].max(),
        wear_cost=rows[:, 5].min() * wasted,
        self_discharge=rows[:, 6].max(),
        running_cost=env.running_cost * wasted * share,
        # Alike and with one mode for all they are one: all run, and none undoes another's work.
        fleet=env.num_heads is not None or bool((rows != rows[0]).any()),
    )


def market_of(env: Any) -> Market:
    """Return what the power of the mean battery costs.

    Raises:
        ValueError: the environment has a horizon: there is no long-run average.
    """
    if env.horizon is not None:
        raise ValueError(
            f"A plan is of the long-run average cost, got horizon={env.horizon}; use "
            "rule=price_thresholds, or horizon=null."
        )
    N, load = env.num_batteries, env.load_by_step.double().cpu().numpy()
    limit = np.full((2, env.cycle), np.inf)
    if env.connection is not None:
        most, least = env.connection
        limit = np.stack([most - load, least + load]) / N
    return Market(
        price=env.price_by_step.double().cpu().numpy(),
        slope=np.ones(env.cycle),
        kept=env.prices.kept,
        shock=env.prices.shock,
        hours=env.step_hours,
        impact=env.price_impact,
        limit=limit,
        excess_cost=env.excess_cost,
    )
