"""Workers of Ray: in this process by a stand-in, and one training by Ray itself."""

import copy
import pickle
import sys
import threading

import gym_worlds
import pytest
import torch

from hpo_torchrl.algorithms import PPO
from hpo_torchrl.collectors import RayCollector
from hpo_torchrl.collectors.ray_workers import Worker
from hpo_torchrl.core.extras import MissingExtraError
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.envs.gym import GymHybridEnv
from hpo_torchrl.experiments.build import build_algorithm
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv

WORKERS, STEPS = 2, 5


class InProcess:
    """TorchRL's ``RayCollector``, as far as it is used, without processes."""

    def __init__(self, create_env_fn, policy, frames_per_batch, collector_kwargs, **others):
        assert others["sync"]
        self.policy, share = policy, frames_per_batch // len(create_env_fn)
        self.workers = [
            Worker(*pickle.loads(pickle.dumps((env, policy))), frames_per_batch=share, **own)
            for env, own in zip(create_env_fn, collector_kwargs, strict=True)
        ]

    def map_fn(self, name, arguments):
        for worker, own in zip(self.workers, arguments, strict=True):
            getattr(worker, name)(*own)

    def update_policy_weights_(self):
        for worker in self.workers:
            worker._wrapped_policy.load_state_dict(self.policy.state_dict())

    def __iter__(self):
        while True:
            yield torch.stack([worker.next() for worker in self.workers])

    def shutdown(self):
        self.workers = []


def within(collector):
    """Let a collector have its workers in this process."""
    vars(collector)["_collector"] = InProcess(**collector._arguments())
    return collector


def make_collector(seed=3, env=None, **how):
    env = env or InventoryEnv(batch_size=3, initial_state="random", seed=0)
    policy = HybridPolicy.for_env(env, scale=0.3)
    frames = WORKERS * env.batch_size[0] * STEPS
    how = {"workers": WORKERS, "frames_per_batch": frames, "randomness": Randomness(seed)} | how
    return RayCollector(env, policy, **how)


def scored(policy, batch):
    """Return the log-probabilities that a policy gives to the actions of a batch."""
    with torch.no_grad():
        return policy.get_dist(batch.clone()).log_prob(batch["action"])


def test_workers_differ_and_a_seed_repeats_them():
    torch.manual_seed(0)
    first = within(make_collector()).collect()
    torch.manual_seed(0)
    again, other = within(make_collector()).collect(), within(make_collector(seed=4)).collect()
    assert first.shape == (2 * 3, STEPS)
    assert not first.requires_grad
    for key in ("observation", ("action", "continuous"), ("next", "reward")):
        own, theirs = first[key][:3], first[key][3:]
        assert not (own == theirs).flatten(1).all(1).any(), key
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])


@pytest.mark.parametrize(
    ("fraction", "anew"), [(0.0, False), (0.5, False), (1.0, False), (0, True)]
)
def test_restarts_happen_in_the_workers_and_are_known_here(fraction, anew):
    collector = within(make_collector(reset_fraction=fraction, reset_at_each_iter=anew))
    begun = []
    for number in range(4):
        batch = collector.collect()
        steps = batch["step"][..., 0]
        assert torch.equal(steps, steps[:, :1] + torch.arange(STEPS))
        assert torch.equal(collector.running["steps"], steps[:, -1] + 1)
        assert collector.frames == (number + 1) * batch.numel()
        begun.append(steps[:, 0] == 0)
    assert begun[0].all()
    later = torch.stack(begun[1:]).double().mean().item()
    assert later == float(anew or fraction) if fraction != 0.5 else 0.0 < later < 1.0


def test_a_state_holds_no_episodes_but_frames_and_random_numbers():
    collector = within(make_collector())
    collector.collect()
    state = copy.deepcopy(collector.state_dict())
    assert state["running"] is None
    second = collector.collect()
    assert second["step"].min() == STEPS
    for going_on in (collector, within(make_collector())):
        going_on.load_state_dict(state)
        batch = going_on.collect()
        assert batch["step"][:, 0].max() == 0
        assert going_on.frames == 2 * batch.numel()


def test_episodes_that_end_are_followed_across_workers():
    torch.manual_seed(0)
    env = GymHybridEnv("gym_worlds:Moving-v0", 3, coordinates=gym_worlds.COORDINATES, seed=0)
    collector, ended = within(make_collector(env=env)), 0
    for _ in range(60):
        batch = collector.collect()
        ended += len(collector.ended.steps)
        over = batch["next", "done"][..., 0].any(1)
        assert set(collector.ended.instance.tolist()) == set(over.nonzero()[:, 0].tolist())
    assert ended > 0


def algorithm(*words, seeds=None):
    config = compose_config(["algorithm=ppo", "collect.batch_size=8", *words])
    return build_algorithm(config, seeds)


def test_the_command_shares_the_instances():
    found = algorithm("collect.ray_workers=2", "collect.unroll_length=5")
    assert found.env.batch_size == (4,)
    assert found.collector.batch_size == (8,)
    assert found.collector.frames_per_batch == 40
    assert found.collector.num_steps == 5


@pytest.mark.parametrize(
    ("words", "seeds", "told"),
    [
        (["collect.ray_workers=3"], None, "multiple of collect.ray_workers=3"),
        (["collect.ray_workers=0"], None, "ray_workers"),
        (["collect.ray_workers=2", "algorithm=hpo"], None, "algorithm=hpo"),
        (["collect.ray_workers=2", "algorithm=da_ac"], None, "algorithm=da_ac"),
        (["collect.ray_workers=2"], [0, 1], "num_seeds"),
        (["collect.ray_workers=2", "collect.compile=inductor"], None, "compile='inductor'"),
    ],
)
def test_what_does_not_go_together_is_named(words, seeds, told):
    with pytest.raises(ValueError, match=told):
        algorithm(*words, seeds=seeds)


def test_ranks_are_refused(monkeypatch):
    monkeypatch.setattr("hpo_torchrl.algorithms.ppo.ranks.active", lambda: True)
    with pytest.raises(ValueError, match="cannot be combined with ranks"):
        algorithm("collect.ray_workers=2")


def test_a_device_that_workers_lack_is_refused(monkeypatch):
    monkeypatch.setattr(RayCollector, "device", torch.device("meta"))
    with pytest.raises(ValueError, match="device=meta"):
        make_collector()


def test_ray_is_missed_by_the_first_batch(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    collector = make_collector()  # a policy that Ray has trained is loaded without it
    with pytest.raises(MissingExtraError, match=r"hpo_torchrl\[ray\]"):
        collector.collect()


def make_ppo():
    torch.manual_seed(0)
    env = InventoryEnv(batch_size=3, initial_state="random", seed=0)
    policy = HybridPolicy.for_env(env, scale=0.3, learn_scale=True)
    settings = {"seed": 3, "unroll_length": STEPS, "ray_workers": WORKERS}
    return PPO(env, policy, make_value_network(env), **settings)


def check_training(ppo):
    """Check in two updates that the newest policy collects, and that workers differ."""
    for update in range(2):
        ppo.anneal(update / 2)
        older = copy.deepcopy(ppo.policy)
        assert ppo.iterate()["kl"] != 0.0
        batch = ppo.collector.collect()
        written, close = batch["action_log_prob"], {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(written, scored(ppo.policy, batch), **close)
        assert not torch.allclose(written, scored(older, batch), **close)
        assert not torch.equal(*batch["action", "continuous"].chunk(WORKERS))
    ppo.release()


def test_the_newest_policy_collects():
    ppo = make_ppo()
    within(ppo.collector)
    check_training(ppo)
    assert "_collector" not in vars(ppo.collector)


def test_a_training_by_ray_itself():
    ray = pytest.importorskip("ray")
    collector = make_collector()
    collector.env.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"InventoryEnv cannot be sent.*lock"):
        collector.collect()
    assert not ray.is_initialized()

    like, ppo = make_ppo(), make_ppo()
    there, here = ppo.collector.collect(), within(like.collector).collect()
    for key in ("observation", ("next", "reward")):
        torch.testing.assert_close(there[key], here[key])
    check_training(ppo)
    assert not ray.is_initialized()
