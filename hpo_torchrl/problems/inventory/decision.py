"""What to order today: a policy, and the rule beside it, asked for the stock as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hpo_torchrl.core.checks import did_you_mean
from hpo_torchrl.problems.table_file import read_table


def decide_orders(
    env: Any, policy: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], stock: Any
) -> pd.DataFrame:
    """Return what to order of each item.

    Recent demand, where the policy looks at it, is that at the end of the record.

    Args:
        env: the :class:`~hpo_torchrl.problems.InventoryEnv`.
        policy: from the state of one instance to the action, as a ``TrainedPolicy`` is.
        stock: a table (or the file of one, or a mapping of columns) with a row for each item:
            ``item``, its name (not needed where items have numbers alone); of a family of items
            ``demand_mean`` and its other ``item_numbers``; ``on_hand``, units, below 0 where they
            are owed; ``arriving_1``, ``arriving_2``, ...: units that arrive with the next period,
            the one after, up to the lead time less 1 (left out: none; with one such period
            ``arriving`` will do); and ``pack``, units in a pack.

    Returns:
        A table: ``item``, ``on_hand``, ``arriving`` in all, ``order`` (in whole packs, those of the
        stock or else of the items; else in whole units where all recorded demand is whole; no
        smaller than is accepted, and where there is a limit not rounded up), ``position`` after
        it, and ``rule_order``, that of the best rule, where there is one.

    Raises:
        FileNotFoundError, ValueError: the table cannot be read, lacks an item or a column, or has
            others, or a number is none.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.problems.inventory.rules import TotalDemandPolicy
        >>> env, rule = InventoryEnv(lead_time=2), TotalDemandPolicy(36, 62)
        >>> def act(state):
        ...     discrete, continuous = rule.decide(state["inventory"])
        ...     return {"discrete": discrete, "continuous": continuous}
        >>> found = decide_orders(env, act, {"on_hand": [11], "arriving": [9]})
        >>> found[["order", "position", "rule_order"]].values.tolist()
        [[42.0, 62.0, 42.0]]
    """
    slots = env.state_spec["inventory"].shape[-1]
    columns = ["on_hand", *(f"arriving_{k}" for k in range(1, slots))]
    # Where the state tells what an item is, any item will do.
    names = None if env.item_numbers else env.item_names
    table = _checked(stock, names, columns[1:], env.item_numbers)
    place: dict[str, Any] = {"dtype": env.float_dtype, "device": env.device}
    inventory = torch.tensor(table[columns].to_numpy(), **place)
    state = {"inventory": inventory}
    if env.item_numbers:
        env.check_items(table)
        state = {name: torch.tensor(table[[name]].to_numpy(), **place) for name in env.item_numbers}
        state["inventory"] = inventory.unsqueeze(-2)  # each item is an env instance
    if "recent" in env.state_names:
        state["recent"] = env.record[-env.demand.history :].mT.to(**place)
    if "period" in env.state_names:  # that after the record
        state["period"] = torch.full((len(table),), float(len(env.record)), **place)
    whole = not env.recorded or bool((env.record == env.record.round()).all())
    pack = table["pack"].to_numpy() if "pack" in table else env.ordering.packs(float(whole))

    def ordered(action: Mapping[str, Tensor]) -> Any:
        units = env.orders(state, action).flatten().double().cpu().numpy()
        return env.ordering.rounded(units, pack)

    found = table[["item", "on_hand"]].copy()
    found["arriving"] = table[columns[1:]].sum(axis=1)
    found["order"] = ordered(policy(state))
    found["position"] = found[["on_hand", "arriving", "order"]].sum(axis=1)
    if (best := env.rules().get("s_S")) is not None:
        rule = best()
        discrete, continuous = rule.decide(*(state[name] for name in rule.in_keys))
        found["rule_order"] = ordered({"discrete": discrete, "continuous": continuous})
    return found


def _checked(
    stock: Any, names: list[str] | None, arriving: list[str], numbers: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the table in the order of the items, as numbers.

    Args:
        stock: the table.
        names: the items that it must have; ``None`` is those that it has.
        arriving: columns of what is on order.
        numbers: columns with the numbers of an item.

    Raises:
        ValueError: see :func:`decide_orders`.
    """
    if isinstance(stock, (str, Path)):
        table = read_table(Path(stock).absolute(), "utf-8", None)
    else:
        table = pd.DataFrame(stock).copy()
    table.columns = [str(name).strip().lower() for name in table.columns]
    if len(arriving) == 1:
        table = table.rename(columns={"arriving": arriving[0]})
    if "item" not in table and len(table) == len(table if names is None else names):
        table["item"] = [str(row + 1) for row in range(len(table))] if names is None else names
    known = ["item", *numbers, "on_hand", *arriving, "pack"]
    for name in table.columns:
        if name not in known or list(table.columns).count(name) > 1:
            raise ValueError(
                f"The stock has the column {name!r}, which is unknown or there twice."
                f"{did_you_mean(name, known)} It may have {', '.join(known)}."
            )
    for name in ("item", *numbers, "on_hand"):
        if name not in table:
            raise ValueError(f"The stock needs the column {name!r}; it has {[*table.columns]}.")
    table["item"] = table["item"].astype(str).str.strip()
    there = [*table["item"]]
    names = list(dict.fromkeys(there)) if names is None else names
    wrong = {
        "lacks": [name for name in names if name not in there],
        "has unknown": [name for name in there if name not in names],
        "has twice": [name for name in dict.fromkeys(there) if there.count(name) > 1],
    }
    for words, items in wrong.items():
        if items:
            more = f" and {len(items) - 5} more" if len(items) > 5 else ""
            raise ValueError(
                f"The stock {words} items: {', '.join(items[:5])}{more}; the policy orders "
                f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}."
            )
    table = table.set_index("item").loc[names].reset_index()
    for name in known[1:]:
        if name not in table:
            if name != "pack":
                table[name] = 0.0
            continue
        values = pd.to_numeric(table[name], errors="coerce").astype(float)
        least = -np.inf if name == "on_hand" else 0.0
        bad = ~(np.isfinite(values) & (values >= least)) | ((name == "pack") & (values == 0))
        if bad.any():
            at = int(np.argmax(bad))
            raise ValueError(
                f"{name} of item {names[at]} must be a number"
                f"{'' if name == 'on_hand' else ' > 0' if name == 'pack' else ' >= 0'}, got "
                f"{table[name].iloc[at]!r}."
            )
        table[name] = values
    return table
