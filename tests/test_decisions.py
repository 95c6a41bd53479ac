"""Orders for today: what the command writes is what the policy and the rule would do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from shrunk import TINY

from hpo_torchrl import load_run
from hpo_torchrl.experiments.cli import evaluate, order, train
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.inventory.decision import decide_orders
from hpo_torchrl.problems.inventory.details import item_details
from hpo_torchrl.problems.inventory.rules import TotalDemandPolicy
from hpo_torchrl.reporting import recommendation
from hpo_torchrl.training import Evaluation


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A policy of two items, lead time 3, trained for a moment on a file."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    rows = [f"{t},{item},{rng.poisson(mean)}" for t in range(120) for item, mean in ITEMS.items()]
    (folder / "sales.csv").write_text("\n".join(["period,item,demand", *rows]))
    arguments = [f"env.path={folder / 'sales.csv'}", "env.lead_time=3", "env.history=4"]
    arguments += [*TINY, "trainer.num_updates=3", f"output_dir={folder / 'run'}"]
    train(["env=inventory_from_file", *arguments])
    return folder / "run"


ITEMS = {"bolt": 4, "nut": 11}
STOCK = {
    "item": ["nut", "bolt"],
    "on_hand": [-3, 5],
    "arriving_1": [0, 2],
    "arriving_2": [20, 0],
}


def test_orders_are_those_of_the_policy_and_of_the_rule(run, tmp_path, capsys):
    stock, out = tmp_path / "stock.csv", tmp_path / "orders.csv"
    pd.DataFrame(STOCK).to_csv(stock, index=False)
    order([str(run), "--stock", str(stock), "--out", str(out)])
    found = pd.read_csv(out).set_index("item")
    # Anew: the state put together by hand, the net asked for its mean, the rule as it is written.
    trained = load_run(run)
    env, rule = trained.policy.env, TotalDemandPolicy.best(trained.policy.env)
    inventory = torch.tensor([[5.0, 2, 0], [-3, 0, 20]])
    recent = (env.record[-4:] / env.demand_mean).mT.flatten()
    observation = torch.cat([(inventory / env.demand_mean[:, None]).flatten(), recent]).float()
    d, u = (trained.policy(observation)[key] for key in ("discrete", "continuous"))
    expected = (int(d) * u.clamp_min(0)).round()
    assert found["order"].tolist() == expected.tolist()
    position = inventory.sum(-1)
    lacking = rule.S - position
    units = lacking.clamp_min(0).round() * float(lacking.sum() >= rule.Q)
    assert found["rule_order"].tolist() == units.tolist()
    assert found["arriving"].tolist() == [2, 20]
    assert found["position"].tolist() == (position + expected).tolist()
    shown = capsys.readouterr().out
    assert "bolt" in shown
    assert "recommended" in shown
    assert recommendation(trained.summary) in shown


def test_orders_are_whole_packs_and_come_as_excel(run, tmp_path):
    pytest.importorskip("openpyxl")
    stock, out = tmp_path / "stock.xlsx", tmp_path / "orders.xlsx"
    low = STOCK | {"on_hand": [-60, -40], "pack": [12, 5]}
    pd.DataFrame(low).to_excel(stock, index=False)
    order([str(run), "--stock", str(stock), "--out", str(out)])
    found = pd.read_excel(out).set_index("item")
    assert found.loc["nut", "rule_order"] > 0
    for name in ("order", "rule_order"):
        assert found.loc["nut", name] % 12 == found.loc["bolt", name] % 5 == 0
    pd.testing.assert_frame_equal(
        load_run(run).decide(low).reset_index(drop=True),
        found.reset_index(),
        check_dtype=False,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"item": ["nut", "blot"]}, "lacks items: bolt"),
        ({"item": ["nut", "nut"]}, "lacks items: bolt"),
        ({"on_hand": [1, "many"]}, "on_hand of item bolt must be a number, got 'many'"),
        ({"arriving_1": [-1, 0]}, "arriving_1 of item nut must be a number >= 0"),
        ({"pack": [0, 1]}, "pack of item nut must be a number > 0"),
        ({"ariving_1": [0, 1]}, "'ariving_1', which is unknown.* Did you mean 'arriving_1'"),
        ({"on_hand": None}, "needs the column 'on_hand'"),
    ],
)
def test_a_stock_that_is_none_is_refused(run, change, words):
    stock = {key: value for key, value in (STOCK | change).items() if value is not None}
    with pytest.raises(ValueError, match=f"(?s){words}"):
        load_run(run).decide(stock)


def test_environments_without_a_record_decide_too():
    env = InventoryEnv(num_items=2, lead_time=1)

    def never(state):
        return {"discrete": torch.tensor(0), "continuous": torch.ones(2)}

    found = decide_orders(env, never, {"on_hand": [-50, 8.0]})
    rule = TotalDemandPolicy.best(env)
    lacking = rule.S - torch.tensor([-50.0, 8.0])
    assert found["order"].tolist() == [0, 0]
    assert found["rule_order"].tolist() == (lacking * (lacking.sum() >= rule.Q)).tolist()
    assert not hasattr(SwitchedLQREnv, "decide")


def test_the_better_of_both_on_dev_is_recommended():
    def of(cost, rule):
        return recommendation({"record": {"dev": {"rule_cost": rule}}, "dev_cost": cost})

    assert "the policy" in of(9.0, 10.0)
    assert "10.0% less than the rule" in of(9.0, 10.0)
    assert "the (s, S) rule" in of(11.0, 10.0)
    assert "%" not in of(0.0, 0.0)
    assert recommendation({"record": {}}) == ""


def recount(test, rule):
    """Service and costs of one item under a rule, step by step, in plain numbers."""
    env = test.env
    env.set_seed(test.seed)
    start = env.reset()
    state = start.select(*env.state_names).to_dict()
    noise = torch.cat([env.sample_noise(steps, state) for _, steps in test.pieces()], 1)
    cycles, spoilt, met, asked, costs = 0, 0, 0.0, 0.0, np.zeros(4)
    h, p, v = (float(x) for x in (env.holding_cost, env.shortage_cost, env.procurement_cost))
    for instance in range(len(start)):
        stock = start["inventory"][instance, 0].tolist()
        bad = None  # until a first arrival
        for t, d in enumerate(noise[instance, :, 0].tolist()):
            lacking = float(rule.S[0]) - sum(stock)
            order = max(lacking, 0.0) if lacking >= rule.Q else 0.0
            if env.lead_time == 0:
                stock[0] += order
            arrives, level = stock[1] if len(stock) > 1 else order, stock[0] - d
            if t >= test.skip:
                met, asked = met + min(d, max(stock[0], 0.0)), asked + d
                costs += [h * max(level, 0), p * max(-level, 0), v * order, 0.0]
                costs[3] += env.fixed_cost * (lacking >= rule.Q)
                if env.lead_time > 0 and bad is not None:
                    bad = bad or level < 0
                if arrives > 0:
                    cycles, spoilt = (cycles, spoilt) if bad is None else (cycles + 1, spoilt + bad)
                    bad = False
                if env.lead_time == 0 and bad is not None:
                    bad = bad or level < 0
            level = max(level, 0.0) if env.lost_sales else level
            stock = [level] if env.lead_time == 0 else [level + arrives, *stock[2:], order]
            stock = [level + order] if env.lead_time == 1 else stock
    return met / asked, 1 - spoilt / cycles, costs / (len(start) * (test.num_steps - test.skip))


@pytest.mark.parametrize(
    ("lead_time", "lost_sales", "Q"), [(0, False, 12), (1, True, 20), (2, False, 9), (3, True, 15)]
)
def test_details_are_an_independent_recount(lead_time, lost_sales, Q):
    demand = {"name": "poisson", "mean": 4.0}
    env = InventoryEnv(
        1, lead_time, demand, procurement_cost=0.7, lost_sales=lost_sales, batch_size=3,
        initial_state="stationary", dtype=torch.float64,
    )  # fmt: skip
    test, rule = Evaluation(env, num_steps=60, skip=7, seed=1), TotalDemandPolicy(Q, 22)
    found = item_details(test, rule).set_index("item").loc["all items"]
    fill, service, costs = recount(test, rule)
    assert found["fill_rate"] == pytest.approx(fill)
    assert found["cycle_service"] == pytest.approx(service)
    names = ["holding", "shortage", "purchase", "fixed"]
    assert found[names].tolist() == pytest.approx(costs.tolist())
    assert found["cost"] == pytest.approx(test.run(rule).mean)


def test_details_of_a_run_say_what_its_test_costs(run, tmp_path, capsys):
    evaluate([str(run), "--details", str(tmp_path / "out")])
    assert "cycle_service" in capsys.readouterr().out
    assert (tmp_path / "out" / "stock.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "out" / "items.csv").set_index(["policy", "item"])
    summary = load_run(run).summary
    assert table.loc[("policy", "all items"), "cost"] / 2 == pytest.approx(summary["test_cost"])
    rule = summary["record"]["test"]["rule_cost"]
    assert table.loc[("rule", "all items"), "cost"] / 2 == pytest.approx(rule)
    each = table.loc["policy"].drop("all items")
    assert each["holding"].sum() == pytest.approx(table.loc[("policy", "all items"), "holding"])
    assert [*each.index] == [*ITEMS]
