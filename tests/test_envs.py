"""The inventory environment against its equations, finite differences and exact (s, S) costs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from tensordict import TensorDict
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torchrl.envs.utils import check_env_specs

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.envs import DifferentiableEnv, certify
from hpo_torchrl.envs.wrapped import Spaces
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import Demand, Normal, Poisson, Record, Traces
from hpo_torchrl.problems.inventory.optima.s_S import s_S_cost
from hpo_torchrl.problems.inventory.order_costs import AllUnitsDiscount, FixedCost
from hpo_torchrl.problems.inventory.sales import LostSales


def act(td, discrete, continuous):
    action = {"discrete": discrete.expand(td.batch_size), "continuous": continuous}
    return td.update({"action": TensorDict(action, td.batch_size)})


def never_order(td):
    return act(td, torch.tensor(0), torch.ones_like(td["inventory"][..., 0]))


def demand_served(rollout):
    """Read the demand off the balance of a rollout with L = 1 and no orders."""
    return (rollout["inventory"] - rollout["next", "inventory"]).squeeze(-1)


def play(env, inventory, discrete, quantities, noise):
    """Step through given actions ``(B, T)`` from a given state; stack states and rewards."""
    td = env.reset(TensorDict({"inventory": inventory}, env.batch_size), set_state=True)
    env.load_noise(noise)
    states, rewards = [td["inventory"]], []
    for t in range(discrete.shape[-1]):
        td = env.step(act(td, discrete[..., t], quantities[..., t, :]))["next"]
        states.append(td["inventory"])
        rewards.append(td["reward"][..., 0])
    return torch.stack(states, -3), torch.stack(rewards, -1)


def slow_play(lead_time, h, p, v, K, lost_sales, inventory, discrete, quantities, demand):
    """One system in plain Python: what arrives when is looked up, no pipeline is shifted."""
    n = len(h)
    placed = [[d * q for q in row] for d, row in zip(discrete, quantities, strict=True)]
    stock = [slots[0] for slots in inventory]
    rewards, states = [], [[list(slots) for slots in inventory]]

    def arrival(i, t):
        if t < lead_time:
            return inventory[i][t] if t > 0 else 0.0
        return placed[t - lead_time][i]

    for t in range(len(demand)):
        cost = K * discrete[t]
        for i in range(n):
            if t > 0 or lead_time == 0:
                stock[i] += arrival(i, t)
            stock[i] -= demand[t][i]
            cost += h[i] * stock[i] if stock[i] > 0 else -p[i] * stock[i]
            cost += v[i] * placed[t][i]
            if lost_sales and stock[i] < 0:
                stock[i] = 0.0
        on_hand = [stock[i] + (arrival(i, t + 1) if lead_time else 0.0) for i in range(n)]
        later = [[arrival(i, t + 1 + k) for k in range(1, lead_time)] for i in range(n)]
        states.append([[x, *rest] for x, rest in zip(on_hand, later, strict=True)])
        rewards.append(-cost)
    return states, rewards


@settings(deadline=None, max_examples=15)
@given(data=st.data(), n=st.integers(1, 4), lead_time=st.integers(0, 4))
def test_any_valid_arguments_make_a_sound_environment(data, n, lead_time):
    def per_item(low, high):
        number = st.floats(low, high)
        return data.draw(st.one_of(number, st.lists(number, min_size=n, max_size=n)))

    batch = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    env = InventoryEnv(
        num_items=n,
        lead_time=lead_time,
        demand=data.draw(st.sampled_from([Poisson, Normal]))(per_item(0.1, 40)),
        holding_cost=per_item(0.05, 20),
        shortage_cost=per_item(0, 20),
        procurement_cost=per_item(0, 5),
        fixed_cost_per_item=data.draw(st.floats(0, 100)),
        lost_sales=data.draw(st.booleans()),
        initial_state=data.draw(st.sampled_from(["empty", "random", "stationary"])),
        horizon=data.draw(st.one_of(st.none(), st.integers(1, 5))),
        batch_size=batch,
        dtype=data.draw(st.sampled_from([torch.float32, torch.float64])),
        seed=data.draw(st.integers(0, 99)),
    )
    check_env_specs(env)
    assert env.reset()["inventory"].dtype == env.reward_spec.dtype == env.float_dtype
    rollout = env.rollout(6, break_when_any_done=False)
    assert rollout["inventory"].shape == (*batch, 6, n, max(lead_time, 1))
    assert rollout["next", "reward"].shape == (*batch, 6, 1)
    assert rollout["observation"].shape == (*batch, 6, n * max(lead_time, 1))
    assert (rollout["next", "reward"].nan_to_num(1.0, neginf=1.0) <= 0).all()
    assert (env.sample_noise(3) >= 0).all()
    ends = rollout["next", "truncated"].squeeze(-1).int().sum(-1)
    assert (ends == (6 // env.horizon if env.horizon else 0)).all()
    assert not rollout["next", "terminated"].any()


@pytest.mark.parametrize("lost_sales", [False, True])
@pytest.mark.parametrize("lead_time", [0, 1, 2, 4])
def test_dynamics_follow_the_equations(lead_time, lost_sales):
    n, batch, periods, place = 3, 5, 12, {"dtype": torch.float64}
    h, p, v = [1.0, 0.7, 1.3], [9.0, 6.3, 11.7], [0.5, 0.0, 2.0]
    env = InventoryEnv(n, lead_time, 10.0, h, p, v, 64.0, lost_sales, batch_size=batch, **place)
    inventory = torch.randn(batch, n, max(lead_time, 1), **place) * 10 + 10
    discrete = torch.randint(2, (batch, periods))
    quantities = torch.rand(batch, periods, n, **place) * 30
    demand = env.sample_noise(periods)
    states, rewards = play(env, inventory, discrete, quantities, demand)
    for b in range(batch):
        inputs = (x[b].tolist() for x in (inventory, discrete, quantities, demand))
        slow = slow_play(lead_time, h, p, v, 64.0 * n, lost_sales, *inputs)
        for fast, expected in zip((states[b], rewards[b]), slow, strict=True):
            torch.testing.assert_close(fast, torch.tensor(expected, **place), rtol=0, atol=1e-9)


def test_a_negative_quantity_counts_as_nothing():
    env = InventoryEnv(1, 0, procurement_cost=5.0, fixed_cost_per_item=3.0, batch_size=1)
    quantities = torch.full((1, 1, 1), -4.0, requires_grad=True)
    two, order, noise = torch.full((1, 1, 1), 2.0), torch.ones(1, 1).long(), torch.zeros(1, 1, 1)
    _, rewards = play(env, two, order, quantities, noise)
    assert rewards.tolist() == [[-(2.0 + 3.0)]]
    assert torch.autograd.grad(rewards.sum(), quantities)[0].item() == 0


class Forgetful(InventoryEnv):
    """The planted fault: one step cuts the graph."""

    def dynamics(self, state, action, noise):
        if state["step"].max() == 2:
            state = {"inventory": state["inventory"].detach()}
        return super().dynamics(state, action, noise)


@pytest.mark.parametrize(
    ("lead_time", "lost_sales"), [(0, True), (1, False), (3, False), (3, True)]
)
def test_gradients_agree_with_finite_differences(lead_time, lost_sales):
    place = {"batch_size": 2, "dtype": torch.float64, "seed": 1}
    inventory = 20 * torch.rand(2, 2, max(lead_time, 1)).double()
    quantities = 1 + 20 * torch.rand(2, 6, 2).double()
    inputs = inventory.requires_grad_(), quantities.requires_grad_()
    discrete = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0]])

    def check(cls):
        costs = {"procurement_cost": [0.2, 0.4], "lost_sales": lost_sales, "demand": "normal"}
        env = cls(2, lead_time, **costs, **place)
        noise = env.sample_noise(6)
        return gradcheck(lambda x, q: play(env, x, discrete, q, noise)[1].sum(-1), inputs)

    assert check(InventoryEnv)
    with pytest.raises(GradcheckError):
        check(Forgetful)


def test_a_given_state_is_taken_and_keeps_its_graph():
    env = InventoryEnv(2, 2, [5.0, 20.0], batch_size=3, horizon=9)
    inventory = torch.rand(3, 2, 2, requires_grad=True)
    step = torch.tensor([[0], [4], [8]])
    td = env.reset(TensorDict({"inventory": inventory * 1.0, "step": step}, 3), set_state=True)
    assert torch.equal(td["inventory"], inventory)
    assert torch.equal(td["step"], step)
    in_periods = inventory / torch.tensor([[5.0], [20.0]])
    assert torch.equal(td["observation"], in_periods.flatten(1))
    assert torch.autograd.grad(td["observation"].sum(), inventory)[0].gt(0).all()
    assert env.rand_step(td)["next", "done"].squeeze(-1).tolist() == [False, False, True]
    assert (env.reset(TensorDict({"inventory": inventory}, 3), set_state=True)["step"] == 0).all()


def test_a_wrong_given_state_is_named():
    zeros = torch.zeros(3, 1, 2)
    for state, message in [
        ({}, r"'inventory' must be .*\(3, 1, 2\).*got nothing"),
        ({"inventory": torch.zeros(3, 1, 4)}, r"'inventory' must be .*\(3, 1, 2\)"),
        ({"inventory": zeros.double()}, "'inventory' must be .*float32 .*float64"),
        ({"inventory": zeros, "step": zeros[:, 0, :1]}, "'step' must be torch.int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            InventoryEnv(batch_size=3).reset(TensorDict(state, 3), set_state=True)


def test_a_partial_reset_leaves_the_other_systems_alone():
    env = InventoryEnv(2, 2, batch_size=(4,), initial_state="random", seed=0)
    td = env.rollout(3)["next"][:, -1].clone()
    before = td["inventory"].clone()
    chosen = torch.tensor([[True], [False], [False], [True]])
    after = env.reset(td.set("_reset", chosen), set_state=False)
    assert after["step"].squeeze(-1).tolist() == [0, 3, 3, 0]
    same = (after["inventory"] == before).flatten(1).all(1)
    assert torch.equal(same, ~chosen.squeeze(-1))


def test_the_horizon_resets_and_cuts_the_gradient():
    env = InventoryEnv(1, 1, batch_size=2, horizon=3, seed=0)
    leaf = torch.full((2, 6, 1), 5.0, requires_grad=True)
    steps = iter(leaf.unbind(1))
    order = torch.tensor(1)
    rollout = env.rollout(6, lambda td: act(td, order, next(steps)), break_when_any_done=False)
    ends = [False, False, True] * 2
    assert rollout["next", "truncated"].squeeze(-1).tolist() == [ends, ends]
    assert torch.equal(rollout["next", "done"], rollout["next", "truncated"])
    assert (rollout["inventory"][:, 3] == 0).all()
    for first in (0, 3):
        reward = rollout["next", "reward"][:, first : first + 3].sum()
        (gradient,) = torch.autograd.grad(reward, leaf, retain_graph=True)
        touched = (gradient != 0).squeeze(-1).any(0).nonzero().squeeze(-1).tolist()
        # With L = 1 the last order of an episode arrives after its end.
        assert touched == [first, first + 1]
    (last,) = torch.autograd.grad(rollout["next", "inventory"][:, 2].sum(), leaf)
    assert last[:, 2].eq(1).all()


@pytest.mark.parametrize("demand", ["poisson", "normal"])
def test_equal_seeds_give_equal_worlds(demand):
    common = {"batch_size": 3, "demand": demand, "initial_state": "random"}
    a, b, c = (InventoryEnv(2, seed=seed, **common) for seed in (5, 5, 6))
    assert torch.equal(a.reset()["inventory"], b.reset()["inventory"])
    noise = a.sample_noise(4)
    assert noise.shape == (3, 4, 2)
    assert torch.equal(noise, b.sample_noise(4))
    assert not torch.equal(noise, c.sample_noise(4))
    assert not torch.equal(noise, a.sample_noise(4))
    a.set_seed(5)
    a.reset()
    assert torch.equal(noise, a.sample_noise(4))


def test_loaded_noise_is_consumed_in_order_then_forgotten():
    env = InventoryEnv(2, 1, batch_size=3, seed=0)
    noise = env.sample_noise(5)
    state = env.rng.get_state()
    for _ in range(2):  # common random numbers: the same world twice
        env.load_noise(noise)
        assert torch.equal(demand_served(env.rollout(5, never_order)), noise)
    assert torch.equal(env.rng.get_state(), state)
    for forget in (lambda: env.load_noise(None), lambda: env.set_seed(7)):
        env.load_noise(noise)
        env.rollout(2, never_order)
        forget()
        assert not torch.equal(demand_served(env.rollout(3, never_order)), noise[:, 2:])
    assert not torch.equal(env.rng.get_state(), state)


@pytest.mark.parametrize("kind", ["poisson", "normal"])
def test_demand_has_the_mean_and_variance_it_should(kind):
    env = InventoryEnv(2, demand={"name": kind, "mean": [10.0, 30.0]}, batch_size=50, seed=0)
    drawn = env.sample_noise(800).reshape(-1, 2)
    torch.testing.assert_close(drawn.mean(0), env.demand_mean, rtol=0.005, atol=0)
    torch.testing.assert_close(drawn.var(0), env.demand_mean, rtol=0.03, atol=0)
    assert (drawn == drawn.round()).all() == env.demand.poisson == (kind == "poisson")


def test_normal_demand_is_never_negative():
    drawn = InventoryEnv(demand={"name": "normal", "mean": 1.0}, seed=0).sample_noise(20_000)
    assert drawn.min() == 0
    assert (drawn == 0).double().mean().item() == pytest.approx(norm.cdf(-1), abs=0.01)


def test_states_start_as_far_apart_as_orders_are_cheapest():
    periods = torch.linspace(0.5, 40, 4000)
    for fixed, holding, means in [(64, 1.0, [10.0]), (64, 0.1, [10.0]), (100, 1.0, [2.0, 5.0])]:
        env = InventoryEnv(len(means), 0, means, holding, fixed_cost_per_item=fixed)
        cost = fixed * len(means) / periods + holding * sum(means) * periods / 2
        assert env.order_interval == round(periods[cost.argmin()].item())


@pytest.mark.parametrize("horizon", [None, 3])
def test_traces_are_replayed_exactly_also_after_a_reset(horizon):
    traces = torch.randint(30, (2, 4, 3)).float()
    env = InventoryEnv(3, 1, Traces(traces), horizon=horizon)
    length = horizon or 4
    check_env_specs(env, break_when_any_done="both")
    assert (env.batch_size, env.horizon) == ((2,), length)
    torch.testing.assert_close(env.demand_mean, traces.mean((0, 1)))
    replayed = traces[:, [t % length for t in range(10)]]
    assert torch.equal(env.sample_noise(10), replayed)
    rollout = env.rollout(10, never_order, break_when_any_done=False)
    assert torch.equal(demand_served(rollout), replayed)


def test_initial_states_are_what_they_are_called():
    common = {"num_items": 2, "lead_time": 3, "batch_size": 500, "seed": 0}
    start = InventoryEnv(**common).reset()
    assert (start["inventory"] == 0).all()
    assert [start[key].dtype for key in ("done", "terminated")] == [torch.bool] * 2
    wide = InventoryEnv(**common, initial_state="random")
    inventory = wide.reset()["inventory"]
    # From one period of backlog to the rough S, and two periods of demand either way by item.
    top = wide.order_up_to[0]
    assert -10 - 20 <= inventory[..., 0].min() < -10
    assert top < inventory[..., 0].max() <= top + 20
    level = inventory[..., 0].mean(-1)
    assert level.min() < 0
    assert level.max() > 0.9 * top
    awaiting = (inventory[..., 1:] > 0).any(-1)
    assert 0.4 < awaiting.float().mean() < 0.6
    assert (awaiting[:, 0] == awaiting[:, 1]).all()
    lost = InventoryEnv(**common, initial_state="random", lost_sales=True)
    assert (lost.reset()["inventory"] >= 0).all()
    # One to ``order_interval`` periods of demand have passed since the last order.
    steady = InventoryEnv(**common, initial_state="stationary")
    position = steady.reset()["inventory"].sum(-1)
    middle = steady.order_up_to[0].item() - 10 * (1 + steady.order_interval) / 2
    assert (position <= steady.order_up_to).all()
    assert position.mean().item() == pytest.approx(middle, rel=0.03)


def simulate_s_S(s, S, lead_time, h, p, K, mean):
    """Average cost of the rule played in the environment, and its standard error."""
    place = {"batch_size": 800, "dtype": torch.float64, "seed": 0}
    env = InventoryEnv(1, lead_time, mean, h, p, fixed_cost_per_item=K, **place)

    def rule(td):
        position = td["inventory"].sum(-1)
        return act(td, (position <= s).squeeze(-1).long(), S - position)

    with torch.no_grad():
        cost = -env.rollout(360, rule)["next", "reward"][:, 60:].mean((1, 2))
    return cost.mean().item(), cost.std().item() / math.sqrt(800)


@pytest.mark.parametrize(("s", "S", "lead_time"), [(6, 40, 0), (16, 51, 1), (30, 60, 3)])
def test_long_run_cost_of_an_s_S_rule_is_exact(s, S, lead_time):
    cost, error = simulate_s_S(s, S, lead_time, 1.0, 9.0, 64.0, 10.0)
    exact = s_S_cost(s, S, 10.0, 1.0, 9.0, 64.0, lead_time)
    assert abs(cost - exact) < 4 * error < 0.01 * exact
    # The check can fail: a lead time one period off is far outside.
    assert abs(cost - s_S_cost(s, S, 10.0, 1.0, 9.0, 64.0, lead_time + 1)) > 20 * error
    if lead_time == 0:
        assert abs(cost - 35.021555272320384) < 4 * error  # the optimum by stockpyl 1.0.2


UNIT = torch.ones(4, 5, 1)
BAD = [
    ({"num_items": 0}, ValueError, "num_items must be an integer >= 1, got 0"),
    ({"lead_time": -1}, ValueError, "lead_time must be an integer >= 0, got -1"),
    ({"lead_time": True}, TypeError, "lead_time must be an integer >= 0, got True"),
    ({"holding_cost": -1.0}, ValueError, "holding_cost.* must be .* >= 0, got -1.0"),
    ({"shortage_cost": math.nan}, ValueError, "shortage_cost.* must be .* >= 0, got nan"),
    ({"procurement_cost": math.inf}, ValueError, "procurement_cost.* must be .* >= 0, got inf"),
    ({"fixed_cost_per_item": -1.0}, ValueError, "fixed_cost_per_item.* >= 0, got -1.0"),
    ({"demand": [1.0, 0.0], "num_items": 2}, ValueError, r"demand.mean\[1\] must be .* > 0"),
    ({"demand": {"mean": 3.0}}, ValueError, "mappings with a name such as"),
    ({"demand": {"name": "normal", "men": 3.0}}, ValueError, "Unknown key 'men'.*'mean'"),
    ({"features": [], "fixed_cost_per_item": 1.0}, ValueError, "leave one of them out"),
    ({"hybrid": 0}, TypeError, "hybrid must be true or false"),
    ({"holding_cost": UNIT[:, 0, 0], "num_items": 3}, ValueError, "holding_cost .*=3.* got 4"),
    ({"shortage_cost": "9"}, TypeError, "shortage_cost must be a finite number"),
    ({"demand": "poison"}, ValueError, "demand must be one of 'poisson', 'normal', .*got 'poison'"),
    ({"initial_state": "full"}, ValueError, "initial_state must be one of 'empty', 'random'"),
    ({"lost_sales": 1}, TypeError, "lost_sales must be true or false, got 1"),
    ({"horizon": 2.5}, TypeError, "horizon must be an integer"),
    ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1"),
    ({"batch_size": (2, 1.5)}, TypeError, "batch_size must be an integer"),
    ({"dtype": torch.int64}, TypeError, "dtype must be a floating-point"),
    ({"dtype": "float32"}, TypeError, "dtype must be a floating-point torch.dtype"),
    ({"demand": Traces(UNIT.expand(4, 5, 2)), "num_items": 1}, ValueError, "of 2 items, .* = 1"),
    ({"demand": Traces(UNIT), "batch_size": 3}, ValueError, "batch_size=3 disagrees .*4 env"),
    ({"demand": Traces(UNIT), "horizon": 6}, ValueError, "horizon=6 is longer than the demand"),
    ({"demand": Record(UNIT[0]), "horizon": 2}, ValueError, "start_period='first'"),
]


def test_bad_input_is_named():
    for arguments, error, message in BAD:
        with pytest.raises(error, match=message):
            InventoryEnv(**arguments)


def test_bad_records_are_named():
    for make, message in [
        (lambda: Traces(UNIT[0]), r"traces must have shape.* got \(5, 1\)"),
        (lambda: Record(UNIT[0, :, 0]), r"record must have shape \(T, n\) = \(periods, items\)"),
        (lambda: Traces(-UNIT), "traces must be finite and >= 0"),
        (lambda: Record(0 * UNIT[0]), r"No demand in train_periods=\(0, 5\) for item 0"),
        (lambda: Record(UNIT[0], (3, 9)), r"periods must be \(first, end\) within the 5 periods"),
        (lambda: Record(UNIT[0], history=5), "history=5"),
        (lambda: Record(UNIT[0], start_period="last"), "start_period must be one of"),
        (lambda: Record("demand.csv"), "record='demand.csv' cannot be read: give a .npy file"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def test_a_record_and_its_traces_are_replayed_alike():
    """One mechanism: a record for all is the same as a trace for each that holds it."""
    record = torch.randint(1, 30, (9, 2)).double()
    runs = []
    for values in (record, record.expand(4, 9, 2)):
        demand = Record(values, history=3, start_period="first")
        runs.append(InventoryEnv(demand=demand, batch_size=4, seed=0).rollout(14, never_order))
    for key in ("recent", "period", "inventory", "observation"):
        assert torch.equal(runs[0][key], runs[1][key])
    met = runs[0]["next", "recent"][0, :, :, -1].double()
    assert torch.equal(met, record[[3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6, 7]])


def test_recorded_demand_with_lost_sales_and_a_discount():
    record = torch.randint(1, 30, (40, 1)).double()
    features = [FixedCost(64.0), LostSales(), AllUnitsDiscount([50.0], [1.0, 0.9])]
    arguments = {"features": features, "initial_state": "random", "batch_size": 200}
    env = InventoryEnv(demand=Record(record, history=2), **arguments)
    assert str(env.pieces) == "action: {0} (0, 50) [50, inf)"
    assert certify(env, 4_000).exact
    check_env_specs(env)
    after = env.rollout(10, break_when_any_done=False)["next"]
    assert (after["inventory"] >= 0).all()
    assert torch.equal(after["recent"][..., -1], record[after["period"].long() - 1, 0].float())


class Lumpy(Demand, name="lumpy"):
    """A user's own demand: nothing, or ten units."""

    def draw(self, num_steps, state, env):
        shape = (*env.batch_size, num_steps, len(self.mean))
        return 10.0 * (torch.rand(shape, generator=env.rng) < 0.5)


def test_demand_of_ones_own_is_one_class():
    env = InventoryEnv(2, demand={"name": "lumpy", "mean": 5.0}, batch_size=3, seed=0)
    check_env_specs(env)
    assert set(env.sample_noise(50).unique().tolist()) == {0.0, 10.0}
    assert not env.solvable
    assert env.reference(None).optimal_cost is None


def test_a_half_open_range_is_cut_a_hundred_scales_from_its_end():
    for ends, cut in (((None, 3.0), (-47.0, 3.0)), ((-2.0, None), (-2.0, 48.0))):
        sizes = {"num_discrete": 2, "continuous_dim": 1, "observation_dim": 1}
        env = Spaces(continuous_bounds=ends, action_scale=0.5, **sizes)
        space = env.full_action_spec["action", "continuous"].space
        assert (float(space.low), float(space.high)) == cut


@pytest.mark.parametrize(
    "bounds", [(0.0, 1.0), ([0.0, 0.2], [1.0, 0.7]), (None, 1.0), (0.0, [1.0, 0.7])], ids=str
)
def test_equations_never_see_an_action_beyond_its_bounds(bounds):
    """Also of samples that a policy draws; and no gradient says that there is more to gain."""
    seen = []

    class Mine(DifferentiableEnv):
        def __init__(self, **arguments):
            super().__init__(
                num_discrete=2,
                continuous_dim=2,
                continuous_bounds=bounds,
                state_shapes={"x": (2,)},
                observation_dim=2,
                noise_shape=(2,),
                **arguments,
            )

        def dynamics(self, state, action, noise):
            seen.append(action["continuous"].detach())
            return {"x": state["x"] + noise}, action["continuous"].sum(-1)

        def observe(self, state):
            return state["x"]

        def initial_state(self):
            return {"x": torch.zeros(*self.batch_size, 2)}

        def draw_noise(self, num_steps, state):
            return torch.zeros(*self.batch_size, num_steps, 2)

    env = Mine(batch_size=64, seed=0)
    policy = HybridPolicy.for_env(env, hidden=[4], scale=3.0, find_scales=False)
    low, high = (torch.as_tensor(end) if end is not None else None for end in bounds)
    for frames in (env.rollout(5, policy), differentiable_rollout(env, policy, 5)):
        drawn = frames["action", "continuous"]
        used = drawn.clamp(low, high)
        assert float((drawn != used).double().mean()) > 0.3
        torch.testing.assert_close(frames["next", "reward"].squeeze(-1), used.sum(-1))
        assert all(bool((one == one.clamp(low, high)).all()) for one in seen)
    data, given = policy(env.reset()), drawn[:, 0].detach().requires_grad_()
    reward = env.step(data.set(("action", "continuous"), given))["next", "reward"]
    (slope,) = torch.autograd.grad(reward.sum(), given)
    assert torch.equal(slope == 0.0, given != given.clamp(low, high))
