"""What a policy does with each unit: hours, starts, energy and costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.problems.unit_commitment.operation import VIOLATIONS, Operation, operate
from hpo_torchrl.problems.unit_commitment.picture import plot_schedules
from hpo_torchrl.problems.unit_commitment.rules import PriorityList

TOTAL = "all"


def describe_schedule(
    env: Any,
    policy: Any,
    tests: Mapping[str, Test],
    reference: Reference,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Say what a policy does on a mean day of the primary test, and draw the first one.

    Args:
        env: the environment of the primary test.
        policy: the policy.
        tests: all tests by name.
        reference: that of the primary test; its policy is drawn beside the learned one.
        folder: where ``policy.png`` goes, or ``None``.

    Returns:
        ``cost_per_day``, of fuel, starts and wear in $; apart from it, in MWh a day, ``unserved``,
        ``surplus`` and ``reserve_short``; ``starts_per_day``; ``hours_per_day`` of each unit;
        and ``in_words``, the line of the printed summary.
    """
    # The environment of a test may be this one within others.
    own = (test for test in tests.values() if getattr(plain(test.env), "days", None) is env.days)
    test = next(own, None)
    if test is None:
        return {}
    found = operate(test, policy)
    if folder is not None:
        known = reference.policy is not None
        others = {_title(reference): operate(test, reference.policy)} if known else {}
        plot_schedules(folder / "policy.png", env.units, {"learned": found, **others})
    lacks = {name: float(getattr(found, name).sum(1).mean()) for name in VIOLATIONS}
    hours = found.on.sum(1).mean(0)
    facts = {
        "cost_per_day": float(found.cost.mean()),
        "unserved": lacks["unserved"],
        "surplus": lacks["surplus"],
        "reserve_short": lacks["reserve"],
        "starts_per_day": float(found.started.sum((1, 2)).mean()),
    }
    words = (
        "$ {cost_per_day:,.0f} of fuel and starts ({starts_per_day:.1f}); MWh unserved "
        "{unserved:.4g}, surplus {surplus:.4g}, reserve lacking {reserve_short:.4g}"
    )
    hours_of = dict(zip(env.units.names, hours.round(3).tolist(), strict=True))
    return facts | {"hours_per_day": hours_of, "in_words": {"a day": words.format(**facts)}}


def _title(reference: Reference) -> str:
    """Return what the policy of a reference is called."""
    if isinstance(reference.policy, PriorityList):
        return "priority list"
    return "optimal" if reference.optimal_cost is not None else "best schedule found"


def unit_details(env: Any, found: Operation) -> pd.DataFrame:
    """Return hours, starts, energy and costs of a mean day, of each unit and of all.

    Args:
        env: the environment.
        found: what was done in a test.

    Returns:
        A row for each unit, for the batteries, for what was ``unserved``, ``surplus`` and short of
        ``reserve``, and for all together: ``hours`` on; ``starts``; ``energy`` in MWh; and, in $,
        ``fuel``, ``start_cost`` and ``cost``, which is their sum, the wear or the penalty.
    """
    rows = pd.DataFrame(
        {
            "unit": env.units.names,
            "hours": found.on.sum(1).mean(0),
            "starts": found.started.sum(1).mean(0),
            "energy": found.power.sum(1).mean(0),
            "fuel": found.fuel.sum(1).mean(0),
            "start_cost": found.starts.sum(1).mean(0),
        }
    )
    rows["cost"] = rows["fuel"] + rows["start_cost"]
    if env.batteries is not None:
        given, wear = -found.taken.sum((1, 2)).mean(), found.wear.sum(1).mean()
        store = {"unit": "batteries", "energy": given, "cost": wear}
        rows = pd.concat([rows, pd.DataFrame([store])], ignore_index=True)
    total = {"unit": TOTAL, **rows.drop(columns="unit").sum()}
    lacks = []
    for name, penalty in env.penalties.items():
        energy = float(getattr(found, name).sum(1).mean())
        lacks.append({"unit": name, "energy": energy, "cost": penalty * energy})
        total["cost"] += penalty * energy
    return pd.concat([rows, pd.DataFrame([*lacks, total])], ignore_index=True)


def compare_details(
    test: Any, policies: Mapping[str, Any], folder: str | Path | None = None
) -> pd.DataFrame:
    """Return the details of several policies in one table, with a first column ``policy``.

    Args:
        test: the test, an ``Evaluation`` of a :class:`~hpo_torchrl.problems.UnitCommitmentEnv`.
        policies: policies and rules by name; all meet the same days.
        folder: where the table, ``units.csv``, and the picture of the first day, ``schedule.png``,
            go.

    Examples:
        >>> from hpo_torchrl.problems import UnitCommitmentEnv
        >>> from hpo_torchrl.problems.unit_commitment.rules import PriorityList
        >>> from hpo_torchrl.training import Evaluation
        >>> env = UnitCommitmentEnv(batch_size=1)
        >>> test = Evaluation(env, num_steps=24, seed=0)
        >>> found = compare_details(test, {"list": PriorityList(env)}).set_index("unit")
        >>> found.loc["unit 1", ["hours", "starts"]].tolist()
        [24.0, 0.0]
    """
    env = plain(test.env)
    found = {name: operate(test, policy) for name, policy in policies.items()}
    tables = [unit_details(env, each).assign(policy=name) for name, each in found.items()]
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "policy", table.pop("policy"))
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        table.to_csv(Path(folder) / "units.csv", index=False)
        plot_schedules(Path(folder) / "schedule.png", env.units, found)
    return table
