"""Unit commitment by mixed-integer programming: brute force, a recount and the known optimum.

Brute force and recount share one slow reading of the rules, in plain Python. It knows nothing of
the program: neither of groups of alike units, nor of matched starts, nor of tangents.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from hpo_torchrl.problems import UnitCommitmentEnv
from hpo_torchrl.problems.storage.batteries import Batteries
from hpo_torchrl.problems.unit_commitment import Units, formulation, kazarlis_demand, solve
from hpo_torchrl.problems.unit_commitment.linear_program import LinearProgram
from hpo_torchrl.problems.unit_commitment.rolling import RollingMILP

FREE = {"unserved_cost": 400.0, "surplus_cost": 70.0, "reserve_cost": 30.0}
HARD = dict.fromkeys(FREE)
BATTERY = {
    "capacity": 40.0,
    "charge_rating": 9.0,
    "discharge_rating": 12.0,
    "charge_efficiency": 0.8,
    "discharge_efficiency": 0.9,
    "wear_cost": 1.5,
    "self_discharge": 0.05,
}


@dataclass(frozen=True, eq=False)
class Problem:
    """A day: demand and wind ``(S, T)``."""

    units: Units
    demand: np.ndarray
    wind: np.ndarray
    reserve: float
    costs: dict
    power: list | None = None
    batteries: Batteries | None = None

    def solve(self, **changed):
        given = {"gap": 1e-6, "reserve": self.reserve, "power": self.power} | self.costs
        given["batteries"] = self.batteries
        given |= {"units": self.units, "demand": self.demand, "wind": self.wind} | changed
        return solve(**given)


def unit(units, g):
    return {f.name: getattr(units, f.name)[g] for f in fields(units)}


def run(row, pattern):
    """Return the start cost of a unit's hours on and off, or None where they are not allowed."""
    hours, total = row["initial_hours"], 0.0
    for on in pattern:
        if row["must_run"] and not on:
            return None
        if on and hours < 0:
            if -hours < row["min_down"]:
                return None
            hot = -hours <= row["min_down"] + row["cold_hours"]
            total += row["hot_start_cost"] if hot else row["cold_start_cost"]
            hours = 1
        elif not on and hours > 0:
            if hours < row["min_up"]:
                return None
            hours = -1
        else:
            hours += 1 if hours > 0 else -1
    return total


def ramps(row, pattern, before):
    """Yield for each hour the most and the least by which power may change, as far as limited."""
    was_on = row["initial_hours"] > 0
    for t, on in enumerate(pattern):
        rise = fall = math.inf
        if on and not was_on:
            rise = max(row["min_power"], row["ramp_up"])
        elif on and (t > 0 or before is not None):
            rise, fall = row["ramp_up"], row["ramp_down"]
        yield rise, fall
        was_on = on


def recount(problem, found):
    """Return the cost of a schedule; every rule is asserted."""
    units, total = problem.units, 0.0
    S, T = problem.demand.shape
    commitment = np.broadcast_to(found.on, found.power.shape)
    for g in range(len(units)):
        row = unit(units, g)
        for s in range(S):
            pattern = commitment[s, :, g]
            starts = run(row, pattern)
            assert starts is not None, "minimum time or must_run"
            total += starts / S
            p = found.power[s, :, g]
            before = 0.0 if problem.power is None else problem.power[g]
            for t, (rise, fall) in enumerate(ramps(row, pattern, problem.power)):
                assert -fall - 1e-5 <= p[t] - before <= rise + 1e-5, "ramp"
                before = p[t]
                if pattern[t]:
                    assert row["min_power"] - 1e-5 <= p[t] <= row["max_power"] + 1e-5, "limit"
                    rate = row["linear_cost"] + row["quadratic_cost"] * p[t]
                    total += (row["fixed_cost"] + rate * p[t]) / S
                else:
                    assert p[t] == 0.0, "power of a unit that is off"
    taken = np.broadcast_to(found.taken, (S, *found.taken.shape[-2:]))
    for n, s in itertools.product(range(taken.shape[-1]), range(S)):
        row = {name: float(values[n]) for name, values in problem.batteries._asdict().items()}
        content = row["initial_content"] * row["capacity"]
        for p in taken[s, :, n]:
            assert -row["discharge_rating"] - 1e-6 <= p <= row["charge_rating"] + 1e-6, "rating"
            gain = p * row["charge_efficiency"] if p > 0 else p / row["discharge_efficiency"]
            content = (1 - row["self_discharge"]) * content + gain
            assert -1e-6 <= content <= row["capacity"] + 1e-6, "content"
            total += row["wear_cost"] * abs(p) / S
    for s, t in itertools.product(range(S), range(T)):
        demand, wind = problem.demand[s, t] + taken[s, t].sum(), problem.wind[s, t]
        need = (1 + problem.reserve) * problem.demand[s, t] - wind
        given = found.power[s, t].sum() + found.unserved[s, t] - found.surplus[s, t]
        assert demand - wind - 1e-5 <= given <= demand + 1e-5, "balance"
        able = sum(units.max_power[g] for g in range(len(units)) if commitment[s, t, g])
        short = max(0.0, need - able)
        assert found.shortfall[s, t] == pytest.approx(short, abs=1e-5), "reserve"
        lack = (found.unserved[s, t], found.surplus[s, t], short)
        for cost, amount in zip(problem.costs.values(), lack, strict=True):
            assert cost is not None or amount < 1e-5, "a violation that is forbidden"
            total += (cost or 0.0) * amount / S
    return total


def patterns(units, T):
    """Return the allowed hours of each unit with their start costs."""
    tries = list(itertools.product((False, True), repeat=T))
    rows = [unit(units, g) for g in range(len(units))]
    return [
        [(pattern, cost) for pattern in tries if (cost := run(row, pattern)) is not None]
        for row in rows
    ]


def hour_cost(problem, on, s, t):
    """Return the least cost of one hour without ramps: bisection for the marginal cost."""
    units, demand, wind = problem.units, problem.demand[s, t], problem.wind[s, t]
    on = np.array(on)
    low, high, b, c = (
        getattr(units, name)[on]
        for name in ("min_power", "max_power", "linear_cost", "quadratic_cost")
    )
    load = min(max(demand - wind, low.sum()), high.sum())
    ends = [0.0, 1000.0]
    for _ in range(60):
        price = sum(ends) / 2
        p = np.clip((price - b) / (2 * c), low, high)
        ends[int(p.sum() >= load)] = price
    fuel = (units.fixed_cost[on] + b * p + c * p * p).sum()
    lack = (
        demand - wind - load,
        low.sum() - demand,
        (1 + problem.reserve) * demand - wind - high.sum(),
    )
    for amount, cost in zip(lack, problem.costs.values(), strict=True):
        if amount > 1e-6:
            fuel += math.inf if cost is None else cost * amount
    return fuel


def ramped_cost(problem, chosen, charging):
    """Return the least cost of powers under ramps, of linear fuel: one linear program.

    ``charging`` says for each hour whether the battery may charge; else it may discharge.
    """
    units, (S, T), G = problem.units, problem.demand.shape, len(problem.units)
    assert S == 1
    assert not units.quadratic_cost.any()
    cost = 0.0
    low, high = np.zeros((G + 5, T)), np.full((G + 5, T), math.inf)
    store = problem.batteries or Batteries.of(1, capacity=1e-9)
    store = {name: float(value) for name, value in store._asdict().items()}
    wear = [store["wear_cost"]] * 2
    price = np.array([*units.linear_cost, *problem.costs.values(), *wear])[:, None] * np.ones(T)
    high[G + 3] = store["charge_rating"] * np.array(charging)
    high[G + 4] = store["discharge_rating"] * (1.0 - np.array(charging))
    rows, limits = [], []

    def add(limit, *terms):
        row = np.zeros((G + 5, T))
        for k, t, coefficient in terms:
            row[k, t] += coefficient
        rows.append(row.ravel())
        limits.append(limit)

    for g, pattern in enumerate(chosen):
        row, before = unit(units, g), problem.power and problem.power[g]
        on = np.array(pattern)
        low[g], high[g] = row["min_power"] * on, row["max_power"] * on
        cost += row["fixed_cost"] * on.sum()
        for t, (rise, fall) in enumerate(ramps(row, pattern, before)):
            past = (g, t - 1) if t else None
            known = 0.0 if past or not before else before
            if rise < math.inf:
                add(rise + known, (g, t, 1), *([(*past, -1)] if past else []))
            if fall < math.inf:
                add(fall - known, (g, t, -1), *([(*past, 1)] if past else []))
    for t in range(T):
        demand, wind = problem.demand[0, t], problem.wind[0, t]
        gives = [(g, t, 1) for g in range(G)] + [(G, t, 1), (G + 1, t, -1)]
        gives += [(G + 3, t, -1), (G + 4, t, 1)]
        kept = (1 - store["self_discharge"]) ** np.arange(t + 1)[::-1]
        moved = [(G + 3, i, kept[i] * store["charge_efficiency"]) for i in range(t + 1)]
        moved += [(G + 4, i, -kept[i] / store["discharge_efficiency"]) for i in range(t + 1)]
        first = (
            kept[0] * (1 - store["self_discharge"]) * store["initial_content"] * store["capacity"]
        )
        add(store["capacity"] - first, *moved)
        add(first, *[(k, i, -x) for k, i, x in moved])
        add(demand, *gives)
        add(wind - demand, *[(k, t, -sign) for k, t, sign in gives])
        able = sum(units.max_power[g] for g in range(G) if chosen[g][t])
        add(able - (1 + problem.reserve) * demand + wind, (G + 2, t, -1))
    bounds = np.stack([low.ravel(), high.ravel()], -1)
    result = linprog(price.ravel(), np.array(rows), limits, bounds=bounds)
    return cost + result.fun if result.status == 0 else math.inf


@functools.cache
def brute_force(problem, common=None):
    """Return the least cost over all commitments, which scenarios share for some hours."""
    S, T = problem.demand.shape
    choices = patterns(problem.units, T)
    if np.isfinite(problem.units.ramp_up).any():
        modes = list(itertools.product((False, True), repeat=T))
        return min(
            sum(cost for _, cost in each)
            + ramped_cost(problem, [pattern for pattern, _ in each], charging)
            for each in itertools.product(*choices)
            for charging in (modes if problem.batteries else modes[:1])
        )
    states = list(itertools.product((False, True), repeat=len(problem.units)))
    place = 2 ** np.arange(len(problem.units))[::-1]
    starts, number = np.zeros(1), np.zeros((1, T), dtype=int)  # of the units that are on
    for choice, weight in zip(choices, place, strict=True):
        cost, pattern = np.array([cost for _, cost in choice]), np.array([on for on, _ in choice])
        starts = (starts[:, None] + cost).ravel()
        number = (number[:, None] + weight * pattern).reshape(-1, T)
    total = np.stack(
        [
            starts
            + sum(
                np.array([hour_cost(problem, on, s, t) for on in states])[number[:, t]]
                for t in range(T)
            )
            for s in range(S)
        ]
    )
    # Commitments that begin alike are one decision, which each scenario goes on from as it likes.
    begins = np.unique(number[:, :common], axis=0, return_inverse=True)[1].reshape(-1)
    best = np.full((S, begins.max() + 1), math.inf)
    for s in range(S):
        np.minimum.at(best[s], begins, total[s])
    return float(best.mean(0).min())


def check(problem, found, common=None):
    """Assert that a schedule keeps the rules, costs what it says, and is the best one."""
    counted, best = recount(problem, found), brute_force(problem, common)
    assert found.cost == pytest.approx(counted, rel=1e-7)
    assert found.bound <= best * (1 + 1e-7)
    assert best * (1 - 1e-7) <= found.cost <= best * (1 + 2e-6)


@functools.cache
def make(seed, *, ramped=False, stored=False):
    """Return a small day: two units with the same numbers and a third one."""
    rng = np.random.default_rng(seed)
    G, T, S = (2, 4 - stored, 1) if ramped else (3, 5, 1 + seed % 3 // 2)
    kind = np.arange(2) if ramped else np.array([0, 0, 1])
    draw = {
        "min_power": rng.integers(10, 40, 2),
        "max_power": rng.integers(60, 120, 2),
        "fixed_cost": rng.integers(50, 300, 2),
        "linear_cost": rng.uniform(10, 40, 2),
        "quadratic_cost": rng.uniform(0.01, 0.3, 2) * (not ramped),
        "min_up": rng.integers(1, 4, 2),
        "min_down": rng.integers(1, 4, 2),
        "hot_start_cost": (hot := rng.integers(50, 500, 2)),
        "cold_start_cost": hot + rng.integers(100, 800, 2),
        "cold_hours": rng.integers(0, 3, 2),
    }
    table = {name: row[kind] for name, row in draw.items()}
    hours = rng.integers(1, 5, G) * rng.choice([-1, 1], G)
    plenty = np.full(G, np.inf)
    units = Units(
        **table,
        initial_hours=hours,
        ramp_up=rng.integers(8, 35, G) if ramped else plenty,
        ramp_down=rng.integers(8, 35, G) if ramped else plenty,
        must_run=(hours > 0) & (rng.random() < 0.3) & (kind == 1),
        names=tuple("abc"[:G]),
    )
    top = units.max_power.sum()
    power = None
    if ramped and seed % 2:
        power = list(np.where(hours > 0, units.max_power, 0.0))
    return Problem(
        units,
        demand=rng.uniform(0.05, 1.0, (S, T)) * top,
        wind=rng.uniform(0.0, 0.3, (S, T)) * top,
        reserve=float(rng.choice([0.0, 0.1, 0.2])),
        costs=FREE,
        power=power,
        batteries=Batteries.of(1, **BATTERY, dtype=torch.float64) if stored else None,
    )


@functools.cache
def problems(*, ramped):
    """Return the days on which faults are looked for."""
    return [make(seed, ramped=ramped) for seed in range(4 if ramped else 18)]


@pytest.mark.parametrize("ramped", [False, True])
def test_the_schedule_is_the_best_of_all(ramped):
    for problem in problems(ramped=ramped):
        check(problem, problem.solve())


def test_a_battery_is_used_for_the_best():
    problem = make(4, ramped=True, stored=True)
    check(problem, found := problem.solve())
    assert (found.taken != 0).any()


@pytest.mark.parametrize("name", BATTERY)
def test_a_wrong_number_of_a_battery_is_seen(name):
    wrong = Batteries.of(1, **{**BATTERY, name: 0.9 * BATTERY[name]}, dtype=torch.float64)
    assert not passes(make(4, ramped=True, stored=True), batteries=wrong)


def test_scenarios_share_the_first_hours():
    several = [problem for problem in problems(ramped=False) if len(problem.demand) > 1]
    for problem, common in zip(several, (0, 1, 1, 2, 3, 4), strict=True):
        found = problem.solve(common=common)
        check(problem, found, common)
        assert (found.on[0, :common] == found.on[1, :common]).all()


def shifted(name, by, least):
    return lambda units: {name: np.maximum(getattr(units, name) + by, least)}


# What the program is told instead of the truth.
WRONG_UNITS = {
    "cold an hour later": shifted("cold_hours", 1, 0),
    "cold an hour sooner": shifted("cold_hours", -1, 0),
    "longer up": shifted("min_up", 1, 1),
    "shorter up": shifted("min_up", -1, 1),
    "longer down": shifted("min_down", 1, 1),
    "shorter down": shifted("min_down", -1, 1),
    "initial hours ignored": lambda units: {"initial_hours": 24 * np.sign(units.initial_hours)},
    "initial hours one later": lambda units: {
        "initial_hours": units.initial_hours + np.sign(units.initial_hours)
    },
    "all starts hot": lambda units: {"cold_start_cost": units.hot_start_cost},
    "all starts cold": lambda units: {"hot_start_cost": units.cold_start_cost},
    "starts charged twice": lambda units: {
        "hot_start_cost": 2 * units.hot_start_cost,
        "cold_start_cost": 2 * units.cold_start_cost,
    },
    "no-load cost forgotten": lambda units: {"fixed_cost": 0 * units.fixed_cost},
    "fuel coefficient": lambda units: {"linear_cost": 1.01 * units.linear_cost},
    "linear fuel": lambda units: {"quadratic_cost": 0 * units.quadratic_cost},
    "half the quadratic cost": lambda units: {"quadratic_cost": units.quadratic_cost / 2},
    "no minimum power": lambda units: {"min_power": 0 * units.min_power},
    "more power": lambda units: {"max_power": 1.05 * units.max_power},
    "units may stop": lambda units: {"must_run": 0 * units.must_run},
}
WRONG_RAMPS = {
    "no ramps": lambda day: {
        "units": day.units.changed(
            ramp_up=day.units.ramp_up + np.inf, ramp_down=day.units.ramp_up + np.inf
        )
    },
    "no ramp down": lambda day: {
        "units": day.units.changed(ramp_down=day.units.ramp_down + np.inf)
    },
    "no ramp up": lambda day: {"units": day.units.changed(ramp_up=day.units.ramp_up + np.inf)},
    "another power before": lambda day: {"power": day.power and [0.9 * p for p in day.power]},
    "no power before": lambda day: {"power": None},
}
WRONG_DAYS = {
    "reserve without demand": lambda day: {"reserve": day.reserve - 1},
    "no reserve": lambda day: {"reserve": 0.0},
    "no wind": lambda day: {"wind": 0 * day.wind},
    "free shortfall": lambda day: {"reserve_cost": 0.0},
    "free surplus": lambda day: {"surplus_cost": 0.0},
    "dear demand": lambda day: {"unserved_cost": 1000.0},
    "the first scenario alone": lambda day: {
        "demand": day.demand[:1].repeat(len(day.demand), 0),
        "wind": day.wind[:1].repeat(len(day.demand), 0),
    },
}


def passes(problem, **changed):
    """Say whether a schedule made with wrong numbers passes for one of the right ones."""
    try:
        check(problem, problem.solve(**changed))
    except (AssertionError, RuntimeError, ValueError, IndexError):
        return False
    return True


@pytest.mark.parametrize("fault", [*WRONG_UNITS, *WRONG_DAYS, *WRONG_RAMPS])
def test_a_wrong_number_is_seen(fault):
    def change(problem):
        if fault in WRONG_UNITS:
            return {"units": problem.units.changed(**WRONG_UNITS[fault](problem.units))}
        return (WRONG_DAYS | WRONG_RAMPS)[fault](problem)

    days = problems(ramped=fault in WRONG_RAMPS)
    assert not all(passes(problem, **change(problem)) for problem in days)


# The blocks of rows in the order in which the program adds them; tangents follow.
ROWS = ["change", "up", "down", "same on", "same starts", "matched starts", "matched stops"]
ROWS += ["limit", "balance", "reserve"]
RAMPED = [*ROWS[:-2], "rise", "fall", "second rise", "second fall", *ROWS[-2:]]


@pytest.mark.parametrize(
    ("ramped", "block"),
    [*((False, row) for row in ROWS if "same" not in row), *((True, row) for row in RAMPED[8:12])],
)
def test_every_constraint_is_needed(monkeypatch, ramped, block):
    """Without a block of rows a schedule breaks a rule, or the bound is wrong."""
    place, rows = (RAMPED if ramped else ROWS).index(block), LinearProgram.rows

    def without(program, shape, **ends):
        program.blocks = getattr(program, "blocks", -1) + 1
        return rows(program, shape, **({} if program.blocks == place else ends))

    monkeypatch.setattr(LinearProgram, "rows", without)
    assert not all(passes(problem) for problem in problems(ramped=ramped))


def test_tangents_that_cut_fuel_off_are_seen(monkeypatch):
    touch = formulation.Model.touch

    def steeper(model, program, place, point):
        touch(model, program, place, point)
        program.put(program.rows(point.shape) - len(point), model.above[place], -0.01)

    monkeypatch.setattr(formulation.Model, "touch", steeper)
    assert not all(passes(problem) for problem in problems(ramped=False))


def test_the_known_optimum_of_ten_units():
    """563,937.7 is the best cost in the literature; here it is the optimum."""
    day = np.atleast_2d(kazarlis_demand())
    problem = Problem(Units.kazarlis(), day, 0 * day, 0.1, HARD)
    found = problem.solve(gap=1e-6)
    assert found.bound == pytest.approx(563_937.69, rel=1e-6)
    assert found.cost == pytest.approx(563_937.687, abs=0.01)
    assert recount(problem, found) == pytest.approx(found.cost)
    for by, cost in ((-1, 564_916), (1, 563_388)):  # a window that is an hour off has another one
        hours = np.maximum(problem.units.cold_hours + by, 0)
        wrong = problem.solve(units=problem.units.changed(cold_hours=hours), gap=1e-4)
        assert wrong.cost == pytest.approx(cost, rel=2e-4)


def test_alike_units_cost_what_they_cost_alone(monkeypatch):
    """One integer variable for alike units has the optimum of a binary for each of them."""
    units = Units.kazarlis(20)
    units = units.changed(initial_hours=units.initial_hours * np.repeat([1, 2], 10))
    given = {"units": units, "demand": kazarlis_demand(20)[5:15], "reserve": 0.1, "gap": 1e-6}
    together = solve(**given)
    monkeypatch.setattr(formulation, "alike", lambda units: np.arange(len(units)))
    assert solve(**given | {"gap": 1e-4}).cost == pytest.approx(together.cost, rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"demand": [[[100.0]]]}, ValueError, r"demand, wind must have the shape \(T,\), or"),
        ({"demand": 900.0}, ValueError, r"demand, wind must have the shape \(T,\), or"),
        ({"demand": [100.0, -1.0]}, ValueError, "demand must hold finite powers of at least 0 MW"),
        ({"wind": [1.0, 2.0, 3.0]}, ValueError, r"got \(2,\), \(3,\)"),
        ({"need": [1.0, np.nan]}, ValueError, "need must hold finite powers"),
        ({"demand": [900.0, 9e9]}, ValueError, "Give unserved_cost"),
        ({"segments": 0}, ValueError, "segments must be an integer >= 1"),
        ({"power": [1.0]}, ValueError, "power must hold a finite number for each of the 10"),
        ({"batteries": Batteries.of(2), "content": [9.0, 0.0]}, ValueError, "content must hold an"),
        ({"reserve_cost": -1}, ValueError, "reserve_cost must be a finite number >= 0"),
        ({"time_limit": 0}, ValueError, "time_limit must be a finite number > 0"),
    ],
)
def test_bad_input_is_refused(changed, error, message):
    with pytest.raises(error, match=message):
        solve(**{"units": Units.kazarlis(), "demand": [900.0, 950.0]} | changed)


def random_env(problem, **changed):
    """Return an environment of two uncertain days with the units of a problem."""
    top = float(problem.units.max_power.sum())
    day = problem.demand[0] * min(1.0, 0.8 * top / problem.demand[0].max())
    given = {
        "demand": list(day),
        "horizon": len(day),
        "demand_error": 0.1,
        "wind_error": 0.2,
        "wind_capacity": 0.3 * top,
        "unserved_cost": 300.0,
        "surplus_cost": 60.0,
        "reserve_cost": 30.0,
        "batch_size": 2,
        "seed": 0,
        "dtype": torch.float64,
    }
    return UnitCommitmentEnv(problem.units, **given | changed)


def hindsight(env, days):
    """Solve days of a rollout ``(B, T)`` whose forecasts and errors are known beforehand."""
    found = []
    for day in days:
        error = day["next", "error"].numpy()
        last = env.days.error_kept * day["error"].numpy()
        demand, wind = day["demand"][0].numpy(), day["wind"][0].numpy()
        top = env.days.wind_capacity
        needed = (1 + env.reserve) * demand * (1 + last[:, 0]) - np.clip(
            wind + top * last[:, 1], 0, top
        )
        schedule = solve(
            env.units,
            demand * (1 + error[:, 0]),
            np.clip(wind + top * error[:, 1], 0, top),
            need=np.maximum(0.0, needed),
            power=day["power"][0].numpy() if env.ramped else None,
            batteries=env.batteries,
            gap=1e-7,
            **{f"{name}_cost": penalty for name, penalty in env.penalties.items()},
        )
        found.append(schedule)
    return found


@pytest.mark.parametrize(("seed", "number"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (5, 2)])
def test_the_simulator_costs_what_the_schedule_does(seed, number):
    """The schedule that knows all costs the same in the simulator; rules cost no less."""
    env = random_env(make(seed), batteries={"number": number, **BATTERY} if number else None)
    with torch.no_grad():
        day = env.rollout(env.horizon)
        found = hindsight(env, day)
        costs = -day["next", "reward"].sum((1, 2))
        assert all(best.bound <= cost for best, cost in zip(found, costs, strict=True))
        noise = (day["next", "error"] - env.days.error_kept * day["error"]) / (
            torch.tensor([0.1, 0.2], dtype=torch.float64) * (1 - env.days.error_kept**2) ** 0.5
        )
        state = {name: day[name][:, 0] for name in env.state_names}
        cost = 0.0
        for t in range(env.horizon):
            parts = ([plan.actions[i][t] for plan in found] for i in range(2))
            discrete, continuous = (torch.as_tensor(np.stack(part)) for part in parts)
            action = {"discrete": discrete, "continuous": continuous}
            on = discrete[:, : len(env.units)]
            assert (env.committed(state["hours"], on) == on.bool()).all()
            after, reward = env.dynamics(state, action, noise[:, t])
            state, cost = after | {"step": state["step"] + 1}, cost - reward
    assert cost.tolist() == pytest.approx([schedule.cost for schedule in found], rel=1e-6)
    for schedule in found:
        assert schedule.gap < 1e-6


@pytest.mark.parametrize("ramped", [False, True])
def test_solving_anew_does_not_change_a_plan_that_nothing_upsets(ramped):
    certain = {"demand_error": 0.0, "wind_error": 0.0, "wind_capacity": 0.0, "batch_size": 1}
    env = random_env(make(4, ramped=ramped), **certain)
    policy = RollingMILP(env, gap=1e-7)
    with torch.no_grad():
        day = env.rollout(env.horizon, policy)
    best = hindsight(env, day)[0]
    if not ramped:  # with ramps the simulator's dispatch does not look ahead
        assert -day["next", "reward"].sum() == pytest.approx(best.cost, rel=1e-6)
    assert len(policy.seconds) == env.horizon
    assert (day["action", "discrete"][0].numpy() == best.on).all()
    certain = RollingMILP(env, 2, gap=1e-7)(day[:, 0].clone())
    assert (certain["action", "discrete"] == day["action", "discrete"][:, 0]).all()


def test_scenarios_follow_the_process_of_the_errors():
    env, load = random_env(make(0), reserve=0.1), 100.0 * torch.ones(3, dtype=torch.float64)
    env.days.wind_capacity, last = 1000.0, torch.tensor([0.05, -0.1], dtype=torch.float64)
    demand, wind, need = RollingMILP(env, 4000).draw(load, 5 * load, last)
    for t in range(3):
        kept = env.days.error_kept ** (t + 1)
        size = (1 - kept**2) ** 0.5
        # Exact, but for the ends of wind: each scenario has its mirror image.
        assert demand[:, t].mean() == pytest.approx(100 * (1 + 0.05 * kept))
        assert wind[:, t].mean() == pytest.approx(500 - 100 * kept, rel=1e-3)
        assert demand[:, t].std() == pytest.approx(100 * 0.1 * size, rel=0.05)
        assert wind[:, t].std() == pytest.approx(1000 * 0.2 * size, rel=0.05)
    kept = env.days.error_kept
    assert need[:, 0].tolist() == pytest.approx(
        [max(0.0, 110 * (1 + 0.05 * kept) - 500 + 100 * kept)] * 4000
    )
    foreseen = 100 + kept * (demand[:, 0] - 100), 500 + kept * (wind[:, 0] - 500)
    assert torch.allclose(need[:, 1], (1.1 * foreseen[0] - foreseen[1]).clamp_min(0.0))


def test_an_odd_number_of_scenarios_is_refused():
    with pytest.raises(ValueError, match="scenarios must be even"):
        RollingMILP(random_env(make(0)), 3)
