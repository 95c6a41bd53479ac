"""Environments, algorithms, losses and networks of one's own, which the package has never seen."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from shrunk import TINY

from hpo_torchrl.experiments.build import build_algorithm, build_env
from hpo_torchrl.experiments.cli import evaluate, gradients, train
from hpo_torchrl.experiments.config import compose_config, load_config
from hpo_torchrl.experiments.targets import check_targets

PARTS = """
import torch
from torch import nn

from hpo_torchrl.algorithms import HPO
from hpo_torchrl.objectives import HPOLoss

class MyLoss(HPOLoss):
    def __init__(self, actor, critic, *, strength=1.0, **coefficients):
        super().__init__(actor, critic, **coefficients)
        self.strength = strength

class MyHPO(HPO):
    def __init__(self, env, policy, critic, *, patience=2, my_loss=None, **learner):
        super().__init__(env, policy, critic, **learner)
        self.patience, self.my_loss = patience, my_loss

class MyNetwork(nn.Module):
    def __init__(self, observation_dim, num_discrete, continuous_dim, *, gain=1.0, dtype=None):
        super().__init__()
        self.shape = (num_discrete, continuous_dim)
        self.discrete = nn.Linear(observation_dim, num_discrete, dtype=dtype)
        self.continuous = nn.Linear(observation_dim, num_discrete * continuous_dim, dtype=dtype)
        self.gain = gain

    def forward(self, observation):
        loc = self.gain * self.continuous(observation).unflatten(-1, self.shape)
        return self.discrete(observation), loc.sigmoid(), None

class MyCritic(nn.Module):
    def __init__(self, observation_dim, dtype=None):
        super().__init__()
        self.net = nn.Linear(observation_dim, 1, dtype=dtype)

    def forward(self, observation):
        return self.net(observation)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, undrawn) -> Path:
    """A folder with two modules of the user's, in which commands are given."""
    monkeypatch.chdir(tmp_path)
    # What a command adds to the path, and what it imports, is forgotten afterwards.
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("tank", "parts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    shutil.copy(Path(__file__).with_name("water_tank.py"), tmp_path / "tank.py")
    (tmp_path / "parts.py").write_text(PARTS)
    return tmp_path


OWN = [
    "env._target_=tank.Tank",
    "evaluation.tests.test.batch_size=8",
    "evaluation.tests.test.num_steps=20",
    "reference=none",
    *TINY,
]


def refused(capsys, *arguments: str, command=train) -> str:
    with pytest.raises(SystemExit) as stop:
        command(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_an_environment_without_yaml_trains_and_is_tested(folder, capsys):
    train([*OWN, "env.target=0.5", "output_dir=run"])
    files = {path.name for path in (folder / "run").iterdir()}
    assert files == {
        "config.yaml", "metrics.csv", "summary.json", "learning_curve.png", "checkpoints"
    }  # fmt: skip
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["env"] == "Tank"
    # Nothing of the default problem has leaked into it.
    saved = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert saved["env"] == {"name": "Tank", "_target_": "tank.Tank", "target": 0.5}

    capsys.readouterr()
    message = refused(capsys, "run", command=evaluate)
    assert "env._target_='tank.Tank'" in message
    assert "--allow tank" in message
    assert "--allow tank" in refused(capsys, "resume=run")
    assert "--allow tank" in refused(capsys, "run", command=gradients)
    evaluate(["run", "--allow", "tank"])
    assert f"{summary['test_cost']:.4f}" in capsys.readouterr().out
    train(["resume=run", "--allow", "tank"])
    gradients(["run", "--allow", "tank", "--batches", "2", "--reference", "2"])
    assert (folder / "run" / "gradients.csv").exists()


def test_its_unknown_keys_are_named(capsys):
    message = refused(capsys, *OWN, "env.targt=0.5")
    assert "env.targt=0.5. Did you mean 'target'? Known keys of env: target, fee" in message


def test_a_folder_of_yaml_files(folder, capsys):
    place = folder / "my_configs" / "env"
    place.mkdir(parents=True)
    (place / "small_tank.yaml").write_text("_target_: tank.Tank\ntarget: 0.25\n")
    mine = ["--config-dir", "my_configs", "env=small_tank", *OWN[1:], "trainer.num_updates=1"]
    train([*mine, "env.fee=0.1", "output_dir=run"])
    saved = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert saved["env"] == {
        "name": "small_tank", "_target_": "tank.Tank", "target": 0.25, "fee": 0.1
    }  # fmt: skip
    train(["--multirun", *mine, "env.fee=0.1,0.3", "sweep_estimate=false"])
    runs = sorted(path.name for path in (folder / "runs" / "sweep").glob("*fee=0*"))
    assert len(runs) == 2
    assert all("env=small_tank" in name and "searchpath" not in name for name in runs)


def test_an_installed_package_offers_its_problem_by_name(folder, capsys):
    site = folder / "site" / "tanks-1.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: tanks\nVersion: 1.0\n")
    (site / "entry_points.txt").write_text(
        "[hpo_torchrl.problems]\nbig_tank = tank:Tank\n"
        "[hpo_torchrl.algorithms]\nmine = parts:MyHPO\n"
    )
    sys.path += [str(folder / "site"), str(folder)]
    settings = ["env=big_tank", "algorithm=mine", "env.target=2", "algorithm.patience=3"]
    train([*settings, *OWN[1:], "output_dir=run", "trainer.num_updates=1"])
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert (summary["env"], summary["algorithm"]) == ("big_tank", "mine")
    evaluate(["run"])  # what is installed is trusted
    with pytest.raises(SystemExit):
        train(["--help"])
    assert "big_tank" in capsys.readouterr().out


def test_an_algorithm_a_loss_and_networks(folder):
    sys.path.append(str(folder))
    config = compose_config(
        [
            *(text for text in OWN if "hidden" not in text),
            "algorithm._target_=parts.MyHPO",
            "algorithm.patience=5",
            "algorithm.my_loss._target_=parts.MyLoss",
            "algorithm.my_loss._partial_=true",
            "algorithm.my_loss.strength=2",
            "policy.network._target_=parts.MyNetwork",
            "policy.network.gain=0.5",
            "critic.network._target_=parts.MyCritic",
        ]
    )
    algorithm = build_algorithm(config)
    assert algorithm.patience == 5
    assert algorithm.my_loss.keywords == {"strength": 2}
    assert algorithm.policy.network.gain == 0.5
    assert type(algorithm.critic.module).__name__ == "MyCritic"
    algorithm.anneal(0.0)
    assert torch.isfinite(torch.tensor(algorithm.iterate()["cost"]))
    for key in ("policy.network.gian=1", "algorithm.my_loss.strenght=1", "critic.network.x=1"):
        section, name = key.split("=")[0].rsplit(".", 1)
        part = {"policy": "MyNetwork", "critic": "MyCritic", "algorithm": "MyLoss"}
        target = f"{section}._target_=parts.{part[section.split('.')[0]]}"
        with pytest.raises(ValueError, match=rf"Unknown key {section}\.{name}=1"):
            compose_config(["algorithm._target_=parts.MyHPO", target, key])


def test_targets_in_arguments_and_lists_are_built_and_checked(folder):
    sys.path.append(str(folder))
    pump = {"_target_": "collections.Counter", "a": 2}
    with pytest.raises(ValueError, match=r"Unknown key env\.fee\[0\]\.a=2"):
        compose_config(["env._target_=tank.Tank", f"env.fee=[{pump}]".replace("'", "")])
    delta = "{_target_: datetime.timedelta}"
    config = compose_config(["env._target_=tank.Tank", f"env.fee=[1,[{delta}]]"])
    assert str(build_env(config).fee) == "[1, [datetime.timedelta(0)]]"


def test_a_loss_trains_in_an_algorithm_of_the_package(folder):
    loss = ["algorithm.loss._target_=parts.MyLoss", "algorithm.loss.strength=2"]
    train([*OWN, *loss, "output_dir=run", "trainer.num_updates=1"])
    config = load_config("run", allow=["tank", "parts"])
    assert type(build_algorithm(config).loss).__name__ == "MyLoss"


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "hpo_torchrl.core.checks.torch.hub.load",
        "hpo_torchrl.experiments.run.train_run",
        "hpo_torchrl.training.Trainer",
        "hpo_torchrl.problems.InventoryEnv.register_gym",
        "hpo_torchrl.problems.inventory.record.Path",
        "tank.torch.hub.load",
    ],
)
def test_a_run_folder_names_only_classes_that_runs_are_built_from(folder, path):
    sys.path.append(str(folder))
    config = {"env": {"_target_": "tank.Tank", "parts": [{"x": {"_target_": path}}]}}
    with pytest.raises(ValueError, match=r"env\.parts\[0\]\.x\._target_=.*--allow"):
        check_targets(config, allow=["tank"])


def test_every_target_of_the_yaml_files_is_safe():
    for path in (Path(__file__).parents[1] / "configs").rglob("*.yaml"):
        if path.stem != "train":  # Hydra's own section names a class, and is saved nowhere
            check_targets(yaml.safe_load(path.read_text()))
