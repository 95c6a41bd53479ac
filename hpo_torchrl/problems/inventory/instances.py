"""Inventory problems drawn at random or made of a file, and the stocks that they start with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_choice, check_float, check_int
from hpo_torchrl.problems.inventory.fitted import Fitted
from hpo_torchrl.problems.inventory.record import Record

if TYPE_CHECKING:
    from hpo_torchrl.problems.inventory.env import InventoryEnv

# Env instances of a record by default, and items in all of them together.
_INSTANCES, _EXAMPLES = 128, 8192
# Seasons that a training part must have for items to start apart by them, or for one to be fitted.
_SEASONS, SEASONS_TO_FIT = 4, 1.5
# What is drawn, in order, and the decimals of a mean demand that has a seed of its own.
_SEEDED, _DECIMALS = ("demand", "holding", "shortage"), 3


def heterogeneous(
    cls: type[InventoryEnv],
    num_items: int,
    *,
    instance_seed: int | Mapping[str, int] = 0,
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
        instance_seed: seed of the draw; or one for each of ``demand``, ``holding`` and
            ``shortage``. These draw with NumPy's older generator, ``numpy.random.seed``, and round
            mean demand to three decimals, as Alvo, Russo & Kanoria (2026) do.
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
    ranges = {
        "demand_mean": ("demand_range", demand_range),
        "holding_cost": ("holding_range", holding_range),
        "shortage_cost": ("shortage_range", shortage_range),
    }
    seeds = _checked_seeds(instance_seed)
    for stream, (name, (label, bounds)) in enumerate(ranges.items()):
        if others.get(name) is not None:
            raise ValueError(
                f"{name} is drawn from {label} for heterogeneous items, got {others[name]!r} "
                "as well; leave it out, or use the class (env=inventory) itself."
            )
        if np.shape(bounds) != (2,):
            raise ValueError(f"{label} must be two numbers [low, high], got {bounds!r}.")
        low = check_float(f"{label}[0]", bounds[0], minimum=0.0, strict=True)
        high = check_float(f"{label}[1]", bounds[1], minimum=low)
        # A stream of its own for each: what one draws does not depend on how many there are.
        if isinstance(seeds, int):
            values = np.random.default_rng([seeds, stream]).uniform(low, high, num_items)
        else:
            values = np.random.RandomState(seeds[stream]).uniform(low, high, num_items)
            values = values.round(_DECIMALS) if name == "demand_mean" else values
        others[name] = values.tolist()
    drawn = {"name": demand, "mean": others.pop("demand_mean")}
    return cls(num_items, demand=drawn, **others)


def _checked_seeds(given: int | Mapping[str, int]) -> int | list[int]:
    """Return the one seed, or those of demand, holding and shortage."""
    if not isinstance(given, Mapping):
        return check_int("instance_seed", given, minimum=0)
    if set(given) != set(_SEEDED):
        raise ValueError(
            f"instance_seed must be one number, or have one for each of {', '.join(_SEEDED)}; got "
            f"{dict(given)!r}."
        )
    return [check_int(f"instance_seed.{name}", given[name], minimum=0) for name in _SEEDED]


def from_file(
    cls: type[InventoryEnv],
    path: str | Path,
    split: str = "train",
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    *,
    demand: str | None = None,
    history: int = 14,
    start_period: str = "random",
    season: int | None = None,
    show_season: bool | None = None,
    lead_time: int | Sequence[int] = 2,
    lost_sales: bool = False,
    initial_state: str = "random",
    mean: float | Sequence[float] | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    wide: bool = False,
    dates: str | None = None,
    per: str | None = None,
    calendar: str = "all",
    missing: str = "error",
    late_items: str | None = None,
    repeated: str = "error",
    negative: str = "error",
    decimal: str = ".",
    thousands: str | None = None,
    encoding: str = "utf-8",
    sheet: str | int | None = None,
    **others: Any,
) -> InventoryEnv:
    """Make an environment of the demand in a file; see :func:`read_demand` for its format.

    Costs that are not given are those of the file, else 1 (holding), 9 (shortage) and 0
    (procurement). A price in the file matters with lost sales alone, where a unit short costs what
    it would have sold for, unless a shortage cost is known. A sale that is only late earns its
    price in any case.

    Args:
        cls: the class of the environment.
        path: a ``.csv``, ``.xlsx`` or ``.parquet`` file, packed or not.
        split: which part is replayed: ``"train"``, ``"dev"`` or ``"test"``.
        fractions: shares of the periods, in their order, that are in these parts.
        demand: ``"record"``, the default, replays the part; ``"fitted"`` draws the training part
            from models fitted to it (:class:`~hpo_torchrl.problems.inventory.fitted.Fitted`).
            Where all start at the first period, in tests, any part is replayed.
        history: recent demands of each item in the observation, 1 and up; see
            :class:`~hpo_torchrl.problems.inventory.record.Record`, like the next three.
        start_period: ``"random"``, for training, or ``"first"``, for tests.
        season: periods of a season, by whose multiples items are apart at random starts, or which
            is fitted; 0 is none. ``None`` is the usual one of such periods (a week for days, a year
            for weeks and months) if the training part holds four of them, or one and a half to be
            fitted; else none.
        show_season: whether the policy sees the place in the season; ``None`` is where demand is
            fitted and there is a season.
        lead_time: periods L between placing an order and being able to use it, one number or one
            per item.
        lost_sales: whether unmet demand is lost.
        initial_state: stocks at the start, see the class.
        mean: unit of observations and actions, one number or one per item; by default the mean of
            the training part. A policy trained on one file acts alike on another in its own unit.
        columns: names of the file's columns; this one and the next twelve are as in
            :class:`~hpo_torchrl.problems.inventory.demand_format.FileFormat`.
        wide: whether there is a column for each period.
        dates: format of the periods.
        per: what demand is added up to.
        calendar: which periods there are.
        missing: what no row means.
        late_items: what becomes of items that begin later.
        repeated: what becomes of several rows for an item and period.
        negative: what becomes of demand below 0.
        decimal: the decimal sign.
        thousands: what separates thousands.
        encoding: of a text file.
        sheet: of an Excel file.
        others: further arguments of the class, such as costs (one number, or one per item in the
            order of their first appearance), ``features`` or ``items``; ``None`` is not given.
            Without ``batch_size`` there are 128 env instances, and fewer of more than 64 items:
            each item is an example.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: an argument has the wrong type.
        ValueError: the file cannot be read as it stands (``TableFileError``: the message lists
            the lines), an argument is out of range, or a part of the record is too short.
    """
    arguments = locals()
    # Reading takes pandas, and most problems have no file: its import takes a second.
    from hpo_torchrl.problems.inventory.demand_file import FORMAT_NAMES, read_demand

    written = {name: arguments[name] for name in FORMAT_NAMES}
    check_int("history", history, minimum=1)
    if "num_items" in others:
        raise TypeError(f"num_items comes from the file {path}; leave it out.")
    fitted = _is_fitted(demand)
    source = read_demand(path, **written)
    parts = source.split(fractions, history=history)
    season = source.season(season, parts["train"], SEASONS_TO_FIT if fitted else _SEASONS)
    if fitted and season == 1:  # apart by any number of periods: nothing to be fitted
        season = None
    if show_season is None:
        show_season = fitted and season is not None
    simulated = fitted and split == "train" and start_period == "random"
    made = (Fitted if simulated else Record)(
        source.demand,
        parts[check_choice("split", split, parts)],
        parts["train"],
        history=history,
        start_period=start_period,
        season=season,
        show_season=show_season,
        mean=mean,
        items=source.items,
        labels=source.periods,
    )
    given: dict[str, Any] = dict(source.costs)
    price = given.pop("price", None)
    if lost_sales and price is not None:
        given.setdefault("shortage_cost", price)
    given.update({name: value for name, value in others.items() if value is not None})
    given.update(lost_sales=lost_sales, initial_state=initial_state)
    given.setdefault("batch_size", max(1, min(_INSTANCES, _EXAMPLES // source.demand.shape[-1])))
    env = cls(made.num_items, lead_time, made, **given)
    # Beside its history, a part needs periods in which an order is placed and arrives.
    source.split(fractions, history=history, least=env.lead_time + 2)
    env.derived_units = {"mean": made.given_mean, "season": season or 0, "show_season": show_season}
    if fitted:
        from hpo_torchrl.problems.inventory.demand_fit import fit_demand

        env.demand_fit = fit_demand(source.demand[slice(*parts["train"])], season)
    return env


def _is_fitted(demand: Any) -> bool:
    """Return whether the demand of a file is fitted, not replayed.

    Raises:
        ValueError: it is neither; items and demand come from the file.
    """
    if demand not in (None, "record", "fitted"):
        raise ValueError(
            "demand comes from the file: it must be 'record' (replay it) or 'fitted' (draw from "
            f"models of it), got {demand!r}; leave it out, or use env=inventory for another."
        )
    return demand == "fitted"


# How far items stray from their common level at a random start, in periods of demand.
_SPREAD = 2.0


def empty_inventory(env: InventoryEnv) -> Tensor:
    """Nothing on hand and nothing ordered, ``(*B, n, max(L, 1))``."""
    shape = env.state_spec["inventory"].shape
    return torch.zeros(shape, dtype=env.float_dtype, device=env.device)


def random_inventory(env: InventoryEnv) -> Tensor:
    """Stocks for training, wide on purpose: rare states must be seen.

    On hand from one period of backlog up to the rough S, and half the instances await an order
    anywhere in the pipeline. Items are ordered together, so their levels rise and fall together, up
    to a spread of their own: drawn one by one, a thousand items would never be short all at once.
    """
    inventory = empty_inventory(env)
    batch, n, slots = env.batch_size, env.num_items, inventory.shape[-1]
    own = n > 1
    level = env._draw(torch.rand, (*batch, 1))
    level = level * (env.order_up_to + env.demand_mean) - env.demand_mean
    spread = own * _SPREAD * (2 * env._draw(torch.rand, (*batch, n)) - 1)
    on_hand = level + spread * env.demand_mean
    inventory[..., 0] = on_hand.clamp_min(0.0) if env.lost_sales else on_hand
    if slots > 1:
        spread = 1 + own * 0.25 * (2 * env._draw(torch.rand, (*batch, n)) - 1)
        size = env._draw(torch.rand, (*batch, 1)) * spread * env.order_up_to
        waiting = env._draw(torch.rand, (*batch, 1)) < 0.5
        slot = 1 + (env._draw(torch.rand, (*batch, 1)) * (slots - 1)).long()
        # What an item awaits was ordered, a period ago or more.
        last = env.lead_times - 1
        slot = torch.minimum(slot, last.clamp_min(1)).unsqueeze(-1).expand(*batch, n, 1)
        inventory = inventory.scatter(-1, slot, (size * waiting * (last > 0)).unsqueeze(-1))
    return inventory


def stationary_inventory(env: InventoryEnv) -> Tensor:
    """Stocks that ordering up to a fixed level every economic order interval leaves.

    Simulated for long enough to forget the start; each instance begins at its own point of the
    cycle.
    """
    inventory = empty_inventory(env)
    inventory[..., 0] = env.order_up_to
    phase = (env._draw(torch.rand, env.batch_size) * env.order_interval).long()
    for period in range(env.lead_time + 2 * env.order_interval):
        ordering = ((period + phase) % env.order_interval == 0).to(env.float_dtype)
        quantity = (env.order_up_to - inventory.sum(-1)).clamp_min(0.0)
        order = env.ordering.delivered(ordering.unsqueeze(-1) * quantity, inventory)
        demand, which = env.demand.draw_any(env), torch.zeros_like(phase)
        if env.ordering.draws:
            which = env._draw(torch.rand, (*env.batch_size, env.ordering.draws))
        inventory, _ = env.serve(inventory, (order, ordering, which), demand)
    return inventory


STARTS = {
    "empty": empty_inventory,
    "random": random_inventory,
    "stationary": stationary_inventory,
}
