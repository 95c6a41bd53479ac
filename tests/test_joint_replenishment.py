"""Joint replenishment: bounds, optimum and rules against published values and slow computations."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, poisson

from hpo_torchrl.problems import inventory as oracles
from hpo_torchrl.problems.inventory import (
    best_periodic_rule,
    best_total_demand_rule,
    joint_replenishment_lower_bound,
    joint_replenishment_optimum,
    optimal_s_S,
    periodic_rule_cost,
    total_demand_rule_cost,
)
from hpo_torchrl.problems.inventory.optima import joint_replenishment as joint_module
from hpo_torchrl.problems.inventory.optima import optimal_stopping as optimal_stopping
from hpo_torchrl.problems.inventory.optima import periodic_rule as periodic_module
from hpo_torchrl.problems.inventory.optima import total_demand_rule as total_demand_module
from hpo_torchrl.problems.inventory.optima.items import check_items

MODULES = (joint_module, periodic_module, total_demand_module)

# Per item; mean 10, h = 1, p = 9, K = 64 n, L = 2.
OPTIMUM = {1: 37.0644, 2: 38.1397, 3: 38.5078}
PERIODIC = (4, 63, 38.8823)

# demand_mean, holding_cost, shortage_cost, fixed_cost, lead_time.
SINGLE = [
    (0.05, 1.0, 9.0, 2.0, 0),
    (0.05, 1.0, 200.0, 30.0, 3),
    (1e-6, 1.0, 9.0, 64.0, 1),
    (2.5, 0.3, 4.0, 10.0, 1),
    (10, 1, 9, 64, 2),
    (7.3, 2.0, 1.0, 25.0, 0),
    (10, 1.0, 0.05, 50.0, 0),
    (10, 1, 9, 0, 2),
]
PAIRS = [
    ((1.5, 3.0), (1.0, 0.6), (9.0, 4.0), 12.0, 1),
    ((0.2, 2.0), (0.5, 1.5), (3.0, 12.0), 5.0, 0),
    ((2.0, 2.0), (1.0, 1.0), (9.0, 9.0), 0.0, 2),
]
TRIPLE = ((8.0, 10.0, 13.0), (0.8, 1.0, 1.2), (7.0, 9.0, 11.0), 192.0, 2)


def identical(n):
    return [10.0] * n, 1, 9, 64 * n, 2


def bounds(instance):
    """Lower bound, certified lower, cost of the optimum, and the cheaper rule."""
    optimum = joint_replenishment_optimum(*instance)
    rules = best_total_demand_rule(*instance).cost, best_periodic_rule(*instance).cost
    bound = joint_replenishment_lower_bound(*instance)
    return bound.cost, optimum.lower, optimum.cost, min(rules)


def expected_cost(levels, mean, h, p):
    """Sum the cost over demand outcomes, without the closed form under test."""
    demand = np.arange(int(mean + 40 * math.sqrt(mean) + 60))
    net = np.asarray(levels)[..., None] - demand
    return np.where(net > 0, h * net, -p * net) @ poisson.pmf(demand, mean)


def slow_value_iteration(means, h, p, K, lead_time, low=-14, high=26):
    """Bounds on the optimum of two items from every position and order, none of them assumed."""
    x = np.arange(low, high + 1)
    fall = []
    for mean in means:
        matrix = np.zeros((x.size, x.size))
        for row in range(x.size):
            for demand in range(60):
                matrix[row, max(row - demand, 0)] += poisson.pmf(demand, mean)
        fall.append(matrix)
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


def simulate(decide, instance, start, periods=2000, ignored=200, runs=200):
    """Costs per period of independent runs, order by order with an explicit pipeline."""
    means, h, p, K, lead_time = instance
    rng = np.random.default_rng(11)
    net = np.tile(np.asarray(start), (runs, 1))
    pipeline = [np.zeros_like(net) for _ in range(lead_time)]
    total = np.zeros(runs)
    for t in range(periods):
        position = net + sum(pipeline)
        quantity = decide(t, position) - position
        assert (quantity >= 0).all()
        pipeline.append(quantity)
        net = net + pipeline.pop(0) - rng.poisson(means, net.shape)
        cost = np.where(net > 0, np.asarray(h) * net, -np.asarray(p) * net).sum(1)
        if t >= ignored:
            total += cost + K * (quantity > 0).any(1)
    return total / (periods - ignored)


def z_score(costs, exact):
    return (costs.mean() - exact) / (costs.std(ddof=1) / math.sqrt(costs.size))


@pytest.fixture
def _one_period_short(monkeypatch):
    for module in MODULES:
        monkeypatch.setattr(
            module, "check_items", lambda *given: check_items(*given[:4], given[4] - 1)
        )


@pytest.mark.parametrize("n", OPTIMUM)
def test_published_optimum(n):
    found = joint_replenishment_optimum(*identical(n))
    assert found.cost / n == pytest.approx(OPTIMUM[n], abs=6e-5)
    assert 0 <= found.cost - found.lower <= 1e-6 * found.cost
    assert found.upper == found.cost
    assert len(set(found.S)) == 1
    assert found.order.shape == tuple(np.subtract(found.S, found.lowest) + 1)


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_published_bounds_for_any_number_of_items(n):
    bound = joint_replenishment_lower_bound(*identical(n))
    assert bound.cost / n == pytest.approx(OPTIMUM[1], abs=6e-5)
    assert bound.fixed_costs == pytest.approx([64.0] * n)
    R, S, cost = best_periodic_rule(*identical(n))
    assert (R, set(S), len(S)) == (PERIODIC[0], {PERIODIC[1]}, n)
    assert cost / n == pytest.approx(PERIODIC[2], abs=6e-5)


def test_the_total_demand_rule_tends_to_the_periodic_rule():
    costs = [best_total_demand_rule(*identical(n)).cost / n for n in (1, 2, 3, 5, 10, 50)]
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(OPTIMUM[1], abs=6e-5)
    assert costs[1] > OPTIMUM[2]
    assert costs[-1] == pytest.approx(PERIODIC[2], abs=6e-5)


@pytest.mark.usefixtures("_one_period_short")
def test_a_lead_time_one_period_short_is_seen():
    instance = identical(2)
    for cost, right in [
        (joint_replenishment_optimum(*instance).cost / 2, OPTIMUM[2]),
        (best_periodic_rule(*instance).cost / 2, PERIODIC[2]),
        (total_demand_rule_cost(36, 62, *identical(1)), OPTIMUM[1]),
    ]:
        assert abs(cost - right) > 0.01 * right
    _, high = slow_value_iteration(*PAIRS[0])
    assert joint_replenishment_optimum(*PAIRS[0]).cost < high * 0.99


@pytest.mark.parametrize("instance", SINGLE)
def test_one_item_is_the_s_S_problem(instance):
    s, S, cost = optimal_s_S(*instance)
    rule = best_total_demand_rule(*instance)
    assert rule[:2] == (S - s, (S,))
    assert rule.cost == pytest.approx(cost, rel=1e-12)
    found = joint_replenishment_optimum(*instance)
    assert found.cost == pytest.approx(cost, rel=1e-10)
    assert found.lower == pytest.approx(cost, rel=1e-6)
    assert found.S == (S,)
    positions = np.arange(s - 20, S + 3)
    expected = np.where(positions <= s, S, positions)
    assert found.order_up_to(positions[:, None])[:, 0].tolist() == expected.tolist()
    assert joint_replenishment_lower_bound(*instance).cost == cost


@pytest.mark.parametrize("instance", PAIRS)
def test_two_items_match_a_slow_value_iteration(instance):
    low, high = slow_value_iteration(*instance)
    assert high - low < 1e-6
    found = joint_replenishment_optimum(*instance, tolerance=1e-9)
    assert found.cost == pytest.approx(high, abs=2e-6)
    assert found.lower == pytest.approx(low, abs=2e-6)


@pytest.mark.parametrize("instance", [*PAIRS, identical(2), TRIPLE])
def test_a_larger_grid_changes_nothing(instance, monkeypatch):
    small = joint_replenishment_optimum(*instance)
    exact_bounds = optimal_stopping._bounds

    def wider(*arguments):
        lowest, values = exact_bounds(*arguments)
        return lowest - 6, [np.zeros(v.size + 16) for v in values]

    monkeypatch.setattr(optimal_stopping, "_bounds", wider)
    large = joint_replenishment_optimum(*instance)
    assert large.cost == pytest.approx(small.cost, rel=2e-7)
    assert large.S == small.S
    # The rows below which ordering is proved optimal hold no position at which to wait.
    waits = np.argwhere(~large.order) + large.lowest
    assert (waits >= small.lowest).all()


@pytest.mark.parametrize("instance", [PAIRS[0], TRIPLE])
def test_policies_cost_what_a_simulated_pipeline_costs(instance):
    optimum = joint_replenishment_optimum(*instance)
    S = np.asarray(optimum.S)
    costs = simulate(lambda t, x: optimum.order_up_to(x), instance, S)
    assert abs(z_score(costs, optimum.cost)) < 4
    # The same run tells a lead time apart.
    longer = joint_replenishment_optimum(*instance[:4], instance[4] + 1)
    assert abs(z_score(costs, longer.cost)) > 20

    Q, S, cost = best_total_demand_rule(*instance)

    def by_total_demand(t, x):
        return np.where(((np.asarray(S) - x).sum(1) >= Q)[:, None], S, x)

    assert abs(z_score(simulate(by_total_demand, instance, S), cost)) < 4
    R, S, cost = best_periodic_rule(*instance)
    costs = simulate(
        lambda t, x: S if t % R == 0 else x, instance, S, periods=600 * R, ignored=60 * R
    )
    assert abs(z_score(costs, cost)) < 4


@pytest.mark.parametrize("mean", [0.02, 0.4])
def test_rules_do_not_pay_for_empty_orders(mean):
    instance = ((mean, 2 * mean), (1.0, 1.0), (9.0, 5.0), 6.0, 1)
    costs = simulate(lambda t, x: (2, 3) if t % 3 == 0 else x, instance, (2, 3), periods=6000)
    assert abs(z_score(costs, periodic_rule_cost(3, (2, 3), *instance))) < 4
    costs = simulate(
        lambda t, x: np.where((x.sum(1) <= 3)[:, None], (2, 3), x), instance, (2, 3), periods=6000
    )
    assert abs(z_score(costs, total_demand_rule_cost(2, (2, 3), *instance))) < 4


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
    assert total_demand_rule_cost(Q, S, means, h, p, K, L) == pytest.approx(total / u.sum())


@pytest.mark.parametrize("instance", [*PAIRS, TRIPLE, (0.01, (1.0, 2.0), 9.0, 64.0, 3)])
def test_no_neighbouring_rule_is_cheaper(instance):
    rules = [
        (best_total_demand_rule(*instance), total_demand_rule_cost),
        (best_periodic_rule(*instance), periodic_rule_cost),
    ]
    for (number, S, cost), cost_of in rules:
        assert cost_of(number, S, *instance) == pytest.approx(cost, rel=1e-12)
        for change in (-3, -1, 0, 1, 4):
            for item in range(len(S)):
                for shift in (-1, 0, 1):
                    levels = list(S)
                    levels[item] += shift
                    neighbour = max(1, number + change)
                    assert cost_of(neighbour, levels, *instance) >= cost * (1 - 1e-12)


@pytest.mark.parametrize("K", [1e-3, 1.0, 40.0, 700.0])
def test_the_search_over_rules_stops_late_enough(K):
    means, h, p = np.array([0.7, 2.1]), np.array([1.0, 0.4]), np.array([9.0, 2.0])
    total, periodic = (
        rule(means, h, p, K, 1) for rule in (best_total_demand_rule, best_periodic_rule)
    )
    critical = p / (h + p)
    for Q in range(1, 6 * total.Q + 30, 5):
        S = np.rint(means * (2 + Q * critical / means.sum())).astype(int)
        assert total_demand_rule_cost(Q, S, means, h, p, K, 1) >= total.cost
    for R in range(1, 4 * periodic.R + 10):
        S = (means * (2 + R * critical)).astype(int)
        assert periodic_rule_cost(R, S, means, h, p, K, 1) >= periodic.cost


@pytest.mark.parametrize("seed", range(4))
def test_shares_of_the_fixed_cost_are_near_the_best(seed):
    rng = np.random.default_rng(seed)
    mean, h, p = rng.uniform([0.2, 0.3, 2], [14, 2, 12], (2, 3)).T
    K, L = rng.uniform(5, 200), seed
    bound = joint_replenishment_lower_bound(mean, h, p, K, L)
    assert math.fsum(bound.fixed_costs) == pytest.approx(K)

    def cost_of(*shares):
        return sum(optimal_s_S(mean[i], h[i], p[i], shares[i], L).cost for i in range(2))

    assert bound.cost == pytest.approx(cost_of(*bound.fixed_costs), rel=1e-12)
    best = max(cost_of(k, K - k) for k in np.linspace(0, K, 201))
    assert best * (1 - 2e-3) <= bound.cost <= best * (1 + 2e-3)


def test_an_item_rarely_demanded_gets_no_share():
    bound = joint_replenishment_lower_bound([1e-3, 10, 10], 1, 9, 64, 2)
    assert bound.fixed_costs == pytest.approx((0, 32, 32), abs=0.5)
    alone = joint_replenishment_lower_bound([10, 10], 1, 9, 64, 2).cost
    assert bound.cost >= alone + optimal_s_S(1e-3, 1, 9, 0, 2).cost - 1e-9


def test_a_hundred_different_items():
    rng = np.random.default_rng(0)
    n = 100
    mean, h, p = rng.uniform([6, 0.7, 6.3], [14, 1.3, 11.7], (n, 3)).T
    bound = joint_replenishment_lower_bound(mean, h, p, 64 * n, 2)
    total = best_total_demand_rule(mean, h, p, 64 * n, 2)
    periodic = best_periodic_rule(mean, h, p, 64 * n, 2)
    # With so many items, their total demand tells little more than the time.
    assert bound.cost < total.cost < 1.06 * bound.cost
    assert total.cost == pytest.approx(periodic.cost, rel=1e-6)
    assert len(total.S) == len(periodic.S) == len(bound.fixed_costs) == n
    shares = mean / mean.sum() * 64 * n
    assert bound.cost >= sum(
        optimal_s_S(*row, 2).cost for row in zip(mean, h, p, shares, strict=True)
    )
    assert total_demand_rule_cost(total.Q, total.S, mean, h, p, 64 * n, 2) == pytest.approx(
        total.cost, rel=1e-10
    )


pairs_of = st.tuples
PROBLEM = {
    "mean": pairs_of(st.floats(0.05, 5), st.floats(0.05, 5)),
    "h": pairs_of(st.floats(0.2, 3), st.floats(0.2, 3)),
    "p": pairs_of(st.floats(0.5, 20), st.floats(0.5, 20)),
    "K": st.floats(0, 60),
    "L": st.integers(0, 3),
}


@settings(deadline=None, max_examples=40)
@given(**PROBLEM)
def test_bounds_are_in_order(mean, h, p, K, L):
    bound, lower, cost, rule = bounds((mean, h, p, K, L))
    slack = 1e-9 * cost
    assert bound <= lower + 1e-6 * cost
    assert lower <= cost <= rule + slack
    assert cost - lower <= 1e-6 * cost + slack
    apart = sum(optimal_s_S(mean[i], h[i], p[i], K, L).cost for i in range(2))
    assert cost <= apart + slack


@settings(deadline=None, max_examples=25)
@given(**PROBLEM, factor=st.floats(0.01, 100))
def test_costs_scale_and_items_may_be_permuted(mean, h, p, K, L, factor):
    first = bounds((mean, h, p, K, L))
    scaled = bounds(
        (mean, tuple(factor * a for a in h), tuple(factor * a for a in p), factor * K, L)
    )
    assert scaled == pytest.approx([factor * cost for cost in first], rel=2e-6)
    swapped = bounds((mean[::-1], h[::-1], p[::-1], K, L))
    assert swapped == pytest.approx(first, rel=2e-6)


def test_levels_follow_the_order_of_the_items():
    means, h, p, K, L = (np.asarray(part) for part in TRIPLE)
    back = [2, 0, 1]
    for function in (best_total_demand_rule, best_periodic_rule, joint_replenishment_optimum):
        S = np.asarray(function(means, h, p, float(K), int(L)).S)
        moved = function(means[back], h[back], p[back], float(K), int(L)).S
        assert moved == tuple(S[back])


def test_positions_after_ordering():
    found = joint_replenishment_optimum(*PAIRS[0])
    S = np.asarray(found.S)
    grid = np.stack(np.meshgrid(*(np.arange(-30, s + 5) for s in S), indexing="ij"), -1)
    after = found.order_up_to(grid)
    assert after.shape == grid.shape
    assert after.dtype == np.int64
    assert (after >= grid).all()
    ordered = (after != grid).any(-1)
    assert (after[ordered] == np.maximum(grid[ordered], S)).all()
    assert ordered[0].all()
    assert ordered[:, 0].all()
    assert not ordered[(grid >= S).all(-1)].any()
    assert found.order_up_to(torch.tensor([-50.0, 3.0])).tolist() == S.tolist()
    for bad in (3, [3], [[1, 2, 3]]):
        with pytest.raises(ValueError, match=r"position must have shape \(\*B, 2\), got"):
            found.order_up_to(bad)
    for bad in ([0.5, 1], [math.nan, 1]):
        with pytest.raises(ValueError, match="position must hold whole numbers of units, got"):
            found.order_up_to(bad)


def test_too_large_for_the_optimum():
    with pytest.raises(ValueError, match=r"at most 3 items, got 4; .*lower_bound .*periodic_rule"):
        joint_replenishment_optimum(*identical(4))
    with pytest.raises(
        ValueError, match=r"at most \d+ inventory positions, but .* x .*lower fixed"
    ):
        joint_replenishment_optimum([60, 60, 60], 1, 9, 3 * 3000, 2)
    for rule in (best_periodic_rule, best_total_demand_rule):
        with pytest.raises(ValueError, match=r"lower fixed_cost .*fixed_cost=1e\+30"):
            rule([10, 10], 1, 9, 1e30, 0)


GOOD = {
    "demand_mean": [10.0, 8.0],
    "holding_cost": 1.0,
    "shortage_cost": 9.0,
    "fixed_cost": 64.0,
    "lead_time": 2,
}
FUNCTIONS = [
    joint_replenishment_optimum,
    joint_replenishment_lower_bound,
    best_periodic_rule,
    best_total_demand_rule,
    lambda **problem: periodic_rule_cost(4, 60, **problem),
    lambda **problem: total_demand_rule_cost(60, 60, **problem),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("name", "value", "error", "expected"),
    [
        ("demand_mean", [10, 0], ValueError, r"\[1\] must be a finite number > 0, got 0"),
        ("demand_mean", [10, "8"], TypeError, r"\[1\] must be a finite number > 0, got '8'"),
        ("demand_mean", [], ValueError, r" must be a number or hold one entry per item, got \[\]"),
        ("demand_mean", "10", TypeError, " must be a number or a sequence .* got '10'"),
        ("holding_cost", [1, 1, 1], ValueError, None),
        ("holding_cost", 0, ValueError, " must be a finite number > 0, got 0"),
        ("shortage_cost", math.nan, ValueError, " must be a finite number > 0, got nan"),
        ("fixed_cost", -1, ValueError, " must be a finite number >= 0, got -1"),
        ("fixed_cost", [64, 64], TypeError, r" must be a finite number >= 0, got \[64, 64\]"),
        ("lead_time", -1, ValueError, " must be an integer >= 0, got -1"),
        ("lead_time", 2.0, TypeError, r" must be an integer >= 0, got 2\.0"),
    ],
)
def test_bad_input_is_named(function, name, value, error, expected):
    # With lengths 2 and 3, the longer one tells how many items there are.
    match = f"{name}{expected}" if expected else "demand_mean .*expected num_items=3 .*got 2"
    with pytest.raises(error, match=match):
        function(**GOOD | {name: value})


@pytest.mark.parametrize("cost_of", [periodic_rule_cost, total_demand_rule_cost])
@pytest.mark.parametrize(
    ("number", "S", "error", "expected"),
    [
        (0, 60, ValueError, "[RQ] must be an integer >= 1, got 0"),
        (4.0, 60, TypeError, r"[RQ] must be an integer >= 1, got 4\.0"),
        (4, 60.5, TypeError, r"S must be an integer .*got 60\.5"),
        (4, [60, 60.0], TypeError, r"S\[1\] must be an integer .*got 60\.0"),
        (4, [60], ValueError, "S must be an integer or hold one .*expected 2 entries, got 1"),
    ],
)
def test_bad_rule_is_named(cost_of, number, S, error, expected):
    with pytest.raises(error, match=expected):
        cost_of(number, S, **GOOD)


@pytest.mark.parametrize("value", [0, -1, 1e-12, math.nan])
def test_bad_tolerance_is_named(value):
    with pytest.raises(ValueError, match="tolerance must be a finite number >= 1e-09, got"):
        joint_replenishment_optimum(**GOOD, tolerance=value)


def test_arrays_and_tensors_are_accepted():
    expected = best_periodic_rule([10, 8], [1, 1], [9, 9], 64, 2)
    assert (
        best_periodic_rule(np.array([10, 8]), np.float64(1), torch.tensor(9.0), 64, 2) == expected
    )
    assert best_periodic_rule(torch.tensor([10, 8]), 1, (9, 9), np.int64(64), 2) == expected
    levels = np.asarray(expected.S)
    assert periodic_rule_cost(expected.R, levels, [10, 8], 1, 9, 64, 2) == expected.cost


def test_examples_in_docstrings_run():
    for module in MODULES:
        assert set(module.__all__) <= set(oracles.__all__)
        outcome = doctest.testmod(module)
        assert outcome.attempted >= 3
        assert outcome.failed == 0
