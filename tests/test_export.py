"""Policies that leave the library: each format against the original, faults noticed, refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from shrunk import SMALL
from tensordict import TensorDict
from test_masks import Shuttle
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl import load_policy, load_run
from hpo_torchrl.experiments import cli
from hpo_torchrl.experiments.api import TrainedPolicy
from hpo_torchrl.experiments.export import (
    FORMATS,
    ExportError,
    check_export,
    export_policy,
    load_export,
    states_of,
)
from hpo_torchrl.modules import HybridPolicy, numpy_ops
from hpo_torchrl.modules.numpy_code import _EXPRESSIONS
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.inventory.learned_levels import LearnedLevels
from hpo_torchrl.problems.inventory.order_costs import AllUnitsDiscount, FixedCost
from hpo_torchrl.training.run_folder import RunFolderError


def masked_heads():
    return HybridPolicy.for_env(env := Shuttle(2), shared_trunk=True), env


def bounds_by_branch():
    """Squashed into ends that differ by branch."""
    features = [FixedCost(64), AllUnitsDiscount([50], [1.0, 0.9])]
    env = InventoryEnv(features=features, batch_size=64)
    own = {"distribution": "squashed_normal", "scale": 0.3, "learn_scale": True}
    return HybridPolicy.for_env(env, activation="elu", hidden=[16], **own), env


def products():
    env = SwitchedLQREnv.from_recipe(dim=3, num_modes=2, batch_size=64)
    return HybridPolicy.for_env(env, products=4, homogeneous=True, activation="tanh"), env


def order_up_to():
    env = InventoryEnv(num_items=3, batch_size=64, initial_state="random")
    return LearnedLevels.for_env(env, from_rule=True, hidden=[16]), env


# Each format meets masks and heads; what differs between policies is an operation of one of them.
CASES = {
    masked_heads: FORMATS,
    order_up_to: ("onnx", "numpy"),
    bounds_by_branch: ("numpy",),
    products: ("numpy",),
}


def trained(make):
    """A policy with random weights, as training would leave them."""
    policy, env = make()
    for parameter in policy.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return TrainedPolicy(policy, env)


def decided(policy, states):
    """What the policy itself does, on the route through TorchRL."""
    given = {"observation": states.observation, "action_mask": states.mask}
    known = {key: value for key, value in given.items() if value is not None}
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        action = policy.module(TensorDict(known, batch_size=[len(states.observation)]))["action"]
        logits = policy.module.discrete_logits(TensorDict(known, [len(states.observation)]))
    return action["discrete"].numpy(), action["continuous"].numpy(), logits.numpy()


# Run without torch, tensordict and this package: none of them can be imported.
ALONE = """
import runpy, sys
sys.modules |= dict.fromkeys(["torch", "tensordict", "torchrl", "hpo_torchrl"])
import numpy as np
for folder in sys.argv[1:]:
    given = np.load(f"{folder}/given.npz")
    policy = runpy.run_path(f"{folder}/policy.py")["Policy"]()
    discrete, continuous, logits = policy(*(given[name] for name in given.files))
    np.savez(f"{folder}/found.npz", discrete=discrete, continuous=continuous, logits=logits)
"""


def test_every_format_acts_as_the_policy_does(tmp_path):
    folders = []
    for make, kinds in CASES.items():
        policy = trained(make)
        states = states_of(policy, 200)
        inputs = {"observation": states.observation, "action_mask": states.mask}
        inputs = {key: value.numpy() for key, value in inputs.items() if value is not None}
        discrete, continuous, logits = decided(policy, states)
        if states.mask is not None:  # random masks forbid much, and never all
            assert (~states.mask).any()
            assert np.take_along_axis(states.mask.numpy(), discrete[..., None], -1).all()
        for kind in kinds:
            folder = tmp_path / f"{make.__name__}-{kind}"
            made = export_policy(policy, kind, folder)
            assert (made.states, made.ties) == (1000, 0)
            if kind == "numpy":
                np.savez(folder / "given.npz", **inputs)
                wanted = {"discrete": discrete, "continuous": continuous, "logits": logits}
                np.savez(folder / "wanted.npz", **wanted)
                folders.append(folder)
                continue
            found = load_export(made.files[0])(*inputs.values())
            np.testing.assert_array_equal(found[0], discrete)
            np.testing.assert_allclose(found[1], continuous, rtol=1e-4, atol=1e-4)
            one = [value[:1] for value in inputs.values()]  # a batch of another size
            np.testing.assert_array_equal(load_export(made.files[0])(*one)[0], discrete[:1])
    subprocess.run([sys.executable, "-c", ALONE, *map(str, folders)], check=True)
    for folder in folders:
        found, wanted = np.load(folder / "found.npz"), np.load(folder / "wanted.npz")
        np.testing.assert_array_equal(found["discrete"], wanted["discrete"])
        np.testing.assert_allclose(found["continuous"], wanted["continuous"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-4, atol=1e-4)


def test_a_changed_weight_is_noticed(tmp_path):
    """Of the actions and of the choice, in a structured policy; and what it says of its input."""
    env = InventoryEnv(num_items=2, batch_size=64, initial_state="random")
    policy = trained(lambda: (LearnedLevels.for_env(env, hidden=[8]), env))
    made, states = export_policy(policy, "numpy", tmp_path), states_of(policy)
    whole = dict(np.load(made.files[1]))
    for weight in ("continuous.level", "discrete.0.bias", "discrete.2.weight"):
        changed = {name: value.copy() for name, value in whole.items()}
        changed[weight].flat[0] += 1e-2
        np.savez(made.files[1], **changed)
        with pytest.raises(ExportError, match=r"policy\.py does not act as the policy does"):
            check_export(made.files, policy.module, states)
    np.savez(made.files[1], **whole)
    assert check_export(made.files, policy.module, states).ties == 0
    with pytest.raises(ValueError, match=r"observation must be \(batch, 4\), got \(2,\)"):
        load_export(made.files[0])(np.zeros(2))


class Everything(nn.Module):
    """Most operations that a network may use, each where it matters to the answer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        a, b = x.split([1, 3], -1)
        y = torch.where(x > 0.2, x.square() / 3, -x.abs().clamp(0.1, 2.0)) @ self.weight.T
        y = y.masked_fill(x.isnan() | (x < -2), 0.5) + (x**2 + 1).rsqrt() - x.sin()
        y = y + torch.stack([x.mean(-1), x.sum(-1), x.amax(-1), x.amin(-1)], -1).cos()
        y = y * nn.functional.elu(x) + nn.functional.silu(y) + x.softmax(-1).log1p()
        y = torch.cat([y[:, 1:3], a.expand(-1, 1), b[..., -1:]], -1).minimum(x.flip(-1).exp())
        gains = torch.einsum("bi,bj->bij", x, x).transpose(1, 2).mean(1).tanh()
        some = torch.logical_and(x > 0, ~(y > 0)).any(-1, keepdim=True).to(x.dtype)
        y = (y + gains + some).clamp_max(3.0).maximum(-x.sigmoid())
        return y[:, :2], y.unflatten(-1, (2, 2)).unsqueeze(1).squeeze(1), None

    stochastic = False


def test_a_network_of_ones_own_is_exported(tmp_path):
    env = InventoryEnv(num_items=2, batch_size=64, initial_state="random", lead_time=2)
    policy = TrainedPolicy(HybridPolicy(Everything()), env)
    made = export_policy(policy, "numpy", tmp_path)
    assert (made.states, made.ties) == (1000, 0)


class Gelu(Everything):
    def forward(self, x):
        return nn.functional.gelu(x[:, :2]), x[:, :4].reshape(-1, 2, 2), None


class Branching(Everything):
    def forward(self, x):
        return (x[:, :2] if x.sum() > 0 else -x[:, :2]), x[:, :4].reshape(-1, 2, 2), None


def test_what_cannot_leave_is_refused_by_name(tmp_path, monkeypatch):
    env = InventoryEnv(num_items=2, batch_size=64)
    for network, kind, words in (
        (Gelu(), "numpy", r"express aten\.gelu\.default of .*network \(Gelu\): export"),
        (Branching(), "pt2", r"torch\.export cannot follow Branching"),
        (Everything(), "tflite", "format must be one of"),
    ):
        policy = TrainedPolicy(HybridPolicy(network), env)
        with pytest.raises(ValueError, match=words):
            export_policy(policy, kind, tmp_path)
    with pytest.raises(TypeError, match="is a rule, which has no network"):
        export_policy(TrainedPolicy(InventoryEnv().rules()["s_S"](), env), "onnx", tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"onnxscript .*pip install 'hpo-torchrl\[export\]'"):
        export_policy(TrainedPolicy(HybridPolicy(Everything()), env), "onnx", tmp_path)


def test_numpy_stays_finite_where_torch_does():
    x = np.array([-1e4, -200.0, -1.0, -1e-3, 0.0, 1e-3, 5.0, 30.0, 200.0, 1e4], dtype=np.float32)
    given = torch.from_numpy(x)
    functions = {
        "softplus": nn.functional.softplus,
        "sigmoid": torch.sigmoid,
        "elu": nn.functional.elu,
    }
    with np.errstate(all="raise", under="ignore"):
        for name, function in functions.items():
            found = getattr(numpy_ops, name)(x)
            np.testing.assert_allclose(found, function(given), rtol=1e-6, atol=1e-30)
            assert found.dtype == np.float32
        for name in ("softmax", "log_softmax"):
            found = getattr(numpy_ops, name)(np.stack([x, -x]), -1)
            wanted = getattr(torch, name)(torch.stack([given, -given]), -1)
            np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    few = [*SMALL, "env.num_items=2", "reference=none", "trainer.select=best"]
    cli.train([*few, f"output_dir={folder}"])
    return folder


def test_the_policy_of_a_run_is_kept_in_a_folder_of_its_own(run, tmp_path):
    """That of the best evaluation; it acts the same wherever it is moved, and damage is noticed."""
    whole, kept = load_policy(run), tmp_path / "kept"
    shutil.copytree(run / "policy", kept)
    again = load_policy(kept)
    x = torch.randn(50, 4)
    for key, value in whole(x).items():
        assert torch.equal(again(x)[key], value)
    described = json.loads((kept / "policy.json").read_text())
    assert described["update"] == load_run(run).summary["selected_update"]
    assert described["entries"]["observation"] == {"shape": [4], "dtype": "float32"}
    assert described["entries"]["action/continuous"] == {"shape": [2], "dtype": "float32"}
    cli.export([str(kept), "--format", "pt2", "--out", str(tmp_path)])
    assert (tmp_path / "policy.pt2").exists()
    content = bytearray((kept / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (kept / "weights.safetensors").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"safetensors cannot be used \(its digest"):
        load_policy(kept)
    (kept / "policy.json").write_text("{")
    with pytest.raises(RunFolderError, match="is missing or damaged"):
        load_policy(kept)


def test_the_command_exports_and_says_what_it_checked(run, capsys, monkeypatch):
    cli.export([str(run), "--format", "numpy"])
    shown = capsys.readouterr().out
    assert f"written          {run}/export/policy.py, {run}/export/policy.npz" in shown
    assert "checked          1,000 states: equal discrete actions, continuous ones within" in shown
    # A planted fault in the translation.
    monkeypatch.setitem(_EXPRESSIONS, "linear", "1.01 * linear({input}, {weight}, {bias})")
    with pytest.raises(SystemExit) as stop:
        cli.export([str(run), "--format", "numpy"])
    assert stop.value.code == 2
    assert "does not act as the policy does" in capsys.readouterr().err
    assert not (run / "export" / "policy.py").exists()


def test_a_run_that_goes_on_has_no_policy_yet(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "policy" / "policy.json").rename(folder / "old.json")
    cli.train([f"resume={folder}"])
    assert (folder / "policy" / "policy.json").read_text() == (folder / "old.json").read_text()
