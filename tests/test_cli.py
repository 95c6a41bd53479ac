"""The commands as a person types them, and what they say to bad input."""

from __future__ import annotations

import copy
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from shrunk import SMALL, TINY

import hpo_torchrl
from hpo_torchrl.core import console
from hpo_torchrl.core.checks import check_int
from hpo_torchrl.core.console import run_command
from hpo_torchrl.experiments.cli import _parser, data, evaluate, gradients, order, train
from hpo_torchrl.experiments.config import compose_config, load_config
from hpo_torchrl.experiments.run import train_run
from hpo_torchrl.reporting.report import main as report
from hpo_torchrl.training import Evaluation, RunFolder, RunFolderError

ROOT = Path(__file__).parents[1]


def refused(capsys, *arguments: str, command=train) -> str:
    """Run a command, expect exit code 2, and return the single line that it printed."""
    with pytest.raises(SystemExit) as stop:
        command(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert re.search(r"^hpo-\w+: error: ", message, re.MULTILINE)
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
    assert names == files | {"checkpoints", "policy"}
    summary = summary_of(run_dir)
    assert (summary["env"], summary["algorithm"], summary["seed"]) == ("inventory", "hpo", 4)
    assert summary["optimal_cost"] == pytest.approx(37.0644, abs=1e-4)
    assert summary["test_cost"] == summary["long_run_cost"]
    assert summary["env_steps"] == 3 * 8 * (
        5 + 2 * 20
    )  # 2 discrete actions, simulated from 1 state
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


@pytest.mark.parametrize(
    "overrides",
    [
        ["env.lead_time=0", "policy.scale=0.2", "policy.learn_scale=true"],
        ["env.lost_sales=true", "env.demand=normal", "policy.shared_trunk=true"],
        ["dtype=float64", "algorithm.cross_term=false", "algorithm.epochs=0"],
        ["env.horizon=7", "collect.reset_at_each_iter=true"],
        ["env.num_items=2", "env.demand=[1,4]", "env.holding_cost=[1,2]"],
    ],
)
def test_variants_train(tmp_path, undrawn, overrides):
    train([*SMALL, "trainer.num_updates=1", *overrides, f"output_dir={tmp_path / 'run'}"])
    assert np.isfinite(summary_of(tmp_path / "run")["test_cost"])


def test_demand_traces_from_a_file(tmp_path, undrawn):
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
        (["policy.hiden=[8]"], ["policy.hiden=[8]", "Did you mean 'hidden'"]),
        (["algorithm.epoch=1"], ["algorithm.epoch=1", "Did you mean 'epochs'"]),
        (["algorithm.seed=9"], ["Unknown key algorithm.seed=9"]),
        (["trainer.num_update=1"], ["trainer.num_update=1", "Did you mean 'num_updates'"]),
        (["nonsense.key=1"], ["key nonsense in 'nonsense.key=1'", "Known keys: policy, critic"]),
        (["env=invntory"], ["env=invntory", "Did you mean 'inventory'", "switched_lqr_2d"]),
        (["env._target_=no.Env"], ["env._target_='no.Env'", "cannot be imported or called"]),
        (["env._target_=math.pi"], ["env._target_='math.pi'", "float"]),
        (["env._target_=hpo_torchrl.algorithms.HPO"], ["env.env must be given"]),
        (["env._target_=collections.Counter"], ["batch_size=8", "takes no batch_size"]),
        (["env.lead_time=two"], ["lead_time must be an integer", "'two'"]),
        (["env.demand=uniform"], ["demand must be one of", "'poisson'", "'uniform'"]),
        (["env.num_items=2", "env.holding_cost=[1,2,3]"], ["holding_cost", "got 3"]),
        ([TRACES], ["env.demand.traces must be given"]),
        (["algorithm.adam_betas=[0.9,1.5]"], ["adam_betas[1] must be", "1.5"]),
        (["algorithm.learning_rate_schedule=step"], ["learning_rate_schedule", "'cosine'"]),
        (["trainer.num_updates=0"], ["num_updates must be an integer >= 1"]),
        (["seed=-1"], ["seed must be an integer >= 0"]),
        (["dtype=float16x"], ["dtype must be one of", "'float32'"]),
        (["device=gpu7"], ["device='gpu7' cannot be used"]),
        (["algorithm.cross_term=no"], ["cross_term must be true, false or", "'no'"]),
        (["algorithm.entropy_coeff=abc"], ["entropy_coeff must be", "'abc'"]),
        (["evaluation.primary=foo"], ["evaluation.primary must be one of"]),
        (["evaluation.validation.like=foo"], ["evaluation.validation.like must be one of"]),
        (["evaluation.validation.num_steps=4"], ["skip must be below num_steps=4"]),
        (["+evaluation.tests.protocol.x=1"], ["Unknown key evaluation.tests.protocol.x=1"]),
        (["gradients=true"], ["gradients must be null"]),
        (["gradients={batches: 3}"], ["gradients.batches"]),
        (["gradients={num_batches: 1}"], ["gradients.num_batches must be an integer >= 2"]),
        (["logger.backend=foo"], ["logger.backend must be one of"]),
        (["logger.options=3"], ["logger.options must hold arguments of the client"]),
        (["callbacks=no.Callback"], ["callbacks must be a list, as in"]),
        (["callbacks=[{_target_: no.Callback}]"], ["callbacks[0]._target_='no.Callback' cannot"]),
        (["callbacks=[{_target_: builtins.dict, a: 1}]"], ["callbacks[0]"]),
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


def test_what_a_folder_holds_is_never_lost_or_mixed_up(tmp_path, capsys, undrawn):
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
    for path in (run_dir / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    message = refused(capsys, f"resume={run_dir}")
    assert f"{path.name} is damaged or incomplete" in message
    assert "No other checkpoint is left" in message


def test_a_folder_that_holds_no_run_is_refused(tmp_path, capsys):
    assert "not the folder of a run" in refused(capsys, f"resume={tmp_path}")
    assert "not the folder of a run" in refused(capsys, str(tmp_path), command=evaluate)
    (tmp_path / "file").touch()
    assert "file" in refused(capsys, *SMALL, f"output_dir={tmp_path / 'file' / 'sub'}")


def test_example_script_is_the_command(monkeypatch, capsys):
    script = str(ROOT / "examples" / "train.py")
    monkeypatch.setattr(sys, "argv", [script, "env.num_items=3", "--cfg"])
    runpy.run_path(script, run_name="__main__")
    assert "num_items: 3" in capsys.readouterr().out


def test_help_has_every_setting_of_the_run_with_what_it_means(capsys):
    train(["--help", "env=paper/lqr", "env.dim=24"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: hpo-train [--version]")
    parts = dict(re.findall(r"^# ---- (\S+) ----\n(.*?)(?=^# ----|\Z)", shown, re.M | re.S))
    assert {"train", "env=paper/lqr", "env=switched_lqr", "algorithm=hpo"} < set(parts)
    assert "tuned=switched_lqr_hpo" in parts  # what another file builds upon
    assert not [words for words in ("defaults:", "# @package", "hydra:") if words in shown]
    train(["--cfg", "env=paper/lqr"])
    sections = {k: v for k, v in yaml.safe_load(capsys.readouterr().out).items() if v}
    for section in ("algorithm", "critic", "trainer"):
        text = "".join(part for name, part in parts.items() if name.startswith(f"{section}="))
        assert {key for key in sections[section] if f"{key}:" not in text} <= {"_target_", "name"}
    assert "env=nowhere is unknown" in refused(capsys, "--help", "env=nowhere")


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_a_class_of_ones_own_leaves_no_setting_of_another_however_it_is_given(sign):
    words = ["_target_=torch.nn.Linear", "out_features=1"]
    found = compose_config([f"{sign}critic.network.{word}" for word in words])["critic"]
    assert found == {"network": {"_target_": "torch.nn.Linear", "out_features": 1}}


def test_commands_say_their_version_and_end_quietly_behind_a_closed_pipe(capsys):
    with pytest.raises(SystemExit, match="0"):
        evaluate(["--version"])
    assert capsys.readouterr().out == f"hpo_torchrl {hpo_torchrl.__version__}\n"
    code = "from hpo_torchrl.experiments.cli import train; train(['--help'])"
    command = f'{sys.executable} -c "{code}" | head -n 1'
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("usage")
    assert "roken" not in ended.stderr


def test_torchrl_example_improves_on_its_start(capsys):
    namespace = runpy.run_path(str(ROOT / "examples" / "compose_with_torchrl.py"))
    namespace["main"]()
    before, after, optimum = (
        float(line.split()[1]) for line in capsys.readouterr().out.splitlines()
    )
    assert optimum == pytest.approx(37.06)
    assert after < 0.8 * before


MY_PACKAGE = """
from hpo_torchrl.problems import InventoryEnv

class MyEnv(InventoryEnv):
    def __init__(self, some_argument, **others):
        super().__init__(lead_time=some_argument, **others)
"""
CALLS = {
    "hpo-train": train,
    "hpo-eval": evaluate,
    "hpo-data": data,
    "hpo-order": order,
    "hpo-gradients": gradients,
    "hpo-report": report,
}
# What makes a command of the README small: by a word of it, further overrides.
LQR = ["env.dim=2", "env.horizon=5", "evaluation.tests.fixed_start.batch_size=8"]
SHRUNK = {
    "env.num_items=3": ["env.demand=2"],
    "env=inventory_heterogeneous": ["env.demand_range=[1,2]"],
    "env=switched_lqr": LQR,
    "env=unit_commitment": ["reference=none", "evaluation.tests.days.batch_size=2"],
    "env=storage_fleet": [
        "evaluation.tests.test={batch_size: 8, num_steps: 20}",
        "reference=none",
        "algorithm.branch_steps=2",
        "algorithm.imitate=null",
    ],
    "algorithm.imitate=s_S": ["algorithm.imitate=null"],
    "env=storage": ["evaluation.tests.test={batch_size: 8, num_steps: 20}", "reference=none"],
    "env._target_=my_package.MyEnv": ["evaluation.tests.test={batch_size: 8, num_steps: 20}"],
    "env=inventory_from_file": [
        f"evaluation.tests.{part}.batch_size=4" for part in ("train", "dev", "test")
    ],
    "num_seeds=16": ["num_seeds=2"],
    "algorithm=ppo": ["algorithm.epochs=1"],
    "--multirun": ["sweep_estimate=false"],
}


# Pages whose commands are run, with the number that they have at least.
COMMANDS = {
    "README.md": 6,
    "docs/quickstart.md": 6,
    "docs/questions.md": 10,
    "docs/storage.md": 3,
    "docs/variants.md": 2,
    "docs/your_demand.md": 6,
    "docs/your_problem.md": 1,
}


@pytest.mark.parametrize("page", COMMANDS)
def test_commands_of_the_documents_run_as_written(page, tmp_path, monkeypatch, undrawn):
    """Every hpo- command of a page, in order, shrunk by further overrides."""
    text = (ROOT / page).read_text()
    lines = re.findall(
        r"^(hpo-(?:train|eval|data|order|gradients|report)[^#\n]*)", text, re.MULTILINE
    )
    # What an experiment runs is composed, not run, by other tests.
    lines = [line for line in lines if "experiment=" not in line]
    assert len(lines) >= COMMANDS[page]
    # The commands are written for the top folder of a clone, and for a package of one's own.
    record = Path("examples", "data", "generated_demand.csv")
    (tmp_path / record).parent.mkdir(parents=True)
    for name in ("stock.csv", "items.csv", "family_stock.csv"):
        shutil.copy(ROOT / record.with_name(name), tmp_path / record.parent)
    rows = (ROOT / record).read_text().splitlines()[: 1 + 3 * 150]
    (tmp_path / record).write_text("\n".join(rows) + "\n")
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    monkeypatch.chdir(tmp_path)
    for number, line in enumerate(lines):
        name, *arguments = shlex.split(line)
        further = []
        if name == "hpo-train" and "resume=" not in line:
            kinds = ("_target_", "switched_lqr", "unit_commitment", "from_file", "storage")
            other = any(word in line for word in kinds)
            further = [*(TINY if other else SMALL), "trainer.num_updates=1"]
            further += [text for word in arguments for text in SHRUNK.get(word, [])]
            if "output_dir=" not in line and "--multirun" not in line:
                # A default folder has the second in its name: two small runs have the same.
                further += [f"output_dir=runs/command-{number}"]
        if name == "hpo-gradients":
            further = ["--batches", "2", "--reference", "2"]
        CALLS[name]([*arguments, *further])


@pytest.mark.parametrize("on_top", [False, True])
def test_an_interrupt_says_how_to_go_on(capsys, on_top):
    def action(given):
        try:
            raise KeyboardInterrupt
        finally:
            if on_top:
                raise RuntimeError("Converting a tensordict to boolean value is not permitted")

    with pytest.raises(SystemExit) as stop:
        run_command(_parser("hpo-train", ""), [], action)
    assert stop.value.code == 130
    assert "resume=FOLDER" in capsys.readouterr().err


# What a person types, and words of the message; refused while settings are read, within a moment.
SLIPS = [
    ("trainer=null", "trainer=null", "chosen by its name", "default"),
    ("env=5", "env=5", "inventory_from_file"),
    ("evaluation={tests: {}}", "evaluation.tests"),
    ("env={num_items: 3}", "env.num_items=3"),
    ("~trainer", "trainer is missing"),
    ("~evaluation.primary", "evaluation.primary is missing"),
    ("~seed", "seed is missing"),
    ("evaluation.tests=null", "evaluation.tests must hold keys"),
    ("evaluation.tests.long_run=5", "evaluation.tests.long_run=5"),
    ("policy.network=5", "policy.network must name a class"),
    ("algorithm.loss=5", "algorithm.loss must name a class"),
    ("algorithm.name=5", "algorithm.name must be a text"),
    ("env=inventry", "env=inventry", "Did you mean 'inventory'"),
    ("num_items=3", "Did you mean env.num_items"),
    ("env=inventory_from_file", "env.path must be given", "a .csv, .xlsx or .parquet file"),
    ("env.path=demand.csv", "env.path='demand.csv'", "env=inventory_from_file would know it"),
    ("env=switched_lqr env.num_items=3", "env.num_items=3", "Known keys of env: dim, num_modes"),
    ("trainer.num_updates = 5", "write trainer.num_updates=5 without blanks"),
    ("seed= 5", "write seed=5 without blanks"),
    ("--num_items 3", "--num_items", "env.num_items=VALUE"),
    ("trainer.num_updates", "'trainer.num_updates'", "write KEY=VALUE"),
    ("env.demand=[1,2", "'env.demand=[1,2' cannot be read"),
    ("--config-dir absent", "--config-dir absent is not a folder"),
    ("--multirun seed=0,1 logger=null", "logger=null"),
    ("reference=fast", "reference must be one of 'auto', 'exact', 'grid', 'yardsticks', 'none'"),
    ("seed=1180591620717411303424", "seed must be an integer below 2**63"),
    ("evaluation.seed=null", "evaluation.seed must be an integer"),
    ("evaluation.tests.long_run.num_steps=0", "num_steps must be an integer >= 1"),
    ("trainer.num_threads=100000", "trainer.num_threads must be at most", "100000"),
    ("env.num_items=200000", "not enough memory (640 GB at once)", "env.num_items"),
    ("env=switched_lqr env.growth=1e30", "growth", "1e+30"),
]


def test_slips_of_the_hand_are_told_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line, *words in SLIPS[:-5]:
        arguments = line.split() if "{" not in line else [line]
        message = refused(capsys, *arguments).splitlines()[-1]
        assert all(word in message for word in words), (line, message)
    for line, *words in SLIPS[-5:]:
        settings = TINY if "switched_lqr" in line else SMALL
        message = refused(capsys, *settings, *line.split())
        assert all(word in message for word in words), (line, message)
    assert not [*tmp_path.iterdir()] or not [*(tmp_path / "runs").iterdir()]


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (lambda: {}["key"], 1, "KeyError: 'key'. This is a fault of hpo_torchrl"),
        (lambda: int(None), 1, "TypeError: int() argument"),
        (lambda: torch.zeros(2) + torch.zeros(3), 1, "RuntimeError: The size of tensor a"),
        (lambda: torch.nn.Dropout(2.0), 1, "ValueError: dropout probability"),
        (lambda: check_int("key", -1, minimum=0), 2, "key must be an integer >= 0, got -1"),
        (lambda: Path("absent", "file").read_text(), 2, "No such file or directory: 'absent/file'"),
        (lambda: torch.empty(10**15), 2, "not enough memory (4,000,000 GB at once)"),
        (lambda: np.empty(10**15), 2, "not enough memory"),
        (lambda: signal.raise_signal(signal.SIGINT), 130, "interrupted; go on with"),
    ],
)
def test_only_faults_of_the_program_show_a_trace(capsys, fault, code, words):
    with pytest.raises(SystemExit) as stop:
        run_command(_parser("hpo-train", ""), [], lambda given: fault())
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == code
    assert lines[-1].startswith("hpo-train: error: ")
    assert words in lines[-1]
    assert (lines[0] == "Traceback (most recent call last):") == (code == 1)
    assert code == 1 or len(lines) == 1


def test_a_saved_configuration_has_every_key_of_every_section(tmp_path):
    whole, folder = compose_config(SMALL), RunFolder(tmp_path)
    folder.write_config(whole)
    assert load_config(tmp_path) == whole
    sections = [section for section in whole if isinstance(whole[section], dict)]
    fixed = ("collect", "evaluation", "trainer")
    places = [(key,) for key in whole if key != "reference"]
    places += [(section, key) for section in fixed for key in whole[section]]
    places.append(("logger", "backend"))  # its others came later
    places += [(section, "name") for section in ("env", "algorithm")]
    for *path, key in places:
        for value in (None, 5, "absent"):
            damaged = copy.deepcopy(whole)
            section = damaged[path[0]] if path else damaged
            if value == "absent":
                del section[key]
            elif key in (*sections, "tests", "validation", "name"):
                section[key] = value
            else:
                continue
            folder.write_config(damaged)
            with pytest.raises(RunFolderError, match="damaged") as error:
                load_config(tmp_path)
            assert ".".join([*path, key]) in str(error.value)


@pytest.mark.parametrize("after", [0.3, 1.5])
def test_an_interrupt_in_the_first_seconds_is_a_line(tmp_path, after):
    """While torch is loaded, and later."""
    code = (
        "import os, signal, sys, threading; sys.argv = ['hpo-train']; "
        f"threading.Timer({after}, os.kill, (os.getpid(), signal.SIGINT)).start(); "
        "from hpo_torchrl.experiments.commands import train; train()"
    )
    place = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=tmp_path, env=place, capture_output=True, text=True)
    assert ended.returncode == 130
    last = ended.stderr.strip().splitlines()[-1]
    assert "hpo-train: error: interrupted" in last
    assert "Traceback" not in ended.stderr


def test_commands_look_for_cycles_but_not_in_what_they_import(tmp_path):
    code = (
        "import atexit, gc, sys; sys.argv = ['hpo-train', '--version']; "
        "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 100_000)); "
        "from hpo_torchrl.experiments.commands import train; train()"
    )
    command, place = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=place, capture_output=True, text=True)
    assert ended.stdout.splitlines() == [f"hpo_torchrl {hpo_torchrl.__version__}", "True True"]


def test_a_picture_that_fails_ends_no_run(tmp_path, monkeypatch, capsys):
    train([*SMALL, f"output_dir={tmp_path / 'drawn'}"])

    def fail(*arguments, **how):
        raise OverflowError("too large to draw")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    train(
        [*SMALL, f"output_dir={tmp_path / 'run'}", "gradients={num_batches: 2, num_reference: 2}"]
    )
    said = capsys.readouterr().err
    for name in ("learning_curve.png", "policy.png", "gradients.png"):
        assert f"{tmp_path / 'run' / name} was not drawn (OverflowError: too large to draw)" in said
        assert not (tmp_path / "run" / name).exists()
    one, other = (summary_of(tmp_path / name) for name in ("drawn", "run"))
    assert one.pop("wall_seconds") != other.pop("wall_seconds")
    assert one == other  # the numbers that a picture is drawn from are there
    assert (tmp_path / "run" / "gradients.csv").exists()


def test_demand_beyond_integers_is_described(tmp_path, undrawn):
    train([*SMALL, "env.demand=1e18", "env.lost_sales=true", f"output_dir={tmp_path / 'run'}"])
    assert np.isfinite(summary_of(tmp_path / "run")["test_cost"])


def test_long_work_announces_itself(monkeypatch, capsys, tmp_path, undrawn):
    monkeypatch.setattr(console, "PATIENCE", 0.0)
    reference = Evaluation.reference
    monkeypatch.setattr(Evaluation, "reference", lambda self: time.sleep(0.2) or reference(self))
    train([*SMALL, "trainer.progress=true", f"output_dir={tmp_path / 'run'}"])
    assert (
        "finding what the best policy costs (reference=none: not): 00:00" in capsys.readouterr().err
    )
    for seconds, shown in ((0.0, True), (60.0, True), (0.0, False)):
        monkeypatch.setattr(console, "PATIENCE", seconds)
        with console.announced("at work", shown=shown):
            time.sleep(0.2)
        assert ("at work" in capsys.readouterr().err) == (seconds == 0.0 and shown)


def test_reference_none_looks_for_no_optimum(tmp_path, monkeypatch, capsys, undrawn):
    monkeypatch.chdir(tmp_path)

    def fail(self):
        raise AssertionError("a reference was looked for")

    monkeypatch.setattr(Evaluation, "reference", fail)
    unknown = ("optimal_cost", "lower_bound", "upper_bound", "gap", "gap_to_upper_bound")
    known = "gap              unknown: no optimum, bound or rule was computed"
    settings = [*SMALL, "reference=none", "trainer.checkpoint_every=1"]
    train([*settings, "output_dir=run"])
    assert known in capsys.readouterr().out
    (tmp_path / "run" / "summary.json").unlink()
    max((tmp_path / "run" / "checkpoints").iterdir()).unlink()
    train(["resume=run"])
    evaluate(["run"])
    assert capsys.readouterr().out.count(known) == 2
    train(["--multirun", *settings, "seed=1", "sweep_dir=sweep", "sweep_estimate=false"])
    small = {
        key: float(value) if "." in value else int(value) if value.isdigit() else value
        for key, value in (text.split("=") for text in SMALL if "[" not in text)
    }
    small["trainer.progress"] = False
    hpo_torchrl.train("inventory", folder="python", reference="none", **small)
    for folder in ("run", "python", *Path("sweep").iterdir()):
        summary = summary_of(Path(folder))
        assert [summary[key] for key in unknown] == [None] * len(unknown)
        assert np.isfinite(summary["test_cost"])
    with pytest.raises(AssertionError, match="was looked for"):
        train_run(compose_config(SMALL), "exact")
