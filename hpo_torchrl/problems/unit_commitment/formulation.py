"""The mixed-integer program of a day: alike units in groups, tangents for the cost of fuel."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from hpo_torchrl.core.checks import shown
from hpo_torchrl.problems.unit_commitment.linear_program import LinearProgram
from hpo_torchrl.problems.unit_commitment.units import Units


class Day(NamedTuple):
    """Demand, wind and the capacity that must be on, in MW, ``(S, T)`` each."""

    demand: np.ndarray
    wind: np.ndarray
    need: np.ndarray


class Model:
    """The linear program of K groups of alike units, T hours and S scenarios.

    There are C commitments: one, or one for each scenario. Arrays of one broadcast with those of S.

    Starts and stops of the hours before the first are variables with fixed values, so that no
    equation knows of a beginning.

    Attributes:
        group: the number of each unit's group, ``(G,)``.
        on: variables that count the units on, from the hour before the first, ``(C, K, 1 + T)``.
        start, stop: those that count starts and stops, ``(C, K, past + T)``.
        above, extra: power above the minimum and its quadratic cost, ``(S, K, T)``.
        taken: what batteries charge and discharge, ``(C, N, T)`` each; empty without batteries.
        charges: whether they charge, likewise.
        violations: unserved, surplus and shortfall, ``(S, T)``; None where they are forbidden.
    """

    def __init__(
        self,
        units: Units,
        day: Day,
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

    def _meet(self, day: Day) -> None:
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
            self.touch(self.program, (s, k, t), reach[k] * i / (number[k] + 0.5))

    def touch(
        self, program: LinearProgram, place: tuple[np.ndarray, ...], point: np.ndarray
    ) -> None:
        """Add tangents at points of scenarios, groups and hours: ``z >= c (2 q r - q² u)``."""
        s, k, t = place
        slope = self.of("quadratic_cost")[k] * point
        rows = program.rows(point.shape, low=0.0)
        program.put(rows, self.extra[place], 1.0)
        program.put(rows, self.above[place], -2 * slope)
        program.put(rows, self.on[s % self.C, k, t + 1], slope * point)


def alike(units: Units) -> np.ndarray:
    """Return the group of each unit, ``(G,)``: alike in all but name and state, without ramps."""
    kinds = {field.name for field in fields(units)} - {"names", "initial_hours"}
    table = np.stack([getattr(units, name) for name in sorted(kinds)], -1)
    number = np.where(_ramped(units), np.arange(1, len(units) + 1), 0)
    return np.unique(np.column_stack([table, number]), axis=0, return_inverse=True)[1].reshape(-1)


def _ramped(units: Units) -> np.ndarray:
    """Return which units have a ramp, ``(G,)``."""
    return np.isfinite(np.minimum(units.ramp_up, units.ramp_down))
