"""One policy for a family of items: each env instance against the item alone, and exact costs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from shrunk import TINY
from torch.autograd.gradcheck import gradcheck
from torchrl.envs.utils import check_env_specs

from hpo_torchrl import load_run
from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.experiments.cli import order, train
from hpo_torchrl.modules import HybridPolicy, RulePolicy
from hpo_torchrl.problems import InventoryEnv, InventoryFamily
from hpo_torchrl.problems.inventory.family import NUMBERS, Rough
from hpo_torchrl.problems.inventory.family_costs import ItemPolicy, compare_items, item_costs
from hpo_torchrl.problems.inventory.learned_levels import LearnedLevels
from hpo_torchrl.problems.inventory.optima.position_policy import position_policy_cost
from hpo_torchrl.problems.inventory.optima.s_S import optimal_s_S, s_S_cost
from hpo_torchrl.training import Evaluation


def items(**numbers):
    """A start in double precision: columns of numbers, with stock and pipeline if given."""
    rows = {name: torch.tensor(numbers[name], dtype=torch.float64)[:, None] for name in NUMBERS}
    return rows


FIVE = items(
    demand_mean=[3.0, 7.5, 12.0, 20.0, 30.0],
    holding_cost=[1.0, 0.5, 2.0, 1.0, 1.0],
    shortage_cost=[2.0, 9.0, 30.0, 4.0, 40.0],
    fixed_cost=[0.0, 300.0, 64.0, 5.0, 150.0],
    lead_time=[0.0, 1.0, 2.0, 3.0, 4.0],
)


def family(**arguments):
    return InventoryFamily(**{"batch_size": 5, "dtype": torch.float64, "seed": 0} | arguments)


def test_the_specs_hold():
    check_env_specs(family())


def test_an_instance_is_the_item_alone():
    """The same demand and orders, of all lead times: states and costs of plain environments."""
    env, generator = family(), torch.Generator().manual_seed(1)
    stock = torch.randint(-20, 60, (5, 1, 4), generator=generator).double()
    stock[:, 0, 1:] *= torch.arange(1, 4) < FIVE["lead_time"]  # of its own pipeline
    stock[..., 1:].abs_()
    state = {**FIVE, "inventory": stock}
    plain = {}
    for i in range(5):
        numbers = {name: float(FIVE[name][i]) for name in NUMBERS}
        plain[i] = InventoryEnv(
            1,
            int(numbers["lead_time"]),
            numbers["demand_mean"],
            numbers["holding_cost"],
            numbers["shortage_cost"],
            fixed_cost_per_item=numbers["fixed_cost"],
            dtype=torch.float64,
        )
    alone = {i: {"inventory": stock[i, :, : max(1, i)]} for i in range(5)}
    demand = env.sample_noise(12, state)
    rough = Rough.of(state)
    for t in range(12):
        discrete = torch.randint(3, (5,), generator=generator)
        lots = 2 * torch.rand(5, 1, generator=generator, dtype=torch.float64)
        middle = rough.level + rough.safety * rough.deviation + FIVE["demand_mean"] / 2
        below = lots * (FIVE["demand_mean"] + rough.deviation) / 2
        levels = torch.where(discrete[:, None] == 1, middle - below, middle + lots * rough.lot)
        units = (levels - state["inventory"].sum(-1)).clamp_min(0.0)
        state, reward = env.dynamics(
            state, {"discrete": discrete, "continuous": lots}, demand[:, t]
        )
        for i in range(5):
            action = {"discrete": (discrete[i] > 0).long(), "continuous": units[i]}
            alone[i], expected = plain[i].dynamics(alone[i], action, demand[i, t])
            torch.testing.assert_close(reward[i] * rough.cost[i, 0], expected)
            slots = max(1, i)
            torch.testing.assert_close(state["inventory"][i, :, :slots], alone[i]["inventory"])
            assert not state["inventory"][i, :, slots:].any()
        assert all(torch.equal(state[name], FIVE[name]) for name in NUMBERS)


def test_gradients_are_those_of_finite_differences():
    env = family()
    start = {**env.initial_state(), **FIVE}
    demand = env.sample_noise(7, start)
    discrete = torch.randint(3, (7, 5), generator=torch.Generator().manual_seed(2))

    def total(lots):
        state, rewards = start, []
        for t in range(7):
            action = {"discrete": discrete[t], "continuous": lots[t]}
            state, reward = env.dynamics(state, action, demand[:, t])
            rewards.append(reward)
        return torch.stack([*rewards, env.observe(state).sum(-1)])

    lots = torch.rand(7, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert gradcheck(total, (lots.requires_grad_(),))


@pytest.mark.parametrize("horizon", [None, 4])
def test_both_routes_of_a_rollout_are_equal(horizon):
    """With a horizon, items are drawn anew on the way."""
    policy = HybridPolicy.for_env(family(), reads=10)

    def roll(route):
        env = family(horizon=horizon)
        start = env.reset()
        torch.manual_seed(6)
        return differentiable_rollout(env, policy, 7, tensordict=start, route=route)

    functional, general = roll("functional"), roll("general")
    for key in ("inventory", "demand_mean", "observation", ("next", "reward")):
        torch.testing.assert_close(functional[key], general[key], rtol=0, atol=0)
    changed = (functional["demand_mean"][:, 0] != functional["demand_mean"][:, -1]).all()
    assert bool(changed) == (horizon is not None)


def test_resets_draw_other_items_within_the_ranges():
    env = family(batch_size=2000, lead_time=(1, 3), fixed_cost=(10.0, 20.0))
    first, second = env.reset(), env.reset()
    assert not torch.equal(first["demand_mean"], second["demand_mean"])
    for name, (low, high) in env.ranges.items():
        found = first[name]
        assert low <= float(found.min()) <= float(found.max()) <= high, name
        # Both ends are met.
        assert float(found.min()) <= low + 0.05 * (high - low) <= high, name
        assert float(found.max()) >= high - 0.05 * (high - low), name
    assert sorted({*first["lead_time"].flatten().tolist()}) == [1.0, 2.0, 3.0]


def test_the_observation_has_no_unit_of_money_nor_the_policy_a_look_at_the_pipeline():
    env = family()
    state = {**env.initial_state(), **FIVE}
    state["inventory"][..., 1] = torch.arange(5.0).double()[:, None]
    dearer = {name: state[name] * (7.0 if name.endswith("cost") else 1.0) for name in state}
    torch.testing.assert_close(env.observe(dearer), env.observe(state))
    moved = state | {"inventory": state["inventory"].flip(-1)}
    policy = HybridPolicy.for_env(env, reads=10)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    seen, other = env.observe(state), env.observe(moved)
    assert not torch.equal(seen, other)
    for part, same in zip(policy.network(seen)[:2], policy.network(other)[:2], strict=True):
        torch.testing.assert_close(part, same)
    # All of what it reads matters.
    gradient = torch.autograd.grad(policy.network.logits(seen.requires_grad_())[:, 0].sum(), seen)[
        0
    ]
    assert (gradient[:, :10] != 0).any(0).all()
    assert not gradient[:, 10:].any()


class Shifted(ItemPolicy):
    """The optimal rule with S two units too high."""

    def _solved(self, item):
        s, S = super()._solved(item)
        return s, S + 2


def test_costs_of_a_rule_are_those_of_its_s_and_S():
    env, start = family(), {**FIVE, "inventory": torch.zeros(5, 1, 4, dtype=torch.float64)}
    table = item_costs(env, ItemPolicy(), start)
    np.testing.assert_allclose(table["gap"], 0.0, atol=1e-9)
    shifted = item_costs(env, Shifted(), start)
    for found, row in zip(shifted["cost"], shifted[[*NUMBERS]].values.tolist(), strict=True):
        *numbers, lead_time = row
        rule = optimal_s_S(*numbers, int(lead_time)).policy
        S = int(rule.S)
        expected = s_S_cost(S - int(rule.Q), S + 2, *numbers, int(lead_time))
        assert found == pytest.approx(expected, rel=1e-9)
    assert (shifted["gap"] > 1e-4).all()


class Never(RulePolicy):
    """Order nothing."""

    in_keys = ["inventory"]  # noqa: RUF012

    def decide(self, *state):
        return torch.zeros(len(state[0]), dtype=torch.int64), torch.ones(len(state[0]), 1)


def test_a_policy_that_never_orders_costs_without_end():
    env, start = family(), {**FIVE, "inventory": torch.zeros(5, 1, 4, dtype=torch.float64)}
    assert np.isinf(item_costs(env, Never(), start)["cost"]).all()


def test_the_cost_of_any_orders_is_that_of_a_long_simulation():
    """Orders that are no (s, S) rule: of 5 at some positions, none in between, up to 20 below."""
    mean, h, p, K, L, low = 4.0, 1.0, 6.0, 11.0, 2, -10
    orders = np.array([20 - x if x < 8 else 5 * (x in (9, 10, 13)) for x in range(low, 30)])
    rng, steps = np.random.default_rng(0), 400_000
    demand, position, after = rng.poisson(mean, steps + L), 10, np.empty(steps, int)
    placed = 0
    for t in range(steps):
        quantity = orders[position - low] if position >= low else 20 - position
        placed += quantity > 0
        after[t] = position + quantity
        position = after[t] - demand[t]
    met = np.lib.stride_tricks.sliding_window_view(demand, L + 1).sum(1)
    level = after - met
    cost = (h * level.clip(0) + p * (-level).clip(0)).mean() + K * placed / steps
    assert position_policy_cost(low, orders, mean, h, p, K, L) == pytest.approx(cost, rel=0.005)


@pytest.mark.parametrize("orders", [[0, 1], [], [[1]], [2, -1], [0.5]])
def test_orders_that_are_none_are_refused(orders):
    with pytest.raises(ValueError, match="whole numbers"):
        position_policy_cost(0, orders, 4, 1, 6, 11, 2)


def test_the_reference_is_the_optimal_rule_on_the_same_demand():
    test = Evaluation(family(batch_size=200), num_steps=300, skip=50, seed=3)
    known = test.reference()
    assert known.optimal_cost == test.run(ItemPolicy()).mean
    exact = item_costs(test.env, ItemPolicy(), _start(test))
    rough = Rough.of(_start(test)).cost.flatten().numpy()
    assert known.optimal_cost == pytest.approx(float((exact["optimum"] / rough).mean()), rel=0.02)
    assert known.optimal_cost < test.run(Shifted()).mean


def _start(test):
    test.env.set_seed(test.seed)
    return test.env.reset()


def test_a_short_training_is_used_on_a_table_of_items(tmp_path, capsys):
    run = tmp_path / "run"
    small = ["trainer.num_updates=40", "collect.batch_size=64", "policy.hidden=[32]"]
    small += ["evaluation.tests.test.batch_size=16", "evaluation.tests.test.num_steps=60"]
    train(["env=inventory_family", *TINY, *small, "collect.unroll_length=20", f"output_dir={run}"])
    trained = load_run(run)
    found = trained.summary["items"]
    assert 0 < found["median"] <= found["quantile_95"] <= found["quantile_99"] <= found["worst"]
    env = family(batch_size=40, dtype=torch.float32)
    start, untrained = env.reset(), HybridPolicy.for_env(env, reads=10)
    both = compare_items(
        Evaluation(env, num_steps=9, seed=0),
        {"trained": trained.policy.module, "untrained": untrained},
        tmp_path,
    )
    gaps = both.groupby("policy")["gap"].median()
    assert gaps["trained"] < 0.5 * gaps["untrained"]
    assert (tmp_path / "items.csv").exists()
    assert (tmp_path / "gaps.png").exists()

    stock = pd.DataFrame({name: start[name][:3, 0].tolist() for name in NUMBERS})
    stock = stock.assign(item=["a", "b", "c"], on_hand=[-5, 3, 400])
    stock.to_csv(tmp_path / "stock.csv", index=False)
    order([str(run), "--stock", str(tmp_path / "stock.csv"), "--out", str(tmp_path / "out.csv")])
    orders = pd.read_csv(tmp_path / "out.csv")
    state = {name: start[name][:3] for name in NUMBERS}
    state["inventory"] = torch.zeros(3, 1, 4)
    state["inventory"][:, 0, 0] = torch.tensor([-5.0, 3.0, 400.0])
    action = {key: torch.tensor(value) for key, value in trained.policy.predict(state)[0].items()}
    assert orders["order"].tolist() == env.orders(state, action).flatten().round().tolist()
    for row, given in zip(orders["rule_order"], stock.to_dict("records"), strict=True):
        numbers = [given[name] for name in NUMBERS[:-1]]
        rule = optimal_s_S(*numbers, int(given["lead_time"])).policy
        S = float(rule.S)
        assert row == (S - given["on_hand"] if given["on_hand"] <= S - rule.Q else 0)
    with pytest.raises(ValueError, match=r"fixed_cost / holding_cost must be within 0 to 300.*900"):
        trained.decide(stock.assign(fixed_cost=900.0))
    with pytest.raises(ValueError, match="needs the column 'lead_time'"):
        trained.decide(stock.drop(columns="lead_time"))
    with pytest.raises(ValueError, match="whole numbers"):
        trained.decide(stock.assign(lead_time=1.5))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"demand_mean": 10.0}, r"demand_mean must be two numbers \[low, high\], got 10.0"),
        ({"fixed_cost": [300.0, 0.0]}, r"fixed_cost\[1\] must be"),
        ({"shortage_cost": [0.0, 4.0]}, r"shortage_cost\[0\] must be"),
        ({"lead_time": [-1, 4]}, r"lead_time\[0\] must be"),
        ({"initial_state": "full"}, "initial_state"),
    ],
)
def test_ranges_that_are_none_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        family(**arguments)


def test_more_cannot_be_read_than_there_is():
    with pytest.raises(ValueError, match="reads must be at most observation_dim=14, got 15"):
        HybridPolicy.for_env(family(), reads=15)


def test_a_structured_policy_of_quantities_is_refused():
    with pytest.raises(
        ValueError, match="policy=order_up_to needs an InventoryEnv with a discrete"
    ):
        LearnedLevels.for_env(family())
