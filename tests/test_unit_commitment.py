"""Unit commitment as a simulator, against a recount in plain Python that knows none of its code."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch.autograd.gradcheck import gradcheck
from torchrl.envs.utils import ExplorationType, check_env_specs, set_exploration_type

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.problems import UnitCommitmentEnv
from hpo_torchrl.problems.unit_commitment import Units, kazarlis_demand, solve
from hpo_torchrl.problems.unit_commitment.dispatch import economic_dispatch, merit_order
from hpo_torchrl.problems.unit_commitment.reference import DaySchedule
from hpo_torchrl.problems.unit_commitment.rules import PriorityList

DOUBLE = torch.float64
FIVE = {
    "min_power": [30.0, 20.0, 20.0, 10.0, 5.0],
    "max_power": [120.0, 90.0, 90.0, 60.0, 40.0],
    "fixed_cost": [300.0, 250.0, 240.0, 120.0, 80.0],
    "linear_cost": [15.0, 18.0, 19.0, 26.0, 33.0],
    "quadratic_cost": [0.01, 0.02, 0.015, 0.03, 0.02],
    "min_up": [4, 3, 2, 1, 1],
    "min_down": [3, 2, 2, 1, 1],
    "hot_start_cost": [900.0, 400.0, 350.0, 80.0, 20.0],
    "cold_start_cost": [1700.0, 800.0, 650.0, 120.0, 70.0],
    "cold_hours": [2, 1, 1, 1, 0],
    "initial_hours": [2, 9, -1, -2, -3],
    "must_run": [0, 1, 0, 0, 0],
}
UNSURE = {"wind": None, "wind_capacity": 180.0, "day_spread": 0.1, "demand_error": 0.1}
UNSURE |= {"wind_error": 0.3, "error_kept": 0.7}


def five_units(ramped=False, **changed):
    ramp = np.array([30.0, 30.0, 25.0, 60.0, 40.0]) if ramped else np.full(5, math.inf)
    table = {name: np.array(row, dtype=float) for name, row in (FIVE | changed).items()}
    names = tuple("abcde")
    return Units(**{"ramp_up": ramp, "ramp_down": ramp + 5.0, **table}, names=names)


def five(ramped=False, dispatch="economic", **arguments):
    units = arguments.pop("units", five_units(ramped))
    demand = 190.0 + 110.0 * np.sin(np.arange(12) / 2.0)
    given = {"demand": demand, "horizon": 12, "dtype": DOUBLE, "seed": 3, "dispatch": dispatch}
    return UnitCommitmentEnv(units, **given | arguments)


# -- a recount, in plain Python --------------------------------------------------------------------


def shared(load, low, high, linear, quadratic):
    """Powers of least cost that add up to a load, by bisection of their marginal cost."""
    load = min(max(load, sum(low)), sum(high))
    ends = [-1e4, 1e4]
    for _ in range(200):
        price = sum(ends) / 2
        p = [
            min(max((price - b) / (2 * c), lo), up)
            for b, c, lo, up in zip(linear, quadratic, low, high, strict=True)
        ]
        ends[int(sum(p) > load)] = price
    return p


def slow_hour(env, units, state, wish, powers, noise):
    """Return the cost of an hour, the next state and what happened, of one instance."""
    r = env.reserve
    G, kept, cap = len(units), env.days.error_kept, env.days.wind_capacity
    hours, events = state["hours"], set()
    on = []
    for g in range(G):
        if hours[g] > 0:
            held = hours[g] < units.min_up[g] or units.must_run[g]
            on.append(bool(wish[g] or held))
            events |= {"held on"} if held and not wish[g] else set()
        else:
            held = -hours[g] < units.min_down[g]
            on.append(bool(wish[g] and not held))
            events |= {"held off"} if held and wish[g] else set()
    cost = 0.0
    for g in range(G):
        if on[g] and hours[g] < 0:
            hot = -hours[g] <= units.min_down[g] + units.cold_hours[g]
            events.add("hot" if hot else "cold")
            cost += units.hot_start_cost[g] if hot else units.cold_start_cost[g]
    D, W = state["demand"][0], state["wind"][0]
    foreseen = D * (1 + kept * state["error"][0])
    foreseen_wind = min(max(W + cap * kept * state["error"][1], 0.0), cap)
    need = max((1 + r) * foreseen - foreseen_wind, 0.0)
    short = max(need - sum(units.max_power[g] for g in range(G) if on[g]), 0.0)
    spread = math.sqrt(1 - kept**2)
    sizes = (env.days.demand_error, env.days.wind_error)
    error = [
        kept * e + s * spread * z for e, s, z in zip(state["error"], sizes, noise, strict=True)
    ]
    demand, wind = D * (1 + error[0]), min(max(W + cap * error[1], 0.0), cap)
    members = [g for g in range(G) if on[g]]
    low, high = [], []
    for g in members:
        lo, up = units.min_power[g], units.max_power[g]
        if env.ramped and hours[g] > 0:
            up = min(up, state["power"][g] + units.ramp_up[g])
            lo = min(max(lo, state["power"][g] - units.ramp_down[g]), up)
        elif env.ramped:
            up = min(up, max(lo, units.ramp_up[g]))
        low.append(lo)
        high.append(up)
    # Wind is used as far as there is room for it.
    load = demand - min(wind, max(demand - sum(low), 0.0))
    events |= {"curtailed"} if load > demand - wind + 1e-9 else set()
    unserved, surplus = max(load - sum(high), 0.0), max(sum(low) - load, 0.0)
    for name, amount in {"unserved": unserved, "surplus": surplus, "reserve": short}.items():
        events |= {name} if amount > 0 else set()
        cost += env.penalties[name] * amount
    if env.learned_dispatch:
        found = shared(load, low, high, [-powers[g] for g in members], [0.5] * len(members))
    else:
        prices = ([getattr(units, f"{kind}_cost")[g] for g in members] for kind in KINDS)
        found = shared(load, low, high, *prices) if members else []
    power = [0.0] * G
    for g, p in zip(members, found, strict=True):
        power[g] = p
        cost += units.fixed_cost[g] + units.linear_cost[g] * p + units.quadratic_cost[g] * p * p
    after = {
        "hours": [
            (max(h, 0) + 1 if now else min(h, 0) - 1) for h, now in zip(hours, on, strict=True)
        ],
        "demand": [*state["demand"][1:], 0.0],
        "wind": [*state["wind"][1:], 0.0],
        "error": error,
        "power": power,
    }
    return cost, after, events


KINDS = ("linear", "quadratic")


def play(env, batch=6, sparse=False):
    """Random wishes, allowed or not: states, costs, and what the recount says of each hour."""
    env.set_seed(5)
    # Ends of the ranges too: much wind, little demand.
    state = {**env.morning((batch,)), "step": torch.zeros(batch, 1, dtype=torch.int64)}
    state["demand"] = state["demand"] * torch.linspace(0.2, 1.6, batch).unsqueeze(-1)
    generator = torch.Generator().manual_seed(1)
    steps = []
    for _ in range(env.horizon):
        wish = torch.rand(batch, len(env.units), generator=generator) < 0.6
        powers = 130 * torch.rand(batch, len(env.units), dtype=DOUBLE, generator=generator)
        noise = torch.randn(batch, 2, dtype=DOUBLE, generator=generator)
        action = {"discrete": wish.long(), "continuous": powers}
        after, reward = env.dynamics(state, action, noise)
        steps.append((state, action, noise, after, reward))
        state = {**after, "step": state["step"] + 1}
    return steps


def errors_of(env, units, steps):
    """Return the largest errors of costs and states beside the recount, and all that happened."""
    worst, events = 0.0, set()
    for state, action, noise, after, reward in steps:
        for b in range(len(reward)):
            one = {name: part[b].tolist() for name, part in state.items()}
            wish, powers = (action[key][b].tolist() for key in ("discrete", "continuous"))
            cost, other, seen = slow_hour(env, units, one, wish, powers, noise[b].tolist())
            events |= seen
            worst = max(worst, abs(float(reward[b]) + cost) / (1 + abs(cost)))
            for name in after:
                gap = np.abs(np.subtract(after[name][b].tolist(), other[name])).max()
                worst = max(worst, float(gap))
    return worst, events


@pytest.mark.parametrize(
    ("ramped", "dispatch"), [(False, "economic"), (True, "economic"), (True, "learned")]
)
def test_hours_are_those_of_a_recount(ramped, dispatch):
    env = five(ramped, dispatch, **UNSURE)
    worst, events = errors_of(env, five_units(ramped), play(env))
    assert worst < 1e-6
    assert events == {
        *("held on", "held off", "hot", "cold", "curtailed"),
        *("unserved", "surplus", "reserve"),
    }


FAULTS = {
    "cold an hour later": lambda env: env.units_table["cold_hours"].add_(1),
    "cold an hour sooner": lambda env: env.units_table["cold_hours"].sub_(1),
    "down an hour less": lambda env: env.units_table["min_down"].sub_(1),
    "up an hour less": lambda env: env.units_table["min_up"].sub_(1),
    "fuel": lambda env: env.units_table["quadratic_cost"].mul_(1.01),
    "no fixed cost": lambda env: env.units_table["fixed_cost"].zero_(),
    "starts all hot": lambda env: env.units_table.update(
        cold_start_cost=env.units_table["hot_start_cost"]
    ),
    "all may stop": lambda env: env._must_run.zero_(),
    "ramps free": lambda env: env.units_table["ramp_up"].fill_(math.inf),
    "ramp in the first hour": lambda env: env.units_table["ramp_up"].mul_(1.1),
    "reserve": lambda env: setattr(env, "reserve", 0.11),
    "penalty": lambda env: env.penalties.update(surplus=999.0),
    "need without the error": lambda env: setattr(
        env.days, "expected", lambda demand, wind, error: (demand, wind)
    ),
    "errors that stay": lambda env: setattr(env.days, "error_kept", 0.71),
    "wishes obeyed": lambda env: setattr(env, "committed", lambda hours, wish: wish > 0),
    "more wind": lambda env: setattr(env.days, "wind_capacity", 181.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_recount_finds_faults(fault):
    right, wrong = five(True, **UNSURE), five(True, **UNSURE)
    FAULTS[fault](wrong)
    assert errors_of(right, five_units(True), play(wrong, batch=3))[0] > 1e-4


@pytest.mark.parametrize("ramped", [False, True])
def test_masks_are_those_of_the_minimum_times(ramped):
    env = five(ramped, batch_size=8)
    days = env.rollout(12, break_when_any_done=False)
    units, seen = env.units, set()
    for b, t, g in itertools.product(range(8), range(12), range(5)):
        h, mask = int(days["hours"][b, t, g]), days["action_mask"][b, t, g].tolist()
        may_stop = h < 0 or (h >= units.min_up[g] and not units.must_run[g])
        may_start = h > 0 or -h >= units.min_down[g]
        assert mask == [may_stop, may_start]
        seen.add((may_stop, may_start))
        on = int(days["next", "hours"][b, t, g]) > 0
        wish = bool(days["action", "discrete"][b, t, g])  # drawn without the mask
        assert on == (wish if mask[wish] else h > 0)
    assert seen == {(True, True), (True, False), (False, True)}


def test_long_times_are_counted_to_their_end():
    long = {"min_down": [60, 2, 2, 1, 1], "min_up": [70, 3, 2, 1, 1]}
    long |= {"cold_hours": [10, 1, 1, 1, 0], "initial_hours": [-59, 9, -1, -2, -3]}
    env = five(units=five_units(**long), horizon=90, demand=[100.0] * 90)
    state = {**env.morning(()), "step": torch.zeros(1, dtype=torch.int64)}
    wish = torch.tensor([0, 1, 0, 0, 0])

    def follow(state, starts):
        wish[0] = starts
        return env.hour(state, {"discrete": wish, "continuous": wish.double()}, torch.zeros(2))

    state, parts = follow(state, 1)
    assert not parts["on"][0]  # 59 hours are too few
    assert float(follow(state, 1)[1]["starts"][0]) == 900.0
    for _ in range(11):
        state, _ = follow(state, 0)
    assert float(follow(state, 1)[1]["starts"][0]) == 1700.0  # after 71 hours it is cold
    for _ in range(70):
        state, parts = follow(state, 1)
    assert parts["on"][0]
    assert env.allowed(state)[0].all()


# -- dispatch --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000), flat=st.sampled_from([0.0, 0.5, 1.0]), load=st.floats(-0.2, 1.2)
)
def test_dispatch_has_one_marginal_cost(seed, flat, load):
    """The conditions of Karush, Kuhn and Tucker, which certify the optimum of a convex problem."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 20, 6)
    high = low + rng.uniform(0, 60, 6) * (rng.random(6) > 0.2)
    b = rng.integers(10, 14, 6).astype(float)  # some are equal
    c = rng.uniform(0.001, 0.1, 6) * (rng.random(6) >= flat)
    on = (rng.random(6) > 0.3).astype(float)
    total = load * float((on * high).sum())
    order = merit_order(*(torch.as_tensor(part) for part in (low, high, b, c)))
    p = economic_dispatch(torch.tensor(total, dtype=DOUBLE), torch.as_tensor(on), order).numpy()
    low, high = on * low, on * high
    assert (p >= low - 1e-9).all()
    assert (p <= high + 1e-9).all()
    assert p.sum() == pytest.approx(min(max(total, low.sum()), high.sum()), abs=1e-7)
    marginal, running = b + 2 * c * p, on > 0
    can_fall, can_rise = running & (p > low + 1e-6), running & (p < high - 1e-6)
    if can_fall.any() and can_rise.any():
        assert marginal[can_fall].max() <= marginal[can_rise].min() + 1e-6


def test_dispatch_costs_what_solvers_find():
    rng = np.random.default_rng(0)
    for trial in range(6):
        low, reach = rng.uniform(5, 20, 5), rng.uniform(10, 60, 5)
        b, c = rng.uniform(10, 30, 5), rng.uniform(0.01, 0.1, 5) * (trial % 2)
        load = float(low.sum() + rng.random() * reach.sum())
        ends = list(zip(low, low + reach, strict=True))
        parts = [torch.as_tensor(part) for part in (low, low + reach, b, c)]
        p = economic_dispatch(
            torch.tensor(load, dtype=DOUBLE), torch.ones(5).double(), merit_order(*parts)
        )
        cost = float((parts[2] * p + parts[3] * p * p).sum())
        if trial % 2:
            total = {"type": "eq", "fun": lambda x, load=load: x.sum() - load}
            fuel = lambda x, b=b, c=c: float(b @ x + c @ x**2)  # noqa: E731
            found = minimize(fuel, low + reach / 2, bounds=ends, constraints=total, method="SLSQP")
        else:
            found = linprog(b, A_eq=np.ones((1, 5)), b_eq=[load], bounds=ends)
        assert cost == pytest.approx(found.fun, rel=1e-6)


def test_learned_dispatch_is_the_nearest_that_meets_the_load():
    rng = np.random.default_rng(1)
    env = five(dispatch="learned", units=five_units(initial_hours=[9] * 5))
    state = {**env.morning((4,)), "step": torch.zeros(4, 1, dtype=torch.int64)}
    wish = torch.as_tensor(rng.uniform(0, 120, (4, 5)))
    on = torch.ones(4, 5, dtype=torch.int64)
    _, parts = env.hour(state, {"discrete": on, "continuous": wish}, torch.zeros(4, 2))
    ends = list(zip(FIVE["min_power"], FIVE["max_power"], strict=True))
    for b in range(4):
        total = {"type": "eq", "fun": lambda x: x.sum() - 190.0}
        asked = wish[b].numpy()
        far = lambda x, asked=asked: float(((x - asked) ** 2).sum())  # noqa: E731
        found = minimize(far, [38.0] * 5, bounds=ends, constraints=total, method="SLSQP")
        np.testing.assert_allclose(parts["power"][b], found.x, atol=1e-3)
    # What meets the load already stays as it is.
    action = {"discrete": on, "continuous": parts["power"]}
    _, again = env.hour(state, action, torch.zeros(4, 2))
    torch.testing.assert_close(again["power"], parts["power"])


# -- gradients and routes --------------------------------------------------------------------------


def cost_of(env, state, discrete, powers, noise):
    total = 0.0
    for t in range(discrete.shape[-2]):
        action = {"discrete": discrete[..., t, :], "continuous": powers[..., t, :]}
        after, reward = env.dynamics(state, action, noise[..., t, :])
        total, state = total - reward, {**after, "step": state["step"] + 1}
    return total


@pytest.mark.parametrize("dispatch", ["economic", "learned"])
@pytest.mark.parametrize("ramped", [False, True])
def test_gradients_are_those_of_finite_differences(ramped, dispatch):
    """With respect to powers, forecasts, errors and the powers before."""
    env = five(ramped, dispatch, **UNSURE)
    start = {**env.morning((2,)), "step": torch.zeros(2, 1, dtype=torch.int64)}
    names = ["demand", "error", *["power"] * ramped]
    discrete = (torch.rand(2, 4, 5) < 0.8).long()
    powers, noise = 20 + 60 * torch.rand(2, 4, 5).double(), torch.randn(2, 4, 2).double()
    values = [(start[name] + 0.013).requires_grad_() for name in names]
    powers.requires_grad_(dispatch == "learned")

    def cost(powers, *values):
        return cost_of(
            env, {**start, **dict(zip(names, values, strict=True))}, discrete, powers, noise
        )

    assert gradcheck(cost, (powers, *values), eps=1e-5, atol=1e-3, rtol=1e-3)
    inputs = [powers] * (dispatch == "learned") + values
    found = torch.autograd.grad(cost(powers, *values).sum(), inputs)
    assert all(bool((part != 0).any()) for part in found)


@pytest.mark.parametrize("ramped", [False, True])
def test_both_rollout_routes_are_equal(ramped):
    runs = []
    for route in ("functional", "general"):
        env = five(ramped, "learned", batch_size=4, **UNSURE)
        torch.manual_seed(1)
        policy = HybridPolicy.for_env(env, hidden=(8,), scale=0.3)
        rollout = differentiable_rollout(env, policy, 15, route=route)
        loss = rollout["next", "reward"].sum()
        gradients = torch.autograd.grad(loss, policy.parameters(), allow_unused=True)
        runs.append((dict(rollout.items(True, True)), gradients))
    torch.testing.assert_close(*runs, rtol=0, atol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 2},
        {"batch_size": (2, 3), "ramped": True, "dispatch": "learned", **UNSURE},
        {"batch_size": (), "batteries": {"number": 2}, "dtype": torch.float32},
    ],
)
def test_the_environment_is_sound(arguments):
    env = five(**arguments)
    check_env_specs(env, break_when_any_done="both")
    days = env.rollout(25, break_when_any_done=False)
    assert days["observation"].shape[-1] == env.observation_dim
    assert (days["next", "terminated"].squeeze(-1).int().sum(-1) == 2).all()
    assert days["observation"].abs().max() < 10
    # Each day begins as the first one did.
    starts = days["hours"][..., [0, 12, 24], :]
    assert (starts == torch.tensor(FIVE["initial_hours"])).all()


# -- the schedule of the program, and the priority list --------------------------------------------


@pytest.mark.parametrize("case", ["economic", "ramps", "wind and violations"])
def test_a_schedule_costs_what_the_program_says(case):
    ramped = case != "economic"
    arguments = {"wind": 20 + 15 * np.cos(np.arange(12))} if "wind" in case else {}
    env = five(ramped, "learned" if ramped else "economic", batch_size=1, **arguments)
    if "wind" in case:  # too little must run, and too much
        env.penalties.update(unserved=25.0, surplus=1.0, reserve=3.0)
    state = env.morning(())
    best = solve(
        env.units,
        env.days.demand[0],
        0.0 if env.days.wind is None else env.days.wind[0],
        reserve=env.reserve,
        power=state["power"] if ramped else None,
        gap=1e-6,
        **{f"{name}_cost": penalty for name, penalty in env.penalties.items()},
    )
    cost = -float(env.rollout(12, DaySchedule(best, env))["next", "reward"].sum())
    assert cost == pytest.approx(best.cost, rel=1e-6)
    lacks = [float(part.sum()) > 0 for part in (best.unserved, best.shortfall)]
    assert any(lacks) == ("wind" in case)


def test_the_list_covers_the_need_and_its_patience_is_the_best():
    env = UnitCommitmentEnv(batch_size=1)
    days = [differentiable_rollout(env, PriorityList(env, k), 24).detach() for k in range(7)]
    costs = [-float(day["next", "reward"].sum()) for day in days]
    assert PriorityList.best(env).patience == int(np.argmin(costs))
    for day in days:
        capacity = (day["next", "hours"][0] > 0).float() @ env.units_table["max_power"]
        assert (capacity >= 1.1 * torch.as_tensor(kazarlis_demand()).float() - 1e-3).all()
    # Where powers are learned the list gives the same ones.
    learned = UnitCommitmentEnv(batch_size=1, dispatch="learned")
    day = differentiable_rollout(learned, PriorityList(learned, 0), 24)
    assert -float(day["next", "reward"].sum()) == pytest.approx(costs[0], rel=1e-6)
    # Drawn days: the same ones, whatever the environment's seed and size.
    unsure = {"wind_capacity": 300.0, "wind_error": 0.1}
    envs = [UnitCommitmentEnv(batch_size=b, seed=b, **unsure) for b in (2, 64)]
    assert len({PriorityList.best(env).patience for env in envs}) == 1


# -- days ------------------------------------------------------------------------------------------


def test_errors_and_forecasts_have_their_moments():
    env = UnitCommitmentEnv(
        wind_capacity=400.0,
        day_spread=0.05,
        demand_error=0.03,
        wind_error=0.1,
        error_kept=0.8,
        dtype=DOUBLE,
        seed=0,
    )
    days, number = env.days, 20_000
    demand, wind = days.draw(env._draw, (number,))
    spread = (demand / torch.as_tensor(kazarlis_demand())).log()
    # 0.05 (z0 + 0.4 z1 sin(...)), with a phase that is uniform.
    assert spread.mean().abs() < 0.001
    assert spread.std(0).numpy() == pytest.approx(0.05 * math.sqrt(1 + 0.16 / 2), rel=0.03)
    assert wind.min() >= 0
    assert wind.max() <= 400
    assert wind.mean().item() == pytest.approx(400 * 0.35, rel=0.02)
    error, past = torch.zeros(number, 2, dtype=DOUBLE), []
    for _ in range(6):
        error = days.next_error(error, torch.randn(number, 2, dtype=DOUBLE))
        past.append(error)
    for t, one in enumerate(past):
        sizes = np.array([0.03, 0.1]) * math.sqrt(1 - 0.8 ** (2 * (t + 1)))
        np.testing.assert_allclose(one.std(0), sizes, rtol=0.03)
    kept = (past[-1] * past[-2]).mean(0) / past[-2].square().mean(0)
    np.testing.assert_allclose(kept, 0.8, atol=0.02)
    # The expectation is the mean of what comes, where the ends of the wind are far away.
    first = torch.tensor([0.05, 0.02], dtype=DOUBLE).expand(number, 2)
    flat = torch.full((24,), 150.0, dtype=DOUBLE)
    foreseen = days.expected(flat, flat, first[0])
    error = first
    for t in range(3):
        error = days.next_error(error, torch.randn(number, 2, dtype=DOUBLE))
        came = days.actual(flat[t], flat[t], error)
        for mean, said in zip(came, foreseen, strict=True):
            assert mean.mean().item() == pytest.approx(float(said[t]), rel=5e-3)


def test_recorded_days_are_drawn_alike(tmp_path):
    path = tmp_path / "days.csv"
    rows = [f"{100 + day},{day}" for day in range(3) for _ in range(4)]
    path.write_text("\n".join(["demand,wind", *rows]))
    env = five(demand=path, horizon=4)
    assert env.days.wind_capacity == 2.0
    assert not env.days.certain
    demand, wind = env.days.draw(env._draw, (900,))
    assert (demand - wind == 100).all()  # wind of the same day
    counts = torch.bincount(wind[:, 0].long(), minlength=3)
    assert counts.min() > 240
    one = five(demand=[90.0] * 4, horizon=4)
    assert one.days.certain
    assert (one.morning((5,))["demand"] == 90).all()


# -- files and arguments ---------------------------------------------------------------------------


def test_a_table_of_units_comes_back_as_it_was(tmp_path):
    units = five_units(ramped=True)
    units.write(tmp_path / "units.csv")
    again = Units.read(tmp_path / "units.csv")
    assert again.names == units.names
    for name, value in vars(units).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    (tmp_path / "short.csv").write_text("min_power,max_power,linear_cost,min_down\n10,50,20,3\n")
    short = Units.read(tmp_path / "short.csv")
    assert short.names == ("unit 1",)
    assert short.initial_hours.tolist() == [-4.0]  # off for long enough to start cold
    assert math.isinf(short.ramp_up[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "min_power,max_power,linear_cost\n10,50,20\n10,fifty,20",
            r"line 3.*max_power must be a n",
        ),
        ("min_power,max_power,lineal_cost\n10,50,20", "'lineal_cost' is unknown.*'linear_cost'"),
        ("min_power,linear_cost\n10,20", "lacks the columns max_power"),
        ("name,min_power,max_power,linear_cost\na,10,50,20\nb,60,50,20", "min_power must be.*'b'"),
        ("name,min_power,max_power,linear_cost\na,10,50,20\na,10,50,20", "different names"),
        ("name,min_power,max_power,linear_cost", "one or more"),
        ("min_power,max_power,linear_cost,min_up\n10,50,20,1.5", "hours must be whole"),
        ("min_power,max_power,linear_cost,must_run,initial_hours\n10,50,20,1,-3", "must run must"),
        ("min_power,max_power,linear_cost,initial_hours\n10,50,20,0", "must not be 0"),
        (
            "min_power,max_power,linear_cost,hot_start_cost,cold_start_cost\n1,5,2,9,8",
            "at least ho",
        ),
    ],
)
def test_a_bad_table_of_units_is_refused(tmp_path, text, words):
    (tmp_path / "units.csv").write_text(text)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        Units.read(tmp_path / "units.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("demand\n" + "5\n" * 11, "whole days of 12 rows, got 11"),
        ("demand\n" + "5\n" * 11 + "-5\n", "line 13.*demand must be a power of at least 0 MW"),
        ("demand,wind\n" + "5,1\n" * 11 + "5,\n", "line 13.*wind must be a power"),
        ("demand\n" + "5\n" * 11 + "inf\n", "line 13.*demand must be a power"),
        ("load\n" + "5\n" * 12, "'load' is unknown"),
        ("wind\n" + "5\n" * 12, "lacks the column demand"),
    ],
)
def test_a_bad_record_of_days_is_refused(tmp_path, text, words):
    (tmp_path / "days.csv").write_text(text)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        five(demand=tmp_path / "days.csv")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"horizon": 0}, "horizon must be an integer >= 1"),
        ({"reserve": -0.1}, "reserve must be"),
        ({"unserved_cost": -1.0}, "unserved_cost must be"),
        ({"dispatch": "cheap"}, "dispatch must be one of"),
        ({"demand": [100.0] * 11}, r"horizon=12 hours, got numbers of shape \(11,\)"),
        ({"demand": [-1.0] * 12}, "demand must hold"),
        ({"wind": [1.0] * 11}, "wind must hold"),
        ({"demand": [500.0] * 12}, "got units of 400 MW in all; add units or lower"),
        ({"wind_error": 2.0}, "wind_error must be"),
        ({"error_kept": 1.0}, "error_kept must be"),
        ({"day_spread": float("nan")}, "day_spread must be"),
        ({"units": "absent.csv"}, "absent.csv"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        five(**arguments)


def test_the_most_probable_actions_need_no_random_numbers():
    env = five(batch_size=3, **UNSURE)
    policy = HybridPolicy.for_env(env, hidden=(8,))
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        env.set_seed(4)
        first = env.rollout(12, policy)
        env.set_seed(4)
        assert torch.equal(first["next", "reward"], env.rollout(12, policy)["next", "reward"])
