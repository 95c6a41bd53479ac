"""Demand from a file: the reader's errors, the shipped sample, a run from the command line."""

from __future__ import annotations

import copy
import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shrunk import TINY
from torchrl.envs.utils import check_env_specs

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.experiments.cli import evaluate, train
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import Record
from hpo_torchrl.problems.inventory.demand_file import TableFileError, read_demand
from hpo_torchrl.problems.inventory.optima.recorded_demand import RecordedItems
from hpo_torchrl.problems.inventory.rules import TotalDemandPolicy
from hpo_torchrl.training import Evaluation

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "examples" / "data" / "generated_demand.csv"


def call(monkeypatch, command, *arguments):
    monkeypatch.setattr("sys.argv", ["command", *arguments])
    command()


def test_the_sample_is_read_whole():
    record = read_demand(SAMPLE)
    rows = list(csv.DictReader(SAMPLE.read_text().splitlines()))
    keys = [(str(period), item) for period in record.periods for item in record.items]
    assert [(row["period"], row["item"]) for row in rows] == keys
    assert [float(row["demand"]) for row in rows] == record.demand.flatten().tolist()


def test_bad_files_say_where(tmp_path):
    for text, words in [
        ("period,item\n1,a\n", "column 'demand' is missing"),
        ("period,item,demand\n1,a,3\n2,a,many\n3,a,1\n", r"line 3.*many"),
        ("period,item,demand\n1,a,3\n2,a,-4\n3,a,1\n", "line 3"),
        ("period,item,demand\n1,a,3\n2,a,4\n2,a,5\n3,a,1\n", "line 4"),
        ("period,item,demand\n1,a,3\n2,a,4\n4,a,1\n", "there is no period 3"),
        ("period,item,demand\n1,a,3\n1,b,3\n2,a,4\n", "line 3: item 'b' has no row"),
        ("", "column 'demand' is missing"),
        ("period,item,demand\n2024-01-01,a,3\n2024-01-08,a,4\n2024-01-16,a,1\n", "line 4.*8 days"),
        ("period,item,demand\n2024-01-31,a,3\n2024-02-29,a,4\n2024-04-30,a,1\n", "4: .*2024-03-31"),
        ("period,item,demand\n1,a,3\n2,a,4\n2024-01-01,a,1\n", "line 4.*2024-01-01.*whole number"),
        ("period,item,demand,price\n1,a,3,2\n2,a,4,2.5\n", "line 3: price .* 2.5, but 2"),
        ('period,item,demand\n1,"a\nb",3\n2,"a\nb"\n', "line 4: 2 fields, but there are 3"),
    ]:
        path = tmp_path / f"{hash(text)}.csv"
        path.write_text(text)
        with pytest.raises(TableFileError, match=f"(?s){words}"):
            read_demand(path)
    # Files of another kind.
    with pytest.raises((TableFileError, FileNotFoundError), match=r"nothing\.csv"):
        read_demand(tmp_path / "nothing.csv")
    other = tmp_path / "demand.doc"
    other.write_text("period,item,demand\n1,a,1\n")
    with pytest.raises(TableFileError, match=r"must end in \.csv, .*\.parquet"):
        read_demand(other)
    folder = tmp_path / "sales.csv"
    folder.mkdir()
    with pytest.raises(TableFileError, match="is a folder"):
        read_demand(folder)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_environment_replays_its_split(split):
    env = InventoryEnv.from_file(str(SAMPLE), split=split, batch_size=8, seed=0)
    check_env_specs(env)
    policy, start = HybridPolicy.for_env(env, hidden=(8,)), env.reset()
    noise = env.sample_noise(6, start)
    with pytest.raises(ValueError, match="where a rollout starts"):
        env.sample_noise(6)
    runs, given = [], {"tensordict": start, "noise": noise}
    for route in ("functional", "general"):
        torch.manual_seed(0)
        runs.append(differentiable_rollout(env, policy, 6, route=route, **given))
    for key in ("observation", ("next", "reward")):
        assert torch.equal(runs[0][key], runs[1][key])


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=5)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_what_is_written_is_what_is_read(data, tmp_path_factory):
    items = data.draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    length = data.draw(st.integers(1, 6))
    first, apart = data.draw(st.integers(-5, 5)), data.draw(st.integers(1, 3))
    numbers = st.floats(0, 1e6, allow_subnormal=False)
    demand = data.draw(arrays(np.float64, (length, len(items)), elements=numbers))
    periods = [first + apart * t for t in range(length)]
    rows = [(t, i) for t in range(length) for i in range(len(items))]
    order = [(0, i) for i in range(len(items))] + data.draw(st.permutations(rows[len(items) :]))
    path = tmp_path_factory.mktemp("demand") / "demand.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["demand", "item", "period"])  # in any order
        for t, i in order:
            writer.writerow([repr(float(demand[t, i])), items[i], periods[t]])
    record = read_demand(path)
    assert list(record.items) == items
    assert list(record.periods) == periods
    assert np.array_equal(record.demand, demand)


def test_parquet_is_read_as_csv_is(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    path = tmp_path / "demand.parquet"
    parquet.write_table(arrow_csv.read_csv(SAMPLE), path)
    one, other = read_demand(SAMPLE), read_demand(path)
    assert (one.items, one.periods) == (other.items, other.periods)
    assert np.array_equal(one.demand, other.demand)
    assert one.costs == other.costs

    table = arrow_csv.read_csv(SAMPLE)
    bad = table.set_column(2, "demand", pyarrow.array([-1, *table["demand"].to_pylist()[1:]]))
    parquet.write_table(bad, path)
    with pytest.raises(TableFileError, match="row 1"):
        read_demand(path)


def test_a_policy_learns_nothing_of_later_periods():
    record = torch.from_numpy(read_demand(SAMPLE).demand.copy())
    changed = record.clone()
    changed[438:] = 1000.0  # beyond the training periods: in the file's 60 %
    runs = []
    for demand in (record, changed):
        replayed = Record(demand, (0, 438), history=14, season=7)
        env = InventoryEnv(demand=replayed, initial_state="stationary", batch_size=16, seed=0)
        start = env.reset()
        noise = env.sample_noise(1000, start)
        runs.append(torch.cat([start["observation"], noise.flatten(1)], -1))
    assert torch.equal(*runs)


def test_history_is_the_demand_that_was_met():
    record = torch.arange(60.0).reshape(30, 2)
    env = InventoryEnv(demand=Record(record, history=4, season=3), batch_size=16, seed=0)
    policy = HybridPolicy.for_env(env, hidden=())
    rollout = differentiable_rollout(env, policy, 50, noise=None)
    met = rollout["next", "recent"][..., -1]
    place = rollout["period"].long()
    assert torch.equal(met, record[place, torch.arange(2)])
    assert torch.equal(rollout["next", "recent"][..., :-1], rollout["recent"][..., 1:])
    # Items start apart by whole seasons, and stay so where the record begins again.
    assert ((place[..., 0] - place[..., 1]) % 3 == 0).all()
    assert (place[:, 0, 0] != place[:, 0, 1]).any()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 2), st.integers(0, 2), st.booleans(), st.integers(0, 2**16))
def test_the_tuned_rule_against_every_rule_through_the_environment(n, lead_time, lost, seed):
    demand = np.random.default_rng(seed).poisson(2.0, (30, n)) + (np.arange(30) == 3)[:, None]
    record = RecordedItems(demand, 1.0, 4.0, 6.0, lead_time, lost_sales=lost)
    best = TotalDemandPolicy.optimum(record)
    env = InventoryEnv(
        demand=Record(demand, history=1),
        lead_time=lead_time,
        shortage_cost=4.0,
        fixed_cost_per_item=6.0 / n,
        lost_sales=lost,
        batch_size=1,
        dtype=torch.float64,
    )

    def cost(Q, S):
        """The cost of a rule in the environment, on all periods from levels S on hand."""
        inventory = torch.zeros(1, n, max(lead_time, 1), dtype=torch.float64)
        inventory[0, :, 0] = torch.tensor(S, dtype=torch.float64)
        state = {"inventory": inventory, "step": torch.zeros(1, 1, dtype=torch.int64)}
        total = 0.0
        for row in torch.from_numpy(demand).double():
            missing = torch.tensor(S) - state["inventory"].sum(-1)
            order = (missing.sum(-1) >= Q).long()
            action = {"discrete": order, "continuous": missing.clamp_min(0.0)}
            state, reward, _ = env.advance(state, action, row.unsqueeze(0))
            total -= float(reward)
        return total / len(demand)

    assert cost(best.policy.Q, best.policy.S.tolist()) == pytest.approx(best.cost)
    assert best.policy.cost(record) == pytest.approx(best.cost)
    rivals = np.random.default_rng(seed + 1).integers(1, 16, (20, n + 1))
    for Q, *S in rivals.tolist():
        assert best.cost <= cost(Q, [float(level) for level in S]) + 1e-9


def all_rules(record, most):
    """The cost of every whole rule, by a loop of its own, and of never ordering."""
    axes = [np.arange(1, most[0] + 1), *(np.arange(top + 1) for top in most[1:])]
    rules = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(most))
    rules = rules[rules[:, 0] <= rules[:, 1:].sum(1)]  # another one never orders
    rules = np.concatenate([rules, [[10**9, *[0] * (len(most) - 1)]]])
    Q, S = rules[:, 0], rules[:, 1:].astype(float)
    stock, coming = S.copy(), [np.zeros_like(S) for _ in range(record.lead_time)]
    cost = np.zeros(len(rules))
    for t, demand in enumerate(record.demand):
        lacking = S - stock - sum(coming)
        order = np.where((lacking.sum(1) >= Q)[:, None], lacking.clip(0), 0.0)
        coming.append(order)
        left = stock + coming.pop(0) - demand
        if t >= record.warm_up:
            cost += left.clip(0) @ record.holding_cost + (-left).clip(0) @ record.shortage_cost
            cost += order @ record.procurement_cost + record.fixed_cost * (lacking.sum(1) >= Q)
        stock = left.clip(0)
    return cost / (len(record.demand) - record.warm_up), rules


@pytest.mark.parametrize("seed", range(20))
def test_the_rule_for_lost_sales_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    n = 1 + seed % 2
    demand = (rng.random((36, n)) < rng.uniform(0.3, 0.9, n)) * rng.integers(1, 5, (36, n))
    costs = {"holding_cost": rng.uniform(0.2, 2, n), "shortage_cost": rng.uniform(3, 12, n)}
    others = {"procurement_cost": rng.choice([0.0, 1.0, 20.0]), "fixed_cost": rng.uniform(5, 60)}
    record = RecordedItems(
        demand, **costs, **others, lead_time=seed % 3, lost_sales=True, warm_up=4
    )
    most = [int(record.most), *(record.windows().max(0) + record.most).astype(int)]
    expected, rules = all_rules(record, most)
    best = TotalDemandPolicy.optimum(record)
    assert best.cost == pytest.approx(expected.min())
    never = rules[expected.argmin(), 0] == 10**9
    assert np.isinf(best.policy.Q) == never
    if others["procurement_cost"] == 20.0:
        assert never  # dearer to buy than to lose


def test_several_starts_find_what_one_search_does_not():
    """Records on which a search from the rule for backlogged demand ends 10 to 22 % too high."""
    known = {0: 27.370, 1: 30.583, 2: 27.528, 3: 24.852, 4: 26.306, 5: 23.620}
    for seed, cost in known.items():
        rng = np.random.default_rng(seed)
        demand = (rng.random((60, 2)) < [0.3, 0.8]) * rng.integers(1, [25, 8], (60, 2))
        record = RecordedItems(
            demand, [1.0, 0.5], [9.0, 4.0], 40.0, seed % 3, lost_sales=True, warm_up=6
        )
        assert TotalDemandPolicy.optimum(record).cost <= cost + 1e-3, seed


def test_never_to_order_is_a_rule(tmp_path):
    """With backlog too, where a record asks for next to nothing; and it is one that can be run."""
    demand = np.random.default_rng(1).poisson(5, (60, 1))
    record = RecordedItems(demand, 1.0, 9.0, 20.0, 1, 20.0, lost_sales=True, warm_up=8)
    assert TotalDemandPolicy.optimum(record).cost == pytest.approx(9.0 * demand[8:].mean())
    tiny = RecordedItems(demand * 1e-4, 1.0, 9.0, 64.0, 2)
    best = TotalDemandPolicy.optimum(tiny)
    assert best.cost == pytest.approx(9.0 * (demand * 1e-4).cumsum().mean())
    assert (best.policy.Q, best.policy.S.tolist()) == (np.inf, [0.0])
    env = InventoryEnv(demand=Record(demand * 1e-4), fixed_cost_per_item=64.0, batch_size=3)
    assert not env.rollout(20, TotalDemandPolicy.best(env))["action", "discrete"].any()


def test_a_run_keeps_the_policy_of_the_least_development_cost(tmp_path, monkeypatch, capsys):
    rows = SAMPLE.read_text().splitlines()[:601]
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    evaluated, tested, real = [], [], Evaluation.run

    def run(self, policy):
        found = real(self, policy)
        if not isinstance(policy, HybridPolicy):  # the rule
            return found
        weights = copy.deepcopy(policy.state_dict())
        if self.env.batch_size[0] != 32:  # not the validation
            tested.append(weights)
            return found
        evaluated.append(weights)
        return found._replace(mean=1.0 + abs(len(evaluated) - 3))  # after two updates

    monkeypatch.setattr(Evaluation, "run", run)
    folder = tmp_path / "run"
    arguments = ["env=inventory_from_file", "env.path=mine.csv", *TINY]
    arguments += ["trainer.num_updates=4", "trainer.eval_every=1", f"output_dir={folder}"]
    call(monkeypatch, train, *arguments)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["selected_update"], summary["updates"]) == (2, 4)
    equal = [all(torch.equal(tested[0][k], v) for k, v in at.items()) for at in evaluated]
    assert (equal[0], equal[2], equal[4]) == (False, True, False)
    assert summary["baseline_costs"]["(s, S) rule"] > 0
    assert "(s, S) rule" in capsys.readouterr().out
    # From another directory, evaluation finds the file and the policy again, and changes nothing.
    monkeypatch.chdir(ROOT)
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    capsys.readouterr()
    call(monkeypatch, evaluate, str(folder))
    assert f"{summary['test_cost']:.4f}" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_the_generator_reproduces_the_sample():
    script = SAMPLE.with_name("generate_demand.py")
    assert runpy.run_path(str(script))["generate"]() == SAMPLE.read_text()
