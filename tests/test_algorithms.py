"""Every algorithm: it runs everywhere, resumes exactly, and uses the gradients it says it uses."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from test_objectives import ScoreFunctionLoss
from test_seeds import OwnNetwork
from torch import nn
from torch.distributions import Categorical, Normal
from torchrl.objectives import HardUpdate

import hpo_torchrl.algorithms
from hpo_torchrl.algorithms import DDPG, HPO, PPO, GumbelSoftmax, Learner, Pathwise, Rule
from hpo_torchrl.algorithms.optimization import RewardScaler
from hpo_torchrl.collectors import differentiable_rollout, straight_through_rollout
from hpo_torchrl.envs import ReplicatedEnv
from hpo_torchrl.modules import HybridPolicy, make_q_network, make_value_network
from hpo_torchrl.objectives import HPOLoss, LearnedCriticLoss
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.inventory import optimal_s_S
from hpo_torchrl.problems.inventory.optima.items import Items
from hpo_torchrl.problems.inventory.rules import PeriodicPolicy
from hpo_torchrl.problems.switched_lqr import fixed_mode_cost
from hpo_torchrl.training import Evaluation

LEARNERS = [
    learner
    for learner in vars(hpo_torchrl.algorithms).values()
    if isinstance(learner, type) and issubclass(learner, Learner) and learner is not Learner
]


def inventory(num_items=2):
    return InventoryEnv(num_items, batch_size=8, initial_state="random", seed=0)


ENVS = {
    "inventory": inventory,
    "heterogeneous": lambda: InventoryEnv.heterogeneous(4, batch_size=8, seed=0),
    "switched LQR": lambda: SwitchedLQREnv.from_recipe(4, 2, batch_size=8, seed=0),
}


def make(algorithm, env=None, *, scale=0.0, network=None, **arguments):
    """A learner, of three items unless told otherwise; its networks are always the same."""
    torch.manual_seed(0)
    env = inventory(3) if env is None else env
    given = {"hidden": [8], "scale": scale, "learn_scale": scale > 0} | (network or {})
    policy, critic = HybridPolicy.for_env(env, **given), make_value_network(env, hidden=[8])
    return algorithm(env, policy, critic, **{"unroll_length": 6} | arguments)


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("algorithm", LEARNERS)
def test_every_algorithm_runs_everywhere_and_resumes_exactly(env, algorithm):
    # So small a buffer goes round.
    small = {DDPG: {"buffer_batches": 2, "updates_per_batch": 4, "minibatch_size": 32}}
    arguments = small.get(algorithm, {"epochs": 2} if algorithm is PPO else {})
    arguments |= {"scale": 0.1, "unroll_length": 5, "seed": 1}
    first, second = (make(algorithm, ENVS[env](), **arguments) for _ in range(2))

    def advance(learner, updates):
        for update in updates:
            learner.anneal(update / 20)
            assert all(map(math.isfinite, learner.iterate().values()))

    advance(first, range(2))
    for name, part in first.components().items():
        second.components()[name].load_state_dict(copy.deepcopy(part.state_dict()))
    for learner in (first, second):
        torch.manual_seed(5)  # from which a replay buffer samples
        advance(learner, range(2, 4))
    assert first.collector.frames == second.collector.frames
    for name, value in first.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[name]), name


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_the_unit_of_costs_does_not_matter(algorithm):
    """A power of two is exact, so that costs in another one are learned from in the same steps."""
    policies = []
    for unit in (1.0, 1024.0):
        costs = {"holding_cost": unit, "shortage_cost": 9 * unit, "fixed_cost_per_item": 64 * unit}
        env = InventoryEnv(2, batch_size=8, initial_state="random", seed=0, **costs)
        learner = make(algorithm, env, scale=0.1, seed=1)
        torch.manual_seed(2)  # of a replay buffer
        for _ in range(2):
            found = learner.iterate()
            assert {"loss_critic", "loss_qvalue"} & {*found}
        policies.append(learner.policy.state_dict())
    for name, value in policies[0].items():
        torch.testing.assert_close(value, policies[1][name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("algorithm", [HPO, GumbelSoftmax, Pathwise])
def test_a_loss_of_ones_own_trains(algorithm):
    learner = make(algorithm, loss=ScoreFunctionLoss)
    assert all(type(loss) is ScoreFunctionLoss for loss in learner.losses())
    learner.anneal(0.5)
    assert "loss_pathwise" not in learner.iterate()
    assert float(learner.loss.entropy_coeff) == pytest.approx(learner.entropy_bonus)


@pytest.mark.parametrize("items", [1, 5])  # discrete actions are simulated, or scored
def test_discrete_and_continuous_net_take_turns(items):
    learner = make(HPO, inventory(items), turns=4)
    groups = learner.optimization.groups

    def moved(progress):
        before = {name: [p.clone() for p in own.values()] for name, own in groups.items()}
        learner.anneal(progress)
        learner.iterate()
        return {
            name
            for name, own in groups.items()
            if not all(map(torch.equal, own.values(), before[name]))
        }

    for progress, rests in ((0.0, "discrete"), (0.3, "continuous"), (0.6, "discrete")):
        multiplier = learner.optimization.param_groups(rests)[0]["lr_multiplier"]
        assert moved(progress) == {"discrete", "continuous", "critic"} - {rests}
        assert learner.optimization.param_groups(rests)[0]["lr_multiplier"] == multiplier
    learner.turns, learner.resting = 0, None
    assert moved(0.7) == {"discrete", "continuous", "critic"}


@pytest.mark.parametrize("env", ENVS)
def test_the_value_after_a_step_is_that_of_where_it_led(env):
    """Also where an episode ends in the middle of the rollout."""
    learner = make(HPO, ENVS[env](), unroll_length=25)
    for parameter in learner.critic.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    batch = learner.collector.collect()
    learner.add_values(batch)
    with torch.no_grad():
        for place in (batch, batch["next"]):
            expected = learner.critic(place.select("observation"))["state_value"]
            torch.testing.assert_close(place["state_value"], expected)


# -- PPO -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [PPO, DDPG])
def test_no_simulator_gradient_leaks_into_model_free_algorithms(algorithm, monkeypatch):
    learner = make(algorithm, scale=0.3)
    seen = []
    dynamics = learner.env.dynamics

    def spy(state, action, noise):
        after, reward = dynamics(state, action, noise)
        seen.append(reward.requires_grad or any(v.requires_grad for v in after.values()))
        return after, reward

    monkeypatch.setattr(learner.env, "dynamics", spy)
    batch = learner.collector.collect()
    assert len(seen) >= 6
    assert not any(seen)
    assert not any(value.requires_grad for value in batch.values(True, True))


def test_ppo_steps_as_if_the_batch_had_come_from_a_file():
    """The same numbers without any history of the simulator give the same step."""
    one, other = (make(PPO, scale=0.3) for _ in range(2))
    batch = one.collector.collect()
    copy = TensorDict.from_dict(
        {key: value.numpy().copy() for key, value in batch.items(True, True)}, batch_size=[8, 6]
    )
    for learner, data in ((one, batch), (other, copy)):
        torch.manual_seed(3)
        learner.update(data)
    for first, second in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(first, second)


def test_ppo_clips_the_joint_probability():
    """TorchRL's loss sees log Cat + log N, as torch.distributions computes them."""
    learner = make(PPO, scale=0.3)
    batch = learner.collector.collect()
    logits, loc, scale = learner.policy.network(batch["observation"])
    d, u = batch["action", "discrete"], batch["action", "continuous"]
    index = d[..., None, None].expand(*d.shape, 1, 3)
    loc, scale = (part.gather(-2, index).squeeze(-2) for part in (loc, scale))
    joint = Categorical(logits=logits).log_prob(d) + Normal(loc, scale).log_prob(u).sum(-1)
    torch.testing.assert_close(batch["action_log_prob"], joint.detach())
    with torch.no_grad():  # another policy: the ratio is that of the joint probabilities
        learner.policy.network.continuous[-1].bias += 0.05
        learner.policy.network.discrete[-1].bias[1] += 0.3
    learner.rescale(batch)
    learner.add_values(batch)
    learner.add_advantages(batch)
    learner.loss(batch.reshape(-1))
    new = learner.policy.get_dist(batch).log_prob(batch["action"]).detach()
    torch.testing.assert_close(learner.loss.clipped.log_ratio, (new - joint).reshape(-1).detach())


def test_rollouts_are_two_cycles_long():
    env = InventoryEnv(2, 0, [0.8, 0.4], 0.04, 1.0, fixed_cost_per_item=25.0, batch_size=4)
    assert env.cycle_length == env.order_interval > 40
    assert make(HPO, env, unroll_length=None).unroll_length == 2 * env.order_interval
    assert make(HPO, env, unroll_length=7).unroll_length == 7
    assert ReplicatedEnv([env, copy.deepcopy(env)]).cycle_length == env.cycle_length
    assert make(HPO, inventory(), unroll_length=None).unroll_length == 30


@pytest.mark.parametrize("gae_lambda", [0.0, 0.4, 1.0])
def test_advantages_are_those_of_the_definition(gae_lambda):
    """sum_k (discount lambda)^k delta_{t+k}, in the algorithm and in a loss by itself."""
    learner = make(HPO, inventory(), discount=0.9, gae_lambda=gae_lambda)
    torch.nn.init.normal_(learner.critic.module[-1].weight)
    batch = learner.collector.collect()
    alone = HPOLoss(learner.policy, learner.critic)
    alone.make_value_estimator(gamma=0.9, lmbda=gae_lambda)
    by_itself = alone.advantages(batch)["advantage"]
    learner.add_values(batch)
    found = learner.add_advantages(batch)
    delta = found["next", "reward"] + 0.9 * found["next", "state_value"] - found["state_value"]
    expected, later = [], torch.zeros_like(delta[:, 0])
    for now in reversed(delta.unbind(1)):
        later = now + 0.9 * gae_lambda * later
        expected.insert(0, later)
    torch.testing.assert_close(found["advantage"], torch.stack(expected, 1))
    torch.testing.assert_close(by_itself, found["advantage"])
    learner.iterate()


def test_ppo_learns_its_scale_and_values_entropy():
    start = make(PPO, scale=0.3).policy.network.log_scale.detach().clone()
    wide = make(PPO, scale=0.3, scale_entropy_coeff=10.0, max_grad_norm=100.0)
    wide.iterate()
    assert (wide.policy.network.log_scale > start).all()


@pytest.mark.parametrize(
    ("algorithm", "arguments", "message"),
    [
        (PPO, {"scale": 0.0}, r"policy\.scale=0: .* Set policy\.scale"),
        (PPO, {"epochs": 0}, r"epochs must be an integer >= 1, got 0"),
        (PPO, {"clip_epsilon": 0.0}, r"clip_epsilon must be .* > 0"),
        (HPO, {"reset_fraction": 1.5}, r"reset_fraction must be .* <= 1, got 1\.5"),
        (HPO, {"entropy_final": 2.0}, r"entropy_final must be .* >= 0 and <= 1, got 2"),
        (Pathwise, {"discrete_action": 2}, r"must be one of the 2 discrete actions 0 to 1, got 2"),
        (DDPG, {"minibatch_size": 0}, r"minibatch_size must be an integer >= 1"),
        (DDPG, {"target_decay": 1.5}, r"target_decay must be .* <= 1"),
        (GumbelSoftmax, {"temperature": None}, r"temperature must be .* > 0, got None"),
        (HPO, {"no_such": 1}, r"unexpected keyword argument 'no_such'"),
        (
            HPO,
            {"loss": ScoreFunctionLoss, "cross_term": False},
            r"ScoreFunctionLoss takes no cross",
        ),
        (Pathwise, {"network": {"shared_trunk": True}}, r"policy\.shared_trunk=false"),
    ],
)
def test_bad_arguments_are_named(algorithm, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(algorithm, **{"scale": 0.3, **arguments})


# -- pathwise ------------------------------------------------------------------------------------


def gradients(module, value):
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def test_pathwise_loss_is_the_pathwise_term_of_the_mixed_loss():
    env = inventory()
    policy, critic = HybridPolicy.for_env(env, hidden=[8]), make_value_network(env, hidden=[8])
    nn.init.normal_(critic.module[-1].weight)
    batch = differentiable_rollout(env, policy, 5, discount=0.9)
    found = []
    for loss in (HPOLoss(policy, critic, score_function=False), HPOLoss(policy, critic)):
        loss.make_value_estimator(gamma=0.9, lmbda=0.9)
        value = loss(batch)["loss_pathwise"]
        found.append(torch.autograd.grad(value, policy.network.skip.weight, retain_graph=True)[0])
    assert torch.equal(*found)
    assert found[0].any()


def test_only_straight_through_rollouts_move_the_discrete_net():
    env = inventory()
    policy = HybridPolicy.for_env(env, hidden=[8])
    loss = HPOLoss(policy, None, score_function=False, entropy_coeff=None)
    for rollout, reached in ((differentiable_rollout, False), (straight_through_rollout, True)):
        grads = gradients(policy.network.discrete, loss(rollout(env, policy, 5))["loss_pathwise"])
        assert any(g is not None and g.any() for g in grads.values()) == reached


def test_pathwise_follows_the_rule_of_thumb():
    learner = make(Pathwise, inventory())
    batch = learner.collector.collect()
    position = batch["observation"].unflatten(-1, (2, 2)).sum(-1).mean(-1)
    assert torch.equal(batch["action", "discrete"], (position <= 3).long())
    assert "discrete" not in learner.optimization.groups
    before = learner.policy.network.skip.weight.clone()
    learner.update(batch)
    assert (learner.policy.network.skip.weight != before).any()
    always = make(Pathwise, discrete_action=1).collector.collect()
    assert always["action", "discrete"].all()


def test_pathwise_rule_of_thumb_of_a_switched_lqr_is_the_mode_that_reaches_most():
    env = SwitchedLQREnv.from_recipe(4, 2, batch_size=16, seed=0)
    x = env.reset()["observation"]
    reach = torch.stack([(x[:, :2] ** 2).sum(-1), (x[:, 2:4] ** 2).sum(-1)], -1)
    assert torch.equal(env.heuristic_choice(x), reach.argmax(-1))


# -- learned critic ------------------------------------------------------------------------------


def test_learned_critic_gradient_is_the_critics_slope():
    """With Q_d(s, u) = -|u - target_d|^2 everything is known in closed form."""
    env = InventoryEnv(2, batch_size=16, initial_state="random", seed=0)
    policy = HybridPolicy.for_env(env, hidden=[8], scale=0.1)
    targets = torch.tensor([[10.0, 20.0], [30.0, 5.0]])

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))

        def forward(self, observation, candidate):
            return self.shift - (candidate.unsqueeze(-2) - targets).square().sum(-1)

    q = TensorDictModule(Quadratic(), ["observation", "candidate"], ["action_value"])
    loss = LearnedCriticLoss(policy, q, gamma=0.5)
    HardUpdate(loss, value_network_update_interval=1)
    with torch.no_grad():
        batch = env.rollout(4, policy).reshape(-1)
    kept = batch.clone()
    terms = loss(batch)
    assert (batch == kept).all()
    logits, loc, _ = policy.network(batch["observation"])
    values = -(loc - targets).square().sum(-1)
    expected = -(logits.softmax(-1) * values).sum(-1).mean()
    torch.testing.assert_close(terms["loss_actor"], expected)
    ours = gradients(policy, terms["loss_actor"])
    for name, gradient in gradients(policy, expected).items():
        if gradient is not None:
            torch.testing.assert_close(ours[name], gradient)
    # Neither term moves what it must not.
    terms = loss(batch)
    assert not any(p.grad is not None for p in q.parameters())
    (shift,) = torch.autograd.grad(
        terms["loss_actor"], [loss.qvalue_network_params["module", "shift"]], allow_unused=True
    )
    assert shift is None
    ours = gradients(policy, loss(batch)["loss_qvalue"] + 0.0 * loss(batch)["loss_actor"])
    assert not any(g.any() for g in ours.values() if g is not None)
    # The target: reward plus half the next state's value.
    after, loc, _ = policy.network(batch["next", "observation"])
    later = (after.softmax(-1) * -(loc - targets).square().sum(-1)).sum(-1)
    goal = batch["next", "reward"].squeeze(-1) + 0.5 * later
    taken = -((batch["action", "continuous"] - targets[batch["action", "discrete"]]) ** 2)
    torch.testing.assert_close(terms["loss_qvalue"], (taken.sum(-1) - goal).square().mean())
    torch.testing.assert_close(terms["td_error"], (taken.sum(-1) - goal).abs().mean())
    # The shape of the batch does not matter.
    rows = loss(batch.reshape(4, 16))
    for name, value in terms.items():
        torch.testing.assert_close(rows[name], value)
    assert set(rows.keys()) == set(loss.out_keys)
    # The target stays where it was until it is updated.
    loss.qvalue_network_params["module", "shift"].data.add_(3.0)
    moved = (taken.sum(-1) + 3.0 - goal).square().mean()
    torch.testing.assert_close(loss(batch)["loss_qvalue"], moved)
    policy.network.continuous[-1].bias.data.add_(1.0)
    torch.testing.assert_close(loss(batch)["loss_qvalue"], moved)


def test_a_critic_of_parameters_judges_the_distribution_and_learns_between_it_and_the_action():
    """DA-AC; the critic is one whose values can be written down."""
    env = InventoryEnv(2, batch_size=8, initial_state="random", seed=0, dtype=torch.float64)
    goal = torch.tensor([[10.0, 20.0], [30.0, 5.0]]).double()
    policy = HybridPolicy.for_env(env, hidden=[8], scale=0.3, learn_scale=True)
    nn.init.normal_(policy.network.discrete[-1].weight)

    class Expected(nn.Module):
        """The mean of -|u - goal_d|^2: linear in the probabilities."""

        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, observation, parameters):
            p, loc, scale = parameters.split([2, 4, 4], -1)
            loc, scale = loc.unflatten(-1, (2, 2)), scale.unflatten(-1, (2, 2))
            values = -((loc - goal).square() + scale.square()).sum(-1)
            return self.shift + (p * values).sum(-1, keepdim=True)

    q = TensorDictModule(Expected(), ["observation", "parameters"], ["action_value"])
    loss = LearnedCriticLoss(policy, q, gamma=0.5, entropy_coeff=0.1)
    HardUpdate(loss, value_network_update_interval=1)
    with torch.no_grad():
        batch = policy[0](env.rollout(4, policy).reshape(-1)).select(*loss.in_keys)
    terms = loss(batch)
    logits, loc, scale = policy.network(batch["observation"])
    values = -((loc - goal).square() + scale.square()).sum(-1)
    expected = -(logits.softmax(-1) * values).sum(-1).mean()
    torch.testing.assert_close(terms["loss_actor"], expected)
    ours, theirs = (gradients(policy, value) for value in (terms["loss_actor"], expected))
    assert theirs["module.0.network.log_scale"].any()
    for name, gradient in theirs.items():
        if gradient is not None:
            torch.testing.assert_close(ours[name], gradient)

    # Between the parameters that acted and the action itself, by one random number for a row.
    discrete, continuous = (batch["action", name] for name in ("discrete", "continuous"))
    later, loc_after, scale_after = policy.network(batch["next", "observation"])
    after = -((loc_after - goal).square() + scale_after.square()).sum(-1)
    aim = batch["next", "reward"].squeeze(-1) + 0.5 * (later.softmax(-1) * after).sum(-1)
    chosen = nn.functional.one_hot(discrete, 2).double()
    torch.manual_seed(3)
    loss_q = loss(batch)["loss_qvalue"]
    torch.manual_seed(3)
    w = torch.rand(len(discrete), 1, dtype=torch.float64)
    p = (1 - w) * batch["logits"].softmax(-1) + w * chosen
    sure = torch.where(chosen.bool().unsqueeze(-1), continuous.unsqueeze(-2), batch["loc"])
    w = w.unsqueeze(-1)
    loc = (1 - w) * batch["loc"] + w * sure
    scale = batch["scale"] * (1 - w * chosen.unsqueeze(-1))
    taken = -(p * ((loc - goal).square() + scale.square()).sum(-1)).sum(-1)
    torch.testing.assert_close(loss_q, (taken - aim).square().mean())


def test_a_critic_of_parameters_asks_for_a_policy_that_has_them():
    with pytest.raises(ValueError, match="critic_of=parameters needs a policy whose u is normal"):
        make(DDPG, critic_of="parameters")
    with pytest.raises(ValueError, match="critic_of must be one of"):
        make(DDPG, scale=0.1, critic_of="states")
    q = TensorDictModule(nn.Identity(), ["observation"], ["action_value"])
    with pytest.raises(ValueError, match="must read 'candidate', an action, or 'parameters'"):
        LearnedCriticLoss(HybridPolicy.for_env(inventory()), q)
    learner = make(DDPG, scale=0.1, critic_of="parameters", updates_per_batch=2)
    assert all(map(math.isfinite, learner.iterate().values()))


def test_q_network_reads_actions_in_their_natural_unit():
    env = InventoryEnv(2, demand=[5.0, 50.0], batch_size=3)
    q = make_q_network(env, hidden=[8])
    nn.init.normal_(q.module.net[-1].weight)
    data = env.reset()
    ten = q(data.set("candidate", 1.0 * env.action_scale.expand(3, 2)))["action_value"]
    raw = q.module.net(torch.cat([data["observation"], torch.ones(3, 2)], -1))
    torch.testing.assert_close(ten, raw)


# -- rules ---------------------------------------------------------------------------------------


def stationary(num_items, **changes):
    return InventoryEnv(num_items, batch_size=256, initial_state="stationary", **changes)


def cost_of(rule, env, num_steps=600):
    return Evaluation(env, num_steps=num_steps, skip=100, seed=0).run(Rule(env, rule=rule).policy)


def test_rules_cost_what_the_oracles_say():
    exact = PeriodicPolicy.optimum(Items([6, 10, 14], [1.3, 1, 0.7], 9, 192, 2))
    three = stationary(3, demand=[6.0, 10.0, 14.0], holding_cost=[1.3, 1.0, 0.7])
    free = stationary(1, fixed_cost_per_item=0.0)
    for found, cost in (
        (cost_of("s_S", stationary(1)), optimal_s_S(10, 1, 9, 64, 2).cost),
        (cost_of("R_S", three, 100 + 120 * exact.policy.R), exact.cost / 3),
        # Without a fixed cost, ordering up to the newsvendor level every period is optimal.
        (cost_of("order_up_to", free), optimal_s_S(10, 1, 9, 0, 2).cost),
    ):
        assert abs(found.mean - cost) < 4 * found.standard_error


def test_fixed_mode_rule_costs_what_riccati_says():
    env = SwitchedLQREnv.from_recipe(4, 2, batch_size=64, seed=5, dtype=torch.float64)
    x0 = env.reset()["x"]
    costs = fixed_mode_cost(env.A, env.B, env.Q, env.R, env.horizon, x0).mean(-1)
    rule = Rule(env, rule="fixed_mode").policy
    run = env.rollout(
        env.horizon,
        rule,
        tensordict=env.reset(TensorDict({"x": x0}, [64]), set_state=True),
        auto_reset=False,
    )
    paid = -run["next", "reward"].sum((1, 2)).mean()
    torch.testing.assert_close(paid, costs[rule.mode])


def test_rules_refuse_what_their_formulas_do_not_cover():
    for changes in ({"lost_sales": True}, {"demand": "normal"}):
        with pytest.raises(ValueError, match="algorithm=R_S needs env=inventory with backlogged"):
            Rule(InventoryEnv(batch_size=2, **changes), rule="R_S")
    with pytest.raises(ValueError, match=r"no rule 'RS': its rules are 's_S', 'R_S'"):
        Rule(InventoryEnv(), rule="RS")
    with pytest.raises(ValueError, match="no rule 'best': it has no rules"):
        Rule(SimpleNamespace(), rule="best")


def test_references_of_joint_replenishment():
    two = Evaluation(stationary(2, procurement_cost=2.0), num_steps=1, seed=0).reference()
    assert two.optimal_cost == pytest.approx(38.1397 + 20.0, abs=1e-3)
    many = Evaluation(stationary(20), num_steps=1, seed=0).reference()
    assert many.optimal_cost is None
    assert many.lower_bound == pytest.approx(37.0644, abs=1e-3)
    assert many.upper_bound == pytest.approx(38.8823, abs=1e-3)
    assert many.baselines["(R, S) rule"] >= many.baselines["(Q, S) rule"]


# -- what HPO does besides its gradient ----------------------------------------------------------


def test_heterogeneous_instances_share_their_prefix():
    large = InventoryEnv.heterogeneous(30, instance_seed=3)
    for n in (1, 7, 29):
        small = InventoryEnv.heterogeneous(n, instance_seed=3)
        for name in ("demand_mean", "holding_cost", "shortage_cost"):
            assert torch.equal(getattr(small, name), getattr(large, name)[:n])
    other = InventoryEnv.heterogeneous(30, instance_seed=4)
    assert (other.demand_mean != large.demand_mean).all()
    assert 6 <= float(large.demand_mean.min()) <= float(large.demand_mean.max()) <= 14
    assert 0.7 <= float(large.holding_cost.min()) <= float(large.holding_cost.max()) <= 1.3
    with pytest.raises(ValueError, match="demand_mean is drawn from demand_range"):
        InventoryEnv.heterogeneous(3, demand_mean=5.0)
    with pytest.raises(ValueError, match=r"demand_range\[1\] must be .* >= 6, got 5"):
        InventoryEnv.heterogeneous(3, demand_range=[6.0, 5.0])


def test_random_starts_are_wide_for_any_number_of_items():
    """The mean over the items varies as much for a hundred as for one; each item strays too."""
    spreads = []
    for n in (1, 100):
        env = InventoryEnv(n, batch_size=2000, initial_state="random", seed=0)
        position = env.reset()["inventory"].sum(-1)
        spreads.append(float(position.mean(-1).std()))
    assert spreads[1] > 0.9 * spreads[0]
    assert position.std(-1).mean() > 5.0


@pytest.mark.parametrize(
    ("until", "expected"), [(0.5, [0.8, 0.8, 0.5, 0.2]), (1.0, [0.8, 0.8, 0.8, 0.2])]
)
def test_restarts_are_annealed_from_where_the_policy_is_settled(until, expected):
    learner = make(HPO, reset_fraction=0.8, reset_fraction_final=0.2, reset_until=until)
    fractions = []
    for progress in (0.0, 0.5, 0.75, 1.0):
        learner.anneal(progress)
        fractions.append(learner.collector.reset_fraction)
    assert fractions == pytest.approx(expected)


@pytest.mark.parametrize("component", ["discrete", "continuous"])
def test_a_nets_step_follows_how_far_it_moved(component):
    learner = make(HPO)
    (group,) = learner.optimization.param_groups(component)
    start = group["lr_multiplier"]
    learner.optimization.adapt_lr(component, 10.0)
    assert group["lr_multiplier"] < start
    for most in (1.0, 3.0, 1.0):
        for _ in range(50):
            learner.optimization.adapt_lr(component, 0.0, most)
        assert group["lr_multiplier"] == most
    learner.optimization.adapt_lr(component, 1.0)
    assert group["lr_multiplier"] == 1.0
    for ratio, change in ((0.49, 1), (0.5, 0), (2.0, 0), (2.01, -1)):
        group["lr_multiplier"] = 0.1
        learner.optimization.adapt_lr(component, ratio)
        assert (group["lr_multiplier"] > 0.1) - (group["lr_multiplier"] < 0.1) == change
    for ratio, change in ((0.12, 1), (0.125, 0), (0.5, 0), (0.51, -1)):  # longer steps: less far
        group["lr_multiplier"] = 1.5
        learner.optimization.adapt_lr(component, ratio, 3.0)
        assert (group["lr_multiplier"] > 1.5) - (group["lr_multiplier"] < 1.5) == change
    group["lr_multiplier"] = 1.0
    learner.optimization.adapt_lr(component, 0.2, 3.0)
    assert group["lr_multiplier"] == 1.0
    group["lr_multiplier"] = 0.25
    learner.anneal(0.0)
    groups = learner.optimization.groups
    rates = dict(zip(groups, learner.optimization.optimizers[0].param_groups, strict=True))
    assert rates[component]["lr"] == 0.25 * learner.learning_rate
    assert rates["critic"]["lr"] == learner.learning_rate


def test_many_items_start_in_small_steps():
    """A first step of full length would move a hundred items' orders by far more than is wanted."""
    moves = {}
    for share in (None, 1.0):
        learner = make(HPO, inventory(100))
        if share is not None:
            learner.optimization.param_groups("continuous")[0]["lr_multiplier"] = share
        learner.anneal(0.0)
        moves[share] = learner.iterate()["action_change"]
    assert moves[1.0] > 0.5
    assert moves[None] < 0.25


def test_an_update_measures_how_far_the_choice_moved():
    learner = make(HPO, epochs=0)
    batch = learner.collector.collect()
    states = batch["observation"].detach().clone()
    before = Categorical(logits=learner.policy.network.logits(states).detach())
    learner.optimization.param_groups("discrete")[0]["lr_multiplier"] = 1.0
    learner.anneal(0.0)
    metrics = learner.update(batch)
    after = Categorical(logits=learner.policy.network.logits(states).detach())
    expected = torch.distributions.kl_divergence(before, after).mean()
    assert metrics["kl"] == pytest.approx(float(expected), rel=1e-3, abs=1e-7)
    assert metrics["kl"] > 0
    with torch.no_grad():
        after = learner.policy.distribution(states)
    loc = after.mode_of(batch["action", "discrete"])
    move = (loc - batch["action", "continuous"]) / learner.env.action_scale
    assert metrics["action_change"] == pytest.approx(
        float(move.detach().square().mean().sqrt()), rel=1e-3
    )


# -- found in review -----------------------------------------------------------------------------


def test_hpo_trains_a_network_without_named_parts():
    learner = make(HPO, network={"network": OwnNetwork})
    before = learner.policy.network.net.weight.clone()
    learner.iterate()
    assert (learner.policy.network.net.weight != before).any()


def test_the_aims_of_a_step_follow_the_schedule():
    """A share that grew while the schedule falls would keep the steps as long as they were."""
    learner = make(HPO, learning_rate_final=0.01)
    (group,) = learner.optimization.param_groups("continuous")
    group["lr_multiplier"] = 0.5
    learner.anneal(1.0)
    learner.optimization.adapt_lr("continuous", 0.01)  # as much as the schedule leaves of the aim
    assert group["lr_multiplier"] == 0.5
    learner.optimization.adapt_lr("continuous", 0.1)  # ten times that
    assert group["lr_multiplier"] < 0.5


def test_the_continuous_net_learns_at_three_times_the_rate_where_it_hardly_moves():
    learner = make(HPO, target_action_change=1e3, target_kl=1e3)
    groups = [learner.optimization.param_groups(name)[0] for name in ("continuous", "discrete")]
    for group in groups:
        group["lr_multiplier"] = 1.0
    found = []
    for _ in range(4):
        learner.iterate()
        found.append([group["lr_multiplier"] for group in groups])
    assert found == [[1.5, 1.0], [2.25, 1.0], [3.0, 1.0], [3.0, 1.0]]


def test_rewards_that_do_not_vary_have_their_size_as_scale():
    scaler = RewardScaler()
    scaler.observe(torch.full((8, 5, 1), -3.0))
    torch.testing.assert_close(scaler(torch.tensor(-3.0)), torch.tensor(-1.0))


def test_critic_of_actions_has_the_activation_of_the_configured_critic():
    env = InventoryEnv(batch_size=8, seed=0)
    policy = HybridPolicy.for_env(env, scale=0.1)
    learner = DDPG(env, policy, make_value_network(env, hidden=[5, 6], activation="silu"))
    kinds = [type(module) for module in learner.critic.modules()]
    assert kinds.count(nn.SiLU) == 2
    layers = [module for module in learner.critic.modules() if isinstance(module, nn.Linear)]
    assert [layer.out_features for layer in layers] == [5, 6, 2]


def test_learned_critic_takes_masked_options():
    env = inventory()
    policy = HybridPolicy.for_env(env, hidden=[8], mask_key="mask")
    loss = LearnedCriticLoss(policy, make_q_network(env, hidden=[8]), entropy_coeff=0.1)
    HardUpdate(loss, value_network_update_interval=1)
    data = env.reset().set("mask", torch.tensor([True, False]).expand(8, 2))
    with torch.no_grad():
        batch = env.step(policy(data))
    batch["next", "mask"] = data["mask"]
    terms = loss(batch)
    assert all(bool(value.isfinite()) for value in terms.values())
    assert float(terms["entropy"]) == 0.0


def test_the_bonus_of_the_learned_critic_is_in_units_of_what_choices_differ_by():
    env = inventory()
    policy = HybridPolicy.for_env(env, hidden=[8])
    critic = make_q_network(env, hidden=[8])
    for parameter in critic.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    with torch.no_grad():
        batch = env.step(policy(env.reset()))
    found = []
    for shift, unit in ((0.0, 1.0), (50.0, 1.0), (0.0, 4.0)):
        moved = copy.deepcopy(critic)
        last = [module for module in moved.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.data.mul_(unit)
        last.bias.data.mul_(unit).add_(shift)
        loss = LearnedCriticLoss(policy, moved, entropy_coeff=0.1)
        HardUpdate(loss, value_network_update_interval=1)
        terms = loss(batch)
        found.append(float(terms["loss_entropy"].detach()) / unit)
    assert found[0] < 0.0
    assert found == pytest.approx([found[0]] * 3, rel=1e-3)


def test_a_divergence_is_never_below_nothing():
    """Rounding of equal choices would else be the root of a negative number."""
    learner = make(HPO)
    held = learner.collector.collect().detach()
    before = learner._log_probabilities(held)
    for shift in (0.0, 1e-7, -1e-7):
        assert learner._divergence(held, before + shift) >= 0.0
