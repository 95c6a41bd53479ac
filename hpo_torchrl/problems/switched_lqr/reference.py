"""What the best policy of a switched LQR costs, where it is known."""

from __future__ import annotations

import torch

from hpo_torchrl.core.reference import Reference
from hpo_torchrl.problems.switched_lqr.optimum import fixed_mode_cost, switched_lqr_optimum

# Widths to aim for in turn, with the largest set of matrices to spend on each: seconds in all.
_LQR_ATTEMPTS = ((0.001, 1000), (0.01, 50_000))
_LQR_EXACT = 20_000


def switched_lqr_reference(env, seed: int | None) -> Reference:
    if env.process_noise > 0:
        return Reference()
    if seed is not None:
        env.set_seed(seed)
    x0 = env.reset().get("x").reshape(-1, env.A.shape[-1])
    A, B, Q, R = (matrix.cpu() for matrix in (env.A, env.B, env.Q, env.R))
    units = env.horizon * env.cost_units
    fixed = fixed_mode_cost(A, B, Q, R, env.horizon, x0).flatten(1).mean(1) / units
    baselines = {"best fixed mode": float(fixed.min())}
    attempts = [(0.0, _LQR_EXACT)] if env.num_discrete <= 2 else []
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
