"""Compiled rollouts, against the ones that are not."""

from __future__ import annotations

import csv
import functools
import re

import pytest
import torch
from shrunk import SMALL
from test_collectors import Impatient, policy_for
from test_masks import Shuttle
from test_recomputing import scalar
from torch import nn
from torchrl.envs.utils import ExplorationType

from hpo_torchrl.algorithms import HPO
from hpo_torchrl.collectors import CompiledRollout, DifferentiableCollector, differentiable_rollout
from hpo_torchrl.experiments.cli import compose_config
from hpo_torchrl.experiments.run import train_run
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv

STEPS = 7  # three stretches of two, and one step that is left over


def inventory(**arguments):
    place = {"dtype": torch.float64, "batch_size": 6, "seed": 0}
    return InventoryEnv(num_items=2, initial_state="random", **place, **arguments)


CASES = {
    "inventory": (inventory, {"scale": 0.3, "learn_scale": True}),
    "resets": (lambda: inventory(horizon=3, lost_sales=True), {"shared_trunk": True}),
    "masks and heads": (
        lambda: Shuttle(heads=2, batch_size=6, dtype=torch.float64),
        {"scale": 0.2},
    ),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Each test compiles its own, as a process of its own would."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Looking(InventoryEnv):
    """An environment that cannot be compiled: it looks at what it has computed."""

    def dynamics(self, state, action, noise):
        after, reward = super().dynamics(state, action, noise)
        return (after, reward) if bool((reward <= 0).all()) else (after, reward - 1)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_an_ordinary_rollout(case):
    make, network = CASES[case]
    torch.manual_seed(3)
    env = make()
    policy = policy_for(env, **network)
    compiled = CompiledRollout(env, policy, discount=0.9, steps=2)
    found, spent = [], []
    plain = functools.partial(differentiable_rollout, env, policy, discount=0.9)
    for roll in (plain, compiled):
        for seed in (1, 2):
            torch.manual_seed(seed)
            env.set_seed(5)
            rollout = roll(STEPS, tensordict=env.reset())
            parameters = list(policy.parameters())
            gradients = torch.autograd.grad(scalar(rollout), parameters, allow_unused=True)
            found.append((rollout, gradients, torch.rand(2)))
            spent.append(compiled.compile_seconds)
    assert 0.0 == spent[1] < spent[2] == spent[3]  # the second time nothing is compiled
    for (plain, one, after), (fast, other, after_fast) in zip(found[:2], found[2:], strict=True):
        assert set(plain.keys(True, True)) == set(fast.keys(True, True))
        for key in plain.keys(True, True):
            torch.testing.assert_close(fast[key], plain[key], rtol=1e-6, atol=1e-6)
        assert torch.equal(fast["action", "discrete"], plain["action", "discrete"])
        assert torch.equal(after, after_fast)  # the generators stand where they would
        assert max(g.abs().max() for g in one if g is not None) > 1
        for a, b in zip(one, other, strict=True):
            if a is not None:
                torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_give_the_values_and_gradients_of_an_ordinary_rollout():
    env = inventory(device="cuda")
    policy = policy_for(env, scale=0.3)
    found = []
    for roll in (
        functools.partial(differentiable_rollout, env, policy, discount=0.9),
        CompiledRollout(env, policy, discount=0.9, steps=2),
    ):
        for seed in (1, 1, 2):  # recorded, then replayed
            torch.manual_seed(seed)
            env.set_seed(5)
            rollout = roll(STEPS, tensordict=env.reset())
            gradient = torch.autograd.grad(scalar(rollout.cpu()), policy.network.skip.weight)[0]
            found.append((rollout["next", "reward"].detach().clone(), gradient))
    for plain, fast in zip(found[:3], found[3:], strict=True):
        for one, other in zip(plain, fast, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)


def test_training_is_the_same():
    def train(**arguments):
        torch.manual_seed(3)
        env = inventory()
        policy = policy_for(env)
        hpo = HPO(env, policy, make_value_network(env, hidden=(8,)), window=10, **arguments)
        torch.manual_seed(7)
        metrics = [hpo.iterate() for _ in range(3)]
        return torch.cat([p.detach().flatten() for p in policy.parameters()]), metrics

    (plain, _), (fast, metrics) = train(), train(compile=True)
    torch.testing.assert_close(fast, plain, rtol=1e-6, atol=1e-8)
    assert [row.get("compile_seconds", 0.0) > 0.0 for row in metrics] == [True, False, False]


class Custom(nn.Module):
    """A network of one's own, whose scale is one for all options, or absent."""

    def __init__(self, scale):
        super().__init__()
        self.net = nn.Linear(4, 6)
        self.scale = scale

    def forward(self, observation):
        logits, loc = self.net(observation.float()).split([2, 4], -1)
        return logits, 30 + loc.unflatten(-1, (2, 2)), self.scale


@pytest.mark.parametrize("scale", [None, torch.tensor([0.3, 0.4])])
def test_a_network_of_ones_own_draws_what_it_would(scale):
    env = InventoryEnv(num_items=2, batch_size=4, seed=0)
    policy, found = HybridPolicy(Custom(scale)), []
    start, noise = env.reset(), env.sample_noise(4)
    plain = functools.partial(differentiable_rollout, env, policy)
    for roll in (plain, CompiledRollout(env, policy, steps=100)):  # none is long enough to compile
        torch.manual_seed(1)
        found.append(roll(4, tensordict=start, noise=noise))
    for key in ("reward", "observation"):
        torch.testing.assert_close(found[0]["next", key], found[1]["next", key])
    for key in ("action_log_prob", "discrete_log_prob"):
        torch.testing.assert_close(found[0][key], found[1][key])


def test_runs_in_one_process_do_not_use_up_what_torch_allows():
    env = inventory()
    policy = policy_for(env)
    rollouts = [CompiledRollout(env, policy, steps=1) for _ in range(2)]
    with torch._dynamo.config.patch(recompile_limit=1):
        for rollout in rollouts:
            before = rollout.compile_seconds
            rollout(2)
            assert rollout.compile_seconds > before
        env.fixed_cost = 7.0
        with pytest.warns(UserWarning, match="numbers of the environment that change"):
            rollouts[0](2)


def test_the_length_of_a_stretch_divides_the_rollout():
    found = []
    for number in (30, 4, 7, 11):
        rollout = CompiledRollout(inventory(), policy_for(inventory()))
        rollout._compiled = None
        rollout(number)
        found.append(rollout.steps)
    assert found == [5, 4, 7, 5]


def test_a_mask_that_allows_nothing_is_refused():
    class Stuck(Shuttle):
        def allowed(self, state):
            return torch.zeros(*state["x"].shape[:-1], 3, dtype=torch.bool)

    env = Stuck(batch_size=3)
    policy = HybridPolicy.for_env(env, hidden=[8])
    with pytest.raises(ValueError, match="mask must allow at least one option"):
        CompiledRollout(env, policy, steps=100)(3)


def test_a_run_says_how_long_it_compiled(tmp_path, capsys):
    config = compose_config([*SMALL, "algorithm.compile=true", "trainer.num_updates=2"])
    train_run(config, tmp_path / "run")
    assert re.search(r"^compiled in +\d+\.\d s$", capsys.readouterr().err, re.MULTILINE)
    text = (tmp_path / "run" / "metrics.csv").read_text()
    first, second = csv.DictReader(text.splitlines())
    assert float(first["compile_seconds"]) > 0.0
    assert not second["compile_seconds"]


def test_a_graph_may_be_gone_through_twice():
    env = inventory()
    rollout = CompiledRollout(env, policy_for(env), steps=2)(4)
    loss = rollout["next", "reward"].mean()
    loss.backward(retain_graph=True)
    loss.backward()


def test_an_environment_that_cannot_be_compiled_goes_on_as_it_is():
    env = Looking(batch_size=4, initial_state="random", seed=0)
    policy = policy_for(env)
    start, noise = env.reset(), env.sample_noise(4)
    compiled, found = CompiledRollout(env, policy, steps=2), []
    for roll in (
        compiled,
        compiled,
        lambda *a, **kw: differentiable_rollout(env, policy, *a, **kw),
    ):
        torch.manual_seed(1)
        if not found:
            with pytest.warns(UserWarning, match="Looking and its policy cannot be compiled"):
                found.append(roll(4, tensordict=start, noise=noise))
        else:
            found.append(roll(4, tensordict=start, noise=noise))
    for rollout in found[:2]:
        torch.testing.assert_close(rollout["next", "reward"], found[2]["next", "reward"])


def test_only_what_samples_and_keeps_gradients_is_compiled():
    env = inventory()
    policy = policy_for(env)
    deterministic = DifferentiableCollector(
        env,
        policy,
        frames_per_batch=60,
        compile=True,
        exploration_type=ExplorationType.DETERMINISTIC,
    )
    deterministic.collect()
    collector = DifferentiableCollector(env, policy, frames_per_batch=60, compile=True)
    with torch.no_grad():
        collector.collect()
    assert deterministic.compile_seconds() == collector.compile_seconds() == 0.0


def test_what_does_not_go_together_is_refused():
    env = inventory()
    policy = policy_for(env)
    for name, value in {"temperature": 1.0, "checkpoint_steps": 5, "route": "general"}.items():
        with pytest.raises(ValueError, match=f"compile does not go with {name}={value!r}"):
            DifferentiableCollector(env, policy, frames_per_batch=60, compile=True, **{name: value})
    with pytest.raises(TypeError, match="compile must be"):
        DifferentiableCollector(env, policy, frames_per_batch=60, compile=3)
    with pytest.raises(TypeError, match="compile needs a DifferentiableEnv"):
        CompiledRollout(env, HybridPolicy(policy.network, observation_key="x"))
    impatient = Impatient(batch_size=2)
    with pytest.raises(TypeError, match="compile needs episodes that end at the horizon"):
        CompiledRollout(impatient, policy_for(impatient))
    policy.network.continuous.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="compile passes over hooks, and MLP of the policy"):
        CompiledRollout(env, policy)
