"""Trackers hold configuration, name, group and figures; callbacks; the search by Optuna."""

from __future__ import annotations

import importlib.util
import json
import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from shrunk import SMALL, TINY

from hpo_torchrl import load_run
from hpo_torchrl.experiments.cli import train
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.experiments.run import train_run
from hpo_torchrl.training import Callback, StopTraining
from hpo_torchrl.training.run_logger import RunLogger

ROWS = [{"update": 1, "cost": 2.5}, {"update": 5, "cost": 1.5, "test_cost": 1.25}]
CONFIG = {
    "seed": 3,
    "env": {"num_items": 2, "demand": {"name": "poisson"}},
    "policy": {"hidden": [8]},
}
SUMMARY = {"test_cost": 1.75, "updates": 5, "gap": None, "env": "inventory", "seed": 3}


def tracked(folder, backend, *, summary=SUMMARY, **how):
    logger = RunLogger(folder / "sweep" / "seed=3", backend, CONFIG, **how)
    for row in ROWS:
        logger.log(row)
    logger.end(summary)


def tensorboard(folder):
    """Scalars, texts and hyper-parameters of the event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    text = events.Tensors("configuration/text_summary")[-1]
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return scalars, text.tensor_proto.string_val[0].decode(), found


def test_tensorboard_holds_configuration_figures_and_hyper_parameters(tmp_path):
    pytest.importorskip("tensorboard")
    tracked(tmp_path, "tensorboard")
    scalars, text, found = tensorboard(tmp_path / "sweep" / "seed=3" / "tensorboard")
    assert scalars["cost"] == [(1, 2.5), (5, 1.5)]
    assert scalars["test_cost"] == [(5, 1.25)]
    assert scalars["final/test_cost"] == [(0, 1.75)]
    assert "name: seed=3\ngroup: sweep" in text
    assert "num_items: 2" in text
    assert found["env.num_items"].number_value == 2
    assert found["env.demand.name"].string_value == "poisson"
    assert found["group"].string_value == "sweep"


def test_a_run_that_goes_on_is_tracked_whole_and_once(tmp_path):
    """An event file of what was interrupted has rows that the checkpoint does not hold."""
    pytest.importorskip("tensorboard")
    first = RunLogger(tmp_path, "tensorboard", CONFIG)
    for row in (*ROWS, {"update": 6, "cost": 99.0}):
        first.log(row)
    again = RunLogger(tmp_path, "tensorboard", CONFIG)
    again.rows = list(ROWS)
    again.resume()
    again.log({"update": 6, "cost": 1.0})
    again.end(SUMMARY)
    scalars, _, _ = tensorboard(tmp_path / "tensorboard")
    assert scalars["cost"][-3:] == [(1, 2.5), (5, 1.5), (6, 1.0)]
    assert (6, 99.0) not in scalars["cost"]


def wandb_records(content):
    """The records of W&B's file: seven bytes, then blocks of a LevelDB log, of 32 KiB each."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, found, data = 7, [], b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:  # no room for a head: zeros
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(data))
            data = b""
    return found


def test_wandb_holds_configuration_name_group_and_figures(tmp_path, monkeypatch):
    """Two runs of one process at once, offline, read back from their files."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("one", "two"):
        options = {"mode": "offline", "project": "stock", "tags": ["test"]}
        tracked(tmp_path / name, "wandb", options=options, summary=SUMMARY)
    wandb.teardown()  # waits for the process of its own that writes the files
    for name in ("one", "two"):
        (path,) = (tmp_path / name).rglob("*.wandb")
        records = wandb_records(path.read_bytes())
        (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        assert (run.project, run.display_name, run.run_group) == ("stock", "seed=3", "sweep")
        assert list(run.tags) == ["test"]
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["env"] == CONFIG["env"]
        assert config["policy"] == {"hidden": [8]}
        rows = [
            {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
            for record in records
            if record.WhichOneof("record_type") == "history"
        ]
        assert [(row["_step"], row["cost"]) for row in rows] == [(1, 2.5), (5, 1.5)]
        finals = {
            (item.key or item.nested_key[0]): json.loads(item.value_json)
            for record in records
            for item in record.summary.update
        }
        assert finals["final/test_cost"] == 1.75
    assert wandb.run is None


def mlflow_works():
    try:
        from mlflow.tracking import MlflowClient  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.skipif(not mlflow_works(), reason="mlflow is not installed, or not for this Python")
def test_mlflow_holds_configuration_name_group_and_figures(tmp_path):
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/runs.db"
    for summary in (SUMMARY, None):
        tracked(tmp_path, "mlflow", options={"tracking_uri": uri}, summary=summary)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("sweep")
    failed, finished = client.search_runs([experiment.experiment_id])
    check_mlflow(finished, failed)
    history = client.get_metric_history(finished.info.run_id, "cost")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.5), (5, 1.5)]


def check_mlflow(finished, failed):
    assert finished.data.tags["mlflow.runName"] == "seed=3"
    assert finished.data.params["env.num_items"] == "2"
    assert finished.data.params["policy.hidden"] == "[8]"
    assert finished.data.metrics["test_cost"] == 1.25
    assert finished.data.metrics["final/test_cost"] == 1.75
    assert (finished.info.status, failed.info.status) == ("FINISHED", "FAILED")


def test_what_mlflow_is_sent(tmp_path, monkeypatch):
    """The calls alone, where its package is missing: batches are no larger than it takes."""

    class Client:
        def __init__(self, uri):
            self.uri, self.experiments, self.runs = uri, {}, []
            clients.append(self)

        def get_experiment_by_name(self, name):
            return self.experiments.get(name)

        def create_experiment(self, name):
            self.experiments[name] = SimpleNamespace(experiment_id=name)
            return name

        def create_run(self, place, tags):
            data = SimpleNamespace(tags=tags, params={}, metrics={})
            info = SimpleNamespace(run_id=len(self.runs), place=place, status="RUNNING")
            self.runs.append(SimpleNamespace(data=data, info=info))
            return self.runs[-1]

        def log_batch(self, run, metrics=(), params=()):
            assert len(params) <= 100
            self.runs[run].data.metrics |= {m.key: m.value for m in metrics}
            self.runs[run].data.params |= {p.key: p.value for p in params}

        def set_terminated(self, run, status):
            self.runs[run].info.status = status

    clients = []
    entities = SimpleNamespace(
        Param=lambda key, value: SimpleNamespace(key=key, value=value),
        Metric=lambda key, value, time, step: SimpleNamespace(key=key, value=value, step=step),
    )
    modules = {
        "mlflow": SimpleNamespace(),
        "mlflow.entities": entities,
        "mlflow.tracking": SimpleNamespace(MlflowClient=Client),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(CONFIG, "many", {f"k{i}": i for i in range(250)})
    for summary in (SUMMARY, None):
        tracked(tmp_path, "mlflow", options={"tracking_uri": "here"}, summary=summary)
    check_mlflow(*(client.runs[0] for client in clients))
    assert [client.uri for client in clients] == ["here", "here"]
    assert clients[0].runs[0].info.place == "sweep"
    assert clients[0].runs[0].data.params["many.k249"] == "249"


def test_a_tracker_without_its_package_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(SystemExit):
        train([*SMALL, "logger=mlflow", f"output_dir={tmp_path / 'run'}"])
    assert "pip install 'hpo-torchrl[mlflow]', or use logger=csv" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Halt(Callback):
    """A callback of one's own, with an argument."""

    def __init__(self, after: int = 2) -> None:
        self.after = after

    def on_update_end(self, trainer, row):
        row["double"] = 2 * row["update"]
        if trainer.update == self.after:
            raise StopTraining("enough")


HALT = "callbacks=[{_target_: test_tracking.Halt, after: 2}]"


def test_a_callback_of_ones_own_comes_by_the_command_line(tmp_path, undrawn, capsys):
    pytest.importorskip("tensorboard")
    few = [*SMALL, "trainer.num_updates=4", "reference=none", "logger=tensorboard", HALT]
    train([*few, f"output_dir={tmp_path / 'run'}"])
    run = load_run(tmp_path / "run")  # without a word of the callback
    assert (run.summary["stopped"], run.summary["updates"]) == ("enough", 2)
    assert [row["double"] for row in run.metrics] == [2, 4]
    scalars, _, found = tensorboard(tmp_path / "run" / "tensorboard")
    assert scalars["double"] == [(1, 2.0), (2, 4.0)]
    assert found["algorithm.name"].string_value == "hpo"
    assert scalars["final/test_cost"][0][1] == pytest.approx(run.summary["test_cost"])
    capsys.readouterr()
    train(
        ["--multirun", *few, "seed=0,1", f"sweep_dir={tmp_path / 'sweep'}", "sweep_estimate=false"]
    )
    runs = [path.parent for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert [load_run(folder).summary["updates"] for folder in runs] == [2, 2]


def test_the_validation_has_a_cost_of_its_own(tmp_path, undrawn):
    """With a seed of its own, it is not the test."""
    settings = [*TINY, "env=switched_lqr", "reference=none", "trainer.num_updates=1"]
    settings += ["evaluation.tests.fixed_start.batch_size=16", "evaluation.validation.skip=0"]
    same = train_run(compose_config(settings), tmp_path / "same")
    assert same["validation_cost"] == same["test_cost"]
    settings[-1] = "evaluation.validation.seed=7"
    other = train_run(compose_config(settings), tmp_path / "other")
    assert other["test_cost"] == same["test_cost"]
    assert other["validation_cost"] != same["validation_cost"]
    assert abs(other["validation_cost"] / same["test_cost"] - 1) < 1.0
    assert math.isfinite(other["validation_cost_se"])


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed")
@pytest.mark.filterwarnings("ignore")  # of what Optuna imports
@pytest.mark.parametrize(("algorithm", "trials"), [("hpo", 2), ("ppo", 1)])
def test_the_search_minimises_the_validation_cost(algorithm, trials, tmp_path, undrawn, capsys):
    search = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "search.py"))["main"]
    study = search(
        [*SMALL, f"algorithm={algorithm}", "--trials", str(trials), "--folder", str(tmp_path)]
    )
    for trial in study.trials:
        run = load_run(tmp_path / f"trial={trial.number}")
        assert run.config["algorithm"]["name"] == algorithm
        assert trial.value == run.summary["validation_cost"]
        assert run.config["evaluation"]["validation"]["seed"] != run.config["evaluation"]["seed"]
        for key, value in trial.params.items():
            section, name = key.split(".")
            assert run.config[section][name] == value
    assert study.best_value == min(trial.value for trial in study.trials)
    assert "hpo-train algorithm=" in capsys.readouterr().out
