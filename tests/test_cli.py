"""The commands as a person types them, and what they say to bad input."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from shrunk import SMALL, TINY

from hpo_torchrl.experiments.cli import _command, _parser, evaluate, gradients, train
from hpo_torchrl.reporting.report import main as report
from hpo_torchrl.training import RunFolder

ROOT = Path(__file__).parents[1]


def refused(capsys, *arguments: str, command=train) -> str:
    """Run a command, expect exit code 2, and return the single line that it printed."""
    with pytest.raises(SystemExit) as stop:
        command(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert re.match(r"hpo-\w+: error: ", message)
    return message


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_train_leaves_a_complete_folder_that_evaluation_does_not_change(tmp_path, capsys):
    run_dir = tmp_path / "run"
    train([*SMALL, f"output_dir={run_dir}", "seed=4", "trainer.checkpoint_every=2"])
    names = {path.name for path in run_dir.iterdir()}
    files = {"config.yaml", "metrics.csv", "summary.json", "learning_curve.png", "policy.png"}
    assert names == files | {"checkpoints"}
    summary = summary_of(run_dir)
    assert (summary["env"], summary["algorithm"], summary["seed"]) == ("inventory", "hpo", 4)
    assert summary["optimal_cost"] == pytest.approx(37.0644, abs=1e-4)
    assert summary["test_cost"] == summary["long_run_cost"]
    assert summary["env_steps"] == 3 * 8 * 5
    shown = capsys.readouterr().out
    assert "optimal cost     37.0644" in shown
    assert str(run_dir) in shown

    before = contents(run_dir)
    evaluate([str(run_dir)])
    assert f"{summary['test_cost']:.4f}" in capsys.readouterr().out
    assert contents(run_dir) == before
    max((run_dir / "checkpoints").iterdir()).unlink()
    evaluate([str(run_dir)])
    assert "2 updates" in capsys.readouterr().out


def test_same_seed_same_run_other_seed_other_run(tmp_path):
    rows = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train([*SMALL, "trainer.num_updates=1", f"output_dir={tmp_path / name}", f"seed={seed}"])
        (row,) = RunFolder(tmp_path / name).read_metrics()
        del row["wall_seconds"]
        rows.append(row)
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize(
    "overrides",
    [
        ["env.lead_time=0", "policy.scale=0.2", "policy.learn_scale=true"],
        ["env.lost_sales=true", "env.demand=normal", "policy.shared_trunk=true"],
        ["dtype=float64", "algorithm.cross_term=false", "algorithm.epochs=0"],
        ["env.horizon=7", "collect.reset_at_each_iter=true"],
        ["env.num_items=2", "env.demand=[5,20]", "env.holding_cost=[1,2]"],
    ],
)
def test_variants_train(tmp_path, overrides):
    train([*SMALL, "trainer.num_updates=1", *overrides, f"output_dir={tmp_path / 'run'}"])
    assert np.isfinite(summary_of(tmp_path / "run")["test_cost"])


def test_demand_traces_from_a_file(tmp_path):
    path = tmp_path / "demand.npy"
    np.save(path, torch.poisson(torch.full((8, 30, 1), 10.0)).numpy())
    small = [text for text in TINY if "batch_size" not in text]
    settings = ["env=inventory_traces", f"env.demand.traces={path}", *small]
    train([*settings, f"output_dir={tmp_path / 'run'}"])
    summary = summary_of(tmp_path / "run")
    assert (summary["optimal_cost"], summary["gap"]) == (None, None)
    assert np.isfinite(summary["protocol_cost"])


TRACES = "env=inventory_traces"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["env.nmu_items=2"], ["env.nmu_items=2", "Did you mean 'num_items'"]),
        (["+env.colour=red"], ["env.colour='red'", "Known keys of env"]),
        (["policy.hiden=[8]"], ["policy.hiden=[8]", "Did you mean 'hidden'"]),
        (["critic.activaton=elu"], ["critic.activaton='elu'", "Did you mean 'activation'"]),
        (["algorithm.epoch=1"], ["algorithm.epoch=1", "Did you mean 'epochs'"]),
        (["algorithm.seed=9"], ["Unknown key algorithm.seed=9"]),
        (["algorithm=ppo", "collect.compile=true"], ["collect.compile=True", "algorithm=ppo"]),
        (["trainer.num_update=1"], ["trainer.num_update=1", "Did you mean 'num_updates'"]),
        (["nonsense.key=1"], ["key nonsense in 'nonsense.key=1'", "Known keys: policy, critic"]),
        (["env=invntory"], ["env/invntory", "switched_lqr_2d"]),
        (
            ["env._target_=no_package.Env"],
            ["env._target_='no_package.Env'", "cannot be imported or called"],
        ),
        (["env._target_=math.pi"], ["env._target_='math.pi'", "float"]),
        (["env._target_=hpo_torchrl.algorithms.HPO"], ["env.env must be given"]),
        (["env._target_=collections.Counter"], ["batch_size=8", "takes no batch_size"]),
        (["env.holding_cost=-1"], ["holding_cost must be", ">= 0", "-1"]),
        (["env.demand=nan"], ["demand.mean must be", "nan"]),
        (["env.lead_time=2.5"], ["lead_time must be an integer", "2.5"]),
        (["env.lead_time=two"], ["lead_time must be an integer", "'two'"]),
        (["env.lead_time=true"], ["lead_time must be an integer", "True"]),
        (["env.demand=uniform"], ["demand must be one of", "'poisson'", "'uniform'"]),
        (["env.num_items=2", "env.holding_cost=[1,2,3]"], ["holding_cost", "got 3"]),
        ([TRACES, "env.demand.traces=/no/such/file.npy"], ["demand.traces", "No such file"]),
        ([TRACES], ["Missing mandatory value"]),
        (["algorithm.learning_rate=0"], ["learning_rate must be", "> 0"]),
        (["algorithm.adam_betas=0.9"], ["adam_betas must be two numbers", "0.9"]),
        (["algorithm.adam_betas=[0.9,1.5]"], ["adam_betas[1] must be", "1.5"]),
        (["algorithm.discount=1.5"], ["discount must be", "<= 1", "1.5"]),
        (["algorithm.learning_rate_schedule=step"], ["learning_rate_schedule", "'cosine'"]),
        (["policy.activation=gelu"], ["activation must be one of", "'gelu'"]),
        (["policy.learn_scale=true"], ["learn_scale=True needs scale > 0"]),
        (["trainer.num_updates=0"], ["num_updates must be an integer >= 1"]),
        (["seed=-1"], ["seed must be an integer >= 0"]),
        (["dtype=float16x"], ["dtype must be one of", "'float32'"]),
        (["device=gpu7"], ["device='gpu7' cannot be used"]),
        (["algorithm.cross_term=no"], ["cross_term must be true, false or", "'no'"]),
        (["algorithm.entropy_coeff=abc"], ["entropy_coeff must be", "'abc'"]),
        (["algorithm.clip_epsilon=abc"], ["clip_epsilon must be", "'abc'"]),
        (["policy.shared_trunk=off"], ["shared_trunk must be true or false"]),
        (["evaluation.primary=foo"], ["evaluation.primary must be one of"]),
        (["evaluation.validation.like=foo"], ["evaluation.validation.like must be one of"]),
        (["evaluation.validation.num_steps=40"], ["skip must be below num_steps=40"]),
        (["+evaluation.tests.protocol.x=1"], ["Unknown key evaluation.tests.protocol.x=1"]),
        (["logger.backend=foo"], ["logger.backend must be one of"]),
        (["logger=mlflow"], ["logger.backend='mlflow' needs its package"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, capsys, overrides, words):
    run_dir = tmp_path / "run"
    settings = TINY if overrides[0].startswith(("env=", "env._target_")) else SMALL
    message = refused(capsys, *settings, f"output_dir={run_dir}", *overrides)
    for word in words:
        assert word in message
    assert not run_dir.exists()


def test_unreadable_traces_are_refused(tmp_path, capsys):
    def said(path):
        return refused(capsys, TRACES, f"env.demand.traces={path}")

    np.save(tmp_path / "demand.npy", np.ones((8, 30)))
    message = said(tmp_path / "demand.npy")
    assert "traces must have shape (B, T, n)" in message
    assert "(8, 30)" in message
    (tmp_path / "junk.npy").write_bytes(b"junk")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for name in ("junk.npy", "objects.npy", "absent.npy"):
        assert f"{name}' cannot be read" in said(tmp_path / name)
    assert "give a .npy file" in said(tmp_path / "demand.pt")


def test_what_a_folder_holds_is_never_lost_or_mixed_up(tmp_path, capsys):
    """New runs, changed settings and damaged checkpoints are refused; nothing is changed."""
    run_dir = tmp_path / "run"
    train([*SMALL, "trainer.num_updates=1", f"output_dir={run_dir}"])
    before = contents(run_dir)
    message = refused(capsys, *SMALL, f"output_dir={run_dir}", "seed=9")
    assert "already holds a run" in message
    assert f"resume={run_dir}" in message
    for change in ("env.num_items=2", "output_dir=elsewhere", "num_seeds=2"):
        key = change.split("=")[0]
        assert f"would change {key}. Leave it out" in refused(capsys, f"resume={run_dir}", change)
    assert contents(run_dir) == before

    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("lead_time: 2", "lead_time: 3"))
    assert "env.lead_time was 2, is 3" in refused(capsys, f"resume={run_dir}")
    config.write_bytes(before[config])
    newest = max((run_dir / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    message = refused(capsys, f"resume={run_dir}")
    assert newest.name in message
    assert "damaged or incomplete" in message


def test_a_folder_that_holds_no_run_is_refused(tmp_path, capsys):
    assert "not the folder of a run" in refused(capsys, f"resume={tmp_path}")
    assert "not the folder of a run" in refused(capsys, str(tmp_path), command=evaluate)
    (tmp_path / "file").touch()
    assert "file" in refused(capsys, *SMALL, f"output_dir={tmp_path / 'file' / 'sub'}")


def test_the_configuration_can_be_shown(capsys):
    train(["env.num_items=3", "--cfg"])
    assert "num_items: 3" in capsys.readouterr().out


def test_example_script_is_the_command(tmp_path, monkeypatch):
    script = str(ROOT / "examples" / "train.py")
    monkeypatch.setattr(sys, "argv", [script, *SMALL, f"output_dir={tmp_path / 'run'}"])
    runpy.run_path(script, run_name="__main__")
    assert (tmp_path / "run" / "summary.json").exists()


def test_torchrl_example_improves_on_its_start(capsys):
    namespace = runpy.run_path(str(ROOT / "examples" / "compose_with_torchrl.py"))
    namespace["main"]()
    before, after, optimum = (
        float(line.split()[1]) for line in capsys.readouterr().out.splitlines()
    )
    assert optimum == pytest.approx(37.06)
    assert after < 0.8 * before


MY_PACKAGE = '''
from hpo_torchrl.problems import InventoryEnv


class MyEnv(InventoryEnv):
    """An environment of one's own."""

    def __init__(self, some_argument, **others):
        super().__init__(lead_time=some_argument, **others)
'''


def test_readme_commands_run_as_written(tmp_path, monkeypatch):
    """Every hpo- command of the README, in order, shrunk by further overrides."""
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^(hpo-(?:train|eval|gradients|report)[^#\n]*)", text, re.MULTILINE)
    # What an experiment runs is composed, not run, by other tests.
    lines = [line for line in lines if "experiment=" not in line]
    assert len(lines) >= 6
    # The commands are written for the top folder of a clone, and for a package of one's own.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    monkeypatch.chdir(tmp_path)
    # Drawing takes half the time of runs this small; other tests look at pictures.
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **how: Path(path).touch())
    commands = {
        "hpo-train": train,
        "hpo-eval": evaluate,
        "hpo-gradients": gradients,
        "hpo-report": report,
    }
    for line in lines:
        name, *arguments = shlex.split(line)
        if name == "hpo-train" and "resume=" not in line:
            problem = [text for text in arguments if text.startswith(("env=", "env._target_="))]
            inventory = not problem or problem[0] in (
                "env=inventory_heterogeneous",
                "env=inventory_variant",
            )
            arguments += [*(SMALL if inventory else TINY), "trainer.num_updates=1"]
            if "env=switched_lqr" in problem:  # its optimum takes long
                small = ["env.dim=2", "env.horizon=5", "evaluation.tests.fixed_start.batch_size=8"]
                arguments += small
            if "env._target_" in line:
                arguments += ["evaluation.tests.test.batch_size=8"]
            if problem == ["env=inventory_from_file"]:  # the best rule of its record takes long
                parts = ("train", "dev", "test")
                arguments += [f"evaluation.tests.{part}.batch_size=4" for part in parts]
            arguments += ["num_seeds=2"] if "num_seeds" in line else []
            arguments += ["algorithm.epochs=1"] if "algorithm=ppo" in line else []
            arguments += ["sweep_estimate=false"] if "--multirun" in line else []
        if name == "hpo-gradients":
            arguments += ["--batches", "3", "--reference", "3"]
        commands[name](arguments)


@pytest.mark.parametrize("on_top", [False, True])
def test_an_interrupt_says_how_to_go_on(capsys, on_top):
    def action(given):
        try:
            raise KeyboardInterrupt
        finally:
            if on_top:
                raise RuntimeError("Converting a tensordict to boolean value is not permitted")

    with pytest.raises(SystemExit) as stop:
        _command(_parser("hpo-train", ""), [], action)
    assert stop.value.code == 130
    assert "resume=FOLDER" in capsys.readouterr().err
