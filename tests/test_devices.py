"""Everything stays on its environment's device: runs on a pretended one, where a mix raises."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pretended import DEVICE, DeviceMixError, pretended_device
from shrunk import TINY
from test_package import PROBLEMS
from water_tank import Tank

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.collectors.collector import restart
from hpo_torchrl.experiments.build import build_algorithm, build_env
from hpo_torchrl.experiments.config import CONFIGS, choices, compose_config
from hpo_torchrl.experiments.run import make_trainer
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.problems.storage import rules as storage_rules
from hpo_torchrl.problems.unit_commitment import rules as unit_rules
from hpo_torchrl.training import Checkpoint

NETS = ["policy.hidden=[4]", "critic.hidden=[4]"]
SMALL = [*(text for text in TINY if "hidden" not in text), *NETS, "collect.unroll_length=3"]


@pytest.fixture
def device():
    with pretended_device() as found:
        yield found


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Searches of rules are short, and a file of demand is at hand."""
    monkeypatch.chdir(tmp_path)
    np.save("demand.npy", np.arange(1.0, 49.0).reshape(4, 12, 1))
    monkeypatch.setattr(unit_rules, "_PATIENCE", range(1))
    for name, value in {"INSTANCES": 4, "DAYS": 2, "SKIP": 1, "TRIED": 3, "ROUNDS": 1}.items():
        monkeypatch.setattr(storage_rules, f"_{name}", value)


def composed(*overrides, device="cpu"):
    name = next((text for text in overrides if text.startswith("env=")), "").removeprefix("env=")
    given = [text for text in SMALL if "batch_size" not in text or "traces" not in name]
    return compose_config([*overrides, *PROBLEMS.get(name, []), *given, f"device={device}"])


def assert_there(found):
    """All tensors of a tensordict are on the pretended device, and name its number."""
    for key, value in found.items(True, True):
        assert str(value.device) == f"{DEVICE.type}:0", key


# -- the pretended device ------------------------------------------------------------------------


def test_what_a_gpu_refuses_is_refused(device):
    there, here = torch.arange(3.0, device=device), torch.arange(3.0)
    generator = torch.Generator(device)
    for refused in (
        lambda: there + here,
        lambda: torch.stack([there, here]),
        lambda: torch.stack([there[0], here[0]]),
        lambda: here[there.long()],
        lambda: torch.where(there > 1, here, there),
        lambda: torch.rand(3, generator=generator),
        lambda: torch.rand(3, device=device, generator=torch.Generator()),
        lambda: there.clone().normal_(generator=torch.Generator()),
    ):
        with pytest.raises(DeviceMixError):
            refused()
    with pytest.raises((TypeError, RuntimeError)):
        there.numpy()
    # A number, an index and a move are no mix.
    assert (there * torch.tensor(2.0)).tolist() == [0.0, 2.0, 4.0]
    assert there[here.long()].add_(here.to(device)).tolist() == [0.0, 2.0, 4.0]
    assert torch.equal(there.cpu(), here)
    assert torch.tensor([1.0], device=device).device == there.device != here.device


# -- environments --------------------------------------------------------------------------------

ENVS = {
    **{name: [f"env={name}"] for name in choices("env") if "/" not in name},
    "discount": ["env=paper/discount"],
    "step cost": ["env=paper/step_cost"],
    "lead times": ["env=paper/lead_time_by_quantity"],
    "negative binomial": ["env=ata/two_items"],
    "batteries beside units": ["env=unit_commitment", "+env.batteries={number: 2}"],
    "learned dispatch": ["env=unit_commitment", "env.dispatch=learned"],
    "several connections": ["env=storage", "env.num_batteries=2", "env.connection_limit=1.0"],
    "demand charge": ["env=storage", "env.demand_charge=1.0", "env.horizon=24"],
}


def live(env):
    """Reset, roll out by both routes with a gradient, and restart some instances."""
    assert_there(env.reset())
    policy = HybridPolicy.for_env(env, hidden=(4,), find_scales=False, scale=0.1)
    assert_there(env.rollout(2, policy, break_when_any_done=False))
    if not hasattr(env, "dynamics"):
        return
    state = env.reset()
    noise = env.sample_noise(2, state.select(*env.state_names).to_dict())
    found = differentiable_rollout(env, policy, 2, tensordict=state, noise=noise)
    if found["next", "reward"].requires_grad:  # some units' powers follow from what is on
        found["next", "reward"].mean().backward()
    assert_there(found)
    first = torch.arange(len(state), device=env.device).unsqueeze(-1) == 0
    assert_there(restart(env, found[:, -1].detach().select(*state.keys()), first))


@pytest.mark.parametrize("name", ENVS)
def test_an_environment_keeps_to_its_device(name, small, device):
    """Built there, or moved there."""
    env = build_env(composed(*ENVS[name], device=device))
    live(env)
    live(build_env(composed(*ENVS[name])).to(device))
    for rule in getattr(env, "rules", dict)().values():
        try:
            policy = rule()
        except ValueError:  # it is none for this problem
            continue
        assert_there(env.rollout(2, policy))
    try:
        choice = env.heuristic_choice(env.reset()["observation"])
    except (NotImplementedError, AttributeError):
        return
    assert choice.device == env.reset()["observation"].device


class Stayed(Tank):
    """The planted fault: a constant that never leaves the CPU."""

    def dynamics(self, state, action, noise):
        after, reward = super().dynamics(state, action, noise)
        return {"level": after["level"] * torch.ones(1)}, reward

    def initial_state(self):
        return {"level": self._draw(torch.rand, (*self.batch_size, 1))}

    def draw_noise(self, num_steps, state):
        return self._draw(torch.randn, (*self.batch_size, num_steps, 1))


def test_a_constant_that_stays_behind_is_found(device):
    """The other environment draws on the CPU, whatever its device."""
    for kind, message in ((Stayed, r"mul got .* \(1,\) on cpu"), (Tank, "rand on cpu got a gen")):
        with pytest.raises(DeviceMixError, match=message) as caught:
            live(kind(batch_size=2, device=device))
        assert kind.__name__ == "Tank" or any(
            entry.name == "dynamics" and Path(str(entry.path)) == Path(__file__)
            for entry in caught.traceback
        )


# -- algorithms and losses -------------------------------------------------------------------------


def text_of(name):
    return (CONFIGS / "algorithm" / f"{name}.yaml").read_text()


LEARNING = [name for name in choices("algorithm") if "Rule" not in text_of(name)]
SHORT = {
    **{key: ["algorithm.updates_per_batch=2"] for key in ("ddpg", "da_ac")},
}
ALGORITHMS = {
    **{name: [f"algorithm={name}", *SHORT.get(name, [])] for name in LEARNING},
    "hpo, episodes": ["env=switched_lqr", "policy.scale=0.1"],
    "hpo, adaptive cross term": ["algorithm.cross_term=adaptive", "algorithm.branch_steps=0"],
    "hpo, computed again": ["collect.checkpoint_steps=2"],
    "hpo, heads and masks": ["env=unit_commitment", "env.num_units=3", "algorithm.branch_steps=2"],
    "ppo, heads": ["env=storage", "env.num_batteries=2", "algorithm=ppo"],
    "ppo, Gymnasium": ["env=gym"],
    "hpo, seeds": [],
    "ppo, seeds": ["algorithm=ppo"],
}


def made(name, device="cpu"):
    passes = ["algorithm.epochs=1", "algorithm.num_minibatches=2"]
    given = [*ALGORITHMS[name], *(passes if name[:3] in ("hpo", "ppo") else [])]
    config = composed(*given, device=device)
    return build_algorithm(config, seeds=[0, 1] if "seeds" in name else None)


def numbers(learner, updates=2):
    """What some updates report, of all seeds in a row."""
    found = []
    for update in range(updates):
        torch.manual_seed(update)  # of a replay buffer
        learner.anneal(update / 10)
        metrics = learner.iterate()
        found += metrics if isinstance(metrics, list) else [metrics]
    return found


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_keeps_to_its_device(name, small):
    """It reports what it does on the CPU, and goes on exactly from what it would save."""
    expected = numbers(made(name))
    with pretended_device() as device:
        first, second = made(name, device), made(name, device)
        found = numbers(first)
        for number in range(first.num_seeds or 1) if hasattr(first, "num_seeds") else [None]:
            at = number if getattr(first, "num_seeds", None) else None
            for key, part in first.components(at).items():
                second.components(at)[key].load_state_dict(stored(part.state_dict()))
        if hasattr(first.env, "dynamics"):
            assert numbers(first, 1) == numbers(second, 1)
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5, nan_ok=True)


def stored(state):
    """Return a state as it comes back from a file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def test_a_run_is_saved_and_tested_on_its_device(small, undrawn, device):
    """A whole training; its checkpoint restores elsewhere, and is read without that device."""
    config = composed("evaluation.primary=long_run", "reference=none", device=device)
    for test in (config["evaluation"]["tests"]["long_run"], config["evaluation"]["validation"]):
        test.update({"batch_size": 4, "num_steps": 4, "skip": 0, "objective": "window"})
    config["evaluation"]["tests"] = {"long_run": config["evaluation"]["tests"]["long_run"]}
    trainer = make_trainer(config, "run", progress=False, logs=False)
    trainer.train()
    other = build_algorithm(config)
    Checkpoint("run", other.components(), config=config).load()
    for (name, one), two in zip(
        trainer.algorithm.policy.state_dict().items(),
        other.policy.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(one, two), name
    test = trainer.tests["long_run"]
    assert test.run(other.policy) == test.run(trainer.algorithm.policy)
    assert math.isfinite(test.run(other.policy, sampled=True).mean)


def test_a_checkpoint_of_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    net = torch.nn.Linear(2, 1)
    with monkeypatch.context() as patched:
        patched.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        checkpoint = Checkpoint(tmp_path, {"net": net}, config={})
        checkpoint.save(1, {})
    weight = net.weight.detach().clone()
    torch.nn.init.zeros_(net.weight)
    assert checkpoint.load()[0] == 1
    assert torch.equal(net.weight, weight)
