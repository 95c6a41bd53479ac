"""Nonsense handed to the library: each input must end in an error that names it.

Every entry of the table is a call that makes no sense, with the words that its error must hold: the
name of the argument or entry, and the value or shape that came. Counted are those that return
(nonsense accepted) and those that raise anything else than documented, or without these words
(raw). Both must be 0.

    python -m benchmarks.faults.library
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torchrl.envs import (
    ParallelEnv,
    TransformedEnv,
    VecNorm,
    VecNormV2,
)
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import ValueEstimators

from hpo_torchrl.collectors import (
    DifferentiableCollector,
    Rollout,
    SampleCollector,
    branched_returns,
    differentiable_rollout,
    straight_through_rollout,
)
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.diagnostics import GradientSampler, estimator, exact_gradient, gradient_report
from hpo_torchrl.envs import (
    Breakpoint,
    DifferentiableEnv,
    Gap,
    Pieces,
    ReplicatedEnv,
    certify,
    find_jumps,
    hybridize,
)
from hpo_torchrl.modules import (
    ActionRange,
    HybridDistribution,
    HybridNetwork,
    HybridPolicy,
    make_q_network,
    make_value_network,
    replicate,
)
from hpo_torchrl.objectives import CrossTermWeight, HPOLoss, LearnedCriticLoss
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.problems.inventory import Normal, Poisson, Record, Traces
from hpo_torchrl.problems.inventory.features import (
    AllUnitsDiscount,
    FixedCost,
    ItemFixedCost,
    MinimumOrder,
    Profit,
    StepCost,
    Suppliers,
    Truckloads,
)
from hpo_torchrl.training import Evaluation

NAN, INF = math.nan, math.inf


class Bad(NamedTuple):
    """A bad input.

    Attributes:
        what: the input in words.
        call: what is done with it.
        words: what the error's message must hold; of a tuple, one.
        documented: classes of errors that are documented for it.
    """

    what: str
    call: Callable[[], Any]
    words: tuple[str | tuple[str, ...], ...]
    documented: tuple[type[Exception], ...] = (ValueError, TypeError)


def inventory(**arguments: Any) -> InventoryEnv:
    """Make a small environment."""
    return InventoryEnv(**{"batch_size": 4, "initial_state": "random", "seed": 0} | arguments)


def lqr(**arguments: Any) -> SwitchedLQREnv:
    """Make a small environment."""
    return SwitchedLQREnv.from_recipe(
        2, 2, **{"batch_size": 4, "seed": 0, "horizon": 5} | arguments
    )


@functools.cache
def parts() -> tuple[Any, Any, Any]:
    """Return an environment, a policy and a critic, which the table leaves as they are."""
    env = inventory()
    return env, HybridPolicy.for_env(env, hidden=(4,), scale=0.1), make_value_network(env, hidden=4)


def batch(graph: bool = True, **settings: Any) -> Any:
    """Make a batch, its graph whole."""
    env, policy, _ = parts()
    with torch.set_grad_enabled(graph):
        return differentiable_rollout(env, policy, 6, **settings)


def loss(critic: bool = True, **arguments: Any) -> HPOLoss:
    """Make a loss."""
    _, policy, value = parts()
    return HPOLoss(policy, value if critic else None, **arguments)


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
            lambda v: GradientSampler(_collector(), critic, gae_lambda=v), value
        )
        yield Bad(f"GradientSampler: gae_lambda={value!r}", call, ("gae_lambda", str(value)))
    yield Bad("two discounts, a critic", lambda: _two_discounts(True), ("gamma=0.9", "0.95"))
    yield Bad("two discounts, no critic", lambda: _two_discounts(False), ("gamma=0.9", "0.95"))


def _made_estimator() -> Any:
    from torchrl.objectives.value import GAE

    made = loss()
    return made.make_value_estimator(GAE(gamma=2.0, lmbda=0.9, value_network=parts()[2]))


def _two_discounts(critic: bool) -> Any:
    made = loss(critic)
    made.make_value_estimator(gamma=0.9)
    return made(batch(discount=0.95))


def _collector(**arguments: Any) -> DifferentiableCollector:
    env, policy, _ = parts()
    return DifferentiableCollector(env, policy, **{"frames_per_batch": 24} | arguments)


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


class Bare(DifferentiableEnv):
    """A small environment whose sizes are given."""

    def __init__(self, **arguments: Any) -> None:
        sizes: dict[str, Any] = {"num_discrete": 2, "continuous_dim": 1, "observation_dim": 1}
        sizes |= {"state_shapes": {"x": (1,)}, "noise_shape": (1,), "batch_size": 4, "seed": 0}
        super().__init__(**sizes | arguments)

    def dynamics(self, state: Any, action: Any, noise: Any) -> tuple[dict, Any]:
        """Add the action."""
        return {"x": state["x"] + action["continuous"] + noise}, -state["x"].square().sum(-1)

    def observe(self, state: Any) -> Any:
        """Show the state."""
        return state["x"]

    def initial_state(self) -> dict[str, Any]:
        """Begin at 0."""
        return {"x": torch.zeros(*self.batch_size, 1)}

    def draw_noise(self, num_steps: int, state: Any) -> Any:
        """Draw none."""
        return torch.zeros(*self.batch_size, num_steps, 1)


def bare(**arguments: Any) -> Bare:
    """Make one."""
    return Bare(**arguments)


# -- batches ---------------------------------------------------------------------------------------


def changed(key: Any, change: Callable[[Any], Any], **settings: Any) -> Any:
    """Return a batch of which one entry is changed."""
    made = batch(**settings).copy()
    return made.set(key, change(made.get(key)))


def spoiled(value: float) -> Callable[[Any], Any]:
    """Return what puts a value into one place of an entry."""

    def spoil(entry: Any) -> Any:
        place = torch.zeros(entry.shape, dtype=torch.bool)
        place.view(-1)[5] = True
        return torch.where(place, torch.as_tensor(value, dtype=entry.dtype), entry)

    return spoil


def batches() -> Iterator[Bad]:
    """Batches that a loss cannot use."""
    keys = {"reward": ("next", "reward"), "observation": "observation"}
    keys["next observation"] = ("next", "observation")
    for name, key in keys.items():
        for value in (NAN, INF):
            for critic in (True, False):
                if name == "next observation" and not critic:
                    continue  # nothing reads it
                call = functools.partial(
                    lambda critic, k, v: loss(critic)(changed(k, spoiled(v))), critic, key, value
                )
                words = (name.split()[-1], str(value))
                yield Bad(f"HPOLoss: {name} {value}, critic={critic}", call, words)
    yield Bad(
        "HPOLoss: time first",
        lambda: loss()(batch().transpose(0, 1).contiguous()),
        ("time", "(6, 4)"),
    )
    yield Bad(
        "HPOLoss: time first, without names", lambda: loss()(_time_first()), ("time", "(6, 4)")
    )
    yield Bad("HPOLoss: a single step", lambda: loss()(batch()[0, 0]), ("()",))
    for nothing in (batch().to_dict(), None, 3):
        call = functools.partial(lambda v: loss()(v), nothing)
        words = (("reward", "()"),)
        yield Bad(f"HPOLoss: a {type(nothing).__name__}", call, words, (KeyError, ValueError))
    squeezed = {
        "reward": ("next", "reward"),
        "done": ("next", "done"),
        "terminated": ("next", "terminated"),
    }
    for name, key in squeezed.items():
        for change, shape in {
            "squeezed": (lambda e: e.squeeze(-1), "(4, 6)"),
            "doubled": (lambda e: torch.cat([e, e], -1), "(4, 6, 2)"),
        }.values():
            call = functools.partial(lambda k, c: loss()(changed(k, c)), key, change)
            yield Bad(f"HPOLoss: {name} of shape {shape}", call, (name, shape))
        call = functools.partial(lambda k: loss()(batch().exclude(k)), key)
        yield Bad(f"HPOLoss: no {name}", call, (name,), (KeyError,))
    for name, key in {"done": ("next", "done"), "terminated": ("next", "terminated")}.items():
        call = functools.partial(lambda k: loss()(changed(k, lambda e: e.float())), key)
        yield Bad(f"HPOLoss: {name} of float32", call, (name, "float32"))
    action = ("action", "discrete")
    for what, change, words in (
        ("one too many", lambda e: e + 7, ("discrete", "7")),
        ("-1", lambda e: e - 9, ("discrete", "-9")),
        ("of floats", lambda e: e.float(), ("discrete", "float32")),
        ("with a last axis", lambda e: e.unsqueeze(-1), ("discrete", "(4, 6, 1)")),
    ):
        call = functools.partial(lambda c: loss()(changed(action, c)), change)
        yield Bad(f"HPOLoss: discrete {what}", call, words)
    for key in (action, "observation"):
        call = functools.partial(lambda k: loss()(batch().exclude(k)), key)
        yield Bad(f"HPOLoss: no {key}", call, (str(key),), (KeyError,))
    yield Bad(
        "HPOLoss: observation one short",
        lambda: loss()(changed("observation", lambda e: e[..., :-1])),
        ("observation", "(4, 6, 1)"),
    )
    yield Bad(
        "HPOLoss: advantage squeezed",
        lambda: loss(False)(batch().set("advantage", torch.zeros(4, 6))),
        ("advantage", "(4, 6)"),
    )
    yield Bad(
        "HPOLoss: action_value of one action",
        lambda: loss()(batch().set("action_value", torch.zeros(4, 6, 3))),
        ("action_value", "(4, 6, 3)"),
    )
    yield Bad(
        "HPOLoss: without a graph",
        lambda: loss()(batch(graph=False)),
        ("reward", "gradient"),
        (RuntimeError,),
    )
    yield Bad("HPOLoss: a second epoch", _second_epoch, ("once", "pathwise=False"), (RuntimeError,))
    env, policy, _ = parts()
    starts = {
        "one entry short": (lambda s: s.exclude("inventory"), ("inventory",)),
        "of another batch": (lambda s: s[:2], ("(2,)", "(4,)")),
        "None within": (lambda s: TensorDict({}, [4]), ("inventory",)),
    }
    for route in ("functional", "general"):
        for what, (change, words) in starts.items():
            call = functools.partial(
                lambda c, r: differentiable_rollout(
                    env, policy, 3, tensordict=c(env.reset()), route=r
                ),
                change,
                route,
            )
            documented = (ValueError, TypeError, KeyError)
            yield Bad(f"{route} rollout: start {what}", call, words, documented)


def _time_first() -> Any:
    made = batch()
    return torch.stack([made[:, step].copy() for step in range(6)])


def _second_epoch() -> Any:
    made, rollout = loss(), batch(discount=0.99)
    for _ in range(2):
        terms = made(rollout)
        sum(value for key, value in terms.items() if key.startswith("loss_")).backward()


# -- TorchRL's wrappers ----------------------------------------------------------------------------


def wrapped() -> Iterator[Bad]:
    """Environments whose graph is cut, and transforms that write into it."""

    def several() -> Any:
        return ParallelEnv(2, lambda: inventory(), serial_for_single=False)

    _, policy, _ = parts()
    yield Bad(
        "DifferentiableCollector of a ParallelEnv",
        lambda: DifferentiableCollector(several(), policy, frames_per_batch=16),
        ("ParallelEnv", "process"),
    )
    yield Bad(
        "Rollout in a transformed ParallelEnv",
        lambda: Rollout(TransformedEnv(several()), policy)(3),
        ("ParallelEnv", "process"),
    )
    for transform in (
        lambda: VecNorm(in_keys=["observation"]),
        lambda: VecNormV2(in_keys=["observation"]),
    ):
        name = type(transform()).__name__
        call = functools.partial(_two_windows, transform)
        yield Bad(f"DifferentiableCollector with {name}", call, (name,))


def _two_windows(transform: Callable[[], Any]) -> None:
    env = TransformedEnv(inventory(), transform())
    policy = HybridPolicy.for_env(env, hidden=(4,))
    collector = DifferentiableCollector(env, policy, frames_per_batch=16)
    for _ in range(2):
        (-collector.collect()["next", "reward"].mean()).backward()


def in_words(value: Any) -> tuple[str, ...]:
    """Return how a message may show a value: by itself, by an entry or its shape, or its type."""
    if torch.is_tensor(value):
        shape = str(tuple(value.shape))
        return (
            ("nan", shape)
            if bool(value.isnan().any())
            else (shape, *map(str, value.flatten().tolist()))
        )
    found = [" ".join(repr(value).split())[:40], str(value)]
    if isinstance(value, (list, tuple, dict)):
        found += [f"{len(value)}", *(word for entry in value for word in in_words(entry))]
    return (*found, type(value).__name__)


# -- constructors ----------------------------------------------------------------------------------


def constructors() -> Iterator[Bad]:
    """Arguments of every public class and function."""
    env, policy, critic = parts()

    def each(name: str, call: Callable[[Any], Any], values: Sequence[Any]) -> Iterator[Bad]:
        for value in values:
            words = (name.split(".")[-1], in_words(value))
            yield Bad(f"{name}={in_words(value)[0]}", functools.partial(call, value), words)

    def given(name: str, make: Callable[..., Any], values: Sequence[Any]) -> Iterator[Bad]:
        short = name.split(".")[-1]
        return each(name, lambda value: make(**{short: value}), values)

    whole = ("3", None, True, 1.5, NAN, INF, 0, -1, 1j, [2], 10**40)
    size = tuple(value for value in whole if value != 10**40)
    real = ("3", None, True, NAN, INF, -1.0, 1j, [1.0, 2.0])
    flag = ("yes", None, 1, 0.0)
    # environments
    for name in ("num_discrete", "continuous_dim", "observation_dim"):
        yield from given(f"DifferentiableEnv.{name}", bare, size)
    yield from given("DifferentiableEnv.num_heads", bare, [v for v in size if v is not None] + [2])
    yield from given("DifferentiableEnv.horizon", bare, [v for v in size if v is not None])
    yield from given("DifferentiableEnv.horizon_terminates", bare, flag)
    yield from given("DifferentiableEnv.batch_size", bare, ("3", True, 1.5, 0, -1, [2, 0], None))
    yield from given("DifferentiableEnv.seed", bare, ("3", True, 1.5, -1, 2**70))
    yield from given("DifferentiableEnv.dtype", bare, ("float32", torch.int64, None, float))
    yield from given("DifferentiableEnv.device", bare, ("nowhere", 1.5))
    yield from given("DifferentiableEnv.action_scale", bare, ("1", None, [1.0, 2.0], INF, 1j, []))
    shapes: Sequence[Any] = (
        {"x": (0,)},
        {"x": (1.5,)},
        {"x": -1},
        None,
        "x",
        ["x"],
        {"step": (1,)},
    )
    yield from given("DifferentiableEnv.state_shapes", bare, shapes)
    yield from given("DifferentiableEnv.noise_shape", bare, ((0,), (-1,), ("1",), None, 1.5))
    yield from given("DifferentiableEnv.branch_bounds", bare, ((0.0, 1.0), "x"))
    yield from given("InventoryEnv.num_items", inventory, [v for v in size if v is not None])
    yield from given("InventoryEnv.lead_time", inventory, ("3", None, True, 1.5, NAN, -1, [2]))
    for name in ("holding_cost", "shortage_cost", "procurement_cost", "fixed_cost_per_item"):
        values = [v for v in real if not (v is None and name == "fixed_cost_per_item")]
        yield from given(f"InventoryEnv.{name}", inventory, values)
    yield from given("InventoryEnv.demand", inventory, (None, True, NAN, INF, 0.0, 1j, [], "x", {}))
    yield from given("InventoryEnv.features", inventory, ("x", 1.5, [None], [1.0], ["x"], {}, True))
    yield from given("InventoryEnv.lost_sales", inventory, flag)
    yield from given("InventoryEnv.hybrid", inventory, flag)
    yield from given("InventoryEnv.initial_state", inventory, ("full", None, 1, ["empty"]))
    yield from given("InventoryEnv.horizon", inventory, ("3", True, 1.5, 0, -1))
    yield from given("InventoryEnv.dtype", inventory, ("float32", torch.int64, None))
    yield from given("SwitchedLQREnv.horizon", lqr, size)
    for name in ("process_noise", "initial_range", "state_limit"):
        yield from given(f"SwitchedLQREnv.{name}", lqr, real)
    yield from given("SwitchedLQREnv.observe_time", lqr, flag)
    for name in ("growth", "coupling", "weak_input", "input_cost"):
        yield from given(f"SwitchedLQREnv.from_recipe.{name}", lqr, [v for v in real if v != -1.0])
    unit = [[[1.0]]]
    for name in "ABQR":
        for value in ("x", None, True, 1j, [], [[1.0], [1.0, 2.0]], 3.0):
            call = functools.partial(SwitchedLQREnv, **dict.fromkeys("ABQR", unit) | {name: value})
            yield Bad(f"SwitchedLQREnv.{name}={value!r}", call, (name,))
    yield from each("ReplicatedEnv.envs", ReplicatedEnv, ([], None, "x", [1.0], 3))
    yield from each("ReplicatedEnv.number", lambda v: ReplicatedEnv(env, v), size)
    # demand and features
    yield from each(
        "Poisson.mean", lambda v: inventory(demand=Poisson(v)), ("3", None, True, NAN, 0.0)
    )
    yield from each(
        "Record.history", lambda v: Record(torch.ones(9, 1), history=v), ("3", 1.5, -1, None)
    )
    for name, values in {
        "periods": ((1,), (5, 2), (0, 99), "ab", (0.5, 2), 3),
        "train_periods": ((1,), (5, 2), (0, 99), "ab"),
        "start_period": ("last", None, 0),
        "season": ("7", 0, 1.5, True),
        "mean": ("3", NAN, 0.0, [1.0, 2.0]),
        "items": (["a", "b"], 3),
        "labels": (["a"], 3),
    }.items():
        call = functools.partial(
            lambda n, v: inventory(demand=Record(torch.ones(9, 1), **{n: v})), name
        )
        yield from each(f"Record.{name}", call, values)
    for value in (None, "x.npy", [[1.0, "a"]], [[NAN]], [[-1.0]], torch.ones(3), [], 1j, "x.csv"):
        yield Bad(f"Record.record={value!r}", functools.partial(Record, value), ("record",))
    yield Bad("Traces of (9, 1)", lambda: Traces(torch.ones(9, 1)), ("traces", "(9, 1)"))
    for kind, argument in ((FixedCost, "cost"), (MinimumOrder, "minimum"), (Profit, "price")):
        yield from each(f"{kind.__name__}.{argument}", kind, real)
    discount: Callable[..., Any] = AllUnitsDiscount
    yield from each(
        "AllUnitsDiscount.breaks", lambda v: discount(v, [1.0]), (3.0, "x", None, [0.0], [2.0])
    )
    yield from each(
        "AllUnitsDiscount.prices", lambda v: discount([2.0], v), (3.0, "x", None, [1.0, NAN])
    )
    yield from each(
        "Suppliers.lead_times", lambda v: Suppliers(v, [1.0]), (3, "x", None, [0], [1.5])
    )
    yield from each("Suppliers.prices", lambda v: Suppliers([1], v), (3.0, "x", None, [NAN], []))
    yield from each("Truckloads.num_trucks", lambda v: Truckloads(9.0, 1.0, v), size)
    # pieces
    yield from each(
        "breakpoint", lambda v: Pieces.cut([v]), ("0", None, NAN, True, (0.0, "middle"))
    )
    yield from each("breakpoint", lambda v: Pieces.cut([v], low=0.0), (-1.0,))
    yield from each("low", lambda v: Pieces.cut([1.0], low=v), ("0", NAN, INF, True))
    yield from each("high", lambda v: Pieces.cut([1.0], high=v), ("0", NAN, -INF))
    yield from each("breakpoints", Pieces.cut, (1.0, None, "x"))
    yield from each(
        "intervals", Pieces.listed, ([], None, 3, [()], [(1.0, 0.0)], [(0, 1, 2)], ["x"])
    )
    cut = Pieces.cut([Breakpoint(0.0, "alone"), 5.0], low=0.0)
    yield from each("gap", lambda v: cut.without([v]), (Gap(1.0, 5.0, 0.0), Gap(NAN, 5.0, 0.0)))
    yield from each("gap", lambda v: cut.without([v]), (3.0, "abc"))
    yield Bad("gap without a third", lambda: cut.without([(0.0, 5.0)]), ("Gap", "same_as"))
    plain = inventory(hybrid=False)
    yield from each("env", hybridize, (None, 3, "x"))
    yield from each("gaps", lambda v: hybridize(plain, [0.0], gaps=v), (3, [3.0]))
    yield from each("per_item", lambda v: hybridize(plain, [0.0], per_item=v), ("yes", 1))
    yield from each("check", lambda v: hybridize(plain, [0.0], check=v), ("yes", None))
    yield from each("num_actions", lambda v: certify(env, v), ("3", None, True, 0, -1, NAN))
    yield from each("seed", lambda v: certify(env, 4, seed=v), ("3", None, 1.5, -1))
    yield from each("env", lambda v: certify(v, 4), (lqr(), None))
    yield from each("env", find_jumps, (lqr(), None))
    yield from each("num_lines", lambda v: find_jumps(env, num_lines=v), ("3", None, 0, -1, NAN))
    # modules
    for name in ("observation_dim", "num_discrete", "continuous_dim"):
        sizes = {"observation_dim": 3, "num_discrete": 2, "continuous_dim": 2}
        call = functools.partial(lambda n, s, v: HybridNetwork(**s | {n: v}), name, sizes)
        yield from each(f"HybridNetwork.{name}", call, size)
    network = functools.partial(HybridNetwork, 3, 2, 2)
    for name, values in {
        "num_heads": ("3", 0, 3, True, 1.5),
        "hidden": ("64", None, (0,), (-1,), 1.5, (4, "a")),
        "activation": ("sigmoid", None, 3),
        "scale": real,
        "learn_scale": flag,
        "shared_trunk": flag,
        "linear_skip": flag,
        "distribution": ("beta", None, 3),
        "dtype": ("float32", torch.int64),
        "action_scale": ("1", 0.0, [1.0, 2.0, 3.0], [1.0, -1.0], NAN, 1j),
        "continuous_bounds": (None, (1.0, 0.0), (NAN, 1.0), ("0", 1.0), (0.0,), 3),
        "branch_bounds": ((0.0, 1.0), 3),
    }.items():
        yield from given(f"HybridNetwork.{name}", network, values)
    yield from each(
        "unit", lambda v: ActionRange((None, None), v), ("x", None, torch.tensor([0.0]), 3.0)
    )
    ones = torch.ones(1)
    yield from each(
        "bounds", lambda v: ActionRange(v, ones), (None, 3, (0.0,), (1.0, 0.0), (NAN, 1.0))
    )
    yield from each("network", HybridPolicy, (None, 3, "x"))
    for name, values in {
        "observation_key": ("seen", None, 3),
        "mask_key": (3,),
        "return_log_prob": flag,
    }.items():
        yield from given(
            f"HybridPolicy.for_env.{name}", functools.partial(HybridPolicy.for_env, env), values
        )
    yield from each("env", HybridPolicy.for_env, (None, 3, "x"))
    for make in (make_value_network, make_q_network):
        name = make.__name__
        yield from each("env", make, (None, 3))
        yield from given(f"{name}.hidden", functools.partial(make, env), ("64", None, (0,), 1.5))
        yield from given(f"{name}.activation", functools.partial(make, env), ("x", None))
    yield from each(
        "observation_key", lambda v: make_value_network(env, observation_key=v), ("x", None)
    )
    yield from each("modules", replicate, ([], None, 3, [3], [policy, critic]))
    zeros, loc = torch.zeros(4, 2), torch.zeros(4, 2, 1)
    yield from each(
        "logits", lambda v: HybridDistribution(v, loc), (None, 3.0, "x", torch.zeros(4, 3))
    )
    yield from each(
        "loc", lambda v: HybridDistribution(zeros, v), (None, 3.0, "x", torch.zeros(4, 3, 1))
    )
    for name, pair in {"logits": (zeros / 0, loc), "loc": (zeros, loc + INF)}.items():
        call = functools.partial(HybridDistribution, *pair)
        yield Bad(f"HybridDistribution: {name} not finite", call, (name, "finite"))
    scales = (NAN, "x", torch.ones(3, 1, 1))
    yield from each("scale", lambda v: HybridDistribution(zeros, loc, v), scales)
    masks = (
        True,
        "x",
        torch.ones(4, 2),
        torch.ones(2, dtype=torch.bool),
    )
    yield from each("mask", lambda v: HybridDistribution(zeros, loc, mask=v), masks)
    yield from each("heads", lambda v: HybridDistribution(zeros, loc, heads=v), ("yes", 1, None))
    yield from each("seed", Randomness, ("3", 1.5, -1, [True], [-1], 2**70))
    # losses
    for name, values in {
        "entropy_coeff": ("1", NAN, -1.0, True, INF),
        "critic_coeff": ("1", NAN, -1.0, True),
        "clip_epsilon": ("1", NAN, 0.0, -1.0, True),
        "pathwise": flag,
        "score_function": flag,
        "cross_term": ("yes", None, 1),
        "loss_critic_type": ("l3", None, 2),
        "reduction": ("max", 3),
        "baseline": ("mean", 3),
        "functional": flag,
        "entropy_in_advantage_units": flag,
    }.items():
        yield from given(f"HPOLoss.{name}", loss, values)
    yield from each("actor_network", HPOLoss, (None, 3, torch.nn.Linear(1, 1)))
    yield from each("critic_network", lambda v: HPOLoss(policy, v), (3, "x", torch.nn.Linear(1, 1)))
    yield Bad("HPOLoss of a normal actor", _normal_alone, ("actor_network", "HybridDistribution"))
    yield from given("CrossTermWeight.decay", CrossTermWeight, real)
    yield from each("num_seeds", lambda v: CrossTermWeight(num_seeds=v), ("3", 0, 1.5, True))
    yield from each(
        "entropy_coeff",
        lambda v: LearnedCriticLoss(policy, make_q_network(env), entropy_coeff=v),
        real,
    )
    yield from each("qvalue_network", lambda v: LearnedCriticLoss(policy, v), (None, 3))
    call = functools.partial(LearnedCriticLoss, policy, critic)
    yield Bad("qvalue_network: a critic of states", call, ("qvalue_network", "['observation']"))
    yield from each("actor_network", lambda v: LearnedCriticLoss(v, make_q_network(env)), (None, 3))
    # collectors
    for kind in (DifferentiableCollector, SampleCollector):
        name = kind.__name__
        call = functools.partial(lambda k, v: k(env, policy, frames_per_batch=v), kind)
        yield from each(f"{name}.frames_per_batch", call, (*size, 7))
        full = functools.partial(kind, env, policy, frames_per_batch=24)
        yield from given(f"{name}.reset_at_each_iter", full, flag)
        yield from given(f"{name}.reset_fraction", full, (*real, 1.5))
        yield from given(f"{name}.randomness", full, (3, "x"))
        call = functools.partial(lambda k, v: k(v, policy, frames_per_batch=24), kind)
        yield from each("env", call, (None, 3, "x"))
        call = functools.partial(lambda k, v: k(env, v, frames_per_batch=24), kind)
        yield from each("policy", call, (None, 3, "x"))
    for name, values in {
        "total_frames": ("3", None, 1.5, -2, True),
        "exploration_type": ("random", None, 3),
        "route": ("fast", None, 1),
        "temperature": ("1", 0.0, NAN, True),
        "checkpoint_steps": ("3", 0, 1.5, True),
        "compile": flag,
    }.items():
        yield from given(f"DifferentiableCollector.{name}", _collector, values)
    for roll in (differentiable_rollout, straight_through_rollout):
        yield from each("num_steps", functools.partial(roll, env, policy), size)
        yield from each(
            "noise",
            lambda v, roll=roll: roll(env, policy, 3, noise=v),
            (3.0, "x", torch.ones(4, 2, 1)),
        )
        yield from each(
            "noise",
            lambda v, roll=roll: roll(env, policy, 3, noise=v),
            (torch.full((4, 3, 1), NAN),),
        )
        yield from each(
            "tensordict", lambda v, roll=roll: roll(env, policy, 3, tensordict=v), (3, "x", {})
        )
    yield from each(
        "rollout", lambda v: branched_returns(env, policy, v, env.sample_noise(6)), (None, 3)
    )
    yield from each(
        "critic",
        lambda v: branched_returns(env, policy, batch(), env.sample_noise(6), critic=v),
        (3, policy),
    )
    yield from each("num_steps", env.sample_noise, size)
    yield from each(
        "noise", env.load_noise, (3.0, "x", torch.ones(4, 2), torch.full((4, 2, 1), NAN))
    )
    # evaluation and diagnostics
    for name, values in {
        "num_steps": size,
        "skip": ("1", None, -1, 5, 1.5),
        "seed": ("1", None, -1, 1.5, True),
        "env": (None, 3, "x"),
    }.items():
        call = functools.partial(
            lambda n, v: Evaluation(**{"env": env, "num_steps": 5, "seed": 0} | {n: v}), name
        )
        yield from each(f"Evaluation.{name}", call, values)
    tested = Evaluation(env, num_steps=5, seed=0)
    yield from each("policy", tested.run, (None, 3, "x"))
    for name, values in {
        "num_steps": (*size, 1000),
        "num_nodes": ("3", 0, 1.5, True),
        "max_leaves": ("3", None, 0, -1, 1.5),
    }.items():
        call = functools.partial(
            lambda n, v: exact_gradient(env, policy, **{"num_steps": 2, "num_nodes": 2} | {n: v}),
            name,
        )
        yield from each(f"exact_gradient.{name}", call, values)
    supports = (3, (torch.ones(2), torch.ones(2)), (torch.ones(2, 1), torch.tensor([NAN, 1.0])))
    call = functools.partial(exact_gradient, env, policy, 2, num_nodes=2)
    yield from given("exact_gradient.noise_support", call, supports)
    yield from each("collector", GradientSampler, (None, 3))
    sampler = GradientSampler(_collector(), critic)
    yield from each("critic", lambda v: GradientSampler(_collector(), v), (3, "x"))
    yield from each("names", sampler.sample, (["nothing"], 3, "mixed"))
    for name in ("num_batches", "num_reference"):
        yield from given(
            f"gradient_report.{name}",
            functools.partial(gradient_report, sampler),
            ("3", None, 1, -1, 2.5),
        )
    yield from each("name", lambda v: estimator(v)(lambda draw: None), (None, 3))


def _normal_alone() -> Any:
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(layers, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[("action", "continuous")],
        distribution_class=torch.distributions.Normal,
    )
    return HPOLoss(actor, parts()[2])(batch(discount=0.99))


KINDS: dict[str, Callable[[], Iterator[Bad]]] = {
    "steps": steps,
    "discounts": discounts,
    "numbers": numbers,
    "batches": batches,
    "wrappers": wrapped,
    "constructors": constructors,
}


def verdict(bad: Bad) -> str:
    """Return what became of an input: an empty string is as it should be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bad.call()
    except Exception as error:
        text = str(error)
        found = (
            any(one in text for one in (word if isinstance(word, tuple) else (word,)))
            for word in bad.words
        )
        if isinstance(error, bad.documented) and all(found):
            return ""
        first = text.strip().splitlines()[0] if text.strip() else ""
        return f"raw: {bad.what}: {type(error).__name__}: {first[:150]} (must hold {bad.words})"
    return f"accepted: {bad.what}"


def main(argv: Sequence[str] | None = None) -> int:
    """Try every input; return how many were accepted or ended raw."""
    number, accepted, raw = 0, 0, 0
    for kind, table in KINDS.items():
        found = [verdict(bad) for bad in table()]
        wrong = [line for line in found if line]
        number += len(found)
        accepted += sum(line.startswith("accepted") for line in wrong)
        raw += sum(line.startswith("raw") for line in wrong)
        print(f"{kind}: {len(found)} inputs, {len(wrong)} wrong")
        for line in wrong:
            print(f"  {line}")
    print(f"library: {number} inputs, nonsense accepted {accepted}, raw {raw}")
    return accepted + raw


if __name__ == "__main__":
    raise SystemExit(main())
