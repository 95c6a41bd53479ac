"""The cheapest schedule of a day by mixed-integer programming, with a certified lower bound."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from hpo_torchrl.core.checks import check_float, check_int, shown
from hpo_torchrl.problems.storage.batteries import Batteries
from hpo_torchrl.problems.unit_commitment.formulation import Day, Model
from hpo_torchrl.problems.unit_commitment.schedule import Schedule, schedule_of
from hpo_torchrl.problems.unit_commitment.units import Units


def solve(
    units: Units,
    demand: Any,
    wind: Any = 0.0,
    *,
    reserve: float = 0.0,
    need: Any = None,
    unserved_cost: float | None = None,
    surplus_cost: float | None = None,
    reserve_cost: float | None = None,
    power: Any = None,
    batteries: Batteries | None = None,
    content: Any = None,
    common: int | None = None,
    segments: int = 12,
    gap: float = 1e-4,
    time_limit: float = 60.0,
) -> Schedule:
    r"""Return the cheapest schedule that HiGHS finds, and a lower bound on the cost of all.

    Fuel :math:`c r^2` of the power r above the minimum is bounded from below by its tangents, made
    homogeneous by the commitment u: :math:`z \ge c (2 q r - q^2 u)` (perspective cuts). The
    model's bound is therefore one on the true cost, and the cost of the schedule is the true one:
    with the commitment held, tangents are added where the powers fall until the two agree.

    Units with the same numbers are one integer variable, whatever their states at the start, so
    that no two of them can change roles: their minimum times, their starts matched with stops and
    equal powers make a schedule of each. Units with ramps stand alone. Every hot start is matched
    with the stop before it.

    Sources: D. Rajan and S. Takriti (2005), IBM Research Report RC23628 (minimum times);
    A. Frangioni and C. Gentile (2006), Mathematical Programming 106, 225-236 (perspective cuts);
    B. Knueven, J. Ostrowski and J.-P. Watson (2020), Mathematical Programming Computation 12,
    225-248 (matched starts); the same (2018), IEEE Transactions on Power Systems 33(4), 4496-4507
    (identical units).

    Args:
        units: the generating units.
        demand: in MW, ``(T,)``, or ``(S, T)`` for S equally likely scenarios.
        wind: power that is there for nothing, in MW; what is not needed is lost.
        reserve: share of the demand by which capacity that is on must exceed it.
        need: capacity that must be on, in MW, ``(T,)`` or ``(S, T)``; None for
            ``(1 + reserve) demand - wind``.
        unserved_cost: of demand that is not met, in $/MWh; None forbids it.
        surplus_cost: of power that nothing takes, in $/MWh; None forbids it.
        reserve_cost: of reserve that lacks, in $/MW an hour; None forbids it.
        power: what the units gave in the hour before, in MW, ``(G,)``; ramps bind in the first
            hour only if it is given.
        batteries: they charge or discharge, as is decided with the commitment; they count for no
            reserve, and what is left in them is worth nothing.
        content: energy in the batteries at the start, in MWh, ``(N,)``; None for the initial one.
        common: hours for which all scenarios share one commitment; later each has its own. None:
            to the end.
        segments: tangents of the unit for whose cost they matter most; others take fewer.
        gap: relative distance of cost and bound at which the search ends; where the tangents leave
            more, it goes on with those that were added.
        time_limit: seconds after which it returns the best schedule that it has found.

    Raises:
        ValueError: shapes or numbers are wrong, or no schedule is allowed.
        RuntimeError: the time was too short for any schedule.

    Examples:
        >>> from hpo_torchrl.problems.unit_commitment import Units, kazarlis_demand, solve
        >>> found = solve(Units.kazarlis(), kazarlis_demand()[:6], reserve=0.1)
        >>> found.on.sum(1).tolist(), round(found.cost), found.gap < 1e-4
        ([2, 2, 3, 3, 4, 5], 107741, True)
    """
    started = time.perf_counter()
    check_float("gap", gap, minimum=0.0)
    check_float("time_limit", time_limit, minimum=0.0, strict=True)
    model = _model(
        units,
        demand,
        wind,
        reserve=reserve,
        need=need,
        unserved_cost=unserved_cost,
        surplus_cost=surplus_cost,
        reserve_cost=reserve_cost,
        power=power,
        batteries=batteries,
        content=content,
        common=common,
        segments=segments,
    )
    found: list[Schedule] = []
    bounds = [-math.inf]
    while not found or time.perf_counter() - started < time_limit:
        left = time_limit - (time.perf_counter() - started)
        result = model.program.solve(gap=gap / 2, time_limit=max(left, 0.1))
        if result.mip_dual_bound is not None:
            bounds.append(max(bounds[-1], float(result.mip_dual_bound)))
        if result.x is None:
            break
        found.append(schedule_of(model, np.asarray(result.x)))
        best = min(found, key=lambda schedule: schedule.cost)
        least = abs(best.cost) * gap, abs(best.cost) * 1e-9
        if best.cost - bounds[-1] <= least[0] or bounds[-1] - bounds[-2] <= least[1]:
            break
    if not found:
        raise _refusal(result, time_limit)
    if max(np.ndim(demand), np.ndim(wind), np.ndim(need)) < 2:
        hourly = ("power", "unserved", "surplus", "shortfall")
        best = replace(best, **{name: getattr(best, name)[0] for name in hourly})
    if len(best.on) == 1:
        best = replace(best, on=best.on[0], taken=best.taken[0])
    seconds = time.perf_counter() - started
    return replace(best, bound=bounds[-1], seconds=seconds)


def lower_bound(
    units: Units,
    demand: Any,
    wind: Any = 0.0,
    *,
    segments: int = 4,
    gap: float = 1e-3,
    time_limit: float = 60.0,
    **others: Any,
) -> float:
    """Return a cost in $ that no schedule goes below, sooner than a good schedule is found.

    It is at least that of the program without whole numbers, a fraction of a second's work, and
    what HiGHS proves within the time.

    Args:
        units: as for :func:`solve`.
        demand: likewise.
        wind: likewise.
        segments: likewise.
        gap: relative gap at which the search ends.
        time_limit: seconds of the search.
        others: further ones of :func:`solve`: reserve, need, power, batteries, and what
            violations cost.

    Raises:
        ValueError: shapes or numbers are wrong, or no schedule is allowed.

    Examples:
        >>> from hpo_torchrl.problems.unit_commitment import Units, kazarlis_demand, solve
        >>> from hpo_torchrl.problems.unit_commitment.optimum import lower_bound
        >>> day = {"units": Units.kazarlis(), "demand": kazarlis_demand()[:6], "reserve": 0.1}
        >>> bool(0.99 < lower_bound(**day) / solve(**day).cost <= 1.0)
        True
    """
    check_float("gap", gap, minimum=0.0)
    check_float("time_limit", time_limit, minimum=0.0, strict=True)
    program = _model(units, demand, wind, segments=segments, **others).program
    nothing = np.zeros(0, dtype=int)
    relaxed = program.solve(fixed=(nothing, nothing))
    if relaxed.x is None:
        raise _refusal(relaxed, time_limit)
    proved = program.solve(gap=gap, time_limit=time_limit).mip_dual_bound
    return max(float(relaxed.fun), -math.inf if proved is None else float(proved))


def _model(
    units: Units,
    demand: Any,
    wind: Any,
    *,
    reserve: float = 0.0,
    need: Any = None,
    unserved_cost: float | None = None,
    surplus_cost: float | None = None,
    reserve_cost: float | None = None,
    power: Any = None,
    batteries: Batteries | None = None,
    content: Any = None,
    common: int | None = None,
    segments: int,
) -> Model:
    """Return the program of what :func:`solve` is given."""
    return Model(
        units,
        _day(demand, wind, check_float("reserve", reserve, minimum=-1.0), need),
        costs=[
            math.inf if cost is None else check_float(name, cost, minimum=0.0)
            for name, cost in (
                ("unserved_cost", unserved_cost),
                ("surplus_cost", surplus_cost),
                ("reserve_cost", reserve_cost),
            )
        ],
        power=power,
        stores=None if batteries is None else _stores(batteries, content),
        common=None if common is None else check_int("common", common, minimum=0),
        segments=check_int("segments", segments, minimum=1),
    )


def _day(demand: Any, wind: Any, reserve: float, need: Any) -> Day:
    """Return demand, wind and need of S scenarios and T hours.

    Raises:
        ValueError: shapes disagree, or a number is negative, NaN or infinite.
    """
    demand, wind = np.asarray(demand, dtype=np.float64), np.asarray(wind, dtype=np.float64)
    given = {"demand": demand, "wind": wind}
    given |= {} if need is None else {"need": np.asarray(need, dtype=np.float64)}
    for name, array in given.items():
        if not (array.size and np.all(np.isfinite(array) & (array >= 0))):
            raise ValueError(
                f"{name} must hold finite powers of at least 0 MW, got {shown(array)}."
            )
    shapes = [array.shape for array in given.values()]
    try:
        shape = np.broadcast_shapes((1, 1), *shapes)
        agree = len(shape) == 2 and demand.ndim > 0
    except ValueError:
        agree = False
    if not agree:
        raise ValueError(
            f"{', '.join(given)} must have the shape (T,), or (S, T) for S scenarios, got "
            f"{', '.join(map(str, shapes))}."
        )
    demand, wind = np.broadcast_to(demand, shape), np.broadcast_to(wind, shape)
    least = np.maximum(0.0, (1 + reserve) * demand - wind)
    return Day(demand, wind, np.broadcast_to(given.get("need", least), shape))


def _stores(batteries: Batteries, content: Any) -> dict[str, np.ndarray]:
    """Return the numbers of batteries, and the energy in them at the start, ``(N,)`` each."""
    stores = {
        name: value.detach().cpu().double().numpy() for name, value in batteries._asdict().items()
    }
    capacity = stores["capacity"]
    initial = stores["initial_content"] * capacity
    stores["content"] = initial if content is None else np.asarray(content, dtype=np.float64)
    inside = stores["content"].shape == capacity.shape
    if not (
        inside and np.all((stores["content"] >= -1e-6) & (stores["content"] <= capacity + 1e-6))
    ):
        raise ValueError(
            f"content must hold an energy from 0 to the capacity for each of the {len(capacity)} "
            f"batteries, in MWh, got {shown(stores['content'])}."
        )
    return stores


def _refusal(result: Any, time_limit: float) -> Exception:
    """Return the error of a program without a solution."""
    if result.status == 2:
        return ValueError(
            "no schedule meets demand and reserve in every hour with these units. Give "
            "unserved_cost, surplus_cost and reserve_cost, so that they may be missed at a cost."
        )
    return RuntimeError(
        f"HiGHS found no schedule within time_limit={time_limit:g} seconds ({result.message}). "
        "Give it more, or fewer segments."
    )
