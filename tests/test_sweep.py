"""Sweeps: folders, plan, going on after an interruption, failures, experiments."""

from __future__ import annotations

import csv
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from shrunk import SMALL

from hpo_torchrl.algorithms import NonFiniteError
from hpo_torchrl.experiments import sweep
from hpo_torchrl.experiments.build import build_algorithm
from hpo_torchrl.experiments.cli import train
from hpo_torchrl.experiments.config import CONFIGS, compose_config, hydra_session
from hpo_torchrl.experiments.sweep import DONE, UNFINISHED, describe_cost, run_name, run_state

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
GRID = ["algorithm.cross_term=true,false", "seed=1"]
QUICK = [*SMALL, "trainer.num_updates=1", "sweep_dir=sweep", "sweep_estimate=false"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch, undrawn):
    monkeypatch.chdir(tmp_path)


def multirun(*arguments: str) -> None:
    train(["--multirun", *arguments])


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        train(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def folders(where: str = "sweep") -> dict[tuple, Path]:
    """The folders of a sweep's runs, by cross term and seed."""
    found = {}
    for path in Path(where).glob("*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        found[config["algorithm"]["cross_term"], config["seed"]] = path.parent
    return found


def contents(where: str = "sweep") -> dict[Path, bytes]:
    """Everything but Hydra's record of the command."""
    paths = (path for path in Path(where).glob("*/**/*") if path.is_file())
    return {path: path.read_bytes() for path in paths}


def course(folder: Path | str) -> list[dict]:
    """All that a finished run logged, but for the time it took."""
    assert (Path(folder) / "summary.json").exists()
    with (Path(folder) / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.pop("wall_seconds")]


def test_a_sweep_plans_trains_and_is_done(capsys):
    multirun(*GRID, *SMALL)
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "plan             2 runs in runs/sweep: 2 new"
    assert lines[1].startswith("estimated time   0:01 (hours:minutes): 2 runs, 1 at a time; the f")
    assert lines[2].startswith("1 of 2 done      algorithm.cross_term=True   test cost")
    assert lines[3].startswith("2 of 2 done      algorithm.cross_term=False   test cost")
    runs = folders("runs/sweep")
    assert set(runs) == {(True, 1), (False, 1)}
    saved = (runs[True, 1] / "config.yaml").read_text()
    assert not {"output_dir", "resume", "sweep_dir", "sweep_estimate"} & set(yaml.safe_load(saved))
    # A run of a sweep is the run that it would have been alone.
    train([*SMALL, "seed=1", "output_dir=alone"])
    assert Path("alone/config.yaml").read_text() == saved
    assert course("alone") == course(runs[True, 1]) != course(runs[False, 1])

    before = contents("runs/sweep")
    capsys.readouterr()
    multirun(*GRID, *SMALL, "trainer.progress=true")
    shown = capsys.readouterr().out
    assert "2 runs in runs/sweep: 2 done already" in shown
    assert "estimated" not in shown
    assert contents("runs/sweep") == before


def test_a_rule_runs_once_for_all_seeds(capsys):
    words = ["algorithm=hpo,s_S,order_up_to", "seed=0,1", "env.num_items=1,2", *QUICK]
    multirun(*words)
    assert "plan             8 runs in sweep: 8 new" in capsys.readouterr().out
    ended = [path.parent.name for path in Path("sweep").glob("*/summary.json")]
    assert sum("algorithm=hpo" in name for name in ended) == 4
    assert sum("algorithm=s_S" in name and "seed=0" in name for name in ended) == 2


def test_a_killed_sweep_goes_on_where_it_stopped(capsys):
    long = ["trainer.num_updates=8", "trainer.checkpoint_every=2"]
    arguments = [*QUICK, *long, "seed=0,1,2"]
    process = get_context("fork").Process(target=multirun, args=arguments)
    process.start()
    end = time.monotonic() + 60
    while not list(Path("sweep").glob("*seed=1*/checkpoints/checkpoint-*[24].ckpt")):
        assert process.is_alive()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.join()
    runs = folders()
    assert set(runs) == {(True, 0), (True, 1)}
    finished, stopped = runs[True, 0], runs[True, 1]
    assert not (stopped / "summary.json").exists()
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    first_checkpoint = (stopped / "config.yaml").stat().st_mtime_ns

    multirun(*arguments)
    assert "3 runs in sweep: 1 done already, 1 unfinished, 1 new" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert (stopped / "config.yaml").stat().st_mtime_ns == first_checkpoint  # not started anew
    train([*SMALL, *long, "seed=1", "output_dir=whole"])
    assert course(stopped) == course("whole") != course(finished)


def test_a_stopped_run_resumes_by_its_folder_or_starts_afresh(capsys):
    arguments = [*QUICK, "sweep_dir=a sweep", "seed=1"]
    multirun(*arguments)
    (run,) = folders("a sweep").values()
    whole = course(run)
    assert {"=", ","} <= set(str(run))
    (run / "summary.json").unlink()
    train([f"resume={run}"])
    assert course(run) == whole
    for checkpoint in (None, b"cut off"):  # stopped before the first one
        for path in [*run.glob("checkpoints/*"), *run.glob("*.csv"), *run.glob("summary.json")]:
            path.unlink()
        if checkpoint is not None:
            (run / "checkpoints" / "checkpoint-000000000000.ckpt").write_bytes(checkpoint)
        multirun(*arguments)
        assert "1 run in a sweep: 1 new" in capsys.readouterr().out
        assert course(run) == whole


def test_a_run_of_another_configuration_is_refused(capsys):
    multirun(*QUICK, "seed=1")
    config = folders()[True, 1] / "config.yaml"
    config.write_text(config.read_text().replace("lead_time: 2", "lead_time: 3"))
    before = contents()
    message = refused(capsys, "--multirun", *QUICK, "seed=0,1,2")
    assert str(config.parent) in message
    assert "env.lead_time was 3, is 2" in message
    assert "sweep_dir=DIR" in message
    assert contents() == before
    config.unlink()
    assert "already holds a run" in refused(capsys, "--multirun", *QUICK, "seed=0,1,2")


def test_a_failure_is_recorded_and_tried_again(monkeypatch, capsys):
    real = sweep.train_run

    def fails_once(config, run_dir, **kwargs):
        if config["seed"] == 0:
            raise NonFiniteError("Update 2: the loss is not finite.")
        return real(config, run_dir, **kwargs)

    monkeypatch.setattr(sweep, "train_run", fails_once)
    with pytest.raises(SystemExit) as stop:
        multirun(*QUICK, "seed=0,1")
    assert stop.value.code == 1
    shown = capsys.readouterr()
    assert "1 of 2 done      seed=1" in shown.out
    assert "failed           seed=0   NonFiniteError: Update 2" in shown.out
    assert "1 of 2 runs failed" in shown.err
    (record,) = Path("sweep").glob("*/failed.txt")
    assert record.read_text().startswith("NonFiniteError: Update 2: the loss is not finite.\n")
    assert "fails_once" in record.read_text()

    monkeypatch.setattr(sweep, "train_run", real)
    multirun(*QUICK, "seed=0,1")
    assert "1 done already, 1 new" in capsys.readouterr().out
    assert not record.exists()
    assert (record.parent / "summary.json").exists()


def test_an_interrupt_stops_the_sweep(monkeypatch, capsys):
    def interrupted(config, run_dir, **kwargs):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("Converting a tensordict to boolean value is not permitted")

    monkeypatch.setattr(sweep, "train_run", interrupted)
    with pytest.raises(SystemExit) as stop:
        multirun(*QUICK, "seed=0,1")
    assert stop.value.code == 130
    assert "a sweep by the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["env.nmu_items=1,2"], ["env.nmu_items=1", "Did you mean 'num_items'"]),
        (["collect.compile=true", "algorithm=hpo,ddpg"], ["collect.compile=True", "=ddpg"]),
        (["env=inventory,invntory"], ["env=invntory", "Did you mean 'inventory'"]),
        (["seed=0,1", "resume=old"], ["resume=old is of a single run", "leave --multirun out"]),
        (["seed=0,1", "output_dir=same"], ["output_dir=same", "sweep_dir=DIR"]),
        (["seed=0,1,0"], ["give each value once"]),
        (["seed=0,1", "sweep_estimate=never"], ["sweep_estimate must be true or false"]),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(capsys, arguments, words):
    message = refused(capsys, "--multirun", *SMALL, *arguments)
    for word in words:
        assert word in message
    assert not list(Path().iterdir())


def test_a_run_leaves_the_gradients_it_was_asked_for(capsys):
    few = "gradients={num_batches: 3, num_reference: 4}"
    multirun(*QUICK, "seed=0", few)
    assert "plan             1 run in sweep: 1 new" in capsys.readouterr().out
    (run,) = folders().values()
    assert "gradients" not in run.name
    table, metrics = (run / "gradients.csv").read_text(), (run / "metrics.csv").read_text()
    for name in ("gradients.png", "summary.json"):  # stopped while it measured
        (run / name).unlink()
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["gradients"] == {"num_batches": 3, "num_reference": 4}
    assert run_state(run, settings) == UNFINISHED
    multirun(*QUICK, "seed=0", few)
    assert run_state(run, settings) == DONE
    assert (run / "gradients.csv").read_text() == table
    assert (run / "metrics.csv").read_text() == metrics


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["seed=0", "algorithm=hpo", "env.num_items=5"], "algorithm=hpo,env.num_items=5,seed=0"),
        (["policy.hidden=[8,8]", "+env.x=1"], "env.x=1,policy.hidden=[8,8]"),
        (["experiment=lqr_sizes", "trainer.progress=false", "sweep_dir=a", "seed=1"], "seed=1"),
        (["output_dir=a", "sweep_estimate=false", "gradients.num_batches=3"], "default"),
    ],
)
def test_names_are_readable_and_the_same_in_any_order(overrides, name):
    assert run_name(overrides) == run_name(overrides[::-1]) == name


def test_names_are_safe_and_distinct():
    odd = [run_name([f"env.demand.traces=/a{sign}b.npy"]) for sign in "/: *?'\"<>|\\é"]
    assert len(set(odd)) == len(odd)
    for name in odd:
        assert all(letter.isascii() and letter not in '/: *?"<>|\\' for letter in name)
    long = [run_name([*SMALL, *(f"a.b.key{i}=1" for i in range(40)), f"seed={j}"]) for j in (0, 1)]
    assert long[0] != long[1]
    assert max(map(len, long)) < 200


@pytest.mark.parametrize("change", ["gradients={num_batches: 2}", "algorithm=s_S"])
def test_times_are_measured_without_a_trace(change):
    assert sweep.seconds_of(compose_config([*SMALL, change])) > 0
    assert not list(Path().iterdir())


def test_cost_is_a_mean_and_shared_by_workers(monkeypatch):
    monkeypatch.setattr(sweep, "seconds_of", lambda settings: 1.0 * settings["time"])

    def said(workers, *times):
        return describe_cost([{"time": time} for time in times], workers)

    start = "estimated time   "
    assert said(1, 60, 120, 90) == (
        f"{start}0:04 (hours:minutes): 3 runs, 1 at a time; the first and the last take 60.0 and "
        "90.0 s"
    )
    assert said(2, 60, 60, 60).startswith(f"{start}0:02 (hours:minutes): 3 runs, 2 at a time;")
    assert said(1, "x", "y").startswith(f"{start}unknown: TypeError")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_compose_and_build(name):
    with hydra_session():
        params = compose("train", [f"experiment={name}"], return_hydra_config=True)
        texts = [f"{key}={value}" for key, value in params.hydra.sweeper.params.items()]
        values = {}
        for override in OverridesParser.create().parse_overrides(texts):
            key = override.get_key_element()
            values[key] = (
                [f"{key}={value}" for value in override.sweep_string_iterator()]
                if override.is_sweep_override()
                else [override.input_line]
            )
    most = max(map(len, values.values()))
    assert most > 1
    for i in range(most):  # every value occurs
        job = [value[min(i, len(value) - 1)] for value in values.values()]
        build_algorithm(compose_config([f"experiment={name}", *job]))


def test_runs_side_by_side(capfd):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    multirun(*QUICK, "seed=0,1", *launcher)
    shown = capfd.readouterr().out
    assert shown.startswith("plan             2 runs in sweep: 2 new")
    assert "2 of 2 done" in shown
    assert len(folders()) == 2
