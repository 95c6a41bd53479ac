"""What the best possible policy costs, where it is known."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from hpo_torchrl.algorithms import recorded_rule
from hpo_torchrl.envs import (
    ContinuousInventoryEnv,
    DifferentiableEnv,
    HybridizedEnv,
    InventoryEnv,
    RecordedInventoryEnv,
    SwitchedLQREnv,
)
from hpo_torchrl.modules import TotalDemandPolicy
from hpo_torchrl.oracles import (
    best_periodic_rule,
    best_total_demand_rule,
    fixed_mode_cost,
    joint_replenishment_lower_bound,
    joint_replenishment_optimum,
    optimal_s_S,
    switched_lqr_optimum,
)
from hpo_torchrl.training.bounds import Reference
from hpo_torchrl.training.evaluation import Evaluation
from hpo_torchrl.training.variants import variant_reference

# Widths to aim for in turn, with the largest set of matrices to spend on each: seconds in all.
_LQR_ATTEMPTS = ((0.001, 1000), (0.01, 50_000))
_LQR_EXACT = 20_000
# Items up to which value iteration on all positions is a matter of seconds.
_EXACT_ITEMS = 3


def reference_cost(
    env: DifferentiableEnv, *, seed: int | None = None, num_steps: int | None = None, skip: int = 0
) -> Reference:
    """Return the optimum of an environment, or bounds on it.

    *Inventory* with backlogged Poisson demand: exact for up to three items. For more, a lower bound
    (each item alone, at the best allocation of the joint fixed cost) and the best of two simple
    rules as the upper bound: order all items every R periods, or once Q units are missing.

    *Switched LQR* without noise, on the initial states that the environment draws: exact for one or
    two modes, certified bounds for more, and the best fixed mode as the line to beat. Where being
    clipped by the environment's guard might pay, only the upper bound is known.

    *Recorded demand*: the (s, S) rule that was best in the training periods, simulated on the test;
    for several items it orders all up to S_i once they lack Q together. It is an upper bound on
    what the best policy costs there.

    *Inventory of features*: exact for a single item with integer breakpoints and one supplier.

    Args:
        env: the environment; one with random initial states is reset.
        seed: seed of the initial states, where the optimum depends on them.
        num_steps: periods of the test, where a rule is simulated on it; ``None`` is all there are.
        skip: first periods of the test that are not counted.

    Returns:
        The reference; all ``None`` where nothing is known.
    """
    if isinstance(env, RecordedInventoryEnv):
        steps = env.num_periods if num_steps is None else num_steps
        return _recorded(env, Evaluation(env, num_steps=steps, skip=skip, seed=seed or 0))
    if isinstance(env, InventoryEnv):
        return _inventory(env)
    if isinstance(env, HybridizedEnv) and isinstance(env.original, ContinuousInventoryEnv):
        return variant_reference(env.original)
    if isinstance(env, SwitchedLQREnv):
        return _switched_lqr(env, seed)
    return Reference()


def _inventory(env: InventoryEnv) -> Reference:
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


def _recorded(env: RecordedInventoryEnv, test: Evaluation) -> Reference:
    rule = recorded_rule(env)
    policy: Any = TotalDemandPolicy(rule.Q, rule.S).to(env.device)
    cost = test.run(policy).mean
    # The same starts and the same demand: no sampling error of the test is in the comparison.
    return Reference(upper_bound=cost, baselines={"(s, S) rule": cost}, policy=policy, paired=True)


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
