"""Discrete actions that are simulated, and their advantages regressed or scored."""

import itertools

import pytest
import torch
from tensordict import TensorDict
from test_objectives import perturb

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


@pytest.mark.parametrize("tried", [0.0, 0.3, 1.0])
def test_the_net_is_not_asked_where_nothing_was_tried(monkeypatch, tried):
    """Terms and gradients are those of its answers everywhere."""
    env = Fork(batch_size=16, seed=0, masked=True, dtype=DOUBLE)
    policy = made(env)
    batch = batch_of(policy, env)
    batch["branched"] = torch.rand(*batch.shape, 1) < tried
    asked = []
    policy.network.discrete.register_forward_hook(lambda net, given, out: asked.append(len(out)))
    terms, gradient = regression(policy, batch)
    # The logits are not known elsewhere: those of the whole batch are asked for by this method.
    monkeypatch.setattr(HPOLoss, "_logits_tried", HPOLoss.logits)
    other, whole = regression(policy, batch)
    torch.testing.assert_close(gradient, whole)
    torch.testing.assert_close(terms["loss_objective"], other["loss_objective"])
    assert asked == [int(batch["branched"].sum()), len(batch)]
    entropy = -policy.discrete_logits(batch).exp() * policy.discrete_logits(batch).nan_to_num(
        0, 0, 0
    )
    used = entropy.sum(-1)[batch["branched"].squeeze(-1)]
    torch.testing.assert_close(terms["entropy"], used.sum() / max(1, used.numel()))


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
    default = HPO(env, policy, critic, seed=0)  # of the same work
    assert default.branch_steps == (20 if kind is Fork else 10)


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


class Slopes(DifferentiableEnv):
    """Two steps; each discrete action has a slope of its own, and no noise."""

    def __init__(self, **others):
        super().__init__(
            num_discrete=3,
            continuous_dim=1,
            state_shapes={"x": (1,)},
            observation_dim=1,
            noise_shape=(1,),
            horizon=2,
            dtype=DOUBLE,
            **others,
        )

    def dynamics(self, state, action, noise):
        d, u = action["discrete"].to(DOUBLE), action["continuous"]
        x = 0.6 * state["x"] + (d - 1.2).unsqueeze(-1) * u
        return {"x": x}, (2 * x[..., 0] + 0.5 * d).sin() - 0.3 * u[..., 0].square()

    def observe(self, state):
        return state["x"]

    def initial_state(self):
        return {"x": torch.full((*self.batch_size, 1), 0.4, dtype=DOUBLE)}

    def draw_noise(self, num_steps, state):
        return torch.zeros(*self.batch_size, num_steps, 1, dtype=DOUBLE)


def test_a_single_choice_that_is_tried_at_some_steps_has_the_exact_gradient():
    """Mean of the loss's gradient over all discrete actions, and over which step is tried."""
    env, steps = Slopes(batch_size=1), 2
    policy = perturb(HybridPolicy.for_env(env, hidden=(4,), activation="tanh"), 0.5)
    parameters = list(policy.parameters())
    loss = HPOLoss(policy, clip_epsilon=None, entropy_coeff=None, functional=False)
    template = differentiable_rollout(env, policy, steps).exclude(
        "discrete_log_prob", "action_log_prob"
    )

    @torch.no_grad()
    def value(x, d, left):
        """Expected return of so many steps from x that begin with d."""
        discrete = torch.tensor([d])
        u = policy.distribution(x).mode_of(discrete)
        after, reward = env.dynamics({"x": x}, {"discrete": discrete, "continuous": u}, None)
        chance = policy.distribution(after["x"]).logits[0].exp()
        if left > 1:
            reward = reward + sum(chance[o] * value(after["x"], o, left - 1) for o in range(3))
        return reward.item()

    returns, estimate = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
    for choice in itertools.product(range(3), repeat=steps):
        state, log_prob, total, rows = {"x": template["x"][:, 0]}, 0.0, 0.0, []
        for t, d in enumerate(choice):
            x, discrete = state["x"], torch.tensor([d])
            dist = policy.distribution(x)
            u = dist.mode_of(discrete)
            state, reward = env.dynamics(state, {"discrete": discrete, "continuous": u}, None)
            log_prob, total = log_prob + dist.log_prob_discrete(discrete), total + reward
            tried = [[value(x.detach(), o, steps - t) for o in range(3)]]
            tried = torch.tensor(tried, dtype=DOUBLE)
            rows.append((x, discrete, u, reward[:, None], state["x"], tried))
        returns = returns + (log_prob.exp() * total).mean()
        names = ("observation", ("action", "discrete"), ("action", "continuous"))
        names += (("next", "reward"), ("next", "observation"), "action_value")
        for step in range(steps):
            data = template.clone()
            for name, column in zip(names, zip(*rows, strict=True), strict=True):
                data[name] = torch.stack(column, 1)
            data["branched"] = (torch.arange(steps) == step).view(1, steps, 1)
            data["action_value"] = data["action_value"].where(data["branched"], 77.0)
            terms = loss(data)
            objective = sum(term for key, term in terms.items() if key.startswith("loss_"))
            found = torch.autograd.grad(objective, parameters, retain_graph=True)
            for entry, gradient in zip(estimate, found, strict=True):
                entry.sub_(log_prob.exp().item() * gradient)
    exact = torch.autograd.grad(returns, parameters)
    for entry, gradient in zip(estimate, exact, strict=True):
        torch.testing.assert_close(entry, gradient, rtol=1e-9, atol=1e-11)


def test_scored_values_are_in_the_unit_of_their_state():
    env = Slopes(batch_size=4)
    policy = perturb(HybridPolicy.for_env(env, hidden=(4,)), 0.5)
    loss = HPOLoss(policy, pathwise=False, cross_term=False, entropy_coeff=0.5)
    data = differentiable_rollout(env, policy, 2).detach()
    data["advantage"] = torch.zeros(4, 2, 1, dtype=DOUBLE)
    data["action_value"] = torch.randn(4, 2, 3, dtype=DOUBLE)
    wanted, plain = loss(data), data.copy()
    unit = torch.rand(4, 2, 1, dtype=DOUBLE) + 0.1
    data["action_value"], data["action_unit"] = data["action_value"] * unit, unit
    found = loss(data)
    torch.testing.assert_close(found["loss_objective"], wanted["loss_objective"])
    torch.testing.assert_close(found["loss_entropy"], wanted["loss_entropy"])
    gap = plain["action_value"].topk(2).values.diff(dim=-1).neg().log().mean().exp()
    torch.testing.assert_close(loss.advantage_unit(data, loss.logits(data)), gap)


def test_homogeneous_policies_score_modes_in_the_squared_size_of_the_state():
    env = SwitchedLQREnv.from_recipe(4, 3, batch_size=6, horizon=5, dtype=DOUBLE, seed=0)
    policy = HybridPolicy.for_env(env, hidden=(4,), homogeneous=True)
    critic = make_value_network(env, hidden=(4,), homogeneous=True)
    hpo = HPO(env, policy, critic, seed=0, branch_steps=2, branch_fraction=0.4, regress=False)
    assert not hpo.regresses
    assert hpo.collector.explore_fraction == hpo.explore_fraction
    hpo.anneal(0.0)
    assert hpo.entropy_bonus == hpo.entropy_coeff
    hpo.anneal(hpo.temperature_until)
    assert hpo.entropy_bonus == pytest.approx(hpo.temperature_final)
    batch = hpo.collector.collect()
    _, data = hpo.prepare(batch)
    hpo._branch(batch, data)
    size = (data["x"] / env.initial_scale).square().mean(-1, keepdim=True)
    torch.testing.assert_close(data["action_unit"], size)
    assert data["branched"].sum() == 6 * 2
    found = hpo.iterate()
    assert found["kl"] >= 0
    alone = SwitchedLQREnv.from_recipe(4, 1, batch_size=6, seed=0)
    one = HPO(alone, HybridPolicy.for_env(alone), make_value_network(alone), branch_steps=2)
    assert not one.branches
