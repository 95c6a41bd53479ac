"""Actions, states, discounts and numbers that make no sense."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torchrl.envs import TransformedEnv
from torchrl.objectives import ValueEstimators
from torchrl.objectives.value import GAE

from benchmarks.faults.inputs.made import (
    INF,
    NAN,
    Bad,
    bare,
    batch,
    collector,
    inventory,
    loss,
    lqr,
    parts,
)
from hpo_torchrl.collectors import (
    DifferentiableCollector,
    Rollout,
    branched_returns,
)
from hpo_torchrl.diagnostics import GradientSampler
from hpo_torchrl.envs import (
    ReplicatedEnv,
)
from hpo_torchrl.modules import (
    make_q_network,
)
from hpo_torchrl.objectives import LearnedCriticLoss
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.inventory import Normal, Poisson, Record
from hpo_torchrl.problems.inventory.lead_times import Suppliers
from hpo_torchrl.problems.inventory.order_costs import (
    AllUnitsDiscount,
    FixedCost,
    ItemFixedCost,
    StepCost,
    Truckloads,
)
from hpo_torchrl.problems.inventory.order_quantities import MinimumOrder
from hpo_torchrl.problems.inventory.sales import Profit

# -- steps -----------------------------------------------------------------------------------------


def stepped(env: Any, **changes: Any) -> Any:
    """Take one step with an action whose parts are changed."""
    start = env.rand_action(env.reset())
    for name, value in changes.items():
        spec = start["action", name]
        given = torch.as_tensor(value)
        given = given.expand(spec.shape) if given.ndim == 0 else given
        start["action", name] = given.clone()
    return env.step(start)


def steps() -> Iterator[Bad]:
    """Actions that no environment offers."""
    made: dict[str, Callable[[], Any]] = {
        "inventory": inventory,
        "original form": lambda: inventory(hybrid=False),
        "discount": lambda: inventory(features=[AllUnitsDiscount([20.0], [1.0, 0.9])]),
        "heads": lambda: inventory(num_items=3, features=[ItemFixedCost(4.0)]),
        "lqr": lqr,
        "replicated": lambda: ReplicatedEnv(inventory(), 2),
        "transformed": lambda: TransformedEnv(inventory()),
    }
    for name, make in made.items():
        count = make().full_action_spec["action", "discrete"].space.n
        for value in (-1, count, 7_000, 0.5, True):
            shown = {bool: "bool", float: "float32"}.get(type(value), str(value))
            call = functools.partial(lambda make, v: stepped(make(), discrete=v), make, value)
            yield Bad(f"step: {name}, discrete={value}", call, ("discrete", shown))
        for value in (NAN, INF, -INF):
            call = functools.partial(lambda make, v: stepped(make(), continuous=v), make, value)
            yield Bad(f"step: {name}, continuous={value}", call, ("continuous", str(value)))
    yield Bad(
        "step: nothing is ordered, continuous=inf",
        lambda: stepped(inventory(), discrete=0, continuous=INF),
        ("continuous", "inf"),
    )
    for key, shape in {"discrete": (4, 1), "continuous": (4, 2)}.items():
        call = functools.partial(
            lambda key, shape: stepped(inventory(), **{key: torch.ones(shape).long()}), key, shape
        )
        yield Bad(f"step: {key} of shape {shape}", call, (key, str(shape)))
    yield Bad(
        "step: continuous of int64",
        lambda: stepped(inventory(), continuous=torch.ones(4, 1, dtype=torch.int64)),
        ("continuous", "int64"),
    )
    yield Bad(
        "step: no action",
        lambda: inventory().step(inventory().reset()),
        ("action",),
        (KeyError, ValueError),
    )
    for value in (NAN, INF):
        call = functools.partial(_reset_to, value)
        yield Bad(f"reset: a state of {value}", call, ("inventory", str(value)))


def _reset_to(value: float) -> Any:
    env = inventory()
    start = env.reset()
    start["inventory"] = torch.full_like(start["inventory"], value)
    return env.reset(start, set_state=True)


# -- discounts -------------------------------------------------------------------------------------


def discounts() -> Iterator[Bad]:
    """Discounts and lambdas that are none."""
    for value in (2.0, -0.1, NAN, INF, True, "0.9", None, [0.9], 1j):
        for critic in (True, False):
            call = functools.partial(
                lambda critic, v: loss(critic).make_value_estimator(gamma=v), critic, value
            )
            yield Bad(f"estimator: gamma={value!r}, critic={critic}", call, ("gamma", str(value)))
    for value in (2.0, -3, NAN, INF, True, "0.9", None):
        call = functools.partial(lambda v: loss().make_value_estimator(lmbda=v), value)
        yield Bad(f"estimator: lmbda={value!r}", call, ("lmbda", str(value)))
    for kind in (ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda):
        call = functools.partial(lambda kind: loss().make_value_estimator(kind, gamma=1.5), kind)
        yield Bad(f"estimator: {kind.name}, gamma=1.5", call, ("gamma", "1.5"))
    yield Bad("estimator: a made one, gamma=2", _made_estimator, ("gamma", "2"))
    yield Bad(
        "estimator: gamma=tensor(nan)",
        lambda: loss().make_value_estimator(gamma=torch.tensor(NAN)),
        ("gamma", "nan"),
    )
    env, policy, critic = parts()
    for value in (0.0, -1, 1.5, NAN, INF, True, "1", None):
        for kind in (Rollout, DifferentiableCollector):
            more = {} if kind is Rollout else {"frames_per_batch": 24}
            call = functools.partial(kind, env, policy, discount=value, **more)
            yield Bad(f"{kind.__name__}: discount={value!r}", call, ("discount", str(value)))
    for value in (1.5, NAN, "1"):
        call = functools.partial(
            lambda v: LearnedCriticLoss(policy, make_q_network(env), gamma=v), value
        )
        yield Bad(f"LearnedCriticLoss: gamma={value!r}", call, ("gamma", str(value)))
        call = functools.partial(
            lambda v: branched_returns(env, policy, batch(), env.sample_noise(6), gamma=v), value
        )
        yield Bad(f"branched_returns: gamma={value!r}", call, ("gamma", str(value)))
        call = functools.partial(
            lambda v: GradientSampler(collector(), critic, gae_lambda=v), value
        )
        yield Bad(f"GradientSampler: gae_lambda={value!r}", call, ("gae_lambda", str(value)))
    yield Bad("two discounts, a critic", lambda: _two_discounts(True), ("gamma=0.9", "0.95"))
    yield Bad("two discounts, no critic", lambda: _two_discounts(False), ("gamma=0.9", "0.95"))


def _made_estimator() -> Any:
    made = loss()
    return made.make_value_estimator(GAE(gamma=2.0, lmbda=0.9, value_network=parts()[2]))


def _two_discounts(critic: bool) -> Any:
    made = loss(critic)
    made.make_value_estimator(gamma=0.9)
    return made(batch(discount=0.95))


# -- numbers that the type cannot hold -------------------------------------------------------------


def numbers() -> Iterator[Bad]:
    """Costs, means, bounds and matrices that overflow or vanish."""
    for name in ("holding_cost", "shortage_cost", "procurement_cost", "fixed_cost_per_item"):
        for value in (1e300, 1e39):
            call = functools.partial(inventory, **{name: value})
            yield Bad(f"InventoryEnv: {name}={value}", call, (name, str(value), "float32"))
    for value in (1e300, 1e-60, 1e39, [10.0, 1e-60]):
        for kind in (Poisson, Normal):
            items = 2 if isinstance(value, list) else 1
            call = functools.partial(
                lambda kind, v, n: inventory(num_items=n, demand=kind(v)), kind, value, items
            )
            shown = "1e-60" if items == 2 else str(value)
            yield Bad(f"{kind.__name__}({value})", call, ("demand.mean", shown, "float32"))
    features = {
        "FixedCost.cost": FixedCost(1e300),
        "ItemFixedCost.cost": ItemFixedCost(1e300),
        "AllUnitsDiscount.prices": AllUnitsDiscount([5.0], [1e300, 0.9]),
        "AllUnitsDiscount.breaks": AllUnitsDiscount([1e300], [1.0, 0.9]),
        "StepCost.costs": StepCost([5.0], [1.0, 1e300]),
        "MinimumOrder.minimum": MinimumOrder(1e300),
        "Truckloads.cost": Truckloads(10.0, 1e300, 2),
        "Truckloads.capacity": Truckloads(1e300, 1.0, 2),
        "Suppliers.prices": Suppliers([1, 2], [1e300, 1.0]),
        "Suppliers.fixed_costs": Suppliers([1, 2], [1.0, 1.0], [1e300, 1.0]),
        "Profit.price": Profit(1e300),
    }
    for name, feature in features.items():
        call = functools.partial(inventory, features=[feature])
        yield Bad(f"{name}=1e+300", call, (name, "1e+300", "float32"))
    record = torch.full((9, 1), 1e300, dtype=torch.float64)
    yield Bad(
        "Record of 1e300",
        lambda: inventory(demand=Record(record)),
        (("record", "demand.mean"), "1e+300", "float32"),
    )
    unit = [[[1.0]]]
    for name in "ABQR":
        for value in (1e300, NAN):
            matrices = dict.fromkeys("ABQR", unit) | {name: [[[value]]]}
            call = functools.partial(SwitchedLQREnv, **matrices, batch_size=4)
            words = (name, "finite") if value != value else (name, "1e+300", "float32")
            yield Bad(f"SwitchedLQREnv: {name}={value}", call, words)
    for name in ("initial_range", "state_limit", "process_noise"):
        for value in (1e300, NAN, -1.0):
            call = functools.partial(lqr, **{name: value})
            in_unit = f"{value / 2**0.5:.4g}"  # of one coordinate
            yield Bad(f"SwitchedLQREnv: {name}={value}", call, (name, (str(value), in_unit)))
    for value in (1e300, 1e-60, NAN, 0.0):
        call = functools.partial(bare, action_scale=value)
        yield Bad(f"DifferentiableEnv: action_scale={value}", call, ("action_scale", str(value)))
    ends: Sequence[Any] = (
        (NAN, 1.0),
        (2.0, 1.0),
        (-1e300, 1e300),
        ("0", 1.0),
        (0.0,),
        3,
        ([0, 1], 2),
    )
    for bounds in ends:
        call = functools.partial(bare, continuous_bounds=bounds)
        yield Bad(f"DifferentiableEnv: bounds {bounds}", call, ("continuous_bounds", str(bounds)))
    yield Bad(
        "heterogeneous: demand_range up to 1e300",
        lambda: InventoryEnv.heterogeneous(2, demand_range=(1.0, 1e300), batch_size=2),
        ("demand", "float32"),
    )
