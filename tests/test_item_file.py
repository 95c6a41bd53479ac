"""Conditions by item: a table of items, lead times and features of each, and rules with them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shrunk import SMALL, TINY

import hpo_torchrl
from hpo_torchrl import load_run
from hpo_torchrl.envs import certify
from hpo_torchrl.experiments.cli import data, evaluate, order, train
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import Record
from hpo_torchrl.problems.inventory.details import item_details
from hpo_torchrl.problems.inventory.lead_times import RandomLeadTimes
from hpo_torchrl.problems.inventory.optima import recorded_demand
from hpo_torchrl.problems.inventory.optima.recorded_demand import RecordedItems
from hpo_torchrl.problems.inventory.order_costs import AllUnitsDiscount, FixedCost, ItemFixedCost
from hpo_torchrl.problems.inventory.order_quantities import Budget, MinimumOrder, Packs, Storage
from hpo_torchrl.problems.inventory.rules import TotalDemandPolicy
from hpo_torchrl.training import Evaluation

H, P, V = [1.0, 0.7, 1.3], [9.0, 6.3, 11.7], [0.5, 0.0, 2.0]


def accepted(asked, position, minimum=(), size=(), budget=math.inf, capacity=math.inf, volume=()):
    """What is delivered of an order, in plain numbers."""
    n = len(asked)
    given = [q if q >= (minimum or [0.0] * n)[i] else 0.0 for i, q in enumerate(asked)]
    for i, z in enumerate(size):
        given[i] = math.ceil(given[i] / z - 1e-3) * z if z and given[i] else given[i]
    money = sum(v * q for v, q in zip(V, given, strict=False))
    given = [q * min(1.0, budget / money) if money else q for q in given]
    w = volume or [1.0] * n
    room = max(0.0, capacity - sum(a * max(x, 0.0) for a, x in zip(w, position, strict=True)))
    space = sum(a * q for a, q in zip(w, given, strict=True))
    return [q * min(1.0, room / space) if space else q for q in given]


def slow_play(lead, lost, asked, demand, start, K=20.0, k=(0, 0, 0), decide=None, **how):
    """On hand and cost by period of one instance: orders are kept with the day that they come."""
    n, on_hand, coming = len(lead), list(start), [dict[int, float]() for _ in lead]
    found = []
    for t, wanted in enumerate(demand):
        position = [x + sum(due.values()) for x, due in zip(on_hand, coming, strict=True)]
        quantity = accepted(asked[t] if decide is None else decide(position), position, **how)
        cost = K * any(q > 0 for q in quantity)
        for i in range(n):
            cost += k[i] * (quantity[i] > 0) + V[i] * quantity[i]
            coming[i][t + lead[i]] = quantity[i]
            on_hand[i] += coming[i].pop(t, 0.0) - wanted[i]
            cost += H[i] * max(on_hand[i], 0.0) + P[i] * max(-on_hand[i], 0.0)
            on_hand[i] = max(on_hand[i], 0.0) if lost else on_hand[i]
        found.append((on_hand.copy(), cost))
    return found


CONDITIONS = {
    "plain": ([FixedCost(20.0)], {}),
    "minimum": (
        [FixedCost(20.0), MinimumOrder([12.0, 0.0, 7.0]), ItemFixedCost([3.0, 0.0, 5.0])],
        {"minimum": [12.0, 0.0, 7.0], "k": (3.0, 0.0, 5.0)},
    ),
    "packs": (
        [Packs([6.0, 0.0, 2.5]), MinimumOrder(8.0), FixedCost(20.0)],
        {"minimum": [8.0] * 3, "size": [6.0, 0.0, 2.5]},
    ),
    "limits": (
        [FixedCost(20.0), Budget(30.0), Storage(90.0, [1.0, 2.0, 0.5])],
        {"budget": 30.0, "capacity": 90.0, "volume": [1.0, 2.0, 0.5]},
    ),
}


def both(name, lead, lost, slow_lead=None, **form):
    """Costs by period of the environment and of the slow simulation."""
    features, how = CONDITIONS[name]
    env = InventoryEnv(
        3, lead, 10.0, H, P, V, lost_sales=lost, features=features, batch_size=1,
        dtype=torch.float64, **form,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    asked = rng.uniform(0, 25, (25, 3)) * (rng.random((25, 3)) < 0.6)
    demand, start = rng.poisson(8.0, (25, 3)).astype(float), [20.0, -3.0 * (not lost), 15.0]
    stock = torch.zeros(env.state_spec["inventory"].shape, dtype=torch.float64)
    stock[0, :, 0] = torch.tensor(start)
    state, fast = {"inventory": stock, "step": torch.zeros(1, 1).long()}, []
    for quantity, wanted in zip(asked, demand, strict=True):
        action = env.ordering.encoded(torch.from_numpy(quantity).unsqueeze(0))
        if env.ordering.simple:
            ordering = (action["continuous"].sum(-1) > 0).long()
            action = {"discrete": ordering, "continuous": action["continuous"]}
        state, reward, _ = env.advance(state, action, torch.from_numpy(wanted).unsqueeze(0))
        fast.append(-float(reward))
    slow = slow_play(slow_lead or lead, lost, asked, demand, start, **how)
    return np.array(fast), np.array([cost for _, cost in slow]), env


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("lead", [[0, 2, 1], [1, 1, 3], [0, 0, 4], [2, 2, 2]])
@pytest.mark.parametrize("name", CONDITIONS)
def test_orders_arrive_and_cost_what_a_slow_simulation_says(name, lead, lost):
    for hybrid in (True, False):
        fast, slow, env = both(name, lead, lost, hybrid=hybrid)
        assert fast == pytest.approx(slow, abs=1e-9)
        assert env.lead_times.tolist() == lead
    fast, late, _ = both(name, lead, lost, [lead[0], lead[1] + 1, lead[2]])
    assert np.abs(fast - late).max() > 1.0  # a period too late is seen


def test_random_lead_times_are_the_observed_ones_and_orders_may_cross(tmp_path):
    seen = [[1, 2, 2], [4], [3, 1, 3, 3]]
    features = [FixedCost(20.0), RandomLeadTimes(seen)]
    env = InventoryEnv(3, features=features, batch_size=400, seed=0, dtype=torch.float64)
    assert env.lead_time == 4
    noise = env.sample_noise(30, env.reset())
    assert noise.shape == (400, 30, 6)
    assert certify(env).exact
    orders = torch.randint(0, 20, (30, 3), generator=torch.Generator().manual_seed(1)).double()
    state = {"inventory": torch.zeros(400, 3, 4).double(), "step": torch.zeros(400, 1).long()}
    arrived, slow = torch.zeros(400, 34, 3).double(), torch.zeros(400, 3).double()
    counts = torch.zeros(3, 5)
    for t in range(30):
        rows = orders[t].expand(400, 3)
        state, reward, _ = env.advance(state, env.ordering.encoded(rows), noise[:, t])
        # A slow account: on hand, what the draws say of this order, and its cost.
        slow = slow - noise[:, t, :3]
        cost = slow.clamp_min(0).sum(-1) + 9 * (-slow).clamp_min(0).sum(-1)
        torch.testing.assert_close(-reward.squeeze(-1), cost + 20.0 * float(orders[t].sum() > 0))
        for item, observed in enumerate(seen):
            for row in range(400):
                L = observed[int(noise[row, t, 3 + item] * len(observed))]
                counts[item, L] += 1
                arrived[row, t + L - 1, item] += orders[t, item]
        slow = slow + arrived[:, t]
        torch.testing.assert_close(state["inventory"][..., 0], slow)
    shares = counts / counts.sum(-1, keepdim=True)
    expected = torch.tensor([[0, 1, 2, 0, 0], [0, 0, 0, 0, 3], [0, 0.75, 0, 2.25, 0]]) / 3
    assert (shares - expected).abs().max() < 0.02
    # All items of an order together; a gradient passes; a policy learns on it.
    together = [FixedCost(20.0), RandomLeadTimes([1, 3])]
    env = InventoryEnv(2, features=together, batch_size=16, initial_state="stationary", seed=0)
    assert env.sample_noise(5, env.reset()).shape == (16, 5, 3)
    run = hpo_torchrl.train(env, folder=tmp_path / "run", num_updates=2, progress=False)
    assert run.summary["test_cost"] > 0
    test = Evaluation(env, num_steps=20, skip=5, seed=0)
    with pytest.raises(ValueError, match="these orders have others: RandomLeadTimes"):
        item_details(test, run.policy.module)
    for wrong in ([], [[1], []], [0, 2], [1.5]):
        with pytest.raises((ValueError, TypeError), match=r"RandomLeadTimes\.periods"):
            RandomLeadTimes(wrong)
    with pytest.raises(ValueError, match="expected num_items=2 entries, got 3"):
        InventoryEnv(2, features=[RandomLeadTimes(seen)])


def test_starts_hold_nothing_that_an_item_could_not_await():
    env = InventoryEnv(3, [0, 1, 3], batch_size=500, initial_state="random", seed=1)
    stock = env.reset()["inventory"]
    assert (stock[:, :2, 1:] == 0).all()
    assert (stock[:, 2, 1:] > 0).any(0).all()
    env = InventoryEnv(3, [0, 1, 3], batch_size=50, initial_state="stationary", seed=1)
    assert (env.reset()["inventory"][:, :2, 1:] == 0).all()


def test_lead_times_that_are_none_are_refused():
    for lead, error, words in [
        ([1, 2], ValueError, r"expected num_items=3 entries, got 2: \[1, 2\]"),
        ([1, -2, 3], ValueError, r"lead_time\[1\] must be an integer >= 0"),
        ([1, 2.5, 3], TypeError, r"lead_time\[1\] must be an integer"),
        ("poisson", TypeError, "lead_time must be an integer"),
    ]:
        with pytest.raises(error, match=words):
            InventoryEnv(3, lead)
    with pytest.raises(ValueError, match="2 different names"):
        InventoryEnv(2, items=["bolt", "bolt"])


# -- rules on a record ---------------------------------------------------------------------------


def record_of(features, lead, lost, length=40, n=3, **more):
    demand = np.random.default_rng(7).poisson([4.0, 2.0, 3.0][:n], (length, n)).astype(float)
    record, costs = Record(demand, history=1), (row[:n] for row in (H, P, V))
    names = ("holding_cost", "shortage_cost", "procurement_cost")
    given = dict(zip(names, costs, strict=True)) | more
    return InventoryEnv(
        n, lead, record, features=features, lost_sales=lost, batch_size=2, **given,
        initial_state="stationary", dtype=torch.float64, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("lead", [[0, 2, 1], [1, 1, 3]])
@pytest.mark.parametrize("name", CONDITIONS)
def test_a_rule_costs_on_a_record_what_a_slow_simulation_says(name, lead, lost):
    features, how = CONDITIONS[name]
    record = RecordedItems.of(record_of(features, lead, lost))
    for Q, *S in [(17.0, 30.0, 20.0, 25.0), (40.0, 45.0, 12.0, 22.0), (1.0, 9.0, 9.0, 9.0)]:

        def rule(position, Q=Q, S=S):
            missing = [level - x for level, x in zip(S, position, strict=True)]
            return [max(q, 0.0) * (sum(missing) >= Q) for q in missing]

        found = slow_play(lead, lost, None, record.demand.tolist(), S, decide=rule, **how)
        cost = np.mean([cost for _, cost in found[record.warm_up :]])
        assert TotalDemandPolicy(Q, S).cost(record) == pytest.approx(cost)


def test_the_rule_for_lead_times_by_item_is_the_best_of_all():
    """With backlog and a joint cost alone, of all whole rules."""
    demand = np.random.default_rng(2).poisson([2.0, 1.0], (30, 2)).astype(float)
    record = RecordedItems(demand, [1.0, 0.5], [4.0, 6.0], 8.0, [0, 2], warm_up=4)
    found = TotalDemandPolicy.optimum(record)
    rules = np.array([*itertools.product(range(1, 16), range(16), range(16))], float)
    assert found.cost == pytest.approx(record.simulate(rules[:, 0], rules[:, 1:]).min())
    late = RecordedItems(demand, [1.0, 0.5], [4.0, 6.0], 8.0, [1, 2], warm_up=4)
    assert TotalDemandPolicy.optimum(late).cost != pytest.approx(found.cost)


@pytest.mark.parametrize(
    ("features", "lead", "lost"),
    [
        ([FixedCost(15.0), MinimumOrder(9.0), ItemFixedCost([2.0, 4.0])], [1, 2], False),
        ([FixedCost(15.0), Packs([4.0, 3.0])], [0, 2], False),
        ([FixedCost(15.0), Storage(14.0, [1.0, 2.0])], [1, 1], True),
    ],
)
def test_the_rule_with_features_beats_a_grid_of_others_and_runs(features, lead, lost):
    env = record_of(features, lead, lost, n=2, length=30)
    record, rule = RecordedItems.of(env), env.rules()["s_S"]()
    grid = np.array([*itertools.product(range(1, 22, 4), range(0, 25, 3), range(0, 25, 3))], float)
    assert rule.cost(record) <= record.simulate(grid[:, 0], grid[:, 1:]).min() + 1e-9
    # In the environment, with its discrete actions, it costs the same.
    state = {"inventory": torch.zeros(env.state_spec["inventory"].shape, dtype=torch.float64)}
    state |= {"inventory": state["inventory"].clone(), "step": torch.zeros(2, 1).long()}
    state["inventory"][..., 0] = rule.S
    costs = []
    for row in torch.from_numpy(record.demand):
        discrete, continuous = rule.decide(state["inventory"])
        action = {"discrete": discrete, "continuous": continuous}
        state, reward, _ = env.advance(state, action, row.expand(2, -1))
        costs.append(-float(reward[0]))
    assert np.mean(costs[record.warm_up :]) == pytest.approx(rule.cost(record))
    test = Evaluation(env, num_steps=20, skip=5, seed=0)
    assert test.reference().baselines["(s, S) rule"] == pytest.approx(test.run(rule).mean)


def test_a_level_below_the_minimum_is_no_gift():
    """With lost sales such an item is never ordered, and would live on the stock of the start."""
    env = record_of([FixedCost(5.0), MinimumOrder(60.0)], 1, True, n=2, length=24)
    record = RecordedItems.of(env)
    best = TotalDemandPolicy.optimum(record)
    levels = best.policy.S.numpy()
    assert ((levels <= 0) | (levels >= 60)).all()
    gift = record.simulate(np.array([1.0]), np.array([[59.0, 59.0]]))[0]
    assert gift < best.cost  # if it were one of the rules


# -- the file ------------------------------------------------------------------------------------

SALES = {"bolt": 4, "nut": 11, "rod": 2}
TABLE = """item;lead_time;minimum_order;pack_size;item_fixed_cost;Holding_Cost;volume
nut;1;;12;;0.5;1
rod;3;8;;2;;
bolt;;5.5;2.5;;2;3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(0)
    rows = [f"{t},{item},{rng.poisson(mean)}" for t in range(60) for item, mean in SALES.items()]
    (found / "sales.csv").write_text("\n".join(["period,item,demand", *rows]))
    (found / "items.csv").write_text(TABLE)
    return found


def test_a_table_gives_what_it_says_and_leaves_the_rest(folder):
    storage = {"name": "storage", "capacity": 500.0}
    arguments = {"features": [FixedCost(9.0), storage], "holding_cost": [1.0, 7.0, 3.0]}
    text = "\n".join(line.rsplit(";", 4)[0] + ";" + ";".join(line.split(";")[4:])
                     for line in TABLE.splitlines())  # fmt: skip
    path = folder / "without_packs.csv"
    path.write_text(text)  # which a shared storage would break
    env = InventoryEnv.from_file(folder / "sales.csv", items=path, history=2, **arguments)
    assert env.item_names == ["bolt", "nut", "rod"]  # in the order of the demand
    assert env.lead_times.tolist() == [2, 1, 3]
    assert env.holding_cost.tolist() == [2.0, 0.5, 3.0]
    by = {type(feature): feature for feature in env.features}
    assert by[MinimumOrder].minimum == [5.5, 0.0, 8.0]
    assert by[ItemFixedCost].cost == [0.0, 0.0, 2.0]
    assert by[Storage].volumes == [3.0, 1.0, 1.0]
    assert env.original.lead_times.tolist() == [2, 1, 3]


def test_a_table_with_simulated_demand(tmp_path):
    rows = {"item": ["a", "b"], "mean_demand": [4.0, 11.0], "price": [2, 3], "lead_time": [0, 2]}
    pd.DataFrame(rows).to_csv(tmp_path / "items.csv", index=False)
    features = [{"name": "fixed_cost", "cost": 5.0}, {"name": "profit"}]
    normal = {"name": "normal", "deviation": 1.0}
    env = InventoryEnv(items=tmp_path / "items.csv", demand=normal, features=features)
    assert env.demand_mean.tolist() == [4.0, 11.0]
    assert env.features[1].price == [2.0, 3.0]
    pytest.importorskip("pyarrow")
    pd.DataFrame(rows).to_parquet(tmp_path / "items.parquet")
    other = InventoryEnv(items=str(tmp_path / "items.parquet"), demand=normal, features=features)
    assert (other.item_names, other.lead_times.tolist()) == (["a", "b"], [0, 2])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("item,lead_tme\nbolt,1\n", "'lead_tme' is unknown.*Did you mean 'lead_time'"),
        ("items,lead_time\nbolt,1\n", "'item' is missing.*Did you mean 'items'"),
        ("item,lead_time,lead_time\nbolt,1,2\n", "'lead_time' is there twice"),
        ("item,lead_time\nbolt,1\nnut,2\n", "lacks items of the demand: rod"),
        ("item,lead_time\nbolt,1\nnut,2\nrod,1\nnut,3\n", "line 5: item 'nut' is in line 3"),
        ("item,lead_time\nbolt,1\nnit,2\nrod,1\n", "line 3: item 'nit' is not.*mean 'nut'"),
        ("item,lead_time\nbolt,1\nnut,2.5\nrod,1\n", "line 3: lead_time must be a whole.*'2.5'"),
        ("item,pack_size\nbolt,many\nnut,-2\nrod,1\n", "line 2: .*'many'.*line 3: .*'-2'"),
        ("item,mean_demand\nbolt,1\nnut,2\nrod,1\n", "mean_demand of .* is of simulated demand"),
        ("item,price\nbolt,1\nnut,2\nrod,1\n", "'price'.* is for the feature profit"),
        ("item,volume\nbolt,1\nnut,2\nrod,1\n", "'volume'.* is for the feature storage"),
        ("item,minimum_order\nbolt,1\nnut,2\nrod,1\n", "MinimumOrder is among the features"),
        ("item,lead_time\n", "holds no rows"),
    ],
)
def test_a_table_that_is_none_is_refused(folder, table, words):
    path = folder / "wrong.csv"
    path.write_text(table)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        InventoryEnv.from_file(
            folder / "sales.csv", items=path, history=2, features=[MinimumOrder(3.0)]
        )


def test_numbers_of_items_that_disagree_are_refused(folder):
    with pytest.raises(ValueError, match=r"num_items=2, but .*items.csv has 3 items"):
        InventoryEnv(2, items=folder / "items.csv")


# -- the commands --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick():
    """No grid is among the starts of a rule's search: what the commands do with it is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded_demand, "_FEW_OTHERS", 0)
        yield


@pytest.fixture(scope="module")
def run(folder, quick):
    text = "\n".join(line.rsplit(";", 1)[0] for line in TABLE.splitlines())
    (folder / "terms.csv").write_text(text)
    named = [f"env.path={folder / 'sales.csv'}", f"env.items={folder / 'terms.csv'}"]
    small = [*TINY, "trainer.num_updates=2", "env.history=2", f"output_dir={folder / 'run'}"]
    train(["env=inventory_from_file", *named, *small])
    return folder / "run"


def test_a_run_of_a_table_orders_in_packs_and_no_less_than_is_accepted(run, folder, capsys):
    stock = {"item": ["rod", "nut", "bolt"], "on_hand": [-1.0, -30.0, -2.0]}
    pd.DataFrame(stock).to_csv(folder / "stock.csv", index=False)
    order([str(run), "--stock", str(folder / "stock.csv"), "--out", str(folder / "out.csv")])
    found = pd.read_csv(folder / "out.csv").set_index("item")
    assert found.loc["nut", "rule_order"] > 0
    for name in ("order", "rule_order"):
        bolt, nut, rod = found.loc[["bolt", "nut", "rod"], name]
        assert nut % 12 == bolt % 2.5 == 0
        assert bolt == 0 or bolt >= 5.5
        assert rod == 0 or (rod >= 8 and rod == round(rod))
    assert load_run(run).summary["record"]["test"]["rule_cost"] > 0
    capsys.readouterr()
    evaluate([str(run), "--details", str(folder / "details")])
    table = pd.read_csv(folder / "details" / "items.csv").set_index(["policy", "item"])
    summary = load_run(run).summary
    assert table.loc[("policy", "all items"), "cost"] / 3 == pytest.approx(summary["test_cost"])
    each = table.loc["rule"].drop("all items")
    assert each["fixed"].tolist()[:2] == [0.0, 0.0]
    assert each.loc["rod", "fixed"] == pytest.approx(2.0 * each.loc["rod", "orders"])


def test_a_feature_and_lead_times_serve_a_file_from_the_command_line(folder, quick, capsys):
    """And no fixed cost need be taken back by hand."""
    settings = [
        f"env.path={folder / 'sales.csv'}",
        "env.features=[{name: minimum_order, minimum: 20}]",
        "env.lead_time=[1,2,1]",
    ]
    train(["env=inventory_from_file", *settings, *TINY, "env.history=2",
           "trainer.num_updates=2", f"output_dir={folder / 'feature'}"])  # fmt: skip
    assert "recommended" in capsys.readouterr().out
    env = load_run(folder / "feature").policy.env
    assert str(env.pieces) == "each item: {0} [20, inf)"
    data([str(folder / "sales.csv"), "lead_time=[1,2,1]"])
    assert "items     3" in capsys.readouterr().out


def test_a_table_serves_simulated_demand_from_the_command_line(folder):
    (folder / "means.csv").write_text("item,mean_demand,lead_time\na,4,1\nb,6,2\n")
    train(["env=inventory", f"env.items={folder / 'means.csv'}", *SMALL,
           "trainer.num_updates=2", f"output_dir={folder / 'means'}"])  # fmt: skip
    assert load_run(folder / "means").policy.env.item_names == ["a", "b"]


class Scripted(RulePolicy):
    """Orders what is drawn beforehand, by the step of the episode."""

    in_keys = ["step"]  # noqa: RUF012

    def __init__(self, env, asked):
        super().__init__()
        self.env, self.asked = env, asked

    def decide(self, *state):
        return (*self.env.ordering.encoded(self.asked[state[0].squeeze(-1)]).values(),)


@pytest.mark.parametrize("name", ["minimum", "packs"])
def test_details_by_item_are_an_independent_recount(name):
    features, how = CONDITIONS[name]
    lead, demand = [0, 3, 1], np.random.default_rng(4).poisson(4.0, (20, 3)).astype(float)
    env = InventoryEnv(
        3, lead, Record(demand, start_period="first"), H, P, V, features=features, batch_size=1,
        dtype=torch.float64,
    )  # fmt: skip
    asked = np.random.default_rng(5).uniform(0, 20, (20, 3))
    test = Evaluation(env, num_steps=20, skip=6, seed=0)
    found = item_details(test, Scripted(env, torch.from_numpy(asked))).set_index("item")
    slow = slow_play(lead, False, asked, demand, [0.0] * 3, **how)
    cost = np.mean([cost for _, cost in slow[6:]])
    assert found.loc["all items", "cost"] == pytest.approx(cost)
    stock = np.mean([np.maximum(on_hand, 0) for on_hand, _ in slow[6:]], axis=0)
    assert found["stock"].tolist()[:3] == pytest.approx(stock.tolist())
    other = record_of([AllUnitsDiscount([9.0], [2.0, 1.0])], 1, False)
    test = Evaluation(other, num_steps=9, seed=0)
    with pytest.raises(ValueError, match="these orders have others: AllUnitsDiscount"):
        item_details(test, Scripted(other, torch.from_numpy(asked)))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0, 60),
    st.sampled_from([0.0, 1.0, 2.5, 12.0]),
    st.sampled_from([0.0, 5.5, 20.0, 30.0]),
)
def test_orders_in_packs_are_the_nearest_that_are_accepted(units, pack, minimum):
    features = [FixedCost(1.0), *([MinimumOrder(minimum)] if minimum else [])]
    env = InventoryEnv(1, features=features)
    found = env.ordering.rounded(np.array([units]), np.array([pack]))[0]
    if pack == 0:
        assert found == units
        return
    choices = [k * pack for k in range(99) if k * pack >= minimum or k == 0]
    near = min(choices[1:], key=lambda x: abs(x - units))
    assert found in (0.0, near) or abs(found - units) == pytest.approx(abs(near - units))
    assert (found == 0) == (round(units / pack) == 0)
