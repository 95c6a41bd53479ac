"""Joint replenishment: bounds, optimum and rules against published values and slow computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, poisson
from stock_oracles import INSTANCES, ITEM, certified, expected_cost, falls, simulate, z_score

from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import joint_replenishment_optimum, optimal_s_S
from hpo_torchrl.problems.inventory.optima import optimal_stopping
from hpo_torchrl.problems.inventory.optima.items import Items
from hpo_torchrl.problems.inventory.optima.joint_replenishment import (
    joint_replenishment_lower_bound,
)
from hpo_torchrl.problems.inventory.rules import PeriodicPolicy, TotalDemandPolicy

# Per item; mean 10, h = 1, p = 9, K = 64 n, L = 2.
OPTIMUM = {1: 37.0644, 2: 38.1397, 3: 38.5078}
PERIODIC = (4, 63, 38.8823)

PAIRS = [
    ((1.5, 3.0), (1.0, 0.6), (9.0, 4.0), 12.0, 1),
    ((0.2, 2.0), (0.5, 1.5), (3.0, 12.0), 5.0, 0),
    ((2.0, 2.0), (1.0, 1.0), (9.0, 9.0), 0.0, 2),
]
TRIPLE = ((1.0, 2.0, 3.5), (0.8, 1.0, 1.2), (7.0, 9.0, 11.0), 30.0, 1)


def identical(n):
    return Items([10.0] * n, 1, 9, 64 * n, 2)


def levels_of(found):
    return found.policy.S.int().tolist()


def highest(found):
    """Order-up-to levels of a joint optimum: what stock at the lowest positions is lifted to."""
    table = found.policy
    return (table.lowest + table.order[(0,) * table.lowest.numel()]).tolist()


def bounds(items):
    """Lower bound, certified lower, cost of the optimum, and the cheaper rule."""
    optimum = joint_replenishment_optimum(items)
    rules = [kind.optimum(items).cost for kind in (TotalDemandPolicy, PeriodicPolicy)]
    return joint_replenishment_lower_bound(items)[0], optimum.lower, optimum.cost, min(rules)


def slow_value_iteration(means, h, p, K, lead_time, low=-14, high=26):
    """Bounds on the optimum of two items from every position and order, none of them assumed."""
    x = np.arange(low, high + 1)
    fall = falls(means, x.size)
    L = lead_time + 1
    first, second = (expected_cost(x, L * means[i], h[i], p[i]) for i in range(2))
    costs = first[:, None] + second
    v = np.zeros_like(costs)
    for _ in range(3000):
        H = costs + fall[0] @ v @ fall[1].T
        cheapest = H[::-1, ::-1]
        for axis in range(2):
            cheapest = np.minimum.accumulate(cheapest, axis=axis)
        new = np.minimum(H, K + cheapest[::-1, ::-1])
        change = new - v
        v = new - new[0, 0]
        if np.ptp(change) < 1e-7:
            break
    return change.min(), change.max()


def play(policy, instance, start, periods=660):
    """Costs per period of a policy, run order by order with an explicit pipeline."""
    means, h, p, K, lead_time = instance

    def decide(t, level, pipeline):
        inventory = torch.as_tensor(level + sum(pipeline)).double().unsqueeze(-1)
        step = torch.full((len(level), 1), t)
        ordering, quantity = policy.decide(*(inventory, step)[: len(policy.in_keys)])
        return (quantity * ordering.unsqueeze(-1)).long().numpy()

    def order_cost(quantity):
        return K * (quantity > 0).any(axis=1)

    return simulate(decide, means, h, p, order_cost, lead_time, start, periods=periods)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
def test_published_figures(n):
    if n in OPTIMUM:
        found = joint_replenishment_optimum(identical(n))
        assert found.cost / n == pytest.approx(OPTIMUM[n], abs=6e-5)
        assert certified(found)
        assert len(set(highest(found))) == 1
    bound, fixed_costs = joint_replenishment_lower_bound(identical(n))
    assert bound / n == pytest.approx(OPTIMUM[1], abs=6e-5)
    assert fixed_costs == pytest.approx([64.0] * n)
    # The total demand of more items tells less than the time.
    costs = [TotalDemandPolicy.optimum(identical(m)).cost / m for m in (1, n)]
    assert costs[0] == pytest.approx(OPTIMUM[1], abs=6e-5)
    assert costs[0] <= costs[1] <= PERIODIC[2] + 6e-5
    assert n < 50 or costs[1] == pytest.approx(PERIODIC[2], abs=6e-5)
    found = PeriodicPolicy.optimum(identical(n))
    assert (found.policy.R, levels_of(found)) == (PERIODIC[0], [PERIODIC[1]] * n)
    assert found.cost / n == pytest.approx(PERIODIC[2], abs=6e-5)


def test_a_lead_time_one_period_short_is_seen():
    def short(items):
        items.lead_time -= 1
        return items

    for cost, right in [
        (joint_replenishment_optimum(short(identical(2))).cost / 2, OPTIMUM[2]),
        (PeriodicPolicy.optimum(short(identical(2))).cost / 2, PERIODIC[2]),
        (TotalDemandPolicy(36, 62).cost(short(identical(1))), OPTIMUM[1]),
    ]:
        assert abs(cost - right) > 0.01 * right
    _, high = slow_value_iteration(*PAIRS[0])
    assert joint_replenishment_optimum(short(Items(*PAIRS[0]))).cost < high * 0.99


@pytest.mark.parametrize("instance", [*INSTANCES, (1e-6, 1.0, 9.0, 64.0, 1), (10, 1, 9, 0, 2)])
def test_one_item_is_the_s_S_problem(instance):
    optimum, items = optimal_s_S(*instance), Items(*instance)
    rule = TotalDemandPolicy.optimum(items)
    assert str(rule.policy) == str(optimum.policy)
    assert rule.cost == pytest.approx(optimum.cost, rel=1e-12)
    found = joint_replenishment_optimum(items)
    assert found.cost == pytest.approx(optimum.cost, rel=1e-10)
    assert found.lower == pytest.approx(optimum.cost, rel=1e-6)
    S = int(optimum.policy.S)
    s = S - int(optimum.policy.Q)
    positions = np.arange(s - 20, S + 3)
    ordered = found.policy.order_quantity(positions[:, None])[:, 0]
    assert ordered.tolist() == np.where(positions <= s, S - positions, 0).tolist()
    assert joint_replenishment_lower_bound(items)[0] == optimum.cost


@pytest.mark.parametrize("instance", PAIRS)
def test_two_items_match_a_slow_value_iteration(instance):
    low, high = slow_value_iteration(*instance)
    assert high - low < 1e-6
    found = joint_replenishment_optimum(Items(*instance), tolerance=1e-9)
    assert found.cost == pytest.approx(high, abs=2e-6)
    assert found.lower == pytest.approx(low, abs=2e-6)


@pytest.mark.parametrize("instance", [*PAIRS, TRIPLE])
def test_a_larger_grid_changes_nothing(instance, monkeypatch):
    small = joint_replenishment_optimum(Items(*instance))
    exact_bounds = optimal_stopping._bounds

    def wider(*arguments):
        lowest, values = exact_bounds(*arguments)
        return lowest - 6, [np.zeros(v.size + 16) for v in values]

    monkeypatch.setattr(optimal_stopping, "_bounds", wider)
    large = joint_replenishment_optimum(Items(*instance))
    assert large.cost == pytest.approx(small.cost, rel=2e-7)
    assert highest(large) == highest(small)
    # The rows below which ordering is proved optimal hold no position at which to wait.
    waits = (large.policy.order == 0).all(-1).nonzero() + large.policy.lowest
    assert (waits > small.policy.lowest).all()


@pytest.mark.parametrize("instance", [PAIRS[0], TRIPLE])
def test_policies_cost_what_a_simulated_pipeline_costs(instance):
    items = Items(*instance)
    optimum = joint_replenishment_optimum(items)
    paid = play(optimum.policy, instance, highest(optimum))
    assert abs(z_score(paid, optimum.cost)) < 4
    # The same run tells a lead time apart.
    longer = joint_replenishment_optimum(Items(*instance[:4], instance[4] + 1))
    assert abs(z_score(paid, longer.cost)) > 8
    found = TotalDemandPolicy.optimum(items)
    assert abs(z_score(play(found.policy, instance, levels_of(found)), found.cost)) < 4
    found = PeriodicPolicy.optimum(items)
    paid = play(found.policy, instance, levels_of(found), periods=220 * found.policy.R)
    assert abs(z_score(paid, found.cost)) < 4


def test_the_optimum_runs_as_a_policy_of_the_environment():
    env = InventoryEnv(2, batch_size=256, initial_state="stationary", seed=0)
    found = joint_replenishment_optimum(Items.of(env, "optimum"))
    run = env.rollout(400, found.policy, break_when_any_done=False)
    paid = -run["next", "reward"][:, 100:].mean((1, 2)).double().numpy()
    assert abs(z_score(paid, found.cost)) < 4


@pytest.mark.parametrize("mean", [0.02, 0.4])
def test_rules_do_not_pay_for_empty_orders(mean):
    instance = ((mean, 2 * mean), (1.0, 1.0), (9.0, 5.0), 6.0, 1)
    for policy in (PeriodicPolicy(3, [2, 3]), TotalDemandPolicy(2, [2, 3])):
        paid = play(policy, instance, (2, 3), periods=1100)
        assert abs(z_score(paid, policy.cost(Items(*instance)))) < 4


def test_total_demand_cost_matches_binomial_sums():
    means, h, p, K, L = (1.5, 0.5, 4.0), (1.0, 2.0, 0.3), (9.0, 3.0, 2.0), 20.0, 1
    Q, S, M = 17, (5, -2, 14), 6.0
    u = np.zeros(Q)
    u[0] = 1.0
    for j in range(1, Q):
        u[j] = sum(poisson.pmf(i, M) / poisson.sf(0, M) * u[j - i] for i in range(1, j + 1))
    total = K * poisson.sf(0, M)
    for j in range(Q):
        for i in range(3):
            taken = np.arange(j + 1)
            G = expected_cost(S[i] - taken, (L + 1) * means[i], h[i], p[i])
            total += u[j] * (binom.pmf(taken, j, means[i] / M) @ G)
    exact = TotalDemandPolicy(Q, S).cost(Items(means, h, p, K, L))
    assert exact == pytest.approx(total / u.sum())


@pytest.mark.parametrize("instance", [*PAIRS, TRIPLE, (0.01, (1.0, 2.0), 9.0, 64.0, 3)])
def test_no_neighbouring_rule_is_cheaper(instance):
    items = Items(*instance)
    for kind in (TotalDemandPolicy, PeriodicPolicy):
        found = kind.optimum(items)
        number = int(getattr(found.policy, "Q" if kind is TotalDemandPolicy else "R"))
        assert found.policy.cost(items) == pytest.approx(found.cost, rel=1e-12)
        for change in (-3, -1, 0, 1, 4):
            for item in range(items.mean.size):
                for shift in (-1, 0, 1):
                    levels = levels_of(found)
                    levels[item] += shift
                    neighbour = kind(max(1, number + change), levels)
                    assert neighbour.cost(items) >= found.cost * (1 - 1e-12)


@pytest.mark.parametrize("K", [1e-3, 1.0, 40.0, 700.0])
def test_the_search_over_rules_stops_late_enough(K):
    items = Items([0.7, 2.1], [1.0, 0.4], [9.0, 2.0], K, 1)
    total, periodic = (kind.optimum(items) for kind in (TotalDemandPolicy, PeriodicPolicy))
    critical, means = items.critical_ratio, items.mean
    last = int(6 * total.policy.Q) + 30
    for Q in range(1, last, max(5, last // 60)):
        S = np.rint(means * (2 + Q * critical / means.sum()))
        assert TotalDemandPolicy(Q, S).cost(items) >= total.cost
    for R in range(1, 4 * periodic.policy.R + 10):
        assert PeriodicPolicy(R, np.floor(means * (2 + R * critical))).cost(items) >= periodic.cost


@pytest.mark.parametrize("seed", range(4))
def test_parts_of_the_fixed_cost_are_near_the_best(seed):
    rng = np.random.default_rng(seed)
    mean, h, p = rng.uniform([0.2, 0.3, 2], [14, 2, 12], (2, 3)).T
    K, L = rng.uniform(5, 200), seed
    bound, fixed_costs = joint_replenishment_lower_bound(Items(mean, h, p, K, L))
    assert math.fsum(fixed_costs) == pytest.approx(K)

    def cost_of(*parts):
        return sum(optimal_s_S(mean[i], h[i], p[i], parts[i], L).cost for i in range(2))

    assert bound == pytest.approx(cost_of(*fixed_costs), rel=1e-12)
    best = max(cost_of(k, K - k) for k in np.linspace(0, K, 101))
    assert best * (1 - 2e-3) <= bound <= best * (1 + 2e-3)


def test_many_different_items():
    n = 24
    mean, h, p = np.random.default_rng(0).uniform([6, 0.7, 6.3], [14, 1.3, 11.7], (n, 3)).T
    items = Items(mean, h, p, 64 * n, 2)
    bound, fixed_costs = joint_replenishment_lower_bound(items)
    total, periodic = (kind.optimum(items) for kind in (TotalDemandPolicy, PeriodicPolicy))
    # With so many items, their total demand tells little more than the time.
    assert bound < total.cost < 1.06 * bound
    assert total.cost == pytest.approx(periodic.cost, rel=1e-4)
    assert len(total.policy.S) == len(periodic.policy.S) == len(fixed_costs) == n
    parts = mean / mean.sum() * 64 * n
    alone = (optimal_s_S(*row, 2).cost for row in zip(mean, h, p, parts, strict=True))
    assert bound >= sum(alone)
    assert total.policy.cost(items) == pytest.approx(total.cost, rel=1e-10)
    # An item rarely demanded gets no part.
    bound, fixed_costs = joint_replenishment_lower_bound(Items([1e-3, 10, 10], 1, 9, 64, 2))
    assert fixed_costs == pytest.approx((0, 32, 32), abs=0.5)
    alone, _ = joint_replenishment_lower_bound(Items([10, 10], 1, 9, 64, 2))
    assert bound >= alone + optimal_s_S(1e-3, 1, 9, 0, 2).cost - 1e-9


@settings(deadline=None, max_examples=8)
@given(
    mean=st.tuples(st.floats(0.05, 5), st.floats(0.05, 5)),
    h=st.tuples(st.floats(0.2, 3), st.floats(0.2, 3)),
    p=st.tuples(st.floats(0.5, 20), st.floats(0.5, 20)),
    K=st.floats(0, 60),
    L=st.integers(0, 3),
    factor=st.floats(0.01, 100),
)
def test_bounds_are_in_order_scale_and_know_no_order_of_the_items(mean, h, p, K, L, factor):
    first = bounds(Items(mean, h, p, K, L))
    bound, lower, cost, rule = first
    slack = 1e-9 * cost
    assert bound <= lower + 1e-6 * cost
    assert lower <= cost <= rule + slack
    assert cost - lower <= 1e-6 * cost + slack
    apart = sum(optimal_s_S(mean[i], h[i], p[i], K, L).cost for i in range(2))
    assert cost <= apart + slack
    scaled = Items(mean, [factor * a for a in h], [factor * a for a in p], factor * K, L)
    assert bounds(scaled) == pytest.approx([factor * cost for cost in first], rel=2e-6)
    assert bounds(Items(mean[::-1], h[::-1], p[::-1], K, L)) == pytest.approx(first, rel=2e-6)


def test_positions_after_ordering():
    found = joint_replenishment_optimum(Items(*PAIRS[0]))
    table, S = found.policy, np.asarray(highest(found))
    grid = np.stack(np.meshgrid(*(np.arange(-30, s + 5) for s in S), indexing="ij"), -1)
    order = table.order_quantity(grid).numpy()
    assert order.shape == grid.shape
    assert order.dtype == np.int64
    ordered = (order > 0).any(-1)
    assert (order >= 0).all()
    assert ((grid + order)[ordered] == np.maximum(grid[ordered], S)).all()
    assert ordered[0].all()
    assert ordered[:, 0].all()
    assert not ordered[(grid >= S).all(-1)].any()
    assert table.order_quantity(torch.tensor([-50.0, 3.0])).tolist() == (S - [-50, 3]).tolist()
    for bad in (3, [[1, 2, 3]]):
        with pytest.raises(ValueError, match=r"stock must have shape \(\*B, 2\), got"):
            table.order_quantity(bad)
    with pytest.raises(ValueError, match="stock must hold whole numbers of units, got"):
        table.order_quantity([math.nan, 1])


def test_too_large_for_the_optimum():
    with pytest.raises(ValueError, match=r"at most 3 items, got 4; .*lower_bound .*Periodic"):
        joint_replenishment_optimum(identical(4))
    with pytest.raises(
        ValueError, match=r"at most \d+ inventory positions, but .* x .*lower fixed"
    ):
        joint_replenishment_optimum(Items([60, 60, 60], 1, 9, 3 * 3000, 2))
    for kind in (PeriodicPolicy, TotalDemandPolicy):
        with pytest.raises(ValueError, match=r"lower fixed_cost .*fixed_cost=1e\+30"):
            kind.optimum(Items([10, 10], 1, 9, 1e30, 0))
    for value in (0, math.nan):
        with pytest.raises(ValueError, match="tolerance must be a finite number >= 1e-09, got"):
            joint_replenishment_optimum(identical(2), tolerance=value)


GOOD = ITEM | {"demand_mean": [10.0, 8.0], "fixed_cost": 64.0, "lead_time": 2}


def test_bad_input_is_named():
    for name, value, error, expected in [
        ("demand_mean", [10, 0], ValueError, r"\[1\] must be a finite number > 0, got 0"),
        ("demand_mean", [], ValueError, " must be a number or hold one entry per item: .* got 0"),
        ("demand_mean", "10", TypeError, " must be a finite number > 0, got '10'"),
        # With lengths 2 and 3, the longer one tells how many items there are.
        ("holding_cost", [1, 1, 1], ValueError, "demand_mean .*expected num_items=3 .*got 2"),
        ("shortage_cost", math.nan, ValueError, " must be a finite number > 0, got nan"),
        ("fixed_cost", -1, ValueError, " must be a finite number >= 0, got -1"),
        ("lead_time", 2.0, TypeError, r" must be an integer >= 0, got 2\.0"),
    ]:
        with pytest.raises(error, match=expected):
            Items(**GOOD | {name: value})


def test_bad_rule_is_named():
    for arguments, error, expected in [
        ((0, 60), ValueError, "[RQ] must be .* [01], got 0"),
        ((4.5, 60), (TypeError, ValueError), r"[RQ] must .* got 4\.5|Q must hold whole"),
        ((4, 60.5), ValueError, r"S must hold whole numbers of units, got"),
        ((4, [60, 60, 60]), ValueError, "S must hold one level per item: expected 2, got 3"),
    ]:
        for kind in (PeriodicPolicy, TotalDemandPolicy):
            with pytest.raises(error, match=expected):
                kind(*arguments).cost(Items(**GOOD))


def test_arrays_and_tensors_are_accepted():
    expected = PeriodicPolicy.optimum(Items([10, 8], [1, 1], [9, 9], 64, 2))
    same = Items(np.array([10, 8]), (1, np.float64(1)), torch.tensor([9.0, 9]), np.int64(64), 2)
    assert PeriodicPolicy.optimum(same) == expected
    assert expected.policy.cost(same) == expected.cost
