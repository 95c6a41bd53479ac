"""Differentiable rollouts against TorchRL's and against gradients by hand; the collector."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, check_env_specs

from hpo_torchrl.algorithms import HPO
from hpo_torchrl.collectors import DifferentiableCollector, SampleCollector, differentiable_rollout
from hpo_torchrl.modules import HybridNetwork, HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import Traces
from hpo_torchrl.training import Evaluation


def inventory(**arguments):
    return InventoryEnv(**{"batch_size": 4, "seed": 0, "initial_state": "random"} | arguments)


class Drift(EnvBase):
    """A plain TorchRL environment whose step keeps the graph; an episode lasts four steps."""

    def __init__(self):
        super().__init__(batch_size=[3])
        observation = {"observation": Unbounded((3, 2)), "age": Unbounded((3, 1))}
        self.observation_spec = Composite(observation, shape=[3])
        bounded = Bounded(-1.0, 1.0, shape=(3, 2))
        action = Composite(discrete=Categorical(2, shape=(3,)), continuous=bounded, shape=[3])
        self.action_spec = Composite(action=action, shape=[3])
        self.reward_spec = Unbounded((3, 1))
        self.gain = torch.tensor([[1.0, 0.1], [0.1, 1.0]])

    def _reset(self, tensordict=None, **kwargs):
        fresh = {"observation": 1 + torch.rand(3, 2), "age": torch.zeros(3, 1)}
        return TensorDict(fresh, 3)

    def _step(self, tensordict):
        action, age = tensordict["action"], tensordict["age"] + 1
        x = 0.9 * tensordict["observation"] + self.gain[action["discrete"]] * action["continuous"]
        reward = -x.square().sum(-1, keepdim=True)
        return TensorDict({"observation": x, "age": age, "reward": reward, "done": age >= 4}, 3)

    def _set_seed(self, seed):
        pass


class Impatient(InventoryEnv):
    """An episode is also over when too much is missing."""

    def advance(self, state, action, noise):
        after, reward, over = super().advance(state, action, noise)
        short = after["inventory"].sum((-2, -1)).unsqueeze(-1) < -5
        return after, reward, short if over is None else over | short


def policy_for(env, **arguments):
    """Build a policy off its special start (zero heads, zero skip)."""
    policy = HybridPolicy.for_env(env, hidden=(8,), **arguments)
    for parameter in policy.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return policy


def gradient(output, policy):
    """Gradient of the sum with respect to all parameters, zero where there is none."""
    parameters = list(policy.parameters())
    found = torch.autograd.grad(output.sum(), parameters, allow_unused=True, retain_graph=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def assert_identical(one, other):
    """The same entries with the same bits."""
    assert (one.shape, one.device) == (other.shape, other.device)
    assert set(one.keys(True, True)) == set(other.keys(True, True))
    for key, value in one.items(True, True):
        assert value.dtype == other[key].dtype
        assert torch.equal(value, other[key]), key


TRACES = torch.arange(4 * 4 * 2).reshape(4, 4, 2) % 17
CASES = {
    "plain": {},
    "no lead time": {"num_items": 3, "lead_time": 0, "dtype": torch.float64},
    "horizon": {"num_items": 2, "horizon": 3},
    "lost sales": {"horizon": 3, "dtype": torch.float64, "lost_sales": True, "demand": "normal"},
    "traces": {"num_items": 2, "demand": Traces(TRACES, mean=8.0), "lead_time": 3},
    "short traces": {"num_items": 2, "demand": Traces(TRACES, mean=8.0), "horizon": 3},
    "no batch": {"batch_size": (), "horizon": 4, "lead_time": 1},
    "two batch dims": {"batch_size": (2, 3), "initial_state": "stationary", "lost_sales": True},
}


@pytest.mark.parametrize(("scale", "given_noise"), [(0.0, True), (0.3, False)])
@pytest.mark.parametrize("case", CASES)
def test_both_routes_equal_env_rollout_bit_for_bit(case, scale, given_noise):
    policy = policy_for(inventory(**CASES[case]), scale=scale)

    def roll(route):
        env = inventory(**CASES[case])
        start = env.reset()
        if env.horizon:  # systems at different points of their episodes
            step = torch.arange(env.batch_size.numel()) % env.horizon
            start["step"] = step.reshape(start["step"].shape)
        torch.manual_seed(2)
        if route != "torchrl":
            noise = env.sample_noise(7, start) if given_noise else None
            options = {"tensordict": start, "noise": noise, "route": route}
            return differentiable_rollout(env, policy, 7, **options)
        if not isinstance(env.demand, Traces):
            env.load_noise(env.sample_noise(7))
        options = {"tensordict": start, "auto_reset": False, "break_when_any_done": False}
        return env.rollout(7, policy, **options).exclude("logits", "loc", "scale")

    truth = roll("torchrl")
    to_reward = gradient(truth["next", "reward"], policy)
    to_state = gradient(truth["next", "inventory"][..., -1, :, :], policy)
    assert to_reward.any()
    if "horizon" in CASES[case] or "traces" in case:
        assert truth["next", "done"].any(-2).all()
    for route in ("functional", "general", "auto"):
        rollout = roll(route)
        assert rollout.names[-1] == "time"
        assert_identical(rollout, truth)
        assert torch.equal(gradient(rollout["next", "reward"], policy), to_reward)
        assert torch.equal(gradient(rollout["next", "inventory"][..., -1, :, :], policy), to_state)


def credit_by_hand(policy, step, observation, periods, discount):
    """Credit each action with its discounted future; ``step(action) -> (observation, reward)``."""
    seen, options, nudges, rewards = [], [], [], []
    for _ in range(periods):
        action = policy.act(observation)
        nudge = torch.zeros_like(action.continuous, requires_grad=True)
        seen.append(observation.detach())
        options.append(action.discrete)
        nudges.append(nudge)
        action = {"discrete": action.discrete, "continuous": action.continuous + nudge}
        observation, reward = step(action)
        rewards.append(reward.sum())
    total = torch.zeros(())
    for t, nudge in enumerate(nudges):
        future = sum(discount**k * reward for k, reward in enumerate(rewards[t:]))
        (credit,) = torch.autograd.grad(future, nudge, retain_graph=True)
        direct = policy.distribution(seen[t]).mode_of(options[t])
        total = total + gradient(credit * direct, policy)
    return total


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("route", ["functional", "general"])
def test_discount_credits_each_action_with_its_discounted_future(route, discount):
    env = inventory(num_items=2, dtype=torch.float64, procurement_cost=0.3)
    policy, start, noise = policy_for(env), env.reset(), env.sample_noise(6)
    state, steps = {"inventory": start["inventory"]}, iter(noise.unbind(1))

    def step(action):
        after, reward = env.dynamics(state, action, next(steps))
        state.update(after)
        return env.observe(state), reward

    torch.manual_seed(1)
    expected = credit_by_hand(policy, step, start["observation"], 6, discount)

    def roll(discount):
        torch.manual_seed(1)
        options = {"tensordict": start, "noise": noise, "route": route}
        return differentiable_rollout(env, policy, 6, discount=discount, **options)

    rollout, plain = roll(discount), roll(1.0)
    assert_identical(rollout, plain)
    found = gradient(rollout["next", "reward"], policy)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    undiscounted = gradient(plain["next", "reward"], policy)
    assert torch.allclose(found, undiscounted, rtol=1e-3) == (discount == 1.0)


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_a_plain_environment_that_keeps_the_graph_takes_the_general_route(discount):
    env = Drift()
    check_env_specs(env)
    policy = policy_for(env, scale=0.0)
    action_range = policy.network.distribution.range
    assert (action_range.low, action_range.high) == (-1.0, 1.0)
    start = env.reset()
    td = start.copy()

    def step(action):
        nonlocal td
        td = env.step(td.update({"action": TensorDict(action, 3)}))["next"]
        return td["observation"], td["reward"]

    torch.manual_seed(1)
    expected = credit_by_hand(policy, step, start["observation"], 4, discount)
    torch.manual_seed(1)
    rollout = differentiable_rollout(env, policy, 10, tensordict=start, discount=discount)
    found = gradient(rollout["next", "reward"][:, :4], policy)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert rollout["age"].squeeze(-1)[0].tolist() == [t % 4 for t in range(10)]
    assert (gradient(rollout["next", "reward"][:, 4:], policy) != 0).any()
    with pytest.raises(ValueError, match="only to a DifferentiableEnv; Drift draws its own"):
        differentiable_rollout(env, policy, 2, noise=torch.zeros(3, 2, 2))
    with pytest.raises(TypeError, match=r"needs a DifferentiableEnv .*got Drift"):
        differentiable_rollout(env, policy, 2, route="functional")
    batches = list(DifferentiableCollector(env, policy, frames_per_batch=9, total_frames=18))
    assert [batch["age"].squeeze(-1)[0].tolist() for batch in batches] == [[0, 1, 2], [3, 0, 1]]
    for batch in batches:
        batch["next", "reward"].sum().backward()


def test_a_policy_that_reads_a_mask_takes_the_general_route():
    env = inventory(batch_size=50)
    policy = policy_for(env, mask_key="allowed")
    allowed = torch.tensor([[True, False], [True, True]]).repeat(25, 1)
    start = env.reset().set("allowed", allowed)
    rollout = differentiable_rollout(env, policy, 5, tensordict=start)
    taken = rollout["action", "discrete"].unflatten(0, (25, 2)).any(0).any(-1)
    assert taken.tolist() == [False, True]
    assert rollout["next", "reward"].requires_grad
    with pytest.raises(TypeError, match="without a mask"):
        differentiable_rollout(env, policy, 5, tensordict=start, route="functional")


@pytest.mark.parametrize("horizon", [None, 7])
def test_an_environment_may_end_its_episodes_itself(horizon):
    env = Impatient(batch_size=4, seed=0, horizon=horizon)
    policy, found = policy_for(env), []
    start, noise = env.reset(), env.sample_noise(12)
    for route in ("functional", "general"):
        torch.manual_seed(1)
        env.set_seed(2)
        given = {"tensordict": start, "noise": noise, "route": route}
        found.append(differentiable_rollout(env, policy, 12, **given))
    assert (found[0]["step"][:, 1:] == 0).any()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0].keys(True, True))


@pytest.mark.parametrize("route", ["functional", "general"])
def test_given_noise_is_the_world_that_every_policy_faces(route):
    env = inventory(num_items=2, lead_time=1)
    noise, start = env.sample_noise(6), env.reset()
    before, untouched = env.rng.get_state(), start.clone()
    for policy in (policy_for(env), policy_for(env)):
        options = {"tensordict": start, "noise": noise, "route": route}
        rollout = differentiable_rollout(env, policy, 6, **options)
        ordered = rollout["action", "discrete"][..., None] * rollout["action", "continuous"]
        after = (rollout["inventory"].squeeze(-1) + ordered).sub(noise)
        torch.testing.assert_close(rollout["next", "inventory"].squeeze(-1), after)
    assert torch.equal(env.rng.get_state(), before)
    assert_identical(start, untouched)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be an integer >= 1, got 0"),
        ({"num_steps": 5.0}, TypeError, "num_steps must be an integer"),
        ({"discount": 0.0}, ValueError, "discount must be a finite number > 0 and <= 1, got 0"),
        ({"route": "fast"}, ValueError, "route must be one of 'auto', 'functional', 'general'"),
        ({"noise": torch.ones(4, 5, 1)}, ValueError, r"noise must have shape.*got \(4, 5, 1\)"),
    ],
)
def test_wrong_rollout_arguments_are_named(arguments, error, message):
    env = inventory(num_items=2)
    with pytest.raises(error, match=message):
        differentiable_rollout(env, policy_for(env), **{"num_steps": 5} | arguments)


def collector_of(env, policy=None, **arguments):
    policy = policy_for(env) if policy is None else policy
    return DifferentiableCollector(env, policy, **{"frames_per_batch": 20} | arguments)


@pytest.mark.parametrize("batch_size", [(), (4,), (2, 2)])
def test_batches_have_the_shape_and_go_on_where_the_last_one_ended(batch_size):
    collector = collector_of(inventory(batch_size=batch_size), total_frames=60)
    steps = 20 // math.prod(batch_size)
    batches = list(collector)
    assert [batch.shape for batch in batches] == [(*batch_size, steps)] * len(collector)
    assert collector.frames == 60
    assert list(collector) == []
    assert all(batch.names[-1] == "time" for batch in batches)
    assert [batch["step"].min().item() for batch in batches] == [0, steps, 2 * steps]
    for last, batch in itertools.pairwise(batches):
        assert torch.equal(last["next"][..., -1]["inventory"], batch[..., 0]["inventory"])


def test_a_graph_spans_exactly_one_batch():
    env = inventory()
    policy = policy_for(env)
    collector = collector_of(env, policy)
    first = collector.collect()
    attached = env.step_mdp(first[:, -1])
    first["next", "reward"].sum().backward()
    collector.collect()["next", "reward"].sum().backward()
    # Without the cut, the second backward would run into the first graph.
    longer = differentiable_rollout(env, policy, 5, tensordict=attached)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        longer["next", "reward"].sum().backward()


def test_the_collector_passes_its_discount_on():
    policy = policy_for(inventory())

    def collected(discount):
        torch.manual_seed(1)
        batch = collector_of(inventory(), policy, discount=discount).collect()
        return gradient(batch["next", "reward"], policy)

    torch.manual_seed(1)
    rollout = differentiable_rollout(inventory(), policy, 5, discount=0.5)
    assert torch.equal(collected(0.5), gradient(rollout["next", "reward"], policy))
    assert not torch.allclose(collected(0.5), collected(1.0))


def test_an_episode_that_ends_with_the_window_is_restarted():
    collector = collector_of(inventory(horizon=5), total_frames=60)
    for batch in collector:
        assert batch["step"][..., 0].tolist() == [[0, 1, 2, 3, 4]] * 4
        assert not batch["done"].any()
        assert batch["next", "done"][:, -1].all()


def test_each_batch_can_start_afresh():
    env = inventory()
    collector = collector_of(env, reset_at_each_iter=True)
    starts = [collector.collect()[:, 0] for _ in range(3)]
    assert all((start["step"] == 0).all() for start in starts)
    assert not torch.equal(starts[0]["inventory"], starts[1]["inventory"])
    running = collector_of(env)
    running.collect()
    running.reset()
    assert (running.collect()["step"][:, 0] == 0).all()


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 1.0])
def test_a_fraction_of_the_systems_is_restarted(fraction):
    options = {"reset_fraction": fraction, "frames_per_batch": 1000}
    collector = collector_of(inventory(batch_size=500), **options)
    before = collector.collect()["next", "inventory"][:, -1]
    batch = collector.collect()
    restarted = (batch["step"][:, 0] == 0).squeeze(-1)
    kept = (batch["inventory"][:, 0] == before).flatten(1).all(1)
    assert torch.equal(kept, ~restarted)
    spread = math.sqrt(fraction * (1 - fraction) / 500)
    assert abs(restarted.float().mean().item() - fraction) <= 4 * spread
    batch["next", "reward"].sum().backward()


def test_total_frames_and_length():
    partial = collector_of(inventory(), total_frames=50)
    assert len(partial) == len(list(partial)) == 3
    assert list(collector_of(inventory(), total_frames=0)) == []
    endless = collector_of(inventory())
    with pytest.raises(TypeError, match="total_frames=-1 has no length"):
        len(endless)
    assert [batch.shape for _, batch in zip(range(4), endless, strict=False)] == [(4, 5)] * 4
    env = inventory()
    for kind in (DifferentiableCollector, SampleCollector):
        collector = kind(env, policy_for(env, scale=0.3), frames_per_batch=20)
        for batch in (1, 2, 3):
            collector.collect()
            assert collector.frames == 20 * batch


def test_the_exploration_type_is_the_collectors_own():
    env = inventory()
    policy = policy_for(env)
    greedy = collector_of(env, policy, exploration_type=ExplorationType.DETERMINISTIC).collect()
    best = policy.distribution(greedy["observation"]).deterministic_sample
    assert torch.equal(greedy["action", "discrete"], best["discrete"])
    drawn = collector_of(env, policy, frames_per_batch=400).collect()
    assert drawn["action", "discrete"].unique().tolist() == [0, 1]


RUNS = [{}, {"reset_fraction": 0.5}, {"reset_at_each_iter": True}, {"route": "general"}]


@pytest.mark.parametrize("arguments", RUNS, ids=str)
@pytest.mark.parametrize("batches_before", [0, 2])
def test_a_loaded_state_goes_on_bit_for_bit(arguments, batches_before):
    def build(seed):
        env = inventory(horizon=7, seed=seed)
        return collector_of(env, policy, total_frames=100, **arguments)

    policy = policy_for(inventory(), scale=0.2)
    original = build(seed=0)
    for _ in range(batches_before):
        original.collect()
    file = io.BytesIO()
    torch.save({"collector": original.state_dict(), "torch": torch.get_rng_state()}, file)
    truth = list(original)
    assert len(truth) == 5 - batches_before
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for seed in (1, 2):  # twice: going on must not change what was saved
        again = build(seed)
        again.load_state_dict(saved["collector"])
        torch.set_rng_state(saved["torch"])
        assert again.frames == batches_before * 20
        for batch, expected in zip(again, truth, strict=True):
            assert_identical(batch, expected)


def test_shutdown_closes_the_environment_once():
    env = inventory()
    collector = collector_of(env)
    collector.shutdown()
    assert env.is_closed
    collector.shutdown()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"frames_per_batch": 22}, ValueError, "frames_per_batch must be a multiple of the 4"),
        ({"frames_per_batch": 0}, ValueError, "frames_per_batch must be an integer >= 1"),
        ({"total_frames": 1e6}, TypeError, "total_frames must be an integer >= -1"),
        ({"reset_fraction": 1.5}, ValueError, r"reset_fraction must be .* <= 1, got 1\.5"),
        ({"policy": HybridPolicy(HybridNetwork(2, 3, 1))}, ValueError, "policy has 3 discrete"),
    ],
)
def test_wrong_collector_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        collector_of(inventory(), **arguments)


def test_a_plain_environment_trains():
    """The whole algorithm on an environment that knows nothing of this library."""
    env = Drift()
    policy = HybridPolicy.for_env(env, hidden=(16,))
    hpo = HPO(
        env, policy, make_value_network(env, hidden=(16,)), unroll_length=8, learning_rate=1e-2
    )
    test = Evaluation(Drift(), num_steps=40, seed=0)
    before = test.run(policy).mean
    for _ in range(20):
        hpo.iterate()
    assert test.run(policy).mean < 0.8 * before
