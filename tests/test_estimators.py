"""The straight-through rollout and branched returns, against slow versions written here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from tiny_problems import scale_gradient
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.collectors import (
    branched_returns,
    differentiable_rollout,
    straight_through_rollout,
)
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridNetwork, HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv

DIM = 2
_generator = torch.Generator().manual_seed(3)
A = 0.6 * torch.randn(3, DIM, DIM, generator=_generator, dtype=torch.float64)
B = 0.7 * torch.randn(3, DIM, DIM, generator=_generator, dtype=torch.float64)


def step(x, d, u, noise):
    """Switched dynamics, curved in x: the next state and the reward."""
    after = (A[d] @ x[..., None] + B[d] @ u[..., None])[..., 0] + 0.4 * x.sin() + noise
    return after, -(after**2).sum(-1) - 0.3 * (u**2).sum(-1) - 0.2 * d


class Switched(DifferentiableEnv):
    """``step``, with a counter of the times that option 1 was chosen."""

    def __init__(self, batch_size=4, options=3, horizon=None, terminates=True, dynamics=step):
        self.step_function = dynamics
        super().__init__(
            num_discrete=options,
            continuous_dim=DIM,
            state_shapes={"x": (DIM,), "count": (1,)},
            observation_dim=DIM,
            noise_shape=(DIM,),
            horizon=horizon,
            horizon_terminates=terminates,
            batch_size=batch_size,
            dtype=torch.float64,
            seed=0,
        )

    def dynamics(self, state, action, noise):
        d = action["discrete"]
        after, reward = self.step_function(state["x"], d, action["continuous"], noise)
        return {"x": after, "count": state["count"] + (d == 1).long().unsqueeze(-1)}, reward

    def observe(self, state):
        return state["x"]

    def initial_state(self):
        count = torch.zeros(*self.batch_size, 1, dtype=torch.int64)
        shape = (*self.batch_size, DIM)
        return {"x": torch.randn(shape, generator=self.rng, dtype=torch.float64), "count": count}

    def draw_noise(self, num_steps, state):
        shape = (*self.batch_size, num_steps, DIM)
        return 0.3 * torch.randn(shape, generator=self.rng, dtype=torch.float64)


class Sharp(nn.Module):
    """A network whose huge logits leave nothing to chance, though every option is chosen."""

    stochastic = False

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, observation):
        logits, loc, scale = self.network(observation)
        return 1e9 * logits, loc, scale


def policy_for(env, *, sharp=False, seed=0, **arguments):
    """Build a policy off its special start: all parameters are random."""
    dimension = env.observation_spec["observation"].shape[-1]
    kwargs = {"hidden": (5,), "activation": "tanh", "dtype": env.float_dtype} | arguments
    kwargs |= {"continuous_bounds": env.continuous_bounds, "action_scale": env.action_scale}
    network = HybridNetwork(dimension, env.num_discrete, env.continuous_dim, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(0.5 * draw - (1.0 if name == "log_scale" else 0.0))
    return HybridPolicy(Sharp(network) if sharp else network)


MASKED = HybridPolicy(policy_for(Switched()).network, mask_key="allowed")


def gradient(output, policy):
    parameters = list(policy.parameters())
    return torch.autograd.grad(
        output.sum(), parameters, allow_unused=True, materialize_grads=True, retain_graph=True
    )


def assert_close(found, expected, rtol=1e-9):
    assert any(part.any() for part in expected)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-10)


def assert_identical(one, other):
    """The same entries with the same bits: -0 is not 0."""
    assert one.shape == other.shape
    assert one.names == other.names
    assert set(one.keys(True, True)) == set(other.keys(True, True))
    for key, value in one.detach().items(True, True):
        assert value.dtype == other[key].dtype
        raw = value.numpy().tobytes(), other[key].detach().numpy().tobytes()
        assert raw[0] == raw[1], key


# -- straight-through ----------------------------------------------------------------------------

ENVS = {
    "switched": lambda: Switched(),
    "one option": lambda: Switched(options=1),
    "resets": lambda: Switched(horizon=3),
    "truncating": lambda: Switched(horizon=2, terminates=False),
    "no batch": lambda: Switched(()),
    "two batch dims": lambda: Switched((2, 3)),
    "inventory": lambda: InventoryEnv(3, batch_size=5, seed=0, initial_state="random"),
    "instant orders": lambda: InventoryEnv(
        2, 0, batch_size=5, seed=0, initial_state="random", lost_sales=True, horizon=4
    ),
}


@pytest.mark.parametrize(
    ("scale", "mode"), [(0.0, ExplorationType.DETERMINISTIC), (0.3, ExplorationType.RANDOM)]
)
@pytest.mark.parametrize("name", ENVS)
def test_forward_is_that_of_a_differentiable_rollout_to_the_last_bit(name, scale, mode):
    policy = policy_for(ENVS[name](), scale=scale)
    rollouts = []
    for roll in (straight_through_rollout, differentiable_rollout):
        torch.manual_seed(1)
        with set_exploration_type(mode):
            rollouts.append(roll(ENVS[name](), policy, 7, discount=0.9))
    assert_identical(*rollouts)
    found, pathwise = (gradient(rollout["next", "reward"], policy) for rollout in rollouts)
    logits = [key.startswith("discrete") for key, _ in policy.network.named_parameters()]
    for part, other, steers in zip(found, pathwise, logits, strict=True):
        if name == "one option":
            assert torch.equal(part, other)
        elif steers:
            assert not other.any()
            assert part.any()


def test_given_start_noise_and_temperature_leave_the_forward_alone():
    env = Switched(horizon=5)
    policy, start, noise = policy_for(env, scale=0.3), env.reset(), env.sample_noise(6)
    start["step"] = torch.arange(4).unsqueeze(-1)
    untouched, before = start.clone(), env.rng.get_state()
    rollouts = []
    for options in ({"temperature": 0.1}, {"temperature": 10.0}):
        env.rng.set_state(before)
        torch.manual_seed(1)
        options |= {"tensordict": start, "noise": noise}
        rollouts.append(straight_through_rollout(env, policy, 6, **options))
    assert_identical(*rollouts)
    assert_identical(start, untouched)
    assert torch.equal(rollouts[0]["step"][:, 0], start["step"])
    assert rollouts[0]["next", "terminated"].any(1).all()
    cold, hot = (gradient(rollout["next", "reward"], policy) for rollout in rollouts)
    assert not torch.allclose(cold[0], hot[0], rtol=0.1)


def test_without_gradients_no_option_is_branched(monkeypatch):
    env, calls = Switched(), []
    policy = policy_for(env)
    env.check_contract()  # which calls the equations once
    monkeypatch.setattr(env, "step_function", lambda x, *_: (x, calls.append(x.shape) or x[..., 0]))
    with torch.no_grad():
        straight_through_rollout(env, policy, 2)
    assert calls == [(4, DIM)] * 2
    straight_through_rollout(env, policy, 1)
    assert calls[2:] == [(4, DIM), (3, 4, DIM)]


def by_hand(policy, start, noise, *, horizon, temperature, discount, fresh):
    """Sum of rewards by the textbook: onehot + soft - sg(soft) weighs every option's outcome."""
    x, total = start, 0.0
    rows = torch.arange(len(x))
    for t, xi in enumerate(noise.unbind(1)):
        if t and t % horizon == 0:
            x = fresh.pop(0)
        logits, loc, scale = policy.network(x)
        options = logits.shape[-1]
        clock = torch.empty_like(logits).exponential_()
        perturbed = logits.log_softmax(-1) - clock.log()
        eps = torch.randn_like(x) if scale is not None else 0.0
        d = perturbed.argmax(-1)
        tempered = (perturbed / temperature).exp()
        soft = tempered / tempered.sum(-1, keepdim=True)
        hard = torch.zeros_like(soft)
        hard[rows, d] = 1.0
        weight = hard + soft - soft.detach()
        state, reward = 0.0, 0.0
        for m in range(options):
            u = loc[:, m] if scale is None else loc[:, m] + scale[:, m] * eps
            after, gain = step(x, torch.full_like(d, m), u, xi)
            state = state + weight[:, m, None] * after
            reward = reward + weight[:, m] * gain
        total = total + reward.sum()
        x = scale_gradient(state, discount)
    return total


@pytest.mark.parametrize(("temperature", "discount"), [(0.3, 1.0), (4.0, 0.8)])
@pytest.mark.parametrize(("horizon", "scale"), [(10, 0.0), (3, 0.4)])
def test_gradient_is_that_of_the_textbook_formula(horizon, scale, temperature, discount):
    env = Switched(horizon=horizon)
    policy = policy_for(env, scale=scale, learn_scale=scale > 0)
    start, noise = env.reset(), env.sample_noise(7)
    before = env.rng.get_state()
    fresh = [env.reset()["x"] for _ in range(2)]
    env.rng.set_state(before)
    options = {"temperature": temperature, "discount": discount}
    torch.manual_seed(1)
    expected = by_hand(policy, start["x"], noise, horizon=horizon, fresh=fresh, **options)
    torch.manual_seed(1)
    rollout = straight_through_rollout(env, policy, 7, tensordict=start, noise=noise, **options)
    found = rollout["next", "reward"]
    assert len(rollout["action", "discrete"].unique()) == 3
    torch.testing.assert_close(found.sum(), expected)
    assert_close(gradient(found, policy), gradient(expected, policy))


class Bandit(nn.Module):
    """A policy network that ignores what it sees: log-odds ``a`` of option 1 over option 0."""

    stochastic = False

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, observation):
        shape = observation.shape[:-1]
        logits = torch.stack([torch.zeros_like(self.a), self.a]).expand(*shape, 2)
        return logits, observation.new_zeros(*shape, 2, DIM), None


def pays(x, d, u, noise):
    """Option 1 pays 3 and option 0 pays 1."""
    return x + u, 1.0 + 2.0 * d.to(x.dtype)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_temperature_sets_the_bias(temperature):
    """The mean gradient of a bandit, by quadrature over the logistic difference of two Gumbels."""
    a, rows = 0.7, 40_000
    policy = HybridPolicy(Bandit(a))
    rollout = straight_through_rollout(
        Switched(rows, 2, dynamics=pays), policy, 1, temperature=temperature
    )
    odds = rollout["next", "reward"].squeeze()
    assert set(odds.unique().tolist()) == {1.0, 3.0}
    chance = (odds == 3.0).double().mean().item()
    truth = 1 / (1 + np.exp(-a))
    assert abs(chance - truth) < 4.5 * (truth * (1 - truth) / rows) ** 0.5

    quantiles = (np.arange(200_000) + 0.5) / 200_000
    logistic = np.log(quantiles / (1 - quantiles))
    soft = 1 / (1 + np.exp(-(a + logistic) / temperature))
    slopes = 2.0 * soft * (1 - soft) / temperature
    (found,) = gradient(odds, policy)
    error = slopes.std() / rows**0.5
    assert abs(found.item() / rows - slopes.mean()) < 4.5 * error
    bias = abs(slopes.mean() - 2.0 * truth * (1 - truth))
    assert (bias < 0.02) == (temperature == 0.25)
    assert (bias > 4.5 * error) == (temperature > 0.25)


def explodes(x, d, u, noise):
    """Option 1 is an infinite loss and an infinite state."""
    wall = torch.where(d == 1, torch.inf, 0.0).to(x.dtype)
    return x + u + wall.unsqueeze(-1), -0.0 * x.sum(-1) - wall


def test_an_option_not_taken_cannot_spoil_the_forward():
    env = Switched(6, 2, dynamics=explodes)
    rollout = straight_through_rollout(env, HybridPolicy(Bandit(-60.0)), 3)
    assert rollout["next", "x"].isfinite().all()
    assert (rollout["next", "reward"] == 0).all()
    assert rollout["next", "x"].requires_grad


def test_inventory_option_zero_orders_exactly_nothing():
    env = InventoryEnv(2, lead_time=1, batch_size=30, initial_state="random", seed=0)
    policy, noise = policy_for(env), env.sample_noise(6)
    rollout = straight_through_rollout(env, policy, 6, noise=noise)
    waits = rollout["action", "discrete"] == 0
    assert waits.any()
    assert not waits.all()
    assert (rollout["action", "continuous"] > 0).all()
    still = rollout["inventory"].squeeze(-1) - noise
    after = rollout["next", "inventory"].squeeze(-1)
    assert torch.equal(after[waits], still[waits])
    # To rounding: a minute order vanishes next to what is on hand.
    orders = rollout["action", "continuous"]
    torch.testing.assert_close(after[~waits], (still + orders)[~waits])
    assert (after[~waits] > still[~waits]).float().mean() > 0.5
    cost = (still.clamp_min(0) + 9 * (-still).clamp_min(0)).sum(-1) + 128.0 * ~waits
    torch.testing.assert_close(rollout["next", "reward"].squeeze(-1), -cost)


BAD_ROLLOUTS = [
    ({"num_steps": 0}, ValueError, "num_steps must be an integer >= 1, got 0"),
    ({"temperature": 0.0}, ValueError, "temperature must be a finite number > 0, got 0"),
    ({"discount": 1.5}, ValueError, "discount must be a finite number > 0 and <= 1, got 1.5"),
    ({"noise": torch.ones(4, 6, DIM)}, ValueError, r"noise must have shape.*got \(4, 6, 2\)"),
    ({"policy": nn.Identity()}, TypeError, "straight_through_rollout needs.*Identity"),
    ({"env": None}, TypeError, "straight_through_rollout needs a DifferentiableEnv.*NoneType"),
    ({"policy": MASKED}, TypeError, "straight_through_rollout needs.*without a mask"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ROLLOUTS)
def test_wrong_arguments_of_the_rollout_are_named(arguments, error, message):
    env = Switched()
    arguments = {"env": env, "policy": policy_for(env), "num_steps": 5} | arguments
    with pytest.raises(error, match=message):
        straight_through_rollout(**arguments)


# -- branched returns ----------------------------------------------------------------------------


def rolled(env, policy, steps, spread=True):
    """A rollout with its noise, from different points of the episodes."""
    start = env.reset()
    if env.horizon and spread:
        begun = torch.arange(env.batch_size.numel()) % env.horizon
        start["step"] = begun.reshape(start["step"].shape)
    noise = env.sample_noise(steps)
    return differentiable_rollout(env, policy, steps, tensordict=start, noise=noise), noise


def simulate(env, policy, state, d, noise, gamma, critic):
    """Return of option d and then the policy's favourites, one system at a time."""
    total, weight = 0.0, 1.0
    for t, xi in enumerate(noise):
        logits, loc, _ = policy.network(env.observe(state))
        d = d if t == 0 else int(logits.argmax())
        action = {"discrete": torch.tensor(d), "continuous": loc[d]}
        after, reward = env.dynamics(state, action, xi)
        total, weight = total + weight * reward, weight * gamma
        state = {**after, "step": state["step"] + 1}
        if env.horizon and state["step"].item() >= env.horizon:
            if env.horizon_terminates:
                return total
            break
    if critic is not None:
        total = total + weight * critic.module(env.observe(state)).squeeze()
    return total


SIMULATED = {
    "no horizon": lambda: Switched(3),
    "terminates": lambda: Switched(3, horizon=4),
    "truncates": lambda: Switched(3, horizon=4, terminates=False),
    "ends with the window": lambda: Switched(1, horizon=6),
    "no batch": lambda: Switched((), horizon=3),
    "two batch dims": lambda: Switched((2, 2), options=2, horizon=5),
    "inventory": lambda: InventoryEnv(
        2, 1, batch_size=3, seed=0, initial_state="random", horizon=4, dtype=torch.float64
    ),
}


@pytest.mark.parametrize(("bootstrap", "gamma"), [(False, 1.0), (True, 0.8), (True, 0.0)])
@pytest.mark.parametrize("name", SIMULATED)
def test_branches_are_those_of_one_simulation_each(name, bootstrap, gamma):
    env = SIMULATED[name]()
    policy = policy_for(env, sharp=True)
    critic = make_value_network(env, hidden=(3,)) if bootstrap else None
    rollout, noise = rolled(env, policy, 6)
    before, untouched = env.rng.get_state(), rollout.clone()
    found = branched_returns(env, policy, rollout, noise, gamma=gamma, critic=critic)
    assert found.shape == (*env.batch_size, 6, env.num_discrete)
    assert not found.requires_grad
    assert torch.equal(env.rng.get_state(), before)
    assert_identical(rollout, untouched)
    with torch.no_grad():
        for row in np.ndindex(*env.batch_size, 6):
            state = {key: rollout[key][row] for key in env.state_names}
            left = noise[row[:-1]][row[-1] :]
            for d in range(env.num_discrete):
                expected = simulate(env, policy, state, d, left, gamma, critic)
                torch.testing.assert_close(found[(*row, d)], expected, rtol=1e-10, atol=1e-10)
    assert (found.std(-1) > 0).all()


@pytest.mark.parametrize("name", SIMULATED)
def test_short_branches_are_those_of_one_simulation_each(name):
    env = SIMULATED[name]()
    policy, critic = policy_for(env, sharp=True), make_value_network(env, hidden=(3,))
    for parameter in critic.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    states = rolled(env, policy, 6)[0][..., ::2]
    noise = torch.stack([env.sample_noise(4) for _ in range(3)], len(env.batch_size))
    given = {"gamma": 0.8, "num_steps": 4}
    found = branched_returns(env, policy, states, noise, critic=critic, **given)
    assert found.shape == (*env.batch_size, 3, env.num_discrete)
    with torch.no_grad():
        for row in np.ndindex(*env.batch_size, 3):
            state = {key: states[key][row] for key in env.state_names}
            for d in range(env.num_discrete):
                expected = simulate(env, policy, state, d, noise[row], 0.8, critic)
                torch.testing.assert_close(found[(*row, d)], expected, rtol=1e-10, atol=1e-10)
    without = branched_returns(env, policy, states, noise, **given)
    tripled = branched_returns(env, policy, states, noise, critic=critic, critic_unit=3.0, **given)
    torch.testing.assert_close(tripled, without + 3 * (found - without))


@pytest.mark.parametrize("mode", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_the_branch_of_the_sampled_option_is_what_happened(mode):
    env = Switched(50, horizon=5)
    # Without huge logits the policy is deterministic only where exploration is switched off.
    policy = policy_for(env, sharp=mode is ExplorationType.RANDOM, scale=0.0)
    with set_exploration_type(mode):
        rollout, noise = rolled(env, policy, 8)
        found = branched_returns(env, policy, rollout, noise, gamma=0.9)
    happened = found.gather(-1, rollout["action", "discrete"].unsqueeze(-1)).squeeze(-1)
    to_go, future = [], 0.0
    for t in reversed(range(8)):
        over = rollout["next", "done"][:, t, 0]
        future = rollout["next", "reward"][:, t, 0] + 0.9 * torch.where(over, 0.0, future)
        to_go.append(future)
    assert rollout["next", "done"].any()
    torch.testing.assert_close(happened, torch.stack(to_go[::-1], -1).detach())


def exact_q(policy, x, noise, d):
    """Q(x, d) for the given noise by enumerating every later option, with rows of ``x``."""
    loc = policy.network(x)[1]
    x, reward = step(x, d, loc[torch.arange(len(x)), d], noise[:, 0])
    if noise.shape[1] == 1:
        return reward
    chance = policy.network(x)[0].softmax(-1)
    later = [
        exact_q(policy, x, noise[:, 1:], torch.full_like(d, m)) for m in range(chance.shape[-1])
    ]
    return reward + (chance * torch.stack(later, -1)).sum(-1)


def test_branched_returns_are_unbiased():
    env = Switched(4000)
    policy = policy_for(env)
    rollout, noise = rolled(env, policy, 3)
    found = branched_returns(env, policy, rollout, noise)
    with torch.no_grad():
        for t in range(3):
            for m in range(3):
                d = torch.full((4000,), m)
                error = found[:, t, m] - exact_q(policy, rollout["x"][:, t], noise[:, t:], d)
                if t == 2:  # the last option is forced: nothing is left to chance
                    torch.testing.assert_close(error, torch.zeros_like(error))
                else:
                    assert error.std() > 0.1
                    assert error.mean().abs() < 4.5 * error.std() / len(error) ** 0.5


def test_a_stochastic_action_is_drawn_afresh_and_shared_by_the_options():
    env = Switched(4000, dynamics=lambda x, d, u, noise: (x, u.sum(-1)))
    policy = policy_for(env, scale=0.4)
    rollout, noise = rolled(env, policy, 2)
    found = branched_returns(env, policy, rollout, noise)[:, -1]
    loc = policy.network(rollout["observation"][:, -1])[1].sum(-1)
    draws = (found - loc).detach()
    torch.testing.assert_close(draws, draws[:, :1].expand_as(draws))
    assert abs(draws[:, 0].mean()) < 4.5 * (0.32 / 4000) ** 0.5
    assert abs(draws[:, 0].var() / 0.32 - 1) < 4.5 * (2 / 4000) ** 0.5
    happened = rollout["next", "reward"][:, -1, 0].detach()
    drawn = happened - loc.detach().gather(-1, rollout["action", "discrete"][:, -1:]).squeeze(-1)
    assert abs(torch.corrcoef(torch.stack([drawn, draws[:, 0]]))[0, 1]) < 4.5 / 4000**0.5
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.testing.assert_close(branched_returns(env, policy, rollout, noise)[:, -1], loc)


LINEAR = TensorDictModule(nn.Linear(DIM, 1), in_keys=["x"], out_keys=["state_value"])
BAD_BRANCHES = [
    ({"gamma": 1.1}, ValueError, "gamma must be a finite number >= 0 and <= 1, got 1.1"),
    ({"critic": LINEAR}, ValueError, r"critic must be.*reads 'observation'.*\['x'"),
    ({"noise": torch.ones(4, 5, 3)}, ValueError, r"\(4, 5, 2\), got \(4, 5, 3\)"),
    ({"noise": None}, ValueError, "noise must have shape"),
    ({"rollout": {}}, ValueError, "rollout must be a tensordict.*got dict"),
    ({"policy": MASKED}, TypeError, "branched_returns needs.*without a mask"),
    ({"env": InventoryEnv(batch_size=4)}, KeyError, r"rollout lacks \['inventory'\]"),
    ({"env": Switched(3)}, ValueError, r"\(3, 'T'\), got TensorDict of shape \(4, 5\)"),
    ({"env": Switched((4, 5))}, ValueError, r"shape \(\*B, T\).* got TensorDict of shape \(4, 5\)"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_BRANCHES)
def test_wrong_arguments_of_branched_returns_are_named(arguments, error, message):
    env = Switched()
    policy = policy_for(env)
    rollout, noise = rolled(env, policy, 5)
    defaults = {"env": env, "policy": policy, "rollout": rollout, "noise": noise}
    with pytest.raises(error, match=message):
        branched_returns(**defaults | arguments)
