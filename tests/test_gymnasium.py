"""Gymnasium in and out: what comes through the wrappers is what a plain loop sees."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import sys
from pathlib import Path

import gym_worlds
import gymnasium
import numpy as np
import pytest
import scipy.stats
import torch
from gym_worlds import BOX, FORMS, Walk
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from test_masks import Shuttle, obeys
from torchrl.envs.utils import ExplorationType, check_env_specs, set_exploration_type

import hpo_torchrl
import hpo_torchrl.envs
from hpo_torchrl.algorithms import DDPG, HPO, PPO
from hpo_torchrl.collectors import SampleCollector, differentiable_rollout
from hpo_torchrl.collectors.episodes import begun, follow
from hpo_torchrl.core.extras import MissingExtraError, extra
from hpo_torchrl.envs.gym import GymHybridEnv, HybridSpace, as_gymnasium, as_vector_env
from hpo_torchrl.envs.gym.spaces import flat_observations, observation_size
from hpo_torchrl.experiments.build import build_env
from hpo_torchrl.experiments.cli import evaluate, train
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.inventory.order_costs import FixedCost
from hpo_torchrl.problems.inventory.order_quantities import MinimumOrder
from hpo_torchrl.training import Evaluation, RunFolder

ROOT = Path(__file__).parents[1]


def world(name="Moving", **how):
    how = {"num_envs": 4, "coordinates": gym_worlds.COORDINATES, "seed": 0} | how
    return GymHybridEnv(f"gym_worlds:{name}-v0", **how)


def policy_of(env, **how):
    torch.manual_seed(0)
    return HybridPolicy.for_env(env, **{"hidden": [8], "scale": 0.3, "learn_scale": True} | how)


# -- spaces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_discrete_action_is_another_one_of_the_space(form):
    """The product of the discrete parts, in the order of the space, the last moving fastest."""
    space = HybridSpace(FORMS[form])
    number, dimension = space.num_discrete, len(space.low)
    numbers = np.random.default_rng(0).uniform(-3, 3, (number, dimension))
    batch = space.encode(np.arange(number), numbers)
    batched = gymnasium.vector.utils.batch_space(FORMS[form], number)
    rows = [*gymnasium.vector.utils.iterate(batched, batch)]
    assert all(FORMS[form].contains(row) for row in rows)

    def parts(space, row):
        if isinstance(space, (spaces.Tuple, spaces.Dict)):
            keys = range(len(space)) if isinstance(space, spaces.Tuple) else space.keys()
            return [part for key in keys for part in parts(space[key], row[key])]
        return [(space, row)]

    known, written = [], []
    for row in rows:
        leaves = parts(FORMS[form], row)
        boxes = [np.ravel(value) for leaf, value in leaves if isinstance(leaf, spaces.Box)]
        others = [np.ravel(value) for leaf, value in leaves if not isinstance(leaf, spaces.Box)]
        known.append(tuple(map(int, np.concatenate(others))))
        written.append(np.concatenate(boxes))
    ranges = {
        "one box": [range(-1, 2)],
        "a box each": [range(2)],
        "names": [range(5, 7)],
        "several": [range(2), range(3), range(2), range(2)],
        "nested": [range(2), range(4, 7)],
    }[form]
    assert known == [*itertools.product(*ranges)]
    np.testing.assert_allclose(written, np.clip(numbers, space.low, space.high), rtol=1e-6)


def test_flat_observations_are_those_of_gymnasium():
    space = spaces.Dict(
        {
            "z": spaces.Tuple([spaces.Discrete(3, start=2), BOX]),
            "a": spaces.MultiDiscrete([2, 4], start=[1, -1]),
            "m": spaces.MultiBinary((2, 2)),
            "i": spaces.Box(0, 9, (2, 2), dtype=np.int64),
        }
    )
    space.seed(0)
    rows = [space.sample() for _ in range(20)]
    create = gymnasium.vector.utils.create_empty_array(space, 20)
    batch = gymnasium.vector.utils.concatenate(space, rows, create)
    flat = flat_observations(space, batch, 20)
    assert flat.shape == (20, observation_size(space))
    np.testing.assert_allclose(flat, [spaces.flatten(space, row) for row in rows])


@pytest.mark.parametrize(
    ("space", "coordinates", "words"),
    [
        (spaces.Discrete(3), None, "must be hybrid.*no Box"),
        (BOX, None, "must be hybrid.*a Box alone"),
        (spaces.Tuple([spaces.Discrete(2), spaces.Text(3)]), None, r"action_space\[1\].*Text"),
        (spaces.Tuple([spaces.MultiBinary(20), BOX]), None, "1048576 values.*4096"),
        (
            spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 5, (1,), dtype=np.int32)]),
            None,
            r"action_space\[1\] must be a Box of real numbers, got one of int32",
        ),
        (FORMS["one box"], [[0], [1]], "a list for each of the 3 discrete actions, got 2"),
        (FORMS["one box"], [[0], [2], []], r"coordinates\[1\] must be below 2, got 2"),
    ],
)
def test_a_space_that_does_not_suit_is_named(space, coordinates, words):
    with pytest.raises(ValueError, match=words):
        HybridSpace(space, coordinates)


# -- in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_specs_hold(form):
    env = GymHybridEnv(lambda: Walk(FORMS[form]), 3, seed=1)
    check_env_specs(env, break_when_any_done="both")
    policy = policy_of(env)
    rollout = env.rollout(12, policy, break_when_any_done=False)
    assert rollout["action", "discrete"].unique().tolist() == [*range(env.num_discrete)] or form
    if form == "a box each":
        allowed = rollout["action_mask"].gather(-1, rollout["action", "discrete"].unsqueeze(-1))
        assert allowed.all()
        assert not rollout["action_mask"].all()


def slow_loop(number, steps, actions, seed):
    """Transitions of plain environments, one after another: rows of ``(before, after, ...)``."""
    found = []
    for at in range(number):
        env, rows = Walk(), []
        seen, _ = env.reset(seed=seed + at)
        for step in range(steps):
            after, reward, terminated, truncated, _ = env.step(actions(at, step))
            rows.append([*seen, *after, reward, terminated, truncated])
            seen = env.reset()[0] if terminated or truncated else after
        found.append(rows)
    return np.array(found, dtype=float)


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_every_autoreset_mode_gives_what_a_plain_loop_sees(kind, mode):
    """The state after the last step is the final one of its episode, before the next begins."""
    if kind is AsyncVectorEnv and mode is not AutoresetMode.SAME_STEP:
        pytest.skip("one of its modes is enough, as processes take time to start")
    envs = kind([Walk] * 3, autoreset_mode=mode)
    env = GymHybridEnv(envs, dtype=torch.float64)
    env.set_seed(7)

    def still(tensordict):
        zero = env.full_action_spec.zero()
        return tensordict.update(zero)

    rollout = env.rollout(25, still, break_when_any_done=False)
    env.close()
    after = rollout["next"]
    ends = [after[key].double() for key in ("reward", "terminated", "truncated")]
    found = torch.cat([rollout["observation"], after["observation"], *ends], -1).numpy()
    action = (0, np.zeros(1, np.float32), np.zeros(2, np.float32))
    wanted = slow_loop(3, 25, lambda at, step: action, 7)
    np.testing.assert_array_equal(found, wanted)
    assert wanted[..., -2:].sum((0, 1)).min() > 1  # both kinds of ends have occurred


@pytest.mark.parametrize("mode", AutoresetMode)
def test_some_instances_can_be_restarted(mode):
    env = GymHybridEnv(SyncVectorEnv([Walk] * 3, autoreset_mode=mode), seed=0)
    td = env.step_mdp(env.step(env.reset().update(env.full_action_spec.zero())))
    mask = torch.tensor([[True], [False], [True]])
    again = env.reset(td.copy().set("_reset", mask), select_reset_only=True)
    assert again["observation"][:, 0].tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_array_equal(again["observation"][1], td["observation"][1])


class LateReset(VectorEnv):
    """A vector environment of somebody's own that resets in the step after."""

    num_envs, spec = 2, None
    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    single_action_space, single_observation_space = FORMS["one box"], BOX


def test_a_step_that_is_none_is_not_learned_from():
    with pytest.raises(ValueError, match=r"'NextStep'. Make it with AutoresetMode.SAME_STEP or"):
        GymHybridEnv(LateReset())


def test_seeds_are_those_of_gymnasium():
    env, plain = world(seed=5), gymnasium.make_vec("gym_worlds:Moving-v0", 4)
    first, _ = plain.reset(seed=5)
    np.testing.assert_array_equal(env.reset()["observation"], first)
    second = env.reset()["observation"]
    assert not np.array_equal(second, first)
    env.set_seed(5)
    np.testing.assert_array_equal(env.reset()["observation"], first)
    np.testing.assert_array_equal(env.reset()["observation"], second)


def test_a_coordinate_that_is_not_used_has_no_part_in_the_policy():
    """Log-probabilities and entropies against scipy, over the coordinates that are used."""
    env = world()
    policy = policy_of(env)
    data = env.rollout(20, policy, break_when_any_done=False)
    discrete, continuous = data["action", "discrete"], data["action", "continuous"]
    used = torch.tensor([[1, 0], [0, 1], [0, 0]]).bool()[discrete]
    assert (continuous[~used] == 0).all()
    assert (continuous[used] != 0).all()
    dist = policy.get_dist(data)
    pick = discrete[..., None, None].expand(*discrete.shape, 1, 2)
    loc, scale = (value.gather(-2, pick).squeeze(-2).detach() for value in (dist.loc, dist.scale))
    with np.errstate(invalid="ignore"):
        scores = scipy.stats.norm.logpdf(continuous.detach(), loc, scale)
    wanted = dist.log_prob_discrete(discrete).detach()
    wanted = wanted + torch.as_tensor(np.where(used, scores, 0.0).sum(-1))
    torch.testing.assert_close(data["action_log_prob"], wanted.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dist.log_prob(data["action"]), wanted.float(), rtol=1e-4, atol=1e-4)
    other = data["action"].clone()
    other["continuous"] = continuous + 5.0 * ~used  # a fault planted: it must not be seen
    torch.testing.assert_close(dist.log_prob(other), dist.log_prob(data["action"]))
    entropy = scipy.stats.norm.entropy(
        scale=policy.network.scale().detach().clamp_min(1e-9).numpy()
    )
    own = np.where([[1, 0], [0, 1], [0, 0]], entropy, 0.0).sum(-1)
    mixed = dist.entropy_discrete().detach().numpy() + (dist.probs.detach().numpy() @ own)
    np.testing.assert_allclose(dist.entropy().detach(), mixed, rtol=1e-4)
    (-dist.log_prob(data["action"]).sum()).backward()
    moved = policy.network.log_scale.grad != 0
    assert moved.tolist() == [[True, False], [False, True], [False, False]]


def test_what_is_bootstrapped_from_is_the_final_observation():
    """GAE by hand of a critic that knows each observation by its numbers."""
    env = GymHybridEnv(Walk, 3, seed=3)
    ppo = PPO(env, policy_of(env), make_value_network(env, hidden=[8]), seed=0, unroll_length=15)
    assert (ppo.reset_fraction, ppo.reset_fraction_final, ppo.objective) == (0.0, 0.0, "discounted")
    batch = ppo.collector.collect()
    raw = batch["next", "reward"].clone()
    _, data = ppo.prepare(batch)
    scale = (raw / data["next", "reward"]).median()
    with torch.no_grad():
        value, after = (ppo.critic(part.clone())["state_value"] for part in (data, data["next"]))
    terminated, done = data["next", "terminated"], data["next", "done"]
    error = raw / scale + 0.99 * after * ~terminated - value
    wanted, coming = torch.zeros_like(error), torch.zeros_like(error[:, 0])
    for step in range(14, -1, -1):
        coming = error[:, step] + 0.99 * 0.95 * coming * ~done[:, step]
        wanted[:, step] = coming
    torch.testing.assert_close(data["advantage"], wanted, rtol=1e-4, atol=1e-4)


# -- episodes --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    ends=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=2, max_size=3),
    cut=st.integers(1, 8),
    whole=st.booleans(),
)
def test_episodes_are_followed_across_batches(ends, cut, whole):
    """Against a loop over steps; an episode whose beginning was not seen is left out."""
    done = torch.tensor(ends)
    reward = torch.arange(done.numel()).reshape(done.shape) % 7 - 2.0

    class Batch:
        batch_size, device = torch.Size([len(ends)]), None

    running = begun(Batch)
    running["whole"][0] = whole
    _, all_at_once = follow(running, reward[..., None], done[..., None])
    found = []
    for part in (slice(0, cut), slice(cut, None)):
        running, ended = follow(running, reward[:, part, None], done[:, part, None])
        found += zip(*(value.tolist() for value in ended), strict=True)
    wanted, left = [], []
    for row in range(len(ends)):
        total, steps, known = 0.0, 0, whole or row > 0
        for step in range(9):
            total, steps = total + float(reward[row, step]), steps + 1
            if done[row, step]:
                wanted += [(row, total, steps)] if known else []
                total, steps, known = 0.0, 0, True
        left.append((total, steps))
    assert sorted(found) == sorted(wanted)
    firsts = {row: (row, total, steps) for row, total, steps in reversed(wanted)}
    rows = zip(*(value.tolist() for value in all_at_once.first()), strict=True)
    assert {row[0]: row for row in rows} == firsts
    assert [*zip(running["total"].tolist(), running["steps"].tolist(), strict=True)] == left


def test_a_collector_knows_the_episodes_that_ended():
    env = GymHybridEnv(Walk, 3, seed=3)
    collector = SampleCollector(env, policy_of(env), frames_per_batch=12)
    lengths = []
    for _ in range(5):
        collector.collect()
        lengths += collector.ended.steps.tolist()
    assert set(lengths) <= {2, 3, 4, 5}
    assert sum(lengths) + int(collector.running["steps"].sum()) == 60


def test_evaluation_is_of_whole_first_episodes():
    env = world(num_envs=5)
    test, policy = Evaluation(env, num_steps=200, seed=11), policy_of(env)
    assert (test.objective, env.horizon) == ("return", 200)
    found = test.run(policy)
    totals, lengths = [], []
    for at in range(5):
        plain = gymnasium.make("gym_worlds:Moving-v0")
        seen, _ = plain.reset(seed=11 + at)
        total, steps, over = 0.0, 0, False
        while not over:
            with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
                action = policy.act(torch.as_tensor(seen))
            act = (int(action.discrete), action.continuous.numpy())
            seen, reward, terminated, truncated, _ = plain.step(act)
            total, steps, over = total + reward, steps + 1, terminated or truncated
        totals.append(total)
        lengths.append(steps)
    assert found.mean == pytest.approx(-np.mean(totals), abs=1e-4)
    assert (found.episode_return, found.episode_length) == (
        pytest.approx(np.mean(totals), abs=1e-4),
        np.mean(lengths),
    )


# -- training --------------------------------------------------------------------------------------

TINY = [
    "env=gym",
    "env.id=gym_worlds:Moving-v0",
    "env.coordinates=[[0],[1],[]]",
    "collect.batch_size=8",
    "collect.unroll_length=50",
    "policy.hidden=[8]",
    "critic.hidden=[8]",
    "trainer.progress=false",
    "trainer.num_updates=6",
    "trainer.checkpoint_every=2",
    "trainer.log_every=1",
    "evaluation.tests.test.batch_size=3",
]


def test_the_command_trains_and_says_how_episodes_ended(tmp_path, capsys, undrawn):
    run = tmp_path / "run"
    train([*TINY, "algorithm=ppo", f"output_dir={run}"])
    rows = RunFolder(run).read_metrics()
    lengths = [row["episode_length"] for row in rows if "episode_length" in row]
    assert len(rows) == 6
    assert max(lengths) <= 200  # and more than one batch
    assert max(lengths) > 50
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test_reward"] == pytest.approx(summary["test_return"])
    assert 1 <= summary["test_length"] <= 200
    shown = capsys.readouterr().out
    assert re.search(r"test cost .* per unit and episode\nepisode +return .* steps\n", shown)
    with pytest.raises(SystemExit):  # its environment is a module's that nobody has allowed
        evaluate([str(run)])
    assert "--allow gym_worlds" in capsys.readouterr().err
    evaluate([str(run), "--allow", "gym_worlds"])


def test_a_run_that_goes_on_begins_new_episodes(tmp_path):
    env, same = world(seed=1), {"seed": 0, "unroll_length": 10}
    ppo = PPO(env, policy_of(env), make_value_network(env, hidden=[8]), **same)
    ppo.iterate()
    saved = ppo.collector.state_dict()
    again = PPO(world(seed=1), policy_of(env), make_value_network(env, hidden=[8]), **same)
    again.collector.load_state_dict(saved)
    batch = again.collector.collect()
    assert again.collector.frames == 2 * ppo.collector.frames
    # Fresh ones, not those that the first run began with: velocities are 0, places others.
    assert (batch["observation"][:, 0, 2:4] == 0).all()
    first = world(seed=1).reset()["observation"]
    assert not torch.isclose(batch["observation"][:, 0], first).all()


@pytest.mark.parametrize("coordinates", [None, gym_worlds.COORDINATES])
def test_an_object_trains_and_its_policy_comes_back(coordinates, tmp_path, undrawn):
    """With the ranges of its actions, which the folder of a run keeps."""
    env, sizes = world(coordinates=coordinates), {"policy.hidden": [8], "critic.hidden": [8]}
    how = {"num_updates": 1, "progress": False, "unroll_length": 5, **sizes}
    test = Evaluation(world(coordinates=coordinates), num_steps=5, seed=0)
    run = hpo_torchrl.train(env, "ppo", folder=tmp_path / "run", tests=test, **how)
    seen = env.reset()["observation"]
    action, _ = hpo_torchrl.load_policy(run.folder).predict(seen.numpy())
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        wanted = run.policy(env.reset().set("observation", seen))["action"]
    np.testing.assert_array_equal(action["discrete"], wanted["discrete"])
    np.testing.assert_allclose(action["continuous"], wanted["continuous"], rtol=1e-6)


def test_gradients_of_a_simulator_are_not_promised():
    env = world()
    policy, critic = policy_of(env), make_value_network(env, hidden=[8])
    words = "GymHybridEnv is not differentiable.*algorithm=ppo.*da_ac"
    with pytest.raises(TypeError, match=words):
        HPO(env, policy, critic)
    with pytest.raises(TypeError, match=words):
        differentiable_rollout(env, policy, 3)


@pytest.mark.parametrize("critic_of", ["actions", "parameters"])
def test_learned_critics_need_no_gradients_of_a_simulator(critic_of):
    """Its replay buffer holds the final observation of an episode, too."""
    env = GymHybridEnv(Walk, 3, seed=0)
    critic = make_value_network(env, hidden=[8])
    ddpg = DDPG(env, policy_of(env), critic, unroll_length=12, critic_of=critic_of)
    assert "loss_qvalue" in ddpg.iterate()
    data = ddpg.buffer[:]
    assert (data["next", "observation"][:, 0] == data["observation"][:, 0] + 1).all()
    assert data["next", "terminated"].any()


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("env.id must be given", ["algorithm=ppo"]),
        ("Gymnasium cannot make id='Nothing-v0'.*my_package:Name-v0", ["env.id=Nothing-v0"]),
        ("Gymnasium cannot make id='no_such:Name-v0'", ["env.id=no_such:Name-v0"]),
        ("must be hybrid.*no Box", ["env.id=CartPole-v1"]),
        ("is not differentiable", ["env.id=gym_worlds:Moving-v0", "algorithm=hpo"]),
    ],
)
def test_the_command_names_what_is_wrong(words, changes, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(["env=gym", "algorithm=ppo", f"output_dir={tmp_path / 'run'}", *changes])
    assert stop.value.code == 2
    assert re.search(words, capsys.readouterr().err)


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hpo_torchrl.envs.gym")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(hpo_torchrl.envs, "gym")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ValueError, match=r"pip install 'hpo_torchrl\[gym\]'\.$"):
        compose_config(["env=gym", "env.id=A-v0"])
    with pytest.raises(MissingExtraError, match=r"no_such_package is not installed.*\[some\]"):
        extra("no_such_package", "some")


def test_batch_size_is_the_number_of_environments():
    assert build_env(compose_config([*TINY, "algorithm=ppo"])).batch_size == (8,)


# -- out -------------------------------------------------------------------------------------------

OURS = {
    "inventory": lambda **b: InventoryEnv(num_items=2, horizon=6, seed=0, **b),
    "LQR": lambda **b: SwitchedLQREnv.from_recipe(3, 2, seed=0, **b),
    "masks": lambda **b: Shuttle(horizon=9, seed=0, **b),
    "heads": lambda **b: Shuttle(2, horizon=9, seed=0, **b),
}


@pytest.mark.filterwarnings("ignore:.*Box (action|observation) space m:UserWarning")
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized:UserWarning")
@pytest.mark.parametrize("flatten", [None, "argmax", "bin"])
@pytest.mark.parametrize("name", OURS)
def test_gymnasium_accepts_our_environments(name, flatten):
    check_env(as_gymnasium(OURS[name](batch_size=()), flatten=flatten), skip_render_check=True)


def slow_rollout(env, actions):
    """Rewards, observations and ends of a rollout of an environment itself, ``(*B, T)``."""
    td, rows = env.reset(), []
    for discrete, continuous in actions:
        td = td.update({"action": {"discrete": discrete, "continuous": continuous}})
        after = env.step(td)
        rows.append(after["next"].select("reward", "observation", "done").clone())
        td = env.maybe_reset(env.step_mdp(after))
    return torch.stack(rows, -1)


@pytest.mark.parametrize("name", OURS)
def test_what_goes_out_is_what_the_environment_does(name):
    env, plain = as_vector_env(OURS[name](batch_size=3)), OURS[name](batch_size=3)
    env.action_space.seed(0)
    seen, info = env.reset(seed=4)
    plain.set_seed(4)
    rows, actions = [], []
    for _ in range(plain.horizon):
        discrete, continuous = env.action_space.sample()
        if "action_mask" in info:
            discrete = info["action_mask"].argmax(-1)
        continuous = np.clip(continuous, -3.0, 3.0)
        seen, reward, terminated, truncated, info = env.step((discrete, continuous))
        rows.append((seen, reward, terminated | truncated))
        actions.append((torch.as_tensor(discrete), torch.as_tensor(continuous)))
    wanted = slow_rollout(plain, actions)
    np.testing.assert_allclose(np.stack([r[0] for r in rows], 1), wanted["observation"], rtol=1e-5)
    np.testing.assert_allclose(
        np.stack([r[1] for r in rows], 1), wanted["reward"][..., 0], rtol=1e-4
    )
    np.testing.assert_array_equal(np.stack([r[2] for r in rows], 1), wanted["done"][..., 0])
    assert rows[-1][2].all()
    _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
    assert not (reward.any())
    assert not (terminated.any())
    assert not (truncated.any())


def test_some_of_our_instances_can_be_reset():
    env = as_vector_env(SwitchedLQREnv.from_recipe(3, 2, batch_size=3, seed=0))
    env.reset(seed=1)
    before = env.step(env.action_space.sample())[0]
    after, _ = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert (np.abs(after - before).max(-1) > 0).tolist() == [False, True, False]


def test_our_environment_comes_back_through_gymnasium():
    """In and out again: masks included, it is the environment that it was."""
    plain = Shuttle(horizon=9, batch_size=(), seed=0)
    env = GymHybridEnv(lambda: as_gymnasium(Shuttle(horizon=9, batch_size=(), seed=0)), 2, seed=3)
    assert env.has_action_mask
    policy = policy_of(env)
    data = env.rollout(30, policy, break_when_any_done=False)
    x = data["observation"][..., 0]
    torch.testing.assert_close(data["action_mask"], torch.stack([x > -9, x > 0, x < 1], -1))
    assert obeys(data)
    plain.set_seed(3)
    torch.testing.assert_close(data["observation"][0, 0], plain.reset()["observation"])


@pytest.mark.parametrize("heads", [None, 2])
def test_flat_actions_are_places_and_bins(heads):
    number, boxes = 3, heads or 1
    for flatten in ("argmax", "bin"):
        env = as_gymnasium(Shuttle(heads, batch_size=(), seed=0), flatten=flatten, reach=4.0)
        _, info = env.reset(seed=0)
        size = boxes * (number if flatten == "argmax" else 1)
        assert env.action_space.shape == (size + boxes,)
        rng = np.random.default_rng(0)
        for _ in range(50):
            flat = rng.uniform(-1, 1, size + boxes)
            found = env.simulation._parts(flat)
            own = flat[:size].reshape(boxes, -1)
            if flatten == "argmax":
                allowed = info["action_mask"].reshape(boxes, number).astype(bool)
                ranked = [np.argsort(-row) for row in own]
                pairs = zip(ranked, allowed, strict=True)
                wanted = [next(int(i) for i in order if may[i]) for order, may in pairs]
            else:
                wanted = [int(np.digitize(row[0], [-1 / 3, 1 / 3])) for row in own]
            assert found["discrete"].reshape(-1).tolist() == wanted
            np.testing.assert_allclose(found["continuous"], 4.0 * flat[size:], atol=1e-5)


def test_a_quantity_beside_its_discrete_action_stays_within_its_ends():
    stock = InventoryEnv(features=[FixedCost(64), MinimumOrder(20)], batch_size=(), seed=0)
    env = as_gymnasium(stock)
    env.reset(seed=0)
    low, high = (torch.as_tensor(end) for end in stock.branch_bounds[:2])
    for discrete in range(stock.num_discrete):
        for quantity in (0.0, 7.0, 500.0):
            found = env.simulation._parts((discrete, np.array([quantity], dtype=np.float32)))
            wanted = np.clip(quantity, float(low[discrete].sum()), float(high[discrete].sum()))
            assert float(found["continuous"].sum()) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: as_gymnasium(InventoryEnv(batch_size=4)), ValueError, "use as_vector_env"),
        (lambda: as_vector_env(InventoryEnv()), ValueError, r"batch size \(B,\), got \(\)"),
        (lambda: as_gymnasium(Walk()), TypeError, "must be a DifferentiableEnv"),
        (lambda: as_gymnasium(InventoryEnv(), flatten="max"), ValueError, "one of 'argmax', 'bin'"),
        (lambda: GymHybridEnv(SyncVectorEnv([Walk]), 3), ValueError, "leave num_envs"),
        (lambda: GymHybridEnv(3), TypeError, "id must be"),
    ],
)
def test_bad_arguments_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_an_action_that_is_none_is_refused():
    env = as_gymnasium(InventoryEnv(seed=0))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"one of 0, ..., 1 and .* finite, got 2"):
        env.step((2, np.zeros(1, np.float32)))
    with pytest.raises(ValueError, match="finite, got nan"):
        env.step((1, np.array([np.nan], np.float32)))


def test_the_example_of_stable_baselines_learns():
    pytest.importorskip("stable_baselines3")
    example = runpy.run_path(str(ROOT / "examples/with_stable_baselines3.py"))
    before, after = example["main"](total_timesteps=6_000)
    assert after < 0.8 * before
