"""Options that depend on the state: both routes, collectors, the exact gradient, training."""

from __future__ import annotations

import math

import pytest
import torch
from torchrl.envs import TransformedEnv
from torchrl.envs.transforms import ActionMask
from torchrl.envs.utils import check_env_specs

from hpo_torchrl.algorithms import HPO, PPO
from hpo_torchrl.collectors import (
    branched_returns,
    differentiable_rollout,
    straight_through_rollout,
)
from hpo_torchrl.core.categorical import entropy_of
from hpo_torchrl.diagnostics import GradientSampler, exact_gradient
from hpo_torchrl.envs import DifferentiableEnv, hybridize
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.modules.sampling import normalised
from hpo_torchrl.objectives import HPOLoss


class Shuttle(DifferentiableEnv):
    """A cart that may be pushed left only right of 0 and right only left of 1; it can always wait.

    With ``heads`` there are two carts, each with a choice of its own.
    """

    def __init__(self, heads=None, batch_size=64, **arguments):
        self.carts = heads or 1
        super().__init__(
            num_discrete=3,
            num_heads=heads,
            continuous_dim=self.carts,
            state_shapes={"x": (self.carts,)},
            observation_dim=self.carts,
            noise_shape=(self.carts,),
            batch_size=batch_size,
            **arguments,
        )

    def allowed(self, state):
        x = state["x"]
        mask = torch.stack([torch.ones_like(x, dtype=torch.bool), x > 0, x < 1], -1)
        return mask if self.num_heads else mask.squeeze(-2)

    def dynamics(self, state, action, noise):
        choice = action["discrete"] if self.num_heads else action["discrete"].unsqueeze(-1)
        push = torch.tensor([0.0, -1.0, 1.0], dtype=noise.dtype)[choice]
        after = state["x"] + push * (1 + 0.3 * action["continuous"].tanh()) + 0.3 * noise
        reward = -(after - 0.7).square() - 0.1 * push.abs() - 0.1 * action["continuous"].square()
        return {"x": after}, reward.sum(-1)

    def observe(self, state):
        return state["x"]

    def initial_state(self):
        x = 4 * torch.rand(*self.batch_size, self.carts, generator=self.rng, dtype=torch.float64)
        return {"x": (x - 2).to(self.float_dtype)}

    def draw_noise(self, num_steps, state):
        shape = (*self.batch_size, num_steps, self.carts)
        return torch.randn(shape, generator=self.rng, dtype=torch.float64).to(self.float_dtype)


def policy_for(env, **network):
    torch.manual_seed(3)
    return HybridPolicy.for_env(env, hidden=[8], **network)


def obeys(rollout):
    mask, chosen = rollout["action_mask"], rollout["action", "discrete"]
    return bool(mask.gather(-1, chosen.unsqueeze(-1)).all())


@pytest.mark.parametrize("heads", [None, 2])
def test_the_environment_shows_its_mask(heads):
    env = Shuttle(heads, seed=0)
    check_env_specs(env)
    policy = policy_for(env)
    assert policy.mask_key == "action_mask"
    start, noise = env.reset(), env.sample_noise(12)
    runs = []
    for route in ("functional", "general"):
        torch.manual_seed(0)
        runs.append(
            differentiable_rollout(env, policy, 12, tensordict=start, noise=noise, route=route)
        )
    assert obeys(runs[0])
    assert not runs[0]["action_mask"].all()
    for key in runs[0].keys(include_nested=True, leaves_only=True):
        assert torch.equal(runs[0][key], runs[1][key]), key
    gradients = []
    for run in runs:
        policy.zero_grad()
        run["next", "reward"].mean().backward()
        gradients.append([p.grad.clone() for p in policy.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_policy_without_the_mask_would_break_it():
    env = Shuttle(seed=0)
    policy = HybridPolicy(policy_for(env).network)  # the planted fault
    assert not obeys(differentiable_rollout(env, policy, 12))


def test_random_actions_obey_torchrls_action_mask():
    env = TransformedEnv(
        Shuttle(seed=0), ActionMask(action_key=("action", "discrete"), mask_key="action_mask")
    )
    assert obeys(env.rollout(12))


@pytest.mark.parametrize("algorithm", [HPO, PPO])
@pytest.mark.parametrize("heads", [None, 2])
def test_training_obeys_the_mask_and_gets_better(algorithm, heads):
    env = Shuttle(heads, seed=0)
    stochastic = {"scale": 0.3, "learn_scale": True} if algorithm is PPO else {}
    policy, critic = policy_for(env, **stochastic), make_value_network(env, hidden=[8])
    fewer = {"epochs": 3} if algorithm is PPO else {}
    learner = algorithm(env, policy, critic, unroll_length=10, discount=0.9, **fewer)
    test = Shuttle(heads, batch_size=256, seed=9)
    start, noise = test.reset(), test.sample_noise(30)

    @torch.no_grad()
    def reward():
        torch.manual_seed(0)
        run = differentiable_rollout(test, policy, 30, tensordict=start, noise=noise)
        assert obeys(run)
        return float(run["next", "reward"].mean())

    before = reward()
    for update in range(12):
        learner.anneal(update / 12)
        learner.iterate()
    assert all(bool(p.isfinite().all()) for p in policy.parameters())
    assert reward() > before


def test_the_mixed_gradient_is_the_exact_one():
    env = Shuttle(batch_size=2, dtype=torch.float64, seed=0)
    policy = policy_for(env)
    with torch.no_grad():
        for parameter in policy.parameters():  # an untrained choice does not look at the state
            parameter += 0.5 * torch.randn_like(parameter)
    start, noise = env.reset(), env.sample_noise(3)
    exact = exact_gradient(env, policy, 3, tensordict=start, noise=noise)
    parts = (exact.pathwise, exact.score_function, exact.cross)
    for name, total in exact.total.items():
        assert torch.allclose(sum(part[name] for part in parts), total, atol=1e-12)
    assert exact.norm("cross") > 1e-3

    copies = 60_000
    many = Shuttle(batch_size=2 * copies, dtype=torch.float64, seed=0)
    starts = {"x": start["x"].repeat(copies, 1), "step": start["step"].repeat(copies, 1)}
    begin = many.reset(many.fake_tensordict().select().update(starts), set_state=True)
    loss = HPOLoss(policy, None, clip_epsilon=None, critic_coeff=None, entropy_coeff=None)
    loss.make_value_estimator(gamma=1.0)
    torch.manual_seed(1)
    rollout = differentiable_rollout(
        many, policy, 3, tensordict=begin, noise=noise.repeat(copies, 1, 1)
    )
    rollout["next", "terminated"][:, -1] = rollout["next", "done"][:, -1] = True
    terms = loss(rollout)
    policy.zero_grad()
    (terms["loss_pathwise"] + terms["loss_objective"]).backward()
    found = torch.cat([-3 * p.grad.flatten() for p in policy.parameters()])
    wanted = torch.cat([exact.total[name].flatten() for name, _ in policy.named_parameters()])
    assert float((found - wanted).norm() / wanted.norm()) < 0.03


def test_estimators_that_try_every_option_leave_out_what_is_not_allowed():
    env = Shuttle(seed=0)
    policy = policy_for(env)
    start, noise = env.reset(), env.sample_noise(6)
    assert obeys(straight_through_rollout(env, policy, 6, tensordict=start, noise=noise))
    rollout = differentiable_rollout(env, policy, 6, tensordict=start, noise=noise, discount=0.9)
    values = branched_returns(env, policy, rollout, noise, gamma=0.9)
    loss = HPOLoss(policy, None, critic_coeff=None)
    loss.make_value_estimator(gamma=0.9)
    gradients = []
    for wild in (0.0, 1e6, math.nan):  # what a masked option leads to does not matter
        altered = values.masked_fill(~rollout["action_mask"], wild)
        terms = loss(rollout.copy().set("action_value", altered))
        policy.zero_grad()
        assert abs(terms["loss_objective"].item()) < 1e-5  # a baseline is the policy's mean
        terms["loss_objective"].backward(retain_graph=True)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])

    hpo = HPO(env, policy, make_value_network(env, hidden=[8]), unroll_length=6)
    found = GradientSampler.of(hpo).sample()
    assert {"mixed, all discrete actions", "Gumbel straight-through", "score function only"} <= {
        *found
    }
    assert all(bool(g.isfinite().all()) for groups in found.values() for g in groups.values())


def test_a_masked_action_adds_nothing_to_the_gradient_of_a_heavy_entropy():
    logits = torch.zeros(2, 3, requires_grad=True)
    masked = normalised(logits, torch.tensor([[True, True, False]]).expand(2, 3))
    (1e6 * entropy_of(masked)).sum().backward()
    assert logits.grad.isfinite().all()
    assert entropy_of(masked).tolist() == pytest.approx([math.log(2)] * 2)


def test_a_hybridized_environment_keeps_the_mask():
    env = hybridize(Shuttle(seed=0), [0.0])
    check_env_specs(env)
    rollout = differentiable_rollout(env, policy_for(env), 8)
    assert rollout["action_mask"].shape == (64, 8, 6)
    assert obeys(rollout)
    assert torch.equal(rollout["action_mask"][..., ::2], env.original.allowed({"x": rollout["x"]}))


def test_a_wrong_mask_is_named():
    env = Shuttle(batch_size=3)
    env.allowed = lambda state: torch.zeros(3, 3, dtype=torch.bool)
    for route in ("functional", "general"):
        with pytest.raises(ValueError, match="mask must allow at least one discrete action"):
            differentiable_rollout(env, policy_for(env), 3, route=route)
    env = Shuttle(batch_size=3)
    env.allowed = lambda state: torch.ones(3, 3)
    with pytest.raises(
        ValueError, match=r"allowed: 'action_mask' must be torch.bool of shape \(3, "
    ):
        env.reset()


def test_where_a_masked_option_leads_does_not_matter_to_a_branching_update():
    class Broken(Shuttle):
        def dynamics(self, state, action, noise):
            after, reward = super().dynamics(state, action, noise)
            chosen = action["discrete"].unsqueeze(-1)
            allowed = self.allowed(state).gather(-1, chosen).squeeze(-1)
            return after, reward.where(allowed, torch.nan)

    rows = []
    for kind in (Shuttle, Broken):
        env = kind(batch_size=8, seed=0)
        policy, critic = policy_for(env, find_scales=False), make_value_network(env)
        learner = HPO(env, policy, critic, unroll_length=6, seed=1)
        assert learner.branches
        rows.append([learner.iterate() for _ in range(2)])
    assert rows[0] == rows[1]
    assert rows[0][1]["temperature"] != 1.0
