"""Many seeds as a leading axis: each collects and learns what it would alone."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from test_collectors import Impatient
from test_masks import Shuttle
from test_objectives import perturb
from torch import nn
from torchrl.envs.utils import ExplorationType

from hpo_torchrl.algorithms import DDPG, HPO, PPO
from hpo_torchrl.collectors import DifferentiableCollector, SampleCollector
from hpo_torchrl.core.finite import NonFiniteError
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.envs import ReplicatedEnv
from hpo_torchrl.modules import (
    HybridNetwork,
    HybridPolicy,
    make_q_network,
    make_value_network,
    replicate,
)
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.inventory.order_costs import ItemFixedCost

DOUBLE = torch.float64
SEEDS = [3, 11]


class OwnNetwork(nn.Module):
    """A network that nothing is known of: evaluated by vmap."""

    def __init__(self, observation_dim, num_discrete, continuous_dim, dtype, **others):
        super().__init__()
        self.net = nn.Linear(observation_dim, num_discrete * (1 + continuous_dim), dtype=dtype)
        self.shape = (num_discrete, continuous_dim)

    def forward(self, observation):
        answer = self.net(observation).tanh()
        loc = answer[..., self.shape[0] :].unflatten(-1, self.shape)
        return answer[..., : self.shape[0]], 5 * loc + 5, torch.full_like(loc[..., :1, :], 0.3)


def inventory(**arguments):
    given = {"num_items": 2, "initial_state": "random", "batch_size": 4, "dtype": DOUBLE}
    return InventoryEnv(**given | arguments)


COLLECTED = {
    "inventory, learned scale": (inventory, {"scale": 0.3, "learn_scale": True}),
    "resets": (lambda **kw: inventory(horizon=3, lost_sales=True, **kw), {"scale": 0.2}),
    "shared trunk": (
        lambda **kw: inventory(batch_size=(), **kw),
        {"shared_trunk": True, "activation": "tanh"},
    ),
    "episodes": (
        lambda **kw: SwitchedLQREnv.from_recipe(3, 2, horizon=7, batch_size=4, dtype=DOUBLE, **kw),
        {"scale": 0.3, "distribution": "squashed_normal", "products": 5, "homogeneous": True},
    ),
    "masks and heads": (
        lambda **kw: Shuttle(2, batch_size=5, dtype=DOUBLE, **kw),
        {"scale": 0.2, "learn_scale": True},
    ),
    "own network": (inventory, {"network": OwnNetwork}),
    "ends by itself": (lambda **kw: Impatient(batch_size=4, dtype=DOUBLE, **kw), {}),
}


def build(case, seed):
    make, network = COLLECTED[case]
    env = make(seed=seed)
    if case == "ends by itself":
        env.initial_state = lambda: InventoryEnv.initial_state(env)
    torch.manual_seed(seed)
    hidden = {} if "network" in network else {"hidden": (8, 8)}
    return env, perturb(HybridPolicy.for_env(env, **hidden, **network), 0.2)


def together(case):
    built = [build(case, seed) for seed in SEEDS]
    return ReplicatedEnv([env for env, _ in built]), replicate([policy for _, policy in built])


def close(one, other):
    assert set(one.keys(True, True)) == set(other.keys(True, True))
    for key in one.keys(True, True):
        torch.testing.assert_close(one[key], other[key], rtol=1e-9, atol=1e-9)


def gradients(batch, policy):
    parameters = list(policy.parameters())
    total = batch["next", "reward"].sum() + batch["next", "observation"].sin().sum()
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return [torch.zeros_like(p) if g is None else g for p, g in pairs]


@pytest.mark.parametrize("case", COLLECTED)
def test_a_seed_among_many_is_what_it_is_alone(case):
    settings = {"reset_fraction": 0.3, "discount": 0.9}
    if case != "ends by itself":
        settings["checkpoint_steps"] = 4

    def batches(env, policy, seeds):
        number = 7 * env.batch_size.numel()
        policy.randomness = Randomness(seeds)
        collector = DifferentiableCollector(env, policy, frames_per_batch=number, **settings)
        found = []
        for _ in range(2):
            batch = collector.collect()
            found.append((batch.detach(), gradients(batch, policy)))
        return found, collector

    many, collector = batches(*together(case), SEEDS)
    assert many[0][0].shape[0] == len(SEEDS)
    for at, seed in enumerate(SEEDS):
        env, policy = build(case, seed)
        alone, own = batches(env, policy, seed)
        for (batch, gradient), (expected, wanted) in zip(many, alone, strict=True):
            close(batch[at], expected)
            for g, w in zip(gradient, wanted, strict=True):
                torch.testing.assert_close(g[at], w, rtol=1e-8, atol=1e-8)
        one, other = collector.state(at).state_dict(), own.state_dict()
        assert one["frames"] == other["frames"]
        assert torch.equal(one["rng"], other["rng"])
        assert one["carried"].keys() == other["carried"].keys()
        for key, value in other["carried"].items():
            torch.testing.assert_close(one["carried"][key], value)


def test_torchrls_collector_draws_each_seed_from_its_own_stream():
    env, policy = together("masks and heads")
    collector = SampleCollector(
        env, policy, frames_per_batch=40, reset_fraction=0.3, randomness=Randomness(SEEDS)
    )
    found = [collector.collect() for _ in range(2)]
    for at, seed in enumerate(SEEDS):
        env, policy = build("masks and heads", seed)
        settings = {"reset_fraction": 0.3, "randomness": Randomness(seed)}
        own = SampleCollector(env, policy, frames_per_batch=20, **settings)
        for batch in found:
            close(batch[at], own.collect())


def test_a_shared_environment_gives_all_seeds_one_world():
    env = ReplicatedEnv(inventory(horizon=3, seed=0), 2)
    policies = [build("resets", seed)[1] for seed in (1, 2)]
    expected = []
    for policy in policies:
        alone = inventory(horizon=3, seed=0)
        alone.set_seed(5)
        expected.append(run(alone, policy))
    env.set_seed(5)
    found = run(env, replicate(policies))
    for at in range(2):
        close(found[at], expected[at])


def test_the_world_of_each_seed_follows_from_its_own_state():
    """A shared environment whose noise depends on what a policy did."""
    alone = inventory(batch_size=3, seed=0)
    alone.draw_noise = lambda num_steps, state: (
        state["inventory"][..., :1, 0, None] + torch.rand(3, num_steps, 2, generator=alone.rng)
    ).double()
    env, starts = ReplicatedEnv(alone, 2), [alone.reset() for _ in range(2)]
    before = alone.rng.get_state()
    found = env.sample_noise(4, torch.stack(starts))
    after = alone.rng.get_state()
    for at, start in enumerate(starts):
        alone.rng.set_state(before)
        assert torch.equal(found[at], alone.sample_noise(4, start))
        assert torch.equal(alone.rng.get_state(), after)


def run(env, policy):
    collector = DifferentiableCollector(
        env,
        policy,
        frames_per_batch=8 * env.batch_size.numel(),
        exploration_type=ExplorationType.DETERMINISTIC,
    )
    return collector.collect().detach()


def test_members_share_their_parameters_with_the_stack():
    policies = [build("resets", seed)[1] for seed in SEEDS]
    critics = [make_value_network(inventory(), hidden=(8,)) for _ in SEEDS]
    policy, critic = replicate(policies), replicate(critics)
    assert policy.members == tuple(policies)
    assert policy.num_seeds == critic.num_seeds == len(SEEDS)
    names = [dict(one.named_parameters()).keys() for one in (policy, policies[0])]
    assert list(names[0]) == list(names[1])
    groups = [one.parameter_groups() for one in (policy, policies[0])]
    assert [list(group) for group in groups[0].values()] == [list(g) for g in groups[1].values()]
    with torch.no_grad():
        for parameter in (*policy.parameters(), *critic.parameters()):
            parameter += torch.randn_like(parameter)
    x = torch.randn(len(SEEDS), 300, 4, dtype=DOUBLE)
    dist = policy.distribution(x)
    for at in range(len(SEEDS)):
        own = policies[at].distribution(x[at])
        torch.testing.assert_close(dist.loc[at], own.loc)
        torch.testing.assert_close(dist.logits[at], own.logits)
        torch.testing.assert_close(critic.module(x)[at], critics[at].module(x[at]))
    policies[1].load_state_dict(policies[0].state_dict())
    torch.testing.assert_close(policy.distribution(x).loc[1], policies[0].distribution(x[1]).loc)
    again = copy.deepcopy(policies[0])
    assert again.randomness is policies[0].randomness


def test_a_critic_of_actions_is_replicated_too():
    env = inventory(batch_size=5)
    critics = [perturb(make_q_network(env, hidden=(8,))) for _ in range(2)]
    data = env.reset().set("candidate", torch.rand(5, 2, dtype=DOUBLE))
    both = torch.stack([data, data])
    found = replicate(critics)(both)["action_value"]
    for at, critic in enumerate(critics):
        torch.testing.assert_close(found[at], critic(data.copy())["action_value"])


def test_randomness_is_that_of_each_seed():
    seeds = [3, 4, 11]
    many, alone = Randomness(seeds), [Randomness(seed) for seed in seeds]
    for draw in ("exponential", "normal", "uniform"):
        found = many.draw(draw, (3, 20, 2), dtype=DOUBLE)
        for at, one in enumerate(alone):
            assert torch.equal(found[at], one.draw(draw, (20, 2), dtype=DOUBLE))
    orders = many.permutation(9)
    assert all(torch.equal(orders[at], one.permutation(9)) for at, one in enumerate(alone))
    states = [many.state(at).state_dict() for at in range(3)]
    before = many.draw("normal", (3, 4))
    for at, state in enumerate(states):
        many.state(at).load_state_dict(state)
    assert torch.equal(many.draw("normal", (3, 4)), before)
    torch.manual_seed(1)
    found = Randomness().draw("normal", (3,))
    torch.manual_seed(1)
    assert torch.equal(found, torch.randn(3))
    with pytest.raises(ValueError, match=r"draw for 3 seeds .*got \(2, 3\)"):
        many.draw("normal", (2, 3))
    with pytest.raises(ValueError, match="at least one seed"):
        Randomness([])
    with pytest.raises(ValueError, match="needs an index below 3"):
        many.state()


def test_wrong_members_are_named():
    with pytest.raises(ValueError, match="at least one module"):
        replicate([])
    with pytest.raises(RuntimeError, match="size"):
        replicate([HybridPolicy(HybridNetwork(4, 2, n)) for n in (1, 2)])
    with pytest.raises(
        ValueError, match=r"batch size \(4,\) and InventoryEnv of batch size \(5,\)"
    ):
        ReplicatedEnv([inventory(), inventory(batch_size=5)])
    with pytest.raises(TypeError, match=r"envs .* must be DifferentiableEnvs, got"):
        ReplicatedEnv([build("resets", 1)[1]])


# -- learners ------------------------------------------------------------------------------------

LEARNERS = [3, 11, 4]  # with these some stop an update early and others go on


WORLDS = {
    "stock": functools.partial(InventoryEnv, 2, initial_state="random"),
    "heads": functools.partial(InventoryEnv, 3, features=[ItemFixedCost(5.0)]),
    "episodes": functools.partial(SwitchedLQREnv.from_recipe, 4, 2),
    "masks": Shuttle,
}


def member(world, seed, **network):
    env = WORLDS[world](batch_size=8, seed=seed, dtype=DOUBLE)
    torch.manual_seed(seed)
    policy = HybridPolicy.for_env(env, **{"hidden": [8], **network})
    return env, policy, make_value_network(env, hidden=[8])


def learners(algorithm, world, network, **arguments):
    envs, policies, critics = zip(*(member(world, s, **network) for s in LEARNERS), strict=True)
    parts = ReplicatedEnv(list(envs)), replicate(policies), replicate(critics)
    return algorithm(*parts, seed=LEARNERS, **arguments)


def alone(algorithm, world, network, **arguments):
    return [algorithm(*member(world, s, **network), seed=s, **arguments) for s in LEARNERS]


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
LEARNED = {
    "HPO": (HPO, "stock", {}, {"target_kl": 1e-4, "epochs": 3, "branch_steps": 0}),
    "HPO, branched": (HPO, "stock", {}, {"branch_steps": 4, "branch_fraction": 0.4}),
    "HPO, adaptive, learned scale": (HPO, "stock", SCALE, {"cross_term": "adaptive"}),
    "HPO, heads": (HPO, "heads", {}, {"reset_fraction": 0.4}),
    "HPO, masks": (HPO, "masks", {"shared_trunk": True}, {"reset_fraction": 0.2}),
    "HPO, episodes": (HPO, "episodes", {}, {"unroll_length": 7}),
    "HPO, scored": (
        HPO,
        "episodes",
        {"homogeneous": True},
        {"unroll_length": 7, "branch_steps": 2, "regress": False},
    ),
    "HPO, begun as a rule": (HPO, "stock", {}, {"imitate": "s_S", "branch_steps": 0}),
    "PPO": (PPO, "stock", SCALE, {"target_kl": 0.002, "scale_entropy_coeff": 0.1}),
    "PPO, heads": (PPO, "heads", {"scale": 0.2}, {"reset_fraction_final": 0.3, "epochs": 2}),
}


@pytest.mark.parametrize("case", LEARNED)
def test_seeds_together_are_each_alone(case, monkeypatch):
    monkeypatch.setattr("hpo_torchrl.algorithms.imitation._BATCHES", 2)
    *parts, arguments = LEARNED[case]
    arguments = {"unroll_length": 6, "learning_rate": 0.02} | arguments
    many, single = learners(*parts, **arguments), alone(*parts, **arguments)
    stopped = set()
    for learner in (many, *single):
        assert learner.imitate_rule() == ("imitate" in arguments)
    for update in range(3):
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
    *parts, arguments = LEARNED[case]
    first, second = (learners(*parts, **arguments) for _ in range(2))
    single = alone(*parts, **arguments)
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
    many = learners(HPO, "stock", {}, unroll_length=4)
    many.anneal(0.0)
    with torch.no_grad():
        many.critic.members[1].module[-1].weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"^Seed 11: .* is not finite") as caught:
        many.iterate()
    assert caught.value.seed_index == 1


def test_seeds_and_networks_must_agree():
    env, policy, critic = member("stock", 0)
    with pytest.raises(ValueError, match=r"policy has num_seeds=None.*modules\.replicate"):
        HPO(env, policy, critic, seed=[0, 1])
    with pytest.raises(ValueError, match="num_seeds=3"):
        HPO(env, *(replicate([part] * 3) for part in (policy, critic)), seed=5)
    with pytest.raises(ValueError, match="DDPG trains one seed at a time"):
        learners(DDPG, "stock", {"scale": 0.1})
