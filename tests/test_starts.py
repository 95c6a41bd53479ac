"""What comes before a run: scouting, and the choice of a start."""

from pathlib import Path

import pytest
import torch
from water_tank import Tank

from hpo_torchrl.algorithms import HPO, PPO, NonFiniteError, hpo, learner
from hpo_torchrl.core.categorical import insert_like
from hpo_torchrl.envs import ReplicatedEnv
from hpo_torchrl.modules import HybridPolicy, make_value_network, replicate
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.training import Callback, CostEstimate, Evaluation, StopTraining, Trainer

UPDATES, SCOUTED, STARTED = 12, 2, 4


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Runs of twelve updates are scouted for two, and choose between starts after four."""
    monkeypatch.setattr(learner, "_LONG", UPDATES)
    monkeypatch.setattr(learner, "_SCOUTING", SCOUTED)
    monkeypatch.setattr(hpo, "_SHORTEST_START", STARTED)


class Bath(Tank):
    """The same tank, whose level is seen from far off."""

    def observe(self, state):
        return 40.0 + state["level"]


def parts(seed, make=Tank, **network):
    torch.manual_seed(seed)
    env = make(batch_size=8, seed=seed)
    policy = HybridPolicy.for_env(env, hidden=[8], **network)
    critic = make_value_network(env, hidden=[8])
    if make is Bath:  # as if random actions had told nothing
        for scale in (policy.network.observations, critic.module[0]):
            scale.shift.zero_()
            scale.scale.fill_(1.0)
    return env, policy, critic


def settings(**changed):
    short = {"unroll_length": 5, "branch_steps": 3, "start_fraction": STARTED / UPDATES}
    return {**short, "learning_rate": 0.02, **changed}


def alone(seed=0, make=Tank, **changed):
    return HPO(*parts(seed, make), seed=seed, **settings(**changed))


def trainer_of(folder: Path, algorithm, seeds=(), **others):
    folders = [folder / f"seed={seed}" for seed in seeds]
    for place in folders or [folder]:
        place.mkdir(parents=True, exist_ok=True)
    test = Evaluation(Tank(batch_size=16), num_steps=20, seed=1)
    known = {"num_updates": UPDATES, "checkpoint_every": 3, "eval_every": 2, "progress": False}
    return Trainer(
        algorithm,
        run_dir=folders or folder,
        config=[{"seed": seed} for seed in seeds] or {"seed": 0},
        tests={"short": test},
        primary="short",
        validation=test,
        **{**known, "log_every": 1, **others},
    )


def weights(policy):
    return {name: value.clone() for name, value in policy.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("make", [InventoryEnv, Tank])
def test_a_preference_is_odds_beside_the_advantages(make):
    env = make(batch_size=4)
    policy = HybridPolicy.for_env(env)
    td = env.reset()
    before = policy.discrete_logits(td)
    policy.network.temperature.fill_(0.1)
    policy.network.preference.copy_(torch.tensor([0.0, 3.0]))
    odds = (policy.discrete_logits(td) - before).diff(dim=-1).exp()
    assert torch.allclose(odds, torch.tensor(3.0).exp())
    logits, _, _ = policy.network.sampler()(td["observation"])
    assert torch.allclose(logits.log_softmax(-1), policy.discrete_logits(td))
    rows = insert_like(torch.ones(5, 2), torch.ones(5, 7, 9, 2))
    assert rows.shape == (5, 1, 1, 2)


def test_the_preference_of_a_start_wears_off():
    algorithm = alone()
    algorithm.iterate()
    preference, taken = algorithm.policy.network.preference, []
    for start in range(algorithm.starts(UPDATES)[0]):
        facts = algorithm.begin(start)
        taken.append(facts["preferred_action"])
        assert preference.tolist() == [3.0 * (d == taken[-1]) for d in range(2)]
        algorithm.anneal(0.375 * STARTED / UPDATES)
        assert torch.allclose(preference, torch.tensor([1.5 * (d == taken[-1]) for d in range(2)]))
        algorithm.anneal(0.75 * STARTED / UPDATES)
        assert not preference.any()
        # It is a run in little; the run itself goes on with schedules of its own.
        algorithm.anneal(STARTED / UPDATES)
        assert (algorithm.cooled, algorithm.optimization.factor) == (1.0, 0.01)
    algorithm.begin(None)
    algorithm.anneal(STARTED / UPDATES)
    assert algorithm.cooled < 0.5 < algorithm.optimization.factor
    assert not preference.any()
    used = algorithm.last_batch["action", "discrete"].flatten().bincount(minlength=2)
    assert taken == [-1, *used.sort(descending=True, stable=True).indices.tolist()]


@pytest.mark.parametrize(
    ("costs", "errors", "second", "best"),
    [([3.0, 1.0, 2.0], 0.1, 1, 1), ([3.0, 2.0, 1.0], 0.1, 1, 2), ([3.0, 2.0, 1.5], 1.0, 0, 0)],
)
def test_the_best_start_so_far_goes_on(tmp_path, monkeypatch, costs, errors, second, best):
    trainer, kept, seen, begun = trainer_of(tmp_path, alone()), [], [], []
    policy, begin = trainer.algorithm.policy, trainer.algorithm.begin
    answers = iter(CostEstimate(cost, errors) for cost in costs)
    plain = trainer.test

    def test(name, evaluation, **how):
        if trainer.update == STARTED and len(seen) == SCOUTED + STARTED * (2 + len(kept)):
            kept.append(weights(policy))
            return [next(answers)]
        return plain(name, evaluation, **how)

    def look(start):
        begun.append(weights(policy))
        return begin(start)

    class Look(Callback):
        def on_update_end(self, trainer, row):
            seen.append(row)

    trainer.callbacks.append(Look())
    # No evaluation falls due at the update that decides, so that one is asked for.
    trainer.eval_every = 100
    monkeypatch.setattr(trainer, "test", test)
    monkeypatch.setattr(trainer.algorithm, "begin", look)
    assert trainer.extra_updates == SCOUTED + 3 * STARTED
    summary = trainer.train()
    assert len(seen) == UPDATES + SCOUTED + 3 * STARTED
    plain_run = trainer_of(tmp_path / "plain", alone(start_fraction=0.0))
    early = []

    class Early(Callback):
        def on_update_end(self, trainer, row):
            early.append(weights(trainer.algorithm.policy))

    plain_run.callbacks.append(Early())
    plain_run.train()
    run = early[SCOUTED + STARTED - 1]
    expected = [run, kept[0], kept[second], kept[best] if best else run]
    assert all(map(same, begun, expected))
    # Without a better start it is the run that it would have been.
    assert same(weights(policy), early[-1]) == (best == 0)
    assert len(begun) == 4  # the last is the run itself
    assert summary["env_steps"] == len(seen) * 8 * (
        5 + 2 * 3
    )  # all of them are counted, also simulated ones
    rows = trainer.runs[0].folder.read_metrics()
    assert [row["update"] for row in rows] == list(range(1, UPDATES + 1))
    preferred = {row.get("preferred_action") for row in rows[:STARTED]}
    assert len(preferred) == 1
    assert (preferred == {-1}) == (best == 0)
    assert not any(row.get("preferred_action") for row in rows[STARTED:])
    assert not trainer.algorithm.policy.network.preference.any()


def test_a_run_that_was_interrupted_while_choosing_ends_where_it_would_have(tmp_path):
    whole = trainer_of(tmp_path / "whole", alone())
    whole.train()

    class Fall(Callback):
        def __init__(self, after):
            self.left = after

        def on_update_end(self, trainer, row):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    for after in (1, SCOUTED + 2 * STARTED + 2, SCOUTED + 4 * STARTED + 3):
        place = tmp_path / str(after)
        with pytest.raises(KeyboardInterrupt):
            trainer_of(place, alone(), callbacks=[Fall(after)]).train()
        again = trainer_of(place, alone())
        again.resume()
        again.train()
        assert same(weights(whole.algorithm.policy), weights(again.algorithm.policy))
        ours, theirs = (
            [{**row, "wall_seconds": 0} for row in run.runs[0].folder.read_metrics()]
            for run in (whole, again)
        )
        assert ours == theirs


def test_seeds_together_scout_and_choose_as_each_alone(tmp_path):
    seeds = (0, 1)
    envs, policies, critics = zip(*(parts(seed, Bath) for seed in seeds), strict=True)
    together = HPO(
        ReplicatedEnv(envs), replicate(policies), replicate(critics), seed=seeds, **settings()
    )
    trainer = trainer_of(tmp_path, together, seeds)
    trainer.train()
    for seed in seeds:
        single = trainer_of(tmp_path / f"alone{seed}", alone(seed, Bath))
        single.train()
        ours, theirs = together.policy.members[seed].state_dict(), single.algorithm.policy
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
        rows = [
            run.folder.read_metrics()[0]["preferred_action"]
            for run in (trainer.runs[seed], single.runs[0])
        ]
        assert rows[0] == rows[1]
    shifts = together.policy.network.observations.shift
    assert shifts.shape == (2, 1)
    assert shifts[0] != shifts[1]


@pytest.mark.parametrize("kind", [HPO, PPO])
def test_scouting_measures_what_a_policy_sees_and_changes_nothing_else(tmp_path, kind):
    more = {**settings(), "start_fraction": 0.0} if kind is HPO else {"unroll_length": 5}
    algorithm = kind(*parts(0, Bath, scale=0.1), seed=0, **more)
    scale = algorithm.policy.network.observations
    trainer, seen, started = trainer_of(tmp_path, algorithm), [], []
    collect = algorithm.collector.collect

    def collected():
        if len(seen) in (0, SCOUTED):
            started.append(weights(algorithm.policy))
        return collect()

    class Look(Callback):
        def on_update_end(self, trainer, row):
            seen.append(algorithm.last_batch["observation"])
            if len(seen) == SCOUTED + 1:
                raise StopTraining

    algorithm.collector.collect = collected

    trainer.callbacks.append(Look())
    trainer.train()
    assert scale.shift == seen[SCOUTED - 1].median()
    assert 0.1 < float(scale.scale) < 1.0
    assert torch.equal(scale.shift, algorithm.critic.module[0].shift)
    assert len(started) == 2
    names = [name for name in started[0] if "observations" not in name]
    assert all(torch.equal(started[0][name], started[1][name]) for name in names)


def test_a_start_that_runs_away_is_out(tmp_path, monkeypatch):
    algorithm = alone()
    update, begin, spoilt = algorithm.update, algorithm.begin, set()

    def begun(start):
        algorithm.start = start
        return begin(start)

    def updated(batch):
        if getattr(algorithm, "start", None) in spoilt:
            raise NonFiniteError("A reward is not finite.")
        return update(batch)

    monkeypatch.setattr(algorithm, "begin", begun)
    monkeypatch.setattr(algorithm, "update", updated)
    spoilt |= {1}
    trainer_of(tmp_path / "one", algorithm).train()
    spoilt |= {0, 2}
    with pytest.raises(NonFiniteError, match="A reward is not finite"):
        trainer_of(tmp_path / "all", algorithm).train()


def test_short_runs_and_other_algorithms_have_one_start():
    algorithm = alone()
    assert algorithm.starts(UPDATES) == (3, STARTED)
    assert algorithm.starts(UPDATES - 3) == (1, 0)
    assert algorithm.scouting(UPDATES - 1) == 0
    assert alone(branch_steps=0).starts(UPDATES) == (1, 0)
    assert alone(start_fraction=0.0).starts(UPDATES) == (1, 0)
    env, policy, critic = parts(0, scale=0.1)
    assert PPO(env, policy, critic).starts(500) == (1, 0)
    assert HPO(env, policy, critic).scouting(500) == SCOUTED
    blank = HybridPolicy.for_env(env, find_scales=False)
    fixed = HPO(env, blank, make_value_network(env, find_scales=False))
    assert fixed.scouting(500) == 0


def test_what_a_policy_that_runs_away_sees_is_no_scale():
    policy = parts(0, Bath)[1]
    scale = policy.network.observations
    wide, narrow = 200.0 * torch.randn(8, 30, 1), 0.01 * torch.randn(8, 30, 1)
    scale.measure(wide)
    assert (scale.shift, scale.scale) == (0.0, 1.0)
    scale.measure(narrow + 3.0)
    assert abs(float(scale.shift) - 3.0) < 0.01
    assert 0.005 < float(scale.scale) < 0.02
    # In the units of then, the same is what it should be.
    before = scale.scale.clone()
    scale.measure(narrow + 3.0)
    assert torch.equal(scale.scale, before)
