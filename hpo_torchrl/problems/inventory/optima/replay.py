"""Many (Q, S) rules at once, simulated on a record of demand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpo_torchrl.core.checks import check_bool, check_float, check_int, per_item
from hpo_torchrl.problems.inventory.optima.items import Vector

# Numbers held at once by a simulation.
MOST_HELD = 2**22
# At least so many cycles must fit into a record: a longer one says nothing of how to go on.
_CYCLES = 4


@dataclass(frozen=True)
class Record:
    """A record and what things cost; vectors have shape ``(n,)``."""

    demand: Vector
    holding: Vector
    shortage: Vector
    procurement: Vector
    fixed_cost: float
    lead_time: int
    lost_sales: bool
    warm_up: int

    @property
    def unit(self) -> float:
        """The grid of a search: whole units where demand is whole."""
        whole = bool((self.demand == np.round(self.demand)).all())
        return 1.0 if whole else float(self.demand.sum(axis=1).mean()) / 50

    @property
    def most(self) -> int:
        """The largest Q to look at, in grid units."""
        return max(1, int(self.demand.sum() / _CYCLES / self.unit))

    def windows(self) -> Vector:
        """Return the demand of L + 1 periods from each on: ``(T - L, n)``."""
        total = np.concatenate([np.zeros((1, self.demand.shape[1])), self.demand.cumsum(axis=0)])
        return total[self.lead_time + 1 :] - total[: -self.lead_time - 1]

    def simulate(self, Q: Vector, S: Vector) -> Vector:
        """Return the cost per period of m rules, ``(m,)``, from Q ``(m,)`` and S ``(m, n)``."""
        L, size = self.lead_time, max(1, MOST_HELD // S.shape[1] // (self.lead_time + 4))
        if len(Q) > size:
            parts = range(0, len(Q), size)
            return np.concatenate([self.simulate(Q[i : i + size], S[i : i + size]) for i in parts])
        on_hand, on_order, total = S.copy(), np.zeros(S.shape), np.zeros(len(Q))
        pipeline = np.zeros((max(L, 1), *S.shape))
        for t, demand in enumerate(self.demand):
            missing = S - on_hand - on_order
            ordering = missing.sum(axis=1) >= Q
            order = np.maximum(missing, 0.0) * ordering[:, None]
            if L == 0:
                on_hand += order
            on_hand -= demand
            if t >= self.warm_up:
                total += np.maximum(on_hand, 0.0) @ self.holding
                total += np.maximum(-on_hand, 0.0) @ self.shortage
                total += order @ self.procurement + self.fixed_cost * ordering
            if self.lost_sales:
                np.maximum(on_hand, 0.0, out=on_hand)
            if L > 0:
                pipeline[t % L] = order
                arriving = pipeline[(t + 1) % L]
                on_hand += arriving
                on_order += order - arriving
        return total / (len(self.demand) - self.warm_up)


def check_record(
    demand: Any,
    holding_cost: Any,
    shortage_cost: Any,
    fixed_cost: Any,
    lead_time: Any,
    procurement_cost: Any,
    lost_sales: Any,
    warm_up: Any,
) -> Record:
    """Return the checked record.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or lengths differ.
    """
    demand = np.array(demand, dtype=np.float64)
    if demand.ndim != 2 or demand.size == 0:
        raise ValueError(f"demand must have shape (T, n) = (periods, items), got {demand.shape}.")
    if not np.isfinite(demand).all() or (demand < 0).any():
        raise ValueError("demand must be finite and >= 0; it holds NaN, inf or negatives.")
    n, lead_time = demand.shape[1], check_int("lead_time", lead_time, minimum=0)
    check_int("warm_up", warm_up, minimum=0)
    if not max(warm_up, lead_time) < len(demand):
        raise ValueError(
            f"demand must have more periods than warm_up={warm_up} and lead_time={lead_time}, got "
            f"{len(demand)}."
        )
    return Record(
        demand,
        per_item_vector("holding_cost", holding_cost, n),
        per_item_vector("shortage_cost", shortage_cost, n),
        per_item_vector("procurement_cost", procurement_cost, n),
        check_float("fixed_cost", fixed_cost, minimum=0.0),
        lead_time,
        check_bool("lost_sales", lost_sales),
        warm_up,
    )


def per_item_vector(name: str, value: Any, n: int, minimum: float = 0.0) -> Vector:
    """Return one number per item, ``(n,)``; see :func:`~hpo_torchrl.core.checks.per_item`."""
    return per_item(name, value, n, dtype=torch.float64, device=None, minimum=minimum).numpy()
