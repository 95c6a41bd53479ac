"""Unit commitment as an environment: which units run in each hour of a day."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpo_torchrl.core.categorical import BranchBounds
from hpo_torchrl.core.checks import check_choice, check_float, check_int
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.envs.differentiable import Action, DifferentiableEnv, State
from hpo_torchrl.problems.storage.batteries import Batteries
from hpo_torchrl.problems.unit_commitment.days import Days
from hpo_torchrl.problems.unit_commitment.dispatch import economic_dispatch, merit_order
from hpo_torchrl.problems.unit_commitment.rules import PriorityList
from hpo_torchrl.problems.unit_commitment.units import Units
from hpo_torchrl.problems.unit_commitment.views import UnitViews

DISPATCHES = ("economic", "learned")
# Hours on or off are counted up to so many at least; observed in units of so many.
_MOST_HOURS, _HOURS_UNIT = 48.0, 8.0


class UnitCommitmentEnv(DifferentiableEnv):
    r"""Thermal units that are switched on and off hour by hour, to serve demand beside wind.

    In hour t each of the G units is on or off (the discrete action, one head for each unit), as
    minimum up and down times allow (the mask). Those that are on share the load; the cost is

    .. math::
        \sum_i u_i (a_i + b_i p_i + c_i p_i^2) + \text{starts} + \text{penalties},

    where a start after more than ``min_down + cold_hours`` hours off is a cold one. With demand D
    and wind W, powers are to add up to D - W, of which wind may be curtailed for nothing; what is
    missing is ``unserved``, what is too much even without wind ``surplus``. The capacity that is on
    must cover ``(1 + reserve) D - W``, as far as they can be foreseen; what it lacks is
    ``reserve``. The three are penalised, and reported apart from the cost.

    Dispatch is *economic*: the cheapest powers of the units that are on, in closed form
    (:func:`~hpo_torchrl.problems.unit_commitment.dispatch.economic_dispatch`). Or it is *learned*:
    the continuous action is the power that each unit should give, and the powers that add up to the
    load are those of the least squared distance from them. Where ramps bind, the first is
    short-sighted.

    Batteries, if there are any, have a head each behind those of the units: idle, charge or
    discharge, and at what power (:class:`~hpo_torchrl.problems.storage.batteries.Batteries`). What
    they take adds to the load. They count for no reserve, and what is left in them at the end of
    the day is worth nothing.

    An episode is a day of ``horizon`` hours from ``initial_hours`` on; forecasts are made before
    it, see :class:`~hpo_torchrl.problems.unit_commitment.days.Days`. The commitment of an hour is
    decided before its demand and wind are known, the dispatch after. Nothing counts after the last
    hour.

    The state is ``"hours"``, ``(*B, G)``: hours for which each unit has been on, negative if off;
    ``"demand"`` and ``"wind"``, ``(*B, T)``: the forecasts of the coming hours, 0 beyond the end of
    the day; ``"error"``, ``(*B, 2)``: by how much they were missed in the last hour; and with ramps
    ``"power"``, ``(*B, G)``, with batteries ``"content"``, ``(*B, N)`` in MWh. The
    ``"observation"`` holds the hours, the need of capacity and the load to be expected, in shares
    of the capacity of all units, the time, and then power and content in shares of their limits.

    Gradients flow through dispatch, and with ramps and batteries along powers and contents.
    Guards: a unit that is not allowed to start or to stop stays as it is; powers stop at their
    limits, where no gradient passes.

    Args:
        units: :class:`~hpo_torchrl.problems.unit_commitment.Units`, the path of a table of them
            (:meth:`Units.read`), or ``None`` for the classical ones.
        num_units: number of the classical units.
        demand: see :meth:`Days.of`.
        wind: likewise.
        horizon: hours of a day.
        reserve: share of the demand by which capacity must exceed it.
        unserved_cost, surplus_cost: penalties in $/MWh.
        reserve_cost: penalty in $ for each MW that is missing in an hour.
        dispatch: ``"economic"`` or ``"learned"``.
        batteries: arguments of ``Batteries.of``, with their ``number``; ``None`` has none.
        wind_capacity, day_spread, demand_error, wind_error, error_kept: see :class:`Days`.
        others: ``batch_size``, ``device``, ``dtype`` and ``seed`` of :class:`DifferentiableEnv`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or the units cannot serve the demand.

    Examples:
        >>> from hpo_torchrl.problems import UnitCommitmentEnv
        >>> env = UnitCommitmentEnv(num_units=10, batch_size=4, seed=0)
        >>> day = env.rollout(24)
        >>> day["action", "discrete"].shape, day["next", "reward"].shape
        (torch.Size([4, 24, 10]), torch.Size([4, 24, 1]))
    """

    horizon: int
    num_heads: int

    def __init__(
        self,
        units: Units | str | Path | None = None,
        *,
        num_units: int = 10,
        demand: Any = None,
        wind: Any = None,
        horizon: int = 24,
        reserve: float = 0.1,
        unserved_cost: float = 1000.0,
        surplus_cost: float = 1000.0,
        reserve_cost: float = 1000.0,
        dispatch: str = "economic",
        batteries: Mapping[str, Any] | None = None,
        wind_capacity: float = 0.0,
        day_spread: float = 0.0,
        demand_error: float = 0.0,
        wind_error: float = 0.0,
        error_kept: float = 0.9,
        **others: Any,
    ) -> None:
        check_int("horizon", horizon, minimum=1)
        if units is None:
            units = Units.kazarlis(num_units)
        self.units = units if isinstance(units, Units) else Units.read(units)
        G = len(self.units)
        self.days = Days.of(
            self.units,
            demand,
            wind,
            horizon,
            wind_capacity=wind_capacity,
            day_spread=day_spread,
            demand_error=demand_error,
            wind_error=wind_error,
            error_kept=error_kept,
        )
        self.reserve = check_float("reserve", reserve, minimum=0.0, maximum=1.0)
        self.penalties = {
            name: check_float(f"{name}_cost", cost, minimum=0.0)
            for name, cost in {
                "unserved": unserved_cost,
                "surplus": surplus_cost,
                "reserve": reserve_cost,
            }.items()
        }
        self.learned_dispatch = check_choice("dispatch", dispatch, DISPATCHES) == "learned"
        self.ramped = bool(np.isfinite([self.units.ramp_up, self.units.ramp_down]).any())
        self.capacity = float(self.units.max_power.sum())
        # Beyond these, no further hour changes what a unit may do and what its start costs.
        cold = self.units.min_down + self.units.cold_hours + 1
        self.most_hours = max(_MOST_HOURS, float(cold.max()), float(self.units.min_up.max()))
        self._check_capacity()
        self.batteries = None if batteries is None else _batteries(**batteries)
        N = 0 if self.batteries is None else len(self.batteries.capacity)
        states = {"hours": (G,), "demand": (horizon,), "wind": (horizon,), "error": (2,)}
        states |= {"power": (G,)} if self.ramped else {}
        states |= {"content": (N,)} if N else {}
        scale = [*(self.units.max_power / 2)]
        if self.batteries is not None:
            scale += [*(self.batteries.charge_rating / 2).tolist()]
        super().__init__(
            num_discrete=3 if N else 2,
            num_heads=G + N,
            continuous_dim=G + N,
            branch_bounds=self._branch_bounds(),
            action_scale=scale,
            state_shapes=states,
            observation_dim=G + 2 * horizon + 1 + G * self.ramped + N,
            noise_shape=(2,),
            horizon=horizon,
            horizon_terminates=True,
            **others,
        )
        place: dict[str, Any] = {"dtype": self.float_dtype, "device": self.device}
        if self.batteries is not None:
            self.batteries = Batteries(*(part.to(**place) for part in self.batteries))
        self.units_table = {
            name: torch.as_tensor(value, **place)
            for name, value in vars(self.units).items()
            if name not in ("names", "must_run")
        }
        self._must_run = torch.as_tensor(self.units.must_run, device=self.device)
        costs = (self.units_table["linear_cost"], self.units_table["quadratic_cost"])
        self.order = merit_order(
            self.units_table["min_power"], self.units_table["max_power"], *costs
        )

    # -- the equations -------------------------------------------------------------------------

    def dynamics(self, state: State, action: Action, noise: Tensor) -> tuple[dict, Tensor]:
        """Take one hour; the equations stand in the class docstring.

        Args:
            state: the entries of the class docstring.
            action: ``"discrete"`` ``(*B, G + N)``, of units 1 is on, of batteries 1 charges and 2
                discharges; ``"continuous"`` ``(*B, G + N)`` in MW.
            noise: of the forecast errors, ``(*B, 2)``.

        Returns:
            The next state and the reward ``(*B,)``, in $ an hour.
        """
        after, parts = self.hour(state, action, noise)
        cost = (parts["fuel"] + parts["starts"]).sum(-1) + parts["wear"]
        for name, penalty in self.penalties.items():
            cost = cost + penalty * parts[name]
        return after, -cost

    def hour(self, state: State, action: Action, noise: Tensor) -> tuple[dict, dict[str, Tensor]]:
        """Return the next state, and what :meth:`dynamics` adds up, by name.

        Of the units, ``(*B, G)``: ``"on"``, bool; ``"power"`` in MW; ``"fuel"`` and ``"starts"``
        in $. Of the batteries: ``"taken"`` from the grid in MW, ``(*B, N)``, and ``"wear"`` of all,
        ``(*B,)`` in $. In all, ``(*B,)`` in MW: ``"demand"`` and ``"wind"`` as they came, the
        ``"need"`` of capacity; ``"unserved"``, ``"surplus"`` and ``"reserve"`` (what lacks of it).
        """
        hours, units, G = state["hours"], self.units_table, len(self.units)
        on = self.committed(hours, action["discrete"][..., :G])
        running = on.to(hours.dtype)
        off = -hours
        cold = off > units["min_down"] + units["cold_hours"]
        start = torch.where(cold, units["cold_start_cost"], units["hot_start_cost"])
        starts = start * (on & (hours < 0))

        foreseen = self.days.expected(state["demand"], state["wind"], state["error"])
        need = self.need(*foreseen)[..., 0]
        short = (need - (running * units["max_power"]).sum(-1)).clamp_min(0.0)
        error = self.days.next_error(state["error"], noise)
        demand, wind = self.days.actual(state["demand"][..., 0], state["wind"][..., 0], error)

        taken, wear, kept = self._store(state, action)
        low, high = self._limits(state, running)
        least, most = (running * low).sum(-1), (running * high).sum(-1)
        asked = demand + taken.sum(-1)
        load = (asked - wind).maximum(least.minimum(asked))  # wind is curtailed for nothing
        power = self._dispatch(load, running, low, high, action["continuous"][..., :G])
        fuel = running * units["fixed_cost"] + power * (
            units["linear_cost"] + units["quadratic_cost"] * power
        )
        parts = {
            "on": on,
            "power": power,
            "fuel": fuel,
            "starts": starts,
            "taken": taken,
            "wear": wear,
            "demand": demand,
            "wind": wind,
            "need": need,
            "unserved": (load - most).clamp_min(0.0),
            "surplus": (least - load).clamp_min(0.0),
            "reserve": short,
        }
        count = torch.where(on, hours.clamp_min(0.0) + 1, hours.clamp_max(0.0) - 1)
        after = {
            "hours": count.clamp(-self.most_hours, self.most_hours),
            "demand": _shifted(state["demand"]),
            "wind": _shifted(state["wind"]),
            "error": error,
        }
        return after | ({"power": power} if self.ramped else {}) | kept, parts

    def _store(self, state: State, action: Action) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return what batteries take and their wear, and their content after the hour."""
        if self.batteries is None:
            none = state["hours"][..., :0]
            return none, none.sum(-1), {}
        mode, power = (action[key][..., len(self.units) :] for key in ("discrete", "continuous"))
        flow = self.batteries.step(state["content"], mode, power, 1.0)
        return flow.power, flow.wear.sum(-1), {"content": flow.content}

    def _branch_bounds(self) -> BranchBounds:
        """Powers of units that are on, where they are learned, and of batteries by their mode."""
        units, stores = self.units, self.batteries
        G, choices = len(units), 2 if stores is None else 3
        low, high = np.zeros((2, G, choices))
        if self.learned_dispatch:
            low[:, 1], high[:, 1] = units.min_power, units.max_power
        if stores is not None:
            none = np.zeros(len(stores.capacity))
            ends = (none, stores.charge_rating.numpy(), stores.discharge_rating.numpy())
            low = np.concatenate([low, np.stack([none] * 3, -1)])
            high = np.concatenate([high, np.stack(ends, -1)])
        return BranchBounds(low[..., None].tolist(), high[..., None].tolist())

    def committed(self, hours: Tensor, wish: Tensor) -> Tensor:
        """Return which units are on, bool ``(*B, G)``, where some may not start or stop."""
        may_stop, may_start = self._may(hours)
        return torch.where(hours > 0, (wish > 0) | ~may_stop, (wish > 0) & may_start)

    def _may(self, hours: Tensor) -> tuple[Tensor, Tensor]:
        may_stop = (hours >= self.units_table["min_up"]) & ~self._must_run
        return may_stop, -hours >= self.units_table["min_down"]

    def need(self, demand: Tensor, wind: Tensor) -> Tensor:
        """Return the capacity that must be on, in MW."""
        return ((1 + self.reserve) * demand - wind).clamp_min(0.0)

    def _limits(self, state: State, running: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.units_table["min_power"], self.units_table["max_power"]
        if not self.ramped:
            return low, high
        before, was_on = state["power"], state["hours"] > 0
        up, down = self.units_table["ramp_up"], self.units_table["ramp_down"]
        high = torch.minimum(high, torch.where(was_on, before + up, torch.maximum(low, up)))
        low = torch.where(was_on, torch.maximum(low, before - down), low).minimum(high)
        return low, high

    def _dispatch(
        self, load: Tensor, running: Tensor, low: Tensor, high: Tensor, wish: Tensor
    ) -> Tensor:
        order = self.order
        if self.learned_dispatch:
            # The least sum of (p - wish)^2 / 2 has marginal costs p - wish.
            order = merit_order(
                low.expand_as(wish), high.expand_as(wish), -wish, torch.full_like(wish, 0.5)
            )
        elif self.ramped:
            costs = (self.units_table["linear_cost"], self.units_table["quadratic_cost"])
            order = merit_order(low, high, *(cost.expand_as(low) for cost in costs))
        return economic_dispatch(load, running, order)

    def allowed(self, state: State) -> Tensor:
        """Say which units may be off and which on, bool ``(*B, G, 2)``; batteries may do all."""
        hours = state["hours"]
        may_stop, may_start = self._may(hours)
        units = torch.stack([(hours < 0) | may_stop, (hours > 0) | may_start], -1)
        if self.batteries is None:
            return units
        units = torch.cat([units, torch.zeros_like(units[..., :1])], -1)
        stores = torch.ones_like(state["content"], dtype=torch.bool)
        return torch.cat([units, stores.unsqueeze(-1).expand(*stores.shape, 3)], -2)

    def observe(self, state: State) -> Tensor:
        """Return hours, need and load in shares of all capacity, and time, ``(*B, k)``."""
        demand, wind = self.days.expected(state["demand"], state["wind"], state["error"])
        parts = [
            state["hours"] / _HOURS_UNIT,
            self.need(demand, wind) / self.capacity,
            (demand - wind) / self.capacity,
            state["step"].to(demand.dtype) / self.horizon,
        ]
        if self.ramped:
            parts.append(state["power"] / self.units_table["max_power"])
        if self.batteries is not None:
            parts.append(state["content"] / self.batteries.capacity)
        return torch.cat(parts, -1)

    def views(self) -> UnitViews:
        """Return what reads an observation unit by unit."""
        return UnitViews(self, _HOURS_UNIT)

    def rules(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the priority list."""
        return {"priority_list": partial(PriorityList.best, self)}

    def reference(self, test: Test) -> Reference:
        """Return the best schedule that a mixed-integer program finds, or bounds on its cost."""
        from hpo_torchrl.problems.unit_commitment.reference import (  # scipy is slow to load
            unit_commitment_reference,
        )

        return unit_commitment_reference(self, test)

    def describe(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Say what a policy does on a mean day, and draw one; see :func:`describe_schedule`."""
        from hpo_torchrl.problems.unit_commitment.details import describe_schedule  # pandas is slow

        return describe_schedule(self, *args, **kwargs)

    def decide(self, policy: Any, units: Any) -> Any:
        """Return tomorrow's schedule, a table; see :func:`decide_schedule`."""
        from hpo_torchrl.problems.unit_commitment.decision import decide_schedule  # pandas is slow

        return decide_schedule(self, policy, units)

    def details(self, test: Any, policies: Mapping[str, Any], folder: Any = None) -> Any:
        """Return hours, starts, energy and costs by unit; see :func:`compare_details`."""
        from hpo_torchrl.problems.unit_commitment.details import compare_details  # pandas is slow

        return compare_details(test, policies, folder)

    def initial_state(self) -> dict[str, Tensor]:
        """Draw the forecasts of days; units are as they are at the start of each."""
        return self.morning(self.batch_size)

    def morning(self, batch: Sequence[int]) -> dict[str, Tensor]:
        """Draw the states before so many days, of the shape ``batch``."""
        demand, wind = self.days.draw(self._draw, batch)
        hours = self.units_table["initial_hours"].clamp(-self.most_hours, self.most_hours)
        hours = hours.expand(*batch, -1).clone()
        state = {"hours": hours, "demand": demand, "wind": wind}
        state["error"] = demand.new_zeros(*batch, 2)
        if self.ramped:
            # Units that are on share the first hour's load.
            on = (hours > 0).to(demand)
            state["power"] = economic_dispatch(demand[..., 0] - wind[..., 0], on, self.order)
        if self.batteries is not None:
            full = self.batteries.initial_content * self.batteries.capacity
            state["content"] = full.expand(*batch, -1).clone()
        return state

    def draw_noise(self, num_steps: int, state: State) -> Tensor:
        """Return the noise of the forecast errors, standard normal ``(*B, T, 2)``."""
        return self._draw(torch.randn, (*self.batch_size, num_steps, 2))

    def _check_capacity(self) -> None:
        most = float(self.days.demand.max())
        if most * (1 + self.reserve) > self.capacity + self.days.wind_capacity:
            raise ValueError(
                f"units must be able to give the highest demand and the reserve, {most:g} MW and "
                f"{self.reserve:.0%}, got units of {self.capacity:g} MW in all; add units or lower "
                "the demand or reserve."
            )


def _batteries(number: int = 1, **numbers: Any) -> Batteries:
    """Return batteries on the CPU, of a precision that the environment then changes."""
    return Batteries.of(number, **numbers, dtype=torch.float64)


def _shifted(forecast: Tensor) -> Tensor:
    """Return the forecasts of the hours after the next one, 0 at the end."""
    return torch.cat([forecast[..., 1:], torch.zeros_like(forecast[..., :1])], -1)
