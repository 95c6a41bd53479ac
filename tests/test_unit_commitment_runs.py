"""Unit commitment for people: what is compared, drawn, told by unit, and decided for tomorrow."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from shrunk import TINY
from test_unit_commitment import UNSURE, five, five_units

from hpo_torchrl import load_run
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.experiments.cli import order, train
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.problems import UnitCommitmentEnv
from hpo_torchrl.problems.unit_commitment import Units, solve
from hpo_torchrl.problems.unit_commitment import reference as reference_module
from hpo_torchrl.problems.unit_commitment.env import DISPATCHES
from hpo_torchrl.problems.unit_commitment.operation import VIOLATIONS, operate
from hpo_torchrl.problems.unit_commitment.optimum import lower_bound
from hpo_torchrl.problems.unit_commitment.picture import rows_of
from hpo_torchrl.problems.unit_commitment.reference import DaySchedule, program_of
from hpo_torchrl.problems.unit_commitment.rules import PriorityList
from hpo_torchrl.training import Evaluation

DATA = Path(__file__).parents[1] / "examples" / "data"


def evaluation(env, days):
    return Evaluation(env, num_steps=days * env.horizon, seed=7)


# -- what a run is compared with -------------------------------------------------------------------


def test_a_certain_day_has_an_optimum_and_its_schedule():
    test = evaluation(five(batch_size=3), 1)
    known = test.reference()
    env = test.env
    best = solve(env.units, env.days.demand[0], reserve=0.1, reserve_cost=1e3, unserved_cost=1e3)
    assert known.optimal_cost == pytest.approx(best.cost / 12, rel=1e-5)
    assert test.run(known.policy).mean == pytest.approx(known.optimal_cost, rel=1e-6)
    rule = test.run(PriorityList.best(env)).mean
    assert known.baselines == {"priority list": rule}
    assert rule > known.optimal_cost * 1.001
    assert known.gaps(rule, test)["gap"] > 0.001
    # Another objective than whole days has no optimum.
    window = Evaluation(env, num_steps=5, seed=0)
    assert (window.objective, window.reference().optimal_cost) == ("window", None)


def test_a_schedule_that_the_simulator_cannot_follow_is_an_upper_bound():
    slow = np.full(5, 15.0)
    units = five_units(ramp_up=slow, ramp_down=2 * slow)
    tests = [evaluation(five(dispatch=d, units=units, batch_size=1), 1) for d in DISPATCHES]
    greedy, learned = (test.reference() for test in tests)
    assert greedy.optimal_cost is None
    assert greedy.lower_bound <= learned.optimal_cost * (1 + 1e-5)
    assert greedy.upper_bound > learned.optimal_cost * 1.001
    assert tests[0].run(greedy.policy).mean == pytest.approx(greedy.upper_bound, rel=1e-6)


def replayed(env, run, plan):
    """Return what the simulator charges for a plan on a day that came, ``(T,)``."""
    errors = torch.cat([run["error"][:1], run["next", "error"]])
    kept, sizes = UNSURE["error_kept"], [UNSURE["demand_error"], UNSURE["wind_error"]]
    noise = (errors[1:] - kept * errors[:-1]) / ((1 - kept**2) ** 0.5 * errors.new_tensor(sizes))
    rule, total = DaySchedule(plan, env), 0.0
    state = {name: run[name][0] for name in env.state_names}
    for t in range(env.horizon):
        discrete, continuous = rule.decide(state["step"])
        action = {"discrete": discrete, "continuous": continuous}
        after, reward = env.dynamics(state, action, noise[t])
        total, state = total - float(reward), {**after, "step": state["step"] + 1}
    return total


@pytest.mark.parametrize("ramped", [False, True])
def test_no_policy_goes_below_the_bound_by_perfect_information(ramped):
    stores = {"number": 1, "capacity": 60.0, "charge_rating": 20.0, "discharge_rating": 20.0}
    env = five(ramped, "learned", batch_size=3, batteries=None if ramped else stores, **UNSURE)
    test = evaluation(env, 1)
    known = test.reference()
    days = operate(test, known.policy)
    plans = [solve(env.units, **program_of(env, days, i), gap=1e-4) for i in range(3)]
    runs = torch.cat([run for run, _ in test.rollouts(known.policy)], -1)
    costs = [replayed(env, run, plan) for run, plan in zip(runs, plans, strict=True)]
    if ramped:  # the simulator never curtails wind to keep a unit up
        assert all(cost > plan.bound for cost, plan in zip(costs, plans, strict=True))
    else:  # who knows the day pays what the program says
        assert costs == pytest.approx([plan.cost for plan in plans], rel=1e-6)
    best = np.mean([plan.cost for plan in plans]) / 12
    assert 0.99 * best <= known.lower_bound <= best
    torch.manual_seed(0)
    policies = [HybridPolicy.for_env(env, hidden=(8,)), PriorityList(env, 2), known.policy]
    assert all(test.run(policy).mean > known.lower_bound for policy in policies)


def test_a_day_that_comes_again_is_solved_once(tmp_path, monkeypatch):
    path = tmp_path / "days.csv"
    shape = [*(90, 140, 220, 260, 200, 120)]
    path.write_text("\n".join(["demand", *(str(d + 20 * day) for day in range(3) for d in shape)]))
    env = five(demand=path, horizon=6, batch_size=(2, 4))
    test, calls = evaluation(env, 2), []

    def counted(*arguments, **others):
        calls.append(others)
        return lower_bound(*arguments, **others)

    monkeypatch.setattr(reference_module, "lower_bound", counted)
    known = test.reference()
    assert len(calls) == 3
    days = operate(test, known.policy)
    each = [lower_bound(env.units, **program_of(env, days, i)) for i in range(16)]
    assert known.lower_bound == pytest.approx(np.mean(each) / 6, rel=1e-6)


def test_a_bound_is_one_however_short_the_time():
    env = UnitCommitmentEnv(batch_size=())
    day = {"demand": env.days.demand[0], "reserve": 0.1}
    bounds = [lower_bound(env.units, **day, time_limit=seconds) for seconds in (1e-3, 1.0)]
    assert 0.98 * 563_937.7 < bounds[0] <= bounds[1] <= 563_937.7
    with pytest.raises(ValueError, match="Give unserved_cost"):
        lower_bound(env.units, [9e4])


# -- what a policy does ----------------------------------------------------------------------------


def test_what_is_told_adds_up_to_the_test(tmp_path):
    env = five(True, "learned", batch_size=4, batteries={"number": 2}, **UNSURE)
    env.penalties["surplus"] = 7.0
    test, policy = evaluation(env, 3), HybridPolicy.for_env(env, hidden=(8,))
    found = operate(test, policy)
    assert found.on.shape == (12, 12, 5)
    penalty = sum(env.penalties[name] * getattr(found, name).sum(1) for name in VIOLATIONS)
    assert (found.cost + penalty).mean() / 12 == pytest.approx(test.run(policy).mean, rel=1e-9)
    facts = env.describe(policy, {"days": test}, Reference())
    assert facts["cost_per_day"] == pytest.approx(found.cost.mean())
    assert facts["unserved"] == pytest.approx(found.unserved.sum(1).mean())
    before = np.concatenate([np.tile([True, True, False, False, False], (12, 1, 1)), found.on], 1)
    started = found.on & ~before[:, :-1]
    assert facts["starts_per_day"] == pytest.approx(started.sum((1, 2)).mean())
    assert facts["hours_per_day"]["b"] == 12.0  # it must run
    assert f"MWh unserved {facts['unserved']:.4g}, surplus" in facts["in_words"]["a day"]
    env.details(test, {"policy": policy, "list": PriorityList(env)}, tmp_path)
    table = pd.read_csv(tmp_path / "units.csv").set_index(["policy", "unit"])
    costs = table.loc["policy", "cost"]
    assert costs["all"] == pytest.approx(12 * test.run(policy).mean, rel=1e-9)
    assert costs.drop("all").sum() == pytest.approx(costs["all"], rel=1e-9)
    assert set(costs.index) >= {"a", "batteries", "unserved", "surplus", "reserve"}
    assert imread(tmp_path / "schedule.png").shape[1] > 1400  # two beside one another
    # What is given, and what lacks, is what was asked for.
    asked = found.demand + found.taken.sum(-1)
    given = found.power.sum(-1) + found.wind_used + found.unserved - found.surplus
    np.testing.assert_allclose(given, asked, atol=1e-6)


def test_rows_of_a_chart_hold_each_unit_once():
    rng = np.random.default_rng(0)
    many = Units.kazarlis(60)
    many = many.changed(linear_cost=many.linear_cost + rng.random(60))
    for units, number in ((Units.kazarlis(100), 10), (five_units(), 5), (many, 24)):
        rows = rows_of(units)
        assert len(rows) == number
        assert sorted(np.concatenate([row.units for row in rows])) == [*range(len(units))]
        costs = [units.full_load_cost[row.units].mean() for row in rows]
        assert costs == sorted(costs)
    assert rows_of(Units.kazarlis(100))[0].name == "10 x unit 1"


# -- tomorrow --------------------------------------------------------------------------------------


def act_as(env, rule):
    def act(state):
        discrete, continuous = rule.decide(env.observe(state))
        return {"discrete": discrete, "continuous": continuous}

    return act


def test_tomorrow_is_the_day_of_the_policy():
    env, now = five(True), {"hours": [-1, 4, 3, -7, 2], "power": [0.0, 35.0, 60.0, 0.0, 20.0]}
    rule = PriorityList(env, 1)
    found = env.decide(act_as(env, rule), {"unit": list("abcde"), **now})
    # Anew: the same day in the simulator.
    state = {**env.morning((1,)), "step": torch.zeros(1, 1, dtype=torch.int64)}
    state |= {name: torch.tensor([row]).double() for name, row in now.items()}
    for hour in range(12):
        action = act_as(env, rule)(state)
        after, parts = env.hour(state, action, torch.zeros(1, 2).double())
        rows = found[found["hour"] == hour + 1]
        assert rows["unit"].tolist() == list("abcde")
        assert rows["on"].tolist() == parts["on"][0].int().tolist()
        np.testing.assert_allclose(rows["MW"], parts["power"][0], atol=1e-3)
        state = {**after, "step": state["step"] + 1}
    best = act_as(env, PriorityList.best(env))
    other = env.decide(best, {"unit": list("abcde"), **now})
    assert other["list_on"].tolist() == other["on"].tolist()
    assert found["list_MW"].tolist() == other["MW"].tolist()
    # In another order, the same.
    back = pd.DataFrame({"unit": list("abcde"), **now}).iloc[::-1]
    pd.testing.assert_frame_equal(env.decide(act_as(env, rule), back), found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unit": ["a", "b", "c", "d", "f"]}, "lacks e, and has unknown or twice f"),
        ({"unit": ["a", "b", "c", "d", "a"]}, "lacks e, and has unknown or twice a"),
        ({"hours": None}, "needs the column 'hours'"),
        ({"power": None}, "needs the column 'power', for units have ramps"),
        ({"hours": [1, 2, 0, -4, -5]}, "hours of c must be whole hours on"),
        ({"hours": [1, 2, 1.5, -4, -5]}, "hours of c must be whole hours on"),
        ({"power": [0, 0, "x", 0, 0]}, "power of c must be MW >= 0, got 'x'"),
        ({"hour": [1, 2, 3, 4, 5]}, "'hour', which is unknown.*Did you mean 'hours'"),
    ],
)
def test_a_table_that_is_none_is_refused(change, words):
    env = five(True)
    now = {"unit": list("abcde"), "hours": [5, 5, 5, -5, -5], "power": [30, 30, 30, 0, 0]}
    given = {key: value for key, value in (now | change).items() if value is not None}
    with pytest.raises(ValueError, match=f"(?s){words}"):
        env.decide(act_as(env, PriorityList(env)), given)


def test_a_forecast_is_of_one_day():
    env = five(wind_capacity=100.0)
    with pytest.raises(ValueError, match=r"one day and of wind.*env\.demand=FILE"):
        env.decide(act_as(env, PriorityList(env)), {"hours": [5, 5, 5, -5, -5]})


def test_commands_train_on_own_files_and_decide_tomorrow(tmp_path, capsys):
    run, out = (tmp_path / name for name in ("run", "schedule.csv"))
    files = [f"env.units={DATA / 'units.csv'}", f"env.demand={DATA / 'demand.csv'}"]
    small = ["evaluation.tests.days.batch_size=1", "algorithm.branch_steps=4", "reference=none"]
    small += ["trainer.num_updates=1", f"output_dir={run}"]
    train(["env=unit_commitment", *files, *TINY, *small])
    assert "MWh unserved" in capsys.readouterr().out
    assert imread(run / "policy.png").shape[1] > 900
    summary = load_run(run).summary
    assert set(summary["hours_per_day"]) == set(pd.read_csv(DATA / "units.csv")["name"])
    now = str(DATA / "units_now.csv")
    order([str(run), f"env.demand={DATA / 'tomorrow.csv'}", "--stock", now, "--out", str(out)])
    found = pd.read_csv(out)
    assert len(found) == 24 * 8
    forecast = pd.read_csv(DATA / "tomorrow.csv")
    assert (found.groupby("hour")["MW"].sum() <= forecast["demand"].to_numpy() + 0.1).all()
    with pytest.raises(SystemExit):  # fourteen days are no forecast
        order([str(run), "--stock", now])
    assert "env.demand=FILE" in capsys.readouterr().err


def test_the_generator_reproduces_the_samples():
    made = runpy.run_path(str(DATA / "generate_days.py"))["generate"]()
    assert made == {name: (DATA / name).read_text() for name in ("demand.csv", "tomorrow.csv")}
