"""The exact (s, S) policies against published values and independent computations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson
from stock_oracles import INSTANCES, ITEM, expected_cost, simulate, z_score

from hpo_torchrl.problems.inventory import optimal_s_S
from hpo_torchrl.problems.inventory.optima import s_S as s_S_module
from hpo_torchrl.problems.inventory.optima.s_S import s_S_cost

# demand_mean, lead_time -> s, S, cost; with h = 1, p = 9, K = 64.
REFERENCE = {
    (10, 0): (6, 40, 35.0216),
    (10, 1): (16, 51, 36.0974),
    (10, 2): (26, 62, 37.0644),
    (10, 3): (37, 72, 37.9204),
    (15, 0): (10, 49, 42.698),
    (20, 0): (14, 62, 49.173),
    (30, 0): (23, 66, 57.819),
    (40, 0): (33, 87, 64.512),
    (50, 0): (42, 108, 70.975),
    (75, 0): (67, 86, 79.554),
}


def solved(*instance):
    """Return s, S and the cost of the optimum as plain numbers."""
    found = optimal_s_S(*instance)
    assert found.lower == found.cost
    return round(found.policy.S.item() - found.policy.Q), round(found.policy.S.item()), found.cost


def markov_chain_cost(s, S, mean, h, p, K, lead_time):
    """Average cost from the stationary distribution of the position after ordering."""
    levels = np.arange(s + 1, S + 1)
    transition = poisson.pmf(levels[:, None] - levels[None, :], mean)
    order = poisson.sf(levels - s - 1, mean)
    transition[:, -1] += order
    balance = transition.T - np.eye(levels.size)
    balance[0] = 1.0  # one balance equation is redundant: the probabilities sum to 1 instead
    stationary = np.linalg.solve(balance, np.eye(levels.size)[0])
    G = expected_cost(levels, (lead_time + 1) * mean, h, p)
    return float(stationary @ (G + K * order))


def test_reference_table_which_tells_a_lead_time_one_period_short(monkeypatch):
    for (mean, lead_time), (s, S, cost) in REFERENCE.items():
        found = solved(mean, 1, 9, 64, lead_time)
        close = 1e-3 if lead_time == 0 and mean > 10 else 1e-4
        assert found == (s, S, pytest.approx(cost, abs=close))
    exact = s_S_module.one_period_cost
    short = lambda y, horizon_mean, h, p: exact(y, horizon_mean - 10, h, p)  # noqa: E731
    monkeypatch.setattr(s_S_module, "one_period_cost", short)
    for lead_time in (1, 2, 3):
        s, S, cost = REFERENCE[10, lead_time]
        assert s_S_cost(s, S, 10, 1, 9, 64, lead_time) != pytest.approx(cost, rel=0.01)
        assert solved(10, 1, 9, 64, lead_time)[:2] != (s, S)


# By another package, stockpyl 1.0.2: s_s_discrete_exact(h, p, K, use_poisson=True, mean).
BY_STOCKPYL = {
    (1.94, 0.63, 16.42, 23.7): (2, 14, 8.335851321683693),
    (2.04, 0.98, 10.62, 7.23): (2, 7, 6.4057470650008375),
    (9.08, 0.4, 9.04, 21.15): (8, 36, 13.030403586212504),
    (10.0, 1.0, 9.0, 64.0): (6, 40, 35.021555272320384),
}


@pytest.mark.parametrize("instance", BY_STOCKPYL, ids=str)
def test_stockpyl_agrees_without_lead_time(instance):
    s, S, cost = BY_STOCKPYL[instance]
    assert optimal_s_S(*instance, 0).cost == pytest.approx(cost, rel=1e-6)
    assert s_S_cost(s, S, *instance, 0) == pytest.approx(cost, rel=1e-6)


@pytest.mark.parametrize("instance", [*INSTANCES, (200, 1.0, 9.0, 500.0, 2)])
def test_cost_matches_the_stationary_distribution_and_none_on_a_grid_is_cheaper(instance):
    s, S, cost = solved(*instance)
    assert s_S_cost(s, S, *instance) == pytest.approx(cost, rel=1e-12)
    for low, high in [(s, S), (s - 3, max(S + 5, s - 2)), (s + 2, max(S + 2, s + 3))]:
        exact = markov_chain_cost(low, high, *instance)
        assert s_S_cost(low, high, *instance) == pytest.approx(exact, rel=1e-9)
    around = range(s - 8, S + 1) if S - s < 100 else range(s - 3, s + 4)
    for low, high in itertools.product(around, range(S - 8, S + 9)):
        if low < high:
            assert s_S_cost(low, high, *instance) >= cost * (1 - 1e-12)


@pytest.mark.parametrize(("mean", "lead_time"), [(10, 0), (10, 2), (0.5, 3)])
def test_cost_matches_a_simulated_pipeline(mean, lead_time):
    s, S, cost = solved(mean, 1, 9, 64, lead_time)

    def decide(t, level, pipeline):
        position = level + sum(pipeline)
        return np.where(position <= s, S - position, 0)

    paid = simulate(decide, mean, 1, 9, lambda q: 64.0 * (q[:, 0] > 0), lead_time, [S])
    assert abs(z_score(paid, cost)) < 4


@pytest.mark.parametrize("mean", [1e-6, 0.05, 3.7, 10, 500, 1e5])
def test_without_fixed_cost_the_newsvendor_level_is_kept(mean):
    for lead_time, (h, p) in itertools.product((0, 4), ((1, 9), (3, 1), (1, 1e6))):
        s, S, cost = solved(mean, h, p, 0, lead_time)
        assert s == S - 1
        assert poisson.cdf(S, (lead_time + 1) * mean) >= p / (h + p)
        assert S == 0 or poisson.cdf(S - 1, (lead_time + 1) * mean) < p / (h + p)
        assert cost == pytest.approx(expected_cost(S, (lead_time + 1) * mean, h, p), rel=1e-7)


def test_tied_base_stock_levels_are_not_mixed():
    # Where the critical ratio is exactly P(D <= y), y and y + 1 cost the same up to rounding.
    for mean in (1.3, 3.7, 20, 120):
        for y in range(int(mean), int(mean + 2 * math.sqrt(mean)) + 1):
            ratio = poisson.cdf(y, mean)
            s, S, _ = solved(mean, 1 - ratio, ratio, 0, 0)
            assert S in (y, y + 1)
            assert s == S - 1


def test_rounding_at_huge_means_leaves_a_policy():
    rng = np.random.default_rng(5)
    for mean, p in zip(10 ** rng.uniform(7, 12, 40), 10 ** rng.uniform(-1, 4, 40), strict=True):
        s, S, cost = solved(mean, 1, p, 0, 3)
        assert s == S - 1
        deviation = math.sqrt(4 * mean)
        assert abs(S - 4 * mean) < 5 * deviation
        assert 0 < cost < (1 + p) * deviation


def test_limits_of_large_fixed_costs_and_rare_or_frequent_demand():
    mean, h, p, K = 100, 1.0, 9.0, 2e4
    s, S, cost = solved(mean, h, p, K, 0)
    assert math.sqrt(2 * K * mean / h * (h + p) / p) == pytest.approx(S - s, rel=0.05)
    # Demand comes in lumps of a period, so holding is charged half a period's demand lower.
    assert cost == pytest.approx(math.sqrt(2 * K * mean * h * p / (h + p)), rel=0.05)
    # Every unit of rare demand costs an order.
    assert s_S_cost(-1, 0, 1e-9, 1, 9, 64, 0) == pytest.approx((64 + 9) * 1e-9, rel=1e-6)
    # Small demands have no probability: c(s, S) is flat in s, and too high an s a bad start.
    assert solved(300, 1, 9, 1000, 2) == (824, 1520, pytest.approx(678.3178, abs=1e-3))


@settings(deadline=None, max_examples=40)
@given(
    mean=st.floats(0.05, 40),
    h=st.floats(0.1, 5),
    p=st.floats(0.1, 50),
    K=st.floats(1, 300),
    lead_time=st.integers(0, 4),
    factor=st.floats(1.05, 3),
)
def test_optimal_cost_rises_with_each_cost(mean, h, p, K, lead_time, factor):
    s, S, cost = solved(mean, h, p, K, lead_time)
    assert s < S
    assert optimal_s_S(mean, h, p, K * factor, lead_time).cost > cost
    assert optimal_s_S(mean, h, p * factor, K, lead_time).cost > cost
    # A policy that never holds stock has a cost that does not depend on h.
    assert optimal_s_S(mean, h * factor, p, K, lead_time).cost >= cost * (1 - 1e-12)
    scaled = optimal_s_S(mean, h * factor, p * factor, K * factor, lead_time)
    assert scaled.cost == pytest.approx(cost * factor, rel=1e-9)


GOOD = ITEM | {"fixed_cost": 64.0, "lead_time": 0}
ABOVE, FROM = "must be a finite number > 0", "must be a finite number >= 0"


def test_bad_input_is_named():
    for name, value, error, expected in [
        ("demand_mean", 0, ValueError, ABOVE + ", got 0"),
        ("demand_mean", math.nan, ValueError, ABOVE + ", got nan"),
        ("demand_mean", "10", TypeError, ABOVE + ", got '10'"),
        ("holding_cost", -1.0, ValueError, r"must be a finite number >=? 0, got -1\.0"),
        ("fixed_cost", -64, ValueError, FROM + ", got -64"),
        ("lead_time", -1, ValueError, "must be an integer >= 0, got -1"),
        ("lead_time", 2.0, TypeError, r"must be an integer >= 0, got 2\.0"),
    ]:
        for function in (optimal_s_S, lambda **given: s_S_cost(6, 40, **given)):
            with pytest.raises(error, match=f"{name} {expected}"):
                function(**GOOD | {name: value})


def test_bad_policies_and_unbounded_searches_are_refused_and_numpy_numbers_are_not():
    for s, S, error, expected in [
        (40, 40, ValueError, "s must be below S; got s=40, S=40"),
        (6.0, 40, TypeError, r"s must be an integer .*got 6\.0"),
        (6, True, TypeError, "S must be an integer .*got True"),
    ]:
        with pytest.raises(error, match=expected):
            s_S_cost(s, S, **GOOD)
    # Only a given policy may hold or backlog for free.
    for name in ("holding_cost", "shortage_cost"):
        with pytest.raises(ValueError, match=f"{name} {ABOVE}, got 0"):
            optimal_s_S(**GOOD | {name: 0})
        assert s_S_cost(6, 40, **GOOD | {name: 0}) < s_S_cost(6, 40, **GOOD)
    with pytest.raises(ValueError, match=r"lower fixed_cost .*; got .*fixed_cost=1e\+30"):
        optimal_s_S(10, 1, 9, 1e30, 0)
    numpy = np.float32(10), np.float64(1), np.int64(9), np.int32(64), np.int64(2)
    assert optimal_s_S(*numpy) == optimal_s_S(10, 1, 9, 64, 2)
