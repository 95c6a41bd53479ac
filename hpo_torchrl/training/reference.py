"""What the best possible policy costs, where it is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from tensordict.nn import TensorDictModuleBase

from hpo_torchrl.envs import DifferentiableEnv, InventoryEnv, SwitchedLQREnv
from hpo_torchrl.oracles import fixed_mode_cost, optimal_s_S, switched_lqr_optimum

# Widths to aim for in turn, with the largest set of matrices to spend on each: seconds in all.
_LQR_ATTEMPTS = ((0.001, 1000), (0.01, 50_000))
_LQR_EXACT = 20_000


@dataclass(frozen=True)
class Reference:
    """Cost per unit and period of the optimum, or bounds on it; ``None`` where unknown.

    Attributes:
        optimal_cost: cost of the optimum.
        lower_bound: what no policy can go below.
        upper_bound: what some known policy attains.
        baselines: costs of simple rules by name: the lines to beat.
        s: optimal reorder point of a single item.
        S: its optimal order-up-to level.
        policy: the optimal policy, or that of the upper bound.
        paired: whether the costs are of the test's own initial states, and all its noise is in
            those: gaps then have no sampling error of their own.
    """

    optimal_cost: float | None = None
    lower_bound: float | None = None
    upper_bound: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    s: int | None = None
    S: int | None = None
    policy: TensorDictModuleBase | None = field(default=None, compare=False)
    paired: bool = False

    def gaps(self, cost: float) -> dict[str, float | None]:
        """Return cost / optimum - 1 as ``gap``, and the same for either bound; ``None`` if unknown.

        Between a lower and an upper bound the true gap is between ``gap_to_upper_bound`` (at
        least) and ``gap_to_lower_bound`` (at most).
        """
        known = {
            "gap": self.optimal_cost,
            "gap_to_lower_bound": self.lower_bound,
            "gap_to_upper_bound": self.upper_bound,
        }
        return {name: None if base is None else cost / base - 1.0 for name, base in known.items()}


def reference_cost(env: DifferentiableEnv, *, seed: int | None = None) -> Reference:
    """Return the optimum of an environment, or bounds on it.

    *Inventory.* One item with backlogged Poisson demand is solved exactly. For n items, giving each
    an equal share of the joint fixed cost and solving it alone can only be cheaper than any joint
    policy: a lower bound (cost allocation).

    *Switched LQR* without noise, on the initial states that the environment draws: exact for one or
    two modes, certified bounds for more, and the best fixed mode as the line to beat. Where being
    clipped by the environment's guard might pay, only the upper bound is known.

    Args:
        env: the environment; one with random initial states is reset.
        seed: seed of the initial states, where the optimum depends on them.

    Returns:
        The reference; all ``None`` where nothing is known.
    """
    if isinstance(env, InventoryEnv):
        return _inventory(env)
    if isinstance(env, SwitchedLQREnv):
        return _switched_lqr(env, seed)
    return Reference()


def _inventory(env: InventoryEnv) -> Reference:
    solvable = (
        env.demand == "poisson"
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


def _switched_lqr(env: SwitchedLQREnv, seed: int | None) -> Reference:
    if env.process_noise > 0:
        return Reference()
    if seed is not None:
        env.set_seed(seed)
    x0 = env.reset().get("x").reshape(-1, env.A.shape[-1])
    A, B, Q, R = (matrix.cpu() for matrix in (env.A, env.B, env.Q, env.R))
    units = env.horizon * env.cost_units
    fixed = fixed_mode_cost(A, B, Q, R, env.horizon, x0).flatten(1).mean(1) / units
    baselines = {"best fixed mode": float(fixed.min())}
    attempts = [(0.0, _LQR_EXACT)] if env.num_options <= 2 else []
    for tolerance, limit in [*attempts, *_LQR_ATTEMPTS]:
        try:
            optimum = switched_lqr_optimum(A, B, Q, R, env.horizon, tolerance, max_matrices=limit)
        except MemoryError:
            continue
        costs = optimum.cost(x0)
        cost, policy = float(costs.mean()) / units, optimum.policy()
        # The oracle knows of no guard. One that acts before the end leaves a coordinate at the
        # limit, to be paid: only where that is dearer than the optimum is it sure to be one.
        touching = float(torch.linalg.eigvalsh(Q.double()).min()) * env.state_limit**2
        if bool((costs > touching).any()):
            return Reference(upper_bound=cost, baselines=baselines, policy=policy, paired=True)
        if tolerance == 0.0:
            return Reference(optimal_cost=cost, baselines=baselines, policy=policy, paired=True)
        lower = float(optimum.lower_bound(x0).mean()) / units
        return Reference(
            lower_bound=lower,
            upper_bound=cost,
            baselines=baselines,
            policy=policy,
            paired=True,
        )
    return Reference(baselines=baselines)
