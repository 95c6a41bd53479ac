"""The gradient report: its statistics against known answers, and the command that prints it."""

from __future__ import annotations

import csv
import importlib.util
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from shrunk import SMALL
from tensordict import TensorDict
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType

from hpo_torchrl.collectors import DifferentiableCollector
from hpo_torchrl.diagnostics import (
    ESTIMATORS,
    BestResponse,
    GradientSampler,
    exact_gradient,
    gradient_report,
)
from hpo_torchrl.experiments.cli import gradients, train
from hpo_torchrl.modules import HybridNetwork, HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.reporting import format_gradients, plot_gradients

ROOT = Path(__file__).parents[1]
DIM, BATCHES = 6, 400


class Fixed:
    """A sampler whose gradients have known signal, noise and bias."""

    def __init__(self, mean, noise, *, bias=0.0, collector=None):
        self.groups = {"continuous": []}
        self.mean = torch.zeros(DIM, dtype=torch.float64)
        self.mean[0] = mean
        self.shift = torch.zeros(DIM, dtype=torch.float64)
        self.shift[1] = bias
        self.noise = noise
        self.collector = type("Collector", (), {"frames_per_batch": 7})

    def draw(self, shift):
        spread = self.noise / DIM**0.5 * torch.randn(DIM, dtype=torch.float64)
        return {"continuous": self.mean + shift + spread}

    def describe(self, name):
        return ESTIMATORS[name]

    def sample(self, names=None):
        return {"mixed": self.draw(0.0), "Gumbel straight-through": self.draw(self.shift)}


def test_measures_are_those_of_a_known_distribution():
    report = gradient_report(Fixed(3.0, 2.0, bias=1.5), num_batches=BATCHES, num_reference=BATCHES)
    assert report.value("mixed", "signal") == pytest.approx(3.0, rel=0.03)
    assert report.value("mixed", "noise") == pytest.approx(2.0, rel=0.05)
    assert report.value("mixed", "signal_to_noise") == pytest.approx(1.5, rel=0.07)
    assert report.value("mixed", "bias") < 0.06
    biased = "Gumbel straight-through"
    assert report.value(biased, "signal") == pytest.approx(math.hypot(3.0, 1.5), rel=0.03)
    assert report.value(biased, "bias") == pytest.approx(0.5, abs=0.05)
    assert report.ceiling["continuous"][0] > 0.99
    for row in report.rows:
        for measure in ("signal", "noise", "signal_to_noise", "alignment", "bias"):
            assert row[f"{measure}_low"] <= row[measure] + 1e-9
            assert row[measure] <= row[f"{measure}_high"] + 1e-9


def test_alignment_is_the_mean_cosine():
    sampler = Fixed(1.0, 1e-9)
    report = gradient_report(sampler, num_batches=4, num_reference=4)
    assert report.value("mixed", "alignment") == pytest.approx(1.0)
    turned = Fixed(0.0, 1e-9, bias=1.0)
    draw = turned.sample
    turned.sample = lambda names=None: draw() if names is None else sampler.sample()
    report = gradient_report(turned, num_batches=4, num_reference=4)
    assert report.value("Gumbel straight-through", "alignment") == pytest.approx(0.0, abs=1e-6)


def test_intervals_cover():
    """About 95 of 100 intervals hold the true noise; a fault of scale would lose most of them."""
    report = gradient_report(Fixed(1.0, 0.0), num_batches=10, num_reference=10)
    assert report.value("mixed", "noise") == pytest.approx(0.0, abs=1e-6)
    held, noise = 0, 5.0
    for _ in range(60):
        report = gradient_report(Fixed(1.0, noise), num_batches=30, num_reference=4)
        low, high = (report.value("mixed", f"noise_{end}") for end in ("low", "high"))
        held += low <= noise <= high
    assert held >= 48


def test_an_estimator_without_bias_is_seldom_called_biased():
    """Also where its own noise is far below that of the reference."""

    class Calm(Fixed):
        def sample(self, names=None):
            if names is not None:
                return super().sample()
            spread = 0.1 * self.noise / DIM**0.5 * torch.randn(DIM, dtype=torch.float64)
            return {"mixed": {"continuous": self.mean + spread}}

    accused = 0
    for _ in range(60):
        report = gradient_report(Calm(0.5, 4.0), num_batches=20, num_reference=40)
        accused += report.value("mixed", "bias_low") > 0.0
    assert accused <= 8


def test_a_gradient_below_its_noise_shows_no_signal():
    found = [gradient_report(Fixed(0.0, 1.0), num_batches=20, num_reference=20) for _ in range(10)]
    assert np.median([report.value("mixed", "signal") for report in found]) < 0.15


def make(critic=True, dtype=torch.float32, **network):
    env = InventoryEnv(2, batch_size=16, initial_state="random", seed=0, dtype=dtype)
    network = {"hidden": (8,), "activation": "tanh"} | network
    policy = HybridPolicy.for_env(env, **network)
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(dtype)
    collector = DifferentiableCollector(env, policy, frames_per_batch=16 * 6, discount=0.9)
    return GradientSampler(collector, make_value_network(env, hidden=(8,)) if critic else None)


@pytest.mark.parametrize(
    ("critic", "network"),
    [(True, {}), (False, {"scale": 0.2, "learn_scale": True}), (True, {"shared_trunk": True})],
)
def test_every_estimator_is_drawn(critic, network):
    sampler = make(critic, torch.float64, **network)
    drawn = sampler.sample()
    assert set(drawn) == set(ESTIMATORS)
    for name, groups in drawn.items():
        assert set(groups) == {"discrete", "continuous"}, name
        assert all(bool(gradient.isfinite().all()) for gradient in groups.values()), name
        reaches = name != "score function" or "shared_trunk" in network
        assert bool(groups["continuous"].any()) == reaches, name
    parts = [drawn[name]["continuous"] for name in ("pathwise", "score function", "cross")]
    torch.testing.assert_close(sum(parts), drawn["mixed"]["continuous"])


def report_of(names):
    sampler = make(critic=False)
    draw = sampler.sample
    sampler.sample = lambda asked=names: draw(asked)
    return gradient_report(sampler, num_batches=60, num_reference=100)


def test_estimators_without_bias_agree_in_the_mean():
    unbiased = ("mixed", "mixed, leave-one-out", "mixed, all discrete actions")
    report = report_of(unbiased)
    for name in unbiased:
        assert report.value(name, "bias_low") < 0.02, name
    calm = report.value("mixed, all discrete actions", "noise", "discrete")
    assert calm < report.value("mixed", "noise", "discrete")


def test_a_bias_is_found():
    torch.manual_seed(1)
    report = report_of(("mixed", "Gumbel straight-through"))
    assert report.value("Gumbel straight-through", "bias_low", "discrete") > 0.1


def test_rescaled_rewards_rescale_every_estimator():
    draws = []
    for units in (None, lambda batch: (torch.tensor(4.0), 0.0)):
        torch.manual_seed(0)
        sampler = make(critic=False)
        sampler.reward_units = units
        sampler.collector.env.set_seed(0)
        torch.manual_seed(0)
        draws.append(sampler.sample())
    for name in ESTIMATORS:
        for group in ("discrete", "continuous"):
            torch.testing.assert_close(
                draws[1][name][group] * 4.0, draws[0][name][group], rtol=1e-4, atol=1e-4
            )


def test_a_single_rollout_is_measured_without_comparisons():
    env = InventoryEnv(batch_size=1, initial_state="random", seed=0)
    policy = HybridPolicy.for_env(env, hidden=(4,))
    collector = DifferentiableCollector(env, policy, frames_per_batch=6)
    drawn = GradientSampler(collector).sample()
    assert set(ESTIMATORS) - set(drawn) == {"mixed, adaptive cross", "mixed, leave-one-out"}


def test_frozen_parameters_are_left_out():
    sampler = make()
    sampler.policy.network.discrete.requires_grad_(False)
    frozen = GradientSampler(sampler.collector, sampler.critic)
    assert set(frozen.groups) == {"continuous"}
    assert set(frozen.sample()["mixed"]) == {"continuous"}


def test_sampling_follows_the_collector():
    """Acting deterministically leaves the options, and so the score function, without variance."""
    sampler = make(critic=False)
    sampler.collector.exploration_type = ExplorationType.DETERMINISTIC
    with torch.no_grad():
        sampler.policy.network.discrete[-1].bias.copy_(torch.tensor([0.0, 9.0]))
    options = sampler.rollout(sampler.start())[0]["action", "discrete"]
    assert bool((options == 1).all())


class Plain(EnvBase):
    """An environment without a functional core, whose observation has another name."""

    def __init__(self):
        super().__init__(batch_size=torch.Size([4]))
        self.observation_spec = Composite(sight=Unbounded(shape=(4, 2)), shape=(4,))
        self.action_spec = Composite(
            action=Composite(
                discrete=Categorical(2, shape=(4,), dtype=torch.int64),
                continuous=Unbounded(shape=(4, 2)),
                shape=(4,),
            ),
            shape=(4,),
        )
        self.reward_spec = Unbounded(shape=(4, 1))

    def _reset(self, tensordict=None, **kwargs):
        return TensorDict({"sight": torch.randn(4, 2)}, batch_size=[4])

    def _step(self, tensordict):
        sight = 0.9 * tensordict["sight"] + tensordict["action", "continuous"]
        sight = sight * (1.0 + 0.1 * tensordict["action", "discrete"].unsqueeze(-1))
        over = torch.zeros(4, 1, dtype=torch.bool)
        reward = -sight.square().sum(-1, keepdim=True)
        entries = {"sight": sight, "reward": reward, "done": over, "terminated": over.clone()}
        return TensorDict(entries, batch_size=[4])

    def _set_seed(self, seed):
        pass


def test_any_environment_that_keeps_the_graph_is_measured():
    env = Plain()
    policy = HybridPolicy(HybridNetwork(2, 2, 2, hidden=(4,)), observation_key="sight")
    collector = DifferentiableCollector(env, policy, frames_per_batch=20)
    drawn = GradientSampler(collector).sample()
    branching = {"mixed, all discrete actions", "Gumbel straight-through"}
    assert set(ESTIMATORS) - set(drawn) == branching


def test_known_bias_names_the_critic():
    assert "lambda = 0.95" in make().describe("mixed").bias
    assert make(critic=False).describe("mixed").bias == "none"


def test_bad_arguments_are_refused():
    for key, value in (("num_batches", 1), ("num_reference", 0)):
        with pytest.raises(ValueError, match=f"{key} must be an integer >= 2"):
            gradient_report(make(), **{key: value})
    report = gradient_report(make(), num_batches=2, num_reference=2)
    with pytest.raises(KeyError, match="no row of 'magic'"):
        report.value("magic", "signal")


def test_report_is_formatted_and_drawn(tmp_path):
    report = gradient_report(make(), num_batches=3, num_reference=3)
    text = format_gradients(report.rows, ceiling=report.ceiling, num_reference=3)
    assert "mixed gradient of 3 batches" in text
    assert all(name in text for name in ESTIMATORS)
    path = plot_gradients(tmp_path / "g.png", report.rows, ceiling=report.ceiling)
    assert path.stat().st_size > 10_000


def run_gradients(*arguments):
    gradients(["--batches", "3", "--reference", "4", *arguments])


def test_command_measures_a_run_and_leaves_it_as_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: path.touch())
    run_dir = tmp_path / "run"
    # Its policy takes both actions; a term that is exactly 0 would not be listed.
    train([*SMALL, "seed=1", f"output_dir={run_dir}"])
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    shown = []
    for _ in range(2):
        capsys.readouterr()
        run_gradients(str(run_dir))
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]  # the same seed
    assert "continuous action" in shown[0]
    after = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    new = {p.name for p in set(after) - set(before)}
    assert new == {"gradients.csv", "gradients.png"}
    assert all(after[path] == content for path, content in before.items())
    with (run_dir / "gradients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["estimator"] for row in rows} == set(ESTIMATORS)


def test_command_measures_an_untrained_policy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: path.touch())
    run_gradients(*SMALL, "env.num_items=2", "--output", str(tmp_path / "here"))
    assert (tmp_path / "here" / "gradients.csv").is_file()
    assert "mixed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such/run"], "not the folder of a run"),
        (["env.nmu_items=2"], "Did you mean 'num_items'"),
        (["env.num_items=2", "somewhere"], "somewhere is not the folder of a run"),
        (["env.num_items=2", "output_dir=here"], "use --output DIR"),
        (["resume=here"], "'resume=here' is of hpo-train"),
    ],
)
def test_command_refuses_bad_input(capsys, arguments, words):
    with pytest.raises(SystemExit):
        run_gradients(*arguments)
    message = capsys.readouterr().err
    assert message.startswith("hpo-gradients: error: ")
    assert words in message


def test_command_refuses_a_damaged_configuration(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("seed: 1")
    with pytest.raises(SystemExit):
        run_gradients(str(tmp_path))
    assert "config.yaml is damaged" in capsys.readouterr().err


# -- the theorem -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theorem():
    path = ROOT / "benchmarks" / "cross_term_theorem.py"
    spec = importlib.util.spec_from_file_location("cross_term_theorem", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cross_term_vanishes_at_a_best_response(theorem):
    """Exact gradients of three systems, averaged over 8 initial states each."""
    temperatures = (1.0, 0.3, 0.01)
    best, arbitrary = {}, {}
    for tau in temperatures:
        pairs = [theorem.ratios(seed, tau, 8) for seed in range(3)]
        best[tau], arbitrary[tau] = (statistics.median(p) for p in zip(*pairs, strict=True))
    assert best[0.01] <= 0.005  # near the best response
    assert best[1.0] >= 0.02
    assert max(arbitrary.values()) >= 0.3  # a rule of the state that ignores values


def test_best_response_is_better_than_others_and_the_worst_is_worse(theorem):
    env, network = theorem.problem(0, 4)
    start, found = env.reset(), []
    for tau in (-0.1, 1e6, 0.1):
        net = BestResponse(env, network, horizon=7, temperature=tau, state_of=theorem.state_of(env))
        found.append(exact_gradient(env, HybridPolicy(net), 7, tensordict=start).objective)
    assert found == sorted(found)
    assert found[-1] > found[0] + 1.0


def test_best_response_refuses_a_temperature_of_zero(theorem):
    env, network = theorem.problem(0, 4)
    with pytest.raises(ValueError, match="temperature must not be 0"):
        BestResponse(env, network, horizon=7, temperature=0.0, state_of=theorem.state_of(env))
