"""Rollouts whose graph is built again backwards, against those that keep it."""

from __future__ import annotations

import pytest
import torch
from test_collectors import Impatient, policy_for
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.algorithms import HPO, PPO, GumbelSoftmax
from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.envs import hybridize
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.inventory.order_costs import FixedCost

STEPS = 12
CASES = {
    "inventory": lambda **kw: InventoryEnv(num_items=3, initial_state="random", **kw),
    "resets": lambda **kw: InventoryEnv(initial_state="random", horizon=5, **kw),
    "episode ends": lambda **kw: SwitchedLQREnv.from_recipe(3, 2, horizon=STEPS, **kw),
    "lost sales": lambda **kw: InventoryEnv(lead_time=0, lost_sales=True, **kw),
}


def make(case, **network):
    torch.manual_seed(3)
    env = CASES[case](batch_size=6, dtype=torch.float64, seed=0)
    return env, policy_for(env, **network)


def roll(env, policy, checkpoint_steps=None, start=None, **arguments):
    torch.manual_seed(1)
    env.set_seed(5)
    start = env.reset() if start is None else start
    return differentiable_rollout(
        env, policy, STEPS, tensordict=start, checkpoint_steps=checkpoint_steps, **arguments
    )


def scalar(rollout):
    """A number to which every differentiable entry of every step contributes in its own way."""
    generator, total = torch.Generator().manual_seed(2), 0.0
    for key in sorted(map(str, rollout.keys(True, True))):
        value = rollout[eval(key) if key.startswith("(") else key]
        if value.is_floating_point() and "log_prob" not in key:
            weight = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            total = total + (weight * value.sin()).sum()
    return total


@pytest.mark.parametrize(("size", "scale"), [(1, 0.3), (5, 0.0), (5, 0.3), (100, 0.3)])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_whole_graph(case, size, scale):
    env, policy = make(case, scale=scale, learn_scale=scale > 0)
    parameters = list(policy.parameters())
    found = []
    for steps in (None, size):
        rollout = roll(env, policy, steps, discount=0.9)
        gradients = torch.autograd.grad(scalar(rollout), parameters, allow_unused=True)
        found.append((rollout, gradients, torch.rand(3)))
    (plain, one, after), (again, other, after_again) = found
    assert torch.equal(after, after_again)  # the generator goes on as if nothing was done twice
    assert set(plain.keys(True, True)) == set(again.keys(True, True))
    assert all(torch.equal(plain[key], again[key]) for key in plain.keys(True, True))
    assert any(gradient is not None and gradient.abs().max() > 1 for gradient in one)
    for a, b in zip(one, other, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradients_reach_a_start_that_has_a_graph():
    env, policy = make("inventory")
    start, found = env.reset(), []
    for size in (None, 5):
        inventory = start["inventory"].clone().requires_grad_()
        begin = env.reset(start.clone().set("inventory", inventory), set_state=True)
        rollout = roll(env, policy, size, begin, discount=0.9)
        found.append(torch.autograd.grad(scalar(rollout), inventory)[0])
    assert found[0].abs().max() > 1
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@set_exploration_type(ExplorationType.DETERMINISTIC)
def test_a_deterministic_rollout_is_computed_again_as_it_was():
    env, policy = make("inventory", scale=0.3)
    weight = policy.network.skip.weight
    found = [torch.autograd.grad(scalar(roll(env, policy, s)), weight)[0] for s in (None, 5)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_gradients_reach_what_an_environment_learns():
    env, policy = make("inventory")
    plain = InventoryEnv(features=[FixedCost(9.0)], hybrid=False, batch_size=6, dtype=torch.float64)
    outer = hybridize(plain)
    outer.original.holding_cost.requires_grad_()
    env.shift = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    env.observe = lambda state: InventoryEnv.observe(env, state) + env.shift.repeat(2)
    for one, learned, acting in (
        (env, env.shift, policy),
        (outer, outer.original.holding_cost, policy_for(outer)),
    ):
        found = [
            torch.autograd.grad(scalar(roll(one, acting, size)), learned)[0] for size in (None, 5)
        ]
        assert found[0].abs().max() > 1
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_what_is_kept_for_the_gradient_is_hardly_more_than_the_data():
    env, _ = make("inventory")
    policy = HybridPolicy.for_env(env)

    def held(size):
        found = {}
        with saved_tensors_hooks(lambda x: found.setdefault(x.data_ptr(), x), lambda x: x):
            rollout = roll(env, policy, size)
        data = {id(v.untyped_storage()): v.untyped_storage() for v in rollout.values(True, True)}
        return sum(x.nbytes for x in found.values()), sum(s.nbytes() for s in data.values())

    whole, _ = held(None)
    part, data = held(4)
    assert part < 1.1 * data < 0.2 * whole


@pytest.mark.parametrize("algorithm", [HPO, GumbelSoftmax])
def test_training_is_the_same(algorithm):
    def train(size):
        env, policy = make("inventory")
        critic = make_value_network(env, hidden=(8,))
        learner = algorithm(env, policy, critic, unroll_length=STEPS, checkpoint_steps=size)
        torch.manual_seed(7)
        for _ in range(3):
            learner.iterate()
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    torch.testing.assert_close(train(None), train(5), rtol=1e-7, atol=1e-9)


def test_without_gradients_it_is_an_ordinary_rollout():
    env, policy = make("resets")
    with torch.no_grad():
        rollout = roll(env, policy, 5)
    assert not any(value.requires_grad for value in rollout.values(True, True))


def test_parameters_that_have_changed_are_refused():
    env, policy = make("inventory")
    rollout = roll(env, policy, 5)
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="parameters have changed since the rollout"):
        scalar(rollout).backward()


def test_bad_arguments_are_refused():
    env, policy = make("inventory")
    with pytest.raises(ValueError, match="checkpoint_steps must be an integer >= 1"):
        roll(env, policy, 0)
    with pytest.raises(ValueError, match="route='general'; leave one out"):
        roll(env, policy, 5, route="general")
    with pytest.raises(TypeError, match="checkpoint_steps needs a DifferentiableEnv"):
        differentiable_rollout(
            env, HybridPolicy(policy.network, observation_key="x"), 3, checkpoint_steps=2
        )
    with pytest.raises(TypeError, match="Impatient has an advance of its own"):
        roll(Impatient(batch_size=2), policy_for(Impatient(batch_size=2)), 5)
    with pytest.raises(ValueError, match="PPO rolls out without a graph: leave checkpoint_steps=5"):
        PPO(env, make("inventory", scale=0.3)[1], make_value_network(env), checkpoint_steps=5)
