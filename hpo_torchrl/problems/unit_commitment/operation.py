"""What units do in a test, hour by hour."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

VIOLATIONS = ("unserved", "surplus", "reserve")


class Operation(NamedTuple):
    """N days of T hours, and what units did in them.

    Of the units, ``(N, T, G)``: ``on`` and ``started``, bool; ``power`` in MW; ``fuel`` and
    ``starts``, costs in $. Of batteries, ``(N, T, S)``: what is ``taken`` from the grid, in MW; and
    the ``wear`` of all, ``(N, T)`` in $. In all, ``(N, T)`` in MW: ``demand`` and ``wind`` as they
    came, and the ``need`` of capacity; ``unserved``, ``surplus`` and ``reserve`` (what lacks of
    it); the ``capacity`` that is on. Before the first hour, ``(N, G)``: ``before``, the power of
    the units in MW (0 where there are no ramps).
    """

    on: np.ndarray
    started: np.ndarray
    power: np.ndarray
    fuel: np.ndarray
    starts: np.ndarray
    taken: np.ndarray
    wear: np.ndarray
    demand: np.ndarray
    wind: np.ndarray
    need: np.ndarray
    unserved: np.ndarray
    surplus: np.ndarray
    reserve: np.ndarray
    capacity: np.ndarray
    before: np.ndarray

    @property
    def cost(self) -> np.ndarray:
        """Cost of each day in $, ``(N,)``, without the penalties."""
        return (self.fuel + self.starts).sum((-1, -2)) + self.wear.sum(-1)

    @property
    def wind_used(self) -> np.ndarray:
        """Wind that is not curtailed, ``(N, T)`` in MW."""
        lacks = self.demand + self.taken.sum(-1) - self.unserved + self.surplus
        lacks = lacks - self.power.sum(-1)
        return np.clip(lacks, 0.0, self.wind)


def operate(test: Any, policy: Any) -> Operation:
    """Simulate a policy in a test, with the most probable actions.

    Args:
        test: the test, an ``Evaluation`` of a :class:`~hpo_torchrl.problems.UnitCommitmentEnv`;
            hours beyond its last whole day are left out.
        policy: the policy or rule.
    """
    env, hours = test.env, list[dict[str, Tensor]]()
    for run, noise in test.rollouts(policy):
        steps = run.shape[-1]
        states, actions = run.select(*env.state_names).reshape(-1, steps), run["action"]
        actions, noise = actions.reshape(-1, steps), noise.reshape(-1, steps, noise.shape[-1])
        for t in range(steps):  # dispatch needs G² numbers of each instance and hour
            state = states[:, t].to_dict()
            _, parts = env.hour(state, actions[:, t].to_dict(), noise[:, t])
            started = parts["on"] & (state["hours"] < 0)
            capacity = (parts["on"] * env.units_table["max_power"]).sum(-1)
            before = state.get("power", torch.zeros_like(parts["power"]))
            hours.append(parts | {"started": started, "capacity": capacity, "before": before})
    length = min(env.horizon, len(hours))
    whole = {name: _days([hour[name] for hour in hours], length) for name in hours[0]}
    return Operation(**{**whole, "before": whole["before"][:, 0]})


def _days(hours: list[Tensor], length: int) -> np.ndarray:
    """Return what is of hours, ``(B, ...)`` each, by whole days, ``(B * days, length, ...)``."""
    number = len(hours) // length
    table = torch.stack(hours[: number * length], 1).cpu()
    array = table.unflatten(1, (number, length)).flatten(0, 1).numpy()
    return array if array.dtype == bool else array.astype(np.float64)
