"""The exact gradient against brute force, and the parts of the loss that reduce variance."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from tiny_problems import DOUBLE, PROBLEMS, gradient, returns
from torchrl.envs import TransformedEnv

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.diagnostics import exact_gradient
from hpo_torchrl.modules import HybridNetwork, HybridPolicy, make_value_network
from hpo_torchrl.objectives import CrossTermWeight, HPOLoss
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv

TERMS = ("total", "pathwise", "score_function", "cross")


def assert_near(found, expected, tolerance=1e-10):
    assert expected.norm() > 0
    assert (found - expected).norm() <= tolerance * expected.norm()


# -- brute force ---------------------------------------------------------------------------------


def brute_force(problem):
    """Objective and gradients by a loop over all sequences of options, normal draws and noise.

    With the whole return from t as the advantage: no tree, no values, no baseline.
    """
    env, network = problem.environment(), problem.policy.network
    parameters = list(problem.named.values())
    frozen = {name: value.detach() for name, value in network.named_parameters()}
    start, given, support = problem.staging
    nodes = [(torch.zeros(env.continuous_dim, dtype=DOUBLE), 1.0)]
    if problem.gaussian:
        points, mass = np.polynomial.hermite_e.hermegauss(problem.nodes)
        nodes = [
            (torch.tensor(draw, dtype=DOUBLE), math.prod(weights))
            for draw, weights in zip(
                itertools.product(points, repeat=env.continuous_dim),
                itertools.product(mass / mass.sum(), repeat=env.continuous_dim),
                strict=True,
            )
        ]
    noises = [(None, 1.0)] if support is None else list(zip(*support, strict=True))
    objective, found = 0.0, dict.fromkeys(TERMS, 0.0)
    branches = list(itertools.product(range(env.num_discrete), nodes, noises))
    for sequence in itertools.product(branches, repeat=problem.steps):
        state = {**start, "step": torch.zeros(problem.starts, 1, dtype=torch.int64)}
        weight, probability, rewards, theta, through_state = 1.0, 1.0, [], [], []
        for t, (option, (draw, mass), (value, chance)) in enumerate(sequence):
            observation = env.observe(state)
            logits, loc, scale = network(observation)
            u = loc[:, option] if scale is None else loc[:, option] + scale[:, option] * draw
            probability = probability * logits.softmax(-1)[:, option]
            theta.append(network(observation.detach())[0].log_softmax(-1)[:, option])
            held = torch.func.functional_call(network, frozen, (observation,))[0]
            through_state.append(held.log_softmax(-1)[:, option])
            weight = weight * mass * chance
            noise = given[:, t] if value is None else value.expand(problem.starts, -1)
            action = {"discrete": torch.full((problem.starts,), option), "continuous": u}
            after, reward = env.dynamics(state, action, noise)
            state = {**after, "step": state["step"] + 1}
            rewards.append(reward)
        total = sum(rewards)
        weighed = weight * probability / problem.starts
        objective = objective + (weighed * total).sum()
        chosen = weighed.detach()
        later = [sum(rewards[t:]).detach() for t in range(problem.steps)]
        found["pathwise"] += (chosen * total).sum()
        for name, scores in (("score_function", theta), ("cross", through_state)):
            pairs = zip(scores, later, strict=True)
            found[name] += (chosen * sum(score * value for score, value in pairs)).sum()
    found["total"] = objective
    return objective.detach(), {
        name: gradient(scalar, parameters) for name, scalar in found.items()
    }


def shrunk(name, **sizes):
    """A problem of the table, made smaller."""
    problem = PROBLEMS[name]()
    for key, value in sizes.items():
        setattr(problem, key, value)
    problem.__post_init__()
    return problem


BRUTE = {
    "linear, 3 modes": {"steps": 3},
    "curved, 2 modes": {},
    "curved, noise": {"steps": 3},
    "curved, shared trunk": {"steps": 2},
    "curved, window": {},
    "inventory, L=0, n=2": {"steps": 3},
    "inventory, L=2": {"steps": 3},
    "gaussian, linear, u of 2": {"nodes": 2},
    "gaussian, curved, noise": {"nodes": 2, "support": 2},
}


@pytest.mark.parametrize("name", BRUTE)
def test_terms_are_those_of_brute_force(name):
    problem = shrunk(name, **BRUTE[name])
    exact = problem.exact()
    objective, found = brute_force(problem)
    assert exact.objective == pytest.approx(objective.item(), rel=1e-12)
    for term in TERMS:
        assert_near(problem.flat(getattr(exact, term)), found[term])


@pytest.mark.parametrize("name", PROBLEMS)
def test_terms_add_up_and_the_total_is_the_slope_of_the_objective(name):
    problem = PROBLEMS[name]()
    exact = problem.exact()
    total, *terms = (problem.flat(getattr(exact, term)) for term in TERMS)
    assert_near(sum(terms), total)
    assert exact.norm("total") == pytest.approx(total.norm().item())
    assert set(exact.total) == set(problem.named)
    # The quantity of the option not to order is never used, nor is anything else idle.
    inputs = problem.policy.network.skip.weight.shape[1]
    idle = problem.dim * (3 + 1 + inputs) if problem.kind == "inventory" else 0
    assert (total == 0).sum() == idle
    assert all(exact.cross[key].shape == value.shape for key, value in problem.named.items())

    direction = {key: torch.randn_like(value) for key, value in problem.named.items()}
    kept = {key: value.detach().clone() for key, value in problem.named.items()}
    width, objectives = 1e-5, []
    for sign in (1.0, -1.0):
        for key, value in problem.named.items():
            value.data.copy_(kept[key] + sign * width * direction[key])
        objectives.append(problem.exact().objective)
    slope = (objectives[0] - objectives[1]) / (2 * width)
    assert slope == pytest.approx(float(total @ problem.flat(direction)), rel=1e-4)


def test_any_distribution_of_u_is_integrated():
    torch.manual_seed(0)
    env = SwitchedLQREnv.from_recipe(2, 2, batch_size=3, dtype=DOUBLE, seed=0)
    bounds = {"continuous_bounds": (-1.0, 2.0), "distribution": "squashed_normal"}
    size = env.observation_spec["observation"].shape[-1]
    policy = HybridPolicy(HybridNetwork(size, 2, 2, hidden=(4,), scale=0.4, dtype=DOUBLE, **bounds))
    for parameter in policy.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    start, noise = env.reset(), env.sample_noise(1)
    exact = exact_gradient(env, policy, 1, tensordict=start, noise=noise, num_nodes=30)
    # The trapezoidal rule on a fine grid of the normal noise.
    line = torch.linspace(-8.0, 8.0, 81, dtype=DOUBLE)
    draws = torch.cartesian_prod(line, line).unsqueeze(1).expand(-1, 3, -1)
    weights = (-0.5 * draws.square().sum(-1)).exp() * (0.2**2 / (2 * math.pi))
    dist = policy.distribution(start["observation"])
    objective = 0.0
    for discrete in range(2):
        u = dist.actions(draws)[..., discrete, :]
        taken = {"discrete": torch.full(u.shape[:-1], discrete), "continuous": u}
        state = {name: start[name].expand(len(u), *start[name].shape) for name in env.state_names}
        reward = env.advance(state, taken, noise[:, 0].expand(len(u), *noise[:, 0].shape))[1]
        objective = objective + (weights * reward.squeeze(-1)).sum(0) * dist.probs[:, discrete]
    assert exact.objective == pytest.approx(objective.mean().item(), rel=1e-8)
    found = torch.cat([part.flatten() for part in exact.total.values()])
    named = dict(policy.named_parameters())
    assert_near(found, gradient(objective.mean(), [named[name] for name in exact.total]), 1e-7)


def test_quadrature_is_the_closed_form_of_a_quadratic_reward():
    problem = shrunk("gaussian, linear, u of 2", steps=1, nodes=2)
    env = problem.environment()
    x = problem.staging[0]["x"]
    logits, loc, scale = problem.policy.network(env.observe({"x": x, "step": torch.zeros(2, 1)}))
    value = -torch.einsum("si,mij,sj->sm", x, env.Q, x)
    value = value - torch.einsum("smi,mij,smj->sm", loc, env.R, loc)
    value = value - torch.einsum("smi,mii->sm", scale**2, env.R)
    objective = (logits.softmax(-1) * value).sum(-1).mean()
    exact = problem.exact()
    assert exact.objective == pytest.approx(objective.item(), rel=1e-12)
    assert_near(problem.flat(exact.total), gradient(objective, list(problem.named.values())))
    assert exact.norm("cross") == 0.0  # the only state is given


ENVS = {
    "inventory": lambda **kwargs: InventoryEnv(2, 1, initial_state="random", **kwargs),
    "linear": lambda **kwargs: SwitchedLQREnv.from_recipe(3, 2, **kwargs),
}


@pytest.mark.parametrize("name", ENVS)
def test_single_precision_is_computed_in_double(name):
    found = []
    for dtype in (DOUBLE, torch.float32):
        env = ENVS[name](batch_size=3, seed=0, dtype=dtype)
        policy = HybridPolicy.for_env(env, hidden=(3,), activation="tanh")
        generator = torch.Generator().manual_seed(0)
        for parameter in policy.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.3 * draw)
        given = torch.Generator().manual_seed(1)
        start = env.reset()
        for key in set(env.state_names) - {"step"}:
            start[key].copy_(3 * torch.randn(start[key].shape, generator=given))
        noise = torch.rand(3, 4, *env.noise_shape, generator=given)
        found.append(exact_gradient(env, policy, 4, tensordict=start, noise=noise))
        assert all(part.dtype == DOUBLE for part in found[-1].total.values())
        assert all(parameter.dtype == dtype for parameter in policy.parameters())
        assert all(parameter.grad is None for parameter in policy.parameters())
    double, single = found
    assert single.objective == pytest.approx(double.objective, rel=1e-5)
    torch.testing.assert_close(single.total, double.total, rtol=1e-4, atol=1e-5)


def test_any_batch_shape_and_start_are_taken():
    flat = InventoryEnv(batch_size=4, initial_state="random", seed=0, dtype=DOUBLE)
    policy = PROBLEMS["inventory, L=2"]().policy
    start, noise = flat.reset(), flat.sample_noise(3)
    start["step"] += 5
    expected = exact_gradient(flat, policy, 3, tensordict=start, noise=noise)
    env = InventoryEnv(batch_size=(2, 2), dtype=DOUBLE)
    shaped, noise = start.reshape(2, 2), noise.reshape(2, 2, 3, 1)
    found = exact_gradient(env, policy, 3, tensordict=shaped, noise=noise)
    assert found.objective == pytest.approx(expected.objective, rel=1e-12)
    torch.testing.assert_close(found.total, expected.total)
    alone = exact_gradient(InventoryEnv(dtype=DOUBLE, seed=1), policy, 3)
    assert alone.norm("total") > 0.0


def test_start_and_noise_are_drawn_by_the_environment():
    env, policy = (
        InventoryEnv(batch_size=3, seed=4, dtype=DOUBLE),
        PROBLEMS["inventory, L=2"]().policy,
    )
    found = exact_gradient(env, policy, 3)
    env.set_seed(4)
    start, noise = env.reset(), env.sample_noise(3)
    expected = exact_gradient(env, policy, 3, tensordict=start, noise=noise)
    torch.testing.assert_close(found.total, expected.total, rtol=0.0, atol=0.0)


# -- what is refused -----------------------------------------------------------------------------


def small(**kwargs):
    return InventoryEnv(**{"batch_size": 2, "seed": 0, "horizon": 5, "dtype": DOUBLE} | kwargs)


SUPPORT, HALVES = torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 0.5])
REFUSED = {
    "no steps": ({"num_steps": 0}, "num_steps"),
    "noise of the wrong shape": (
        {"noise": torch.ones(2, 4, 1)},
        r"noise must have shape .* \(2, 3, 1\), got \(2, 4, 1\)",
    ),
    "noise given twice": (
        {"noise": torch.ones(2, 3, 1), "noise_support": (SUPPORT, HALVES)},
        "either noise",
    ),
    "support of the wrong shape": (
        {"noise_support": (SUPPORT[:, 0], HALVES)},
        "noise_support must be values of shape",
    ),
    "no distribution": ({"noise_support": (SUPPORT, HALVES / 2)}, "got a sum of 0.5"),
    "negative probability": (
        {"noise_support": (SUPPORT, torch.tensor([1.5, -0.5]))},
        "must be >= 0",
    ),
    "gaussian without nodes": ({}, "give num_nodes"),
    "gaussian with no node": ({"num_nodes": 0}, "num_nodes"),
    "beyond the episode": ({"num_steps": 6}, "num_steps=6 from step 0 leaves the episode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    kwargs, message = REFUSED[name]
    policy = HybridPolicy.for_env(small(), hidden=(3,), scale=0.3 if "gaussian" in name else 0.0)
    with pytest.raises(ValueError, match=message):
        exact_gradient(small(), policy, **{"num_steps": 3} | kwargs)


def test_other_environments_and_masks_are_refused():
    message = "needs a DifferentiableEnv and a HybridPolicy that reads .* got "
    with pytest.raises(TypeError, match=f"{message}TransformedEnv"):
        exact_gradient(TransformedEnv(small()), HybridPolicy.for_env(small()), 3)
    with pytest.raises(TypeError, match=f"{message}InventoryEnv"):
        exact_gradient(small(), HybridPolicy.for_env(small(), mask_key="mask"), 3)


def test_largest_size_that_is_allowed():
    policy = HybridPolicy.for_env(small(), hidden=(3,))
    assert exact_gradient(small(), policy, 5, max_leaves=64).objective < 0.0
    message = (
        r"2 initial states x \(2 discrete actions x 1 .* 5 steps = 64 rows, above max_leaves=63"
    )
    with pytest.raises(ValueError, match=message):
        exact_gradient(small(), policy, 5, max_leaves=63)


# -- the weight of the cross term ----------------------------------------------------------------


def observe(weight, shares, parameter):
    """Let ``weight`` see steps ``(*B, T)`` whose gradients are ``shares``, ``(*B, T, n)``."""
    weight.observe(shares @ parameter, [parameter])
    return weight


def test_signal_and_power_estimate_the_squared_mean_without_and_with_its_noise():
    parameter = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    mean, rows, steps, spread = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE), 6, 2, 3.0
    draws = []
    for _ in range(400):
        shares = mean + spread * torch.randn(rows, steps, 3, dtype=DOUBLE)
        weight = observe(CrossTermWeight(decay=0.0), shares, parameter)
        draws.append(torch.stack([weight.signal, weight.power]))
    draws = torch.stack(draws)
    signal = mean.square().sum()
    power = signal + 3 * spread**2 / (rows * steps)
    z = (draws.mean(0) - torch.stack([signal, power])) / draws.std(0) * len(draws) ** 0.5
    assert z.abs().max() < 4.0


def test_weight_is_the_ratio_of_running_means():
    parameter = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    first = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]], dtype=DOUBLE)
    second = torch.tensor([[[2.0, 0.0]], [[2.0, 1.0]]], dtype=DOUBLE)
    weight = CrossTermWeight(decay=0.75)
    assert weight.weight == 1.0
    observe(weight, first, parameter)
    assert weight.weight == pytest.approx(3.0 / 5.0)  # (1,2).(3,0) over |(2,1)|^2
    observe(weight, second, parameter)
    signal = 0.75 * 0.25 * 3.0 + 0.25 * 4.0
    power = 0.75 * 0.25 * 5.0 + 0.25 * 4.25
    assert weight.signal == pytest.approx(signal)
    assert weight.power == pytest.approx(power)
    assert weight.weight == pytest.approx(signal / power)
    assert parameter.grad is None


def test_weight_stays_between_0_and_1():
    parameter = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    opposed = torch.tensor([[[1.0]], [[-0.5]]], dtype=DOUBLE)
    assert observe(CrossTermWeight(), opposed, parameter).weight == 0.0
    agreed = torch.ones(4, 3, 1, dtype=DOUBLE)
    assert observe(CrossTermWeight(), agreed, parameter).weight == 1.0
    nothing = torch.zeros(4, 3, 1, dtype=DOUBLE)
    assert observe(CrossTermWeight(), nothing, parameter).weight == 1.0


def test_weight_takes_any_batch_shape_but_a_single_rollout():
    parameter = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    shares = torch.randn(2, 3, 4, 2, dtype=DOUBLE)
    shaped, flat = (
        observe(CrossTermWeight(0.5), s, parameter) for s in (shares, shares.flatten(0, 1))
    )
    assert torch.equal(shaped.signal, flat.signal)
    with pytest.raises(ValueError, match="got a single rollout"):
        observe(CrossTermWeight(), shares[0, :1], parameter)
    with pytest.raises(ValueError, match="decay"):
        CrossTermWeight(1.5)


# -- the loss with it, and with less noisy advantages --------------------------------------------

EXACT = {"clip_epsilon": None, "entropy_coeff": None, "critic_coeff": None}


class Setting:
    """A problem with one sampled rollout of 20 copies."""

    def __init__(self, name="curved, 3 modes"):
        self.problem = PROBLEMS[name]()
        self.policy = self.problem.policy
        self.env = self.problem.environment(20 // self.problem.starts)
        self.batch = differentiable_rollout(self.env, self.policy, self.problem.steps)

    def loss(self, *, weight=None, critic=None, **kwargs):
        loss = HPOLoss(self.policy, critic, **EXACT | kwargs)
        if weight is not None:
            loss.cross_term_weight.decay = 1.0
            loss.cross_term_weight.signal.fill_(weight)
            loss.cross_term_weight.power.fill_(1.0)
        return loss

    def gradient(self, loss, batch=None):
        terms = loss(self.batch if batch is None else batch)
        return gradient(
            terms["loss_pathwise"] + terms["loss_objective"], list(self.policy.parameters())
        )


@pytest.mark.parametrize("expected_choice", [False, True])
@pytest.mark.parametrize("functional", [True, False])
def test_adaptive_cross_term_interpolates(functional, expected_choice):
    setting = Setting()
    if expected_choice:
        setting.batch["action_value"] = torch.randn(*setting.batch.shape, 3, dtype=DOUBLE)
    on, off = (
        setting.gradient(setting.loss(cross_term=cross, functional=functional))
        for cross in (True, False)
    )
    assert (on - off).norm() > 0.01 * off.norm()
    for weight in (0.0, 0.3, 1.0):
        loss = setting.loss(cross_term="adaptive", functional=functional, weight=weight)
        assert_near(setting.gradient(loss), off + weight * (on - off))


@pytest.mark.parametrize("functional", [True, False])
def test_adaptive_weight_is_that_of_the_halves_of_the_batch(functional):
    setting = Setting()
    loss = setting.loss(cross_term="adaptive", functional=functional)
    terms = loss(setting.batch)
    crosses = []
    for half in (slice(0, None, 2), slice(1, None, 2)):
        on, off = (
            setting.gradient(setting.loss(cross_term=cross), setting.batch[half])
            for cross in (True, False)
        )
        crosses.append(off - on)
    first, second = crosses
    ratio = (first @ second) / (0.5 * (first + second)).square().sum()
    torch.testing.assert_close(terms["cross_term_weight"], ratio.clamp(0.0, 1.0))
    assert loss.cross_term_weight.signal == pytest.approx(0.05 * (first @ second).item())


def test_cross_term_leaves_values_alone():
    setting, values = Setting(), []
    for cross in (True, False, "adaptive"):
        for functional in (True, False):
            terms = setting.loss(cross_term=cross, functional=functional)(setting.batch)
            values.append(torch.stack([terms["loss_pathwise"], terms["loss_objective"]]))
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-14, atol=0.0)


def test_a_cross_term_of_another_kind_is_refused():
    policy = PROBLEMS["curved, noise"]().policy
    for wrong in ("yes", None, 1, 0.5):
        with pytest.raises(ValueError, match="cross_term must be true, false or 'adaptive'"):
            HPOLoss(policy, cross_term=wrong)


def test_weight_survives_a_state_dict():
    setting = Setting()
    loss = setting.loss(cross_term="adaptive")
    loss(setting.batch)
    other = setting.loss(cross_term="adaptive")
    assert other.cross_term_weight.weight == 1.0
    other.load_state_dict(loss.state_dict())
    for name in ("signal", "power", "weight"):
        found = getattr(other.cross_term_weight, name)
        assert torch.equal(found, getattr(loss.cross_term_weight, name))
    assert other.cross_term_weight.power > 0.0


@pytest.mark.parametrize("shape", [(20,), (4, 5)])
def test_leave_one_out_is_the_return_less_the_others_mean(shape):
    setting = Setting()
    advantage = setting.loss(baseline="leave_one_out").advantages(
        setting.batch.detach().reshape(*shape, -1)
    )["advantage"]
    value = returns(setting.batch).unsqueeze(-1)
    for row in range(20):
        others = [value[other] for other in range(20) if other != row]
        expected = value[row] - torch.stack(others).mean(0)
        torch.testing.assert_close(advantage.flatten(0, -3)[row], expected)


def test_refusals_of_baselines():
    setting = Setting()
    critic = make_value_network(setting.env, hidden=(3,))
    with pytest.raises(ValueError, match="takes the place of a critic"):
        setting.loss(critic=critic, baseline="leave_one_out")
    with pytest.raises(ValueError, match="baseline"):
        setting.loss(baseline="mean")
    with pytest.raises(ValueError, match="got a single one"):
        setting.loss(baseline="leave_one_out")(setting.batch[:1])


@pytest.mark.parametrize("name", ["linear, 3 modes", "inventory, L=0", "gaussian, curved, noise"])
def test_expected_options_with_exact_values_are_the_exact_score_function(name):
    """One step, where Q is the reward: no sampled option, no variance left."""
    problem = shrunk(name, steps=1)
    start, noise, support = problem.staging
    batch = differentiable_rollout(problem.environment(), problem.policy, 1)
    env, options = problem.environment(), range(problem.environment().num_discrete)
    nodes, mass = np.polynomial.hermite_e.hermegauss(problem.nodes or 1)
    noises = [(noise[:, 0], 1.0)] if support is None else zip(*support, strict=True)
    state = {**start, "step": torch.zeros(problem.starts, 1, dtype=torch.int64)}
    logits, loc, scale = problem.policy.network(env.observe(state))
    value = torch.zeros_like(logits)
    for (given, chance), (node, share) in itertools.product(
        noises, zip(nodes, mass / mass.sum(), strict=True)
    ):
        for option in options:
            u = loc[:, option] if scale is None else loc[:, option] + scale[:, option] * node
            taken = {"discrete": torch.full((problem.starts,), option), "continuous": u}
            reward = env.dynamics(state, taken, given.expand(problem.starts, -1))[1]
            value[:, option] = value[:, option] + chance * share * reward
    batch["action_value"] = value.detach().unsqueeze(1)
    loss = HPOLoss(problem.policy, **EXACT | {"clip_epsilon": 0.2})
    terms = loss(batch)
    found = -gradient(terms["loss_objective"], list(problem.named.values()))
    assert_near(found, problem.flat(problem.exact().score_function))
    assert terms["loss_objective"].abs() < 1e-12  # an expected advantage is 0


def test_expected_options_gradient_by_its_formula():
    """Logits receive pi_d (Q_d - V), whatever was sampled; a constant in Q counts for nothing."""
    setting = Setting()
    bias = setting.policy.network.discrete[-1].bias
    value = torch.randn(*setting.batch.shape, 3, dtype=DOUBLE)
    dist = setting.policy.distribution(setting.batch["observation"].detach())
    advantage = value - (dist.probs * value).sum(-1, keepdim=True)
    expected = -(dist.probs * advantage).detach().mean((0, 1))
    for shifted in (value, value + 7.0, value + torch.randn(*setting.batch.shape, 1)):
        batch = setting.batch.copy().set("action_value", shifted)
        batch["action", "discrete"] = torch.randint(3, batch.shape)
        objective = setting.loss()(batch)["loss_objective"]
        assert_near(gradient(objective, [bias]), expected)
