"""Learned order-up-to levels: against the rule that they begin as, and finite differences."""

from __future__ import annotations

import math
import re

import pytest
import torch
from shrunk import TINY
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP
from weekly_file import write_weekly_file

from hpo_torchrl import train
from hpo_torchrl.collectors import DifferentiableCollector, differentiable_rollout
from hpo_torchrl.modules import ActionRange, replicate
from hpo_torchrl.modules.action_range import raw_of
from hpo_torchrl.objectives import HPOLoss
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import Record
from hpo_torchrl.problems.inventory.learned_levels import LearnedLevels
from hpo_torchrl.problems.inventory.rules import TotalDemandPolicy


def test_learned_levels_order_up_to_them_and_follow_the_slope_of_costs():
    env = InventoryEnv.heterogeneous(3, batch_size=4096, initial_state="stationary", seed=0)
    rule, policy = TotalDemandPolicy.best(env), LearnedLevels.for_env(env, hidden=[4])
    control = policy.network.continuous
    assert {id(p) for p in policy.parameter_groups()["continuous"].values()} == {id(control.level)}
    control.level.data = rule.S.float() / env.action_scale
    with torch.no_grad():
        data = policy[0](rule(env.reset()))
    # The corner of max(S - x, 0) is rounded off over a quarter of the unit.
    missing = data["action", "continuous"]
    far = missing > 0.75 * env.action_scale
    assert far.double().mean() > 0.1
    torch.testing.assert_close(data["loc"][:, 1][far], missing[far], rtol=0.02, atol=0.0)

    # Untrained, the choice is uniform in every state: the same numbers draw the same orders.
    env = InventoryEnv(2, batch_size=512, seed=1, dtype=torch.float64)
    policy = LearnedLevels.for_env(env, hidden=[4])
    level = policy.network.continuous.level
    middle = 1.013 * level.detach()

    def cost_of(shift):
        level.data = middle + shift
        env.set_seed(1)
        torch.manual_seed(2)
        collector = DifferentiableCollector(env, policy, frames_per_batch=512 * 12)
        return -collector.collect()["next", "reward"].mean()

    (slope,) = torch.autograd.grad(cost_of(0.0), level)
    for item in range(2):
        step = 1e-6 * torch.eye(2, dtype=torch.float64)[item]
        with torch.no_grad():
            difference = (cost_of(step) - cost_of(-step)) / 2e-6
        torch.testing.assert_close(slope[item], difference, rtol=1e-4, atol=0.0)


def test_learned_levels_train_several_seeds_and_refuse_other_problems():
    env = InventoryEnv(2, batch_size=4, initial_state="random", seed=0)
    policies = [LearnedLevels.for_env(env, hidden=[4]) for _ in range(2)]
    policies[1].network.continuous.level.data.mul_(0.5)
    data = torch.stack([env.reset(), env.reset()])
    together = replicate(policies)(data.copy())
    for place, policy in enumerate(policies):
        torch.testing.assert_close(together["loc"][place], policy(data[place].copy())["loc"])
    items = InventoryEnv(2, features=[{"name": "item_fixed_cost", "cost": 5.0}], batch_size=4)
    with pytest.raises(
        ValueError, match="policy=order_up_to needs an InventoryEnv with a discrete"
    ):
        LearnedLevels.for_env(items)
    with pytest.raises(ValueError, match="shares no layers; set shared_trunk=False"):
        LearnedLevels.for_env(env, shared_trunk=True)
    normal = InventoryEnv(2, demand={"name": "normal", "mean": 10.0}, batch_size=4)
    for other, needed in ((items, "a discrete action"), (normal, "an (s, S) rule")):
        with pytest.raises(ValueError, match=re.escape(f"needs an InventoryEnv with {needed}")):
            LearnedLevels.for_env(other, from_rule=True)
        plain = LearnedLevels.for_env(other, from_rule=None, hidden=[4], activation="tanh")
        assert isinstance(plain.network.discrete, MLP)


def test_raw_outputs_of_a_size_are_those_that_the_range_maps_to_it():
    size = torch.linspace(-0.5, 4.0, 200, dtype=torch.float64).requires_grad_()
    action = ActionRange((0.0, None), torch.ones(1, dtype=torch.float64))(raw_of(size)[:, None])
    within = size.detach() >= 0.05
    torch.testing.assert_close(action[within, 0], size[within])
    assert (action[~within] > 0).all()
    assert (action[size <= -0.1] < 0.003).all()
    (slope,) = torch.autograd.grad(action.sum(), size)
    torch.testing.assert_close(slope[within], torch.ones_like(slope[within]))
    assert (slope[~within] > 0).all()


def recorded(item_names=("a", "b", "c"), lost_sales=False, **costs):
    """Three items that are short in turn, with costs of their own."""
    generator = torch.Generator().manual_seed(3)
    record = torch.randint(0, 30, (90, len(item_names)), generator=generator) + torch.arange(3) * 9
    demand = Record(record, (0, 90), (0, 60), history=3, items=item_names)
    settings = {"holding_cost": [1.0, 0.5, 2.0], "shortage_cost": [9.0, 9.0, 20.0]}
    start = {"initial_state": "random", "batch_size": 64, "seed": 0, "dtype": torch.float64}
    return InventoryEnv(demand=demand, lost_sales=lost_sales, **settings, **start, **costs)


@pytest.mark.parametrize(
    "env",
    [
        recorded(),
        recorded(lost_sales=True, lead_time=0),
        recorded(lost_sales=True, procurement_cost=50.0),  # never to order
        InventoryEnv.heterogeneous(3, batch_size=64, initial_state="random", seed=0),
    ],
    ids=["recorded", "lost", "never", "poisson"],
)
def test_a_policy_can_begin_as_the_best_rule_and_corrects_it(env):
    rule, policy = env.rules()["s_S"](), LearnedLevels.for_env(env, from_rule=True, hidden=[8, 8])
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        run = env.rollout(40, rule)
        own = policy(run.exclude("action", "action_log_prob"))
    ordering = run["action", "discrete"] == 1
    assert torch.equal(own["action", "discrete"], run["action", "discrete"])
    assert bool(ordering.any()) == math.isfinite(rule.Q)
    error = (own["action", "continuous"] - run["action", "continuous"]) / env.action_scale
    assert error[ordering].abs().amax() < 0.02 if ordering.any() else True
    # Both nets are reached, and each by its own term alone.
    groups = policy.parameter_groups()
    assert {name.split(".")[3] for name in groups["discrete"]} == {"discrete"}
    rollout = differentiable_rollout(env, policy, 10)
    loss = HPOLoss(policy, clip_epsilon=None)(rollout)
    sum(value for key, value in loss.items() if key.startswith("loss_")).backward()
    for name in ("discrete.net.last.weight", "continuous.net.last.weight", "continuous.level"):
        gradient = policy.network.get_parameter(name).grad
        assert gradient.abs().max() > 0 or not ordering.any()


def test_one_net_serves_all_items_whatever_their_number_and_order():
    env = recorded()
    policy = LearnedLevels.for_env(env, from_rule=True, hidden=[8, 8])
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype))
        state = env.rollout(5, policy)[:, -1]
        order = torch.tensor([2, 0, 1])
        views, control = policy.network.continuous.views, policy.network.continuous
        answer = policy.network(state["observation"])
        permuted = {key: state[key][:, order] for key in ("inventory", "recent", "period")}
        # The same items in another order: their facts, levels and means move with them.
        for module, name in ((views, "facts"), (control, "level"), (control, "weight")):
            getattr(module, name).data = getattr(module, name)[order]
        for name in ("levels", "mean"):
            setattr(policy.network.discrete, name, getattr(policy.network.discrete, name)[order])
        env.demand.mean = env.demand.mean[order]
        env._slot_mean = env._slot_mean.reshape(3, -1)[order].flatten()
        other = policy.network(env.observe(permuted))
    torch.testing.assert_close(other[0], answer[0])
    units = env.action_scale
    torch.testing.assert_close(other[1] / units, answer[1][..., order] / units[order])
    sizes = [
        sum(p.numel() for p in LearnedLevels.for_env(env, from_rule=True).parameters()) - n
        for n in (2, 40)
        for env in [InventoryEnv(n, batch_size=2)]
    ]
    assert sizes[0] == sizes[1]


def test_a_run_that_only_spoils_the_rule_keeps_it(tmp_path):
    path = write_weekly_file(tmp_path / "weekly.csv", seed=1, items=5)
    words = ["env=inventory_from_file", f"env.path={path}", *TINY, "algorithm.learning_rate=5.0"]
    words += ["trainer.eval_every=1", "evaluation.validation.batch_size=64"]
    summary = train(words, folder=tmp_path / "run").summary
    assert summary["selected_update"] == 0
    # But for the corner of an order of next to nothing.
    assert summary["dev_cost"] == pytest.approx(summary["record"]["dev"]["rule_cost"], rel=5e-3)
