"""Storage against a slow simulation, and its bounds against exact solutions of small problems."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from tensordict import TensorDict
from torch.autograd.gradcheck import gradcheck
from torchrl.envs.utils import check_env_specs

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.diagnostics import grid_optimum
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.problems import StorageEnv
from hpo_torchrl.problems.storage.hindsight import Site, hindsight_cost
from hpo_torchrl.problems.storage.network import EachBattery
from hpo_torchrl.problems.storage.optimum import Market, Store, solve
from hpo_torchrl.problems.storage.relaxation import _Dual, relaxed_cost
from hpo_torchrl.problems.storage.rules import PlanPolicy, PriceThresholds
from hpo_torchrl.problems.storage.sites import fleet_of, market_of, stores_of
from hpo_torchrl.training import Evaluation

NODES = (41, 5, 6.0)
EVERYTHING = {
    "step_hours": 0.5,
    "price": [40.0, 70.0, -10.0],
    "connection_limit": [1.5, 0.6],
    "load": [0.4, 1.0],
    "demand_charge": 9.0,
    "horizon": 12,
    "capacity": [2.0, 1.0, 3.0],
    "charge_rating": [1.0, 0.7, 0.9],
    "discharge_rating": [0.8, 1.2, 1.0],
    "charge_efficiency": [0.9, 0.8, 0.95],
    "discharge_efficiency": [0.7, 0.9, 0.85],
    "wear_cost": [2.0, 1.0, 0.5],
    "self_discharge": [0.02, 0.0, 0.1],
}


def make(num=1, **arguments):
    return StorageEnv(num, **{"dtype": torch.float64, "seed": 0} | arguments)


def play(env, start, modes, powers, noise):
    """Step through given actions ``(B, T, N)`` from a given state; stack contents and rewards."""
    td = env.reset(TensorDict(start, env.batch_size), set_state=True)
    env.load_noise(noise)
    contents, rewards = [], []
    for t in range(powers.shape[-2]):
        action = {"discrete": modes[..., t, :], "continuous": powers[..., t, :]}
        if env.num_heads is None:
            action["discrete"] = action["discrete"].squeeze(-1)
        td = env.step(td.update({"action": TensorDict(action, td.batch_size)}))["next"]
        contents.append(td["content"])
        rewards.append(td["reward"][..., 0])
    return torch.stack(contents, -2), torch.stack(rewards, -1)


def slow_play(given, N, content, y, modes, powers, noise, a=5.0, r=1.0, kept=0.9, shock=8.0):
    """Simulate with one number at a time, energy by energy."""
    h, peak, content = given["step_hours"], 0.0, list(content)
    contents, rewards = [], []
    for t, eps in enumerate(noise):
        price, load = given["price"][t % 3] + y, given["load"][t % 2]
        total, cost = 0.0, 0.0
        for i in range(N):
            eta_c, eta_d = given["charge_efficiency"][i], given["discharge_efficiency"][i]
            content[i] *= (1 - given["self_discharge"][i]) ** h
            bought = sold = 0.0
            if modes[t][i] == 1:
                bought = min(h * powers[t][i], (given["capacity"][i] - content[i]) / eta_c)
            if modes[t][i] == 2:
                sold = min(h * powers[t][i], content[i] * eta_d)
            content[i] += eta_c * bought - sold / eta_d
            total += (bought - sold) / h
            cost += given["wear_cost"][i] * (bought + sold) + r * h * (modes[t][i] > 0)
        net = total + load
        cost += h * (price * total + a / N * total * total)
        cost += h * 100.0 * (max(0.0, net - 1.5) + max(0.0, -net - 0.6))
        cost += given["demand_charge"] * max(0.0, net - peak)
        peak, y = max(peak, net), kept * y + shock * eps
        contents.append(list(content))
        rewards.append(-cost)
    return contents, rewards


# -- the environment -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=12)
@given(
    number=st.integers(1, 3),
    shared=st.booleans(),
    batch=st.lists(st.integers(1, 3), max_size=2),
    horizon=st.sampled_from([None, 1, 4]),
    charge=st.sampled_from([0.0, 5.0]),
    load=st.sampled_from([0.0, [0.5, 1.0]]),
    shock=st.sampled_from([0.0, 8.0]),
    hours=st.sampled_from([0.25, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_arguments_make_a_sound_environment(
    number, shared, batch, horizon, charge, load, shock, hours, dtype
):
    env = StorageEnv(
        number,
        shared_mode=shared,
        batch_size=batch,
        horizon=horizon,
        demand_charge=charge if horizon else 0.0,
        load=load,
        price_shock=shock,
        step_hours=hours,
        dtype=dtype,
        seed=0,
    )
    check_env_specs(env, break_when_any_done="both")
    rollout = env.rollout(6, break_when_any_done=False)
    heads = () if number == 1 or shared else (number,)
    assert rollout["action", "discrete"].shape == (*batch, 6, *heads)
    assert rollout["content"].min() >= 0
    assert (rollout["next", "content"] <= env.batteries.capacity).all()
    assert rollout["observation"].abs().max() < 8
    assert (rollout["hour"] < env.cycle).all()
    assert env.cost_units == number


def agrees(env):
    """Whether the environment does what the slow simulation does."""
    generator = torch.Generator().manual_seed(3)
    modes = torch.randint(3, (4, 11, 3), generator=generator)
    powers = torch.rand(4, 11, 3, generator=generator, dtype=torch.float64)
    powers = powers * env.action_scale
    powers = torch.where(modes == 1, powers.minimum(env.batteries.charge_rating), powers)
    noise, start = env.sample_noise(11), env.reset().select(*env.state_names)
    contents, rewards = play(env, start, modes, powers, noise)
    for b in range(4):
        rows = (x[b].tolist() for x in (modes, powers, noise.squeeze(-1)))
        y = start["deviation"][b].item()
        slow = slow_play(EVERYTHING, 3, start["content"][b].tolist(), y, *rows)
        for found, expected in zip((contents[b], rewards[b]), slow, strict=True):
            if not np.allclose(found, expected, rtol=1e-9, atol=1e-9):
                return False
    return True


class Forgetful(StorageEnv):
    def dynamics(self, state, action, noise):
        later, reward = super().dynamics(state, action, noise)
        return {**later, "peak": torch.zeros_like(later["peak"])}, reward


def spoilt(**changes):
    env = make(3, batch_size=4, **EVERYTHING)
    rows = {name: change(getattr(env.batteries, name)) for name, change in changes.items()}
    env.batteries = env.batteries._replace(**rows)
    return env


def with_limits_swapped():
    env = make(3, batch_size=4, **EVERYTHING)
    env.connection = env.connection[::-1]
    return env


def test_dynamics_follow_the_equations():
    assert agrees(make(3, batch_size=4, **EVERYTHING))


@pytest.mark.parametrize(
    "faulty",
    [
        lambda: spoilt(charge_efficiency=torch.square),
        lambda: spoilt(discharge_efficiency=torch.square),
        lambda: spoilt(wear_cost=torch.zeros_like),
        lambda: spoilt(self_discharge=torch.zeros_like),
        lambda: Forgetful(3, batch_size=4, dtype=torch.float64, seed=0, **EVERYTHING),
        with_limits_swapped,
    ],
    ids=["charge twice", "discharge twice", "wear", "self-discharge", "peak", "limit"],
)
def test_a_fault_in_the_dynamics_is_seen(faulty):
    assert not agrees(faulty())


@pytest.mark.parametrize("number", [1, 2])
def test_gradients_agree_with_finite_differences(number):
    how = {"connection_limit": 0.8, "load": 0.3, "demand_charge": 4.0, "horizon": 9}
    env = make(number, batch_size=3, capacity=3.0, self_discharge=0.05, **how)
    modes, noise = torch.randint(3, (3, 5, number)), env.sample_noise(5)
    start = env.reset().select(*env.state_names)
    content = torch.rand(3, number).double() + 1.0
    powers = 0.1 + 0.8 * torch.rand(3, 5, number).double()

    def rewards(content, powers):
        return play(env, start.to_dict() | {"content": content}, modes, powers, noise)[1].sum(-1)

    assert gradcheck(rewards, [content.requires_grad_(), powers.requires_grad_()])


def test_a_limit_of_the_content_passes_the_gradient_of_what_it_leaves():
    env = make(batch_size=2, capacity=2.0, wear_cost=0.0, running_cost=0.0, price_impact=0.0)
    start = env.reset().select(*env.state_names).to_dict()
    start |= {"content": torch.tensor([[1.8], [0.3]]).double().requires_grad_()}
    powers = torch.ones(2, 1, 1).double().requires_grad_()
    price = env.price_by_step[start["hour"].long()] + start["deviation"]
    modes = torch.tensor([[[1]], [[2]]])
    contents, rewards = play(env, start, modes, powers, env.sample_noise(1))
    assert contents.flatten().tolist() == [2.0, 0.0]
    slopes, none = torch.autograd.grad(rewards.sum(), [start["content"], powers])
    expected = price.flatten() * torch.tensor([1 / 0.95, 0.95])
    torch.testing.assert_close(slopes.flatten(), expected)
    assert not none.any()


def test_both_rollout_routes_are_equal():
    runs = []
    for route in ("functional", "general"):
        env = make(3, batch_size=4, **EVERYTHING)
        torch.manual_seed(1)
        policy = HybridPolicy.for_env(env, hidden=(8,))
        rollout = differentiable_rollout(env, policy, 15, route=route)
        loss = rollout["next", "reward"].sum()
        gradients = torch.autograd.grad(loss, policy.parameters(), allow_unused=True)
        runs.append((dict(rollout.items(True, True)), gradients))
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_shocks_and_their_opposites_lead_to_prices_as_far_from_what_is_expected():
    env = StorageEnv(2, batch_size=6, dtype=torch.float64, seed=0)
    noise = env.sample_noise(5)
    start = env.fresh_state()
    idle = {"discrete": torch.zeros(6, 2, dtype=torch.int64), "continuous": torch.zeros(6, 2)}
    ends = []
    for way in (noise, env.opposite_noise(noise), torch.zeros_like(noise)):
        state = start
        for step in way.unbind(1):
            state, _, _ = env.advance(state, idle, step)
        ends.append(state["deviation"])
    torch.testing.assert_close((ends[0] + ends[1]) / 2, ends[2])
    assert (ends[0] - ends[1]).abs().min() > 1e-3
    assert StorageEnv(2, price_shock=0.0).opposite_noise(noise) is None


def test_prices_are_of_the_cycle_and_wander_as_they_should(tmp_path):
    (tmp_path / "prices.csv").write_text("time,price\na,10\nb,30\nc,20\n")
    env = make(price=str(tmp_path / "prices.csv"), batch_size=4000, price_shock=3.0)
    run = env.rollout(8, break_when_any_done=False)
    seen = run["observation"][..., 1] * env._price_unit + 20 - run["deviation"][..., 0]
    expected = torch.tensor([10.0, 30.0, 20.0]).double()[run["hour"][..., 0].long()]
    torch.testing.assert_close(seen, expected)
    y = run["deviation"][..., 0]
    spread = 3 / math.sqrt(1 - 0.9**2)
    assert y.std(0).numpy() == pytest.approx(spread, rel=0.05)
    assert np.corrcoef(y[:, 2], y[:, 4])[0, 1] == pytest.approx(0.81, abs=0.03)
    assert set(run["hour"][:, 0, 0].tolist()) == {0.0, 1.0, 2.0}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_batteries": 0}, "num_batteries"),
        ({"num_batteries": 2, "capacity": [1.0]}, "capacity"),
        ({"charge_efficiency": 1.2}, "<= 1"),
        ({"demand_charge": 3.0}, "horizon"),
        ({"connection_limit": [1.0, 2.0, 3.0]}, "connection_limit"),
        ({"price": []}, "price"),
        ({"price": "none.csv"}, "none.csv"),
        ({"price_kept": 1.0}, "price_kept"),
        ({"step_hours": 0}, "step_hours"),
        ({"load": [1.0, math.nan]}, "load"),
    ],
)
def test_bad_input_is_named(arguments, named):
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        StorageEnv(**arguments)


# -- one battery ---------------------------------------------------------------------------------


def market(price, shock=0.0, impact=0.0, limit=math.inf):
    price = np.asarray(price, dtype=float)
    limits = np.full((2, len(price)), limit)
    return Market(price, np.ones(len(price)), 0.9, shock, 1.0, impact, limits, 100.0)


def best_cycle(store, price):
    """Return the least cost of a cycle that ends as it began, by a linear program of its own."""
    T = len(price)
    shift = np.eye(T) - np.roll(np.eye(T), -1, 0).T
    kept = np.eye(T) - (1 - store.self_discharge) * (np.eye(T) - shift)
    balance = np.hstack(
        [-store.charge_efficiency * np.eye(T), np.eye(T) / store.discharge_efficiency, kept]
    )
    cost = np.concatenate([price + store.wear_cost, store.wear_cost - price, np.zeros(T)])
    ends = [(0, store.charge_rating)] * T + [(0, store.discharge_rating)] * T
    ends += [(0, store.capacity)] * T
    return linprog(cost, A_eq=balance, b_eq=np.zeros(T), bounds=ends).fun / T


@settings(deadline=None, max_examples=15)
@given(
    prices=st.lists(st.floats(5.0, 90.0), min_size=2, max_size=6),
    capacity=st.floats(1.0, 5.0),
    charge=st.floats(0.3, 1.5),
    discharge=st.floats(0.3, 1.5),
    efficiency=st.floats(0.7, 1.0),
    wear=st.floats(0.0, 3.0),
    lost=st.sampled_from([0.0, 0.02]),
)
def test_known_prices_cost_no_less_than_the_bound(
    prices, capacity, charge, discharge, efficiency, wear, lost
):
    """Without a cost of running the problem is a linear program."""
    store = Store(capacity, charge, discharge, efficiency, 0.9, wear, lost, 0.0)
    exact = best_cycle(store, np.array(prices))
    found = solve(store, market(prices), lattice=(60, 120))
    assert found.cost <= exact + 1e-6
    if not lost:  # the ratings were widened by so much, and no more
        assert found.cost >= exact * (1 + 2 * found.loosest) - 2e-5 * abs(exact) - 1e-6


def test_a_lattice_that_fits_is_exact_with_a_cost_of_running():
    """Every sequence of modes of a cycle is tried, with whole powers."""
    store = Store(2.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 6.0)
    price = np.array([20.0, 31.0, 24.0, 35.0])
    best = 0.0
    for moves in itertools.product((-1, 0, 1), repeat=4):
        for first in (0, 1, 2):
            path = first + np.cumsum(moves)
            if path.min() >= 0 and path.max() <= 2 and path[-1] == first:
                ran = abs(np.array(moves))
                best = min(best, float((price * moves + 6.5 * ran).sum()) / 4)
    assert best < 0
    assert solve(store, market(price), lattice=(4, 4)).cost == pytest.approx(best, abs=1e-4)


def test_finer_lattices_bound_more_closely_from_below():
    store = Store(3.1, 1.0, 0.8, 0.93, 0.91, 0.7, 0.0, 2.0)
    wander = market([40.0, 60.0], shock=8.0, impact=4.0, limit=0.83)
    coarse, middle, fine = (
        solve(store, wander, lattice=(size, size), nodes=nodes).cost
        for size, nodes in ((20, (15, 3, 6.0)), (40, NODES), (120, (121, 9, 7.0)))
    )
    assert coarse < middle < fine < 0
    assert fine - middle < 0.02 * abs(fine)


def test_one_battery_against_the_general_grid(monkeypatch):
    monkeypatch.setattr("hpo_torchrl.diagnostics.grid._LEVELS", {2: [(21, 7), (31, 9)]})
    monkeypatch.setattr("hpo_torchrl.diagnostics.grid._RANGES", 2)
    monkeypatch.setattr("hpo_torchrl.diagnostics.grid._CHECKS", 2**16)
    env = make(price=50.0, batch_size=256, price_impact=3.0, capacity=2.0)
    plan = PlanPolicy.best(env)
    grid = grid_optimum(env, seconds=0.1)
    assert plan.plan.cost <= grid.cost + grid.error
    assert plan.plan.cost == pytest.approx(grid.cost, rel=0.01, abs=grid.error)
    found = Evaluation(env, num_steps=200, skip=40, seed=0).run(plan)
    assert plan.plan.cost <= found.mean + 3 * found.standard_error
    assert found.mean == pytest.approx(plan.plan.cost, abs=3 * found.standard_error)


# -- many ----------------------------------------------------------------------------------------


def joint_optimum(price, size, unit, *, impact, limit, running, load=0.0):
    """Return the cost per battery and step of two on a joint lattice: steps of ``unit`` MWh.

    Without losses. An independent value iteration over pairs of contents.
    """
    moves = [-1, 0, 1]
    value = np.zeros((size + 1, size + 1))
    for _ in range(400):
        before = value
        for p in reversed(price):
            later = np.full_like(value, np.inf)
            for (i, j), (a, b) in itertools.product(
                np.ndindex(value.shape), itertools.product(moves, moves)
            ):
                if 0 <= i + a <= size and 0 <= j + b <= size:
                    total = unit * (a + b)
                    beyond = max(0.0, abs(total + load) - limit)
                    cost = p * total + impact / 2 * total**2 + 100 * beyond
                    cost += running * ((a != 0) + (b != 0))
                    later[i, j] = min(later[i, j], cost + value[i + a, j + b])
            value = later
        if np.ptp(value - before) < 1e-9:
            break
    return float((value - before).mean()) / (2 * len(price))


@pytest.mark.parametrize("impact", [0.0, 4.0])
@pytest.mark.parametrize("limit", [1.0, 9.0])
def test_bounds_of_two_batteries_are_below_their_joint_optimum(impact, limit):
    price = [20.0, 33.0, 24.0, 50.0]
    lossless = {"charge_efficiency": 1.0, "discharge_efficiency": 1.0, "wear_cost": 0.0}
    env = make(
        2,
        price=price,
        price_shock=0.0,
        price_impact=impact,
        connection_limit=limit,
        running_cost=1.0,
        capacity=2.0,
        **lossless,
    )
    exact = joint_optimum(price, 2, 1.0, impact=impact, limit=limit, running=1.0)
    fleet, alone = solve(fleet_of(env), market_of(env)).cost, relaxed_cost(env, rounds=25)
    assert fleet <= exact + 1e-6
    assert alone <= exact + 1e-6
    assert max(fleet, alone) >= exact * 1.12  # close enough to be of use


def test_unlike_batteries_cost_no_less_than_bounds_on_a_known_episode_repeated():
    """The whole program of many cycles, whose ends matter ever less, against both bounds."""
    price, cycles = np.array([20.0, 45.0, 31.0]), 12
    env = make(
        2,
        price=price,
        price_shock=0.0,
        price_impact=0.0,
        connection_limit=0.9,
        load=[0.2, 0.0, 0.1],
        running_cost=1.0,
        capacity=[1.0, 2.0],
        charge_rating=[1.0, 0.6],
        charge_efficiency=[0.95, 0.8],
        discharge_efficiency=[0.9, 0.8],
        wear_cost=[1.0, 0.0],
    )
    site = Site(np.tile([0.2, 0.0, 0.1], cycles), 1.0, 0.0, (0.9, 0.9), 100.0, 0.0)
    stores = stores_of(env)
    cost = hindsight_cost(stores, site, np.tile(price, cycles), [1.0, 2.0]) / (2 * 3 * cycles)
    ends = 50 * 3.0 / (2 * 3 * cycles)  # what full stores are worth at most
    for bound in (solve(fleet_of(env), market_of(env)).cost, relaxed_cost(env, rounds=4)):
        assert bound <= cost + ends


def test_the_gradient_of_the_relaxation_is_its_slope():
    env = make(3, capacity=[4.0, 4.0, 2.0], connection_limit=1.8, price=[40.0, 60.0])
    dual = _Dual(Counter(stores_of(env)), market_of(env))
    at = np.array([2.0, -3.0, 1.0, 0.5])
    _, gradient = dual.negated(at)
    for k in range(4):
        step = 0.5 * np.eye(4)[k]
        slope = dual.negated(at + step)[0] - dual.negated(at - step)[0]
        assert slope == pytest.approx(gradient[k], abs=0.03 * abs(gradient).max())


def test_the_plan_of_a_fleet_lies_between_its_bound_and_the_thresholds():
    env = make(4, batch_size=128, price=50.0, connection_limit=3.0, running_cost=0.5)
    test = Evaluation(env, num_steps=160, skip=40, seed=0)
    reference = env.reference(test)
    cost = reference.baselines["plan of the fleet"]
    assert reference.lower_bound < cost + 0.3  # three standard errors
    assert reference.upper_bound == cost < reference.baselines["price thresholds"] < 0.2


def test_the_best_thresholds_cost_less_than_others():
    """In a world of its own, so that those around it may be as good by chance."""
    env = make(2, batch_size=128, price=[40.0, 60.0])
    test = Evaluation(env, num_steps=120, skip=20, seed=0)
    best = PriceThresholds.best(env)
    cost = test.run(best).mean
    others = itertools.product((20.0, 45.0), (50.0, 65.0, 80.0))
    assert all(cost < test.run(PriceThresholds(env, *pair)).mean + 0.02 for pair in others)


def test_the_network_treats_batteries_alike():
    env = make(4, batch_size=6)
    policy = HybridPolicy.for_env(env, network=EachBattery.network, hidden=[8])
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter)
    network, seen = policy.network, env.reset()["observation"]
    for net in (network.discrete, network.continuous):
        net.net[0].weight.data[:, -4:] = 0.0  # which battery it is
    order = torch.tensor([2, 0, 3, 1])
    swapped = torch.cat([seen[:, order], seen[:, 4:]], -1)
    for found, expected in zip(network(swapped)[:2], network(seen)[:2], strict=True):
        torch.testing.assert_close(found, expected.unflatten(1, (4, -1))[:, order].flatten(1, 2))
    assert network(seen)[0].std(1).min() > 1e-3


def test_one_mode_for_all_makes_alike_batteries_one():
    """Then their bound is that of one, what a rule earns too, and a choice counts for each."""
    how = {"price": 50.0, "initial_content": 0.5, "batch_size": 8}
    one, three = make(**how), make(3, shared_mode=True, **how)
    bounds = (
        solve(fleet_of(env), market_of(env), lattice=(40, 60), nodes=NODES).cost
        for env in (one, three)
    )
    assert len(set(bounds)) == 1
    found = [
        Evaluation(env, num_steps=60, skip=5, seed=0).run(PriceThresholds(env, 45.0, 56.0))
        for env in (one, three)
    ]
    assert found[0].mean == pytest.approx(found[1].mean)
    policy = HybridPolicy.for_env(three, network=EachBattery.network, hidden=[8])
    run = three.rollout(3, policy)
    assert run["action", "discrete"].shape == (8, 3)
    assert run["action", "continuous"].shape == (8, 3, 3)
    assert fleet_of(make(2, shared_mode=True, capacity=[1.0, 2.0])).fleet


def test_a_plan_says_that_it_is_of_the_long_run():
    with pytest.raises(ValueError, match="horizon=24"):
        PlanPolicy.best(make(horizon=24))


# -- an episode ----------------------------------------------------------------------------------


def test_hindsight_is_the_best_of_all_sequences_of_modes():
    """With whole powers, no losses and no impact the optimum is at one of them."""
    price, load = [20.0, 31.0, 24.0, 50.0], [0.0, 1.0, 2.0, 0.0]
    env = make(
        price=price,
        load=load,
        price_shock=0.0,
        price_impact=0.0,
        capacity=2.0,
        charge_efficiency=1.0,
        discharge_efficiency=1.0,
        demand_charge=7.0,
        connection_limit=2.0,
        initial_content=0.5,
        horizon=4,
        batch_size=3**4,
    )
    modes = torch.cartesian_prod(*[torch.arange(3)] * 4).unsqueeze(-1)
    start = env.reset().select(*env.state_names)
    _, rewards = play(env, start, modes, torch.ones(81, 4, 1).double(), env.sample_noise(4))
    brute = -rewards.sum(-1).max().item()
    store, site = stores_of(env)[0], Site.of(env)
    found = hindsight_cost([store], site, np.array(price), [1.0], whole=True)
    assert found == pytest.approx(brute)
    assert hindsight_cost([store], site, np.array(price), [1.0]) <= brute + 1e-9
    # The reference of the same problem is this optimum.
    test = Evaluation(env, num_steps=4, seed=0)
    assert env.reference(test).optimal_cost == pytest.approx(brute / 4)


@pytest.mark.parametrize("number", [1, 3])
def test_no_policy_beats_hindsight_on_the_same_prices(number):
    env = make(
        number,
        batch_size=16,
        horizon=24,
        load=[0.5, 1.5, 1.0],
        demand_charge=20.0,
        connection_limit=2.5,
    )
    test = Evaluation(env, num_steps=24, seed=3)
    reference = env.reference(test)
    assert reference.paired
    assert reference.lower_bound < reference.upper_bound
    rules = [PriceThresholds(env, 40.0, 55.0), HybridPolicy.for_env(env, hidden=(8,))]
    assert all(reference.lower_bound < test.run(rule).mean for rule in rules)


def test_the_description_has_the_shares_and_a_picture(tmp_path):
    env = make(2, batch_size=3)
    policy = PriceThresholds(env, 40.0, 60.0)
    test = Evaluation(env, num_steps=30, skip=5, seed=0)
    said = env.describe(policy, {"test": test}, Reference(), tmp_path)
    assert sum(said["mode_shares"].values()) == pytest.approx(1.0, abs=1e-3)
    assert (tmp_path / "policy.png").stat().st_size > 10_000
