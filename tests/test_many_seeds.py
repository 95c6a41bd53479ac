"""Many seeds at once: each comes to what it comes to alone."""

from __future__ import annotations

import copy

import pytest
import torch

from hpo_torchrl.algorithms import DDPG, HPO, PPO
from hpo_torchrl.algorithms.base import NonFiniteError
from hpo_torchrl.envs import ReplicatedEnv
from hpo_torchrl.modules import HybridPolicy, make_value_network, replicate
from hpo_torchrl.objectives import CrossTermWeight
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.inventory.features import ItemFixedCost

SEEDS, UPDATES, DOUBLE = [3, 11, 4], 5, torch.float64


def inventory(seed, **changes):
    changes = {"batch_size": 8, "initial_state": "random", "dtype": DOUBLE} | changes
    return InventoryEnv(2, seed=seed, **changes)


def heads(seed):
    return InventoryEnv(
        features=[ItemFixedCost(5.0)], num_items=3, batch_size=8, dtype=DOUBLE, seed=seed
    )


def episodes(seed):
    return SwitchedLQREnv.from_recipe(4, 2, batch_size=8, seed=seed, dtype=DOUBLE)


class Masked(InventoryEnv):
    """Ordering is allowed only below a position of 15."""

    has_action_mask = True

    def allowed(self, state):
        low = state["inventory"].sum((-1, -2)) < 30.0
        return torch.stack([torch.ones_like(low), low], -1)


def masked(seed):
    return Masked(2, seed=seed, batch_size=8, initial_state="random", dtype=DOUBLE)


def member(make_env, seed, **network):
    env = make_env(seed)
    torch.manual_seed(seed)
    policy = HybridPolicy.for_env(env, **{"hidden": [8], **network})
    return env, policy, make_value_network(env, hidden=[8])


def together(algorithm, make_env, network, **arguments):
    envs, policies, critics = zip(*(member(make_env, s, **network) for s in SEEDS), strict=True)
    parts = ReplicatedEnv(list(envs)), replicate(policies), replicate(critics)
    return algorithm(*parts, seed=SEEDS, **arguments)


def alone(algorithm, make_env, network, seed, **arguments):
    return algorithm(*member(make_env, seed, **network), seed=seed, **arguments)


def flat(value, prefix=""):
    """Every number in nested state, by path."""
    if hasattr(value, "items"):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    else:
        return {prefix: value}
    found = {}
    for key, inner in pairs:
        found |= flat(inner, f"{prefix}/{key}")
    return found


def assert_same(found, expected):
    found, expected = flat(found), flat(expected)
    assert list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor) and value.dtype == torch.uint8:  # a generator's state
            assert torch.equal(found[name], value), name
        elif isinstance(value, torch.Tensor | float):
            torch.testing.assert_close(
                torch.as_tensor(found[name]), torch.as_tensor(value), rtol=1e-7, atol=1e-9, msg=name
            )
        else:
            assert found[name] == value, name


SCALE = {"scale": 0.2, "learn_scale": True}
CASES = {
    "HPO": (HPO, inventory, {}, {"target_kl": 1e-4, "epochs": 3}),
    "HPO, adaptive, learned scale": (HPO, inventory, SCALE, {"cross_term": "adaptive"}),
    "HPO, heads": (HPO, heads, {}, {"reset_fraction": 0.4}),
    "HPO, masks": (HPO, masked, {"shared_trunk": True}, {"reset_fraction": 0.2}),
    "HPO, episodes": (HPO, episodes, {}, {"unroll_length": 7}),
    "HPO, ends within a rollout": (HPO, lambda s: inventory(s, horizon=9), {}, {}),
    "PPO": (PPO, inventory, SCALE, {"target_kl": 0.002, "scale_entropy_coeff": 0.1}),
    "PPO, heads": (PPO, heads, {"scale": 0.2}, {"reset_fraction_final": 0.3}),
    "PPO, episodes": (PPO, episodes, SCALE, {"unroll_length": 7}),
}


@pytest.mark.parametrize("case", CASES)
def test_seeds_together_are_each_alone(case):
    algorithm, make_env, network, arguments = CASES[case]
    arguments = {"unroll_length": 6, "learning_rate": 0.02} | arguments
    many = together(algorithm, make_env, network, **arguments)
    single = [alone(algorithm, make_env, network, s, **arguments) for s in SEEDS]
    stopped = set()
    for update in range(UPDATES):
        for learner in (many, *single):
            learner.anneal(update / 20)
        rows = many.iterate()
        for row, learner in zip(rows, single, strict=True):
            assert_same(row, learner.iterate())
        stopped |= {row["epochs"] for row in rows}
    assert len(stopped) > 1 or case not in ("HPO", "PPO")  # some seeds stop, others go on
    for at, learner in enumerate(single):
        found, expected = many.components(at), learner.components()
        assert list(found) == list(expected)
        for name, part in expected.items():
            assert_same(found[name].state_dict(), part.state_dict())


@pytest.mark.parametrize("case", ["HPO, adaptive, learned scale", "PPO"])
def test_a_seed_goes_on_alone_and_alone_goes_on_together(case):
    algorithm, make_env, network, arguments = CASES[case]
    first, second = (together(algorithm, make_env, network, **arguments) for _ in range(2))
    single = [alone(algorithm, make_env, network, s, **arguments) for s in SEEDS]
    first.anneal(0.0)
    first.iterate()
    for at, learner in enumerate(single):
        for name, part in first.components(at).items():
            # Copied, as a file would: optimizers share the tensors that they load.
            learner.components()[name].load_state_dict(copy.deepcopy(part.state_dict()))
            second.components(at)[name].load_state_dict(copy.deepcopy(part.state_dict()))
    for learner in (first, second, *single):
        learner.anneal(0.1)
    expected = first.iterate()
    assert_same(second.iterate(), expected)
    assert_same([learner.iterate() for learner in single], expected)


def test_the_seed_that_is_not_finite_is_named():
    many = together(HPO, inventory, {}, unroll_length=4)
    many.anneal(0.0)
    with torch.no_grad():
        many.critic.members[1].module[-1].weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"^Seed 11: .* is not finite") as caught:
        many.iterate()
    assert caught.value.seed_index == 1


def test_seeds_and_networks_must_agree():
    env, policy, critic = member(inventory, 0)
    with pytest.raises(ValueError, match=r"policy has num_seeds=None.*modules\.replicate"):
        HPO(env, policy, critic, seed=[0, 1])
    with pytest.raises(ValueError, match="num_seeds=3"):
        HPO(env, *(replicate([part] * 3) for part in (policy, critic)), seed=5)
    with pytest.raises(ValueError, match="DDPG trains one seed at a time"):
        together(DDPG, inventory, {"scale": 0.1})


def test_weights_of_the_cross_term_are_each_seeds_own():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(3, 4, dtype=DOUBLE))
    slopes = torch.randn(3, 6, 5, 4, dtype=DOUBLE)
    many = CrossTermWeight(num_seeds=3)
    many.observe((slopes * parameter[:, None, None]).sum(-1), [parameter])
    for at in range(3):
        own = CrossTermWeight()
        row = torch.nn.Parameter(parameter[at].detach())
        own.observe((slopes[at] * row).sum(-1), [row])
        torch.testing.assert_close(many.weight[at], own.weight)
