"""What the best possible policy costs, where it is known."""

from __future__ import annotations

from typing import NamedTuple

from hpo_torchrl.envs import DifferentiableEnv, InventoryEnv
from hpo_torchrl.oracles import optimal_s_S


class Reference(NamedTuple):
    """Long-run cost per unit and period of the optimum, or bounds on it; ``None`` where unknown.

    ``s`` and ``S`` are the optimal reorder point and order-up-to level of a single item.
    """

    optimal_cost: float | None = None
    lower_bound: float | None = None
    upper_bound: float | None = None
    s: int | None = None
    S: int | None = None

    def gap(self, cost: float) -> float | None:
        """Return cost / optimum - 1, or ``None`` where the optimum is unknown."""
        return None if self.optimal_cost is None else cost / self.optimal_cost - 1.0


def reference_cost(env: DifferentiableEnv) -> Reference:
    """Return the optimum of an environment, or bounds on it.

    One item with backlogged Poisson demand is solved exactly. For n items, giving each an equal
    share of the joint fixed cost and solving it alone can only be cheaper than any joint policy:
    a lower bound (cost allocation).

    Args:
        env: the environment.

    Returns:
        The reference; all ``None`` where nothing is known.
    """
    solvable = (
        isinstance(env, InventoryEnv)
        and env.demand == "poisson"
        and env.demand_traces is None
        and not env.lost_sales
        and bool((env.holding_cost > 0).all())
        and bool((env.shortage_cost > 0).all())
    )
    if not solvable:
        return Reference()
    rows = (env.demand_mean, env.holding_cost, env.shortage_cost, env.procurement_cost)
    share = env.fixed_cost / env.num_items
    solved: dict[tuple[float, ...], tuple[int, int, float]] = {}
    total = 0.0
    for item in zip(*(row.double().tolist() for row in rows), strict=True):
        mean, holding, shortage, procurement = item
        if item not in solved:
            try:
                solved[item] = optimal_s_S(mean, holding, shortage, share, env.lead_time)
            except ValueError:  # beyond what the oracle searches: no reason to refuse a training
                return Reference()
        # Backlogged demand is all bought in the end, whatever the policy.
        total += solved[item][2] + procurement * mean
    cost = total / env.num_items
    if env.num_items > 1:
        return Reference(lower_bound=cost)
    s, S, _ = next(iter(solved.values()))
    return Reference(optimal_cost=cost, s=s, S=S)
