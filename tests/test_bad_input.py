"""Nonsense is refused where it enters, by name; what only looks like it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import (
    CatFrames,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    TimeMaxPool,
    TransformedEnv,
    VecNormV2,
)
from torchrl.objectives import SoftUpdate, ValueEstimators
from torchrl.objectives.value import GAE

from hpo_torchrl.algorithms import PPO
from hpo_torchrl.collectors import DifferentiableCollector, differentiable_rollout
from hpo_torchrl.core.checks import checked
from hpo_torchrl.envs import DifferentiableEnv, ReplicatedEnv, hybridize
from hpo_torchrl.modules import (
    ActionRange,
    HybridNetwork,
    HybridPolicy,
    make_q_network,
    make_value_network,
    replicate,
)
from hpo_torchrl.objectives import HPOLoss, LearnedCriticLoss
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.inventory import Normal, Poisson, Record
from hpo_torchrl.problems.inventory.lead_times import Suppliers
from hpo_torchrl.problems.inventory.order_costs import AllUnitsDiscount, ItemFixedCost
from hpo_torchrl.problems.inventory.sales import Profit

NAN, INF = math.nan, math.inf
STEPS = 6


def inventory(**arguments):
    return InventoryEnv(**{"batch_size": 4, "initial_state": "random", "seed": 0} | arguments)


def lqr(**arguments):
    return SwitchedLQREnv.from_recipe(2, 2, **{"batch_size": 4, "horizon": 9} | arguments)


def refused(call, *words, error=(ValueError, TypeError)):
    """What a call raises, which must hold some words."""
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value), (word, str(caught.value))


# -- steps ---------------------------------------------------------------------------------------

ENVS = {
    "inventory": inventory,
    "the original form": lambda: inventory(hybrid=False),
    "pieces": lambda: inventory(features=[AllUnitsDiscount([20.0], [1.0, 0.9])]),
    "heads": lambda: inventory(num_items=3, features=[ItemFixedCost(4.0)]),
    "lqr": lqr,
    "hybridized": lambda: hybridize(inventory(hybrid=False)),
    "seeds": lambda: ReplicatedEnv(inventory(), 2),
    "transformed": lambda: TransformedEnv(inventory()),
}


@pytest.mark.parametrize("name", ENVS)
def test_an_action_that_no_environment_offers_is_named(name):
    env = ENVS[name]()
    count = env.full_action_spec["action", "discrete"].space.n
    start = env.rand_action(env.reset())
    env.step(start.copy())  # the spec's own actions are actions

    def step(key, value, only=False):
        tried, action = start.copy(), start["action"].copy()
        entry = action[key].to(torch.as_tensor(value).dtype)
        # One instance alone is enough.
        place = torch.zeros(entry.shape, dtype=torch.bool)
        place.view(-1)[-1] = True
        action[key] = torch.where(place, value, entry) if only else torch.full_like(entry, value)
        env.step(tried.set("action", action))

    for only in (True, False):
        for value in (-1, count, 2**40):
            refused(lambda v=value, o=only: step("discrete", v, o), "discrete", str(value))
        for value in (NAN, INF, -INF):
            refused(lambda v=value, o=only: step("continuous", v, o), "continuous", str(value))
    refused(lambda: step("discrete", 0.5), "discrete", "int64", "float32")
    refused(lambda: step("discrete", True), "discrete", "int64", "bool")
    refused(lambda: step("continuous", 1), "continuous", "float32", "int64")
    refused(lambda: env.step(env.reset()), "action", "none")


def test_only_the_public_step_looks_at_actions(monkeypatch):
    env = inventory()
    policy = HybridPolicy.for_env(env, hidden=4)

    def look(action):
        raise AssertionError

    monkeypatch.setattr(env, "check_action", look)
    differentiable_rollout(env, policy, 3)
    with pytest.raises(AssertionError):
        env.rollout(1)


# -- numbers -------------------------------------------------------------------------------------

HELD = {  # refused in float32, and taken in float64
    "holding_cost": lambda x, **o: inventory(holding_cost=x, **o),
    "fixed_cost_per_item": lambda x, **o: inventory(fixed_cost_per_item=x, **o),
    "demand.mean": lambda x, **o: inventory(demand=Normal(x), **o),
    "AllUnitsDiscount.prices": lambda x, **o: inventory(
        features=[AllUnitsDiscount([5.0], [x, 1.0])], **o
    ),
    "Suppliers.fixed_costs": lambda x, **o: inventory(features=[Suppliers([1], [1.0], [x])], **o),
    "Profit.price": lambda x, **o: inventory(features=[Profit(x)], **o),
    "state_limit": lambda x, **o: lqr(state_limit=x, **o),
    "process_noise": lambda x, **o: lqr(process_noise=x, **o),
    "A": lambda x, **o: SwitchedLQREnv([[[x]]], [[[1.0]]], [[1.0]], [[1.0]], horizon=1, **o),
    "Q": lambda x, **o: SwitchedLQREnv([[[1.0]]], [[[1.0]]], [[x]], [[1.0]], **o),
}


@pytest.mark.parametrize("name", HELD)
def test_a_number_that_the_type_does_not_hold_is_named(name):
    for value in (1e39, 1e20):  # infinite, and infinite when it is squared
        refused(lambda v=value: HELD[name](v), name, "float32", str(value))
    HELD[name](1e20, dtype=torch.float64)
    refused(lambda: HELD[name](1e300, dtype=torch.float64), name, "float64", "1e+300")


def test_a_mean_that_vanishes_is_named():
    for value in (1e-60, [10.0, 1e-60]):
        items = len(value) if isinstance(value, list) else 1
        refused(
            lambda v=value, n=items: inventory(num_items=n, demand=Poisson(v)),
            *("demand.mean", "1e-60", "float32"),
        )
    assert inventory(holding_cost=1e-60).holding_cost.item() == 0.0  # a cost may be none


# -- discounts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    env = inventory()
    torch.manual_seed(0)
    return env, HybridPolicy.for_env(env, hidden=4), make_value_network(env, hidden=4)


@pytest.mark.parametrize("with_critic", [True, False])
def test_a_discount_that_is_none_is_named(parts, with_critic):
    _, policy, critic = parts
    loss = HPOLoss(policy, critic if with_critic else None)
    for value in (2.0, -0.1, NAN, INF, True, "0.9", None, [0.9]):
        for name in ("gamma", "lmbda") if with_critic else ("gamma",):
            refused(lambda n=name, v=value: loss.make_value_estimator(**{n: v}), name, str(value))
    loss.make_value_estimator(gamma=torch.tensor(0.5))
    assert loss.discount == 0.5
    if with_critic:
        for kind in (ValueEstimators.TD0, GAE(gamma=2.0, lmbda=0.9, value_network=critic)):
            given = {"gamma": 2.0} if kind is ValueEstimators.TD0 else {}
            refused(lambda k=kind, g=given: loss.make_value_estimator(k, **g), "gamma", "2.0")


@pytest.mark.parametrize("with_critic", [True, False])
def test_a_loss_has_the_discount_of_its_rollouts(parts, with_critic):
    env, policy, critic = parts
    loss = HPOLoss(policy, critic if with_critic else None)
    batch = differentiable_rollout(env, policy, STEPS, discount=0.95)
    loss(batch)  # none was chosen
    assert loss.discount == pytest.approx(0.95)
    rescaled = batch.copy().set(("next", "reward"), (batch["next", "reward"] - 1.0) / 20.0)
    loss.make_value_estimator(gamma=0.9)
    for found in (batch, rescaled, batch.reshape(2, 2, STEPS)):
        refused(lambda b=found: loss(b), "gamma=0.9", "discount=0.95")
    HPOLoss(policy, None, pathwise=False, cross_term=False).make_value_estimator(gamma=0.9)(batch)


def test_a_batch_serves_once_and_its_data_longer(parts):
    env, policy, _ = parts
    loss = HPOLoss(policy)
    batch = differentiable_rollout(env, policy, STEPS)

    def descend(which, **options):
        terms = which(batch)
        sum(v for key, v in terms.items() if key.startswith("loss_")).backward(**options)

    descend(loss, retain_graph=True)
    descend(loss)
    refused(lambda: descend(loss), "once", "pathwise=False", "cross_term=False", error=RuntimeError)
    descend(HPOLoss(policy, pathwise=False, cross_term=False))


# -- batches -------------------------------------------------------------------------------------


def spoilt(key, value):
    """One number of an entry is another."""

    def spoil(batch):
        entry = batch[key].detach().contiguous()
        entry.view(-1)[5] = value
        return batch.copy().set(key, entry if key != ("next", "reward") else entry + batch[key] * 0)

    return spoil


def changed(key, change):
    return lambda batch: batch.copy().set(key, change(batch[key]))


SHAPES: Sequence[tuple[Callable, Sequence[str]]] = [
    *((spoilt("observation", v), ("observation", str(v))) for v in (NAN, INF)),
    *((spoilt(("next", "observation"), v), ("observation", str(v))) for v in (NAN, -INF)),
    *((spoilt(("next", "reward"), v), ("reward", str(v))) for v in (NAN, INF)),
    *(
        (changed(("next", key), change), (key, shape))
        for key in ("reward", "done", "terminated")
        for change, shape in (
            (lambda e: e.squeeze(-1), "(4, 6)"),
            (lambda e: torch.cat([e, e], -1), "(4, 6, 2)"),
        )
    ),
    (changed(("next", "done"), torch.Tensor.float), ("done", "float32", "bool")),
    (changed(("action", "discrete"), lambda e: e + 7), ("discrete", "0, ..., 1", "8")),
    (changed(("action", "discrete"), lambda e: e - 9), ("discrete", "[-")),
    (changed(("action", "discrete"), torch.Tensor.float), ("discrete", "float32")),
    (changed(("action", "discrete"), lambda e: e.unsqueeze(-1)), ("discrete", "(4, 6, 1)")),
    (changed("observation", lambda e: e[..., :1]), ("observation", "(4, 6, 1)")),
    (lambda b: b.transpose(0, 1).contiguous(), ("(6, 4)", "time axis last")),
    (lambda b: torch.stack(list(b.unbind(1))), ("(6, 4)", "time axis last")),
    (lambda b: torch.stack([s.copy() for s in b.unbind(1)]).to_tensordict(), ("(6, 4)", "time")),
    (lambda b: b[0, 0], ("()", "time axis last")),
]


def test_a_batch_that_a_loss_cannot_use_is_named(parts):
    env, policy, critic = parts
    batch = differentiable_rollout(env, policy, STEPS)
    loss = HPOLoss(policy, critic)
    for change, words in SHAPES:
        refused(lambda c=change: loss(c(batch)), *words)
    assert loss(batch)["loss_pathwise"].isfinite()
    by_hand = torch.stack([step.copy() for step in batch.unbind(1)], 1)  # without names
    assert torch.equal(loss(by_hand)["loss_pathwise"], loss(batch)["loss_pathwise"])
    loss(batch[0])  # a single instance is (T,)


def test_a_batch_without_an_entry_is_named(parts):
    env, policy, critic = parts
    batch = differentiable_rollout(env, policy, STEPS)
    learned = LearnedCriticLoss(policy, make_q_network(env))
    SoftUpdate(learned, eps=0.99)
    for loss in (HPOLoss(policy, critic), learned):
        for key in (("next", "reward"), ("next", "terminated"), ("action", "discrete")):
            refused(lambda k=key, f=loss: f(batch.exclude(k)), str(key), error=KeyError)


def test_the_start_of_a_rollout_is_checked(parts):
    env, policy, _ = parts
    start = env.reset()
    for route in ("functional", "general"):
        for wrong, words in (
            (start[:2], ("(2,)", "(4,)")),
            ({}, ("tensordict", "{}")),
            (start.exclude("inventory"), ("inventory",)),
        ):
            refused(
                lambda s=wrong, r=route: differentiable_rollout(
                    env, policy, 3, tensordict=s, route=r
                ),
                *words,
                error=(ValueError, TypeError, KeyError),
            )
    noise = torch.full((4, 3, 1), NAN)
    refused(lambda: env.load_noise(noise), "noise", "nan")
    spoilt_state = start.set("inventory", start["inventory"] * NAN)
    refused(lambda: env.reset(spoilt_state, set_state=True), "inventory", "nan")


# -- TorchRL's wrappers ----------------------------------------------------------------------------


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("wrap", [lambda env: env, TransformedEnv])
def test_environments_in_a_row_have_a_policy_and_train(started, wrap):
    env = wrap(SerialEnv(2, lambda: inventory(seed=None)))
    if started:
        env.reset()
    before = torch.random.get_rng_state()
    policy = HybridPolicy.for_env(env, hidden=4, scale=0.1)
    plain = HybridPolicy.for_env(inventory(), hidden=4, scale=0.1).network
    assert str(policy.network) == str(plain)  # the range and the unit too
    assert torch.equal(policy.network.distribution.range.unit, plain.distribution.range.unit)
    critic = make_value_network(env, hidden=4)
    assert make_q_network(env).module.unit.tolist() == [40.0]
    torch.random.set_rng_state(before)
    assert math.isfinite(PPO(env, policy, critic, unroll_length=4, epochs=1).iterate()["cost"])
    refused(
        lambda: DifferentiableCollector(env, policy, frames_per_batch=16), "SerialEnv", "batch_size"
    )


@pytest.mark.filterwarnings("ignore:Support of VecNormV2:UserWarning")
def test_no_gradient_crosses_processes():
    several = ParallelEnv(2, inventory)
    policy = HybridPolicy.for_env(several, hidden=4)
    for env in (several, TransformedEnv(several)):
        refused(
            lambda e=env: DifferentiableCollector(e, policy, frames_per_batch=16),
            *("ParallelEnv", "processes"),
        )
    assert several.is_closed  # no process was started
    zero = inventory().reset().select("observation").apply(torch.zeros_like)
    count = TensorDict({"observation": torch.zeros((), dtype=torch.int64)})
    shared = TensorDict({"loc": zero, "var": zero.clone(), "count": count}).share_memory_()
    env = TransformedEnv(inventory(), VecNormV2(in_keys=["observation"], shared_data=shared))
    policy = HybridPolicy.for_env(env, hidden=4)
    refused(lambda: differentiable_rollout(env, policy, 3), "shares", "frozen_copy")
    with torch.no_grad():
        differentiable_rollout(env, policy, 3)
    assert all(value.is_shared() for value in shared.values(True, True))
    assert shared["loc", "observation"].any()  # it was written to, not to a copy
    env = TransformedEnv(inventory(), env.transform.frozen_copy())
    assert differentiable_rollout(env, policy, 3)["next", "reward"].requires_grad


class Line(DifferentiableEnv):
    """A point on a line; with ``pair`` its last place is a part of the state, and is seen."""

    def __init__(self, pair):
        self.pair = pair
        super().__init__(
            num_discrete=2,
            continuous_dim=1,
            state_shapes={"x": (1,), "last": (1,)} if pair else {"x": (1,)},
            observation_dim=2 if pair else 1,
            noise_shape=(1,),
            batch_size=5,
            dtype=torch.float64,
            seed=0,
        )

    def dynamics(self, state, action, noise):
        after = (1.3 * state["x"] + 0.5 * action["continuous"] + noise).tanh()
        return {"x": after, "last": state["x"]} if self.pair else {"x": after}, -(
            after[..., 0] ** 2
        )

    def observe(self, state):
        return torch.cat([state["last"], state["x"]], -1) if self.pair else state["x"]

    def initial_state(self):
        x = torch.randn(5, 1, generator=self.rng, dtype=self.float_dtype)
        return {"x": x, "last": x} if self.pair else {"x": x}

    def draw_noise(self, num_steps, state):
        return torch.randn(5, num_steps, 1, generator=self.rng, dtype=self.float_dtype)


def test_what_a_transform_remembers_is_carried_over_like_a_state():
    frames = TransformedEnv(Line(False), CatFrames(2, dim=-1, in_keys=["observation"]))
    pair = TransformedEnv(Line(True), RewardSum())
    torch.manual_seed(0)
    policy = HybridPolicy.for_env(pair, hidden=4)
    gradients = []
    for env in (frames, pair):
        collector = DifferentiableCollector(env, policy, frames_per_batch=20, discount=0.8)
        torch.manual_seed(1)
        for _ in range(3):
            policy.zero_grad()
            collector.collect()["next", "reward"].sum().backward()
        gradients.append([p.grad.clone() for p in policy.parameters() if p.grad is not None])
    for found, expected in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, atol=1e-12)
    env = TransformedEnv(inventory(), TimeMaxPool(in_keys=["observation"], T=3))
    policy = HybridPolicy.for_env(env, hidden=4)
    collector = DifferentiableCollector(env, policy, frames_per_batch=16)
    for _ in range(2):
        collector.collect()["next", "reward"].sum().backward()


# -- arguments -----------------------------------------------------------------------------------


@checked
def annotated(
    count: int,
    flag: bool = False,
    rows: Sequence[int] | int = (),
    name: str | None = None,
    call: Callable | None = None,
    **others: int,
) -> None:
    """A function that says what it takes."""


def test_annotations_are_kept():
    annotated(3, True, [1], name="a", call=print, more="x")
    annotated(NAN, rows=4)  # numbers have checks of their own
    for arguments, words in (
        ({"count": "3"}, ("count must be int", "'3' of type str")),
        ({"flag": 1}, ("flag must be true or false", "1")),
        ({"rows": "12"}, ("rows must be", "Sequence[int] | int", "'12'")),
        ({"rows": None}, ("rows", "None of type NoneType")),
        ({"name": 3}, ("name must be str | None", "3")),
        ({"call": 3}, ("call", "3 of type int")),
        ({"rows": np.ones(3)}, ("rows", "shape (3,)")),
    ):
        refused(lambda a=arguments: annotated(**{"count": 1} | a), *words, error=TypeError)
    refused(lambda: annotated("3"), "count", error=TypeError)
    refused(lambda: annotated(), "missing", error=TypeError)


def bare(**arguments):
    sizes = {"num_discrete": 2, "continuous_dim": 1, "observation_dim": 1, "state_shapes": {}}
    made = type("Bare", (Line,), {"__init__": DifferentiableEnv.__init__})
    return made(**sizes | arguments)


def network(**arguments):
    return HybridNetwork(
        **{"observation_dim": 3, "num_discrete": 2, "continuous_dim": 2} | arguments
    )


ARGUMENTS = [
    *((bare, {"observation_dim": v}) for v in ("3", None, True, 1.5, 0, [2])),
    *((bare, {"continuous_bounds": v}) for v in (3, (0.0,), (1.0, 0.0), (NAN, 1.0), ("0", 1.0))),
    *((bare, {"action_scale": v}) for v in ("1", None, INF, 1e300, [1.0, 2.0])),
    *((bare, {"state_shapes": v}) for v in (None, ["x"], {"x": (1.5,)}, {"step": (1,)})),
    *((bare, {"device": v}) for v in ("nowhere", 1.5)),
    *((bare, {"horizon_terminates": v}) for v in ("yes", 1)),
    (bare, {"noise_shape": (-1,)}),
    (bare, {"branch_bounds": (0.0, 1.0)}),
    (bare, {"seed": 2**70}),
    *((network, {name: "3"}) for name in ("observation_dim", "num_discrete", "continuous_dim")),
    *((network, {"num_heads": v}) for v in ("3", 0, 3, True)),
    *((network, {"action_scale": v}) for v in ("1", 0.0, torch.tensor([1.0, -1.0]))),
    *((network, {"continuous_bounds": v}) for v in (None, (1.0, 0.0), (NAN, 1.0))),
    (network, {"dtype": "float32"}),
    *((lambda unit: ActionRange((None, None), unit), {"unit": v}) for v in (None, torch.zeros(1))),
    *((inventory, {"features": v}) for v in (1.5, {}, [None], "x")),
    *((lambda record: Record(record), {"record": v}) for v in (None, [[1.0, "a"]], 1j)),
    *((lambda items: Record(torch.ones(9, 1), items=items), {"items": v}) for v in (3, ["a", "b"])),
    *((HybridPolicy, {"network": v}) for v in (None, 3)),
    *((replicate, {"modules": v}) for v in ([], None, [3])),
    *((make_value_network, {"env": v}) for v in (None, 3)),
    *((hybridize, {"env": v}) for v in (None, "x")),
    *((lambda envs: ReplicatedEnv(envs), {"envs": v}) for v in ([], None, [1.0])),
    *((lambda actor_network: HPOLoss(actor_network), {"actor_network": v}) for v in (None, 3)),
]


def test_an_argument_is_named_by_its_constructor():
    for make, arguments in ARGUMENTS:
        refused(lambda m=make, a=arguments: m(**a), *arguments)


@pytest.mark.parametrize("name", ["functional", "entropy_in_advantage_units"])
def test_flags_of_a_loss_are_flags(parts, name):
    for value in ("yes", None, 1):
        refused(lambda v=value: HPOLoss(parts[1], **{name: v}), name, str(value), error=TypeError)
