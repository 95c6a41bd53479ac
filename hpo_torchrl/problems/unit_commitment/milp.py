"""The cheapest schedule of a day by mixed-integer programming, with a certified lower bound."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from hpo_torchrl.core.checks import check_float, check_int, shown
from hpo_torchrl.problems.storage.batteries import CHARGE, DISCHARGE, IDLE, Batteries
from hpo_torchrl.problems.unit_commitment.linear_program import LinearProgram
from hpo_torchrl.problems.unit_commitment.units import Units


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which units run in each of T hours, what they give, what that costs, and the bound on it.

    With S scenarios of demand and wind, power and violations are those of each, ``(S, T, ...)``,
    and so is the commitment where they do not share it to the end; costs are means over them.

    Attributes:
        on: whether a unit is on, ``(T, G)``.
        power: in MW, ``(T, G)``.
        taken: power that batteries take, negative where they give it, in MW, ``(T, N)``.
        cost: fuel at its true, quadratic cost, starts, wear and violations, in $.
        bound: no schedule costs less, in $ (up to the tolerances of HiGHS).
        unserved, surplus: demand that is not met, and power that nothing takes, in MW, ``(T,)``.
        shortfall: reserve that lacks, in MW, ``(T,)``.
        seconds: time that it took.
    """

    on: np.ndarray
    power: np.ndarray
    taken: np.ndarray
    cost: float
    bound: float
    unserved: np.ndarray
    surplus: np.ndarray
    shortfall: np.ndarray
    seconds: float = math.nan

    @property
    def gap(self) -> float:
        """Relative distance of the cost to the bound."""
        return max(0.0, self.cost - self.bound) / max(abs(self.cost), 1e-9)

    @property
    def actions(self) -> tuple[np.ndarray, np.ndarray]:
        """Discrete and continuous actions of an environment, ``(T, G + N)``, or of scenarios."""
        taken = np.broadcast_to(self.taken, (*self.power.shape[:-1], self.taken.shape[-1]))
        mode = np.select([taken > 1e-9, taken < -1e-9], [CHARGE, DISCHARGE], IDLE)
        discrete = np.concatenate([np.broadcast_to(self.on, self.power.shape), mode], -1)
        return discrete, np.concatenate([self.power, np.abs(taken)], -1)


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
        found.append(model.schedule(np.asarray(result.x)))
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
        >>> from hpo_torchrl.problems.unit_commitment.milp import lower_bound
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
) -> _Model:
    """Return the program of what :func:`solve` is given."""
    return _Model(
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


def fuel_cost(units: Units, on: np.ndarray, power: np.ndarray) -> float:
    """Return the mean cost of fuel in $: commitment ``(C, T, G)``, powers ``(S, T, G)``."""
    hourly = units.fixed_cost + (units.linear_cost + units.quadratic_cost * power) * power
    return float((hourly * on).sum()) / len(power)


def start_cost(units: Units, on: np.ndarray) -> float:
    """Return the mean cost in $ of the starts of commitments ``(C, T, G)``."""
    hours, total = np.broadcast_to(units.initial_hours, on[:, 0].shape), 0.0
    hot = units.min_down + units.cold_hours
    for now in on.swapaxes(0, 1):
        starts = now & (hours < 0)
        total += np.where(-hours <= hot, units.hot_start_cost, units.cold_start_cost)[starts].sum()
        changed = now != (hours > 0)
        hours = np.where(changed, np.where(now, 1.0, -1.0), hours + np.sign(hours))
    return float(total) / len(on)


class _Day(NamedTuple):
    """Demand, wind and the capacity that must be on, in MW, ``(S, T)`` each."""

    demand: np.ndarray
    wind: np.ndarray
    need: np.ndarray


class _Model:
    """The linear program of K groups of alike units, T hours and S scenarios.

    There are C commitments: one, or one for each scenario. Arrays of one broadcast with those of S.

    Starts and stops of the hours before the first are variables with fixed values, so that no
    equation knows of a beginning.
    """

    def __init__(
        self,
        units: Units,
        day: _Day,
        *,
        costs: list[float],
        power: Any,
        stores: dict[str, np.ndarray] | None,
        common: int | None,
        segments: int,
    ) -> None:
        self.units, self.costs, self.program = units, costs, LinearProgram()
        self.S, self.T = day.demand.shape
        self.group = alike(units)
        self.first = np.unique(self.group, return_index=True)[1]
        self.size = np.bincount(self.group).astype(np.float64)
        self.C = 1 if common is None or common >= self.T else self.S
        self._commit()
        self.shared = common or 0
        self._share(self.on[..., 1:])
        self._share(self.start[..., self.past :])
        self._starts()
        self._give(power)
        self.taken: list[np.ndarray] = []
        self.charges: list[np.ndarray] = []
        if stores is not None:
            self._store(stores)
        self._meet(day)
        self._tangents(segments)

    def of(self, name: str) -> np.ndarray:
        """Return a number of the units for each group, ``(K,)``."""
        return getattr(self.units, name)[self.first]

    def _commit(self) -> None:
        """Units on, starts and stops: minimum times up and down."""
        units, program, K = self.units, self.program, len(self.size)
        hours = units.initial_hours
        past = int(max(units.min_up.max(), (units.min_down + units.cold_hours).max()))
        self.past = past  # hours before the first that starts and stops have
        began = np.zeros((2, K, past))
        for sign, table in zip((1, -1), began, strict=True):
            seen = (hours * sign > 0) & (hours * sign <= past)
            place = past - (hours * sign)[seen].astype(int)
            np.add.at(table, (self.group[seen], place), 1.0)
        was_on = np.bincount(self.group, hours > 0, minlength=K)[:, None]
        low, quadratic = self.of("min_power"), self.of("quadratic_cost")
        hourly = self.of("fixed_cost") + (self.of("linear_cost") + quadratic * low) * low
        self.on = self._counts(was_on, self.of("must_run") * self.size, hourly)
        self.start = self._counts(began[0], 0 * low, self.of("cold_start_cost"))
        self.stop = self._counts(began[1], 0 * low, 0 * low)
        shape = self.C, K, self.T
        change = program.rows(shape, low=0.0, high=0.0)
        program.put(change, self.on[..., 1:], 1.0)
        program.put(change, self.on[..., :-1], -1.0)
        program.put(change, self.start[..., past:], -1.0)
        program.put(change, self.stop[..., past:], 1.0)
        # Who started within the last min_up hours is on; who stopped within min_down is off.
        stays_on = program.rows(shape, high=0.0)
        program.put(stays_on[..., None], self.start[..., None, :], self._within("min_up"))
        program.put(stays_on, self.on[..., 1:], -1.0)
        stays_off = program.rows(shape, high=self.size[:, None])
        program.put(stays_off[..., None], self.stop[..., None, :], self._within("min_down"))
        program.put(stays_off, self.on[..., 1:], 1.0)

    def _counts(self, known: np.ndarray, least: np.ndarray, cost: np.ndarray) -> np.ndarray:
        """Add numbers of units by group and hour: known ones, then at least so many, at a cost."""
        shape = len(self.size), self.T
        low, high, each = (np.broadcast_to(x[:, None], shape) for x in (least, self.size, cost))
        return self.program.variables(
            (self.C, shape[0], known.shape[1] + self.T),
            low=np.hstack([known, low]),
            high=np.hstack([known, high]),
            cost=np.hstack([0 * known, each]) / self.C,
            integer=True,
        )

    def _share(self, variable: np.ndarray) -> None:
        """Let all scenarios decide the same, ``(C, ..., T)``, in the first hours."""
        first = variable[..., : self.shared]
        rows = self.program.rows((self.C - 1, *first.shape[1:]), low=0.0, high=0.0)
        self.program.put(rows, first[1:], 1.0)
        self.program.put(rows, first[:1], -1.0)

    def _ago(self) -> np.ndarray:
        """Return how many hours before an hour, ``(T, 1)``, another one is, ``(T, past + T)``."""
        return np.arange(self.T)[:, None] - np.arange(-self.past, self.T)

    def _within(self, name: str) -> np.ndarray:
        """Return 1 for the hours of a minimum time that ends now, else 0, ``(K, T, past + T)``."""
        ago = self._ago()
        return ((ago >= 0) & (ago < self.of(name)[:, None, None])).astype(np.float64)

    def _starts(self) -> None:
        """Match hot starts with stops: each start and each stop at most once."""
        program, ago = self.program, self._ago()
        down = self.of("min_down")[:, None, None]
        saved = self.of("cold_start_cost") - self.of("hot_start_cost")
        hot = (ago >= down) & (ago <= down + self.of("cold_hours")[:, None, None])
        k, t, s = np.nonzero(hot & (saved > 0)[:, None, None])
        match = program.variables((self.C, len(k)), cost=-saved[k] / self.C)
        for at, variable in ((self.past + t, self.start), (s, self.stop)):
            rows = program.rows(variable.shape, high=0.0)
            program.put(rows[:, k, at], match, 1.0)
            program.put(rows, variable, -1.0)

    def _give(self, before: Any) -> None:
        """Power above the minimum, and its ramps."""
        program, K, units = self.program, len(self.size), self.units
        low, high = self.of("min_power"), self.of("max_power")
        price = self.of("linear_cost") + 2 * self.of("quadratic_cost") * low
        self.above = program.variables((self.S, K, self.T), cost=price[:, None] / self.S)
        rows = program.rows(self.above.shape, high=0.0)
        program.put(rows, self.above, 1.0)
        program.put(rows, self.on[..., 1:], (low - high)[:, None])
        if before is not None:
            before = np.asarray(before, dtype=np.float64)
            if before.shape != (len(units),) or not np.isfinite(before).all():
                raise ValueError(
                    f"power must hold a finite number for each of the {len(units)} units, got "
                    f"{shown(before)}."
                )
            before = np.where(units.initial_hours > 0, before, 0.0)
        for k in np.flatnonzero(_ramped(units)[self.first]):
            unit = self.first[k]
            known = before is not None or units.initial_hours[unit] < 0
            given = 0.0 if before is None else float(before[unit])
            self._ramp(int(k), (given, given) if known else (0.0, float(high[k])))

    def _ramp(self, k: int, past_ends: tuple[float, float]) -> None:
        """Limit the change of a unit's power; it may stop from any.

        With u[t] - start[t] being 1 in an hour on after an hour on, the limits are::

            p[t] - p[t-1] <= ramp_up (u[t] - start[t]) + max(min_power, ramp_up) start[t]
            p[t-1] - p[t] <= ramp_down (u[t] - start[t]) + max_power stop[t]
        """
        program, unit = self.program, self.first[k]
        low, high = float(self.units.min_power[unit]), float(self.units.max_power[unit])
        up, down = (
            min(float(part[unit]), high) for part in (self.units.ramp_up, self.units.ramp_down)
        )
        # The power of the hour before the first is one more variable.
        past = program.variables((self.S, 1), low=past_ends[0], high=past_ends[1])
        start, stop = (part[:, k, -self.T :] for part in (self.start, self.stop))
        rise, fall = (program.rows((self.S, self.T), high=0.0) for _ in range(2))
        for rows, sign, limit in ((rise, 1.0, up), (fall, -1.0, down)):
            program.put(rows, self.above[:, k], sign)
            program.put(rows, self.on[:, k, 1:], sign * low - limit)
            program.put(rows[:, 1:], self.above[:, k, :-1], -sign)
            program.put(rows[:, 1:], self.on[:, k, 1:-1], -sign * low)
            program.put(rows[:, :1], past, -sign)
        program.put(rise, start, up - max(low, up))
        program.put(fall, start, down)
        program.put(fall, stop, -high)

    def _store(self, stores: dict[str, np.ndarray]) -> None:
        """Batteries: content from hour to hour, and either charging or discharging."""
        program, shape = self.program, (self.C, len(stores["capacity"]), self.T)
        of = {name: value[:, None] for name, value in stores.items()}
        self.wear = stores["wear_cost"]
        cost = of["wear_cost"] / self.C
        charge, discharge = self.taken = [program.variables(shape, cost=cost) for _ in range(2)]
        charges = program.variables(shape, high=1.0, integer=True)
        self.charges = [charges]
        rows = program.rows(shape, high=0.0)
        program.put(rows, charge, 1.0)
        program.put(rows, charges, -of["charge_rating"])
        rows = program.rows(shape, high=of["discharge_rating"])
        program.put(rows, discharge, 1.0)
        program.put(rows, charges, of["discharge_rating"])
        kept = 1 - of["self_discharge"]
        known = np.zeros(shape[1:])
        known[:, 0] = (kept * of["content"])[:, 0]
        content = program.variables(shape, high=of["capacity"])
        rows = program.rows(shape, low=known, high=known)
        program.put(rows, content, 1.0)
        program.put(rows[..., 1:], content[..., :-1], -kept)
        program.put(rows, charge, -of["charge_efficiency"])
        program.put(rows, discharge, 1 / of["discharge_efficiency"])
        for variable in (charge, discharge):
            self._share(variable)

    def _meet(self, day: _Day) -> None:
        """Balance and reserve, with what they may lack."""
        program, shape = self.program, day.demand.shape
        self.violations = [
            program.variables(shape, cost=cost / self.S) if cost < math.inf else None
            for cost in self.costs
        ]
        unserved, surplus, shortfall = self.violations
        # Wind between none and all of it is what lies between the two ends.
        rows = program.rows(shape, low=day.demand - day.wind, high=day.demand)
        program.put(rows[:, None], self.above, 1.0)
        program.put(rows[:, None], self.on[..., 1:], self.of("min_power")[:, None])
        for sign, taken in zip((-1.0, 1.0), self.taken, strict=False):
            program.put(rows[:, None], taken, sign)
        if unserved is not None:
            program.put(rows, unserved, 1.0)
        if surplus is not None:
            program.put(rows, surplus, -1.0)
        rows = program.rows(shape, low=day.need)
        program.put(rows[:, None], self.on[..., 1:], self.of("max_power")[:, None])
        if shortfall is not None:
            program.put(rows, shortfall, 1.0)

    def _tangents(self, segments: int) -> None:
        """Quadratic cost of the power above the minimum: its tangents at even distances.

        Tangents h apart, the first one flat, leave at most c h² / 4 of the cost out. A unit takes
        as many as keep that below what ``segments`` leave of the worst one.
        """
        self.extra = self.program.variables(self.above.shape, cost=1.0 / self.S)
        quadratic, reach = self.of("quadratic_cost"), self.of("max_power") - self.of("min_power")
        weight = np.sqrt(quadratic) * reach
        number = np.ceil(segments * weight / max(weight.max(), 1e-12)).astype(int)
        place = np.indices(self.above.shape).reshape(3, -1)
        for i in range(1, number.max() + 1):
            s, k, t = place[:, number[place[1]] >= i]
            self._touch(self.program, (s, k, t), reach[k] * i / (number[k] + 0.5))

    def _touch(
        self, program: LinearProgram, place: tuple[np.ndarray, ...], point: np.ndarray
    ) -> None:
        """Add tangents at points of scenarios, groups and hours: ``z >= c (2 q r - q² u)``."""
        s, k, t = place
        slope = self.of("quadratic_cost")[k] * point
        rows = program.rows(point.shape, low=0.0)
        program.put(rows, self.extra[place], 1.0)
        program.put(rows, self.above[place], -2 * slope)
        program.put(rows, self.on[s % self.C, k, t + 1], slope * point)

    def schedule(self, values: np.ndarray) -> Schedule:
        """Return the schedule of a solution, with the best powers for its commitment."""
        values = self._dispatched(values)
        on = self._each_unit(values)
        power = self._powers(values, on)
        none = np.zeros((self.S, self.T))
        unserved, surplus, shortfall = violations = [
            none if part is None else values[part] for part in self.violations
        ]
        penalty = sum(
            cost * float(part.sum()) / self.S
            for cost, part in zip(self.costs, violations, strict=True)
            if cost < math.inf
        )
        taken = np.zeros((self.C, self.T, 0))
        if self.taken:
            charge, discharge = (values[part].swapaxes(1, 2) for part in self.taken)
            taken = charge - discharge
            penalty += float((self.wear * (charge + discharge)).sum()) / self.C
        cost = fuel_cost(self.units, on, power) + start_cost(self.units, on) + penalty
        return Schedule(on, power, taken, cost, -math.inf, unserved, surplus, shortfall)

    def _dispatched(self, values: np.ndarray) -> np.ndarray:
        """Return the values with the powers that are best for their commitment.

        The powers are exact when tangents and fuel agree to 1e-9 of the cost. The program keeps
        the last tangents: those before them are all but parallel to them.
        """
        whole = (self.on, self.start, self.stop, *self.charges)
        held = np.concatenate([part.ravel() for part in whole])
        fixed, program = (held, np.round(values[held])), self.program.copy()
        touched = np.zeros(self.above.shape, dtype=bool)
        for _ in range(30):
            result = program.solve(fixed=fixed)
            if result.x is None:
                raise RuntimeError(f"HiGHS found no powers for its commitment: {result.message}")
            values = np.asarray(result.x)
            above, least = values[self.above], 1e-9 * abs(result.fun)
            point = above / np.maximum(np.round(values[self.on[..., 1:]]), 1.0)
            missing = self.of("quadratic_cost")[:, None] * point * above - values[self.extra]
            if missing.sum() / self.S <= least:
                break
            wrong = missing > 0.1 * least / missing.size
            self._touch(program, np.nonzero(wrong), point[wrong])
            touched |= wrong
        self._touch(self.program, np.nonzero(touched), point[touched])
        return values

    def _each_unit(self, values: np.ndarray) -> np.ndarray:
        """Return which units are on, ``(C, T, G)``: those of a group take turns.

        Of those that may stop, those that have run longest do. Of those that may start, the one
        that is next to grow cold does.
        """
        units, hot = self.units, self.units.min_down + self.units.cold_hours
        starts, stops = (
            np.round(values[part[..., self.past :]]).astype(int) for part in (self.start, self.stop)
        )
        on = np.zeros((self.C, self.T, len(units)), dtype=bool)
        for c, k in np.ndindex(self.C, len(self.size)):
            members = np.flatnonzero(self.group == k)
            hours = units.initial_hours[members].copy()
            for t in range(self.T):
                run, off = np.flatnonzero(hours > 0), np.flatnonzero(hours < 0)
                off = off[-hours[off] >= units.min_down[members[off]]]
                cold = -hours[off] > hot[members[off]]
                stop = run[np.argsort(-hours[run], kind="stable")][: stops[c, k, t]]
                start = off[np.lexsort((hours[off], cold))][: starts[c, k, t]]
                hours += np.sign(hours)
                hours[stop], hours[start] = -1, 1
                on[c, t, members] = hours > 0
        return on

    def _powers(self, values: np.ndarray, on: np.ndarray) -> np.ndarray:
        """Return the powers of all units, ``(S, T, G)``; those of a group give the same."""
        number = np.maximum(np.round(values[self.on[..., 1:]]), 1.0)
        share = np.clip(values[self.above] / number, 0.0, None)[:, self.group].swapaxes(1, 2)
        reach = self.units.max_power - self.units.min_power
        return np.where(on, self.units.min_power + np.minimum(share, reach), 0.0)


def alike(units: Units) -> np.ndarray:
    """Return the group of each unit, ``(G,)``: alike in all but name and state, without ramps."""
    kinds = {field.name for field in fields(units)} - {"names", "initial_hours"}
    table = np.stack([getattr(units, name) for name in sorted(kinds)], -1)
    number = np.where(_ramped(units), np.arange(1, len(units) + 1), 0)
    return np.unique(np.column_stack([table, number]), axis=0, return_inverse=True)[1].reshape(-1)


def _ramped(units: Units) -> np.ndarray:
    """Return which units have a ramp, ``(G,)``."""
    return np.isfinite(np.minimum(units.ramp_up, units.ramp_down))


def _day(demand: Any, wind: Any, reserve: float, need: Any) -> _Day:
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
    return _Day(demand, wind, np.broadcast_to(given.get("need", least), shape))


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
