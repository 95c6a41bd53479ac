"""Distributions of the continuous action: a squashed normal, and one of your own."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from hpo_torchrl.algorithms import PPO
from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.core.categorical import BranchBounds
from hpo_torchrl.diagnostics import exact_gradient
from hpo_torchrl.modules import (
    ActionRange,
    ContinuousDistribution,
    HybridDistribution,
    HybridNetwork,
    HybridPolicy,
    make_value_network,
)
from hpo_torchrl.modules.continuous import SquashedNormal
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv

DOUBLE = torch.float64
UNIT = torch.tensor([0.5, 3.0], dtype=DOUBLE)
INF = torch.inf
RANGES = {
    "free": ActionRange((None, None), UNIT),
    "above": ActionRange((2.0, None), UNIT),
    "below": ActionRange((None, -1.0), UNIT),
    "between": ActionRange((-1.0, 4.0), UNIT),
    "by coordinate": ActionRange(([0.0, -INF], [2.0, 5.0]), UNIT),
    "by branch": ActionRange(
        (None, None),
        UNIT,
        BranchBounds([[0.0], [-2.0], [1.0]], [[INF], [3.0], [1.0]]),
        dtype=DOUBLE,
    ),
}


class Kumaraswamy(ContinuousDistribution):
    """A distribution on an interval, of two shapes that the network gives: u = F^-1(noise)."""

    noise = "uniform"
    outputs = 2

    def parameters_of(self, raw, scale):
        a, b = raw.chunk(2, -1)
        return a.exp() + 1, b.exp() + 1

    def mode(self, loc, scale, index=None):
        return self._into(((loc - 1) / (loc * scale - 1)) ** (1 / loc))

    def sample(self, loc, scale, noise, index=None):
        return self._into((1 - (1 - noise) ** (1 / scale)) ** (1 / loc))

    def log_prob(self, loc, scale, value, index=None):
        x = (value - self.range.low) / (self.range.high - self.range.low)
        density = (loc * scale).log() + (loc - 1) * x.log() + (scale - 1) * torch.log1p(-(x**loc))
        return density - math.log(self.range.high - self.range.low)

    def entropy(self, loc, scale):
        harmonic = torch.digamma(scale + 1) + 0.5772156649015329
        nats = 1 - 1 / scale + (1 - 1 / loc) * harmonic - (loc * scale).log()
        return nats + math.log(self.range.high - self.range.low)

    def _into(self, x):
        return self.range.low + (self.range.high - self.range.low) * x


def test_an_action_at_a_bound_keeps_a_gradient_of_the_right_sign():
    z = torch.linspace(-14.0, 14.0, 57, dtype=DOUBLE).repeat(2, 1).T.requires_grad_()
    value = RANGES["between"](z)
    assert torch.equal(value, -1.0 + 5.0 * torch.sigmoid(z))
    (gradient,) = torch.autograd.grad(value.sum(), z)
    share = torch.sigmoid(z)
    slope = 5.0 * share * (1 - share)
    near = z.abs() <= 3.0
    torch.testing.assert_close(gradient[near], slope[near])
    assert (gradient[~near] > slope[~near]).all()
    assert (gradient[~near] > 5e-3).all()
    # It falls further out, so that what belongs at the bound does not run away from it.
    assert (gradient[z > 3.0].reshape(-1, 2).diff(dim=0) < 0).all()
    with torch.no_grad():
        assert torch.equal(RANGES["between"](z), value)


def test_uniform_noise_is_integrated_over_its_interval():
    torch.manual_seed(0)
    env = SwitchedLQREnv(*(torch.rand(2, 1, 1) for _ in "ABQR"), batch_size=3, dtype=DOUBLE, seed=0)
    size = env.observation_spec["observation"].shape[-1]
    given = {"continuous_bounds": (-1.0, 4.0), "distribution": Kumaraswamy, "dtype": DOUBLE}
    policy = HybridPolicy(HybridNetwork(size, 2, 1, hidden=(4,), **given))
    start, noise = env.reset(), env.sample_noise(1)
    exact = exact_gradient(env, policy, 1, tensordict=start, noise=noise, num_nodes=20)
    # The midpoint rule.
    draws = ((torch.arange(4000, dtype=DOUBLE) + 0.5) / 4000).view(-1, 1, 1).expand(-1, 3, 1)
    dist = policy.distribution(start["observation"])
    state = {name: start[name].expand(4000, *start[name].shape) for name in env.state_names}
    objective = 0.0
    for discrete, u in enumerate(dist.actions(draws).unbind(-2)):
        taken = {"discrete": torch.full(u.shape[:-1], discrete), "continuous": u}
        reward = env.advance(state, taken, noise[:, 0].expand(4000, 3, 1))[1]
        objective = objective + reward.squeeze(-1).mean(0) * dist.probs[:, discrete]
    # The slope at the ends is infinite, where nodes are few.
    assert exact.objective == pytest.approx(objective.mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", RANGES)
def test_a_range_is_inverted_and_its_slope_is_that_of_autograd(name):
    action_range = RANGES[name]
    # Beyond 3 the gradient of a sigmoid is not its slope, on purpose.
    raw = (1.5 * torch.randn(50, 3, 2, dtype=DOUBLE)).clamp(-2.9, 2.9).requires_grad_()
    value = action_range(raw)
    (slope,) = torch.autograd.grad(value.sum(), raw)
    free = slope != 0
    assert free[:, :2].all()
    torch.testing.assert_close(action_range.log_slope(raw)[free], slope.abs().log()[free])
    torch.testing.assert_close(action_range.inverse(value)[free], raw[free], rtol=1e-6, atol=1e-6)
    index = torch.randint(3, (50, 1, 1)).expand(50, 1, 2)
    chosen = action_range(raw.gather(-2, index), index)
    torch.testing.assert_close(chosen, value.gather(-2, index))


def test_a_squashed_normal_is_torchs_transformed_one():
    dist = SquashedNormal(ActionRange((0.0, 1.0), torch.ones(2, dtype=DOUBLE)))
    loc, scale = torch.randn(20, 3, 2, dtype=DOUBLE), torch.rand(20, 3, 2, dtype=DOUBLE) + 0.2
    noise = torch.randn(20, 3, 2, dtype=DOUBLE)
    value = dist.sample(loc, scale, noise)
    truth = TransformedDistribution(Normal(loc, scale), SigmoidTransform())
    torch.testing.assert_close(dist.log_prob(loc, scale, value), truth.log_prob(value))
    exact = dist.log_prob_of_sample(loc, scale, noise, value)
    torch.testing.assert_close(exact, truth.log_prob(value))
    z = loc[..., None] + scale[..., None] * torch.randn(10_000, dtype=DOUBLE)
    surprise = -truth.base_dist.log_prob(z.movedim(-1, 0)).movedim(0, -1)
    surprise = surprise + torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)
    error = surprise.std(-1) / math.sqrt(10_000)
    assert ((surprise.mean(-1) - dist.entropy(loc, scale)).abs() < 5 * error).all()


@pytest.mark.parametrize("name", RANGES)
def test_the_density_of_a_squashed_normal_integrates_to_one_and_is_safe(name):
    dist = SquashedNormal(RANGES[name])
    loc = torch.randn(3, 2, dtype=DOUBLE)
    scale = torch.full((3, 2), 0.4, dtype=DOUBLE)
    z = torch.linspace(-6, 6, 20_001, dtype=DOUBLE)[:, None, None] * scale + loc
    value = dist.range(z)
    density = dist.log_prob(loc, scale, value)
    mass = torch.trapezoid(density.exp(), value, dim=0)
    fixed = dist.range.fixed()
    free = torch.ones(3, 2, dtype=torch.bool) if fixed is None else ~fixed.expand(3, 2)
    torch.testing.assert_close(mass[free].abs(), torch.ones_like(mass[free]), rtol=1e-4, atol=0)
    assert (density[:, ~free] == 0).all()
    # One branch by its index is as it is among all.
    index = torch.tensor([0, 2, 1, 1])[:, None, None].expand(4, 1, 2)
    loc4, scale4 = loc.expand(4, 3, 2), scale.expand(4, 3, 2)
    noise = torch.randn(4, 3, 2, dtype=DOUBLE)
    drawn = dist.sample(loc4, scale4, noise)
    one = [x.gather(-2, index) for x in (loc4, scale4, noise, drawn)]
    wanted = dist.log_prob(loc4, scale4, drawn).gather(-2, index)
    torch.testing.assert_close(dist.log_prob(one[0], one[1], one[3], index), wanted)
    torch.testing.assert_close(dist.log_prob_of_sample(*one, index), wanted)
    far = torch.tensor([-80.0, 80.0], dtype=DOUBLE)[:, None, None].expand(2, 3, 2)
    wild = far.clone().requires_grad_()
    extreme = dist.log_prob(wild, scale, dist.range(wild.detach()))
    assert extreme.isfinite().all()
    assert torch.autograd.grad(extreme.sum(), wild)[0].isfinite().all()


def test_a_distribution_of_ones_own_is_told_the_branch():
    class Shifted(ContinuousDistribution):
        def log_prob(self, loc, scale, value, index=None):
            return value - index

        sample = entropy = None

    given = torch.rand(4, 3, 2, 2)
    found = Shifted().log_prob_of_sample(*given[:3], given[3], index=given[0])
    assert torch.equal(found, given[3] - given[0])


@pytest.mark.parametrize("scale", [None, 0.0, 1.0])
def test_the_chosen_branch_has_its_own_range(scale):
    own = SquashedNormal(RANGES["by branch"])
    logits, loc = torch.randn(40, 3, dtype=DOUBLE), torch.randn(40, 3, 2, dtype=DOUBLE)
    dist = HybridDistribution(logits, loc, scale, distribution=own)
    modes = dist.actions()
    best = dist.deterministic_sample
    rows = torch.arange(40)
    assert torch.equal(best["continuous"], modes[rows, logits.argmax(-1)])
    action = dist.sample()
    d, u = action["discrete"], action["continuous"]
    torch.testing.assert_close(dist.mode_of(d), modes[rows, d])
    assert (u >= torch.tensor([0.0, -2.0, 1.0])[d, None]).all()
    assert (u <= torch.tensor([INF, 3.0, 1.0])[d, None]).all()
    density = dist.log_prob_continuous(d, u)
    assert (density == 0).tolist() == [not scale or at == 2 for at in d.tolist()]
    fixed = dist.entropy() == dist.entropy_discrete()
    assert fixed.all() == (not scale)


def test_gradients_of_a_squashed_sample_are_finite_differences():
    dist = SquashedNormal(RANGES["above"])
    loc, scale = torch.randn(3, 2, dtype=DOUBLE), torch.rand(3, 2, dtype=DOUBLE) + 0.1
    inputs = loc.requires_grad_(), scale.requires_grad_()
    noise = torch.randn(3, 2, dtype=DOUBLE)
    assert torch.autograd.gradcheck(lambda m, s: dist.sample(m, s, noise), inputs)
    value = dist.sample(loc, scale, noise).detach()
    assert torch.autograd.gradcheck(lambda m, s: dist.log_prob(m, s, value), inputs)
    assert torch.autograd.gradcheck(dist.entropy, inputs)


def bounded(**arguments):
    given = {"num_items": 2, "initial_state": "random", "batch_size": 4, "dtype": DOUBLE}
    env = InventoryEnv(**given | arguments)
    env.continuous_bounds = (0.0, 60.0)
    return env


@pytest.mark.parametrize("distribution", ["squashed_normal", Kumaraswamy])
def test_every_route_and_ppo_take_any_distribution(distribution):
    env = bounded(seed=0)
    policy = HybridPolicy.for_env(env, hidden=(8,), scale=0.5, distribution=distribution)
    for parameter in policy.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    given, found = {"tensordict": env.reset(), "noise": env.sample_noise(5)}, []
    for how in ({"route": "functional"}, {"route": "general"}, {"checkpoint_steps": 2}):
        torch.manual_seed(1)
        found.append(differentiable_rollout(env, policy, 5, **given, **how))
    for other in found[1:]:
        for key in ("action_log_prob", ("action", "continuous"), ("next", "reward")):
            torch.testing.assert_close(other[key], found[0][key])
    action = found[0]["action", "continuous"]
    assert ((action > 0) & (action < 60)).all()
    dist = policy.get_dist(found[0].detach())
    torch.testing.assert_close(dist.log_prob(found[0]["action"]), found[0]["action_log_prob"])
    weights = list(policy.network.continuous.parameters())
    plain, _, again = (torch.autograd.grad(run["next", "reward"].sum(), weights) for run in found)
    for one, other in zip(plain, again, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)
    surprise = -dist.log_prob(dist.sample((4_000,)))
    error = surprise.std(0) / math.sqrt(4_000)
    assert ((surprise.mean(0) - dist.entropy()).abs() < 5 * error).all()
    learner = PPO(env, policy, make_value_network(env, hidden=(8,)), unroll_length=5)
    assert all(math.isfinite(value) for value in learner.iterate().values())
    assert list(policy.parameter_groups()) == ["discrete", "continuous"]


class Plain(torch.nn.Module):
    """A network that says nothing of itself."""

    def __init__(self, observation_dim, num_discrete, continuous_dim, dtype, **others):
        super().__init__()
        self.choice = torch.nn.Linear(observation_dim, num_discrete, dtype=dtype)
        self.amount = torch.nn.Linear(observation_dim, 2 * continuous_dim, dtype=dtype)

    def forward(self, observation):
        amount = self.amount(observation).exp().unflatten(-1, (2, -1))
        return self.choice(observation), amount, None


@pytest.mark.parametrize("network", [Plain, Plain(4, 2, 2, DOUBLE)], ids=["class", "module"])
def test_a_network_is_chosen_for_an_environment(network):
    env = bounded()
    policy = HybridPolicy.for_env(env, network=network)
    assert isinstance(policy.network, Plain)
    groups = {name: list(group) for name, group in policy.parameter_groups().items()}
    assert all("choice" in name for name in groups["discrete"])
    assert all("amount" in name for name in groups["continuous"])
    assert differentiable_rollout(env, policy, 3)["next", "reward"].requires_grad
    with pytest.raises(TypeError, match="module already, so hidden cannot"):
        HybridPolicy.for_env(env, network=policy.network, hidden=(8,))
    with pytest.raises(TypeError, match="must be a module or a callable, got 3"):
        HybridPolicy.for_env(env, network=3)


def test_wrong_distributions_are_named():
    with pytest.raises(ValueError, match="distribution must be one of 'normal', 'squashed_normal'"):
        HybridNetwork(3, 2, 2, distribution="beta")
    with pytest.raises(TypeError, match="subclass of ContinuousDistribution"):
        HybridNetwork(3, 2, 2, distribution=lambda action_range: 3)
    of_total = BranchBounds(torch.tensor([0.0, 1.0]), torch.tensor([1.0, INF]), of_total=True)
    with pytest.raises(ValueError, match="limit the sum over coordinates; use"):
        HybridNetwork(3, 2, 2, branch_bounds=of_total, distribution="squashed_normal")
    with pytest.raises(ValueError, match="low <= high"):
        ActionRange(([2.0, 0.0], 1.0), UNIT)
    assert HybridDistribution(torch.zeros(3, 2), torch.zeros(3, 2, 1)).entropy().shape == (3,)


@pytest.mark.parametrize("learn_scale", [False, True])
@pytest.mark.parametrize(
    ("bounds", "varies"),
    [
        (BranchBounds([[0.0, 0.0], [1.0, -1.0]], [[0.0, 2.0], [1.0, INF]]), [[0, 1], [0, 1]]),
        # Sums of what is at least 0: only a sum of 0 has one way to be made.
        (BranchBounds([0.0, 3.0], [0.0, 3.0], of_total=True), [[0, 0], [1, 1]]),
    ],
)
def test_a_normal_action_of_one_value_has_no_noise(bounds, varies, learn_scale):
    how = {"branch_bounds": bounds, "scale": 0.3, "learn_scale": learn_scale, "hidden": [4]}
    network = HybridNetwork(3, 2, 2, **how)
    dist = HybridDistribution(*network(torch.randn(2000, 3)), distribution=network.distribution)
    action = dist.rsample()
    for branch in range(2):
        rows = action["continuous"][action["discrete"] == branch]
        away = (rows - dist.loc[action["discrete"] == branch, branch]).detach()
        assert (away.std(0) > 0).tolist() == [bool(one) for one in varies[branch]]
