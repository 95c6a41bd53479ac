"""A schedule of a day, what it truly costs, and how it is read off a solution of the program."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpo_torchrl.problems.storage.batteries import CHARGE, DISCHARGE, IDLE
from hpo_torchrl.problems.unit_commitment.formulation import Model
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


def schedule_of(model: Model, values: np.ndarray) -> Schedule:
    """Return the schedule of a solution, with the best powers for its commitment."""
    values = _dispatched(model, values)
    on = _each_unit(model, values)
    power = _powers(model, values, on)
    none = np.zeros((model.S, model.T))
    unserved, surplus, shortfall = violations = [
        none if part is None else values[part] for part in model.violations
    ]
    penalty = sum(
        cost * float(part.sum()) / model.S
        for cost, part in zip(model.costs, violations, strict=True)
        if cost < math.inf
    )
    taken = np.zeros((model.C, model.T, 0))
    if model.taken:
        charge, discharge = (values[part].swapaxes(1, 2) for part in model.taken)
        taken = charge - discharge
        penalty += float((model.wear * (charge + discharge)).sum()) / model.C
    cost = fuel_cost(model.units, on, power) + start_cost(model.units, on) + penalty
    return Schedule(on, power, taken, cost, -math.inf, unserved, surplus, shortfall)


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


def _dispatched(model: Model, values: np.ndarray) -> np.ndarray:
    """Return the values with the powers that are best for their commitment.

    The powers are exact when tangents and fuel agree to 1e-9 of the cost. The program keeps
    the last tangents: those before them are all but parallel to them.
    """
    whole = (model.on, model.start, model.stop, *model.charges)
    held = np.concatenate([part.ravel() for part in whole])
    fixed, program = (held, np.round(values[held])), model.program.copy()
    touched = np.zeros(model.above.shape, dtype=bool)
    for _ in range(30):
        result = program.solve(fixed=fixed)
        if result.x is None:
            raise RuntimeError(f"HiGHS found no powers for its commitment: {result.message}")
        values = np.asarray(result.x)
        above, least = values[model.above], 1e-9 * abs(result.fun)
        point = above / np.maximum(np.round(values[model.on[..., 1:]]), 1.0)
        missing = model.of("quadratic_cost")[:, None] * point * above - values[model.extra]
        if missing.sum() / model.S <= least:
            break
        wrong = missing > 0.1 * least / missing.size
        model.touch(program, np.nonzero(wrong), point[wrong])
        touched |= wrong
    model.touch(model.program, np.nonzero(touched), point[touched])
    return values


def _each_unit(model: Model, values: np.ndarray) -> np.ndarray:
    """Return which units are on, ``(C, T, G)``: those of a group take turns.

    Of those that may stop, those that have run longest do. Of those that may start, the one
    that is next to grow cold does.
    """
    units, hot = model.units, model.units.min_down + model.units.cold_hours
    starts, stops = (
        np.round(values[part[..., model.past :]]).astype(int) for part in (model.start, model.stop)
    )
    on = np.zeros((model.C, model.T, len(units)), dtype=bool)
    for c, k in np.ndindex(model.C, len(model.size)):
        members = np.flatnonzero(model.group == k)
        hours = units.initial_hours[members].copy()
        for t in range(model.T):
            run, off = np.flatnonzero(hours > 0), np.flatnonzero(hours < 0)
            off = off[-hours[off] >= units.min_down[members[off]]]
            cold = -hours[off] > hot[members[off]]
            stop = run[np.argsort(-hours[run], kind="stable")][: stops[c, k, t]]
            start = off[np.lexsort((hours[off], cold))][: starts[c, k, t]]
            hours += np.sign(hours)
            hours[stop], hours[start] = -1, 1
            on[c, t, members] = hours > 0
    return on


def _powers(model: Model, values: np.ndarray, on: np.ndarray) -> np.ndarray:
    """Return the powers of all units, ``(S, T, G)``; those of a group give the same."""
    number = np.maximum(np.round(values[model.on[..., 1:]]), 1.0)
    share = np.clip(values[model.above] / number, 0.0, None)[:, model.group].swapaxes(1, 2)
    reach = model.units.max_power - model.units.min_power
    return np.where(on, model.units.min_power + np.minimum(share, reach), 0.0)
