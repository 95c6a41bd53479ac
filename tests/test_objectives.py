"""HPOLoss as a TorchRL loss module: keys, estimators, terms, isolation of gradients, windows."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import nn
from torch.testing import assert_close
from torchrl.objectives import ValueEstimators

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.modules import HybridNetwork, HybridPolicy, make_value_network
from hpo_torchrl.objectives import HPOLoss, HybridLossModule
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory.order_costs import ItemFixedCost

STEPS, GAMMA, LMBDA = 6, 0.875, 0.75
DETACHED = {"pathwise": False, "cross_term": False}
MODES = pytest.mark.parametrize("functional", [True, False])
CRITIC = pytest.mark.parametrize("with_critic", [True, False])


def parts(batch_size=4, with_critic=True, **network):
    """A policy with a non-zero discrete head, a critic, and a rollout with ends of both kinds."""
    torch.manual_seed(0)
    env = InventoryEnv(2, demand=2.0, fixed_cost_per_item=2.0, initial_state="random",
                       batch_size=batch_size, dtype=torch.float64, seed=0)  # fmt: skip
    policy = perturb(HybridPolicy.for_env(env, **{"hidden": (8,), "activation": "tanh"} | network))
    # As built the critic is zero everywhere, and has no gradient but in its head.
    critic = perturb(make_value_network(env, hidden=(8,))) if with_critic else None
    batch = differentiable_rollout(env, policy, STEPS, discount=GAMMA)
    if batch_size == 4:
        for system, step, terminates in [(0, 2, 0), (3, 5, 0), (1, 3, 1), (2, 5, 1)]:
            batch["next", "done"][system, step] = True
            batch["next", "terminated"][system, step] = bool(terminates)
    return policy, critic, batch


def perturb(module, size=0.3):
    for parameter in module.parameters():
        parameter.data.add_(size * torch.randn_like(parameter))
    return module


def make_loss(policy, critic=None, **kwargs):
    loss = HPOLoss(policy, critic, **kwargs)
    loss.make_value_estimator(gamma=GAMMA, **({} if critic is None else {"lmbda": LMBDA}))
    return loss


def off_policy(batch):
    """Detached data with random advantages and targets, and old log-probabilities that differ."""
    held = batch.detach().clone()
    for key in ("advantage", "value_target"):
        held.set(key, torch.randn_like(held["next", "reward"]))
    held["discrete_log_prob"] += 0.5 * torch.randn_like(held["discrete_log_prob"])
    return held


def total(terms):
    return sum(value for key, value in terms.items() if key.startswith("loss_"))


def gradients(loss, value):
    loss.zero_grad()
    value.backward(retain_graph=True)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in loss.parameters()]


def assert_same(loss, found, expected):
    """Compare a term with its formula: value and gradient."""
    assert_close(found, expected)
    assert_close(gradients(loss, found), gradients(loss, expected))


# -- keys ----------------------------------------------------------------------------------------

TERMS = {
    "default": ({}, {"pathwise", "critic", "entropy"}),
    "no clipping": ({"clip_epsilon": None}, {"pathwise", "critic", "entropy"}),
    "detached": (DETACHED, {"critic", "entropy"}),
    "critic held": ({"critic_coeff": None}, {"pathwise", "entropy"}),
    "no entropy": ({"entropy_coeff": None}, {"pathwise", "critic"}),
    "adaptive": ({"cross_term": "adaptive"}, {"pathwise", "critic", "entropy"}),
}


@CRITIC
@pytest.mark.parametrize("name", TERMS)
def test_out_keys(name, with_critic):
    kwargs, expected = TERMS[name]
    policy, critic, batch = parts(with_critic=with_critic)
    loss = make_loss(policy, critic, **kwargs)
    expected = (expected if with_critic else expected - {"critic"}) | {"objective"}
    extra = {"entropy", "kl_approx"} | (set() if loss.clip_epsilon is None else {"clip_fraction"})
    extra |= {"explained_variance"} if "critic" in expected else set()
    extra |= {"cross_term_weight"} if name == "adaptive" else set()
    terms = loss(batch)
    assert set(loss.out_keys) == set(terms.keys()) == {f"loss_{key}" for key in expected} | extra
    assert all(value.shape == () and value.isfinite() for value in terms.values())
    assert all(value.requires_grad == key.startswith("loss_") for key, value in terms.items())


PLACES = {
    "discrete_action": ("action", "discrete"),
    "sample_log_prob": "discrete_log_prob",
    "advantage": "advantage",
    "action_value": "action_value",
    "action_unit": "action_unit",
    "branched": "branched",
    "value_target": "value_target",
    "value": "state_value",
    "critic_value": "critic_value",
    "reward": "reward",
    "done": "done",
    "terminated": "terminated",
}
OPTIONAL = {"action_unit", "action_value", "branched", "critic_value"}


def test_accepted_keys_and_in_keys():
    policy, critic, _ = parts()
    loss = HPOLoss(policy, critic)
    assert vars(loss.tensor_keys) == PLACES
    after = {("next", key) for key in ("observation", "reward", "done", "terminated")}
    assert after | {"observation", ("action", "discrete")} <= set(loss.in_keys)
    with pytest.raises(ValueError, match="quality is not an accepted tensordict key"):
        loss.set_keys(quality="other")
    loss.set_keys(**dict.fromkeys(PLACES, "other"))
    assert set(vars(loss.tensor_keys).values()) == {"other"}
    assert {"other", ("next", "other")} <= set(loss.in_keys)
    assert not (after - {("next", "observation")}) & set(loss.in_keys)
    loss.set_keys(**dict.fromkeys(PLACES))
    assert vars(loss.tensor_keys) == PLACES


@pytest.mark.parametrize("estimator_first", [True, False])
@pytest.mark.parametrize("key", sorted(PLACES.keys() - OPTIONAL))
def test_renamed_entries_are_honoured(key, estimator_first):
    policy, critic, batch = parts()
    stored = ["advantage", "value_target"] if key in ("advantage", "value_target") else []
    batch = batch.copy().update(off_policy(batch).select("discrete_log_prob", *stored))
    expected = make_loss(policy, critic)(batch)
    old, new = PLACES[key], ("group", "renamed")
    if key == "value":
        critic.out_keys = [new]
    elif key in ("reward", "done", "terminated"):
        batch = batch.exclude(("next", old)).set(("next", *new), batch["next", old])
    else:
        batch = batch.exclude(old).set(new, batch.get(old))
    loss = HPOLoss(policy, critic)
    steps = [lambda: loss.set_keys(**{key: new})]
    # An estimator must find the critic's output.
    at = 0 if estimator_first and key != "value" else 1
    steps.insert(at, lambda: loss.make_value_estimator(gamma=GAMMA, lmbda=LMBDA))
    for step in steps:
        step()
    assert_close(loss(batch).to_dict(), expected.to_dict())


@CRITIC
@pytest.mark.parametrize("key", ["observation", ("action", "discrete"), ("next", "reward")])
def test_missing_entry_is_named(key, with_critic):
    policy, critic, batch = parts(with_critic=with_critic)
    with pytest.raises(KeyError, match=key if isinstance(key, str) else key[-1]):
        make_loss(policy, critic)(batch.exclude(key))


def test_keyword_arguments_give_the_losses_of_a_tensordict():
    policy, critic, batch = parts()
    batch = batch.copy().update(off_policy(batch).select("discrete_log_prob"))
    loss = make_loss(policy, critic, entropy_coeff=0.1)
    names = {key if isinstance(key, str) else "_".join(key): key for key in loss.in_keys}
    arguments, terms = {name: batch.get(key) for name, key in names.items()}, loss(batch)
    assert_close(dict(zip(loss.out_keys, loss(**arguments), strict=True)), terms.to_dict())
    loss.select_out_keys("loss_objective")
    assert_close(loss(**arguments), terms["loss_objective"])


@CRITIC
@pytest.mark.parametrize("detached", [False, True])
def test_input_is_left_unchanged(detached, with_critic):
    policy, critic, batch = parts(with_critic=with_critic)
    batch = off_policy(batch) if detached else batch
    before = batch.clone()
    make_loss(policy, critic, entropy_coeff=0.1, pathwise=not detached)(batch)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()
    assert batch["next", "reward"].requires_grad != detached


# -- advantages ----------------------------------------------------------------------------------


def lambda_returns(batch, critic, lmbda):
    """Advantages and targets by their recursion, one system and step at a time."""
    value, after = (
        torch.zeros(*batch.shape, 1) if critic is None else critic.module(data["observation"])
        for data in (batch.detach(), batch["next"].detach())
    )
    reward, done, over = (batch["next", key].detach() for key in ("reward", "done", "terminated"))
    advantage = torch.zeros_like(reward)
    for system in range(batch.shape[0]):
        later = 0.0
        for t in reversed(range(STEPS)):
            alive = 0.0 if over[system, t] else 1.0
            error = reward[system, t] + GAMMA * alive * after[system, t] - value[system, t]
            later = error + (0.0 if done[system, t] else GAMMA * lmbda * later)
            advantage[system, t] = later.detach()
    return {"advantage": advantage, "value_target": (advantage + value).detach()}


LAMBDAS = {"GAE": LMBDA, "TDLambda": LMBDA, "TD0": 0.0, "TD1": 1.0, "no critic": 1.0}


@pytest.mark.parametrize("name", LAMBDAS)
def test_advantages_and_targets(name):
    with_critic = name != "no critic"
    policy, critic, batch = parts(with_critic=with_critic)
    loss = HPOLoss(policy, critic)
    lmbda = {"lmbda": LMBDA} if LAMBDAS[name] == LMBDA else {}
    kind = ValueEstimators[name] if with_critic else None
    loss.make_value_estimator(kind, gamma=GAMMA, **lmbda)
    held = loss.advantages(batch)
    for key, expected in lambda_returns(batch, critic, LAMBDAS[name]).items():
        if with_critic or key == "advantage":
            assert_close(held[key], expected)
    assert loss.discount == GAMMA
    assert not held["advantage"].requires_grad


def test_estimators_that_are_refused():
    policy, critic, _ = parts()
    for kwargs in ({"lmbda": 0.9}, {"value_type": ValueEstimators.GAE}):
        with pytest.raises(ValueError, match="takes only gamma"):
            HPOLoss(policy).make_value_estimator(**kwargs)
    with pytest.raises(NotImplementedError, match="not implemented for loss HPOLoss"):
        HPOLoss(policy, critic).make_value_estimator(ValueEstimators.MAGAE)


# -- where gradients go --------------------------------------------------------------------------

REACH = {
    "loss_pathwise": {"continuous", "trunk"},
    "loss_objective": {"discrete", "trunk"},
    "loss_critic": {"critic"},
    "loss_entropy": {"discrete", "trunk"},
}


def component(name):
    if name.startswith("critic_network"):
        return "critic"
    return next((part for part in name.split(".") if part in ("discrete", "trunk")), "continuous")


@MODES
@pytest.mark.parametrize("shared_trunk", [False, True])
@CRITIC
@pytest.mark.parametrize("cross_term", [True, False])
def test_gradient_isolation(cross_term, with_critic, shared_trunk, functional):
    policy, critic, batch = parts(
        with_critic=with_critic, scale=0.3, learn_scale=True, shared_trunk=shared_trunk
    )
    kwargs = {"cross_term": cross_term, "entropy_coeff": 0.1, "functional": functional}
    loss = make_loss(policy, critic, **kwargs)
    terms = loss(batch)
    assert ("loss_critic" in terms) == with_critic
    for term in set(REACH) & set(terms.keys()):
        steers = {"continuous"} if cross_term and term == "loss_objective" else set()
        pairs = zip(loss.named_parameters(), gradients(loss, terms[term]), strict=True)
        for (name, _), gradient in pairs:
            reached = component(name) in REACH[term] | steers
            assert bool(gradient.any()) == reached, (term, name)
    assert all(parameter.requires_grad for parameter in loss.parameters())


@MODES
@pytest.mark.parametrize("layer", [0, 1])
def test_pathwise_term_spares_a_partly_frozen_critic(layer, functional):
    policy, critic, batch = parts()
    [m for m in critic.modules() if isinstance(m, nn.Linear)][layer].requires_grad_(False)
    flags = [p.requires_grad for p in critic.parameters()]
    make_loss(policy, critic, functional=functional)(batch)["loss_pathwise"].backward()
    assert all(p.grad is None for p in critic.parameters())
    assert [p.requires_grad for p in critic.parameters()] == flags


@pytest.mark.parametrize("critic", ["none", "own", "on the policy's trunk"])
@pytest.mark.parametrize("variant", ["modules kept", "plain sequential policy"])
def test_variants_give_the_same_losses_and_gradients(variant, critic):
    shared, with_critic = critic.startswith("on"), critic != "none"
    policy, critic, batch = parts(with_critic=with_critic, scale=0.3, shared_trunk=shared)
    if shared:
        head = nn.Linear(8, 1, dtype=torch.float64)
        critic.module = nn.Sequential(policy.network.trunk, head)
    plain = ProbabilisticTensorDictSequential(policy[0], policy[1])
    actor, functional = (policy, False) if variant == "modules kept" else (plain, True)
    results = []
    for loss in (make_loss(policy, critic), make_loss(actor, critic, functional=functional)):
        terms = loss(batch)
        results.append((terms.to_dict(), gradients(loss, total(terms))))
    assert loss.functional == functional
    assert_close(*results, rtol=1e-12, atol=1e-12)


# -- the terms -----------------------------------------------------------------------------------


@CRITIC
def test_window_ends_are_bootstrapped_unless_terminated(with_critic):
    policy, critic, batch = parts(with_critic=with_critic)
    loss = make_loss(policy, critic)
    expected = batch["next", "reward"].clone()
    for system, step in [(0, 2), (0, 5), (1, 5), (3, 5)] if with_critic else []:
        held = {key: value.detach() for key, value in critic.module.named_parameters()}
        final = batch["next", "observation"][system, step]
        beyond = torch.func.functional_call(critic.module, held, (final,))
        expected[system, step] = expected[system, step] + GAMMA * beyond
    assert_same(loss, loss(batch)["loss_pathwise"], -expected.mean())


@pytest.mark.parametrize("cross_term", [True, False])
def test_clipping_leaves_the_first_pass_alone(cross_term):
    policy, critic, batch = parts()
    clipped = make_loss(policy, critic, clip_epsilon=0.01, cross_term=cross_term)
    plain = make_loss(policy, critic, clip_epsilon=None, cross_term=cross_term)
    terms, expected = clipped(batch), plain(batch)["loss_objective"]
    assert_close(gradients(clipped, terms["loss_objective"]), gradients(plain, expected))
    assert terms["clip_fraction"] == 0.0
    assert abs(terms["kl_approx"]) < 1e-12


@pytest.mark.parametrize("kind", ["l2", "l1", "smooth_l1"])
def test_stored_advantages_and_targets_are_used_as_given(kind):
    policy, critic, batch = parts()
    batch = batch.copy().update(off_policy(batch).select("advantage", "value_target"))
    kwargs = {"loss_critic_type": kind, "critic_coeff": 0.5, "clip_epsilon": None}
    loss = make_loss(policy, critic, **kwargs)
    terms = loss(batch)
    log_prob = policy.get_dist(batch).log_prob_discrete(batch["action", "discrete"])
    assert_same(loss, terms["loss_objective"], -(log_prob * batch["advantage"][..., 0]).mean())
    distance = getattr(nn.functional, "mse_loss" if kind == "l2" else f"{kind}_loss")
    value = critic.module(batch["observation"].detach())
    assert_same(loss, terms["loss_critic"], 0.5 * distance(value, batch["value_target"]))


@pytest.mark.parametrize("in_units", [True, False])
@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("epsilon", [0.1, 0.4])
def test_terms_and_diagnostics_off_policy(epsilon, scale, in_units):
    policy, critic, batch = parts()
    held = off_policy(batch)
    held["advantage"] *= scale
    advantage, target = held["advantage"][..., 0], held["value_target"]
    kwargs = {"entropy_coeff": 0.2, "entropy_in_advantage_units": in_units, **DETACHED}
    loss = HPOLoss(policy, critic, clip_epsilon=epsilon, **kwargs)
    terms = loss(held.reshape(-1))
    dist = policy.get_dist(held)
    log_ratio = dist.log_prob_discrete(held["action", "discrete"]) - held["discrete_log_prob"]
    ratio, inside = log_ratio.exp(), log_ratio.exp().clamp(1 - epsilon, 1 + epsilon)
    surrogate = torch.min(ratio * advantage, inside * advantage)
    assert_same(loss, terms["loss_objective"], -surrogate.mean())
    assert_close(terms["clip_fraction"], (ratio != inside).double().mean())
    assert 0.0 < terms["clip_fraction"] < 1.0
    assert_close(terms["kl_approx"], -log_ratio.mean().detach())
    entropy = dist.entropy_discrete().mean()
    unit = advantage.std(correction=0) if in_units else 1.0
    assert_same(loss, terms["loss_entropy"], -0.2 * unit * entropy)
    assert_close(terms["entropy"], entropy.detach())
    residual = target - critic.module(held["observation"]).detach()
    assert_close(terms["explained_variance"], 1 - residual.var() / target.var())


@CRITIC
def test_reductions_and_batch_shapes(with_critic):
    policy, critic, batch = parts(batch_size=(2, 3), with_critic=with_critic)
    kwargs = {"entropy_in_advantage_units": False, "entropy_coeff": 0.1}
    reductions = ("none", "mean", "sum", None)
    losses = {r: make_loss(policy, critic, reduction=r, **kwargs) for r in reductions}
    terms = {reduction: loss(batch) for reduction, loss in losses.items()}
    flat, single = losses["none"](batch.reshape(6, STEPS)), losses["none"](batch[1, 2])
    for key in set(REACH) & set(losses["none"].out_keys):
        rows = terms["none"][key]
        assert_close(rows, flat[key].view(2, 3, STEPS))
        assert_close(rows[1, 2], single[key])
        assert_close(rows.mean(), terms["mean"][key])
        assert_close(rows.sum(), terms["sum"][key])
        assert_close(terms[None][key], terms["mean"][key])


def test_single_row_gives_finite_losses():
    policy, critic, batch = parts()
    loss = HPOLoss(policy, critic, entropy_coeff=0.1, **DETACHED)
    assert total(loss(off_policy(batch).reshape(-1)[:1])).isfinite()


# -- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_units", [True, False])
def test_masked_positions_do_not_count(in_units):
    policy, critic, batch = parts()
    held = off_policy(batch)
    mask = torch.rand(held.shape) < 0.6
    held["advantage"][~mask] *= 1e3
    kwargs = {"entropy_in_advantage_units": in_units, "entropy_coeff": 0.1, **DETACHED}
    loss = HPOLoss(policy, critic, **kwargs)
    expected = loss(held[mask])
    found = loss(held.set(("collector", "mask"), mask.unsqueeze(-1)))
    for key in set(REACH) & set(loss.out_keys):
        assert_close(found[key], expected[key], msg=lambda text, key=key: f"{key}: {text}")


def test_forbidden_options_have_no_part():
    torch.manual_seed(0)
    policy = perturb(HybridPolicy(HybridNetwork(4, 3, 2, hidden=()), mask_key="mask"))
    allowed, taken = [[True, False, True], [True, False, False]], torch.tensor([2, 0])
    data = {
        "observation": torch.randn(10, 4),
        "mask": torch.tensor(allowed).repeat(5, 1),
        "action": {"discrete": taken.repeat(5)},
        "advantage": torch.randn(10, 1),
    }
    loss = HPOLoss(policy, pathwise=False, clip_epsilon=None, entropy_coeff=0.1)
    terms = loss(TensorDict(data, batch_size=[10]))
    scores = policy.network.logits(data["observation"])[::2, [0, 2]].log_softmax(-1)
    # Every second row has a lone option, which is certain.
    expected = -(scores[:, 1] * data["advantage"][::2, 0]).sum() / 10
    assert_same(loss, terms["loss_objective"], expected)
    assert_close(terms["entropy"], -(scores.exp() * scores).sum().detach() / 10)
    gradients(loss, total(terms))
    slopes = policy.network.discrete[0].weight.grad
    assert slopes.isfinite().all()
    assert slopes.any(-1).tolist() == [True, False, True]


# -- heads ---------------------------------------------------------------------------------------


class ScoreFunctionLoss(HybridLossModule):
    """A contributor's loss; ``careless`` forgets that there may be heads."""

    own_keys = ("loss_objective",)
    careless = False

    def forward(self, tensordict):
        data = self.advantages(tensordict)
        logits, advantage = self.logits(data), self.advantage(data)
        terms, metrics = self.shared_terms(data, logits)
        log_prob = self.log_prob(data, logits)
        if self.careless:
            taken = data["action", "discrete"].unsqueeze(-1)
            log_prob = logits.gather(-1, taken).squeeze(-1)
        terms["loss_objective"] = -log_prob * advantage
        return self.reduce(terms, metrics, data)


def test_heads_as_many_as_steps_and_rollouts_do_not_broadcast():
    torch.manual_seed(0)
    env = InventoryEnv(
        features=[ItemFixedCost(5.0)], num_items=10, batch_size=10, dtype=torch.float64, seed=0
    )
    policy = perturb(HybridPolicy.for_env(env, hidden=(8,)))
    batch = differentiable_rollout(env, policy, 10)
    taken, returns = batch["action", "discrete"], batch["next", "reward"].detach().squeeze(-1)
    assert taken.shape == (10, 10, 10)
    returns = returns.flip(-1).cumsum(-1).flip(-1)
    chosen = policy.discrete_logits(batch.detach()).gather(-1, taken[..., None])[..., 0].sum(-1)
    loss = ScoreFunctionLoss(policy)
    assert_same(loss, loss(batch)["loss_objective"], -(chosen * returns).mean())
    exact = HPOLoss(policy, pathwise=False, cross_term=False, clip_epsilon=None)
    assert_same(exact, exact(batch)["loss_objective"], -(chosen * returns).mean())
    loss.careless = True
    with pytest.raises(ValueError, match=r"loss_objective must have one entry for each step"):
        loss(batch)
    with pytest.raises(ValueError, match="must have the shape of the policy's choices"):
        loss.log_prob(batch.copy().set(("action", "discrete"), taken[..., 0]))


# -- errors, coefficients, states ----------------------------------------------------------------


def test_rewards_without_gradient_are_refused():
    policy, critic, batch = parts()
    with pytest.raises(RuntimeError, match=r"'reward'\) carry no gradient.*pathwise=False"):
        make_loss(policy, critic)(batch.detach())
    assert "loss_pathwise" not in make_loss(policy, critic, **DETACHED)(batch.detach())


def test_bad_arguments_are_refused():
    policy, critic, batch = parts()
    for name, value in (
        ("clip_epsilon", 0.0),
        ("clip_epsilon", "wide"),
        ("entropy_coeff", float("nan")),
        ("critic_coeff", -1.0),
        ("loss_critic_type", "huber"),
        ("reduction", "max"),
        ("gamma", 0.9),
    ):
        with pytest.raises((TypeError, ValueError, NotImplementedError)):
            HPOLoss(policy, critic, **{name: value})(batch)


@pytest.mark.parametrize(
    ("name", "start"), [("entropy_coeff", 0.0), ("critic_coeff", 0.0), ("clip_epsilon", 1e-6)]
)
def test_coefficients_are_scheduled_in_place(name, start):
    policy, critic, batch = parts()
    held = off_policy(batch)
    loss = HPOLoss(policy, critic, **{name: start}, **DETACHED)
    buffer = getattr(loss, name)
    setattr(loss, name, 0.1)
    assert getattr(loss, name) is buffer
    expected = HPOLoss(policy, critic, **{name: 0.1}, **DETACHED)(held)
    assert_close(loss(held).to_dict(), expected.to_dict())


@MODES
def test_state_dict_round_trip(functional):
    policy, critic, batch = parts()
    kwargs = {"functional": functional, "entropy_coeff": 0.1}
    loss = make_loss(policy, critic, **kwargs)
    loss.entropy_coeff = 0.03
    other = make_loss(*(perturb(module) for module in parts()[:2]), **kwargs)
    assert not torch.equal(total(other(batch)), total(loss(batch)))
    other.load_state_dict(loss.state_dict())
    assert_close(other(batch).to_dict(), loss(batch).to_dict())


def test_a_regression_is_the_error_of_the_advantages_that_the_logits_stand_for():
    policy, critic, batch = parts()
    policy.network.temperature.fill_(0.4)
    loss = make_loss(policy, critic, score_function="regression", **DETACHED)
    held = off_policy(batch)
    own = 0.4 * policy.network.logits(held["observation"])
    values, used = 3.0 * torch.randn_like(own), torch.rand(*held.shape, 1) < 0.5
    terms = loss(held.update({"action_value": values, "branched": used}))
    aim = values - values.mean(-1, keepdim=True)
    error = (0.4 * (own / 0.4).log_softmax(-1) - values)[used[..., 0]]
    error = error - error.mean(-1, keepdim=True)
    expected = error.square().sum() / aim[used[..., 0]].square().sum()
    assert_same(loss, terms["loss_objective"], expected)
    assert_close(terms["advantage_fit"], 1 - expected.detach())
    assert "loss_entropy" not in terms
    right = own.detach() + torch.randn_like(own[..., :1])  # known but for a constant
    assert_close(loss(held.set("action_value", right))["advantage_fit"], torch.ones_like(expected))
