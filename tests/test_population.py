"""Several seeds as one computation: each comes to what it would have come to alone."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hpo_torchrl.collectors.streams import Stream
from hpo_torchrl.collectors.worlds import own_worlds
from hpo_torchrl.modules.stacked import ModuleStack
from shrunk import SMALL
from tensordict.nn import TensorDictModule
from test_cli import refused, run_train
from test_masks import Shuttle
from torch import nn
from torchrl.objectives import ValueEstimators

import hpo_torchrl.experiments.run
import hpo_torchrl.experiments.seeds
from hpo_torchrl.algorithms import HPO, HPOPopulation, NonFiniteError
from hpo_torchrl.envs import hybridize
from hpo_torchrl.experiments.build import build_algorithm
from hpo_torchrl.experiments.cli import compose_config
from hpo_torchrl.experiments.run import evaluate_run, load_config, train_run
from hpo_torchrl.experiments.seeds import train_seeds
from hpo_torchrl.modules import HybridNetwork, HybridPolicy, make_value_network
from hpo_torchrl.problems import ContinuousInventoryEnv, InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.inventory.features import FixedCost, IncrementalDiscount, ItemFixedCost
from hpo_torchrl.reporting import read_runs
from hpo_torchrl.training import Checkpoint, Evaluation

DOUBLE = torch.float64
SEEDS = (0, 1, 2)
UPDATES = 3


def inventory(seed, **arguments):
    arguments = {"batch_size": 8, "initial_state": "random", **arguments}
    return InventoryEnv(dtype=DOUBLE, seed=seed, **arguments)


def items_of_their_own(seed):
    costs = [FixedCost(20.0), ItemFixedCost(5.0)]
    return hybridize(
        ContinuousInventoryEnv(costs, num_items=2, batch_size=8, dtype=DOUBLE, seed=seed)
    )


def lqr(seed, **arguments):
    return SwitchedLQREnv.from_recipe(
        4, 2, batch_size=8, process_noise=0.1, dtype=DOUBLE, seed=seed, **arguments
    )


class Plain(nn.Module):
    """A network of a user's own: one head that is no chain of layers."""

    stochastic = False

    def __init__(self, inputs, options):
        super().__init__()
        self.inner, self.head = nn.Linear(inputs, 5), nn.Linear(5, 2 * options)
        self.tilt = nn.Parameter(torch.zeros(options))
        self.to(DOUBLE)

    def forward(self, observation):
        hidden = self.inner(observation)
        logits, loc = self.head(hidden * hidden.sigmoid()).chunk(2, -1)
        return logits + self.tilt, loc.unsqueeze(-1), None


def make(seed, env, plain=False, network=None, given=None, **arguments):
    """Build a learner as a run builds it, right after its seed is set.

    ``given`` changes it afterwards.
    """
    torch.manual_seed(seed)
    env = env(seed)
    policy = HybridPolicy.for_env(env, **{"hidden": [8], **(network or {})})
    if plain:
        policy = HybridPolicy(Plain(env.observation_spec["observation"].shape[-1], 2))
    critic = make_value_network(env, hidden=[8])
    learner = HPO(env, policy, critic, **{"window": 5, **arguments})
    if given is not None:
        given(learner)
    return learner


def train_alone(case, seed):
    learner = make(seed, **case)
    metrics = []
    for update in range(UPDATES):
        learner.anneal(update / UPDATES)
        metrics.append(learner.iterate())
    return learner, metrics, torch.get_rng_state()


def build_population(case, seeds=SEEDS):
    members, streams = [], []
    for seed in seeds:
        members.append(make(seed, **case))
        streams.append(Stream(members[-1].env.device))
    return HPOPopulation(members, streams, seeds)


def train_together(case, seeds=SEEDS):
    population = build_population(case, seeds)
    metrics = []
    for update in range(UPDATES):
        population.anneal(update / UPDATES)
        metrics.append(population.iterate())
    return population, metrics


def parameters_of(learner):
    parameters = [*learner.policy.parameters(), *learner.critic.parameters()]
    return nn.utils.parameters_to_vector(parameters).detach().clone()


def numbers(learner):
    """All that training has made: parameters, optimizer, reward scale, running systems."""
    found = [parameters_of(learner)]
    for group in learner.optimizer.param_groups:
        for parameter in group["params"]:
            found += learner.optimizer.state[parameter].values()
    found += [learner.scaler.mean, learner.scaler.variance]
    found += [learner.collector.carried[key] for key in learner.env.state_names]
    found += [torch.tensor([group["lr"] for group in learner.optimizer.param_groups])]
    return torch.cat([value.detach().double().flatten() for value in found])


def for_each_group(**settings):
    def give(learner):
        for group in learner.optimizer.param_groups:
            group.update(settings)

    return give


def for_each_loss(**settings):
    def give(learner):
        for loss in learner.losses():
            for name, value in settings.items():
                setattr(loss, name, value)

    return give


def shrinking(learner):
    """Let every step end with all parameters nearer to zero."""

    @torch.no_grad()
    def shrink(optimizer, *_):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.9)

    learner.optimizer.register_step_post_hook(shrink)


def other_optimizer(learner):
    groups = [{"params": g["params"], "share": g["share"]} for g in learner.optimizer.param_groups]
    learner.optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.5)


def shorter_sight(learner):
    learner.loss.make_value_estimator(gamma=0.8, lmbda=0.5)


def two_distances(learner):
    learner.detached_loss.loss_critic_type = "l1"


# What a learner is given after it was built.
GIVEN = {
    "weight decay": for_each_group(weight_decay=0.5),
    "amsgrad": for_each_group(amsgrad=True),
    "maximize": for_each_group(maximize=True),
    "a hook of the optimizer": shrinking,
    "another optimizer": other_optimizer,
    "another distance": for_each_loss(loss_critic_type="smooth_l1"),
    "two distances": two_distances,
    "the entropy's own unit": for_each_loss(entropy_in_advantage_units=False),
    "another advantage": shorter_sight,
}

CASES = {
    "deterministic action": {"env": inventory},
    "stochastic action": {"env": inventory, "network": {"scale": 0.2}},
    "learned scale": {"env": inventory, "network": {"scale": 0.2, "learn_scale": True}},
    "shared trunk": {"env": inventory, "network": {"shared_trunk": True, "activation": "silu"}},
    "network of one's own": {"env": inventory, "plain": True},
    "some stop early": {"env": inventory, "target_kl": 1e-5, "learning_rate": 0.02},
    "resets in the window": {"env": lambda seed: inventory(seed, num_items=2, horizon=4)},
    "no critic's step, no clipping": {"env": inventory, "epochs": 0, "clip_epsilon": None},
    "no cross term": {"env": inventory, "cross_term": False, "num_minibatches": 3},
    "episodes that terminate": {"env": lambda seed: lqr(seed, horizon=5)},
    "episodes that terminate within the window": {"env": lambda seed: lqr(seed, horizon=3)},
    "windows that end within an episode": {"env": lambda seed: lqr(seed, horizon=7)},
    "masks": {"env": lambda seed: Shuttle(batch_size=8, dtype=DOUBLE, seed=seed)},
    "heads and masks": {"env": lambda seed: Shuttle(2, 8, dtype=DOUBLE, seed=seed)},
    "heads and bounds": {"env": items_of_their_own},
    "a batch of two dimensions": {"env": lambda seed: inventory(seed, batch_size=(2, 4))},
    **{name: {"env": inventory, "given": given} for name, given in GIVEN.items()},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_member_comes_to_what_it_comes_to_alone(case):
    population, together = train_together(case)
    for at, seed in enumerate(SEEDS):
        alone, metrics, state = train_alone(case, seed)
        member = population.members[at]
        torch.testing.assert_close(numbers(member), numbers(alone), rtol=1e-8, atol=1e-10)
        assert torch.equal(population.streams[at].generator.get_state(), state)
        assert torch.equal(member.env.rng.get_state(), alone.env.rng.get_state())
        for update in range(UPDATES):
            assert list(together[update][at]) == list(metrics[update])
            expected = pytest.approx(metrics[update], rel=1e-7, abs=1e-9)
            assert together[update][at] == expected


def test_the_comparison_sees_what_it_should():
    """Another seed, another order of draws or another member's gradient would be noticed."""
    case = CASES["stochastic action"]
    (first, _, _), (second, _, _) = (train_alone(case, seed) for seed in (0, 1))
    assert not torch.allclose(numbers(first), numbers(second), rtol=1e-3)
    population = build_population(case)
    population.streams.reverse()
    for update in range(UPDATES):
        population.anneal(update / UPDATES)
        population.iterate()
    assert not torch.allclose(numbers(population.members[0]), numbers(first), rtol=1e-3)


def test_only_some_members_stop_early():
    """Without that the case would test nothing of it."""
    _, metrics = train_together(CASES["some stop early"])
    passes = [[own["epochs"] for own in row] for row in metrics]
    assert any(len(set(row)) > 1 for row in passes), passes


def test_a_population_of_one_is_a_run():
    case = CASES["stochastic action"]
    population, _ = train_together(case, seeds=[4])
    alone, _, _ = train_alone(case, 4)
    torch.testing.assert_close(numbers(population.members[0]), numbers(alone))


@pytest.mark.parametrize("scale", [0.0, 0.3])
@pytest.mark.parametrize(
    "env",
    [
        lambda: inventory(9, batch_size=16, initial_state="stationary"),
        lambda: inventory(9, batch_size=16, horizon=7),
        lambda: lqr(9, horizon=4),
        lambda: Shuttle(2, 16, dtype=DOUBLE, seed=9),
    ],
)
def test_costs_of_a_test_are_those_of_each_policy_alone(env, scale):
    test = Evaluation(env(), num_steps=120, skip=10, seed=5)
    policies = [HybridPolicy.for_env(env(), hidden=[8], scale=scale) for _ in SEEDS]
    for policy in policies:
        nn.init.normal_(policy.network.discrete[-1].weight)  # options that differ
    together = test.run_all(policies)
    for policy, cost in zip(policies, together, strict=True):
        assert tuple(cost) == pytest.approx(tuple(test.run(policy)), rel=1e-10)
    assert len({cost.mean for cost in together}) == len(SEEDS)


class WindyShuttle(Shuttle):
    """The further out the cart is, the stronger the wind."""

    def draw_noise(self, num_steps, state):
        return super().draw_noise(num_steps, state) * (0.1 + state["x"].abs()).unsqueeze(-2)


class BusyShuttle(Shuttle):
    """How far the generator moves on depends on the state too."""

    def draw_noise(self, num_steps, state):
        rate = (1.0 + 20.0 * state["x"].abs()).unsqueeze(-2)
        rate = rate.expand(*self.batch_size, num_steps, self.carts).contiguous()
        return torch.poisson(rate, generator=self.rng) / rate - 1.0


class FallingShuttle(Shuttle):
    """An episode ends where the cart has gone too far, too."""

    def advance(self, state, action, noise):
        after, reward, over = super().advance(state, action, noise)
        return after, reward, over | (after["x"].abs().amax(-1, keepdim=True) > 1.5)


def different_policies(env):
    policies = [HybridPolicy.for_env(env, hidden=[8]) for _ in SEEDS]
    for policy in policies:
        nn.init.normal_(policy.network.discrete[-1].weight)
    return policies


@pytest.mark.parametrize("steps", [30, 120])
@pytest.mark.parametrize(
    ("kind", "horizon"),
    [
        (WindyShuttle, None),
        (WindyShuttle, 7),
        (BusyShuttle, None),
        (BusyShuttle, 70),
        (FallingShuttle, 70),
    ],
)
def test_costs_are_those_of_each_policy_where_its_world_depends_on_it(kind, horizon, steps):
    env = kind(batch_size=2, dtype=DOUBLE, horizon=horizon, seed=9)
    test = Evaluation(env, num_steps=steps, seed=5)
    policies = different_policies(env)
    together = test.run_all(policies)
    for policy, cost in zip(policies, together, strict=True):
        assert tuple(cost) == pytest.approx(tuple(test.run(policy)), rel=1e-10)
    assert len({cost.mean for cost in together}) == len(SEEDS)


@pytest.mark.parametrize(
    "env",
    [
        lambda: inventory(9, batch_size=4, demand_traces=torch.rand(4, 9, 1).double()),
        lambda: inventory(9, batch_size=4, horizon=7),
        lambda: Shuttle(batch_size=4, dtype=DOUBLE, seed=9),
    ],
)
def test_policies_in_one_world_are_simulated_together(monkeypatch, env):
    """Noise that depends on the period alone is the same for all."""
    env = env()
    monkeypatch.delattr(Evaluation, "run")
    assert len(Evaluation(env, num_steps=120, seed=5).run_all(different_policies(env))) == 3


@pytest.mark.parametrize("rows", [3, 300])
@pytest.mark.parametrize("activation", ["relu", "tanh", "elu", "silu"])
@pytest.mark.parametrize("shared_trunk", [False, True])
def test_a_stack_of_networks_is_its_members(rows, activation, shared_trunk):
    networks = [
        HybridNetwork(
            4, 3, 2, activation=activation, shared_trunk=shared_trunk, scale=0.1, dtype=DOUBLE
        )
        for _ in SEEDS
    ]
    for parameter in (p for network in networks for p in network.parameters()):
        nn.init.normal_(parameter)
    stack = ModuleStack(networks)
    observation = torch.randn(3, rows, 4, dtype=DOUBLE, requires_grad=True)
    found = stack.module(observation)
    sum(value.square().sum() for value in found).backward()
    gradient = observation.grad
    for at, network in enumerate(networks):
        own = observation[at].detach().requires_grad_()
        expected = network(own)
        sum(value.square().sum() for value in expected).backward()
        torch.testing.assert_close(tuple(value[at] for value in found), expected)
        torch.testing.assert_close(gradient[at], own.grad)
        for stacked, parameter in zip(stack.parameters, network.parameters(), strict=True):
            torch.testing.assert_close(stacked.grad[at], parameter.grad)


@pytest.mark.parametrize("rows", [3, 300])
@pytest.mark.parametrize(
    "activations",
    [
        [nn.Tanh, nn.Tanh],
        [nn.ReLU, nn.Tanh, nn.Tanh],
        [nn.Tanh, nn.ReLU],
        [nn.Tanh, nn.Identity],
        [nn.ReLU],
    ],
)
def test_layers_in_any_order_are_their_members(rows, activations):
    """Also where what is linear in a tanh cannot go to a layer beside it."""

    def chain():
        middle = [layer() for layer in activations]
        linear = [nn.Linear(2, 4), *middle, nn.Linear(4, 3, bias=False)]
        return nn.Sequential(nn.Tanh(), *linear, nn.Tanh(), nn.Sequential(nn.ReLU())).double()

    nets = [chain() for _ in SEEDS]
    x = torch.randn(3, rows, 2, dtype=DOUBLE)
    kept, stack = x.clone(), ModuleStack(nets)
    found = stack.module(x)
    found.square().sum().backward()
    assert torch.equal(x, kept)  # nothing is done in place to what was given
    for at, net in enumerate(nets):
        expected = net(x[at])
        expected.square().sum().backward()
        torch.testing.assert_close(found[at], expected)
        for stacked, parameter in zip(stack.parameters, net.parameters(), strict=True):
            torch.testing.assert_close(stacked.grad[at], parameter.grad)


def test_a_stack_follows_its_members_and_their_number():
    nets = [nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in SEEDS]
    stack = ModuleStack(nets)
    x = torch.randn(2, 4, 2)
    nn.init.ones_(nets[2][2].weight)
    kept = stack.module(torch.randn(3, 4, 2)).sum()
    stack.load([0, 2])
    torch.testing.assert_close(stack.module(x), torch.stack([nets[0](x[0]), nets[2](x[1])]))
    stack.module(x).sum().backward()  # the graph of another number is still there
    assert kept.requires_grad


def test_tied_parameters_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.two = nn.Linear(2, 2)

        def forward(self, x):
            return self.two(self.one(x).relu())

    nets = [Tied() for _ in SEEDS]
    x = torch.randn(3, 5, 2)
    expected = torch.stack([net(x[at]) for at, net in enumerate(nets)])
    torch.testing.assert_close(ModuleStack(nets).module(x), expected)


def test_stacks_of_what_differs_are_refused():
    with pytest.raises(ValueError, match="module 1 differs from module 0"):
        ModuleStack([nn.Linear(2, 1), nn.Linear(3, 1)])
    with pytest.raises(ValueError, match="at least one module"):
        ModuleStack([])
    scales = [HybridNetwork(1, 1, 1, action_scale=torch.tensor([s])) for s in (1.0, 2.0)]
    with pytest.raises(ValueError, match="'action_scale' of module 1"):
        ModuleStack(scales)


def with_buffer(value=None):
    net = nn.Linear(1, 1)
    if value is not None:
        net.register_buffer("mean", value)
    return net


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing against .*'buffer', 'mean'"),
        (torch.zeros(2), r"'mean', \(2,\).* against .*'mean', \(1,\)"),
        (torch.zeros(1, dtype=DOUBLE), "float64.* against .*float32"),
    ],
)
def test_stacks_of_other_buffers_are_refused(value, words):
    with pytest.raises(ValueError, match=rf"(?s)module 1 differs from module 0.*{words}"):
        ModuleStack([with_buffer(torch.zeros(1)), with_buffer(value)])


def test_a_stack_of_which_one_is_frozen_is_refused():
    nets = [nn.Linear(1, 1) for _ in SEEDS]
    nets[2].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"(?s)module 2 differs .*'bias'.*False.*against.*True"):
        ModuleStack(nets)


def test_a_critic_that_reads_two_entries_is_stacked():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 1)

        def forward(self, one, other):
            return self.net(torch.cat([one, other], -1))

    critics = [TensorDictModule(Both(), in_keys=["a", "b"], out_keys=["v"]) for _ in SEEDS]
    a, b = torch.randn(3, 4, 1), torch.randn(3, 4, 2)
    found = ModuleStack(critics).module(a, b)
    torch.testing.assert_close(found[1], critics[1](a[1], b[1]))


def test_worlds_of_two_problems_are_refused():
    with pytest.raises(ValueError, match="shortage_cost of one environment"):
        own_worlds([inventory(0), inventory(1, shortage_cost=2.0)])
    with pytest.raises(ValueError, match="horizon of one environment is None, of another 3"):
        own_worlds([inventory(0), inventory(1, horizon=3)])
    with pytest.raises(ValueError, match="InventoryEnv and Shuttle"):
        own_worlds([inventory(0), Shuttle()])


class Tariff:
    def __init__(self, price):
        self.price = price


@dataclass(slots=True)
class Rate:
    steps: list


def layer(value):
    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, value)
    nn.init.zeros_(net.bias)
    return net


# Values of a problem that differ in a number, and where.
HOLDERS = {
    "list": (lambda x: [1.0, x], r"held\[1\]"),
    "longer list": (lambda x: [1.0] * int(x), "held"),
    "dict": (lambda x: {"a": {"b": x}}, r"held\['a'\]\['b'\]"),
    "other keys": (lambda x: {x: 1}, "held"),
    "list of tensors": (lambda x: [torch.tensor([x])], r"held\[0\]"),
    "type of a tensor": (lambda x: torch.zeros(1, dtype=DOUBLE if x == 2 else None), "held"),
    "array": (lambda x: np.array([x]), "held"),
    "number or none": (lambda x: [x if x == 2 else None], r"held\[0\]"),
    "object": (lambda x: (Tariff([x]),), r"held\[0\].price\[0\]"),
    "dataclass": (lambda x: Rate([x]), r"held.steps\[0\]"),
    "module": (layer, r"_modules\['held'\]"),
}


@pytest.mark.parametrize(("holder", "place"), HOLDERS.values(), ids=HOLDERS)
def test_problems_that_differ_in_what_they_hold_are_refused(holder, place):
    def world(x):
        env = Shuttle()
        env.held = holder(x)
        return env

    own_worlds([world(2.0), world(2.0)])
    with pytest.raises(ValueError, match=f"{place}.* of one environment is"):
        own_worlds([world(2.0), world(3.0)])


def test_problems_are_compared_in_depth():
    def world(cost):
        costs = [FixedCost(20.0), IncrementalDiscount([5.0], [1.0, cost])]
        return hybridize(ContinuousInventoryEnv(costs, batch_size=8))

    own_worlds([world(0.5), world(0.5)])
    with pytest.raises(
        ValueError, match=r"\[1\].*\[1\] of one environment is 0\.5, of another 0\.6"
    ):
        own_worlds([world(0.5), world(0.6)])

    def knotted():
        env = Shuttle()
        env.one, env.other = Tariff(None), Tariff(None)
        env.one.price, env.other.price = env.other, env.one
        env.register_buffer("base", torch.ones(1))
        return env

    own_worlds([knotted(), knotted()])
    others = knotted(), knotted()
    others[1].base += 1
    with pytest.raises(ValueError, match=r"_buffers\['base'\]"):
        own_worlds(others)
    others = knotted(), knotted()
    others[1].later = 3
    with pytest.raises(ValueError, match="later of one environment is None, of another 3"):
        own_worlds(others)


def test_worlds_that_end_in_a_way_of_their_own_are_refused():
    with pytest.raises(ValueError, match=r"FallingShuttle overrides .*--multirun seed="):
        own_worlds([FallingShuttle(horizon=5)])
    with pytest.raises(ValueError, match="FallingShuttle overrides"):
        build_population({"env": lambda seed: FallingShuttle(batch_size=8, horizon=5, seed=seed)})


def test_members_of_two_configurations_are_refused():
    def build(**changes):
        learners = [make(0, inventory), make(1, inventory, **changes)]
        return HPOPopulation(learners, [Stream(), Stream()])

    with pytest.raises(ValueError, match=r"target_kl of one is 0\.015, of another 0\.1"):
        build(target_kl=0.1)
    with pytest.raises(ValueError, match=r"clip_epsilon of one is .*, of another None"):
        build(clip_epsilon=None)
    with pytest.raises(ValueError, match="window of one is 5, of another 6"):
        build(window=6)
    with pytest.raises(ValueError, match=r"checkpoint_steps=2"):
        HPOPopulation([make(0, inventory, checkpoint_steps=2)], [Stream()])
    with pytest.raises(ValueError, match="compile=True"):
        HPOPopulation([make(0, inventory, compile=True)], [Stream()])
    with pytest.raises(ValueError, match="at least one member"):
        HPOPopulation([], [])


def test_members_that_are_not_apart_are_refused():
    members, streams = [make(seed, inventory) for seed in SEEDS], [Stream() for _ in SEEDS]
    with pytest.raises(ValueError, match="members 0 and 3 share one learner"):
        HPOPopulation(members * 2, [Stream() for _ in range(6)])
    with pytest.raises(ValueError, match="members 0 and 1 share one stream"):
        HPOPopulation(members, streams[:1] * 3)
    with pytest.raises(ValueError, match="streams must have one entry for each of the 3 members"):
        HPOPopulation(members, streams[:2])
    with pytest.raises(ValueError, match="seeds must have one entry for each of the 3 members"):
        HPOPopulation(members, streams, [0, 1])
    own = members[1]
    again = HPO(own.env, HybridPolicy.for_env(own.env), make_value_network(own.env), window=5)
    with pytest.raises(ValueError, match="members 0 and 1 share one environment"):
        HPOPopulation([own, again], streams[:2])
    again = HPO(inventory(5), HybridPolicy(own.policy.network), own.critic, window=5)
    with pytest.raises(ValueError, match="members 0 and 1 share one parameter of the policy"):
        HPOPopulation([own, again], streams[:2])


def nothing(*_):
    return None


HOOKS = {
    "forward": lambda own: own.policy.network.discrete.register_forward_hook(nothing),
    "before forward": lambda own: own.critic.register_forward_pre_hook(nothing),
    "backward": lambda own: own.critic.module[0].register_full_backward_hook(nothing),
    "gradient": lambda own: own.policy.network.skip.weight.register_hook(nothing),
    "gradient that has landed": lambda own: next(
        own.critic.parameters()
    ).register_post_accumulate_grad_hook(nothing),
}


@pytest.mark.parametrize("give", HOOKS.values(), ids=HOOKS)
def test_members_with_hooks_are_refused(give):
    def only_one(learner):
        if learner.env.rng.initial_seed() == 1:
            give(learner)

    with pytest.raises(ValueError, match=r"of module 1 .* has some: remove them"):
        build_population({"env": inventory, "given": only_one})


def averaged(learner):
    learner.loss.make_value_estimator(gamma=0.9, lmbda=0.9, average_gae=True)


def one_step(learner):
    learner.loss.make_value_estimator(ValueEstimators.TD0, gamma=0.9)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (one_step, r"TD0Estimator; choose GAE, or .*--multirun seed="),
        (averaged, "average_gae of loss.value_estimator is True instead of False"),
        (for_each_loss(reduction="sum"), "reduction='sum'; use 'mean'"),
    ],
)
def test_losses_that_have_no_form_for_several_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        build_population({"env": inventory, "given": given})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (for_each_loss(loss_critic_type="l1"), "loss_critic_type of one is 'l2', of another 'l1'"),
        (two_distances, "detached_loss.loss_critic_type of one is 'l2', of another 'l1'"),
        (for_each_loss(entropy_in_advantage_units=False), "entropy_in_advantage_units of one is"),
        (shorter_sight, r"value_estimator.gamma of one is 0\.99"),
        (averaged, r"value_estimator.average_gae of one is False"),
        (one_step, r"value_estimator.type of one is 'GAE', of another 'TD0Estimator'"),
    ],
)
def test_members_with_losses_of_their_own_are_refused(given, words):
    learners = [make(0, inventory), make(1, inventory, given=given)]
    with pytest.raises(ValueError, match=words):
        HPOPopulation(learners, [Stream(), Stream()])


@pytest.mark.parametrize("later", [False, True])
def test_what_is_not_finite_is_told_with_its_seed(later):
    population = build_population({"env": inventory}, seeds=[3, 4, 5])
    if later:
        population.iterate()
    before = [parameters_of(member) for member in population.members]
    with torch.no_grad():
        population.members[1].policy.network.continuous[-1].bias.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"seed 4, the reward .* is not finite"):
        population.iterate()
    for at in (0, 2):
        assert torch.equal(parameters_of(population.members[at]), before[at])


def test_a_gradient_that_is_not_finite_is_told_with_its_seed():
    population = build_population({"env": inventory})
    parameter = population.members[2].critic.module[0].weight
    with torch.no_grad():
        parameter.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="seed 2"):
        population.iterate()


# -- the command -------------------------------------------------------------------------------

WHOLE = [*SMALL, "dtype=float64", "trainer.num_updates=6", "trainer.checkpoint_every=2"]
WHOLE += ["trainer.eval_every=3"]


def rows_of(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [
            {key: float(text) for key, text in row.items() if text and key != "wall_seconds"}
            for row in csv.DictReader(file)
        ]


def summary_of(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def final_parameters(run_dir):
    config = load_config(run_dir)
    algorithm = build_algorithm(config)
    updates, _ = Checkpoint(run_dir, algorithm.components(), config=config).load()
    return updates, numbers(algorithm)


def files_of(folder: Path):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Seeds 2 to 4 as one computation, and seed 3 alone."""
    folder = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        run_train(patch, *WHOLE, "num_seeds=3", "seed=2", f"output_dir={folder / 'all'}")
        run_train(patch, *WHOLE, "seed=3", f"output_dir={folder / 'alone'}")
    return folder


def test_each_seed_has_the_folder_of_an_ordinary_run(trained):
    assert {path.name for path in (trained / "all").iterdir()} == {
        *("seed=2", "seed=3", "seed=4"),
        "seeds.yaml",
    }
    member, alone = trained / "all" / "seed=3", trained / "alone"
    names = [{path.name for path in folder.rglob("*")} for folder in (member, alone)]
    assert names[0] == names[1]
    assert (member / "config.yaml").read_text() == (alone / "config.yaml").read_text()
    assert len(rows_of(member)) == len(rows_of(alone)) == 4
    for row, expected in zip(rows_of(member), rows_of(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-8, abs=1e-10)
    found, expected = summary_of(member), summary_of(alone)
    assert found.pop("wall_seconds") > 0
    assert found.keys() == expected.keys() - {"wall_seconds"}
    for key, value in found.items():
        plain = not isinstance(value, float)
        assert value == (expected[key] if plain else pytest.approx(expected[key], rel=1e-8))
    updates, found = final_parameters(member)
    assert updates == 6
    torch.testing.assert_close(found, final_parameters(alone)[1], rtol=1e-8, atol=1e-10)
    others = [rows_of(trained / "all" / f"seed={seed}")[-1]["cost"] for seed in (2, 4)]
    assert others[0] != others[1] != rows_of(alone)[-1]["cost"]
    assert [load_config(trained / "all" / f"seed={s}")["env"]["seed"] for s in (2, 4)] == [2, 4]


def test_other_commands_read_the_folders(trained):
    summary = summary_of(trained / "all" / "seed=4")
    found = evaluate_run(trained / "all" / "seed=4")
    assert found["test_cost"] == pytest.approx(summary["test_cost"], rel=1e-10)
    runs = read_runs([trained / "all"]).runs
    assert [(run.seed, run.status) for run in runs] == [(s, "finished") for s in (2, 3, 4)]


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """Killed while it wrote the checkpoints of update 4."""
    folder = tmp_path / "all"
    settings = [*WHOLE, "num_seeds=3", "seed=2", f"output_dir={folder}"]
    stop = KeyboardInterrupt()

    def save(checkpoint, update, counters):
        if update == 4 and "seed=4" in str(checkpoint.directory):
            raise stop
        return real(checkpoint, update, counters)

    real = Checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        with pytest.raises(SystemExit):
            run_train(monkeypatch, *settings)
    assert not list(folder.glob("*/summary.json"))
    return folder


def test_an_interrupted_population_goes_on_from_what_all_have(
    trained, interrupted, monkeypatch, capsys
):
    run_train(monkeypatch, f"resume={interrupted}")
    shown = capsys.readouterr().out
    for seed in (2, 3, 4):
        assert f"\n{seed}  " in shown
        ours, theirs = (folder / f"seed={seed}" for folder in (interrupted, trained / "all"))
        assert torch.equal(final_parameters(ours)[1], final_parameters(theirs)[1])
        assert rows_of(ours) == rows_of(theirs)


def test_what_a_population_goes_on_from_is_what_each_goes_on_from(
    trained, interrupted, monkeypatch
):
    """A newer checkpoint of one seed does not outlive the rows of its updates."""
    run_dir = interrupted / "seed=2"
    checkpoints = run_dir / "checkpoints"
    assert [path.stem[-1] for path in sorted(checkpoints.iterdir())] == ["2", "4"]
    others = files_of(interrupted / "seed=4")

    def stop(population):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HPOPopulation, "iterate", stop)
        with pytest.raises(SystemExit):
            run_train(monkeypatch, f"resume={interrupted}")
    assert [path.stem[-1] for path in checkpoints.iterdir()] == ["2"]
    assert max(row["update"] for row in rows_of(run_dir)) <= 2
    assert [path for path in files_of(interrupted / "seed=4") if path not in others] == []
    run_train(monkeypatch, f"resume={run_dir}")
    found, expected = final_parameters(run_dir), final_parameters(trained / "all" / "seed=2")
    torch.testing.assert_close(found[1], expected[1], rtol=1e-8, atol=1e-10)
    assert [row["update"] for row in rows_of(run_dir)] == [
        row["update"] for row in rows_of(trained / "all" / "seed=2")
    ]


def test_a_single_seed_goes_on_alone(trained, interrupted, monkeypatch):
    run_dir = interrupted / "seed=3"
    run_train(monkeypatch, f"resume={run_dir}")
    expected = final_parameters(trained / "alone")
    updates, found = final_parameters(run_dir)
    assert updates == expected[0]
    torch.testing.assert_close(found, expected[1], rtol=1e-8, atol=1e-10)
    assert summary_of(run_dir)["test_cost"] == pytest.approx(
        summary_of(trained / "alone")["test_cost"], rel=1e-8
    )


def test_seeds_that_have_gone_too_far_apart_are_told(interrupted, monkeypatch, capsys):
    run_train(monkeypatch, f"resume={interrupted / 'seed=3'}")
    capsys.readouterr()
    before = files_of(interrupted)
    message = refused(monkeypatch, capsys, f"resume={interrupted}")
    assert "holds no checkpoint of update 2" in message
    assert "different updates, 2 to 6" in message
    assert files_of(interrupted) == before


def test_the_command_prints_a_row_for_each_seed(tmp_path, monkeypatch, capsys):
    run_train(monkeypatch, *SMALL, "num_seeds=2", "seed=7", f"output_dir={tmp_path / 'run'}")
    lines = capsys.readouterr().out.splitlines()
    first_words = [line.split()[0] for line in lines]
    assert first_words == ["folder", "optimal", "seed", "7", "8", "mean", "spread", "trained"]
    costs = [summary_of(tmp_path / "run" / f"seed={seed}")["test_cost"] for seed in (7, 8)]
    assert f"{sum(costs) / 2:.4f}" in lines[5]
    assert "2 seeds, 3 updates" in lines[-1]


def test_pictures_are_drawn_from_each_seeds_own_numbers(tmp_path, monkeypatch):
    drawn = []
    for module in (hpo_torchrl.experiments.run, hpo_torchrl.experiments.seeds):
        monkeypatch.setattr(module, "finish_run", lambda *_: drawn.append(float(torch.rand(()))))
    config = compose_config([*SMALL, "dtype=float64"])
    train_seeds(config, tmp_path / "all", 3)
    together = drawn.copy()
    drawn.clear()
    for seed in SEEDS:
        train_run(load_config(tmp_path / "all" / f"seed={seed}"), tmp_path / f"alone {seed}")
    assert together == drawn


def test_the_policy_of_the_best_evaluation_is_each_seeds_own(tmp_path):
    config = compose_config([*SMALL, "trainer.select=best", "trainer.eval_every=1"])
    summaries = train_seeds(config, tmp_path / "run", 2)
    for seed, summary in enumerate(summaries):
        tested = [row for row in rows_of(tmp_path / "run" / f"seed={seed}") if "test_cost" in row]
        best = min(tested, key=lambda row: row["test_cost"])
        assert summary["selected_update"] == best["update"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["num_seeds=0"], ["num_seeds must be an integer >= 1", "0"]),
        (["num_seeds=two"], ["num_seeds must be an integer", "'two'"]),
        (["num_seeds=2", "algorithm=ppo"], ["algorithm=hpo", "PPO", "--multirun seed=0,1"]),
        (["num_seeds=2", "algorithm.cross_term=adaptive"], ["algorithm.cross_term='adaptive'"]),
        (["num_seeds=2", "env.seed=5"], ["env.seed=5", "leave env.seed out"]),
        (["num_seeds=2", "env.holding_cost=-1"], ["holding_cost must be"]),
        (["num_seeds=2", "trainer.num_updates=0"], ["num_updates must be an integer >= 1"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, overrides, words
):
    run_dir = tmp_path / "run"
    message = refused(monkeypatch, capsys, *SMALL, f"output_dir={run_dir}", *overrides)
    for word in words:
        assert word in message
    assert not run_dir.exists()


def test_folders_that_hold_runs_are_left_as_they_are(trained, monkeypatch, capsys):
    before = files_of(trained)
    again = [*WHOLE, "num_seeds=3", f"output_dir={trained / 'all'}"]
    message = refused(monkeypatch, capsys, *again)
    assert "already holds a run (seeds.yaml)" in message
    assert f"resume={trained / 'all'}" in message
    message = refused(monkeypatch, capsys, *WHOLE, f"output_dir={trained / 'all'}")
    assert "already holds" in message
    message = refused(monkeypatch, capsys, *WHOLE, "num_seeds=2", f"output_dir={trained / 'alone'}")
    assert "already holds a run" in message
    assert files_of(trained) == before


def test_resume_refuses_another_number_of_seeds(trained, monkeypatch, capsys):
    message = refused(monkeypatch, capsys, f"resume={trained / 'all'}", "num_seeds=4")
    assert "3 seeds" in message
    message = refused(monkeypatch, capsys, f"resume={trained / 'alone'}", "num_seeds=4")
    assert "1 seed " in message
    message = refused(monkeypatch, capsys, f"resume={trained / 'all'}", "env.num_items=2")
    assert "would change env.num_items" in message


def test_a_damaged_list_of_seeds_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "seeds.yaml").write_text("seeds: [0, x]\n")
    message = refused(monkeypatch, capsys, f"resume={tmp_path}")
    assert "seeds.yaml is damaged" in message


def test_seeds_of_recorded_demand(tmp_path):
    """Their tests are the record itself, and each is compared with the rule."""
    path = Path(__file__).parents[1] / "examples" / "data" / "generated_demand.csv"
    config = compose_config(
        [
            *("env=inventory_from_file", f"env.path={path}", "dtype=float64"),
            *("env.batch_size=8", "policy.hidden=[8]", "critic.hidden=[8]", "algorithm.window=5"),
            *("trainer.num_updates=2", "trainer.progress=false"),
        ]
    )
    together = train_seeds(config, tmp_path / "all", 2)
    alone = train_run(load_config(tmp_path / "all" / "seed=1"), tmp_path / "alone")
    for name in alone["record"]:
        assert together[1][f"{name}_cost"] == pytest.approx(alone[f"{name}_cost"], rel=1e-9)
    assert together[1]["record"] == alone["record"]


def test_a_sweep_of_several_seeds_at_once_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message = refused(monkeypatch, capsys, "--multirun", *SMALL, "num_seeds=2")
    assert "leave --multirun out" in message
    assert not (tmp_path / "runs").exists()
