"""The commands as a person types them, and what they say to bad input."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shrunk import SMALL

from hpo_torchrl.experiments.cli import _check_overrides, _or_exit, evaluate, train

ROOT = Path(__file__).parents[1]


def run_train(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["hpo-train", *arguments])
    train()


def refused(monkeypatch, capsys, *arguments: str) -> str:
    """Run hpo-train, expect exit code 2, and return the single line that it printed."""
    with pytest.raises(SystemExit) as stop:
        run_train(monkeypatch, *arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.startswith("hpo-train: error: ")
    return message


def test_train_leaves_a_complete_folder(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    run_train(monkeypatch, *SMALL, f"output_dir={run_dir}", "seed=4")
    names = {path.name for path in run_dir.iterdir()}
    files = {"config.yaml", "metrics.csv", "summary.json", "learning_curve.png", "policy.png"}
    assert names == files | {"checkpoints"}
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["env"], summary["algorithm"], summary["seed"]) == ("inventory", "hpo", 4)
    assert summary["optimal_cost"] == pytest.approx(37.0644, abs=1e-4)
    assert summary["test_cost"] == summary["long_run_cost"]
    assert summary["env_steps"] == 3 * 8 * 5
    shown = capsys.readouterr().out
    assert "optimal cost     37.0644" in shown
    assert str(run_dir) in shown

    monkeypatch.setattr(sys, "argv", ["hpo-eval", str(run_dir)])
    evaluate()
    again = capsys.readouterr().out
    assert f"{summary['test_cost']:.4f}" in again


def test_same_seed_same_run_other_seed_other_run(tmp_path, monkeypatch):
    costs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_train(monkeypatch, *SMALL, f"output_dir={tmp_path / name}", f"seed={seed}")
        costs.append(json.loads((tmp_path / name / "summary.json").read_text())["test_cost"])
    assert costs[0] == costs[1] != costs[2]


@pytest.mark.parametrize(
    "overrides",
    [
        ["env.num_items=2"],
        ["env.lead_time=0", "policy.scale=0.2", "policy.learn_scale=true"],
        ["env.lost_sales=true", "env.demand=normal", "policy.shared_trunk=true"],
        ["dtype=float64", "algorithm.cross_term=false", "algorithm.epochs=0"],
        ["env.horizon=7", "algorithm.reset_at_each_iter=true"],
        ["env.num_items=2", "env.demand=[5,20]", "env.holding_cost=[1,2]"],
    ],
)
def test_variants_train(tmp_path, monkeypatch, overrides):
    run_train(monkeypatch, *SMALL, *overrides, f"output_dir={tmp_path / 'run'}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert np.isfinite(summary["test_cost"])


@pytest.mark.parametrize("suffix", ["npy", "pt"])
def test_demand_traces_from_a_file(tmp_path, monkeypatch, suffix):
    traces = torch.poisson(torch.full((8, 30, 1), 10.0))
    path = tmp_path / f"demand.{suffix}"
    torch.save(traces, path) if suffix == "pt" else np.save(path, traces.numpy())
    overrides = ["env=inventory_traces", f"env.demand.traces={path}"]
    small = [key for key in SMALL if not key.startswith("env.")]
    run_train(monkeypatch, *small, *overrides, f"output_dir={tmp_path / 'run'}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["optimal_cost"] is None
    assert summary["gap"] is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["env.nmu_items=2"], ["env.nmu_items=2", "Did you mean 'num_items'"]),
        (["+env.colour=red"], ["env.colour='red'", "Known keys of env"]),
        (["nonsense.key=1"], ["nonsense.key=1", "no section 'nonsense'"]),
        (["env=invntory"], ["env/invntory"]),
        (["env.holding_cost=-1"], ["holding_cost must be", ">= 0", "-1"]),
        (["env.demand=nan"], ["demand.mean must be", "nan"]),
        (["env.lead_time=2.5"], ["lead_time must be an integer", "2.5"]),
        (["env.lead_time=two"], ["lead_time must be an integer", "'two'"]),
        (["env.lead_time=true"], ["lead_time must be an integer", "True"]),
        (["env.demand=uniform"], ["demand must be one of", "'poisson'", "'uniform'"]),
        (["env.num_items=2", "env.holding_cost=[1,2,3]"], ["holding_cost", "got 3"]),
        (["env.demand={name: record, record: /no/file.npy}"], ["demand.record", "not a file"]),
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
        (["env.evaluation.headline=foo"], ["env.evaluation.headline must be one of"]),
        (["env.evaluation.quick.num_steps=40"], ["skip must be below num_steps=40"]),
        (["logger.backend=foo"], ["logger.backend must be one of"]),
        (["logger=mlflow"], ["logger.backend='mlflow' needs its package"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, overrides, words
):
    run_dir = tmp_path / "run"
    message = refused(monkeypatch, capsys, *SMALL, f"output_dir={run_dir}", *overrides)
    for word in words:
        assert word in message
    assert not run_dir.exists()


def test_traces_of_the_wrong_shape_are_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "demand.npy"
    np.save(path, np.ones((8, 30)))
    message = refused(monkeypatch, capsys, "env=inventory_traces", f"env.demand.traces={path}")
    assert "traces must have shape (B, T, n)" in message
    assert "(8, 30)" in message


def test_a_folder_that_holds_a_run_is_left_as_it_is(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    run_train(monkeypatch, *SMALL, f"output_dir={run_dir}")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    message = refused(monkeypatch, capsys, *SMALL, f"output_dir={run_dir}", "seed=9")
    assert "already holds a run" in message
    assert f"resume={run_dir}" in message
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_resume_refuses_to_change_the_run(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    run_train(monkeypatch, *SMALL, f"output_dir={run_dir}")
    message = refused(monkeypatch, capsys, f"resume={run_dir}", "env.num_items=2")
    assert "would change env.num_items" in message
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("lead_time: 2", "lead_time: 3"))
    message = refused(monkeypatch, capsys, f"resume={run_dir}")
    assert "env.lead_time was 2, is 3" in message


def test_resume_of_a_truncated_checkpoint_is_refused(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    run_train(monkeypatch, *SMALL, f"output_dir={run_dir}")
    newest = max((run_dir / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    message = refused(monkeypatch, capsys, f"resume={run_dir}")
    assert newest.name in message
    assert "damaged or incomplete" in message


def test_resume_of_no_run_is_refused(tmp_path, monkeypatch, capsys):
    message = refused(monkeypatch, capsys, f"resume={tmp_path}")
    assert "not the folder of a run" in message
    message = refused(monkeypatch, capsys, f"resume={tmp_path}", "output_dir=elsewhere")
    assert "leave output_dir=elsewhere out" in message


def test_traces_must_be_given(monkeypatch, capsys):
    message = refused(monkeypatch, capsys, "env=inventory_traces")
    assert "demand.traces must be an array or name a" in message


@pytest.mark.parametrize("content", [b"junk", None])
def test_unreadable_traces_are_refused(tmp_path, monkeypatch, capsys, content):
    path = tmp_path / "demand.pt"
    torch.save({"a": 1}, path) if content is None else path.write_bytes(content)
    message = refused(monkeypatch, capsys, "env=inventory_traces", f"env.demand.traces={path}")
    assert "demand.traces" in message


def test_output_below_a_file_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    message = refused(monkeypatch, capsys, *SMALL, f"output_dir={tmp_path / 'file' / 'sub'}")
    assert "file" in message


def test_evaluation_changes_no_file(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    run_train(monkeypatch, *SMALL, "trainer.checkpoint_every=2", f"output_dir={run_dir}")
    max((run_dir / "checkpoints").iterdir()).unlink()
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["hpo-eval", str(run_dir), "--device", "cpu"])
    evaluate()
    assert "2 updates" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_good_overrides_pass_the_check():
    _check_overrides(["env.num_items=3", "seed=1"])
    _check_overrides(["--multirun", "seed=1,2"])


def test_example_script_is_the_command(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "train.py"), *SMALL]
    subprocess.run([*command, f"output_dir={tmp_path / 'run'}"], check=True, capture_output=True)
    assert (tmp_path / "run" / "summary.json").exists()


def test_torchrl_example_improves_on_its_start(capsys):
    namespace = runpy.run_path(str(ROOT / "examples" / "compose_with_torchrl.py"))
    namespace["main"]()
    before, after, optimum = (
        float(line.split()[1]) for line in capsys.readouterr().out.splitlines()
    )
    assert optimum == pytest.approx(37.06)
    assert after < 0.8 * before


def test_multirun_makes_a_folder_for_each_job(tmp_path):
    command = [
        sys.executable,
        "-m",
        "hpo_torchrl.experiments.cli",
        "--multirun",
        "seed=0,1",
        *SMALL,
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    assert len(list((tmp_path / "runs" / "sweep").glob("*/summary.json"))) == 2


def test_readme_commands_run_as_written(tmp_path):
    """Every hpo- command of the README, in order, shrunk by further overrides."""
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^(hpo-(?:train|eval|gradients|report)[^#\n]*)", text, re.MULTILINE)
    # What an experiment runs is composed, not run, by other tests.
    lines = [line for line in lines if "experiment=" not in line]
    assert len(lines) >= 6
    script = ["set -e"]
    for line in lines:
        # The tests of another environment have other names, and a rule takes no settings.
        absent = ["evaluation"] if "env=" in line else []
        absent += ["algorithm."] if "algorithm=s_S" in line else []
        small = shlex.join(text for text in SMALL if not any(word in text for word in absent))
        shrink = line.startswith("hpo-train") and "resume=" not in line
        small += " num_seeds=2" if "num_seeds" in line else ""
        few = " --batches 3 --reference 3" if line.startswith("hpo-gradients") else ""
        script.append(f"{line.strip()} {small}" if shrink else line.strip() + few)
    bin_dir = Path(sys.executable).parent
    # The commands are written for the top folder of a clone.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env={"PATH": f"{bin_dir}:/usr/bin:/bin", "HOME": str(tmp_path)},
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("on_top", [False, True])
def test_an_interrupt_says_how_to_go_on(capsys, on_top):
    def action():
        try:
            raise KeyboardInterrupt
        finally:
            if on_top:
                raise RuntimeError("Converting a tensordict to boolean value is not permitted")

    with pytest.raises(SystemExit) as stop:
        _or_exit("hpo-train", action)
    assert stop.value.code == 130
    assert "resume=FOLDER" in capsys.readouterr().err
