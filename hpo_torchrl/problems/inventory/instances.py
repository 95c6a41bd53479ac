"""Other ways to make an inventory problem: items drawn at random, and demand from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo_torchrl.core.checks import check_bool, check_int, check_range
from hpo_torchrl.problems.inventory.demand_file import read_record
from hpo_torchrl.problems.inventory.record import Record

if TYPE_CHECKING:
    from hpo_torchrl.problems.inventory.env import InventoryEnv


def heterogeneous(
    cls: type[InventoryEnv],
    num_items: int,
    *,
    instance_seed: int = 0,
    demand: str = "poisson",
    demand_range: Sequence[float] = (6.0, 14.0),
    holding_range: Sequence[float] = (0.7, 1.3),
    shortage_range: Sequence[float] = (6.3, 11.7),
    **others: Any,
) -> InventoryEnv:
    """Make an environment whose items differ: means and costs drawn uniformly, once.

    The first n items of a longer instance of the same seed are the instance of n items, so
    that sizes can be compared.

    Args:
        cls: the class of the environment.
        num_items: number of items n.
        instance_seed: seed of the draw.
        demand: name of the distribution of demand.
        demand_range: least and largest mean demand.
        holding_range: least and largest holding cost h.
        shortage_range: least and largest shortage cost p.
        others: further arguments, of the class.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or is drawn and given as well.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> few, many = (InventoryEnv.heterogeneous(n) for n in (3, 5))
        >>> (few.demand_mean == many.demand_mean[:3]).all().item()
        True
    """
    check_int("num_items", num_items, minimum=1)
    check_int("instance_seed", instance_seed, minimum=0)
    ranges = {
        "demand_mean": ("demand_range", demand_range),
        "holding_cost": ("holding_range", holding_range),
        "shortage_cost": ("shortage_range", shortage_range),
    }
    for stream, (name, (label, bounds)) in enumerate(ranges.items()):
        if others.get(name) is not None:
            raise ValueError(
                f"{name} is drawn from {label} for heterogeneous items, got {others[name]!r} "
                "as well; leave it out, or use the class (env=inventory) itself."
            )
        low, high = check_range(label, bounds)
        # A stream of its own for each: what one draws does not depend on how many there are.
        rng = np.random.default_rng([instance_seed, stream])
        others[name] = rng.uniform(low, high, num_items).tolist()
    drawn = {"name": demand, "mean": others.pop("demand_mean")}
    return cls(num_items, demand=drawn, **others)


def from_file(
    cls: type[InventoryEnv],
    path: str | Path | None = None,
    split: str = "train",
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    history: int = 14,
    start_period: str = "random",
    season: int | None = 7,
    lead_time: int = 2,
    holding_cost: float | Sequence[float] | None = None,
    shortage_cost: float | Sequence[float] | None = None,
    procurement_cost: float | Sequence[float] | None = None,
    lost_sales: bool = False,
    *,
    initial_state: str = "random",
    **others: Any,
) -> InventoryEnv:
    """Make an environment of the demand in a file; see :func:`read_demand` for its format.

    Costs that are not given are those of the file, else 1 (holding), 9 (shortage) and 0
    (procurement); see :meth:`DemandFile.costs` for what a price in the file means.

    Args:
        cls: the class of the environment.
        path: a ``.csv`` or ``.parquet`` file.
        split: which part is replayed: ``"train"``, ``"dev"`` or ``"test"``.
        fractions: shares of the periods, in their order, that are in these parts.
        history: recent demands of each item in the observation, 1 and up; see
            :class:`~hpo_torchrl.problems.inventory.record.Record`, like the next two.
        start_period: ``"random"``, for training, or ``"first"``, for tests.
        season: periods of a season, by whose multiples items are apart at random starts.
        lead_time: periods L between placing an order and being able to use it.
        holding_cost: one number, or one per item in the order of their first appearance.
        shortage_cost: the same.
        procurement_cost: the same.
        lost_sales: whether unmet demand is lost; a price in the file is read with this alone.
        initial_state: stocks at the start, see the class.
        others: further arguments, of the class.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: an argument has the wrong type.
        ValueError: the file cannot be read as it stands (``DemandFileError``: the message lists
            the lines), an argument is out of range, or a part of the record is too short.
    """
    check_int("history", history, minimum=1)
    check_int("lead_time", lead_time, minimum=0)
    check_bool("lost_sales", lost_sales)
    # Beside its history, a part needs periods in which an order is placed and arrives.
    source, parts = read_record(path, split, fractions, history, lead_time + 2)
    demand = Record(
        source.demand,
        getattr(parts, split),
        parts.train,
        history=history,
        start_period=start_period,
        season=season,
        items=source.items,
        labels=source.periods,
    )
    costs: dict[str, Any] = source.costs(
        lost_sales,
        holding_cost=holding_cost,
        shortage_cost=shortage_cost,
        procurement_cost=procurement_cost,
    )
    return cls(
        demand.num_items,
        lead_time,
        demand,
        lost_sales=lost_sales,
        initial_state=initial_state,
        **costs,
        **others,
    )
