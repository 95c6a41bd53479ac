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

import hpo_torchrl
from hpo_torchrl import DifferentiableEnv, HybridPolicy
from hpo_torchrl.collectors import DifferentiableCollector, SampleCollector
from hpo_torchrl.envs import BranchBounds, ReplicatedEnv
from hpo_torchrl.experiments.api import TrainedPolicy
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
        "config.yaml", "metrics.csv", "summary.json", "learning_curve.png", "checkpoints", "policy"
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


# -- equations that are not what the base class asks for ------------------------------------------


class Ball(DifferentiableEnv):
    """A ball on a line: let it roll, or push it; pushing is not allowed beyond 1."""

    def __init__(self, **arguments):
        sizes = {"num_discrete": 2, "continuous_dim": 1, "noise_shape": (1,), "batch_size": 4}
        state = {"place": (1,), "speed": (1,)}
        super().__init__(state_shapes=state, observation_dim=2, **sizes | arguments)

    def dynamics(self, state, action, noise):
        push = action["continuous"] * (action["discrete"] == 1).unsqueeze(-1)
        speed = state["speed"] + push + 0.1 * noise
        place = state["place"] + speed
        return {"place": place, "speed": speed}, -(place.square() + push.square()).squeeze(-1)

    def observe(self, state):
        return torch.cat([state["place"], state["speed"]], -1)

    def allowed(self, state):
        near = state["place"] < 1
        return torch.cat([torch.ones_like(near), near], -1)

    def initial_state(self):
        shape = (*self.batch_size, 1)
        return {key: self._draw(torch.randn, shape) for key in ("place", "speed")}

    def draw_noise(self, num_steps, state):
        return self._draw(torch.randn, (*self.batch_size, num_steps, 1))


def ball_with(name, change):
    """A ball with an equation whose arguments and answer are changed."""

    def equation(self, *given):
        return change(getattr(super(Odd, self), name)(*given), *given)

    Odd = type("Odd", (Ball,), {name: equation})
    return Odd


def reward_of(change):
    return lambda found, *given: (found[0], change(found[1]))


def state_of(change):
    return lambda found, *given: (change(found[0]), found[1])


WRONG = [
    ("observe", lambda x, *_: x[..., :1], r"observe.*'observation' .*\(4, 2\).*got .*\(4, 1\)"),
    ("observe", lambda x, *_: torch.cat([x, x], -1), r"'observation' .*\(4, 2\).*got .*\(4, 4\)"),
    ("observe", lambda x, *_: x[0], r"'observation' .*\(4, 2\).*got .*\(2,\)"),
    ("observe", lambda x, *_: x.double(), "'observation' .*float32.*got .*float64"),
    ("observe", lambda x, *_: None, "'observation' .*got None"),
    ("allowed", lambda x, *_: None, "allowed: 'action_mask' must be torch.bool.*got nothing"),
    ("allowed", lambda x, *_: x[..., :1], r"'action_mask' .*\(4, 2\).*got .*\(4, 1\)"),
    ("dynamics", reward_of(lambda r: r.unsqueeze(-1)), r"'reward' .*\(4,\).*got .*\(4, 1\)"),
    ("dynamics", reward_of(lambda r: r.double()), "'reward' .*float32.*got .*float64"),
    ("dynamics", reward_of(lambda r: -1.0), "'reward' .*got -1.0"),
    ("dynamics", lambda found, *_: found[0], "'reward' .*got None"),
    ("dynamics", state_of(lambda s: {"place": s["place"]}), r"'speed' .*nothing but \['place'\]"),
    ("dynamics", state_of(lambda s: s | {"fuel": s["place"]}), "'fuel' must be left out"),
    ("dynamics", state_of(lambda s: s | {"speed": s["speed"].double()}), "'speed' .*got .*float64"),
    ("dynamics", state_of(lambda s: s | {"place": s["place"].to("meta")}), "'place' .*cpu.*meta"),
    ("dynamics", state_of(lambda s: s["place"]), "'place' must be .*got nothing"),
    ("initial_state", lambda s: {"place": s["place"]}, "initial_state: 'speed' .*got nothing"),
    ("initial_state", lambda s: s | {"sped": s["speed"]}, "'sped' must be left out"),
    ("initial_state", lambda s: s | {"speed": s["speed"][0]}, r"'speed' .*got .*\(1,\)"),
    ("draw_noise", lambda x, *_: x[..., 0], r"noise must have shape .*\(4, 1, 1\), got \(4, 1\)"),
    (
        "dynamics",
        lambda found, s, a, x: (s["speed"].add_(1), found)[1],
        "not change 'speed' in place",
    ),
    (
        "dynamics",
        lambda found, s, a, x: (s.update(found[0]), found)[1],
        "not change 'place' in place",
    ),
    ("dynamics", lambda found, s, a, x: (a["continuous"].zero_(), found)[1], "change 'continuous'"),
    ("dynamics", lambda found, s, a, x: (x.mul_(2), found)[1], "not change 'noise' in place"),
    ("observe", lambda seen, s: (s["place"].div_(2), seen)[1], "not change 'place' in place"),
]


@pytest.mark.parametrize(("name", "change", "words"), WRONG)
def test_a_wrong_equation_is_named_before_the_first_step(name, change, words):
    kind = ball_with(name, change)
    with pytest.raises(ValueError, match=words):
        kind().rollout(2)
    state = Ball().reset().select("place", "speed")
    with pytest.raises(ValueError, match=words):
        kind().reset(state, set_state=True)
    policy = HybridPolicy.for_env(Ball(), hidden=4)
    for collector in (DifferentiableCollector, SampleCollector):
        with pytest.raises(ValueError, match=words):
            collector(kind(), policy, frames_per_batch=8)
    with pytest.raises(ValueError, match=f"Odd.*{words}" if "noise must" not in words else words):
        ReplicatedEnv([kind(), kind()]).reset()


@pytest.mark.parametrize("algorithm", ["hpo", "ppo"])
def test_a_run_of_wrong_equations_leaves_no_folder(folder, algorithm):
    env = ball_with("observe", lambda seen, state: seen[..., :1])()
    with pytest.raises(ValueError, match="observe and allowed: 'observation' must be"):
        hpo_torchrl.train(env, algorithm, folder=folder / "run", progress=False)
    assert not (folder / "run").exists()


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: ReplicatedEnv([env])])
def test_right_equations_are_called_once_and_random_numbers_stay(wrap):
    calls = []
    env = ball_with("dynamics", lambda found, *_: (calls.append(1), found)[1])(seed=0)
    before = torch.get_rng_state()
    drawn = wrap(env).reset()["place"]
    assert torch.equal(drawn.reshape(4, 1), Ball(seed=0).initial_state()["place"])
    assert torch.equal(before, torch.get_rng_state())
    env.reset()
    env.sample_noise(3)
    assert len(calls) == 1
    with torch.inference_mode():
        Ball().rollout(2)


def test_a_counter_keeps_its_dtype():
    class Counted(Ball):
        def initial_state(self):
            return {key: value.long() for key, value in super().initial_state().items()}

    Counted.observe = lambda self, state: Ball.observe(self, state).to(self.float_dtype)
    with pytest.raises(ValueError, match=r"dynamics: 'place' must be torch.int64.*got .*float32"):
        Counted().rollout(2)
    Counted.dynamics = lambda self, state, action, noise: (dict(state), noise[..., 0])
    assert Counted().rollout(2)["place"].dtype == torch.int64


def test_an_advance_of_its_own_is_looked_at_instead():
    class Stopped(Ball):
        def dynamics(self, state, action, noise):
            after, reward = super().dynamics(state, action, noise)
            return {**after, "stop": after["place"] > 1e6}, reward

        def advance(self, state, action, noise):
            after, reward, _ = super().advance(state, action, noise)
            return after, reward, after.pop("stop")

    assert Stopped().rollout(2)["next", "reward"].shape == (4, 2, 1)
    Stopped.advance = lambda self, *given: (*Ball.advance(self, *given)[:2], None)
    with pytest.raises(ValueError, match="advance: 'stop' must be left out"):
        Stopped().rollout(2)


HEADS = {"continuous_dim": 3, "num_heads": 3}


@pytest.mark.parametrize(
    ("low", "high", "of_total", "sizes", "fits"),
    [
        ([[0.0], [1.0]], [[0.0], [2.0]], False, {}, True),
        ([[0.0], [1.0]], [[0.0], [float("inf")]], False, {}, True),
        (torch.zeros(2, 3), torch.ones(2, 3), False, {"continuous_dim": 3}, True),
        (torch.zeros(3, 2, 1), torch.ones(3, 2, 1), False, HEADS, True),
        ([0.0, 1.0], [0.0, 2.0], True, {"continuous_dim": 3}, True),
        ([[0.0]], [[1.0]], False, {}, False),
        ([[0.0]] * 3, [[1.0]] * 3, False, {}, False),
        ([0.0, 0.0], [1.0, 1.0], False, {}, False),
        ([0.0, 0.0], [1.0, 1.0], False, {"continuous_dim": 2}, False),
        (torch.zeros(2, 3), torch.ones(2, 3), False, HEADS, False),
        ([[0.0], [3.0]], [[0.0], [2.0]], False, {}, False),
        ([[0.0], [float("nan")]], [[0.0], [2.0]], False, {}, False),
        ([[float("inf")], [0.0]], [[float("inf")], [1.0]], False, {}, False),
        ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], True, {}, False),
        ("low", "high", False, {}, False),
        (None, [[1.0], [1.0]], False, {}, False),
    ],
)  # fmt: skip
def test_bounds_by_branch_fit_the_actions(low, high, of_total, sizes, fits):
    def build():
        return Ball(branch_bounds=BranchBounds(low, high, of_total), **sizes)

    if fits:
        HybridPolicy.for_env(build(), hidden=4, find_scales=False)
    else:
        with pytest.raises(
            ValueError, match=r"branch_bounds must be .*low <= high, each of shape "
        ):
            build()


def test_where_both_ends_of_a_branch_are_equal_it_is_that_value():
    env = Ball(branch_bounds=BranchBounds([[0.25], [1.0]], [[0.25], [2.0]]))
    policy = TrainedPolicy(HybridPolicy.for_env(env, hidden=4), env)
    seen = {"observation": [[5.0, 0.0], [0.0, 0.0]], "action_mask": [[True, False], [False, True]]}
    action, _ = policy.predict(seen)
    assert action["discrete"].tolist() == [0, 1]
    assert action["continuous"][0] == 0.25
    assert 1.0 < action["continuous"][1] < 2.0
    state = {"place": [[5.0]], "speed": [[0.0]]}
    assert policy.predict(state)[0]["discrete"] == [0]
    words = (
        r"action_mask together with observation, or a whole state \(place, speed\).*{name: value"
    )
    with pytest.raises(ValueError, match=words):
        policy.predict([5.0, 0.0])
