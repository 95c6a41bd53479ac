"""Scales by themselves: units of actions and observations that a simulation finds, and warnings."""

import copy

import pytest
import torch
from tensordict import TensorDict

from hpo_torchrl.algorithms import HPO
from hpo_torchrl.envs import DifferentiableEnv, ReplicatedEnv
from hpo_torchrl.modules import HybridPolicy, make_q_network, make_value_network, replicate
from hpo_torchrl.modules.scales import ObservationScale, scales_of
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.reporting import format_summary
from hpo_torchrl.training import Evaluation, Trainer
from hpo_torchrl.training.callbacks import unused_actions


class Aim(DifferentiableEnv):
    """Each step is by itself: u is to be 1.5 times ``size`` plus a part of the target."""

    def __init__(self, size=1.0, seen=1.0, offset=0.0, worth=1.0, bounds=(0.0, None), **others):
        self.size, self.seen, self.offset, self.worth = size, seen, offset, worth
        shapes = {"target": (1,)}
        more = {"observation_dim": 1, "noise_shape": (1,), "continuous_bounds": bounds} | others
        super().__init__(num_discrete=2, continuous_dim=1, state_shapes=shapes, **more)

    def dynamics(self, state, action, noise):
        miss = (action["continuous"] / self.size - 1.5 - 0.2 * state["target"]).squeeze(-1)
        return {"target": noise}, -self.worth * (miss.square() + 0.1 * action["discrete"])

    def observe(self, state):
        return self.seen * state["target"] + self.offset

    def initial_state(self):
        return {"target": self._draw(torch.randn, (*self.batch_size, 1))}

    def draw_noise(self, num_steps, state):
        return self._draw(torch.randn, (*self.batch_size, num_steps, 1))


def aim(**arguments):
    return Aim(batch_size=32, seed=0, **arguments)


def learner(env, seed=0, **settings):
    torch.manual_seed(seed)
    policy = HybridPolicy.for_env(env, hidden=[16])
    return HPO(env, policy, make_value_network(env, hidden=[16]), seed=seed, **settings)


def cost_after(env, updates=60):
    hpo = learner(env, unroll_length=10, learning_rate=0.02, branch_steps=0)
    for update in range(updates):
        hpo.anneal(update / updates)
        hpo.iterate()
    return Evaluation(copy.deepcopy(env), num_steps=50, seed=1).run(hpo.policy).mean / env.worth


@pytest.mark.parametrize("bounds", [(0.0, None), (None, 0.0), (None, None)], ids=str)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_unit_is_found_within_a_factor_of_three(bounds, size):
    sign = -1.0 if bounds == (None, 0.0) else 1.0
    found = float(scales_of(aim(size=sign * size, bounds=bounds)).action)
    assert size / 3 < found < 3 * size


def test_a_right_unit_stays_and_one_wrong_by_ten_does_not():
    stock = {"lead_time": 2, "initial_state": "random", "batch_size": 64}
    for factor in (1.0, 10.0, 0.1):
        env = InventoryEnv(fixed_cost_per_item=64.0, **stock)
        env.action_scale *= factor
        found = float(scales_of(env).action)
        assert found == 40.0 if factor == 1.0 else 40 / 3 < found < 120
        policy = HybridPolicy.for_env(env)
        assert float(policy.network.action_scale) == found == float(make_q_network(env).module.unit)
        assert float(HybridPolicy.for_env(env, find_scales=False).network.action_scale) == float(
            env.action_scale
        )


def test_what_tells_nothing_leaves_the_unit():
    class Idle(Aim):
        def dynamics(self, state, action, noise):
            return {"target": noise}, super().dynamics(state, action, noise)[1].mul(0.0)

    class Faulty(Aim):
        def dynamics(self, state, action, noise):
            raise ValueError("no equations")

    assert float(scales_of(Idle(batch_size=8, action_scale=7.0)).action) == 7.0
    assert scales_of(Faulty(batch_size=8)) is None
    assert float(HybridPolicy.for_env(Faulty(batch_size=8)).network.action_scale) == 1.0
    # Between two bounds the unit is one of change alone.
    assert [
        float(scales_of(aim(bounds=(-4.0, 4.0), action_scale=c)).action) for c in (0.1, 2.0, 50.0)
    ] == [1.0, 2.0, 4.0]


def test_finding_scales_draws_from_no_generator_and_depends_on_none():
    env, other = aim(size=50.0), aim(size=50.0)
    other.set_seed(5)
    before = env.rng.get_state(), torch.get_rng_state()
    assert scales_of(env).action == scales_of(other).action
    assert torch.equal(env.rng.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_observations_of_unusual_size_are_standardised():
    def seen(**arguments):
        env = aim(**arguments)
        policy, critic = HybridPolicy.for_env(env), make_value_network(env)
        return env, policy.network.observations, critic.module[0]

    env, ours, critics = seen()
    at = env.reset()["observation"]
    assert torch.equal(ours(at), at)
    for factor, offset in ((100.0, 0.0), (1e-3, 0.0), (1.0, 1e4), (100.0, -1e5)):
        env, ours, critics = seen(seen=factor, offset=offset)
        at = ours(env.reset()["observation"])
        assert 0.7 < at.std() < 1.3
        assert at.mean().abs() < 0.5
        assert torch.equal(ours.scale, critics.scale)
    # A constant is no division by zero, and one NaN spoils nothing.
    scale = ObservationScale(1)
    scale.use(scales_of(aim(seen=0.0, offset=2024.0)), "observation")
    assert scale(torch.tensor([2024.0])) == 0
    # In single precision the difference is taken first.
    env, ours, _ = seen(offset=1e6)
    near = torch.tensor([1e6, 1e6 + 0.5, 1e6 + 1.0])[:, None]
    assert (ours(near).diff(dim=0) * ours.scale - 0.5).abs().max() < 1e-6


def test_scales_are_saved_with_the_policy_and_used_by_all_ways_of_calling_it():
    env = aim(size=30.0, seen=100.0, offset=500.0)
    policy, blank = HybridPolicy.for_env(env), HybridPolicy.for_env(env, find_scales=False)
    blank.load_state_dict(policy.state_dict())
    td = env.reset()
    at = td["observation"]
    for mine, its in zip(policy.network(at)[:2], blank.network(at)[:2], strict=True):
        assert torch.equal(mine, its)
    logits, loc, _ = policy.network(at)
    again, mean, _ = policy.network.sampler()(at)
    assert torch.equal(logits, again)
    assert torch.equal(loc, mean)
    assert torch.equal(loc, policy.network.branches(at)[0])
    assert torch.equal(logits, policy.network.logits(at))


def test_seeds_together_have_the_scales_of_each_alone():
    envs = [aim(size=30.0, seen=100.0, offset=500.0) for _ in range(2)]
    for seed, env in enumerate(envs):
        env.set_seed(seed)
    policies = [HybridPolicy.for_env(env) for env in envs]
    at = torch.stack([env.reset()["observation"] for env in envs])
    alone = torch.stack([p.network(own)[1] for p, own in zip(policies, at, strict=True)])
    together = replicate(policies)
    torch.testing.assert_close(together.network(at)[1], alone)
    critics = [make_value_network(env) for env in envs]
    hpo = HPO(
        ReplicatedEnv(envs), together, replicate(critics), seed=[0, 1], unroll_length=4,
        checkpoint_steps=2,
    )  # fmt: skip
    assert len(hpo.iterate()) == 2


def test_a_run_is_the_same_whatever_the_units():
    plain = cost_after(aim())
    assert plain < 0.06
    for units in (
        {"worth": 1e3, "seen": 100.0, "action_scale": 10.0},
        {"worth": 1e-3, "offset": 1e4, "action_scale": 0.1},
        {"size": 1e4},
    ):
        assert cost_after(aim(**units)) < plain + 0.015, units


def test_actions_that_are_hardly_used_are_named(tmp_path):
    env = aim(bounds=(0.0, 2.0))
    action = {"discrete": torch.zeros(4000, dtype=torch.int64), "continuous": torch.rand(4000, 1)}
    batch = TensorDict({"action": TensorDict(action, [4000])}, [4000])
    (never,) = unused_actions(batch, env)
    assert never.startswith("Discrete action 1 was taken in 0.00%")
    action["discrete"][:50] = 1
    assert unused_actions(batch, env) == []
    action["continuous"][:-2] = 2.0
    (stuck,) = unused_actions(batch, env)
    assert stuck.startswith("Continuous action 0 was at its upper bound, 2, in 99.95%")
    # What was never allowed is not missed.
    action["discrete"][:] = 0
    batch["action_mask"] = torch.tensor([True, False]).expand(4000, 2)
    assert len(unused_actions(batch, env)) == 1
    hpo = learner(env, unroll_length=4)
    with torch.no_grad():
        hpo.policy.network.discrete[-1].bias.copy_(torch.tensor([50.0, -50.0]))
    tests = {"test": Evaluation(aim(bounds=(0.0, 2.0)), num_steps=3, seed=0)}
    how = {"tests": tests, "primary": "test", "config": {"seed": 0}, "progress": False}
    summary = Trainer(hpo, num_updates=1, run_dir=tmp_path, **how).train()
    assert "action 1 was taken in 0.00%" in summary["warnings"][0]
    assert "warning          Discrete action 1" in format_summary(summary)
