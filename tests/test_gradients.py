"""The mixed gradient against the exact one, obtained by enumerating every option sequence."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from tiny_problems import Curved, gradient, returns, scale_gradient

import hpo_torchrl.modules
from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.modules import HybridNetwork, HybridPolicy, make_value_network
from hpo_torchrl.modules.sampling import HybridDraw, chosen_branch
from hpo_torchrl.objectives import HPOLoss
from hpo_torchrl.problems import InventoryEnv

STARTS, DIM = 3, 2
_generator = torch.Generator().manual_seed(5)
A = 0.5 * torch.randn(3, DIM, DIM, generator=_generator, dtype=torch.float64)
B = 0.7 * torch.randn(3, DIM, DIM, generator=_generator, dtype=torch.float64)


@contextlib.contextmanager
def forced(options, normals=None):
    """Let policies take these options ``(*B, T)`` and normal draws ``(*B, T, n)``, step by step."""
    steps = iter(range(options.shape[-1]))

    def draw(distribution, logits, loc, scale, noise, heads):
        t = next(steps)
        loc, scale, _ = chosen_branch(loc, scale, options[..., t])
        u = (loc if scale is None else loc + scale * normals[..., t, :].unsqueeze(-2)).squeeze(-2)
        return HybridDraw(options[..., t], u, logits)

    with pytest.MonkeyPatch.context() as patch:
        for module in (hpo_torchrl.modules.policy, hpo_torchrl.modules.sampling):
            patch.setattr(module, "draw", draw)
        yield


def randomise(module, seed=0, size=0.5):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(size * draw - (2 * size if name == "log_scale" else 0))
    return module


class Case:
    """A tiny problem with fixed initial states and noise, its policy, and both gradients."""

    def __init__(self, options=2, steps=4, *, horizon=None, terminates=True, **network):
        generator = torch.Generator().manual_seed(1)
        self.options, self.steps, self.terminates = options, steps, terminates
        self.horizon = horizon or steps
        network = {"hidden": (3,), "dtype": torch.float64} | network
        self.policy = HybridPolicy(
            randomise(HybridNetwork(DIM, options, DIM, **{"activation": "tanh"} | network))
        )
        self.parameters = list(self.policy.parameters())
        draw = {"generator": generator, "dtype": torch.float64}
        self.start = torch.randn(STARTS, DIM, **draw)
        self.noise = 0.3 * torch.randn(STARTS, steps, DIM, **draw)
        self.normals = torch.randn(STARTS, steps, DIM, **draw)
        self.sequences = torch.cartesian_prod(*[torch.arange(options)] * steps)
        self.critic = randomise(make_value_network(self.env(1), hidden=(3,)), 2, 1.0)

    def env(self, copies, *, cut=False):
        env = Curved(
            A[: self.options],
            B[: self.options],
            horizon=self.horizon,
            horizon_terminates=self.terminates,
            batch_size=copies * STARTS,
            seed=0,
        )
        env.cut = cut
        return env.stage({"x": self.start}, self.noise, None)

    def gradient(self, scalar):
        return gradient(scalar, self.parameters)

    def exact(self, *, gamma=1.0, bootstrap=False):
        """Gradient of E sum_t r_t + bootstraps; step t acts for the return discounted from t."""
        log_p = total = torch.zeros(len(self.sequences), STARTS, dtype=torch.float64)
        network, named = self.policy.network, dict(self.policy.network.named_parameters())
        env = self.env(1)
        for t in range(self.steps):
            if t % self.horizon == 0:
                x = self.start.expand(len(self.sequences), STARTS, DIM)
            held = {key: scale_gradient(value, gamma**-t) for key, value in named.items()}
            logits, loc, scale = torch.func.functional_call(network, held, (x,))
            d = self.sequences[:, t, None].expand(-1, STARTS)
            log_p = log_p + logits.log_softmax(-1).gather(-1, d[..., None])[..., 0]
            u = torch.take_along_dim(loc, d[..., None, None], -2)[..., 0, :]
            if scale is not None:
                sigma = torch.take_along_dim(scale, d[..., None, None], -2)[..., 0, :]
                u = u + sigma * self.normals[:, t]
            action = {"discrete": d, "continuous": u}
            after, reward = env.dynamics({"x": x}, action, self.noise[:, t])
            x = after["x"]
            total = total + gamma**t * reward
            if bootstrap and (t + 1) % self.horizon == 0:
                total = total + gamma ** (t + 1) * self.critic.module(x)[..., 0]
        return self.gradient((log_p.exp() * total).sum(0).mean())

    def loss(self, *, critic=False, gamma=1.0, **kwargs):
        kwargs = {"clip_epsilon": None, "reduction": "none"} | kwargs
        loss = HPOLoss(self.policy, self.critic if critic else None, **kwargs)
        loss.make_value_estimator(gamma=gamma, **({"lmbda": 1.0} if critic else {}))
        return loss

    def batch(self, options, *, discount=1.0, route="auto", cut=False):
        copies = len(options)
        normals, noise = (part.repeat(copies, 1, 1) for part in (self.normals, self.noise))
        how = {"noise": noise, "discount": discount, "route": route}
        with forced(options.repeat_interleave(STARTS, 0), normals):
            return differentiable_rollout(self.env(copies, cut=cut), self.policy, self.steps, **how)

    def mixed(self, loss, *, advantage=None, scale=None, **rollout):
        """Expectation of minus the loss's gradient: each sequence weighted by its probability."""
        batch = self.batch(self.sequences, **rollout)
        if scale is not None:
            batch.set(("next", "reward"), scale * batch["next", "reward"])
        if advantage is not None:
            batch.set("advantage", advantage(batch.detach()).unsqueeze(-1))
        probability = batch["discrete_log_prob"].sum(-1).exp()
        torch.testing.assert_close(probability.sum(), torch.tensor(float(STARTS)).double())
        terms = loss(batch)
        surrogate = (terms["loss_pathwise"] + terms["loss_objective"]).sum(-1)
        return -self.gradient((probability * surrogate).sum() / STARTS)


def assert_equal(found, exact):
    assert exact.abs().min() > 1e-7  # every coordinate is at stake
    assert (found - exact).abs().max() < 1e-9


CASES = {
    "two options": {"steps": 5},
    "three options": {"options": 3},
    "shared trunk": {"options": 3, "steps": 3, "shared_trunk": True},
    "no trunk": {"hidden": ()},
    "bounded actions": {"continuous_bounds": (-1.0, 2.0)},
    "half-open actions": {"continuous_bounds": (0.0, None)},
    "gaussian actions, noise held": {"scale": 0.4, "learn_scale": True},
    "two episodes in a window": {"horizon": 2},
}


@pytest.mark.parametrize(("critic", "clip_epsilon"), [(False, None), (True, 0.2)])
@pytest.mark.parametrize("route", ["functional", "general"])
@pytest.mark.parametrize("case", CASES)
def test_mixed_gradient_is_exact(case, route, critic, clip_epsilon):
    """In the first pass also with clipping."""
    case = Case(**CASES[case])
    loss = case.loss(critic=critic, clip_epsilon=clip_epsilon)
    assert_equal(case.mixed(loss, route=route), case.exact())


@pytest.mark.parametrize("gamma", [1.0, 0.875])
@pytest.mark.parametrize("route", ["functional", "general"])
@pytest.mark.parametrize(
    ("critic", "terminates", "horizon"),
    [(False, True, 4), (True, True, 2), (True, False, 4), (True, False, 2)],
)
def test_discounts_and_bootstraps_are_exact(critic, terminates, horizon, route, gamma):
    case = Case(horizon=horizon, terminates=terminates)
    bootstrap = critic and not terminates
    exact = case.exact(gamma=gamma, bootstrap=bootstrap)
    loss = case.loss(critic=critic, gamma=gamma)
    assert_equal(case.mixed(loss, discount=gamma, route=route), exact)
    if bootstrap:
        assert (case.exact(gamma=gamma) - exact).norm() > 0.01 * exact.norm()
    if gamma < 1.0:
        assert (case.exact(bootstrap=bootstrap) - exact).norm() > 0.01 * exact.norm()


def test_mean_of_the_loss_is_the_gradient_over_the_number_of_steps():
    case = Case(steps=3)
    loss, total = case.loss(reduction="mean"), 0.0
    for sequence, start in itertools.product(case.sequences, range(STARTS)):
        one = case.batch(sequence[None])[start : start + 1]
        terms = loss(one)
        share = case.gradient(terms["loss_pathwise"] + terms["loss_objective"])
        probability = one["discrete_log_prob"].sum().exp()
        total = total - probability * case.steps * share / STARTS
    assert_equal(total, case.exact())


LEGITIMATE = {
    "returns": returns,
    "baseline of the state": lambda b: returns(b) - (b["observation"] ** 3).sum(-1) - 2.0,
    "past rewards too": lambda b: returns(b)[:, :1].expand(b.shape),
}


@pytest.mark.parametrize("advantage", LEGITIMATE)
def test_legitimate_advantages_leave_the_gradient_exact(advantage):
    case = Case(options=3)
    assert_equal(case.mixed(case.loss(), advantage=LEGITIMATE[advantage]), case.exact())


WRONG = {
    "of the wrong sign": lambda b: -returns(b),
    "one step late": lambda b: torch.nn.functional.pad(returns(b)[:, 1:], (0, 1)),
    "one reward": lambda b: b["next", "reward"].squeeze(-1),
    "baseline that sees the option": lambda b: returns(b) - b["action", "discrete"],
    "on a scale of its own": lambda b: returns(b) / returns(b).std(),
}
FAULTS = {f"advantage {name}": ({}, {"advantage": wrong}) for name, wrong in WRONG.items()} | {
    "cross term missing": ({"cross_term": False}, {}),
    "state detached": ({}, {"cut": True}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault):
    case = Case(options=3)
    loss, how = FAULTS[fault]
    exact = case.exact()
    error = (case.mixed(case.loss(**loss), **how) - exact).norm() / exact.norm()
    assert error > 0.02


@pytest.mark.parametrize("factor", [4.0, 0.3])
def test_rescaling_rewards_rescales_the_gradient(factor):
    case = Case()
    once, scaled = case.mixed(case.loss()), case.mixed(case.loss(), scale=factor)
    rtol = 0.0 if factor == 4.0 else 1e-11  # a power of two is exact to the last bit
    torch.testing.assert_close(scaled, factor * once, rtol=rtol, atol=0.0)


# -- finite differences --------------------------------------------------------------------------


def finite_differences(parameters, function, width=1e-5):
    slopes = []
    with torch.no_grad():
        for entry in itertools.chain(*(p.view(-1).split(1) for p in parameters)):
            kept, values = entry.clone(), []
            for sign in (1, -1):
                entry.copy_(kept + sign * width)
                values.append(function())
            entry.copy_(kept)
            slopes.append((values[0] - values[1]) / (2 * width))
    return torch.stack(slopes)


def make(name):
    if name == "switched":
        case = Case(steps=6, horizon=4, scale=0.4, learn_scale=True)
        return case.env(1), case.policy
    env = InventoryEnv(2, batch_size=STARTS, initial_state="random", seed=3, dtype=torch.float64)
    return env, randomise(HybridPolicy.for_env(env, hidden=(3,), activation="tanh"), size=0.2)


@pytest.mark.parametrize("route", ["functional", "general"])
@pytest.mark.parametrize("name", ["switched", "inventory"])
def test_rollout_gradient_is_that_of_finite_differences(name, route):
    env, policy = make(name)
    start, noise, parameters = env.reset(), env.sample_noise(6), list(policy.parameters())
    torch.manual_seed(0)
    options = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 1]])
    normals = torch.randn(STARTS, 6, DIM, dtype=torch.float64)
    loss = HPOLoss(policy, clip_epsilon=None)
    advantage = torch.randn(STARTS, 6, 1, dtype=torch.float64)

    def surrogate():
        with torch.enable_grad(), forced(options, normals):
            batch = differentiable_rollout(
                env, policy, 6, tensordict=start, noise=noise, route=route
            )
            terms = loss(batch.set("advantage", advantage))
        return terms["loss_pathwise"] + terms["loss_objective"]

    found = gradient(surrogate(), parameters)
    slopes = finite_differences(parameters, lambda: surrogate().detach())
    assert found.norm() > 0.1
    torch.testing.assert_close(found, slopes, rtol=1e-5, atol=1e-6)
