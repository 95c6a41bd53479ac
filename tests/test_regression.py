"""Discrete actions that are simulated, and their advantages regressed."""

import pytest
import torch
from tensordict import TensorDict

from hpo_torchrl.algorithms import HPO
from hpo_torchrl.collectors import DifferentiableCollector, differentiable_rollout
from hpo_torchrl.core.categorical import ACTION_MASK
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy, make_value_network
from hpo_torchrl.objectives import HPOLoss
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv

DOUBLE = torch.float64


class Fork(DifferentiableEnv):
    """A fresh x in [-1, 1] in every step; the noise is 30 times what the right choice is worth.

    The reward of d is ``1 - (u - x)^2 - |x - c_d|``, with c = -0.6, 0, 0.6, and noise that all d
    meet in a multiple of their own: only averages tell them apart.
    """

    def __init__(self, noisy=6.0, same=False, masked=False, **others):
        self.noisy, self.same, self.masked = noisy, same, masked
        super().__init__(
            num_discrete=3,
            continuous_dim=1,
            continuous_bounds=(-2.0, 2.0),
            state_shapes={"x": (1,)},
            observation_dim=1,
            noise_shape=(2,),
            **others,
        )

    def observe(self, state):
        return state["x"]

    def allowed(self, state):
        x = state["x"]
        free = x < (0.0 if self.masked else 9.0)
        return torch.cat([x < 9.0, free, free], -1)

    def initial_state(self):
        drawn = torch.rand(*self.batch_size, 1, generator=self.rng, dtype=self.float_dtype)
        return {"x": 2.0 * drawn - 1.0}

    def draw_noise(self, num_steps, state):
        shape = (*self.batch_size, num_steps, 2)
        return torch.rand(shape, generator=self.rng, dtype=self.float_dtype)

    def dynamics(self, state, action, noise):
        x, d = state["x"][..., 0], action["discrete"]
        d = torch.zeros_like(d) if self.same else d
        gain = 1.0 - (action["continuous"][..., 0] - x).square() - (x - 0.6 * (d - 1)).abs()
        # Integer actions share no draw: each has its own share of the same number.
        luck = self.noisy * (noise[..., 1] - 0.5) * (d - 1)
        return {"x": 2.0 * noise[..., :1] - 1.0}, gain + luck


def batch_of(policy, env, steps=6):
    torch.manual_seed(0)
    batch = differentiable_rollout(env, policy, steps)
    shape = batch.shape
    batch["action_value"] = torch.randn(*shape, env.num_discrete, dtype=env.float_dtype)
    batch["branched"] = torch.rand(*shape, 1) < 0.6
    batch["advantage"] = batch["value_target"] = torch.randn(*shape, 1, dtype=env.float_dtype)
    return batch


def made(env, temperature=0.3):
    torch.manual_seed(1)
    policy = HybridPolicy.for_env(env, hidden=(8,), find_scales=False)
    torch.nn.init.normal_(policy.network.discrete[-1].weight)
    policy.network.temperature.fill_(temperature)
    policy.network.preference.copy_(torch.linspace(-1.0, 2.0, env.num_discrete))
    return policy


def regression(policy, batch):
    """Return the terms of the loss, and the gradient of the regression as one vector."""
    only = {"cross_term": False, "pathwise": False, "functional": False}
    loss = HPOLoss(policy, None, score_function="regression", **only)
    terms = loss(batch.detach())
    parameters = [*policy.network.discrete.parameters()]
    found = torch.autograd.grad(terms["loss_objective"], parameters)
    return terms, torch.cat([gradient.flatten() for gradient in found])


def test_noise_of_the_estimates_is_averaged_out():
    env = Fork(batch_size=32, seed=0, dtype=DOUBLE)
    policy = made(env)
    batch = batch_of(policy, env)
    clean = batch["action_value"]
    clean = clean - clean.mean(-1, keepdim=True)
    noise = torch.randn_like(clean)
    noise = noise - noise.mean(-1, keepdim=True)
    used = batch["branched"].expand_as(clean)
    # Not correlated with the advantages, so that either sign has the same variance.
    noise = noise - clean * (noise * clean)[used].sum() / clean[used].square().sum()
    found = []
    for value in (clean, clean + 3.0 * noise, clean - 3.0 * noise):
        found.append(regression(policy, batch.clone().set("action_value", value))[1])
    mean = found[1] + found[2]
    assert torch.cosine_similarity(mean, found[0], 0) > 1 - 1e-10
    # What a softmax makes of noise has another mean: the check would see it.
    assert torch.cosine_similarity(found[1], found[0], 0) < 0.99


@pytest.mark.parametrize("masked", [False, True])
def test_the_policy_becomes_the_softmax_of_its_advantages(masked):
    env = Fork(batch_size=16, seed=0, masked=masked, dtype=DOUBLE)
    policy = made(env)
    batch = batch_of(policy, env)
    allowed = batch.get(ACTION_MASK, torch.ones_like(batch["action_value"], dtype=torch.bool))
    batch["action_value"] = batch["action_value"].where(allowed, torch.inf)  # never read
    logits = policy.discrete_logits(batch).detach() - policy.network.preference
    aim = (0.3 * logits).where(allowed, torch.inf)
    terms, gradient = regression(policy, batch.clone().set("action_value", aim + 5.0))
    torch.testing.assert_close(terms["loss_objective"].detach(), torch.zeros((), dtype=DOUBLE))
    assert gradient.abs().max() < 1e-8
    assert regression(policy, batch)[1].abs().max() > 1e-3


def test_the_cross_term_takes_the_policy_at_its_word():
    env = Fork(batch_size=8, seed=0, dtype=DOUBLE)
    policy = made(env)
    batch = batch_of(policy, env)
    stated = 0.3 * (policy.discrete_logits(batch).detach() - policy.network.preference)
    found = {}
    for kind, value in (("regression", batch["action_value"]), (True, stated)):
        loss = HPOLoss(policy, None, score_function=kind, functional=False)
        data = loss.advantages(batch.copy().set("action_value", value))
        cross = loss.cross_term(batch, data).sum()
        parameters = [p for n, p in policy.named_parameters() if "continuous" in n]
        if cross.requires_grad:
            given = torch.autograd.grad(cross, parameters, retain_graph=True, allow_unused=True)
            found[kind] = torch.cat([g.flatten() for g in given if g is not None])
        else:
            found[kind] = torch.zeros(1)
    torch.testing.assert_close(found["regression"], found[True])


def test_discrete_actions_that_are_the_same_are_worth_the_same():
    env = Fork(noisy=0.0, same=True, batch_size=64, seed=0)
    hpo = HPO(env, HybridPolicy.for_env(env), make_value_network(env), seed=0)
    # Not to the last bit: branches of their own continuous actions differ.
    with torch.no_grad():
        for name, parameter in hpo.policy.named_parameters():
            if "continuous" in name or "skip" in name:
                parameter.zero_()
    batch = hpo.collector.collect()
    _, data = hpo.prepare(batch)
    hpo._branch(batch, data)
    value = data["action_value"]
    assert value.std(-1).max() == 0.0
    assert value[data["branched"][..., 0]].std() > 0.0


class FairFork(Fork):
    """A :class:`Fork` that says which noise is the opposite of another."""

    def opposite_noise(self, noise):
        return 1.0 - noise


@pytest.mark.parametrize("kind", [Fork, FairFork])
def test_opposite_noise_takes_what_is_linear_in_it_out_of_the_estimates(kind):
    env = kind(batch_size=16, seed=0, dtype=DOUBLE)
    policy = HybridPolicy.for_env(env, find_scales=False)
    critic = make_value_network(env, find_scales=False)
    hpo = HPO(env, policy, critic, seed=0, branch_steps=1, branch_fraction=1.0, unroll_length=3)
    batch = hpo.collector.collect()
    _, data = hpo.prepare(batch)
    frames = hpo.collector.frames
    hpo._branch(batch, data)
    assert hpo.collector.frames - frames == 16 * 3 * 3 * (1 if kind is Fork else 2)
    free = {"discrete": torch.arange(3).expand(16, 3, 3)}
    free["continuous"] = policy.distribution(data["observation"]).actions(None)
    state = {"x": data["x"].unsqueeze(-2).expand(16, 3, 3, 1)}
    _, exact = env.dynamics(state, free, torch.full((16, 3, 3, 2), 0.5, dtype=DOUBLE))
    error = (data["action_value"] * hpo.scaler.scale - exact).abs().max()
    assert (error < 1e-10) == (kind is FairFork)


def test_a_choice_under_much_noise_is_learned_and_judged_as_it_acts():
    env = Fork(batch_size=128, seed=0)
    torch.manual_seed(0)
    how = {"seed": 0, "branch_steps": 2, "unroll_length": 8}
    hpo = HPO(env, HybridPolicy.for_env(env), make_value_network(env), **how)
    for update in range(70):
        hpo.anneal(update / 70)
        found = hpo.iterate()
    x = torch.linspace(-1.0, 1.0, 2001).unsqueeze(-1)
    probability = hpo.policy.distribution(x).logits.exp()
    loss = (x - torch.tensor([-0.6, 0.0, 0.6])).abs()
    best = loss.min(-1).values.mean()
    argmax = loss.gather(-1, probability.argmax(-1, keepdim=True)).mean()
    sampled = (probability * loss).sum(-1).mean()
    # A choice at random loses 0.54, the best one 0.17.
    assert argmax - best < 0.01
    assert sampled - best < 0.015
    assert found["entropy"] < 0.1


def test_where_not_all_discrete_actions_can_be_simulated_the_score_function_stays():
    def branches(env, **how):
        policy = HybridPolicy.for_env(env)
        return HPO(env, policy, make_value_network(env), seed=0, **how).branches

    env = InventoryEnv(batch_size=4, initial_state="random")
    assert branches(env)
    assert not branches(env, branch_steps=0)
    assert branches(InventoryEnv(num_items=4, batch_size=4, initial_state="random"))
    several = InventoryEnv(num_items=5, batch_size=4, initial_state="random")
    assert not branches(several)
    assert branches(several, branch_steps=3)
    with pytest.raises(ValueError, match=r"2 to 8 discrete actions; set .*branch_steps=0"):
        branches(SwitchedLQREnv.from_recipe(dim=9, num_modes=9, batch_size=4), branch_steps=3)
    assert not branches(env, loss=lambda policy, critic: HPOLoss(policy, critic))


@pytest.mark.parametrize("masked", [False, True])
def test_explorers_begin_where_the_last_batch_was_by_any_allowed_action(masked):
    env = Fork(batch_size=400, seed=0, masked=masked)
    policy = HybridPolicy.for_env(env)
    with torch.no_grad():
        policy.network.discrete[-1].bias.copy_(torch.tensor([30.0, 0.0, 0.0]))  # it takes 0
    source = {"randomness": Randomness(3)}
    collector = DifferentiableCollector(
        env, policy, frames_per_batch=2000, explore_fraction=0.5, **source
    )
    before = collector.collect().detach()
    assert collector.forced is None
    saved = collector.state_dict()
    batch = collector.collect().detach()
    forced, begun = collector.forced, batch[:, 0]
    assert 0.4 < forced.double().mean() < 0.6
    visited = (before["x"] == begun["x"].unsqueeze(1)).all(-1)
    assert visited.any(1)[forced].all()
    assert torch.equal(begun["x"][~forced], before["next", "x"][:, -1][~forced])
    assert not begun["action", "discrete"][~forced].any()
    chosen = begun["action", "discrete"][forced]
    allowed = begun["x"][forced, 0] < (0.0 if masked else 9.0)
    assert not chosen[~allowed].any()
    assert (chosen[allowed].bincount(minlength=3) / allowed.sum() - 1 / 3).abs().max() < 0.12
    assert not batch[:, 1:]["action", "discrete"].any()  # from there on it is the policy's
    state = source["randomness"].state().state_dict()
    collector.load_state_dict(saved)
    source["randomness"].state().load_state_dict(state)
    assert torch.equal(collector.collect()["x"][:, 0], begun["x"])


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_continuous_action_of_one_that_is_given_up_is_learned_by_explorers(share):
    env = Fork(batch_size=64, seed=0, noisy=0.0)
    torch.manual_seed(0)
    policy = HybridPolicy.for_env(env, find_scales=False)
    given = {"unroll_length": 5, "explore_fraction": share, "start_fraction": 0.0, "seed": 0}
    hpo = HPO(env, policy, make_value_network(env, find_scales=False), **given)
    states = torch.linspace(-1.0, 1.0, 21).unsqueeze(-1)
    data = TensorDict({"observation": states}, batch_size=21)

    def miss():
        u = policy.mean_action(data, torch.full((21,), 2)).detach()
        return float((u - states).square().mean().sqrt())

    first = miss()
    for update in range(60):
        hpo.anneal(update / 60)
        policy.network.preference.copy_(torch.tensor([60.0, 0.0, 0.0]))  # 0 is always taken
        batch = hpo.collector.collect()
        hpo.update(batch)
        if share and update:
            begun = batch[:, 0][hpo.collector.forced]
            assert torch.equal(begun["value_target"], begun["state_value"])
    assert (miss() < 0.25 * first) == (share > 0)
