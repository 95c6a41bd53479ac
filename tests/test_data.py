"""A run knows its data, its rows and its way on: files are pinned, faults of the disk are named."""

from __future__ import annotations

import errno
import io
import math
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from shrunk import SMALL, TINY

import hpo_torchrl
from hpo_torchrl.algorithms import NonFiniteError
from hpo_torchrl.experiments import cli
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.experiments.pins import check_files, pinned
from hpo_torchrl.experiments.run import train_run
from hpo_torchrl.experiments.sweep import UNFINISHED, run_state
from hpo_torchrl.reporting import report
from hpo_torchrl.training import CheckpointError, RunFolder, RunFolderError
from hpo_torchrl.training.run_logger import RunLogger

OFTEN = ["trainer.checkpoint_every=1", "trainer.eval_every=1", "trainer.num_updates=3"]
TESTS = [
    f"evaluation.tests.{name}.{change}"
    for name in ("test", "dev", "train")
    for change in ("batch_size=2", "skip=2")
]
FEW = [*SMALL, *OFTEN]
RECORDED = [*TINY, *TESTS, *OFTEN, "env=inventory_from_file", "env.history=2", "env.season=1"]
RATE = "algorithm.learning_rate"


def write_demand(path, days=40, level=5.0, extra=0.0):
    chance = np.random.default_rng(0)
    rows = [f"{day},{item},{level + chance.integers(9)}" for day in range(days) for item in "AB"]
    path.write_text("period,item,demand\n" + "\n".join(rows) + f"\n{days},A,{extra}\n{days},B,1\n")
    return path


@pytest.fixture(scope="module", autouse=True)
def no_drawing():
    """Pictures take longer than all else here; empty ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **how: path.touch())
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with demand.csv, and the run that was trained on it."""
    folder = tmp_path_factory.mktemp("recorded")
    path = write_demand(folder / "demand.csv")
    train_run(compose_config([*RECORDED, f"env.path={path}"]), folder / "run")
    return folder


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "run"
    train_run(compose_config(FEW), folder)
    return folder


@pytest.fixture
def data(recorded):
    """Its file, as it was before and will be after."""
    path = recorded / "demand.csv"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


@pytest.fixture
def run(recorded, tmp_path):
    """The run, killed after its second update."""
    return killed(recorded / "run", tmp_path / "run", 2)


def killed(whole, folder, update):
    shutil.copytree(whole, folder)
    for path in (folder / "checkpoints").glob("*"):
        if int(path.stem[-12:]) > update:
            path.unlink()
    (folder / "summary.json").unlink()
    return folder


def end_of(run):
    """The weights and the figures that a run ends with, but for the time it took."""
    summary = RunFolder(run).read_summary() | {"wall_seconds": 0.0}
    rows = [row | {"wall_seconds": 0.0} for row in RunFolder(run).read_metrics()]
    weights = torch.cat([p.flatten() for p in hpo_torchrl.load_policy(run).module.parameters()])
    return summary, rows, weights.tolist()


def said(capsys, command, *words):
    with pytest.raises(SystemExit):
        command([str(word) for word in words])
    return capsys.readouterr().err


def test_a_run_pins_its_file_and_its_units(recorded, run, data, capsys):
    """Another content is refused by all who open the run, and accepted by who is told of it."""
    config = RunFolder(run).read_config()
    mean = hpo_torchrl.load_run(recorded / "run").policy.env.demand.given_mean
    assert config["units"] == {"env.mean": mean, "env.season": 0, "env.show_season": False}
    assert [len(text) for text in config["files"].values()] == [64]
    write_demand(data, days=70, level=50.0)
    gradients = [str(run), "--batches", "2", "--reference", "2"]
    with pytest.raises(ValueError, match="is not what the run") as found:
        hpo_torchrl.load_policy(run)
    for message in (
        str(found.value),
        said(capsys, cli.train, f"resume={run}"),
        said(capsys, cli.train, f"resume={run}", f"env.path={data}"),
        said(capsys, cli.evaluate, run),
        said(capsys, cli.gradients, *gradients),
    ):
        for part in (
            f"{data} (env.path) is not what",
            config["files"]["env.path"][:12],
            "hpo-eval",
        ):
            assert part in message
        assert f"hpo-train resume={run} env.path={data} changed_files=true" in message
    cli.evaluate([str(run), f"env.path={data}"])
    assert f"{data} (env.path: not the data of the training, whose units" in capsys.readouterr().out
    told = hpo_torchrl.load_policy(run, files={"env.path": data})
    assert told.env.demand.given_mean == mean
    cli.train([f"resume={run}", "changed_files=true"])
    after = RunFolder(run).read_config()
    assert after["units"] == config["units"]
    assert after["files"] != config["files"]
    cli.train([f"resume={run}"])  # which is bound to it now


def test_the_same_state_gives_the_same_orders_whatever_the_data(run, data, tmp_path):
    state = {"inventory": torch.rand(5, 2, 2) * 20, "recent": torch.rand(5, 2, 2) * 9}
    state["period"] = torch.zeros(5, 2)
    other = write_demand(tmp_path / "other.csv", level=500.0)
    own, told = (hpo_torchrl.load_policy(run, files={"env.path": path}) for path in (data, other))
    for action, again in zip(own(state).values(), told(state).values(), strict=True):
        assert torch.equal(action, again)


def test_a_moved_file_resumes_to_the_same_end(recorded, run, data, tmp_path, capsys):
    moved, whole, few = tmp_path / "elsewhere, 2.csv", end_of(recorded / "run"), ["--batches=2"]
    shutil.copy(data, moved)
    again = killed(recorded / "run", tmp_path / "again", 2)
    data.unlink()
    for message in (said(capsys, cli.evaluate, run), said(capsys, cli.train, f"resume={run}")):
        assert f"{data} is missing, and the run in {run} was trained on it" in message
        assert "env.path=FILE" in message
    for command in (cli.evaluate, cli.gradients):
        message = said(capsys, command, run, "env.season=7")
        assert "what can lie elsewhere now is env.path" in message
    cli.gradients([str(run), f"env.path={moved}", *few, "--reference=2"])
    cli.evaluate([str(run), f"env.path={moved}"])
    assert f"{moved} (env.path)\n" in capsys.readouterr().out
    cli.train([f"resume={run}", f"env.path={moved}"])
    assert RunFolder(run).read_config()["env"]["path"] == str(moved)
    words = [word for word in RECORDED if "trainer.progress" not in word]
    hpo_torchrl.train([*words, f"env.path='{moved}'"], folder=again, resume=True, progress=False)
    assert end_of(run) == end_of(again) == whole


def test_any_file_that_a_configuration_names_is_pinned(tmp_path):
    """Nested, in lists and in any section; what is no file is not."""
    one, two = (write_demand(tmp_path / f"{name}.csv") for name in "ab")
    config = {
        "env": {"prices": {"table": str(one), "name": "a.csv"}, "more": [1, {"path": str(two)}]},
        "critic": {"weights": str(one)},
        "device": "cuda.0",
    }
    found = pinned(config)
    assert [*found["files"]] == ["env.prices.table", "env.more.1.path", "critic.weights"]
    check_files(found, "run")
    two.write_text("changed")
    with pytest.raises(ValueError, match=r"b\.csv \(env\.more\.1\.path\) is not what"):
        check_files(found, "run")
    check_files(found, "run", ["env.more.1.path"])


def test_traces_keep_their_unit(tmp_path):
    path = tmp_path / "traces.npy"
    np.save(path, np.random.default_rng(0).poisson(4.0, (4, 20, 1)))
    words = ["env=inventory_traces", f"env.demand.traces={path}", "collect.batch_size=null"]
    run = tmp_path / "run"
    train_run(compose_config([*TINY, *words]), run)
    config = RunFolder(run).read_config()
    assert [*config["files"]] == ["env.demand.traces"]
    assert [*config["units"]] == ["env.demand.mean"]
    np.save(path, np.random.default_rng(1).poisson(40.0, (4, 20, 1)))
    policy = hpo_torchrl.load_policy(run, files={"env.demand.traces": path})
    assert policy.env.demand.given_mean == config["units"]["env.demand.mean"]


def test_runs_that_diverged_go_on_with_a_smaller_rate(tmp_path, capsys):
    """It starts anew from its good checkpoint; with the same rate it fails in the same words."""
    words = [*FEW, f"{RATE}=1e30", "num_seeds=2", "trainer.checkpoint_every=3"]
    run = tmp_path / "run"
    once = said(capsys, cli.train, *words, f"output_dir={run}")
    again = said(capsys, cli.train, f"resume={run}")
    assert "not finite" in once
    assert again.splitlines()[-1] == once.splitlines()[-1]
    assert "would change policy.hidden" in said(
        capsys, cli.train, f"resume={run}", f"{RATE}=1e-3", "policy.hidden=[9]"
    )
    cli.train([f"resume={run}", f"{RATE}=1e-3"])
    for member in map(RunFolder(run).of_seed, (0, 1)):
        assert member.read_summary()["updates"] == 3
        assert member.read_config()["algorithm"]["learning_rate"] == 1e-3
        newest = max(member.checkpoints.glob("*"))
        saved = torch.load(io.BytesIO(newest.read_bytes()[32:]), weights_only=True)
        assert saved["config"]["algorithm"]["learning_rate"] == 1e-3
        newest.write_bytes(b"")  # and the one before, of the old rate, serves still
    with pytest.warns(UserWarning, match="Going on from update 0"):
        cli.train([f"resume={run}"])


def test_a_smaller_rate_in_python(tmp_path):
    small = [word for word in FEW if word.split("=")[0] != "trainer.progress"]

    def go(rate, *words, **how):
        settings = {"learning_rate": rate, "progress": False, "checkpoint_every": 3}
        words = ["env=inventory", *small, *words]
        return hpo_torchrl.train(words, folder=tmp_path / "run", **settings, **how)

    for resume in (False, True):
        with pytest.raises(NonFiniteError):
            go(1e30, resume=resume)
    with pytest.raises(CheckpointError, match=r"policy\.hidden was \[8\], is \[9\]"):
        go(1e-3, "policy.hidden=[9]", resume=True)
    assert go(1e-3, resume=True).summary["updates"] == 3


def cut(text):
    return text[: text.index("\n") + 30]


METRICS = {
    "deleted": (lambda text: None, "line 2"),
    "no header": (lambda text: text.split("\n", 1)[1], "line 1: the header is missing"),
    "another header": (lambda text: text.replace("cost", "coast", 1), "line 2"),
    "a digit": (lambda text: text.replace("\n2,", "\n2,7", 1), "line 3"),
    "a row lost": (lambda text: "".join(text.splitlines(True)[:2]), "line 3"),
    "a row cut": (cut, "line 3"),
    "a row twice": (lambda text: text + text.splitlines(True)[1], "line 6: update 1"),
    "no number": (lambda text: text.replace("\n2,", "\n2,x", 1), "line 3: could not convert"),
    "empty": (lambda text: "", "line 2"),
    "zero bytes": (lambda text: text.replace("\n2,", "\n\0,", 1), "line 3"),
    "no text": (lambda text: text.replace("\n2,", "\n\udcff,", 1), "line 3: not UTF-8"),
}


def damage(path, what):
    """Damage a file of metrics, and return the words by which that is told."""
    change, words = METRICS[what]
    text = change(path.read_text())
    path.unlink()
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    return words


@pytest.mark.parametrize("what", METRICS)
def test_damaged_metrics_are_told_and_restored(tmp_path, what):
    logger = RunLogger(tmp_path)
    for update in (1, 2, 3):
        logger.log({"update": update, "cost": update / 3})
    logger.log({"update": 4, "cost": math.nan, "more": 1.0})
    whole, rows = logger.folder.metrics.read_text(), logger.rows
    words = damage(logger.folder.metrics, what)
    if ":" in words:
        with pytest.raises(RunFolderError, match=rf"metrics\.csv is damaged: {words}"):
            logger.folder.read_metrics()
    again = RunLogger(tmp_path)
    again.rows = rows
    with pytest.warns(UserWarning, match=rf"metrics\.csv.*{words}.*restored"):
        again.resume()
    assert logger.folder.metrics.read_text() == whole
    again.rows = rows[:3]  # of an older checkpoint: no word
    again.resume()
    assert [row["update"] for row in logger.folder.read_metrics()] == [1, 2, 3]


def test_damaged_metrics_never_block_a_resume(simulated, tmp_path, capsys):
    for what in (None, "deleted", "no number"):
        run = killed(simulated, tmp_path / f"{what}", 2)
        if what is None:
            with (run / "metrics.csv").open("a") as file:
                file.write("4,1")  # a row that a kill cut short
        else:
            damage(run / "metrics.csv", what)
        if what == "no number":
            report.main([str(run), str(simulated), "--output", str(tmp_path / "report")])
            assert "metrics.csv is damaged: line 3" in capsys.readouterr().out
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            cli.train([f"resume={run}"])
        about = [one for one in told if "metrics.csv" in str(one.message)]
        assert len(about) == (what is not None)
        assert end_of(run) == end_of(simulated)


def test_metrics_that_change_while_they_are_written(tmp_path):
    logger = RunLogger(tmp_path)
    path = tmp_path / "metrics.csv"
    for update, change in (
        (1, None),
        (2, path.unlink),
        (3, lambda: path.write_text("x")),
        (4, None),
    ):
        row = {"update": update, "cost": np.float64(update / 3), "flag": True, "none": None}
        if change is None:
            logger.log(row)
        else:
            change()
            with pytest.warns(UserWarning, match=r"metrics\.csv was changed by another hand"):
                logger.log(row)
        expected = [{"update": k, "cost": k / 3, "flag": 1} for k in range(1, update + 1)]
        assert logger.folder.read_metrics() == expected == logger.rows
    with pytest.raises(TypeError, match=r"takes numbers.*'note': 'good'"):
        logger.log({"update": 5, "note": "good"})


@pytest.mark.parametrize("first", [1, 3])  # metrics, checkpoint, summary
def test_a_fault_of_the_disk_names_the_path_and_the_way_on(simulated, tmp_path, first, capsys):
    run, number = killed(simulated, tmp_path / "run", 2), errno.ENOSPC
    real, calls = os.fsync, []

    def fail(file):
        calls.append(file)
        if len(calls) >= first:
            raise OSError(number, os.strerror(number))
        real(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        message = said(capsys, cli.train, f"resume={run}")
    assert f"{os.strerror(number)}. What was saved is whole: mend that, then" in message
    assert f"go on by resume={run}." in message
    assert f"{run}/" in message.partition("What")[0]
    assert not list(run.rglob("*.tmp"))
    cli.train([f"resume={run}"])
    assert end_of(run) == end_of(simulated)


def test_folders_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    # An error of the disk has its number, by which alone it is told from a refusal.
    for place in (tmp_path / "file" / "run", tmp_path / ("x" * 300), Path("/proc/run")):
        message = said(capsys, cli.train, *FEW, f"output_dir={place}")
        assert str(place) in message
        assert "choose another output_dir" in message


def test_drafts_of_a_dead_run_go(simulated, tmp_path):
    run = killed(simulated, tmp_path / "run", 2)
    drafts = [run / ".summary.json.tmp", run / "checkpoints" / ".checkpoint-000000000003.ckpt.tmp"]
    for draft in drafts:
        draft.write_text("half")
    cli.train([f"resume={run}"])
    assert not any(draft.exists() for draft in drafts)


def test_a_run_killed_at_its_pictures_is_not_done(simulated, tmp_path, monkeypatch):
    """Neither a new one, nor one that had finished once and goes on."""
    config = compose_config(FEW)
    again = shutil.copytree(simulated, tmp_path / "again")

    def kill(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hpo_torchrl.reporting.plot_learning_curve", kill)
    for run, resume in ((tmp_path / "run", False), (again, True)):
        with pytest.raises(KeyboardInterrupt):
            train_run(config, run, resume=resume)
        assert run_state(run, config) == UNFINISHED
    monkeypatch.undo()
    train_run(config, again, resume=True)
    assert end_of(again) == end_of(simulated)
