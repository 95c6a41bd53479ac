"""What ``import hpo_torchrl`` offers: train, a run and its policy, in this process and the next."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hatchling.build import build_wheel
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type
from water_tank import Tank

import hpo_torchrl
from hpo_torchrl import Evaluation, Run, hybridize, load_policy, load_run, train
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.training import RunFolderError

pytestmark = pytest.mark.usefixtures("undrawn")
QUICK = {"num_updates": 2, "progress": False, "unroll_length": 5, "gae_lambda": 0.9}
NETS = {"policy": {"hidden": [8]}, "critic": {"hidden": [8]}}
LEVELS = torch.linspace(-1, 1, 9).unsqueeze(-1)
OWN = {**QUICK, **NETS, "evaluation.tests.test.num_steps": 40, "reference": "none"}


def actions(policy, observation) -> torch.Tensor:
    action = policy(observation)
    return torch.cat([action["discrete"].unsqueeze(-1).float(), action["continuous"]], -1)


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Run:
    """A run of a configured problem."""
    folder = tmp_path_factory.mktemp("named") / "run"
    tests = {"long_run": {"batch_size": 8, "num_steps": 210}, "protocol": {"batch_size": 8}}
    evaluation = {"tests": tests, "validation": {"num_steps": 52, "batch_size": 8}}
    settings = {"lead_time": 1, "collect": {"batch_size": 8}, "trainer": {"select": "best"}}
    return train("inventory", folder=folder, evaluation=evaluation, **QUICK, **NETS, **settings)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Run:
    """A run on an environment object."""
    folder = tmp_path_factory.mktemp("own") / "run"
    return train(Tank(batch_size=8, seed=0), folder=folder, **OWN)


def test_the_package_offers_its_names_without_loading_torch():
    names = hpo_torchrl.__all__
    assert 14 <= len(names) <= 17
    assert set(names) <= set(dir(hpo_torchrl))
    assert all(getattr(hpo_torchrl, name).__doc__ for name in names)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = hpo_torchrl.trian
    code = "import sys, hpo_torchrl; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"
    assert (Path(hpo_torchrl.__file__).parent / "py.typed").exists()


def test_settings_come_to_their_places(named):
    config = named.config
    assert config["env"]["lead_time"] == 1
    assert config["trainer"]["num_updates"] == 2
    assert config["collect"]["unroll_length"] == 5
    assert config["algorithm"]["gae_lambda"] == 0.9
    assert config["policy"]["hidden"] == config["critic"]["hidden"] == [8]
    assert config["evaluation"]["tests"]["long_run"]["num_steps"] == 210
    assert config["evaluation"]["tests"]["long_run"]["skip"] == 200  # as it was
    assert (config["env"]["name"], config["algorithm"]["name"]) == ("inventory", "hpo")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lerning_rate": 1e-3}, "lerning_rate.*Did you mean 'learning_rate'"),
        ({"hidden": [8]}, "Name one of policy.hidden, critic.hidden"),
        ({"trainer": {"num_updats": 3}}, "num_updats"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"resume_from": "x"}, "resume_from"),
        ({"output_dir": "x"}, "output_dir.*folder="),
    ],
)
def test_unknown_and_refused_settings_are_named(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        train("inventory", folder=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_what_is_no_environment_or_no_plain_value_is_refused(tmp_path):
    with pytest.raises(TypeError, match="env must be an environment"):
        train(3, folder=tmp_path)
    with pytest.raises(TypeError, match=r"demand must be a plain value.*Tensor"):
        train("inventory", folder=tmp_path / "run", demand=torch.ones(1))


def test_a_run_tells_how_it_went(named):
    assert named.summary["updates"] == 2
    assert named.gap == named.summary["gap"]
    assert [row["update"] for row in named.metrics] == [1, 2]
    assert f"gap {named.gap:+.2%}" in repr(named)
    assert named.folder.name == "run"
    again = load_run(named.folder)
    assert again.summary == named.summary
    before = {path: path.stat().st_mtime_ns for path in named.folder.rglob("*")}
    state = torch.get_rng_state()
    assert again.evaluate()["test_cost"] == named.summary["test_cost"]
    assert torch.equal(state, torch.get_rng_state())
    assert before == {path: path.stat().st_mtime_ns for path in named.folder.rglob("*")}
    with pytest.raises(FileExistsError, match="already holds a run"):
        train("inventory", folder=named.folder)
    with pytest.raises(RunFolderError, match="not the folder of a run"):
        load_run(named.folder.parent)


def test_a_policy_acts_on_observations_states_and_tensordicts(named):
    policy, env = named.policy, InventoryEnv(batch_size=5, lead_time=1, seed=3)
    state = env.reset()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = policy.module(state.clone())["action"]
    answers = [
        policy(state["observation"]),
        policy({"observation": state["observation"]}),
        policy({"inventory": state["inventory"]}),
        policy(state.clone())["action"],
        policy(TensorDict({"inventory": state["inventory"]}, [5]))["action"],
    ]
    for answer in answers:
        for key in ("discrete", "continuous"):
            assert torch.equal(answer[key], expected[key])
            assert not answer[key].requires_grad
    one = policy({"inventory": state["inventory"][2]})
    assert torch.allclose(one["continuous"], expected["continuous"][2])
    assert one["discrete"].shape == ()
    drawn = {
        float(policy(state["observation"], deterministic=False)["discrete"].sum())
        for _ in range(30)
    }
    assert len(drawn) > 1  # an untrained choice is a coin's
    assert env.rollout(3, policy)["action", "continuous"].shape == (5, 3, 1)


def test_predict_is_as_people_know_it(named):
    observation = np.array([[0.5], [2.0], [4.0]])
    batch, none = named.policy.predict(observation)
    assert none is None
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
        "discrete": (np.int64, (3,)),
        "continuous": (np.float32, (3, 1)),
    }
    one, _ = named.policy.predict(observation[1], deterministic=True)
    assert one["discrete"] == batch["discrete"][1]
    assert one["continuous"] == pytest.approx(batch["continuous"][1])
    for wrong, words in (
        ([[1.0, 2.0]], r"observation must have the shape \(1,\).*\(1, 2\)"),
        ({"stock": 3}, r"reads observation, or a whole state \(inventory\); got stock"),
        ({"inventory": np.ones((2, 2))}, "inventory must have the shape"),
    ):
        with pytest.raises(ValueError, match=words):
            named.policy.predict(wrong)


def test_the_wheel_alone_finds_configs_and_loads_policies(tmp_path, named, own, monkeypatch):
    """In a new process: of a configured problem, and of an object that the process does not know.

    And its commands do not wait for what only pictures and comparisons need.
    """
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(Path(__file__).parents[1])
    zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))).extractall(site)
    code = (
        "import sys, hpo_torchrl; from hpo_torchrl.experiments import cli, config\n"
        "print(*sys.modules); print(cli.__file__, config.CONFIGS)\n"
        "for folder in sys.argv[1:]:\n"
        "    action, _ = hpo_torchrl.load_policy(folder).predict([0.7])\n"
        "    print(int(action['discrete']), float(action['continuous'][0]))\n"
        "cli.train(['--cfg'])"
    )
    command = [sys.executable, "-c", code, str(named.folder), str(own.folder)]
    how = {"cwd": work, "env": {**os.environ, "PYTHONPATH": str(site)}, "check": True}
    shown = subprocess.run(command, capture_output=True, text=True, **how).stdout
    loaded, files, *answers = shown.splitlines()
    assert all(path.startswith(str(site)) for path in files.split())
    assert "hpo_torchrl.experiments.run" in loaded.split()
    assert not {*loaded.split()} & {"matplotlib", "scipy.stats", "pyarrow", "tensorboard"}
    for run, line in zip((named, own), answers, strict=False):
        action, _ = run.policy.predict([0.7])
        discrete, continuous = line.split()
        assert int(discrete) == action["discrete"]
        assert float(continuous) == pytest.approx(action["continuous"][0], abs=1e-7)
    assert "fixed_cost_per_item: 64.0" in shown


def test_the_policy_of_an_object_knows_its_state_if_the_object_is_given(own):
    level = torch.tensor([[0.2], [0.9]])
    assert torch.equal(actions(own.policy, {"level": level}), actions(own.policy, level - 0.5))
    alone = load_policy(own.folder)
    assert torch.equal(actions(alone, level - 0.5), actions(own.policy, level - 0.5))
    with pytest.raises(ValueError, match=r"not known here\); got level.*env=\.\.\."):
        alone({"level": level})
    with pytest.raises(NotImplementedError, match=r"trained on a Tank.*load_run\(folder, env="):
        load_run(own.folder).evaluate()
    given = load_run(own.folder, env=Tank(batch_size=8))
    assert given.evaluate()["test_cost"] == own.summary["test_cost"]
    assert own.summary["test_reward"] == -own.summary["test_cost"]
    assert "Tank, hpo, test reward -" in repr(own)


def test_an_object_with_masks_and_bounds_keeps_its_spaces(tmp_path):
    masked = Tank(masked=True, batch_size=8, seed=0)
    run = train(masked, folder=tmp_path / "masked", **OWN)
    alone = load_policy(run.folder)
    seen = {"observation": [[0.7], [0.2]], "action_mask": [[True, False], [True, True]]}
    assert alone.predict(seen)[0]["discrete"][0] == 0
    assert torch.equal(actions(alone, seen), actions(run.policy, seen))
    with pytest.raises(ValueError, match="action_mask"):
        alone([[0.7]])
    cut = hybridize(Tank(batch_size=8, seed=0), intervals=[0.0, (0.25, 1.0)])
    run = train(cut, folder=tmp_path / "cut", **OWN)
    assert torch.equal(actions(load_policy(run.folder), LEVELS), actions(run.policy, LEVELS))


def test_training_on_an_object_resumes_exactly(tmp_path):
    """And tests of one's own are those of the summary."""

    def go(folder, **settings):
        test = Evaluation(Tank(batch_size=16), num_steps=20, seed=4)
        arguments = {**OWN, "num_updates": 4, "checkpoint_every": 1, "tests": test}
        return train(Tank(batch_size=8, seed=0), folder=tmp_path / folder, **arguments, **settings)

    class Killed(hpo_torchrl.training.Callback):
        def on_update_end(self, trainer, row):
            if row["update"] == 3:
                raise InterruptedError

    whole = go("whole")
    with pytest.raises(InterruptedError):
        go("parts", callbacks=[Killed()])
    parts = go("parts", resume=True)
    assert torch.equal(actions(whole.policy, LEVELS), actions(parts.policy, LEVELS))
    assert whole.summary["test_cost"] == parts.summary["test_cost"]
    assert whole.summary["test_cost"] == whole.evaluate()["test_cost"]


def test_a_class_of_another_module_is_built_and_must_be_allowed(tmp_path):
    run = train(Tank, folder=tmp_path / "run", inflow=0.3, batch_size=8, **OWN)
    assert run.config["env"]["_target_"] == "water_tank.Tank"
    assert run.policy.env.inflow == 0.3
    with pytest.raises(ValueError, match=r"allow=\['water_tank'\]"):
        load_policy(run.folder)
    loaded = load_policy(run.folder, allow=["water_tank"])
    assert torch.equal(actions(loaded, LEVELS), actions(run.policy, LEVELS))
