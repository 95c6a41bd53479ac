"""Compiled rollouts, by torch.compile and by XLA, against the ones that are not."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_collectors import Impatient, policy_for
from test_masks import Shuttle
from test_recomputing import scalar
from torchrl.envs.utils import ExplorationType

from hpo_torchrl.algorithms import HPO, PPO, GumbelSoftmax, Pathwise
from hpo_torchrl.collectors import DifferentiableCollector, Rollout
from hpo_torchrl.collectors import compiling as compiling_module
from hpo_torchrl.collectors.compiling import Compiled
from hpo_torchrl.core.finite import NonFiniteError
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.envs import ReplicatedEnv
from hpo_torchrl.experiments.build import build_algorithm
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.modules import HybridPolicy, make_value_network, replicate
from hpo_torchrl.objectives import HPOLoss
from hpo_torchrl.problems import InventoryEnv

STEPS = 4


def inventory(**arguments):
    place = {"dtype": torch.float64, "batch_size": 6, "seed": 0}
    return InventoryEnv(num_items=2, initial_state="random", **place | arguments)


def seeds():
    """Three seeds with learned scales and resets."""
    envs = [inventory(seed=seed, horizon=3, lost_sales=True) for seed in range(3)]
    network = {"scale": 0.3, "learn_scale": True, "shared_trunk": True}
    policies = [policy_for(env, **network) for env in envs]
    return ReplicatedEnv(envs), replicate(policies)


def cart():
    """Masks and heads, squashed."""
    env = Shuttle(heads=2, batch_size=6, dtype=torch.float64)
    return env, policy_for(env, scale=0.2, distribution="squashed_normal")


CASES = {"seeds": (seeds, None), "cart": (cart, 1)}


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Each test compiles its own, as a process of its own would."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def without_code(monkeypatch):
    """Graphs are captured and cut as ever, but no machine code is made of them."""
    compiler = torch.compile

    def capture(chunk, *, options, **settings):
        return compiler(chunk, backend="aot_eager", **settings)

    monkeypatch.setattr(torch, "compile", capture)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_an_ordinary_rollout(case):
    spent = compared(case)
    assert 0.0 == spent[1] < spent[2] == spent[3]  # the second time nothing is compiled


@pytest.mark.parametrize("case", CASES)
def test_the_form_for_compiling_gives_the_same(case, monkeypatch):
    """Without a compiler, which takes its time."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda chunk, **how: asked.append(how) or chunk)
    assert compared(case) == [0.0] * 4
    (how,) = asked
    assert how["fullgraph"]
    assert how["dynamic"] is False
    assert how["options"] == ({"triton.cudagraphs": True} if torch.cuda.is_available() else {})


@pytest.mark.parametrize(("given", "chunks"), [(2, 3), (3, 2), (None, 1)])
def test_chunks_of_the_length_that_is_asked_for_are_compiled(given, chunks, monkeypatch):
    calls = []
    monkeypatch.setattr(
        torch, "compile", lambda chunk, **how: lambda *these: calls.append(1) or chunk(*these)
    )
    env = inventory()
    for scale in (0.3, 0.0):  # without a scale the discrete action is still sampled
        calls.clear()
        policy = policy_for(env, scale=scale)
        roll = Rollout(env, policy, compile="inductor", checkpoint_steps=given)
        with torch.no_grad():
            roll(6)
        assert not calls
        roll(6)
        assert len(calls) == chunks


def compared(case):
    """Compare a rollout with the compiled one, twice; return what was spent on compiling."""
    make, checkpoint_steps = CASES[case]
    torch.manual_seed(3)
    env, policy = make()
    found, spent = [], []
    plain = Rollout(env, policy, discount=0.9)
    how = {"compile": "inductor", "checkpoint_steps": checkpoint_steps}
    compiled = Rollout(env, policy, discount=0.9, **how)
    compiled.compiled._length = 1
    for roll in (plain, compiled):
        for seed in (1, 2):
            policy.randomness = Randomness(range(seed, seed + 3) if env.num_seeds else seed)
            env.set_seed(5)
            rollout = roll(STEPS)
            gradients = torch.autograd.grad(
                scalar(rollout), list(policy.parameters()), allow_unused=True, retain_graph=True
            )
            shape = (3, 2) if env.num_seeds else (2,)
            found.append((rollout, gradients, policy.randomness.draw("normal", shape)))
            spent.append(compiled.compile_seconds)
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
    found[3][0]["next", "reward"].mean().backward()  # a graph may be gone through twice
    return spent


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_give_the_values_and_gradients_of_an_ordinary_rollout():
    env = inventory(device="cuda")
    policy = policy_for(env, scale=0.3)
    found = []
    fast = Rollout(env, policy, discount=0.9, compile="inductor")
    fast.compiled._length = 2
    for roll in (Rollout(env, policy, discount=0.9), fast):
        for seed in (1, 1, 2):  # recorded, then replayed
            torch.manual_seed(seed)
            env.set_seed(5)
            rollout = roll(STEPS, tensordict=env.reset())
            gradient = torch.autograd.grad(scalar(rollout.cpu()), policy.network.skip.weight)[0]
            found.append((rollout["next", "reward"].detach().clone(), gradient))
    for plain, quick in zip(found[:3], found[3:], strict=True):
        for one, other in zip(plain, quick, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)


def test_training_is_the_same(without_code):
    def train(**arguments):
        torch.manual_seed(3)
        env = inventory()
        policy = policy_for(env)
        hpo = HPO(env, policy, make_value_network(env, hidden=(8,)), unroll_length=2, **arguments)
        torch.manual_seed(7)
        metrics = [hpo.iterate() for _ in range(3)]
        return torch.cat([p.detach().flatten() for p in policy.parameters()]), metrics

    (plain, _), (fast, metrics) = train(), train(compile="inductor")
    torch.testing.assert_close(fast, plain, rtol=1e-6, atol=1e-8)
    assert [row.get("compile_seconds", 0.0) > 0.0 for row in metrics] == [True, False, False]


class Looking(InventoryEnv):
    """An environment that cannot be compiled: it looks at what it has computed."""

    def dynamics(self, state, action, noise):
        after, reward = super().dynamics(state, action, noise)
        return (after, reward) if bool((reward <= 0).all()) else (after, reward - 1)


class Aside(InventoryEnv):
    """An environment that computes beside torch, which no trace sees."""

    def dynamics(self, state, action, noise):
        after, reward = super().dynamics(state, action, noise)
        level = after["inventory"].detach().flatten(reward.ndim).numpy().sum(-1)
        return after, reward - torch.from_numpy(level)


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.from_numpy(2 * gradient.numpy())


class Backwards(InventoryEnv):
    """The same, where the gradient is computed."""

    def dynamics(self, state, action, noise):
        after, reward = super().dynamics(state, action, noise)
        return after, _Twice.apply(reward.square() / 9)


@pytest.mark.parametrize(
    ("kind", "how"),
    [(Looking, "inductor"), (Looking, "xla"), (Aside, "xla"), (Backwards, "xla")],
)
def test_an_environment_that_cannot_be_compiled_goes_on_as_it_is(kind, how):
    env = kind(batch_size=4, initial_state="random", seed=0)
    policy = policy_for(env)
    start, noise = env.reset(), env.sample_noise(4)
    compiled = Rollout(env, policy, compile=how)

    def reward(roll):
        torch.manual_seed(1)
        return roll(4, tensordict=start, noise=noise)["next", "reward"]

    with pytest.warns(UserWarning, match=f"{kind.__name__} and its policy cannot be compiled"):
        first = reward(compiled)
    for roll in (compiled, Rollout(env, policy)):
        torch.testing.assert_close(reward(roll), first)


def test_where_steps_may_be_compiled_nothing_is_said_if_they_are_not(recwarn):
    env = Aside(batch_size=4, initial_state="random", seed=0)
    policy = policy_for(env)
    found = []
    for how in (False, "auto"):
        env.set_seed(0)
        roll = Rollout(env, policy, compile=how, randomness=Randomness(0))
        found.append(roll(4)["next", "reward"])
    assert roll.compiled is not None
    assert torch.equal(*found)
    assert not [each for each in recwarn if "compile" in str(each.message)]
    impatient = Impatient(batch_size=2)  # and what cannot be, is not tried
    for other, how in (
        (impatient, {}),
        (env, {"checkpoint_steps": 2}),
        (env, {"route": "general"}),
    ):
        assert Rollout(other, policy_for(other), compile="auto", **how).compiled is None


@pytest.mark.parametrize(
    ("overrides", "scanned"),
    [
        ([], False),
        (["trainer.num_updates=200"], True),
        (["trainer.num_updates=200", "collect.compile=false"], False),
        (["trainer.num_updates=200", "algorithm=ppo"], True),
        (["trainer.num_updates=200", "algorithm=ddpg"], False),
        (["trainer.num_updates=10", "collect.compile=true"], True),
    ],
)
def test_a_run_is_compiled_where_it_is_long_enough(overrides, scanned):
    config = compose_config(["collect.batch_size=4", "trainer.num_updates=199", *overrides])
    assert (build_algorithm(config).collector.compiled is not None) == scanned


def test_programs_are_kept_for_each_processor_where_nobody_has_said_otherwise(
    tmp_path, monkeypatch
):
    jax = pytest.importorskip("jax")
    kept = pytest.importorskip("hpo_torchrl.collectors.kept_programs")
    name = "jax_compilation_cache_dir"
    others = ("jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs")
    before = {key: getattr(jax.config, key) for key in (name, *others)}
    try:
        jax.config.update(name, None)
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # which holds no folders
        kept.keep_programs()
        assert getattr(jax.config, name) is None
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        places = []
        for flags in ("flags : avx2", "flags : avx512f"):
            monkeypatch.setattr(kept, "_processor", lambda flags=flags: flags)
            jax.config.update(name, None)
            kept.keep_programs()
            places.append(getattr(jax.config, name))
        assert all(place.startswith(f"{tmp_path}/hpo_torchrl/xla-") for place in places)
        assert len({*places}) == 2
        kept.keep_programs()
        assert getattr(jax.config, name) == places[-1]
        # What a process was writing when it was killed goes, and what one may be writing now stays.
        folder, hour = Path(places[-1]), 3600
        for key, age in (("whole", hour), ("killed", hour), ("young", 0)):
            (folder / f"{key}-cache").touch()
            os.utime(folder / f"{key}-cache", (time.time() - age,) * 2)
        (folder / "whole-atime").touch()
        jax.config.update(name, None)
        kept.keep_programs()
        assert {path.name for path in folder.iterdir()} == {
            *("whole-cache", "whole-atime", "young-cache")
        }
    finally:
        for key, value in before.items():
            jax.config.update(key, value)


def test_what_was_traced_in_another_run_is_not_traced_again(tmp_path, monkeypatch):
    jax = pytest.importorskip("jax")
    kept = pytest.importorskip("hpo_torchrl.collectors.kept_programs")
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)

    def traced(recipe="double", size=3):
        calls = []

        def double(values):
            calls.append(recipe)
            return [2.0 * value for value in values]

        found = kept.kept(double, recipe)([np.arange(float(size), dtype=np.float32)])
        assert np.asarray(found[0]).tolist() == [2.0 * i for i in range(size)]
        return bool(calls)

    try:
        jax.config.update(name, None)
        assert [traced(), traced()] == [True, True]  # there is nowhere to keep it
        jax.config.update(name, str(tmp_path))
        assert [traced(), traced()] == [True, False]
        assert [traced("another"), traced(size=4), traced(size=4)] == [True, True, False]
        for path in (tmp_path / "lowered").iterdir():
            path.write_bytes(b"of another version")
        assert [traced(), traced()] == [True, False]
        monkeypatch.setattr(kept, "_code", lambda: b"translates otherwise")
        monkeypatch.setattr(kept, "_MOST_LOWERED", 2)
        assert [traced(), traced()] == [True, False]
        assert len([*(tmp_path / "lowered").iterdir()]) == 3  # and the one that is new
    finally:
        jax.config.update(name, before)


def test_what_is_compiled_again_and_again_is_given_up(without_code, monkeypatch):
    monkeypatch.setattr(compiling_module, "_OWN_GRAPHS", 1)
    env = inventory()
    rollout = Rollout(env, policy_for(env), compile="inductor")
    rollout(1)
    env.ordering.joint_cost = 7.0  # a number of the dynamics
    with pytest.warns(UserWarning, match=r"compiled 2 times.*numbers of the environment"):
        rollout(1)
    spent = rollout.compile_seconds
    env.ordering.joint_cost = 8.0
    rollout(1)
    assert rollout.compile_seconds == spent


def test_the_length_of_a_chunk_divides_the_rollout():
    lengths = [Compiled(sum, "a sum").length(number, None) for number in (30, 4, 7, 11)]
    assert lengths == [5, 4, 7, 5]


def test_only_what_samples_and_keeps_gradients_is_compiled():
    env = inventory()
    policy = policy_for(env)
    build = functools.partial(
        DifferentiableCollector, env, policy, frames_per_batch=60, compile="inductor"
    )
    deterministic, collector = build(exploration_type=ExplorationType.DETERMINISTIC), build()
    deterministic.collect()
    with torch.no_grad():
        collector.collect()
    assert deterministic.compile_seconds() == collector.compile_seconds() == 0.0


def test_what_does_not_go_together_is_refused():
    env = inventory()
    policy = policy_for(env)
    with pytest.raises(ValueError, match="compile needs the functional route"):
        DifferentiableCollector(env, policy, frames_per_batch=60, compile=True, route="general")
    with pytest.raises(TypeError, match="compile must be"):
        DifferentiableCollector(env, policy, frames_per_batch=60, compile=3)
    with pytest.raises(TypeError, match="compile needs a DifferentiableEnv"):
        Rollout(env, HybridPolicy(policy.network, observation_key="x"), compile=True)
    impatient = Impatient(batch_size=2)
    with pytest.raises(TypeError, match="compile needs episodes that end at the horizon"):
        Rollout(impatient, policy_for(impatient), compile=True)
    with pytest.raises(ValueError, match="one of 'auto', 'xla', 'inductor', got 'jit'"):
        Rollout(env, policy, compile="jit")
    with pytest.raises(ValueError, match="compile='xla' is of rollouts on a CPU"):
        Rollout(env, policy, compile="xla", checkpoint_steps=2)


# -- by XLA ----------------------------------------------------------------------------------------


def resets():
    """Instances that are at different steps, and begin anew within a rollout."""
    env = inventory(horizon=5)
    return env, policy_for(env, scale=0.3)


def relaxed():
    """A straight-through choice."""
    env = inventory(lost_sales=True)
    return env, policy_for(env)


@pytest.mark.parametrize("make", [seeds, cart, resets, relaxed])
def test_what_xla_computes_is_what_torch_computes(make):
    env, policy = make()
    how = {"discount": 0.9, "temperature": 0.7 if make is relaxed else None}
    plain, fast = Rollout(env, policy, **how), Rollout(env, policy, **how, compile="xla")
    found = []
    for roll in (plain, fast, fast):
        policy.randomness = Randomness(range(3) if env.num_seeds else 1)
        env.set_seed(5)
        start = env.reset()
        if make is resets:
            start["step"] = torch.arange(6).view(6, 1) % 5
        with torch.no_grad():
            roll(STEPS, tensordict=start)
        rollout = roll(STEPS, tensordict=start)
        leaves = list(policy.parameters())
        slopes = torch.autograd.grad(scalar(rollout), leaves, allow_unused=True, retain_graph=True)
        again = torch.autograd.grad(scalar(rollout), leaves, allow_unused=True)
        found.append((rollout, slopes, again, roll.compile_seconds))
    assert found[0][-1] == 0.0 < found[1][-1] == found[2][-1]  # compiled once, backward too
    (rollout, slopes, _, _), *others = found
    assert max(slope.abs().max() for slope in slopes if slope is not None) > 1
    for other, *both, _ in others:
        assert set(other.keys(True, True)) == set(rollout.keys(True, True))
        for key, value in rollout.items(True, True):
            torch.testing.assert_close(other[key], value, rtol=1e-9, atol=1e-9)
            assert other[key].requires_grad == value.requires_grad
        for own in both:
            for one, slope in zip(own, slopes, strict=True):
                if slope is not None:
                    torch.testing.assert_close(one, slope, rtol=1e-7, atol=1e-7)


def train(make, kind, **arguments):
    """Return weights, metrics and the algorithm after four updates."""
    torch.manual_seed(3)
    env, policy = make()
    members = getattr(env, "members", [env])
    critics = [make_value_network(member, hidden=(8,)) for member in members]
    critic = critics[0] if env.num_seeds is None else replicate(critics)
    arguments["seed"] = None if env.num_seeds is None else range(3)
    algorithm = kind(env, policy, critic, unroll_length=4, **arguments)
    torch.manual_seed(7)
    rows = [algorithm.iterate() for _ in range(4)]
    metrics = [row for each in rows for row in (each if isinstance(each, list) else [each])]
    networks = torch.nn.ModuleList([policy, critic])
    return torch.cat([p.detach().flatten() for p in networks.parameters()]), metrics, algorithm


def apart():
    """Instances whose episodes end at different steps of a rollout."""
    env = inventory(horizon=3)
    return env, policy_for(env, scale=0.3, learn_scale=True)


class Remembering(HPOLoss):
    """A loss with a mean of its own, which moves on with every call, and a number of the calls."""

    def __init__(self, *networks, **coefficients):
        super().__init__(*networks, **coefficients)
        self.register_buffer("level", torch.zeros((), dtype=torch.float64))
        self.calls = 0

    def forward(self, tensordict):
        terms = super().forward(tensordict)
        self.calls += 1
        self.level.lerp_(terms["loss_critic"].detach(), 0.5)
        return terms.set("loss_critic", terms["loss_critic"] / (1.0 + self.level + self.calls))


class WeighingLoss(HPOLoss):
    """A loss that reads more than it names, where there is more."""

    def score_function_term(self, data, logits):
        weight = data.get("inventory", None)
        weight = 1.0 if weight is None else weight.flatten(data.ndim).sum(-1)
        return weight * super().score_function_term(data, logits)


SIMULATED = {"branch_steps": 4, "branch_fraction": 0.7}
TRAININGS = {
    "regression": (lambda: (env := inventory(), policy_for(env)), HPO, SIMULATED),
    "score function": (resets, HPO, {"branch_steps": 0, "epochs": 3}),
    "ends apart": (apart, HPO, {"branch_steps": 0, "reset_fraction": 0.5}),
    "masked heads": (cart, HPO, {"branch_steps": 2}),
    "adaptive": (resets, HPO, {"branch_steps": 0, "cross_term": "adaptive"}),
    "seeds": (seeds, HPO, SIMULATED | {"target_kl": 0.05}),
    "seeds, score function": (seeds, HPO, {"branch_steps": 0, "epochs": 3, "target_kl": 3e-3}),
    "seeds, ppo": (seeds, PPO, {"target_kl": 1e-3}),
    "remembering": (resets, HPO, {"branch_steps": 0, "loss": Remembering}),
    "weighing": (resets, HPO, {"branch_steps": 0, "loss": WeighingLoss}),
    "pathwise": (resets, Pathwise, {"discrete_action": 1}),
    "relaxed": (relaxed, GumbelSoftmax, {}),
    "ppo": (apart, PPO, {"num_minibatches": 2, "scale_entropy_coeff": 0.1}),
    "ppo, masked heads": (cart, PPO, {"epochs": 2, "gae_lambda": 0.0}),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_training_by_xla_is_the_same(name):
    make, kind, settings = TRAININGS[name]
    plain, rows, _ = train(make, kind, **settings)
    fast, others, algorithm = train(make, kind, **settings, compile="xla")
    torch.testing.assert_close(fast, plain, rtol=1e-7, atol=1e-9)
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx({key: other[key] for key in row}, rel=1e-6, abs=1e-12)
    compiled = algorithm.collector.compiled
    assert not any(scan.given_up for scan in compiled.scans)
    used = {scan.name for scan in compiled.scans if scan.programs}
    whole = {each for each in used if each.endswith("Loss of a batch")}
    assert bool(whole) == (kind is not PPO and name not in ("adaptive", "remembering"))
    passes = kind in (HPO, PPO) and name != "remembering"
    assert (f"the passes of {kind.__name__}" in used) == passes


def test_the_time_of_compilation_is_told_once():
    make, kind, settings = TRAININGS["regression"]
    _, metrics, hpo = train(make, kind, **settings, compile="xla")
    assert [row.get("compile_seconds", 0.0) > 0.0 for row in metrics] == [True, *[False] * 3]
    # A run that goes back to its start has spent it.
    hpo.collector.load_state_dict(hpo.collector.state_dict())
    seconds = hpo.collector.compiled.seconds
    assert hpo.collector.compile_seconds() == seconds > 0.0


def test_numbers_and_tensors_of_the_environment_are_those_of_now():
    env = inventory()
    policy = policy_for(env)
    start, noise = env.reset(), env.sample_noise(STEPS)
    plain, fast = Rollout(env, policy), Rollout(env, policy, compile="xla")
    rewards = []

    def compared():
        found = []
        for roll in (plain, fast):
            policy.randomness = Randomness(1)
            found.append(roll(STEPS, tensordict=start, noise=noise)["next", "reward"])
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
        assert all(not torch.equal(found[0], before) for before in rewards)
        rewards.append(found[0].detach().clone())
        return len(fast.compiled.scan.programs)

    assert compared() == 1
    env.holding_cost.mul_(3.0)  # the tensor that the trace knows
    assert compared() == 1
    env.shortage_cost = 2.0 * env.shortage_cost  # another
    assert compared() == 2
    env.ordering.joint_cost = 7.0
    assert compared() == 3
    for parameter in policy.parameters():
        parameter.data.add_(0.1)
    assert compared() == 3


@pytest.mark.parametrize("what", ["weights", "entry"])
def test_what_changes_before_the_gradient_is_told(what):
    env = inventory()
    policy = policy_for(env)
    rollout = Rollout(env, policy, compile="xla")(STEPS)
    with torch.no_grad():  # entries have the memory that gradients follow from
        changed = {"weights": policy.network.skip.weight, "entry": rollout["action", "continuous"]}
        changed[what].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rollout["next", "reward"].sum().backward()


def test_hooks_are_called_by_torch():
    env = inventory()
    policy = policy_for(env)
    called = []
    policy.network.discrete[0].register_forward_hook(lambda *_: called.append(1))
    with pytest.warns(UserWarning, match="a module has hooks"):
        Rollout(env, policy, compile="xla")(STEPS)
    assert len(called) == STEPS


def test_what_is_not_finite_in_a_pass_spoils_nothing():
    torch.manual_seed(3)
    env = inventory()
    critic = make_value_network(env, hidden=(8,))
    hpo = HPO(env, policy_for(env), critic, unroll_length=4, compile="xla", branch_steps=0)
    hpo.iterate()
    before = [value.clone() for value in hpo.policy.state_dict().values()]
    steps = {p: state["step"].clone() for p, state in hpo.optimization.optimizers[0].state.items()}
    data = hpo.collector.collect().detach()
    data["advantage"] = data["value_target"] = torch.full_like(data["next", "reward"], torch.nan)
    rows = torch.arange(data.numel()).view(4, -1)
    with pytest.raises(NonFiniteError, match=r"loss_\w+ is not finite"):
        hpo.fused_steps(data.exclude("next").reshape(-1), rows, None)
    for value, known in zip(hpo.policy.state_dict().values(), before, strict=True):
        assert torch.equal(value, known)
    for parameter, state in hpo.optimization.optimizers[0].state.items():
        assert torch.equal(state["step"], steps[parameter])


def test_what_is_traced_again_and_again_is_given_up(monkeypatch):
    monkeypatch.setattr("hpo_torchrl.collectors.scan._MOST_PROGRAMS", 1)
    env = inventory()
    roll = Rollout(env, policy_for(env), compile="xla")
    roll(STEPS)
    env.ordering.joint_cost = 7.0
    with pytest.warns(UserWarning, match="traced 1 times"):
        roll(STEPS)
    assert roll(STEPS)["next", "reward"].requires_grad


def test_xla_computes_on_the_first_cpu_whatever_jax_would_take(tmp_path):
    pytest.importorskip("jax")
    code = """
import jax
jax.config.update("jax_default_device", jax.devices()[1])
from hpo_torchrl.collectors import Rollout
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.problems import InventoryEnv
env = InventoryEnv(batch_size=4, initial_state="random")
rollout = Rollout(env, HybridPolicy.for_env(env), compile="xla")
rollout(3)
(program,) = rollout.compiled.scan.programs.values()
forward = program.forward
def told(*given):
    found = forward(*given)
    print(*{device.id for part in jax.tree.leaves(found) for device in part.devices()})
    return found
program.forward = told
rollout(3)
"""
    place = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=place, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["0"]
