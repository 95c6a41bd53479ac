"""What an observation shows of each unit, and what the priority list makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpo_torchrl.problems.unit_commitment.dispatch import MeritOrder, economic_dispatch

# Shares of a unit's capacity that are no need, for rounding.
_ROUNDING = 1e-5


class UnitViews(nn.Module):
    """Read an observation of unit commitment unit by unit.

    Args:
        env: the environment.
        hours_unit: hours that are 1 in its observation.
    """

    capacity: Tensor
    min_up: Tensor
    min_down: Tensor
    cold_after: Tensor
    must_run: Tensor
    first: Tensor
    facts: Tensor
    store_facts: Tensor

    def __init__(self, env: Any, hours_unit: float) -> None:
        super().__init__()
        units, self.hours_unit, self.total = env.units, hours_unit, env.capacity
        self.num_units, self.horizon, self.ramped = len(units), env.horizon, env.ramped
        stores = env.batteries
        self.num_batteries = 0 if stores is None else len(stores.capacity)
        place: dict[str, Any] = {"device": env.device, "dtype": env.float_dtype}

        def keep(name: str, value: Any, **place: Any) -> None:
            given = value if isinstance(value, Tensor) else np.ascontiguousarray(value)
            self.register_buffer(name, torch.as_tensor(given, **place))

        keep("capacity", units.max_power, **place)
        keep("min_up", units.min_up, **place)
        keep("min_down", units.min_down, **place)
        keep("cold_after", units.min_down + units.cold_hours, **place)
        keep("must_run", units.must_run, device=env.device)
        rank = np.argsort(units.priority)
        keep("first", rank[:, None] > rank, **place)  # whether unit j comes before unit i
        columns = [
            *(units.min_power, units.max_power, units.fixed_cost / units.max_power),
            *(units.linear_cost, np.log1p(units.hot_start_cost), np.log1p(units.cold_start_cost)),
            *(units.min_up, units.min_down, units.full_load_cost),
        ]
        facts = np.stack(columns, -1)
        keep("facts", (facts - facts.mean(0)) / (facts.std(0) + 1e-6), **place)
        self.length = len(columns) + self.horizon + 6 + self.ramped
        # Of batteries: what tells one from another, in shares of the load.
        known = torch.zeros(0, 3) if stores is None else torch.stack([*stores][:3], -1)
        keep("store_facts", known / self.total, **place)
        self.store_length = 3 + 1 + 2 * self.horizon + 1
        self.order = env.order

    def hours(self, observation: Tensor) -> Tensor:
        """Return the hours on, negative if off, ``(*B, G)``."""
        return observation[..., : self.num_units] * self.hours_unit

    def missing(self, observation: Tensor) -> Tensor:
        """Return what is missing to the need of each coming hour before a unit's turn comes.

        Units that must stay on come first in all hours; those that may not start now have no
        capacity in this one. Above 0 the list takes the unit.

        Returns:
            In shares of the unit's own capacity, ``(*B, G, T)``.
        """
        G, T = self.num_units, self.horizon
        hours = self.hours(observation)
        need = observation[..., G : G + T] * self.total
        stays = self.stays(hours)
        fixed = (stays * self.capacity).sum(-1, keepdim=True)
        free = ~stays * self.capacity
        now = free * ((hours > 0) | (-hours >= self.min_down))
        before, later = (fixed + part @ self.first.mT for part in (now, free))
        each = [before.unsqueeze(-1), later.unsqueeze(-1).expand(*later.shape, T - 1)]
        return (need.unsqueeze(-2) - torch.cat(each, -1)) / self.capacity.unsqueeze(-1)

    def cheapest(self, observation: Tensor, on: Tensor) -> Tensor:
        """Return the cheapest powers of units for the load to be expected now, ``(*B, G)`` in MW.

        Args:
            observation: ``(*B, m)``.
            on: which units are on, ``(*B, G)``.
        """
        load = observation[..., self.num_units + self.horizon] * self.total
        order = MeritOrder(*(part.to(observation) for part in self.order))
        return economic_dispatch(load, on.to(observation), order)

    def stays(self, hours: Tensor) -> Tensor:
        """Return which units must stay on, bool ``(*B, G)``."""
        return (hours > 0) & ((hours < self.min_up) | self.must_run)

    def listed(self, hours: Tensor, missing: Tensor, patience: int = 0) -> Tensor:
        """Return which units a priority list commits, bool ``(*B, G)``.

        Args:
            hours: what :meth:`hours` returns.
            missing: what :meth:`missing` returns.
            patience: hours, beyond its minimum down time, for which a unit waits to be needed.
        """
        needed = missing > _ROUNDING
        ahead = torch.arange(self.horizon, device=hours.device)
        soon = ahead <= (self.min_down + patience).unsqueeze(-1)
        again = (hours > 0) & (needed & soon).any(-1)
        return needed[..., 0] | again | self.stays(hours)

    def stores(self, observation: Tensor) -> Tensor:
        """Return what a net of batteries sees: content, sizes and all that is common to units."""
        G, T, N = self.num_units, self.horizon, self.num_batteries
        content, common = observation[..., -N:], observation[..., G : G + 2 * T + 1]
        parts = [
            content.unsqueeze(-1),
            self.store_facts.expand(*content.shape, -1),
            common.unsqueeze(-2).expand(*content.shape, -1),
        ]
        return torch.cat(parts, -1)

    def forward(self, observation: Tensor, missing: Tensor) -> Tensor:
        """Return what a net of units sees, ``(*B, G, k)``.

        Args:
            observation: ``(*B, m)``.
            missing: what :meth:`missing` returns of it.
        """
        G, T, hours = self.num_units, self.horizon, self.hours(observation)
        common = observation[..., [G, G + 1 if T > 1 else G, G + 2 * T]]
        columns = [
            (hours > 0).to(hours),
            (hours / self.hours_unit).clamp(-2.0, 2.0),
            ((-hours - self.cold_after) / self.hours_unit).clamp(-2.0, 2.0),
        ]
        if self.ramped:
            columns.append(observation[..., G + 2 * T + 1 : 2 * G + 2 * T + 1])
        parts = [
            self.facts.expand(*hours.shape, -1),
            missing.tanh(),
            torch.stack(columns, -1),
            common.unsqueeze(-2).expand(*hours.shape, -1),
        ]
        return torch.cat(parts, -1)
