"""Tomorrow's schedule: a policy, and the priority list beside it, asked for units as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hpo_torchrl.core.checks import did_you_mean
from hpo_torchrl.problems.table_file import read_table
from hpo_torchrl.problems.unit_commitment.rules import PriorityList

Policy = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def decide_schedule(env: Any, policy: Policy, units: Any) -> pd.DataFrame:
    """Return the schedule of a day whose forecast comes true.

    The forecast is the environment's only day: a file of one day, ``env.demand=FILE``.

    Args:
        env: the :class:`~hpo_torchrl.problems.UnitCommitmentEnv`.
        policy: from the state of one instance to the action, as a ``TrainedPolicy`` is.
        units: a table (or the file of one, or a mapping of columns) with a row for each unit:
            ``unit``, its name (not needed in the order of the units); ``hours`` for which it has
            been on, negative if off; and, where units have ramps, its ``power`` in MW now.

    Returns:
        A row for each hour, from 1, and unit: ``hour``, ``unit``, ``on`` (1 or 0), ``MW``; and what
        the priority list would do, ``list_on`` and ``list_MW``. Batteries have rows too, below 0
        where they are charged; they begin with the content that the environment gives them.

    Raises:
        FileNotFoundError, ValueError: the table cannot be read, lacks a unit or a column, or has
            others, or a number is none; or there is not one forecast.

    Examples:
        >>> from hpo_torchrl.problems import UnitCommitmentEnv
        >>> from hpo_torchrl.problems.unit_commitment.decision import decide_schedule
        >>> env = UnitCommitmentEnv()
        >>> def act(state):
        ...     return {"discrete": state["hours"].ge(-1).long(), "continuous": state["hours"]}
        >>> found = decide_schedule(env, act, {"hours": [8, 8, 5, -5, -6, -3, -3, -1, -1, -1]})
        >>> found[["hour", "unit", "on", "MW"]].values.tolist()[2]
        [1, 'unit 3', 1, 65.0]
        >>> found.columns[4:].tolist()
        ['list_on', 'list_MW']
    """
    if len(env.days.demand) != 1 or (env.days.wind is None and env.days.wind_capacity > 0):
        wind = " and of wind" if env.days.wind is None and env.days.wind_capacity > 0 else ""
        raise ValueError(
            f"The forecast must be of one day{wind}, got {len(env.days.demand)} days of demand: "
            "name a file of the day, a row for each hour with the columns demand and wind, as "
            "env.demand=FILE (in Python, load_run(..., files={'env.demand': FILE}))."
        )
    state = _present(env, _checked(units, list(env.units.names), env.ramped))
    rule = PriorityList.best(env)

    def listed(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        shown = env.show(state)
        discrete, continuous = rule.decide(*(shown[name] for name in rule.in_keys))
        return {"discrete": discrete, "continuous": continuous}

    found = _planned(env, policy, state)
    other = _planned(env, listed, state)
    return found.assign(list_on=other["on"], list_MW=other["MW"])


def _present(env: Any, table: pd.DataFrame) -> dict[str, Tensor]:
    """Return the state of one instance before the day."""
    place: dict[str, Any] = {"dtype": env.float_dtype, "device": env.device}
    days, given = env.days, {name: table[name].to_numpy(copy=True) for name in ("hours", "power")}
    given["hours"] = given["hours"].clip(-env.most_hours, env.most_hours)
    given["demand"] = days.demand[0]
    given["wind"] = 0.0 * days.demand[0] if days.wind is None else days.wind[0]
    state = env.morning((1,))
    state |= {name: torch.as_tensor(given[name], **place)[None] for name in given if name in state}
    return {**state, "step": torch.zeros(1, 1, dtype=torch.int64, device=env.device)}


@torch.no_grad()
def _planned(env: Any, policy: Policy, state: Mapping[str, Tensor]) -> pd.DataFrame:
    """Follow a policy through a day whose forecast comes true."""
    noise, tables = torch.zeros_like(state["error"]), []
    for hour in range(env.horizon):
        after, parts = env.hour(state, policy(state), noise)
        on, power, taken = (
            parts[name][0].double().cpu().numpy() for name in ("on", "power", "taken")
        )
        stores = [f"battery {number + 1}" for number in range(len(taken))]
        rows = {"hour": hour + 1, "unit": [*env.units.names, *stores]}
        rows["on"] = np.append(on, taken != 0).astype(int)
        tables.append(pd.DataFrame({**rows, "MW": np.append(power, 0.0 - taken).round(3)}))
        state = {**after, "step": state["step"] + 1}
    return pd.concat(tables, ignore_index=True)


def _checked(given: Any, names: list[str], ramped: bool) -> pd.DataFrame:
    """Return the table in the order of the units, as numbers.

    Raises:
        ValueError: see :func:`decide_schedule`.
    """
    if isinstance(given, (str, Path)):
        table = read_table(Path(given).absolute(), "utf-8", None)
    else:
        table = pd.DataFrame(given).copy()
    table.columns = [str(name).strip() for name in table.columns]
    if "unit" not in table and len(table) == len(names):
        table["unit"] = names
    known, needed = ["unit", "hours", "power"], ["unit", "hours", *["power"] * ramped]
    for name in table.columns:
        if name not in known or list(table.columns).count(name) > 1:
            raise ValueError(
                f"The table of units has the column {name!r}, which is unknown or there twice."
                f"{did_you_mean(name, known)} It may have {', '.join(known)}."
            )
    for name in needed:
        if name not in table:
            why = ", for units have ramps" if name == "power" else ""
            raise ValueError(
                f"The table of units needs the column {name!r}{why}; it has {[*table.columns]}."
            )
    table["unit"] = table["unit"].astype(str).str.strip()
    there = [*table["unit"]]
    if sorted(there) != sorted(names):
        wrong = [name for name in there if name not in names or there.count(name) > 1]
        lacks = [name for name in names if name not in there]
        raise ValueError(
            "The table must have a row for each unit of the run; it lacks "
            f"{', '.join(lacks[:5]) or 'none'}, and has unknown or twice "
            f"{', '.join(dict.fromkeys(wrong[:5])) or 'none'}."
        )
    table = table.set_index("unit").loc[names].reset_index()
    for name in needed[1:]:
        values = pd.to_numeric(table[name], errors="coerce").astype(float)
        good = values % 1 == 0 if name == "hours" else values >= 0
        bad = ~(good & np.isfinite(values)) | ((name == "hours") & (values == 0))
        if bad.any():
            at = int(np.argmax(bad))
            words = "whole hours on, or minus those off" if name == "hours" else "MW >= 0"
            raise ValueError(
                f"{name} of {names[at]} must be {words}, got {table[name].iloc[at]!r}."
            )
        table[name] = values
    return table.assign(power=table["power"] if ramped else 0.0)
