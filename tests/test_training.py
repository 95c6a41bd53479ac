"""Training runs: evaluation, checkpoints, logs, exact resume, failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hpo_torchrl.algorithms import HPO, NonFiniteError
from hpo_torchrl.algorithms.optimization import RewardScaler, clip_gradients
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.diagnostics import GradientSampler
from hpo_torchrl.envs import ReplicatedEnv
from hpo_torchrl.experiments.api import load_run
from hpo_torchrl.experiments.build import build_algorithm
from hpo_torchrl.experiments.cli import train
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.experiments.run import gradients_run, restore_policy, train_run
from hpo_torchrl.modules import HybridPolicy, make_value_network, replicate
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import Traces, optimal_s_S
from hpo_torchrl.problems.inventory.reference import view_inventory_policy
from hpo_torchrl.training import (
    Callback,
    Checkpoint,
    CheckpointError,
    CostEstimate,
    Evaluation,
    RunFolder,
    RunFolderError,
    Selection,
    StopTraining,
    Trainer,
)
from hpo_torchrl.training.run_logger import RunLogger

SMALL = ["trainer.num_updates=8", "trainer.checkpoint_every=3", "trainer.eval_every=6"]
SMALL += ["collect.batch_size=16", "collect.unroll_length=10", "trainer.progress=false"]
SMALL += ["policy.hidden=[8]", "critic.hidden=[8]", "evaluation.validation.num_steps=60"]
SMALL += ["evaluation.tests.long_run.batch_size=16", "evaluation.tests.long_run.num_steps=250"]
SMALL += ["evaluation.tests.protocol.batch_size=16"]


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    """Pictures have tests of their own; here they need only be there."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: path.touch())


def small_parts(seed: int) -> tuple:
    torch.manual_seed(seed)
    env = InventoryEnv(batch_size=16, initial_state="random", seed=seed)
    return env, HybridPolicy.for_env(env, hidden=[8]), make_value_network(env, hidden=[8])


def small_hpo(seed: int = 0, **arguments) -> HPO:
    return HPO(*small_parts(seed), **{"unroll_length": 5, "seed": seed, **arguments})


def several(*seeds: int) -> HPO:
    envs, *networks = zip(*map(small_parts, seeds), strict=True)
    return HPO(ReplicatedEnv(envs), *map(replicate, networks), seed=seeds, unroll_length=5)


def small_trainer(run_dir: Path, algorithm, seeds: tuple = (), **arguments) -> Trainer:
    test = Evaluation(InventoryEnv(batch_size=16), num_steps=20, skip=5, seed=1)
    settings = {"num_updates": 4, "checkpoint_every": 2, "eval_every": 2, "progress": False}
    folders = [run_dir / f"seed={seed}" for seed in seeds]
    for folder in folders or [run_dir]:
        folder.mkdir(parents=True, exist_ok=True)
    return Trainer(
        algorithm,
        run_dir=folders or run_dir,
        config=[{"seed": seed} for seed in seeds] or {"seed": 0},
        tests={"short": test},
        primary="short",
        validation=test,
        reference=Reference(optimal_cost=37.0, objective="average"),
        **{**settings, **arguments},
    )


def metrics_of(folder: RunFolder) -> list[dict]:
    rows = folder.read_metrics()
    return [{key: row[key] for key in row if key != "wall_seconds"} for row in rows]


class OrderUpTo(torch.nn.Module):
    """The (s, S) rule as a hybrid network."""

    stochastic = False

    def __init__(self, s: float, S: float, mean: float) -> None:
        super().__init__()
        self.s, self.S, self.mean = s, S, mean

    def forward(self, observation):
        position = observation.sum(-1, keepdim=True) * self.mean
        logits = torch.cat([torch.zeros_like(position), self.s + 0.5 - position], -1)
        loc = (self.S - position).unsqueeze(-2).expand(*position.shape[:-1], 2, 1)
        return logits, loc, None


def test_evaluation_agrees_with_the_exact_cost_and_tells_a_wrong_rule_apart():
    cost = optimal_s_S(10, 1, 9, 64, 2).cost
    env = InventoryEnv(batch_size=256, initial_state="stationary")
    test = Evaluation(env, num_steps=450, skip=50, seed=3)
    best, worse = (test.run(HybridPolicy(OrderUpTo(s, 62, 10.0))) for s in (26, 20))
    assert abs(best.mean - cost) < 4 * best.standard_error
    assert 0 < best.standard_error < 0.1
    assert worse.mean > cost + 4 * worse.standard_error


def test_evaluation_repeats_and_leaves_training_randomness_alone():
    policy = HybridPolicy.for_env(InventoryEnv())
    test = Evaluation(InventoryEnv(batch_size=8), num_steps=70, skip=5, seed=0)
    before = torch.get_rng_state()
    first = test.run(policy)
    assert torch.equal(before, torch.get_rng_state())
    assert test.run(policy) == first


def test_a_sampled_policy_is_tested_by_the_same_noise_and_by_random_numbers_of_its_own():
    policy, *members = (HybridPolicy.for_env(InventoryEnv(), hidden=[8]) for _ in range(3))
    test = Evaluation(InventoryEnv(batch_size=64, initial_state="stationary"), num_steps=60, seed=4)
    before, source = torch.get_rng_state(), policy.randomness
    first = test.run(policy, sampled=True)
    assert test.run(policy, sampled=True) == first
    assert torch.equal(before, torch.get_rng_state())
    assert policy.randomness is source
    # An untrained choice is random: always the first action, and half of the time, cost otherwise.
    assert abs(first.mean - test.run(policy).mean) > 8 * first.standard_error
    together = test.run(replicate(members), sampled=True)
    alone = [test.run(member, sampled=True) for member in members]
    for one, other in zip(together, alone, strict=True):
        assert one.mean == pytest.approx(other.mean, rel=1e-4)


def reference_cost(env):
    return Evaluation(env, num_steps=1, seed=0).reference()


def test_evaluation_counts_only_periods_after_skip():
    # Without orders from an empty system, period t costs 9 * 10 * (t + 1) in expectation.
    env = InventoryEnv(demand=Traces(torch.full((2, 120, 1), 10.0)))
    never = HybridPolicy(OrderUpTo(-1e6, 0.0, 10.0))
    estimate = Evaluation(env, num_steps=120, skip=110, seed=0).run(never)
    assert estimate.mean == pytest.approx(90 * sum(range(111, 121)) / 10)


def test_evaluation_refuses_to_count_nothing():
    with pytest.raises(ValueError, match="skip must be below num_steps=10"):
        Evaluation(InventoryEnv(), num_steps=10, skip=10, seed=0)


def test_reference_is_the_optimum_for_one_item_and_a_lower_bound_for_more():
    one = reference_cost(InventoryEnv(procurement_cost=2.0))
    assert one.optimal_cost == pytest.approx(37.0644 + 20.0, abs=1e-4)
    assert one.details == {"optimal_s": 26, "optimal_S": 62}
    many = reference_cost(InventoryEnv(num_items=4))
    assert many.optimal_cost is None
    assert many.lower_bound == pytest.approx(37.0644, abs=1e-4)
    # Lost demand need not be made up for: with the same costs it is cheaper.
    lost = reference_cost(InventoryEnv(lost_sales=True)).optimal_cost
    assert lost == pytest.approx(36.8471, abs=1e-4)
    recorded = InventoryEnv(demand=Traces(torch.full((2, 120, 1), 10.0)))
    assert reference_cost(recorded) == Reference()
    test = Evaluation(InventoryEnv(), num_steps=2, skip=1, seed=0)
    assert one.gaps(2 * one.optimal_cost, test)["gap"] == pytest.approx(1.0)


def test_policy_view_reads_off_the_rule():
    env = InventoryEnv(batch_size=32, initial_state="stationary", seed=0)
    view = view_inventory_policy(env, HybridPolicy(OrderUpTo(26, 62, 10.0)))
    assert (view.reorder_point, view.order_up_to_level) == (26, 62)
    never = view_inventory_policy(env, HybridPolicy(OrderUpTo(-1e6, 62, 10.0)))
    assert (never.reorder_point, never.order_up_to_level) == (None, None)


def test_reward_scaler_tracks_the_standard_deviation_and_keeps_the_graph():
    scaler = RewardScaler(decay=0.0)
    reward = (3.0 + 5.0 * torch.randn(10_000)).requires_grad_()
    scaler.observe(reward)
    scaled = scaler(reward)
    assert float(scaled.detach().std()) == pytest.approx(1.0, rel=1e-4)
    (gradient,) = torch.autograd.grad(scaled.sum(), reward)
    assert float(gradient[0]) == pytest.approx(1 / float(reward.detach().std()), rel=1e-4)


def test_clip_gradients_names_the_component_that_is_not_finite():
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1.0, float("nan"), 0.0])
    with pytest.raises(NonFiniteError, match=r"gradient of continuous\.head\.weight is not"):
        clip_gradients({"continuous": {"head.weight": parameter}}, 1.0)


def test_training_improves_the_policy():
    hpo = small_hpo(unroll_length=20, learning_rate=1e-2)
    test = Evaluation(InventoryEnv(batch_size=64), num_steps=100, skip=16, seed=1)
    before = test.run(hpo.policy).mean
    for update in range(40):
        hpo.anneal(update / 40)
        hpo.iterate()
    assert test.run(hpo.policy).mean < min(0.5 * before, 60.0)


def test_anneal_ends_with_no_bonus_and_a_small_step():
    hpo = small_hpo(entropy_coeff=0.4, entropy_until=0.5, learning_rate=1e-2)
    hpo.anneal(0.25)
    assert float(hpo.loss.entropy_coeff) == pytest.approx(0.2)
    hpo.anneal(1.0)
    assert float(hpo.loss.entropy_coeff) == float(hpo.detached_loss.entropy_coeff) == 0.0
    optimization = hpo.optimization
    (optimizer,) = optimization.optimizers
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(1e-4 * group["lr_multiplier"])
    assert optimization.param_groups("critic")[0]["lr_multiplier"] == 1.0


def test_reward_offset_does_not_change_a_continuing_update():
    """A constant cost cannot matter to a system that never ends, and must not to its update."""

    def metrics(offset: float) -> dict[str, float]:
        hpo = small_hpo()
        batch = hpo.collector.collect()
        batch.set(("next", "reward"), batch["next", "reward"] + offset)
        hpo.update(batch)
        return {key: float(value.sum()) for key, value in hpo.policy.state_dict().items()}

    assert metrics(0.0) == pytest.approx(metrics(500.0), rel=1e-3, abs=1e-4)


class StopAfter(Callback):
    """Stands for a process that is killed after an update: nothing more is written."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_update_end(self, trainer, row):
        if trainer.update == self.update:
            raise InterruptedError


def test_trainer_resumes_to_the_same_parameters(tmp_path):
    whole = small_trainer(tmp_path / "whole", several(0, 1), (0, 1))
    summaries = whole.train()
    # Stopped one update past the checkpoint, which must be forgotten.
    stopped = small_trainer(tmp_path / "run", several(0, 1), (0, 1), callbacks=[StopAfter(3)])
    with pytest.raises(InterruptedError):
        stopped.train()
    torch.manual_seed(999)
    resumed = small_trainer(tmp_path / "run", several(5, 6), (0, 1))
    resumed.resume()
    assert resumed.update == 2
    for summary, again in zip(summaries, resumed.train(), strict=True):
        assert (again["seed"], again["test_cost"]) == (summary["seed"], summary["test_cost"])
    for run, other in zip(whole.runs, resumed.runs, strict=True):
        pairs = zip(run.policy.parameters(), other.policy.parameters(), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)
        assert metrics_of(run.folder) == metrics_of(other.folder)
        assert other.folder.found == ["summary.json", "checkpoints"]
    assert [summary["seed"] for summary in summaries] == [0, 1]
    first, second = (next(run.policy.parameters()) for run in whole.runs)
    assert not torch.equal(first, second)
    # Seeds go on from the newest checkpoint that all have.
    newest = [run.checkpoint.newest() for run in resumed.runs]
    newest[1].unlink()
    resumed = small_trainer(tmp_path / "run", several(5, 6), (0, 1))
    resumed.resume()
    assert resumed.update == 2
    assert not newest[0].exists()
    assert [len(run.logger.rows) for run in resumed.runs] == [2, 2]  # updates 1, 2
    for path in resumed.runs[1].folder.checkpoints.glob("*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        small_trainer(tmp_path / "run", several(5, 6), (0, 1)).resume()


def test_each_seed_of_several_is_a_run_of_its_own(tmp_path):
    """Same figures as of the seed alone, also after going on together or by itself."""

    def cut_back(folder):
        folder.summary.unlink()
        max(folder.checkpoints.iterdir()).unlink()

    def check(folder):
        for row, other in zip(metrics_of(folder), metrics_of(ordinary), strict=True):
            assert row == pytest.approx(other, rel=1e-6, abs=1e-9)
        summary = folder.read_summary()
        assert {key: summary[key] for key in shared} == pytest.approx(shared)

    settings = [*SMALL, "algorithm.epochs=2", "dtype=float64", "trainer.log_every=1"]
    settings += ["trainer.num_updates=3", "trainer.checkpoint_every=2"]
    train([*settings, "seed=5", f"output_dir={tmp_path / 'alone'}"])
    ordinary = RunFolder(tmp_path / "alone")
    alone = ordinary.read_summary()
    shared = {key: value for key, value in alone.items() if isinstance(value, float)}
    del shared["wall_seconds"]
    train([*settings, "seed=4", "num_seeds=2", f"output_dir={tmp_path / 'all'}"])
    whole = RunFolder(tmp_path / "all")
    assert whole.read_seeds() == [4, 5]
    first, own = whole.of_seed(4), whole.of_seed(5)
    assert (first.read_summary()["seed"], own.read_summary()["seed"]) == (4, 5)
    assert own.read_config() == ordinary.read_config()
    assert own.found == ordinary.found
    check(own)
    evaluated = load_run(own.path).evaluate()
    assert {key: evaluated[key] for key in shared} == pytest.approx(shared)
    for folder in (first, own):
        cut_back(folder)
    train([f"resume={whole.path}"])
    check(own)
    cut_back(own)
    train([f"resume={own.path}"])
    check(own)
    config = first.read_config()
    with pytest.raises(FileExistsError, match=r"already holds a run \(seeds\.yaml\)"):
        train_run(config, whole.path, num_seeds=2)
    other = {**config, "env": {**config["env"], "seed": 7}}
    with pytest.raises(ValueError, match=r"env\.seed=7"):
        train_run(other, tmp_path / "more", num_seeds=2)


class Watch(Callback):
    """Writes down what it is told, and stops training at an update."""

    def __init__(self, last: int = 99) -> None:
        self.seen: list[str] = []
        self.last = last

    def on_train_start(self, trainer):
        self.seen.append("start")

    def on_evaluation(self, trainer, cost):
        self.seen.append(f"tested {trainer.update}: {isinstance(cost, CostEstimate)}")

    def on_update_end(self, trainer, row):
        row["seen"] = len(self.seen)
        if row["update"] == self.last:
            raise StopTraining("enough")

    def on_checkpoint(self, trainer, path):
        self.seen.append(path.name)

    def on_train_end(self, trainer, summary):
        self.seen.append("end")
        summary["watched"] = True
        assert not trainer.runs[0].folder.summary.exists()  # it is written last


def test_callbacks_see_a_run_and_may_end_it(tmp_path):
    watch = Watch(last=3)
    trainer = small_trainer(tmp_path, small_hpo(), callbacks=[watch], progress=True)
    summary = trainer.train()
    names = [f"checkpoint-{update:012d}.ckpt" for update in (0, 2, 3)]
    tested = ["tested 1: True", "tested 2: True"]
    assert watch.seen == [names[0], "start", *tested, names[1], names[2], "end"]
    assert (summary["updates"], summary["stopped"]) == (3, "enough")
    saved = RunFolder(tmp_path)
    assert saved.read_summary() == summary
    assert summary["watched"]
    assert [row["update"] for row in saved.read_metrics()] == [1, 2, 3]
    assert [row["seen"] for row in saved.read_metrics()] == [3, 4, 5]
    failed = small_trainer(tmp_path / "b", small_hpo(), callbacks=[StopAfter(1)])
    told = []
    failed.callbacks[0].on_exception = lambda trainer, error: told.append(type(error))
    with pytest.raises(InterruptedError):
        failed.train()
    assert told == [InterruptedError]


def test_gradients_are_those_of_the_policy_that_the_run_ends_with(tmp_path, monkeypatch):
    """With trainer.select=best that is the selected one, here of update 1, and not the last."""
    offer = Selection.offer
    monkeypatch.setattr(
        Selection,
        "offer",
        lambda self, policy, update, cost: offer(self, policy, update, cost) if update == 1 else 0,
    )
    seen, sampler = [], GradientSampler.of

    def of(algorithm):
        seen.append({key: value.clone() for key, value in algorithm.policy.state_dict().items()})
        return sampler(algorithm)

    monkeypatch.setattr(GradientSampler, "of", of)
    settings = ["trainer.select=best", "trainer.num_updates=3", "trainer.checkpoint_every=1"]
    config = compose_config([*SMALL, *settings, "gradients={num_batches:2,num_reference:2}"])
    summary = train_run(config, tmp_path / "run")
    gradients_run(config, tmp_path / "run", progress=False, num_batches=2, num_reference=2)
    assert summary["selected_update"] == 1
    algorithm = build_algorithm(config)
    checkpoint = Checkpoint(tmp_path / "run", {"policy": algorithm.policy}, config=config)
    used, at_the_end = seen  # by hpo-gradients, and with gradients= of the run itself
    assert all(torch.equal(used[key], at_the_end[key]) for key in used)
    checkpoint.load()
    last = algorithm.policy.state_dict()
    assert any(not torch.equal(used[key], last[key]) for key in used)
    assert load_run(tmp_path / "run").evaluate()["test_cost"] == summary["test_cost"]
    restore_policy(algorithm, config, tmp_path / "run")
    ended = algorithm.policy.state_dict()
    assert all(torch.equal(used[key], ended[key]) for key in used)


@pytest.mark.parametrize(
    "component", ["policy", "optimizer", "collector", "reward_scaler", "randomness"]
)
def test_resume_needs_every_component(tmp_path, component):
    """Planted fault: a checkpoint without one component does not resume to the same place."""
    hpo = small_hpo()
    for _ in range(2):
        hpo.iterate()
    components = {k: v for k, v in hpo.components().items() if k != component}
    checkpoint = Checkpoint(tmp_path, components, config={})
    checkpoint.save(2, {})
    hpo.iterate()
    expected = torch.cat([p.detach().flatten() for p in hpo.policy.parameters()])

    torch.manual_seed(123)
    other = small_hpo(seed=7)
    components = {k: v for k, v in other.components().items() if k != component}
    again = Checkpoint(tmp_path, components, config={})
    again.load()
    other.iterate()
    found = torch.cat([p.detach().flatten() for p in other.policy.parameters()])
    assert not torch.equal(expected, found)


def test_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    hpo = small_hpo()
    trainer = small_trainer(tmp_path, hpo)
    collect, calls = hpo.collector.collect, []

    def poisoned():
        batch = collect()
        calls.append(batch)
        if len(calls) == 4:
            batch.set(("next", "reward"), batch["next", "reward"] * float("nan"))
        return batch

    hpo.collector.collect = poisoned
    with pytest.raises(NonFiniteError, match=r"Update 4: .*reward.*checkpoint-0+2\.ckpt"):
        trainer.train()
    assert len(calls) == 4
    other = small_trainer(tmp_path, small_hpo(seed=3))
    other.resume()
    assert other.update == 2
    assert all(bool(p.isfinite().all()) for p in other.algorithm.policy.parameters())


def test_summary_has_the_documented_keys(tmp_path):
    trainer = small_trainer(tmp_path, small_hpo(), num_updates=1)
    trainer.tests["short"].env.reports = "reward"
    summary = trainer.train()
    assert summary["test_reward"] == -summary["test_cost"]
    keys = "env algorithm seed test_cost test_cost_se optimal_cost lower_bound upper_bound gap"
    assert set(f"{keys} env_steps updates wall_seconds".split()) <= set(summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["gap"] == pytest.approx(summary["test_cost"] / 37.0 - 1)
    simulated = 2 * 2 * 20  # both actions, from a quarter of the ten states
    assert (summary["env_steps"], summary["updates"]) == (8 * (10 + simulated), 1)
    RunFolder(tmp_path).write_summary({"a": float("nan"), "b": 1.0})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": None, "b": 1.0}


def test_checkpoint_of_another_config_is_refused_by_key(tmp_path):
    net = torch.nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        Checkpoint(tmp_path, {}, config={}).load()
    Checkpoint(tmp_path, {"net": net}, config={"env": {"num_items": 1}}).save(1, {})
    other = Checkpoint(tmp_path, {"net": net}, config={"env": {"num_items": 2}})
    with pytest.raises(CheckpointError, match=r"env\.num_items was 1, is 2"):
        other.load()


def test_logger_adds_columns_and_forgets_what_a_checkpoint_does_not_hold(tmp_path):
    logger = RunLogger(tmp_path)
    logger.log({"update": 1, "cost": 2.5})
    logger.log({"update": 2, "cost": 2.25, "gap": 0.5})
    logger.log({"update": 3, "cost": 2.0})
    with logger.folder.metrics.open("a") as file:
        file.write("4,1.")
    again = RunLogger(tmp_path)
    again.rows = logger.rows[:2]
    again.resume()
    rows = [{"update": 1, "cost": 2.5}, {"update": 2, "cost": 2.25, "gap": 0.5}]
    assert again.rows == again.folder.read_metrics() == rows


def test_a_damaged_file_of_a_run_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(RunFolderError, match=r"not the folder of a run: it holds no config\.yaml"):
        folder.read_config()
    with pytest.raises(RunFolderError, match="its run has not finished"):
        folder.read_summary()
    assert folder.read_metrics() == []
    folder.write_config({"env": {}, "algorithm": {}, "trainer": {}, "seed": 0})
    assert folder.read_config()["seed"] == 0
    for text, message in (("a: [", "damaged"), ("a: 1", "lacks env, algorithm, trainer, seed")):
        folder.config.write_text(text)
        with pytest.raises(RunFolderError, match=message):
            folder.read_config()
    folder.metrics.write_text("update,cost\n1,2.5\n2,\n3,x\n4,1.0\n")
    with pytest.raises(RunFolderError, match="damaged: line 4"):
        folder.read_metrics()
    folder.metrics.write_text("update,cost\n1,2.5\n2,\n3")
    assert folder.read_metrics() == [{"update": 1, "cost": 2.5}, {"update": 2}]
    assert folder.of_seed(3).path == tmp_path / "seed=3"
    folder.seeds.write_text("seeds: [0, x]")
    with pytest.raises(RunFolderError, match=r"seeds\.yaml is damaged"):
        folder.read_seeds()


def test_kill_and_resume_gives_the_parameters_of_the_uninterrupted_run(tmp_path):
    """The real thing: kill -9 a training process, resume it, compare every parameter."""
    command = [sys.executable, "-m", "hpo_torchrl.experiments.cli", *SMALL]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_run(compose_config(SMALL), whole)
    process = subprocess.Popen(
        [*command, f"output_dir={parts}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wanted = parts / "checkpoints" / "checkpoint-000000000003.ckpt"
    deadline = time.monotonic() + 120
    while not wanted.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (parts / "summary.json").exists()
    train([f"resume={parts}"])

    finals, summaries = [], []
    for run_dir in (whole, parts):
        folder = RunFolder(run_dir)
        algorithm = build_algorithm(folder.read_config())
        components = algorithm.components()
        updates, _ = Checkpoint(run_dir, components, config=folder.read_config()).load()
        assert updates == 8
        finals.append([*algorithm.policy.parameters(), *algorithm.critic.parameters()])
        summaries.append(folder.read_summary() | {"wall_seconds": None})
    assert all(torch.equal(one, other) for one, other in zip(*finals, strict=True))
    assert summaries[0] == summaries[1]
