"""Pieces of an action, the reformulation, its certificate and the features that it is made for."""

from __future__ import annotations

import json
import math
import runpy
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from test_collectors import Drift
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs

from hpo_torchrl.algorithms import DDPG, HPO, PPO, GumbelSoftmax, Pathwise
from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.envs import (
    Breakpoint,
    DifferentiableEnv,
    Gap,
    Pieces,
    certify,
    find_jumps,
    hybridize,
)
from hpo_torchrl.envs.pieces import ActionPieces
from hpo_torchrl.envs.wrapped import Spaces
from hpo_torchrl.modules import HybridPolicy, RulePolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import Record
from hpo_torchrl.problems.inventory.features import Feature
from hpo_torchrl.problems.inventory.lead_times import LeadTimes, RandomLeadTimes, Suppliers
from hpo_torchrl.problems.inventory.order_costs import (
    AllUnitsDiscount,
    FixedCost,
    IncrementalDiscount,
    ItemFixedCost,
    StepCost,
    Truckloads,
)
from hpo_torchrl.problems.inventory.order_quantities import Budget, MinimumOrder, Packs, Storage
from hpo_torchrl.problems.inventory.sales import LostSales, Profit
from hpo_torchrl.training import Evaluation

VARIANTS = {
    "fixed_cost": [FixedCost(64.0)],
    "item_fixed_cost": [FixedCost(64.0), ItemFixedCost(10.0)],
    "minimum_order": [MinimumOrder(60.3), FixedCost(30.0)],
    "all_units_discount": [FixedCost(64.0), AllUnitsDiscount([30.1, 50.7], [1.0, 0.9, 0.8])],
    "incremental_discount": [FixedCost(5.0), IncrementalDiscount([20.1, 50.0], [1.0, 0.9, 0.8])],
    "step_cost": [StepCost([20.7, 50.0], [10.0, 20.0, 30.0])],
    "truckloads": [Truckloads(30.1, 20.0, 3)],
    "suppliers": [Suppliers([1, 3], [1.2, 1.0], [10.0, 20.0])],
    "lead_times": [LeadTimes([20.7], [1, 3]), FixedCost(9.0)],
    "random_lead_times": [RandomLeadTimes([1, 3, 3]), FixedCost(9.0)],
    "lost_sales": [LostSales(), FixedCost(64.0)],
    "profit": [Profit(5.0), LostSales(), FixedCost(64.0)],
    "budget": [FixedCost(9.0), MinimumOrder(5.0), Budget(60.0, 1.5)],
    "storage": [FixedCost(9.0), Storage(90.0), ItemFixedCost(2.0)],
    "several": [FixedCost(9.0), AllUnitsDiscount([30.1], [1.0, 0.9]), Truckloads(30.1, 4.0, 2)],
}
# Of three items, each with values of its own.
BY_ITEM = {
    "item_fixed_cost": [FixedCost(64.0), ItemFixedCost([10.0, 0.0, 3.0])],
    "minimum_order": [MinimumOrder([60.3, 0.0, 7.0]), FixedCost(30.0)],
    "all_units_discount": [AllUnitsDiscount([[30.1, 50.7], [9.0, 20.0], [5.5, 6.0]], [3, 2, 1])],
    "incremental_discount": [IncrementalDiscount([[20.1], [30.0], [4.0]], [1.0, 0.9])],
    "step_cost": [StepCost([[20.7], [50.0], [10.0]], [10.0, 20.0])],
    # One item has a piece less than the others.
    "several": [MinimumOrder([10.0, 40.0, 0.0]), StepCost([[20.0], [30.0], [9.0]], [1.0, 3.0])],
    "profit": [Profit([5.0, 1.0, 0.0]), LostSales(), FixedCost(64.0)],
    "budget": [FixedCost(9.0), ItemFixedCost(1.0), Budget(90.0, [1.5, 0.0, 4.0])],
    "storage": [FixedCost(9.0), MinimumOrder([5.0, 0.0, 9.0]), Storage(150.0, [1.0, 3.0, 0.5])],
}


def recorded(n, length=40):
    rows = np.random.default_rng(3).poisson(10.0, (length, n)).astype(float)
    return {"demand": Record(rows, history=2), "num_items": n}


def inventory(features=(), **arguments):
    settings = {"batch_size": 500, "initial_state": "random", "seed": 0} | arguments
    return InventoryEnv(features=features, **settings)


def original(features=(), **arguments):
    return inventory(features, hybrid=False, **arguments)


def inventories(features, **arguments):
    return hybridize(original(features, **arguments)), inventory(features, **arguments)


def reference(features, **arguments):
    env = inventory(features, batch_size=4, **arguments)
    return Evaluation(env, num_steps=1, seed=0).reference()


# -- pieces --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (Pieces.cut([]), "(-inf, inf)"),
        (Pieces.cut([2.0, 1.0]), "(-inf, 1) [1, 2) [2, inf)"),
        (Pieces.cut([(1.0, "left"), 1.0]), "(-inf, 1) {1} (1, inf)"),
        (Pieces.cut([(0.0, "alone"), 50.0], low=0.0), "{0} (0, 50) [50, inf)"),
        (Pieces.cut([(0.0, "left")], low=0.0), "{0} (0, inf)"),
        (Pieces.cut([0.0], low=0.0), "[0, inf)"),
        (Pieces.cut([(5.0, "left"), (9.0, "left")], low=0.0, high=9.0), "[0, 5] (5, 9]"),
        (Pieces.cut([9.0], low=0.0, high=9.0), "[0, 9) {9}"),
        (Pieces.listed([(None, 0), 0, (0, 10), (10, None)]), "(-inf, 0) {0} (0, 10) [10, inf)"),
        (Pieces.listed([0.0, (20, None)]), "{0} [20, inf)"),
    ],
)
def test_a_range_is_cut_into_pieces_or_they_are_listed(pieces, expected):
    assert str(pieces) == expected


def test_pieces_that_are_none_are_refused():
    for make, words in [
        (lambda: Pieces.cut([-1.0], low=0.0), ">= 0, got -1"),
        (lambda: Pieces.cut([(1.0, "middle")]), "'middle'"),
        (lambda: Pieces.cut(["ten"]), "'ten'"),
        (lambda: Pieces.cut([5.0]).without([Gap(0.0, 5.0, 5.0)]), "gap must be an interval"),
        (lambda: Pieces.cut([1.0, 5.0]).without([Gap(1.0, 5.0, 2.0)]), "same_as=2"),
        (lambda: Pieces.listed([(0, 10), (5, 20)]), r"disjoint.*\[5, 20\) follows \[0, 10\)"),
        (lambda: Pieces.listed([(10, 5)]), "pairs.*in ascending order"),
        (lambda: Pieces.listed([]), "at least one"),
        (lambda: Pieces.listed([(1, 2, 3)]), "pairs"),
        (lambda: ActionPieces(Pieces.cut([(5.0, "alone")], low=0.0), 2), "alone only at 0, got 5"),
        (lambda: hybridize(original(), [1.0], intervals=[0]), "both"),
        (lambda: hybridize(Heater()), "needs breakpoints"),
        (lambda: hybridize(InventoryEnv()), "hybrid already"),
        (
            lambda: hybridize(hybridize(PlainHeater(), intervals=[0.0, (0.25, 1.0)]), [0.5]),
            "only action is a continuous one",
        ),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            make()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.01, 1e4), max_size=4, unique=True).map(sorted),
    st.sampled_from(["right", "left", "alone"]),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_every_action_has_one_option_and_is_executed_as_it_is(
    values, side, dtype, n, per_item, seed
):
    rounded = torch.tensor(values, dtype=dtype)
    if n > 1 and not per_item and side == "alone":  # refused, see below
        return
    if bool((rounded.diff() < 1e-3 * rounded[1:]).any()):  # a piece must hold a few numbers
        return
    cut = Pieces.cut([Breakpoint(at, side) for at in values], low=0.0)
    pieces = ActionPieces(cut, n, per_item=per_item, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    actions = 3e3 * torch.rand(200, n, generator=generator, dtype=dtype)
    alone = torch.zeros(len(values), n, dtype=dtype)
    alone[:, 0] = rounded
    actions = torch.cat([actions, alone, torch.zeros(1, n, dtype=dtype)])
    discrete, continuous = pieces.encoded({"continuous": actions}).values()
    assert discrete.shape == ((len(actions), n) if pieces.per_item else (len(actions),))
    assert torch.equal(pieces.project(discrete, continuous), actions)
    # An action of another discrete action is moved into its piece.
    other = torch.randint(pieces.num_discrete, discrete.shape, generator=generator)
    moved = pieces.project(other, actions)
    assert torch.equal(pieces.encoded({"continuous": moved})["discrete"], other)


def test_a_breakpoint_goes_to_its_side():
    for side, expected in (("left", [0, 0, 1]), ("right", [0, 1, 1]), ("alone", [0, 1, 2])):
        pieces = ActionPieces(Pieces.cut([Breakpoint(0.7, side)], low=0.0), 1)
        at = torch.tensor(0.7)
        below, above = (torch.nextafter(at, torch.tensor(end)) for end in (0.0, 1.0))
        beside = torch.stack([below, at, above]).unsqueeze(-1)
        assert pieces.encoded({"continuous": beside})["discrete"].tolist() == expected


def test_pieces_pass_gradients_inside_and_none_outside():
    pieces = ActionPieces(Pieces.cut([2.0], low=0.0), 1)
    u = torch.tensor([[1.0], [3.0]], requires_grad=True)
    pieces.project(torch.tensor([0, 0]), u).sum().backward()
    assert u.grad.flatten().tolist() == [1.0, 0.0]


# -- the certificate -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "n"), [(torch.float32, 1), (torch.float64, 1), (torch.float32, 3)]
)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_hybrid_form_of_a_feature_equals_the_original(name, dtype, n):
    if name == "several" and n > 1:  # of the total and of the fleet
        pytest.skip("the same kinds as truckloads and discounts of a total")
    env = inventory(VARIANTS[name], num_items=n, batch_size=2_000, dtype=dtype)
    actions = 40_000 if dtype == torch.float32 and n == 1 else 10_000
    certificate = certify(env, actions)
    assert certificate.exact, certificate
    assert certificate.num_actions == actions
    # More than the fleet holds does what a full fleet does, but for a total not to the last bit.
    assert (certificate.num_skipped > 0) == (name == "truckloads" and n > 1)
    assert all(certificate.discrete)


def test_every_feature_is_certified():
    assert set(VARIANTS) - {"several"} | {"packs"} == set(Feature.KINDS)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_features_are_certified_with_recorded_demand(name, n):
    if name == "several" and n > 1:
        pytest.skip("the same kinds as truckloads and discounts of a total")
    env = inventory(VARIANTS[name], **recorded(n), batch_size=1_000, dtype=torch.float64)
    assert certify(env, 3_000).exact


@pytest.mark.parametrize("name", BY_ITEM)
def test_features_with_values_by_item_are_certified(name):
    arguments = recorded(3) | {"lead_time": [0, 3, 1], "batch_size": 2_000}
    for dtype in (torch.float32, torch.float64):
        env = inventory(BY_ITEM[name], dtype=dtype, **arguments)
        certificate = certify(env, 10_000)
        assert certificate.exact, certificate
        assert all(certificate.discrete)
    assert env.num_heads == (None if name == "profit" else 3)


def test_pieces_of_items_that_are_mixed_up_are_caught():
    env = inventory(BY_ITEM["minimum_order"], num_items=3, batch_size=2_000)
    assert certify(env, 4_000).exact
    env.pieces.low, env.pieces.high = env.pieces.low.roll(1, 0), env.pieces.high.roll(1, 0)
    assert not certify(env, 4_000).exact


@pytest.mark.parametrize(("n", "size"), [(1, 12.0), (3, [12.0, 0.0, 2.5])])
def test_whole_packs_are_delivered_and_jump_by_a_pack_at_most(n, size):
    """Rewards and states are the original's; what jumps inside a piece is said in the feature."""
    features = [MinimumOrder(20.0), Packs(size), FixedCost(9.0)]
    env = inventory(features, num_items=n, batch_size=2_000, dtype=torch.float64)
    certificate = certify(env, 10_000)
    assert certificate.reward_error == certificate.state_error == 0.0
    jumps = [jump for jump in certificate.jumps if jump.what == "inventory"]
    assert jumps
    assert max(jump.size for jump in jumps) <= 12.0 * n + 1e-9
    asked = torch.rand(500, n, dtype=torch.float64, requires_grad=True).mul(80)
    given = env.ordering.delivered(asked, torch.zeros(500, n, 1))
    for row in torch.arange(n):
        z = size[row] if n > 1 else size
        for q, a in zip(asked[:, row].tolist(), given[:, row].tolist(), strict=True):
            packs = math.ceil(q / z - 1e-3) * z if z else q
            assert a == pytest.approx(packs if q >= 20 else 0.0)
    # The gradient is that of an order of any size.
    (slope,) = torch.autograd.grad(given.sum(), asked)
    assert torch.equal(slope, (asked >= 20).double())


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", ["fixed_cost", "all_units_discount", "minimum_order"])
def test_hybridizing_the_original_gives_the_environment(name, n):
    """Also for the joint fixed cost alone, where the environment has a shorter way."""
    one, other = inventories(VARIANTS[name], num_items=n, batch_size=64)
    assert str(one.pieces) == str(other.pieces)
    assert torch.equal(one.action_scale, other.action_scale)
    policy, runs = HybridPolicy.for_env(other, hidden=(8,)), []
    for env in (one, other):
        torch.manual_seed(1)
        run = differentiable_rollout(env, policy, 12)
        loss = run["next", "reward"].sum()
        gradients = torch.autograd.grad(loss, [*policy.parameters()], allow_unused=True)
        found = [run[key] for key in ("observation", ("next", "reward"), ("action", "continuous"))]
        runs.append((found, gradients))
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_rules_heuristic_and_description_pass_through_hybridize():
    env = heated(4)
    rollout = env.rollout(3, env.rules()["full"]())
    assert (rollout["action", "discrete"] == 1).all()
    assert (rollout["action", "continuous"] == 1).all()
    assert env.heuristic_choice(torch.tensor([[0.0], [2.0]])).tolist() == [1, 0]
    assert env.describe(None, {}, env.reference(None)) == {"what": "heater"}
    both = inventories([FixedCost(64.0)])
    seen = both[0].reset()["observation"]
    choices = [env.heuristic_choice(seen) for env in both]
    assert torch.equal(*choices)
    assert set(choices[0].tolist()) == {0, 1}


class Jumping(Feature):
    """A user's own feature that conceals where it jumps."""

    def order_cost(self, quantity, supplier):
        return 5.0 * (quantity.sum(-1) > 30).to(quantity.dtype)


def test_a_feature_of_ones_own_must_say_where_it_jumps():
    with pytest.raises(ValueError, match=r"still jumps inside a piece.*reward changes by 5"):
        inventory([FixedCost(64.0), Jumping()])
    Jumping.breakpoints = lambda self: [Breakpoint(30.0, "left")]
    env = inventory([FixedCost(64.0), Jumping()])
    assert str(env.pieces) == "action: {0} (0, 30] (30, inf)"
    assert certify(env, 2_000).exact


@pytest.mark.parametrize("fault", ["shifted", "scaled", "wrong side"])
def test_a_wrong_interval_map_is_caught(fault):
    env = inventory([FixedCost(64.0), AllUnitsDiscount([50.0], [1.0, 0.9])])
    assert certify(env, 5_000).exact
    pieces = env.pieces
    if fault == "shifted":
        pieces.low = pieces.low + torch.tensor([0.0, 0.0, 1.0])
        pieces.high = pieces.high + torch.tensor([0.0, 1.0, 0.0])
    elif fault == "scaled":
        right = pieces.project
        pieces.project = lambda piece, u: right(piece, u * (1 + 1e-6))
    else:
        pieces.low, pieces.high = pieces.low.clone(), pieces.high.clone()
        pieces.high[1], pieces.low[2] = 50.0, 50.00001
    assert not certify(env, 20_000).exact


@pytest.mark.parametrize(
    ("features", "breakpoints", "where"),
    [
        ([FixedCost(64.0)], [], "reward changes by 64"),
        ([MinimumOrder(20.0)], [(0.0, "alone")], "inventory changes by 20"),
    ],
)
def test_a_jump_inside_a_piece_is_found(features, breakpoints, where):
    with pytest.raises(ValueError, match=f"still jumps inside.*{where}.*Add that value"):
        hybridize(original(features), breakpoints)
    env = hybridize(original(features), breakpoints, check=False)
    assert find_jumps(env)
    assert not certify(env, 1_000).exact


def test_kinks_are_no_jumps_and_the_search_leaves_the_generator_alone():
    plain = original([IncrementalDiscount([50.0], [1.0, 0.0]), LostSales()])
    env = hybridize(plain, [(0.0, "alone")], check=False)
    before = env.rng.get_state()
    assert find_jumps(env, num_lines=2_000) == []
    assert torch.equal(before, env.rng.get_state())


# -- the environment -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", ["suppliers", "lead_times", "minimum_order"])
def test_specs_routes_and_algorithms(name, n):
    env = inventory(VARIANTS[name], num_items=n, batch_size=8)
    check_env_specs(env)
    policy = HybridPolicy.for_env(env, hidden=(8,))
    noise, start = env.sample_noise(6), env.reset()
    runs, given = [], {"tensordict": start, "noise": noise}
    for route in ("functional", "general"):
        torch.manual_seed(0)
        runs.append(differentiable_rollout(env, policy, 6, route=route, **given))
    for key in (("next", "reward"), ("action", "discrete"), "action_log_prob"):
        assert torch.equal(runs[0][key], runs[1][key])
    # What the policy does lies in the piece of its discrete action.
    piece, u = runs[0]["action", "discrete"] % env.pieces.num_discrete, runs[0]["action"]
    torch.testing.assert_close(env.pieces.project(piece, u["continuous"]), u["continuous"])
    critic = make_value_network(env, hidden=(8,))
    assert HPO(env, policy, critic, unroll_length=5).iterate()["action_change"] > 0
    noisy = HybridPolicy.for_env(env, hidden=(8,), scale=0.1, learn_scale=True)
    PPO(env, noisy, critic, unroll_length=5).iterate()
    refused = pytest.raises(ValueError, match="single discrete choice")
    for algorithm in (GumbelSoftmax, Pathwise, DDPG):
        with nullcontext() if env.num_heads is None else refused:
            algorithm(env, policy, critic, unroll_length=5).iterate()


@pytest.mark.parametrize("feature", [Suppliers([1, 3], [1.0, 1.0]), LeadTimes([6.0], [1, 3])])
def test_an_order_arrives_after_its_own_lead_time(feature):
    env = original([feature], batch_size=2, initial_state="empty")
    state = {"inventory": torch.zeros(2, 1, 3), "step": torch.zeros(2, 1, dtype=torch.int64)}
    supplier = torch.tensor([0, 1] if isinstance(feature, Suppliers) else [0, 0])
    order = {"discrete": supplier, "continuous": torch.tensor([[5.0], [7.0]])}
    nothing = {"discrete": torch.tensor([0, 0]), "continuous": torch.zeros(2, 1)}
    levels = []
    for action in (order, nothing, nothing):
        state, _ = env.dynamics(state, action, torch.zeros(2, 1))
        levels.append(state["inventory"][:, 0, 0].tolist())
    assert levels == [[5.0, 0.0], [5.0, 0.0], [5.0, 7.0]]


@pytest.mark.parametrize("name", ["fixed_cost", "item_fixed_cost", "truckloads"])
def test_spaces_are_kept_as_plain_values(name):
    """By them a policy is built without its environment."""
    env = inventory(VARIANTS[name], num_items=2, batch_size=3)
    plain = json.loads(json.dumps(Spaces.of(env)))
    assert plain == Spaces.of(env)
    spaces = Spaces(**plain)
    for one, other in zip(spaces.branch_bounds or (), env.branch_bounds or (), strict=True):
        assert torch.as_tensor(one).tolist() == torch.as_tensor(other).tolist()
    same = ("num_discrete", "num_heads", "continuous_dim", "observation_dim", "has_action_mask")
    assert [getattr(spaces, key) for key in same] == [getattr(env, key) for key in same]
    torch.testing.assert_close(spaces.action_scale, env.action_scale)
    one, other = (HybridPolicy.for_env(e, hidden=[4], scale=0.1) for e in (spaces, env))
    one.load_state_dict(other.state_dict())
    seen = env.reset()
    assert torch.equal(one.distribution(seen["observation"]).loc, other(seen)["loc"])
    with pytest.raises(NotImplementedError, match="trained on a InventoryEnv that was built in"):
        spaces.reset()


def test_pieces_move_to_a_device():
    env = inventory(VARIANTS["all_units_discount"], batch_size=3)
    moved = env.pieces.to(torch.device("meta"))
    assert moved is env.pieces
    assert all(end.is_meta for end in (moved.low, moved.high, *moved.bounds[:2]))


def test_features_that_are_none_are_refused():
    for features, words in [
        ([FixedCost(1.0), FixedCost(2.0)], "FixedCost twice"),
        ([{"name": "fixed_costs", "cost": 1.0}], "fixed_cost"),
        ([{"name": "fixed_cost"}], "fixed_cost"),
        ([{"name": "step_cost", "breaks": [5.0, 3.0], "costs": [1.0, 2.0, 3.0]}], "ascending"),
        ([{"name": "step_cost", "breaks": [5.0], "costs": [1.0]}], "one more of costs"),
        ([{"name": "minimum_order", "minimum": -1.0}], "MinimumOrder.minimum"),
    ]:
        with pytest.raises(ValueError, match=words):
            original(features)
    for features, words in [
        ([MinimumOrder([5.0, 6.0])], "MinimumOrder.minimum.*expected num_items=3 entries, got 2"),
        ([AllUnitsDiscount([[5.0]], [1.0, 2.0])], "AllUnitsDiscount.breaks.*num_items=3"),
        ([Profit()], "Profit.price must be given"),
        ([Packs(5.0), Budget(9.0)], "Budget cuts all items alike, which breaks whole packs"),
        ([StepCost([5.0], [1.0, 2.0]), Storage(9.0)], "StepCost jumps at quantities that Storage"),
    ]:
        with pytest.raises(ValueError, match=words):
            original(features, num_items=3)
    with pytest.raises(ValueError, match="got 2 prices for 2 breaks"):
        AllUnitsDiscount([[5.0], [5.0, 6.0]], [1.0, 2.0])
    with pytest.raises(ValueError, match="are of the total quantity"):
        LeadTimes([[5.0]] * 3, [1, 2])
    with pytest.raises(ValueError, match=r"LeadTimes decides the lead time.*differs by item"):
        original([LeadTimes([5.0], [1, 2])], num_items=2, lead_time=[1, 2])
    # Breakpoints of the total and of each item do not mix.
    features = [MinimumOrder(5.0), AllUnitsDiscount([50.0], [1.0, 0.9])]
    assert inventory(features).num_discrete == 3
    with pytest.raises(ValueError, match="total quantity and another"):
        inventory(features, num_items=2)


@pytest.mark.parametrize(
    ("features", "arguments", "cost"),
    [
        ([FixedCost(64.0)], {}, 37.06435),
        ([FixedCost(64.0), LostSales()], {"lead_time": 0}, 35.02156),
        ([MinimumOrder(60.0)], {}, 29.35273),
        # Income of 50 a period, and a lost sale costs 5 more.
        ([FixedCost(64.0), Profit(5.0)], {}, 37.06435 - 50.0),
        ([FixedCost(128.0), ItemFixedCost(0.0)], {"num_items": 2, "lead_time": 0}, 72.718670 / 2),
        # Value iteration over positions, with orders of whole packs alone.
        ([FixedCost(64.0), Packs(12.0)], {}, 37.204189),
        ([FixedCost(64.0), Storage(90.0)], {}, None),
        ([FixedCost(64.0)], {"num_items": 2, "lead_time": [1, 2]}, None),
        ([AllUnitsDiscount([50.5], [1.0, 0.9])], {}, None),  # no integer
        ([Suppliers([1, 2], [1.0, 1.0])], {}, None),
    ],
)
def test_the_optimum_of_a_variant(features, arguments, cost):
    found = reference(features, **arguments).optimal_cost
    assert found == (cost if cost is None else pytest.approx(cost, abs=1e-4))


def test_a_gap_of_profits_is_above_zero_where_less_is_earned():
    profit = reference([FixedCost(64.0), Profit(5.0)])
    test = Evaluation(inventory(), num_steps=2, skip=1, seed=0)
    assert profit.gaps(profit.optimal_cost + 1.0, test)["gap"] == pytest.approx(1 / 12.93565, 1e-4)


# -- other environments --------------------------------------------------------------------------


class Heater(DifferentiableEnv):
    """A user's own dynamics: heating below a quarter of the power does not start at all."""

    def __init__(self, **arguments):
        super().__init__(
            num_discrete=1,
            continuous_dim=1,
            continuous_bounds=(0.0, 1.0),
            state_shapes={"x": (1,)},
            observation_dim=1,
            noise_shape=(1,),
            **arguments,
        )

    def dynamics(self, state, action, noise):
        u = action["continuous"]
        power = torch.where(u >= 0.25, u, torch.zeros_like(u))
        x = 0.9 * state["x"] + power + noise
        return {"x": x}, -(x - 1).square().sum(-1) - 0.1 * (power > 0).float().sum(-1)

    def observe(self, state):
        return state["x"]

    def initial_state(self):
        return {"x": torch.rand(*self.batch_size, 1, generator=self.rng)}

    def draw_noise(self, num_steps, state):
        shape = (*self.batch_size, num_steps, 1)
        return 0.1 * torch.randn(shape, generator=self.rng)

    def rules(self):
        return {"full": lambda: FullPower()}

    def heuristic_action(self, observation):
        return {"continuous": (observation < 1).float()}

    def describe(self, policy, tests, reference, folder=None):
        return {"what": "heater"}


class FullPower(RulePolicy):
    """A rule of the original: its only discrete action, with full power."""

    in_keys = ["x"]  # noqa: RUF012

    def decide(self, x):
        return torch.zeros(x.shape[:-1], dtype=torch.int64), torch.ones_like(x)


def heated(batch_size):
    env = Heater(batch_size=batch_size, seed=0)
    return hybridize(env, [(0.0, "alone"), 0.25], gaps=[Gap(0.0, 0.25, 0.0)])


def test_a_bounded_action_of_the_users_own():
    env = heated(200)
    assert str(env.pieces) == "action: {0} [0.25, 1]"
    assert certify(env, 5_000).exact
    policy = HybridPolicy.for_env(env, hidden=(8,))
    u = differentiable_rollout(env, policy, 5)["action"]
    assert (u["continuous"][u["discrete"] == 0] == 0).all()
    assert (u["continuous"][u["discrete"] == 1] >= 0.25).all()
    assert (u["continuous"][u["discrete"] == 1] <= 1).all()


class PlainHeater(EnvBase):
    """The same as a TorchRL environment with an action of its own."""

    def __init__(self, number=1):
        super().__init__(batch_size=[5])
        self.observation_spec = Composite(observation=Unbounded((5, 1)), shape=[5])
        self.action_spec = Bounded(0.0, 1.0, shape=(5, number))
        self.reward_spec = Unbounded((5, 1))

    def _reset(self, tensordict=None, **kwargs):
        return TensorDict({"observation": torch.rand(5, 1)}, 5)

    def _step(self, tensordict):
        state, action = {"x": tensordict["observation"]}, {"continuous": tensordict["action"]}
        state, reward = Heater.dynamics(None, state, action, 0.0)
        done = torch.zeros(5, 1, dtype=torch.bool)
        entries = {"observation": state["x"], "reward": reward.unsqueeze(-1), "done": done}
        return TensorDict(entries, 5)

    def _set_seed(self, seed):
        pass


def test_a_torchrl_environment_is_hybridized_by_a_transform():
    env = hybridize(PlainHeater(), intervals=[0.0, (0.25, 1.0)])
    check_env_specs(env)
    policy = HybridPolicy.for_env(env, hidden=(8,))
    rollout = differentiable_rollout(env, policy, 6)
    discrete, u = rollout["action", "discrete"], rollout["action", "continuous"]
    power = torch.where(discrete.unsqueeze(-1) == 0, 0.0, u)
    expected = 0.9 * rollout["observation"] + power
    torch.testing.assert_close(rollout["next", "observation"], expected)
    rollout["next", "reward"].mean().backward()
    assert policy.network.continuous[-1].bias.grad.abs().sum() > 0
    critic = make_value_network(env, hidden=(8,))
    assert HPO(env, policy, critic, unroll_length=5).iterate()["action_change"] > 0
    two = hybridize(PlainHeater(2), intervals=[0.0, (0.25, 1.0)], per_item=True)
    spec = two.full_action_spec["action"]
    assert (spec.shape, spec["discrete"].shape, spec["continuous"].shape) == ((5,), (5, 2), (5, 2))
    kept = Spaces.of(Drift())  # that has no bounds
    assert (kept["original"], kept["branch_bounds"], kept["num_heads"]) == ("Drift", None, None)


def test_the_example_of_a_problem_of_ones_own(tmp_path, monkeypatch, capsys):
    example = Path(__file__).parents[1] / "examples" / "your_own_problem.py"
    main = runpy.run_path(str(example))["main"]
    # A shorter test of the policies.
    test = lambda env, **given: Evaluation(env, **given | {"num_steps": 80, "skip": 20})  # noqa: E731
    monkeypatch.setitem(main.__globals__, "Evaluation", test)
    costs = main(updates=20, folder=str(tmp_path / "run"), batches=2)
    assert costs["last"] < costs["first"]
    assert costs["plain"] < costs["first"]
    assert "certified True" in capsys.readouterr().out
    pictures = {p.name for p in (tmp_path / "run" / "fast").glob("*.png")}
    assert pictures == {"learning_curve.png", "gradients.png"}
