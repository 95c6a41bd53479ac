"""The hybrid distribution against torch.distributions, and the policy inside TorchRL."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tensordict import TensorDict
from test_objectives import perturb
from torch.distributions import Categorical, Independent, Normal
from torch.nn import functional as F
from torchrl.collectors import Collector
from torchrl.data import Bounded, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from hpo_torchrl.core.categorical import spec_bounds
from hpo_torchrl.modules import (
    HybridDistribution,
    HybridNetwork,
    HybridPolicy,
    SmoothedNetwork,
    make_value_network,
)
from hpo_torchrl.modules.layers import Tanh
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv

close = torch.testing.assert_close


def parameters(*batch, options=3, dimension=2):
    """Draw logits, loc and scale, all leaves."""
    shape = (*batch, options, dimension)
    drawn = torch.randn(*batch, options), torch.randn(shape), torch.rand(shape) + 0.1
    return [x.to(torch.float64).requires_grad_() for x in drawn]


def branch_of(discrete, loc, scale):
    """Torch's own normal of the chosen branch."""
    index = F.one_hot(discrete, loc.shape[-2]).bool()
    loc, scale = loc.expand(*index.shape, -1), scale.expand(*index.shape, -1)
    chosen = (x[index].reshape(*discrete.shape, -1) for x in (loc, scale))
    return Independent(Normal(*chosen), 1)


def gradients(output, inputs):
    return torch.autograd.grad(output.sum(), inputs, allow_unused=True, retain_graph=True)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    sample_shape=st.lists(st.integers(1, 3), max_size=2),
    options=st.integers(1, 4),
    dimension=st.integers(1, 3),
)
def test_log_probs_and_entropy_agree_with_torch(batch, sample_shape, options, dimension):
    logits, loc, scale = parameters(*batch, options=options, dimension=dimension)
    dist = HybridDistribution(logits, loc, scale)
    action = dist.sample(torch.Size(sample_shape))
    d, u = action["discrete"], action["continuous"]
    assert d.shape == (*sample_shape, *batch)
    assert u.shape == (*sample_shape, *batch, dimension)
    assert (d.dtype, u.dtype, dist.num_discrete) == (torch.int64, torch.float64, options)
    discrete = Categorical(logits=logits)
    density = branch_of(d, loc, scale).log_prob(u)
    close(dist.log_prob_discrete(d), discrete.log_prob(d))
    close(dist.log_prob_continuous(d, u), density)
    close(dist.log_prob(action), discrete.log_prob(d) + density)
    branches = Independent(Normal(loc, scale), 1).entropy()
    close(dist.entropy_discrete(), discrete.entropy())
    close(dist.entropy(), discrete.entropy() + (discrete.probs * branches).sum(-1))


def test_samples_have_the_frequencies_and_moments_of_the_parameters():
    dist = HybridDistribution(*parameters(options=4))
    action = dist.sample((40_000,))
    counts = action["discrete"].bincount(minlength=4).double()
    expected = dist.probs.detach() * 40_000
    assert chisquare(counts, expected).pvalue > 1e-3
    assert chisquare(counts, expected.roll(1)).pvalue < 1e-9
    for option in range(4):
        u = action["continuous"][action["discrete"] == option]
        close(u.mean(0), dist.loc[option].detach(), rtol=0, atol=0.05)
        close(u.std(0), dist.scale[option].detach(), rtol=0.05, atol=0)


def test_rsample_reaches_loc_and_scale_of_the_sampled_branch_only():
    logits, loc, scale = parameters(5)
    action = HybridDistribution(logits, loc, scale).rsample()
    d, u = action["discrete"], action["continuous"]
    to_logits, to_loc, to_scale = gradients(u, (logits, loc, scale))
    sampled = F.one_hot(d, 3)[..., None].expand_as(loc)
    assert to_logits is None
    close(to_loc, sampled.double())
    chosen = branch_of(d, loc, scale).base_dist
    close(to_scale, sampled * ((u - chosen.loc) / chosen.scale)[..., None, :])
    assert not HybridDistribution(logits, loc, scale).sample()["continuous"].requires_grad


@pytest.mark.parametrize("scale", [None, 0.0, torch.zeros(3, 2)], ids=["None", "number", "tensor"])
def test_scale_zero_is_deterministic_and_adds_no_probability(scale):
    logits, loc, _ = parameters(5)
    dist = HybridDistribution(logits, loc, scale)
    action = dist.rsample((6,))
    d = action["discrete"]
    assert torch.equal(action["continuous"], branch_of(d, loc, torch.ones_like(loc)).mean)
    close(dist.log_prob(action), Categorical(logits=logits).log_prob(d))
    close(dist.entropy(), Categorical(logits=logits).entropy())
    assert not dist.log_prob_continuous(d, action["continuous"] + 1).any()
    assert gradients(action["continuous"], [loc])[0].sum() == action["continuous"].numel()


def test_coordinates_of_scale_zero_count_for_nothing_beside_others():
    logits, loc, scale = parameters(5)
    mixed = (scale * torch.tensor([1.0, 0.0])).detach().requires_grad_()
    dist = HybridDistribution(logits, loc, mixed)
    rest = HybridDistribution(logits, loc[..., :1], scale[..., :1])
    action = dist.rsample()
    left = {"discrete": action["discrete"], "continuous": action["continuous"][..., :1]}
    close(dist.log_prob(action), rest.log_prob(left))
    close(dist.entropy(), rest.entropy())
    for output in (dist.log_prob(action.detach()), dist.entropy(), action["continuous"]):
        assert all(g is None or g.isfinite().all() for g in gradients(output, (logits, loc, mixed)))


def test_masked_options_are_never_sampled_and_leave_everything_finite():
    logits, loc, scale = parameters(3)
    mask = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
    dist = HybridDistribution(logits, loc, scale, mask)
    action = dist.rsample((2000,))
    d = action["discrete"]
    assert mask.expand(2000, 3, 3).gather(-1, d[..., None]).all()
    assert (d[:, 1] == 1).all()
    assert mask.gather(-1, dist.deterministic_sample["discrete"][:, None]).all()
    close(dist.probs, (logits.exp() * mask) / (logits.exp() * mask).sum(-1, keepdim=True))
    kept = HybridDistribution(logits[:1, ::2], loc[:1, ::2], scale[:1, ::2])
    close(dist.entropy()[:1], kept.entropy())
    for output in (dist.entropy(), dist.entropy_discrete(), dist.log_prob(action.detach())):
        assert output.isfinite().all()
        (to_logits,) = gradients(output, [logits])
        assert to_logits.isfinite().all()
        assert (to_logits[~mask] == 0).all()
    assert dist.log_prob_discrete(torch.tensor([1, 0, 0]))[:2].isneginf().all()


def test_deterministic_sample_is_the_mean_of_the_likeliest_branch():
    logits, loc, scale = parameters(2, 4)
    dist = HybridDistribution(logits, loc, scale)
    action = dist.deterministic_sample
    assert torch.equal(action["discrete"], Categorical(logits=logits).mode)
    assert torch.equal(action["continuous"], branch_of(action["discrete"], loc, scale).mean)
    assert (action == dist.mode).all()
    assert gradients(action["continuous"], [loc])[0].sum() == 2 * 4 * 2


def test_the_parameters_given_are_not_changed():
    given = [*(x.detach() for x in parameters(4)), torch.tensor([True, True, False]).repeat(4, 1)]
    copies = [x.clone() for x in given]
    dist = HybridDistribution(*given)
    dist.log_prob(dist.rsample()), dist.entropy(), dist.deterministic_sample
    assert all(map(torch.equal, given, copies))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loc": torch.zeros(4, 2, 1)}, r"one branch per .*\(4, 3, 'n'\), got \(4, 2, 1\)"),
        ({"scale": torch.tensor(-0.5)}, r"scale must be >= 0, got a minimum of -0\.5"),
        ({"scale": torch.tensor([[[1.0], [math.nan], [1.0]]])}, "scale must be >= 0, got .* nan"),
        ({"scale": torch.ones(5)}, "scale must be broadcastable to .*(4, 3, 1).*got .*5,"),
        ({"mask": torch.ones(4, 3)}, r"mask must be bool of shape \(4, 3\), got torch.float32"),
        ({"mask": torch.eye(4, 3).bool()}, "mask must allow at least one discrete action"),
    ],
)
def test_wrong_parameters_are_named(changes, message):
    arguments = {"logits": torch.zeros(4, 3), "loc": torch.zeros(4, 3, 1)} | changes
    with pytest.raises(ValueError, match=message):
        HybridDistribution(**arguments, validate_args=True)


INF = float("inf")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ([[0.0, 0.0]], [[2.0, 3.0]], (0.0, [2.0, 3.0])),
        ([[-1.0, -2.0], [-1.0, -2.0]], [[5.0, 5.0], [5.0, 5.0]], ([-1.0, -2.0], 5.0)),
        ([-INF, 1.0], [INF, INF], ([-INF, 1.0], None)),
        ([-3.4e38, -INF], [2.0**96, 1e30], (None, [2.0**96, INF])),
    ],
)
def test_bounds_are_read_off_a_spec(low, high, expected):
    assert spec_bounds(Bounded(torch.tensor(low), torch.tensor(high))) == expected
    assert spec_bounds(Unbounded(2)) == (None, None)
    with pytest.raises(ValueError, match=r"same bounds for every instance.*continuous_bounds"):
        spec_bounds(Bounded(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]])))


def test_a_policy_refuses_a_row_without_an_allowed_option():
    policy = HybridPolicy(HybridNetwork(4, 3, 2), mask_key="allowed")
    allowed = torch.tensor([[True, True, True], [False, False, False]])
    with pytest.raises(ValueError, match="mask must allow at least one discrete action"):
        policy(TensorDict({"observation": torch.zeros(2, 4), "allowed": allowed}, 2))


def inventory(**arguments):
    return InventoryEnv(2, batch_size=8, seed=0, initial_state="random", **arguments)


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_the_policy_obeys_the_exploration_type(scale):
    env = inventory()
    policy, td = perturb(HybridPolicy.for_env(env, scale=scale)), env.reset()
    best = policy.distribution(td["observation"]).deterministic_sample
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert (policy(td.copy())["action"] == best).all()
    with set_exploration_type(ExplorationType.RANDOM):
        drawn = torch.stack([policy(td.copy())["action"] for _ in range(20)])
    same = drawn["discrete"] == best["discrete"]
    moved = (drawn["continuous"] != best["continuous"]).any(-1)
    assert not same.all()
    assert moved[same].all() if scale else not moved[same].any()


@pytest.mark.parametrize("kind", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
@pytest.mark.parametrize("arguments", [{}, {"scale": 0.3}, {"return_log_prob": False}], ids=str)
def test_act_is_the_module_on_plain_tensors(arguments, kind):
    env = inventory()
    policy, td = perturb(HybridPolicy.for_env(env, **arguments)), env.reset()
    with set_exploration_type(kind):
        torch.manual_seed(3)
        plain = policy.act(td["observation"])
        torch.manual_seed(3)
        out = policy(td)
    assert torch.equal(plain.discrete, out["action", "discrete"])
    assert torch.equal(plain.continuous, out["action", "continuous"])
    written = out.get("action_log_prob"), out.get("discrete_log_prob")
    for one, other in zip((plain.log_prob, plain.discrete_log_prob), written, strict=True):
        assert (one is None) == (other is None) == ("return_log_prob" in arguments)
        assert one is None or torch.equal(one, other)


def test_cached_log_probs_are_right_and_carry_no_graph():
    env = inventory()
    policy = perturb(HybridPolicy.for_env(env, scale=0.3))
    rollout = env.rollout(4, policy)
    dist = policy.get_dist(rollout.detach())
    joint, discrete = rollout["action_log_prob"], rollout["discrete_log_prob"]
    assert not joint.requires_grad
    assert not discrete.requires_grad
    close(joint, dist.log_prob(rollout["action"]))
    close(joint, policy.log_prob(rollout))
    close(discrete, dist.log_prob_discrete(rollout["action", "discrete"]))
    assert not torch.equal(joint, discrete)


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_it_feeds_torchrl_ppo_without_any_simulator_gradient(scale):
    env = inventory()
    policy = perturb(HybridPolicy.for_env(env, scale=scale), 0.2)
    critic = make_value_network(env)
    collector = Collector(
        env, policy, frames_per_batch=40, total_frames=80, auto_register_policy_transforms=False
    )
    batches = [batch.clone() for batch in collector]
    collector.shutdown()
    assert [batch.shape for batch in batches] == [(8, 5)] * 2
    batch = GAE(gamma=0.99, lmbda=0.95, value_network=critic)(batches[1])
    assert not any(value.requires_grad for value in batch.values(True, True))
    loss = ClipPPOLoss(policy, critic, entropy_coeff=0.01)
    terms = loss(batch)
    # The data are fresh, so the joint ratio is one and nothing is clipped.
    close(terms["loss_objective"], -batch["advantage"].mean())
    assert terms["clip_fraction"] == 0
    close(terms["kl_approx"], torch.tensor(0.0), atol=1e-6, rtol=0)
    close(terms["entropy"], policy.get_dist(batch).entropy().mean())
    both = {"discrete", "continuous", "skip"} if scale else {"discrete"}
    terms["loss_objective"].backward(retain_graph=True)
    named = loss.actor_network_params.flatten_keys(".").items()
    got = {name.split(".")[3] for name, p in named if p.grad is not None and p.grad.any()}
    assert got == both
    to_critic = [
        p for p in loss.critic_network_params.flatten_keys(".").values() if p.requires_grad
    ]
    assert all(p.grad is None for p in to_critic)
    terms["loss_critic"].backward()
    assert all(p.grad is not None for p in to_critic)


def test_a_learned_scale_is_reached_by_samples_and_log_probs():
    env = inventory()
    policy = perturb(HybridPolicy.for_env(env, scale=0.25, learn_scale=True))
    td = env.reset()
    fixed = HybridPolicy.for_env(env, scale=0.25)
    close(fixed.get_dist(td.copy()).scale, (0.25 * env.action_scale).expand(8, 2, 2))
    dist = policy.get_dist(td)
    for output in (dist.rsample()["continuous"], policy.get_dist(td).log_prob(dist.sample())):
        assert gradients(output, [policy.network.log_scale])[0].any()
    assert "log_scale" not in dict(fixed.named_parameters())
    with pytest.raises(ValueError, match="learn_scale=True needs scale > 0"):
        HybridPolicy.for_env(env, learn_scale=True)


def test_linear_skip_adds_a_linear_map():
    network = HybridNetwork(3, 2, 2, hidden=(4,))
    plain = HybridNetwork(3, 2, 2, hidden=(4,), linear_skip=False)
    plain.load_state_dict(network.state_dict(), strict=False)
    x = torch.randn(7, 3)
    close(network(x)[1], plain(x)[1])
    torch.nn.init.normal_(network.skip.weight)
    close(network(x)[1] - plain(x)[1], (x @ network.skip.weight.T).unflatten(-1, (2, 2)))
    close(network.logits(x), network(x)[0])


@pytest.mark.parametrize("shared_trunk", [False, True])
def test_a_homogeneous_form_scales_with_the_state(shared_trunk):
    """Inputs as the state, values as its square, choices not; what is behind it stays as it is."""
    env = SwitchedLQREnv.from_recipe(3, 2, dtype=torch.float64, batch_size=4, seed=0)
    own = {"products": 0 if shared_trunk else 3, "shared_trunk": shared_trunk, "scale": 0.1}
    policy = perturb(HybridPolicy.for_env(env, hidden=(8,), homogeneous=True, **own), 0.3)
    critic = perturb(make_value_network(env, hidden=(8,), homogeneous=True), 0.3)
    x = torch.randn(6, 4, dtype=torch.float64)
    far = torch.cat([1e3 * x[:, :3], x[:, 3:]], -1)
    network = policy.network
    logits, loc, scale = network(x)
    for one, other in zip(network(far), (logits, 1e3 * loc, scale), strict=True):
        close(one, other)
    for one, other in zip(network.sampler()(x), (logits, loc, scale), strict=True):
        close(one.expand_as(other), other)
    close(network.branches(x)[0], loc)
    close(network.logits(far), logits)
    close(critic(far), 1e6 * critic(x))
    assert (network(x + torch.tensor([0, 0, 0, 1.0]))[0] - logits).abs().max() > 1e-3
    origin = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    sum(part.sum() for part in (*network(origin)[:2], critic(origin))).backward()
    assert origin.grad.isfinite().all()
    noisy = SwitchedLQREnv.from_recipe(3, 2, process_noise=0.1, dtype=torch.float64)
    other = perturb(HybridPolicy.for_env(noisy, hidden=(8,), homogeneous=True), 0.3).network
    assert (other.logits(far) - other.logits(x)).abs().max() > 1e-3


def test_products_say_which_part_is_largest_and_let_gains_depend_on_the_state():
    """Squares, and a control whose gain is one of two: with every number set by hand."""
    network = HybridNetwork(2, 2, 2, hidden=(4,), linear_skip=False, products=2)
    x = 3 * torch.randn(200, 2)
    first = network.discrete[0]
    for layer, bias in ((first.left, 0.0), (first.right, 0.0), (network.continuous[0].left, 0.0)):
        torch.nn.init.constant_(layer.bias, bias)
    two = torch.eye(2).repeat(2, 1)
    for net in (network.discrete, network.continuous):
        for layer in (net[0].left, net[0].right):
            layer.weight.data, layer.bias.data = two.clone(), torch.zeros(4)
    network.discrete[-1].weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    # k = (x_0^2 - x_1^2, the reverse), far beyond where tanh is not yet 1.
    last = network.continuous[-1]
    last.weight.data.zero_()
    last.weight.data[4:, :2] = 1e6 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    network.gains.inner.weight.data = torch.ones(2, 2)
    network.gains.outer.weight.data = torch.tensor([[2.0, 0], [0, 2.0], [1.0, 0], [0, 1.0]])
    logits, loc, _ = network(x)
    larger = (x[:, 0].abs() > x[:, 1].abs()).long()
    assert torch.equal(logits.argmax(-1), 1 - larger)
    gain = (2.0 * larger - 1.0).unsqueeze(-1) * x.sum(-1, keepdim=True)
    close(loc[:, 0], 2 * gain * torch.tensor([1.0, -1.0]), rtol=1e-3, atol=1e-3)
    close(loc[:, 1], gain * torch.tensor([1.0, -1.0]), rtol=1e-3, atol=1e-3)
    # Products grow no faster than the state: a control without bounds must not be quadratic.
    torch.nn.init.normal_(last.weight)
    far = network(1e4 * x)[1].abs().amax() / network(1e3 * x)[1].abs().amax()
    assert 9.0 < far < 11.0


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((None, None), lambda z, c: c * z),
        ((2.0, None), lambda z, c: 2 + c * torch.logaddexp(0 * z, 4 * z + 5.2) / 4),
        ((None, 2.0), lambda z, c: 2 - c * torch.logaddexp(0 * z, 4 * z + 5.2) / 4),
        ((-1.0, 2.0), lambda z, c: -1 + 3 / (1 + (-z).exp())),
    ],
)
def test_means_lie_in_the_range_of_the_action(bounds, expected):
    unit = torch.tensor([1.0, 10.0])
    free, network = (
        HybridNetwork(3, 2, 2, continuous_bounds=b, action_scale=a, dtype=torch.float64)
        for b, a in (((None, None), None), (bounds, unit))
    )
    for parameter in free.parameters():
        parameter.data.normal_()
    network.load_state_dict(free.state_dict() | {"distribution.range.unit": unit})
    x = torch.randn(50, 3, dtype=torch.float64)
    close(network(x)[1], expected(free(x)[1], unit.double()))
    low, high = bounds
    assert (network(x)[1] >= (-math.inf if low is None else low)).all()
    assert (network(x)[1] <= (math.inf if high is None else high)).all()


def test_for_env_takes_range_unit_and_dtype_from_the_environment():
    env = inventory(dtype=torch.float64, demand=[4.0, 25.0])
    policy = HybridPolicy.for_env(env)
    loc = policy.get_dist(env.reset()).loc
    assert loc.dtype == torch.float64
    # Quantities start near 1.3 economic orders, in proportion to each item's demand.
    close(loc[..., 1] / loc[..., 0], torch.full_like(loc[..., 0], 25 / 4), rtol=0.1, atol=0)
    close(loc, (1.3 * env.action_scale).expand_as(loc), rtol=0.1, atol=0)


def test_check_env_names_the_mismatch():
    policy = HybridPolicy.for_env(inventory())
    policy.check_env(inventory())
    with pytest.raises(ValueError, match=r"3 discrete actions .*asks for 2 .*\(2, 2\)"):
        HybridPolicy(HybridNetwork(4, 3, 2)).check_env(inventory())
    with pytest.raises(ValueError, match=r"shape \(2, 5\), but .*\(2, 2\)"):
        HybridPolicy(HybridNetwork(4, 2, 5)).check_env(inventory())


@pytest.mark.parametrize("custom", [False, True])
def test_a_mask_is_read_from_its_key(custom):
    network = HybridNetwork(4, 3, 2)
    shell = torch.nn.Sequential(network) if custom else network
    policy = HybridPolicy(shell, mask_key="allowed")
    mask = torch.tensor([[True, False, True], [False, True, False]]).repeat(50, 1)
    td = TensorDict({"observation": torch.randn(100, 4), "allowed": mask}, 100)
    chosen = policy(td)["action", "discrete"]
    assert set(policy.in_keys) == {"observation", "allowed"}
    assert mask.gather(-1, chosen[:, None]).all()
    assert chosen.unique().tolist() == [0, 1, 2]
    logits = policy.get_dist(td).logits
    assert torch.equal(logits.isneginf(), ~mask)
    close(policy.discrete_logits(td), logits)
    close(policy.distribution(td["observation"], mask).logits, logits)


def test_state_dict_round_trip_restores_every_output():
    env = inventory()
    arguments = {"scale": 0.3, "learn_scale": True, "shared_trunk": True, "hidden": (8, 6)}
    policy, other = (perturb(HybridPolicy.for_env(env, **arguments)) for _ in range(2))
    td = env.reset()
    before, changed = policy.get_dist(td.copy()), other.get_dist(td.copy())
    other.load_state_dict(policy.state_dict())
    after = other.get_dist(td.copy())
    for key in ("logits", "loc", "scale"):
        assert torch.equal(getattr(after, key), getattr(before, key))
        assert not torch.equal(getattr(changed, key), getattr(before, key))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"activation": "tahn"}, ValueError, "activation must be one of .*Did you mean 'tanh'"),
        ({"scale": -0.1}, ValueError, r"scale must be a finite number >= 0, got -0\.1"),
        ({"linear_skip": "no"}, TypeError, "linear_skip must be true or false, got 'no'"),
        ({"hidden": (8, 0)}, ValueError, "hidden must be an integer >= 1, got 0"),
    ],
)
def test_wrong_network_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        HybridPolicy.for_env(inventory(), **arguments)


def test_a_smoothed_choice_follows_from_how_much():
    env = InventoryEnv(num_items=3, batch_size=50, initial_state="random", dtype=torch.float64)
    policy = SmoothedNetwork.for_env(env, width=0.4, hidden=[8])
    network, observation = perturb(policy).network, env.reset()["observation"]
    logits, loc, _ = network(observation)
    size = (loc[:, 1] / env.action_scale).square().mean(-1).sqrt()
    close(logits.softmax(-1)[:, 1], 1.0 - (-size / 0.4).exp(), rtol=1e-5, atol=2e-6)
    for other in (network.logits(observation), network.sampler()(observation)[0]):
        close(other, logits)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        acts = policy(env.reset().set("observation", observation))["action", "discrete"].bool()
    assert torch.equal(acts, size > 0.4 * math.log(2))
    assert acts.any()
    assert not acts.all()
    assert set(policy.parameter_groups()) == {"continuous"}
    # Where an order underflows to 0 gradients are still numbers.
    with torch.no_grad():
        network.continuous[-1].bias.fill_(-1e3)
    network.logits(observation)[:, 1].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)
    with pytest.raises(ValueError, match="one choice of 2 discrete actions, got 4"):
        SmoothedNetwork.for_env(SwitchedLQREnv.from_recipe(8, 4))
    with pytest.raises(ValueError, match="width must be"):
        SmoothedNetwork.for_env(env, width=0.0)


def test_a_network_or_a_layer_of_ones_own_is_the_one_that_acts():
    class Shifted(HybridNetwork):
        def forward(self, observation):
            logits, loc, scale = super().forward(observation)
            return logits, loc + 5.0, scale

    class Layer(MLP):
        def forward(self, inputs):
            return super().forward(inputs) + 7.0

    own, changed = HybridPolicy(Shifted(4, 3, 2)), HybridPolicy(HybridNetwork(4, 3, 2))
    changed.network.continuous = Layer(in_features=4, out_features=6, num_cells=[8])
    observation = torch.randn(6, 4)
    for policy in (own, changed):
        action = policy.act(observation)
        close(action.continuous, policy.distribution(observation).mode_of(action.discrete))
        assert (action.continuous > 3.0).all()


@pytest.mark.parametrize("size", [3, 300])  # either side of where it is torch's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_quick_tangent_is_the_tangent(size, dtype):
    torch.manual_seed(0)
    value = torch.cat([4.0 * torch.randn(size, 64), torch.full((1, 64), 99.0), torch.zeros(1, 64)])
    value = value.to(dtype).requires_grad_()
    weight = torch.rand_like(value)

    def derivatives(tanh):
        out = tanh(value)
        (first,) = torch.autograd.grad((out * weight).sum(), value, create_graph=True)
        (second,) = torch.autograd.grad((first * weight).sum(), value)
        return out, first, second

    close = {"rtol": 0.0, "atol": 20 * torch.finfo(dtype).eps}
    for found, exact in zip(derivatives(Tanh()), derivatives(torch.tanh), strict=True):
        torch.testing.assert_close(found, exact, **close)
    with torch.no_grad():
        torch.testing.assert_close(Tanh()(value), torch.tanh(value), **close)
    torch.testing.assert_close(torch.func.vmap(Tanh())(value), torch.tanh(value), rtol=0, atol=0)
    assert Tanh()(torch.tensor([torch.nan])).isnan()
