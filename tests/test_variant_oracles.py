"""Order costs of any form, lost sales, minor costs: the optima against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import poisson
from stock_oracles import (
    INSTANCES,
    ITEM,
    certified,
    cheapest_average,
    expected_cost,
    falls,
    simulate,
    z_score,
)

from hpo_torchrl.problems.inventory import (
    joint_replenishment_optimum,
    lost_sales_optimum,
    optimal_s_S,
    order_cost_optimum,
)
from hpo_torchrl.problems.inventory.optima import lost_sales as lost_sales_module
from hpo_torchrl.problems.inventory.optima import minor_costs as minor_module
from hpo_torchrl.problems.inventory.optima import optimal_stopping as grid_module
from hpo_torchrl.problems.inventory.optima import order_cost as order_cost_module
from hpo_torchrl.problems.inventory.optima.items import Items


def fixed(K):
    return lambda q: K * (q > 0)


# With a typical order of five units or so, so that every break matters.
ORDER_COSTS = {
    "fixed": fixed(4.0),
    "free": fixed(0.0),
    "all-units discount": lambda q: 2.0 * (q > 0) + np.where(q >= 7, 0.6, 1.0) * q,
    "incremental discount": lambda q: 2.0 * (q > 0) + q - 0.4 * np.maximum(q - 4, 0),
    "at least 6": lambda q: np.where((q > 0) & (q < 6), np.inf, 0.5 * (q > 0)),
    "steps": lambda q: 2.0 * (q > 0) + 3.0 * (q > 4),
    "truckloads": lambda q: 3.0 * np.ceil(q / 5),
    "at most 4": lambda q: np.where(q > 4, np.inf, 1.0 * (q > 0)),
    "even": lambda q: np.where(q % 2 == 1, np.inf, 3.0 * (q > 0)),
}
PAIRS = [
    ((0.8, 0.5), (1.0, 0.6), (9.0, 4.0), 2.0, 1, (1.5, 0.5)),
    ((0.4, 1.0), (0.5, 1.5), (3.0, 12.0), 3.0, 0, (0.0, 4.0)),
]


def joint(*problem, minor):
    return joint_replenishment_optimum(Items(*problem), minor_costs=minor)


def ordered(found, *stock):
    """What a single item's optimum orders at each stock."""
    return found.policy.order_quantity(np.array(stock).reshape(len(stock), -1))[:, 0].tolist()


def backlog_program(mean, h, p, order_cost, lead_time, low, high):
    costs = order_cost(np.arange(high - low + 1))
    G = expected_cost(np.arange(low, high + 1), (lead_time + 1) * mean, h, p)
    pmf = poisson.pmf(np.arange(40), mean)

    def actions(x):
        for y in range(x, high + 1):
            if np.isfinite(costs[y - x]):
                chances = [(max(y - d, low), chance) for d, chance in enumerate(pmf)]
                yield costs[y - x] + G[y - low], chances

    return cheapest_average(range(low, high + 1), actions)


def lost_sales_program(mean, h, p, order_cost, lead_time, most):
    """With the cost of the current period, whatever the lead time."""
    costs = order_cost(np.arange(most + 1))
    G = expected_cost(np.arange(most + 1), mean, h, p)
    pmf = poisson.pmf(np.arange(40), mean)

    def actions(state):
        for q in range(most - sum(state) + 1):
            if not np.isfinite(costs[q]):
                continue
            on_hand = state[0] + (q if lead_time == 0 else 0)
            pipeline = [*state[1:], q] if lead_time else [0]
            after = [
                ((max(on_hand - d, 0) + pipeline[0], *pipeline[1:]), chance)
                for d, chance in enumerate(pmf)
            ]
            yield costs[q] + G[on_hand], after

    states = [(x,) for x in range(most + 1)]
    if lead_time == 2:
        states = [(x, z) for (x,) in states for z in range(most + 1 - x)]
    return cheapest_average(states, actions)


def pair_program(means, h, p, K, lead_time, minor, low, high):
    levels = np.arange(low, high + 1)
    first, second = (
        expected_cost(levels, (lead_time + 1) * means[i], h[i], p[i]) for i in range(2)
    )
    fall = falls(means, levels.size)
    states = [(a, b) for a in range(levels.size) for b in range(levels.size)]

    def actions(x):
        for y in states:
            if y[0] < x[0] or y[1] < x[1]:
                continue
            more = np.asarray(y) > x
            cost = K * more.any() + more @ np.asarray(minor) + first[y[0]] + second[y[1]]
            chances = np.outer(fall[0][y[0]], fall[1][y[1]])
            yield cost, zip(states, chances.ravel(), strict=True)

    return cheapest_average(states, actions)


@pytest.mark.parametrize("instance", [*INSTANCES[:5], (10, 1, 9, 0, 2), (30, 1.0, 9.0, 200.0, 3)])
def test_a_fixed_cost_gives_the_s_S_policy(instance):
    mean, h, p, K, L = instance
    optimum = optimal_s_S(*instance)
    found = order_cost_optimum(mean, h, p, fixed(K), L)
    assert certified(found)
    assert found.lower == pytest.approx(found.cost, rel=1e-6)
    assert found.cost == pytest.approx(optimum.cost, rel=1e-8)
    S = int(optimum.policy.S)
    s = S - int(optimum.policy.Q)
    x = np.arange(s - 5, S + 3)
    assert ordered(found, *x) == np.where(x <= s, S - x, 0).tolist()


@pytest.mark.parametrize("name", ORDER_COSTS)
@pytest.mark.parametrize("lead_time", [0, 1])
def test_order_costs_match_a_linear_program(name, lead_time):
    problem = 1.5, 1.0, 6.0, ORDER_COSTS[name], lead_time
    found = order_cost_optimum(*problem, tolerance=1e-8)
    assert certified(found, 1e-8)
    assert found.cost == pytest.approx(backlog_program(*problem, -16, 18), rel=1e-6)
    assert order_cost_optimum(*problem[:4], lead_time + 1).cost > 1.02 * found.cost


@pytest.mark.parametrize("name", ORDER_COSTS)
@pytest.mark.parametrize("lead_time", [0, 1, 2])
def test_lost_sales_match_a_linear_program(name, lead_time):
    problem = 1.2, 1.0, 6.0, ORDER_COSTS[name], lead_time
    found = lost_sales_optimum(*problem)
    assert certified(found)
    assert found.cost == pytest.approx(lost_sales_program(*problem, 13), rel=1e-6)


@pytest.mark.parametrize("pair", PAIRS)
def test_minor_costs_match_a_linear_program_that_sees_a_wrong_demand(pair, monkeypatch):
    right = pair_program(*pair, -7, 6)
    found = joint(*pair[:5], minor=pair[5])
    assert certified(found)
    assert found.cost == pytest.approx(right, rel=2e-6)
    fall = grid_module.falls
    monkeypatch.setattr(grid_module, "falls", lambda mean, size: fall(0.9 * mean, size))
    assert abs(joint(*pair[:5], minor=pair[5]).cost - right) > 1e-3 * right


@pytest.mark.parametrize("module", [order_cost_module, lost_sales_module])
def test_a_wrong_demand_is_seen(module, monkeypatch):
    cost, backlog = module.one_period_cost, module is order_cost_module
    function = order_cost_optimum if backlog else lost_sales_optimum
    compute, grid = (backlog_program, (-16, 18)) if backlog else (lost_sales_program, (13,))
    problem = 1.2, 1.0, 6.0, fixed(4.0), 1
    monkeypatch.setattr(module, "one_period_cost", lambda y, mean, h, p: cost(y, mean - 0.1, h, p))
    right = compute(*problem, *grid)
    assert abs(function(*problem).cost - right) > 1e-3 * right


def decider(found):
    return lambda t, level, pipeline: found.policy.order_quantity(level + sum(pipeline))


@pytest.mark.parametrize(
    "order_cost",
    [
        lambda q: 64.0 * (q > 0) + np.where(q >= 50, 0.9, 1.0) * q,
        lambda q: 40.0 * np.ceil(q / 25),
    ],
)
def test_order_cost_policies_cost_what_a_simulated_pipeline_costs(order_cost):
    found = order_cost_optimum(10, 1, 9, order_cost, 2)
    costs = simulate(decider(found), 10, 1, 9, lambda q: order_cost(q[:, 0]), 2, [60])
    assert abs(z_score(costs, found.cost)) < 4
    # The same run tells a lead time apart.
    assert abs(z_score(costs, order_cost_optimum(10, 1, 9, order_cost, 3).cost)) > 20


@pytest.mark.parametrize("lead_time", [0, 1, 2])
def test_lost_sales_policies_cost_what_a_simulated_pipeline_costs(lead_time):
    found = lost_sales_optimum(6, 1, 3, fixed(30.0), lead_time)

    def decide(t, level, pipeline):
        # The order due in this period has arrived: with L = 1 it is on hand, as slot 0 has it.
        due = [*pipeline, 0 * level][0]
        state = np.concatenate([level + due, *pipeline[1:]], axis=1)
        return found.policy.order_quantity(state)

    costs = simulate(decide, 6, 1, 3, lambda q: 30.0 * (q[:, 0] > 0), lead_time, [20], lost=True)
    assert abs(z_score(costs, found.cost)) < 4
    owed = order_cost_optimum(6, 1, 3, fixed(30.0), lead_time).cost
    assert lead_time == 0 or abs(z_score(costs, owed)) > 20


def test_minor_cost_policies_cost_what_a_simulated_pipeline_costs():
    problem, minor = ((3.0, 5.0), (1.0, 0.6), (9.0, 4.0), 20.0, 1), np.array([8.0, 3.0])
    found = joint(*problem, minor=minor)
    table = found.policy

    def order_cost(quantity):
        return 20.0 * (quantity > 0).any(axis=1) + (quantity > 0) @ minor

    start = (table.lowest + table.order[0, 0]).tolist()
    costs = simulate(decider(found), *problem[:3], order_cost, 1, start)
    assert abs(z_score(costs, found.cost)) < 4
    assert abs(z_score(costs, joint(*problem, minor=9.0).cost)) > 20
    # Some orders are of one item alone.
    kinds = (table.order > 0).reshape(-1, 2).tolist()
    assert {(True, False), (False, True), (True, True)} <= set(map(tuple, kinds))


def test_lost_sales_without_lead_time_or_order_cost_are_the_newsvendor():
    for mean, h, p in [(10.0, 1.0, 9.0), (0.3, 2.0, 5.0), (40.0, 1.0, 0.5)]:
        G = expected_cost(np.arange(100), mean, h, p)
        found = lost_sales_optimum(mean, h, p, fixed(0.0), 0)
        assert certified(found)
        assert found.cost == pytest.approx(G.min(), rel=1e-7)
        assert ordered(found, 0, 1) == [G.argmin(), max(G.argmin() - 1, 0)]


@pytest.mark.parametrize("lead_time", [0, 1, 2])
def test_never_ordering_loses_all_sales(lead_time):
    found = lost_sales_optimum(3, 1, 9, lambda q: np.where(q > 0, np.inf, 0.5), lead_time)
    assert found.cost == pytest.approx(27.5, rel=1e-6)
    assert not found.policy.order.any()


@pytest.mark.parametrize("lead_time", [0, 1, 2])
def test_a_unit_price_is_paid_for_every_unit_demanded_or_sold(lead_time):
    price = 1.7

    def priced(q):
        return fixed(12.0)(q) + price * q

    free, dear = (
        order_cost_optimum(4, 1, 5, cost, lead_time).cost for cost in (fixed(12.0), priced)
    )
    assert dear == pytest.approx(free + price * 4, rel=1e-7)
    # Lost sales need not be bought.
    free = lost_sales_optimum(4, 1, 5 - price, fixed(12.0), lead_time).cost
    dear = lost_sales_optimum(4, 1, 5, priced, lead_time).cost
    assert dear == pytest.approx(free + price * 4, rel=1e-6)


@pytest.mark.parametrize("instance", [((10, 10), 1, 9, 128.0, 0), ((1.5, 3.0), (1, 0.6), 9, 12, 1)])
def test_no_minor_costs_change_nothing(instance):
    items = Items(*instance)
    plain = joint_replenishment_optimum(items)
    assert joint(*instance, minor=[0.0, 0.0]) == plain
    # The other method, which public calls use for minor costs above zero.
    upper, lower, *_ = minor_module.solve(items, np.zeros(2), 1e-7)
    assert upper == pytest.approx(plain.cost, rel=1e-7)
    assert lower == pytest.approx(plain.cost, rel=1e-7)
    tiny = joint(*instance, minor=1e-9)
    assert tiny.cost == pytest.approx(plain.cost, rel=1e-6)
    at = [[-3, -3], [-200, 4]]
    same = plain.policy.order_quantity(at).tolist()
    assert tiny.policy.order_quantity(at).tolist() == same


def test_minor_costs_alone_leave_the_items_apart():
    mean, h, p, k = (10.0, 4.0), (1.0, 0.5), (9.0, 6.0), (64.0, 10.0)
    found = joint(mean, h, p, 0, 2, minor=k)
    apart = [optimal_s_S(mean[i], h[i], p[i], k[i], 2) for i in range(2)]
    assert certified(found)
    assert found.cost == pytest.approx(sum(one.cost for one in apart), rel=1e-7)
    table = found.policy
    x = np.moveaxis(np.indices(table.order.shape[:-1]), 0, -1) + table.lowest.numpy()
    S = np.array([int(one.policy.S) for one in apart])
    s = S - [int(one.policy.Q) for one in apart]
    # Values cannot tell levels apart that are as good as never met.
    near = ((x > s - 20) & (x <= S)).all(axis=-1)
    assert (table.order.numpy()[near] == np.where(x <= s, S - x, 0)[near]).all()


def test_one_item_bears_its_minor_cost_with_the_fixed_cost():
    assert joint(10, 1, 9, 50, 2, minor=[14.0]) == joint(10, 1, 9, 64, 2, minor=0.0)


def test_three_items_cost_less_together_than_two_and_one():
    mean, minor = (0.6, 0.4, 0.5), (1.0, 0.5, 2.0)
    found = joint(mean, 1, 5, 0, 0, minor=minor)
    apart = sum(optimal_s_S(m, 1, 5, k, 0).cost for m, k in zip(mean, minor, strict=True))
    assert certified(found)
    assert found.cost == pytest.approx(apart, rel=1e-7)
    together = joint(mean, 1, 5, 2, 0, minor=minor)
    pairs = joint(mean[:2], 1, 5, 2, 0, minor=minor[:2])
    assert certified(together)
    alone = optimal_s_S(mean[2], 1, 5, 2 + minor[2], 0)
    assert found.cost < together.cost < pairs.cost + alone.cost


def test_a_grid_too_small_is_seen_and_grows(monkeypatch):
    """On it the best policy seems to be well inside, but a discount on more units beats that."""

    def order_cost(q):
        return np.where(q >= 24, 1.0, 9.0) * (q > 0)

    problem = 1.5, 0.1, 6.0, order_cost, 1
    backlog, lost = order_cost_optimum(*problem), lost_sales_optimum(*problem)
    assert 24 in backlog.policy.order
    assert 24 in lost.policy.order
    pair = (3.0, 5.0), (1.0, 0.6), (9.0, 4.0), 20.0, 1
    minor = joint(*pair, minor=5.0)

    first_grid = minor_module._first_grid
    monkeypatch.setattr(order_cost_module, "_FIRST_REACH", 22)
    monkeypatch.setattr(lost_sales_module, "_first_stock", lambda *given: 22)
    monkeypatch.setattr(
        minor_module, "_first_grid", lambda *given: [x // 3 + 2 for x in first_grid(*given)]
    )
    for small, large in [
        (order_cost_optimum(*problem), backlog),
        (lost_sales_optimum(*problem), lost),
        (joint(*pair, minor=5.0), minor),
    ]:
        assert certified(small)
        assert small.cost == pytest.approx(large.cost, rel=2e-6)

    # Without what the bounds say of orders beyond the grid, it would have passed.
    monkeypatch.setattr(
        order_cost_module.StockGrid, "_after_beyond", lambda self, v: v[:-1].max() + 100.0
    )
    assert lost_sales_optimum(*problem).cost > 1.1 * lost.cost


def both(low, high):
    return st.tuples(st.floats(low, high), st.floats(low, high))


PROBLEM = {
    "mean": st.floats(0.3, 5),
    "h": st.floats(0.3, 3),
    "p": st.floats(0.5, 15),
    "K": st.floats(0, 20),
    "L": st.integers(0, 2),
}


@settings(deadline=None, max_examples=3)
@given(**PROBLEM, batch=st.integers(2, 8))
@example(mean=1.0, h=1.0, p=2.0, K=0.0, L=0, batch=2)  # many ties
def test_dearer_orders_cost_more(mean, h, p, K, L, batch):
    cheap, dear = fixed(K), lambda q: K * np.ceil(q / batch)

    def restricted(q):
        return np.where(q % batch > 0, np.inf, K * (q > 0))

    for optimum in (order_cost_optimum, lost_sales_optimum):
        costs = [optimum(mean, h, p, order_cost, L).cost for order_cost in (cheap, dear)]
        slack = 2e-6 * costs[0]
        assert costs[0] <= costs[1] + slack
        assert costs[0] <= optimum(mean, h, p, restricted, L).cost + slack
        assert costs[0] <= optimum(mean, h, 1.1 * p, cheap, L).cost + slack
        assert costs[0] <= optimum(mean, 1.1 * h, p, cheap, L).cost + slack
        doubled = optimum(mean, 2 * h, 2 * p, lambda q: 2 * dear(q), L).cost
        assert doubled == pytest.approx(2 * costs[1], rel=2e-6)
    # An order that arrives sooner could have been placed later.
    if L > 0:
        assert lost_sales_optimum(mean, h, p, cheap, L - 1).cost <= costs[0] + slack


@settings(deadline=None, max_examples=3)
@given(
    mean=both(0.2, 4),
    h=both(0.3, 3),
    p=both(0.5, 15),
    K=st.floats(0, 20),
    L=st.integers(0, 2),
    k=both(0, 10),
)
def test_minor_costs_lie_between_what_they_join_and_what_they_part(mean, h, p, K, L, k):
    found = joint(mean, h, p, K, L, minor=k)
    slack = 2e-6 * found.cost
    assert certified(found)
    assert joint(mean, h, p, K, L, minor=0.0).cost <= found.cost + slack
    # All items in every order, or every item for itself.
    assert found.cost <= joint(mean, h, p, K + sum(k), L, minor=0.0).cost + slack
    apart = sum(optimal_s_S(mean[i], h[i], p[i], K + k[i], L).cost for i in range(2))
    assert found.cost <= apart + slack
    more = joint(mean, h, p, K, L, minor=(k[0] + 1, k[1]))
    assert found.cost <= more.cost + slack
    swapped = joint(mean[::-1], h[::-1], p[::-1], K, L, minor=k[::-1])
    assert swapped.cost == pytest.approx(found.cost, rel=2e-6)


GOOD = ITEM | {"order_cost": fixed(64.0), "lead_time": 1}


def test_bad_input_is_named():
    for name, value, error, expected in [
        ("demand_mean", 1e-4, ValueError, r"demand_mean must be .* >= 0.001, got 0.0001"),
        ("holding_cost", 0, ValueError, "holding_cost must be a finite number > 0, got 0"),
        ("lead_time", 1.0, TypeError, "lead_time must be an integer >= 0, got 1.0"),
        ("tolerance", 0, ValueError, "tolerance must be a finite number >= 1e-09, got 0"),
        ("order_cost", 64.0, TypeError, r"must be a function .* got 64\.0 .* give lambda q"),
        ("order_cost", lambda q: 64.0, ValueError, r"one cost per quantity, .*got \(\)"),
        ("order_cost", lambda q: q - 1.0, ValueError, r">= 0 \(inf .*, got -1.0 for 0 units"),
        ("order_cost", lambda q: q + np.nan, ValueError, "got nan for 0 units"),
        ("order_cost", lambda q: q + np.inf, ValueError, "must be finite for 0 units"),
    ]:
        for function in (order_cost_optimum, lost_sales_optimum):
            with pytest.raises(error, match=expected):
                function(**GOOD | {name: value})


def test_what_is_too_large_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"lead_time must be 0, 1 or 2 with lost sales.* got 3"):
        lost_sales_optimum(**GOOD | {"lead_time": 3})
    with pytest.raises(ValueError, match=r"with minor_costs .* need \d+ x \d+; lower fixed_cost"):
        joint([10, 10], 1, 9, 1e6, 2, minor=1.0)
    monkeypatch.setattr(order_cost_module, "_MAX_REACH", 64)
    with pytest.raises(ValueError, match=r"within 64 units of the mean .* and 128 units: 500 and"):
        order_cost_optimum(**GOOD | {"order_cost": fixed(500.0)})
    monkeypatch.setattr(lost_sales_module, "_MAX_STOCK", (64, 64, 64))
    for lead_time in range(3):
        with pytest.raises(ValueError, match=r"at most 64 units .*lower .* 1 and 64 units: 500 "):
            lost_sales_optimum(**GOOD | {"order_cost": fixed(500.0), "lead_time": lead_time})
    for value, expected in [
        ([1.0], "minor_costs must be a number or hold .*expected num_items=2 .*got 1"),
        ([1.0, math.inf], r"minor_costs\[1\] must be a finite number >= 0, got inf"),
    ]:
        with pytest.raises(ValueError, match=expected):
            joint([10, 8], 1, 9, 64, 2, minor=value)


def test_policies_name_a_state_of_the_wrong_form():
    table = lost_sales_optimum(3, 1, 9, fixed(5.0), 2).policy
    assert table.order_quantity(np.zeros((4, 3, 2))).shape == (4, 3, 1)
    assert table.order_quantity([10**6, 0]).tolist() == [0]
    for bad, expected in [
        ([3], r"stock must have shape \(\*B, 2\), got \(1,\)"),
        ([-1, 0], "stock must be >= 0, as unmet demand is lost.* got -1"),
        ([0.5, 1], "stock must hold whole numbers of units, got"),
    ]:
        with pytest.raises(ValueError, match=expected):
            table.order_quantity(bad)
