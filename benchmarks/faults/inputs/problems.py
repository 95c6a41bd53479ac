"""Arguments of environments, demand, features and pieces."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.faults.inputs.made import (
    FLAG,
    INF,
    NAN,
    REAL,
    SIZE,
    Bad,
    bare,
    each,
    given,
    inventory,
    lqr,
    parts,
)
from hpo_torchrl.envs import (
    Breakpoint,
    Gap,
    Pieces,
    ReplicatedEnv,
    certify,
    find_jumps,
    hybridize,
)
from hpo_torchrl.problems import SwitchedLQREnv
from hpo_torchrl.problems.inventory import Poisson, Record, Traces
from hpo_torchrl.problems.inventory.lead_times import Suppliers
from hpo_torchrl.problems.inventory.order_costs import AllUnitsDiscount, FixedCost, Truckloads
from hpo_torchrl.problems.inventory.order_quantities import MinimumOrder
from hpo_torchrl.problems.inventory.sales import Profit


def problems() -> Iterator[Bad]:
    """Arguments of environments, of what they are made of, and of what makes them hybrid."""
    env, _, _ = parts()
    # environments
    for name in ("num_discrete", "continuous_dim", "observation_dim"):
        yield from given(f"DifferentiableEnv.{name}", bare, SIZE)
    yield from given("DifferentiableEnv.num_heads", bare, [v for v in SIZE if v is not None] + [2])
    yield from given("DifferentiableEnv.horizon", bare, [v for v in SIZE if v is not None])
    yield from given("DifferentiableEnv.horizon_terminates", bare, FLAG)
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
    yield from given("InventoryEnv.num_items", inventory, [v for v in SIZE if v is not None])
    yield from given("InventoryEnv.lead_time", inventory, ("3", None, True, 1.5, NAN, -1, [2]))
    for name in ("holding_cost", "shortage_cost", "procurement_cost", "fixed_cost_per_item"):
        values = [v for v in REAL if not (v is None and name == "fixed_cost_per_item")]
        yield from given(f"InventoryEnv.{name}", inventory, values)
    yield from given("InventoryEnv.demand", inventory, (None, True, NAN, INF, 0.0, 1j, [], "x", {}))
    yield from given("InventoryEnv.features", inventory, ("x", 1.5, [None], [1.0], ["x"], {}, True))
    yield from given("InventoryEnv.lost_sales", inventory, FLAG)
    yield from given("InventoryEnv.hybrid", inventory, FLAG)
    yield from given("InventoryEnv.initial_state", inventory, ("full", None, 1, ["empty"]))
    yield from given("InventoryEnv.horizon", inventory, ("3", True, 1.5, 0, -1))
    yield from given("InventoryEnv.dtype", inventory, ("float32", torch.int64, None))
    yield from given("SwitchedLQREnv.horizon", lqr, SIZE)
    for name in ("process_noise", "initial_range", "state_limit"):
        yield from given(f"SwitchedLQREnv.{name}", lqr, REAL)
    yield from given("SwitchedLQREnv.observe_time", lqr, FLAG)
    for name in ("growth", "coupling", "weak_input", "input_cost"):
        yield from given(f"SwitchedLQREnv.from_recipe.{name}", lqr, [v for v in REAL if v != -1.0])
    unit = [[[1.0]]]
    for name in "ABQR":
        for value in ("x", None, True, 1j, [], [[1.0], [1.0, 2.0]], 3.0):
            call = functools.partial(SwitchedLQREnv, **dict.fromkeys("ABQR", unit) | {name: value})
            yield Bad(f"SwitchedLQREnv.{name}={value!r}", call, (name,))
    yield from each("ReplicatedEnv.envs", ReplicatedEnv, ([], None, "x", [1.0], 3))
    yield from each("ReplicatedEnv.number", lambda v: ReplicatedEnv(env, v), SIZE)
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
        yield from each(f"{kind.__name__}.{argument}", kind, REAL)
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
    yield from each("Truckloads.num_trucks", lambda v: Truckloads(9.0, 1.0, v), SIZE)
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
