"""Several discrete choices in one step, and continuous ranges that differ by option."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_objectives import perturb
from torch.distributions import Categorical, Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.collectors import branched_returns, differentiable_rollout
from hpo_torchrl.core.categorical import BranchBounds
from hpo_torchrl.diagnostics import exact_gradient
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridDistribution, HybridNetwork, HybridPolicy
from hpo_torchrl.objectives import HPOLoss
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory.order_costs import ItemFixedCost

DOUBLE = torch.float64
INF = torch.inf


def random_distribution(heads=3, options=4, part=2, **arguments):
    logits = torch.randn(5, heads, options, dtype=DOUBLE)
    loc = torch.randn(5, heads, options, part, dtype=DOUBLE)
    scale = torch.rand(5, heads, options, part, dtype=DOUBLE) + 0.1
    return HybridDistribution(logits, loc, scale, heads=True, **arguments), logits, loc, scale


def test_heads_are_independent_choices():
    dist, logits, loc, scale = random_distribution()
    action = dist.sample()
    assert dist.batch_shape == (5,)
    assert dist.event_shape == (6,)
    assert action.batch_size == (5,)
    assert action["discrete"].shape == (5, 3)
    assert action["continuous"].shape == (5, 6)
    index = action["discrete"][..., None, None].expand(5, 3, 1, 2)
    normal = Normal(*(value.gather(-2, index).squeeze(-2) for value in (loc, scale)))
    discrete = Categorical(logits=logits).log_prob(action["discrete"]).sum(-1)
    continuous = normal.log_prob(action["continuous"].unflatten(-1, (3, 2))).sum((-1, -2))
    torch.testing.assert_close(dist.log_prob_discrete(action["discrete"]), discrete)
    torch.testing.assert_close(dist.log_prob(action), discrete + continuous)
    entropy = Categorical(logits=logits).entropy().sum(-1)
    torch.testing.assert_close(dist.entropy_discrete(), entropy)
    branches = Normal(loc, scale).entropy().sum(-1)
    expected = entropy + (logits.softmax(-1) * branches).sum((-1, -2))
    torch.testing.assert_close(dist.entropy(), expected)


def test_samples_of_heads_are_from_their_own_branches():
    logits = torch.zeros(20_000, 2, 3)
    logits[:, 1, 2] = 2.0
    loc = torch.arange(6.0).reshape(2, 3, 1).expand(20_000, 2, 3, 1)
    action = HybridDistribution(logits, loc, heads=True).sample()
    offset = torch.tensor([0, 3])
    assert torch.equal(action["continuous"], (action["discrete"] + offset).float())
    share = (action["discrete"][:, 1] == 2).float().mean()
    assert abs(share - torch.tensor([0.0, 0.0, 2.0]).softmax(0)[2]) < 0.02


class TwoSwitches(DifferentiableEnv):
    """One step; the reward couples both choices and both continuous actions."""

    def __init__(self, num_heads=2, **arguments):
        super().__init__(
            num_discrete=2,
            num_heads=num_heads,
            continuous_dim=2,
            state_shapes={"x": (2,)},
            observation_dim=2,
            noise_shape=(1,),
            dtype=DOUBLE,
            **arguments,
        )

    def dynamics(self, state, action, noise):
        on = action["discrete"].to(DOUBLE)
        u = action["continuous"]
        x = 0.5 * state["x"] + on * u
        return {"x": x}, (x[..., 0] * x[..., 1]).sin() - 0.3 * on.prod(-1) + x.sum(-1)

    def observe(self, state):
        return state["x"]

    def initial_state(self):
        start = torch.tensor([[0.3, -0.7], [1.1, 0.4]], dtype=DOUBLE)
        return {"x": start.repeat(self.batch_size[0] // 2, 1)}

    def draw_noise(self, num_steps, state):
        return torch.zeros(*self.batch_size, num_steps, 1, dtype=DOUBLE)


@torch.no_grad()
def expected_return(env, policy, x, options, steps):
    """Of so many steps from x ``(1, 2)`` that begin with these choices, by enumeration."""
    dist, discrete = policy.distribution(x), torch.tensor([options])
    action = {"discrete": discrete, "continuous": dist.mode_of(discrete)}
    after, reward = env.dynamics({"x": x}, action, None)
    later = policy.distribution(after["x"])
    for choice in itertools.product([0, 1], repeat=2) if steps > 1 else ():
        chance = later.log_prob_discrete(torch.tensor([choice])).exp()
        reward = reward + chance * expected_return(env, policy, after["x"], choice, steps - 1)
    return reward


@pytest.mark.parametrize("valued", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_loss_with_heads_has_the_exact_gradient(steps, valued):
    """Expectation over all choices of the loss's gradient against that of the enumerated return.

    Valued, each head's discrete actions have their value beside what the other one took.
    """
    env = TwoSwitches(batch_size=2)
    policy = perturb(HybridPolicy.for_env(env, hidden=(4,), activation="tanh"), 0.5)
    parameters = list(policy.parameters())
    loss = HPOLoss(policy, clip_epsilon=None, entropy_coeff=None, functional=False)
    choices = list(itertools.product(itertools.product([0, 1], repeat=2), repeat=steps))

    def unrolled(choice):
        """Return of the choices, and their probability, as functions of the parameters."""
        state, total, log_prob = env.initial_state(), 0.0, 0.0
        rows = []
        for options in choice:
            observation = env.observe(state)
            discrete = torch.tensor([options, options])
            dist = policy.distribution(observation)
            u = dist.mode_of(discrete)
            log_prob = log_prob + dist.log_prob_discrete(discrete)
            after, reward = env.dynamics(state, {"discrete": discrete, "continuous": u}, None)
            rows.append((observation, discrete, u, reward, env.observe(after)))
            total, state = total + reward, after
        return total, log_prob, rows

    returns, estimate = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
    template = differentiable_rollout(env, policy, steps)
    for choice in choices:
        total, log_prob, rows = unrolled(choice)
        returns = returns + (log_prob.exp() * total).mean()
        for system in range(2):
            data = template[system : system + 1].clone()
            observation, discrete, u, reward, after = (
                torch.stack(column, 1)[system : system + 1] for column in zip(*rows, strict=True)
            )
            data["observation"], data["action", "discrete"] = observation, discrete
            data["action", "continuous"], data["next", "observation"] = u, after
            data["next", "reward"] = reward.unsqueeze(-1)
            data = data.exclude("discrete_log_prob", "action_log_prob")
            if valued:
                data["action_value"] = torch.zeros(1, steps, 2, 2, dtype=DOUBLE)
                for t, head, option in itertools.product(range(steps), (0, 1), (0, 1)):
                    other = list(choice[t])
                    other[head] = option
                    x = observation[:, t].detach()
                    value = expected_return(env, policy, x, other, steps - t)
                    data["action_value"][0, t, head, option] = value.item()
            terms = loss(data)
            value = sum(term for key, term in terms.items() if key.startswith("loss_"))
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            chance = log_prob[system].exp().item() / 2
            for entry, gradient in zip(estimate, gradients, strict=True):
                if gradient is not None:
                    entry.sub_(chance * steps * gradient)
    exact = torch.autograd.grad(returns, parameters, allow_unused=True)
    for entry, gradient in zip(estimate, exact, strict=True):
        expected = torch.zeros_like(entry) if gradient is None else gradient
        torch.testing.assert_close(entry, expected, rtol=1e-9, atol=1e-11)


class ThreeWays(TwoSwitches):
    """Two heads with three choices and two coordinates each, with noise and an end."""

    def __init__(self, **arguments):
        DifferentiableEnv.__init__(
            self,
            num_discrete=3,
            num_heads=2,
            continuous_dim=4,
            state_shapes={"x": (2,)},
            observation_dim=2,
            noise_shape=(1,),
            dtype=DOUBLE,
            horizon=4,
            **arguments,
        )

    def dynamics(self, state, action, noise):
        d, u = action["discrete"].to(DOUBLE), action["continuous"].unflatten(-1, (2, 2))
        x = 0.5 * state["x"] + (d - 1.2) * u.sum(-1) + 0.1 * noise
        return {"x": x}, (x[..., 0] * x[..., 1]).sin() - 0.3 * d.prod(-1) + u[..., 0, 1]

    def draw_noise(self, num_steps, state):
        return self._draw(torch.randn, (*self.batch_size, num_steps, 1))


@pytest.mark.parametrize("short", [False, True])
def test_branches_by_head_are_those_of_one_simulation_each(short):
    env = ThreeWays(batch_size=2, seed=0)
    policy = perturb(HybridPolicy.for_env(env, hidden=(4,), activation="tanh"), 0.5)
    length = 2 if short else 4
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        noise = env.sample_noise(4)
        rollout = differentiable_rollout(env, policy, 4, noise=noise)
        given = {"gamma": 0.9}
        if short:
            given["num_steps"] = length
            noise = torch.stack([env.sample_noise(length) for _ in range(4)], 1)
        found = branched_returns(env, policy, rollout, noise, **given)
        assert found.shape == (2, 4, 2, 3)
        for row, t, head, option in itertools.product(range(2), range(4), range(2), range(3)):
            state = {"x": rollout["x"][row, t], "step": rollout["step"][row, t]}
            faced = noise[row, t] if short else noise[row, t:]
            total = 0.0
            for later, draw in enumerate(faced[: 4 - t]):
                dist = policy.distribution(env.observe(state))
                action = dist.deterministic_sample if later else rollout["action"][row, t].clone()
                if later == 0:
                    action["discrete"][head] = option
                    action["continuous"] = dist.mode_of(action["discrete"])
                state, reward, _ = env.advance(state, action, draw)
                total += 0.9**later * reward.item()
            assert found[row, t, head, option].item() == pytest.approx(total, rel=1e-10)


def test_advantages_of_heads_are_limited_in_their_own_unit():
    """The unit is the geometric mean of the gaps at the steps tried; beyond ten the slope stays."""
    env = TwoSwitches(batch_size=2)
    policy = perturb(HybridPolicy.for_env(env, hidden=(4,), activation="tanh"), 0.5)
    loss = HPOLoss(policy, pathwise=False, cross_term=False, entropy_coeff=0.5, advantage_limit=3.0)
    data = differentiable_rollout(env, policy, 2).detach()
    data["advantage"] = torch.zeros(2, 2, 1, dtype=DOUBLE)
    data["branched"] = torch.tensor([True, False]).expand(2, 2).unsqueeze(-1)
    gaps = torch.tensor([[1.0, 4.0], [2.0, 5000.0]], dtype=DOUBLE)  # of the tried step
    values = torch.zeros(2, 2, 2, 2, dtype=DOUBLE)
    values[:, 0, :, 1], values[:, 1] = gaps, 77.0
    data["action_value"] = values
    unit = gaps.log().mean().exp()
    torch.testing.assert_close(loss.advantage_unit(data, loss.logits(data)), unit)
    parameters = list(policy.network.discrete.parameters())

    def gradient(objective):
        return torch.autograd.grad(objective, parameters)

    probability = policy.discrete_logits(data[:, :1]).exp().squeeze(1)[..., 1]
    taken = probability.detach()
    limit = 3.0 * 0.5 * unit
    advantage = [(-taken * gaps).maximum(-limit), ((1 - taken) * gaps).minimum(limit)]
    wanted = ((1 - probability) * advantage[0] + probability * advantage[1]).sum() / 2
    found = gradient(-loss(data)["loss_objective"])
    for one, other in zip(found, gradient(wanted), strict=True):
        torch.testing.assert_close(one, other)


def test_what_enumerates_options_refuses_heads():
    env = TwoSwitches(batch_size=2)
    policy = HybridPolicy.for_env(env, hidden=(4,))
    with pytest.raises(ValueError, match=r"single discrete choice.*2 heads"):
        exact_gradient(env, policy, 1)


@pytest.mark.parametrize("num_heads", [None, 2])
def test_a_learned_scale_is_each_branchs_own(num_heads):
    heads, size = ((), 4) if num_heads is None else ((2,), 2)
    given = {"num_heads": num_heads, "hidden": (4,), "scale": 0.3}
    for learn, branches in ((False, 1), (True, 3)):
        network = HybridNetwork(5, 3, 4, learn_scale=learn, **given)
        assert network.log_scale.shape == (*heads, branches, size)
        assert isinstance(network.log_scale, torch.nn.Parameter) == learn
    network.log_scale.data.copy_(torch.randn(network.log_scale.shape))
    scale = network(torch.randn(7, 5))[2]
    torch.testing.assert_close(scale[3], network.log_scale.exp())
    assert len(scale.unique()) == 12


def test_heads_must_divide_the_action():
    with pytest.raises(ValueError, match="num_heads must divide continuous_dim=2, got 3"):
        TwoSwitches(num_heads=3)


# -- ranges by option ----------------------------------------------------------------------------


def network_of(bounds, **arguments):
    settings = {"hidden": (8,), "branch_bounds": bounds, "dtype": DOUBLE} | arguments
    return perturb(HybridNetwork(3, len(bounds.low), 2, **settings), 1.0)


def test_each_branch_keeps_to_the_ends_of_its_option():
    low = torch.tensor([[0.0], [2.0], [-INF], [-INF], [5.0]], dtype=DOUBLE)
    high = torch.tensor([[0.0], [3.0], [INF], [1.0], [INF]], dtype=DOUBLE)
    network = network_of(BranchBounds(low, high), action_scale=torch.tensor([1.0, 4.0]))
    observation = (5 * torch.randn(500, 3, dtype=DOUBLE)).requires_grad_()
    loc = network(observation)[1]
    assert (loc >= low).all()
    assert (loc <= high).all()
    assert (loc[:, 0] == 0).all()
    assert loc[:, 2].min() < -1
    loc.sum().backward()
    assert observation.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.continuous.parameters())


def test_a_bounded_branch_is_a_sigmoid_and_a_half_open_one_as_without_options():
    low = torch.tensor([[2.0], [0.0]], dtype=DOUBLE)
    high = torch.tensor([[3.0], [INF]], dtype=DOUBLE)
    network = network_of(BranchBounds(low, high))
    plain = HybridNetwork(3, 2, 2, hidden=(8,), continuous_bounds=(0.0, None), dtype=DOUBLE)
    plain.load_state_dict(network.state_dict(), strict=False)
    observation = torch.randn(50, 3, dtype=DOUBLE)
    raw = network.continuous(observation) + network.skip(observation)
    loc = network(observation)[1]
    torch.testing.assert_close(loc[:, 0], 2 + torch.sigmoid(raw[:, :2]))
    torch.testing.assert_close(loc[:, 1], plain(observation)[1][:, 1])


def test_a_branch_keeps_its_total():
    low = torch.tensor([0.0, 0.0, 10.0, 40.0], dtype=DOUBLE)
    high = torch.tensor([0.0, 10.0, 40.0, INF], dtype=DOUBLE)
    network = network_of(BranchBounds(low, high, of_total=True))
    loc = network(3 * torch.randn(500, 3, dtype=DOUBLE))[1]
    total = loc.sum(-1)
    assert (loc >= 0).all()
    assert (total >= low - 1e-9).all()
    assert (total <= high + 1e-9).all()
    assert total[:, 2].std() > 1


def test_each_head_has_its_own_ends():
    env = InventoryEnv(4, features=[ItemFixedCost(5.0)], batch_size=6, initial_state="random")
    assert env.num_discrete == 2  # not 2 ** 4
    policy = HybridPolicy.for_env(env, hidden=(8,))
    assert policy.network.discrete[-1].out_features == 8
    action = differentiable_rollout(env, policy, 10)["action"]
    waits = action["discrete"] == 0
    assert waits.any()
    assert (action["continuous"][waits] == 0).all()
    assert (action["continuous"][~waits] > 0).all()
