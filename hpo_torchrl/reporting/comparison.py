"""Algorithms compared problem by problem, in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.reporting.groups import Problem
from hpo_torchrl.reporting.runs import FINISHED, Run
from hpo_torchrl.reporting.statistics import (
    Estimate,
    estimate_improvement,
    estimate_iqm,
    estimate_median_ratio,
)

_TIMES = {"updates": "update", "env_steps": "env_steps", "seconds": "wall_seconds"}


def compare_algorithms(problems: Sequence[Problem], *, target: float) -> list[dict[str, Any]]:
    """Return one row per problem and algorithm: costs, gaps and times to a target gap.

    Args:
        problems: as :func:`group_runs` returns them.
        target: gap to reach, above 0: 0.10 is 10 % above the reference.

    Returns:
        Rows with the keys ``problem``, ``algorithm``, ``seeds`` (runs in all), ``finished``;
        ``cost_iqm`` with ``_low`` and ``_high`` (cost per unit and period); ``reference`` (what
        the gap is to), ``reference_cost``; ``gap_iqm`` with ``_low`` and ``_high``, ``gap_worst``;
        ``reached`` (runs that reached the target), ``updates_to_target``, ``env_steps_to_target``,
        ``seconds_to_target`` (medians over all runs, infinite where half of them never did) and
        ``wall_seconds`` (median of the finished runs). What is unknown is ``None``.

    Raises:
        TypeError: ``target`` is not a number.
        ValueError: it is not above 0.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting import Run, compare_algorithms, group_runs
        >>> config = {"env": {"name": "inventory"}, "algorithm": {"name": "hpo"}, "trainer": {}}
        >>> runs = [Run(Path(f"run-{seed}"), {**config, "seed": seed}, status="finished", summary={
        ...     "test_cost": 100.0 + seed, "optimal_cost": 100.0, "wall_seconds": 60.0})
        ...     for seed in range(5)]
        >>> (row,) = compare_algorithms(group_runs(runs)[0], target=0.10)
        >>> row["seeds"], row["cost_iqm"], round(row["gap_worst"], 6), row["reached"]
        (5, 102.0, 0.04, 0)
    """
    check_float("target", target, minimum=0.0, strict=True)
    rows = []
    for problem in problems:
        for algorithm, runs in problem.algorithms.items():
            costs = finished_costs(runs)
            gaps = [gap for gap in map(problem.gap, costs) if gap is not None]
            row = {"problem": problem.label, "algorithm": algorithm, "seeds": len(runs)}
            row |= {"finished": len(costs)}
            row |= _columns("cost_iqm", estimate_iqm(costs) if costs else None)
            row |= {"reference": problem.reference, "reference_cost": problem.reference_cost}
            row |= _columns("gap_iqm", estimate_iqm(gaps) if gaps else None)
            row |= {"gap_worst": max(gaps) if gaps else None}
            times = times_to_target(problem, runs, target)
            known = problem.reference is not None
            row["reached"] = sum(map(math.isfinite, times["updates"])) if known else None
            for name, values in times.items():
                row[f"{name}_to_target"] = float(np.median(values)) if known else None
            seconds = [run.summary["wall_seconds"] for run in runs if run.status == FINISHED]
            row["wall_seconds"] = float(np.median(seconds)) if seconds else None
            rows.append(row)
    return rows


def compare_pairs(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Return the probability that one algorithm costs less than another, for every pair.

    Args:
        problems: as :func:`group_runs` returns them. Several are averaged over those on which both
            algorithms finished a run.

    Returns:
        Rows with the keys ``first``, ``second``, ``problems`` (how many), ``probability`` with
        ``_low`` and ``_high``; see :func:`estimate_improvement`.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting import Problem, Run, compare_pairs
        >>> def runs(*costs):
        ...     return [Run(Path(), {}, {"test_cost": c}, status="finished") for c in costs]
        >>> problem = Problem("lqr", "lqr", {}, {"hpo": runs(1.0, 2.0), "ppo": runs(1.5, 3.0)})
        >>> compare_pairs([problem])[0]["probability"]
        0.75
    """
    rows = []
    names = list(dict.fromkeys(name for problem in problems for name in problem.algorithms))
    for first, second in combinations(names, 2):
        costs = [
            [finished_costs(problem.algorithms.get(name, ())) for name in (first, second)]
            for problem in problems
        ]
        shared = [pair for pair in costs if all(pair)]
        if shared:
            xs, ys = zip(*shared, strict=True)
            row = {"first": first, "second": second, "problems": len(shared)}
            rows.append(row | _columns("probability", estimate_improvement(xs, ys)))
    return rows


def compare_times(problem: Problem, *, target: float) -> list[dict[str, Any]]:
    """Return how many times as long as the fastest algorithm the others take to the target.

    Args:
        problem: the problem.
        target: gap to reach.

    Returns:
        Rows with the keys ``algorithm``, ``fastest`` (the one with the lowest median number of
        updates), ``updates_ratio`` and ``seconds_ratio``, each with ``_low`` and ``_high``. Empty
        if no algorithm got there in at least half of its runs. See :func:`estimate_median_ratio`.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting import Problem, Run, compare_times
        >>> def runs(update):
        ...     tests = [{"update": update + k, "env_steps": 64.0, "wall_seconds": 1.0, "gap": 0.0}
        ...         for k in (0, 10)]
        ...     return [Run(Path(), {}, tests=tests, status="finished")] * 3
        >>> problem = Problem("lqr", "lqr", {}, {"hpo": runs(20), "ppo": runs(50)}, "optimum", 1.0)
        >>> (row,) = compare_times(problem, target=0.10)
        >>> row["algorithm"], row["fastest"], row["updates_ratio"], row["updates_ratio_low"]
        ('ppo', 'hpo', 2.5, 2.5)
    """
    times = {
        name: times_to_target(problem, runs, target) for name, runs in problem.algorithms.items()
    }
    medians = {
        name: (float(np.median(time["updates"])), float(np.median(time["seconds"])))
        for name, time in times.items()
    }
    fastest = min(medians, key=lambda name: medians[name])
    if problem.reference is None or not math.isfinite(medians[fastest][0]):
        return []
    rows = []
    for name, time in times.items():
        if name != fastest:
            row: dict[str, Any] = {"algorithm": name, "fastest": fastest}
            for unit in ("updates", "seconds"):
                ratio = estimate_median_ratio(time[unit], times[fastest][unit])
                row |= _columns(f"{unit}_ratio", ratio)
            rows.append(row)
    return rows


def compare_overall(problems: Sequence[Problem]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the gap of every algorithm over the problems that all of them share.

    Args:
        problems: as :func:`group_runs` returns them.

    Returns:
        Rows with the keys ``algorithm``, ``runs``, ``gap_iqm`` with ``_low`` and ``_high`` and
        ``gap_worst``, and those problems; no rows for fewer than two. The intervals are of a
        bootstrap stratified by problem; see :func:`estimate_iqm`.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting import Problem, Run, compare_overall
        >>> def runs(*costs):
        ...     return [Run(Path(), {}, {"test_cost": c}, status="finished") for c in costs]
        >>> problems = [Problem(name, name, {}, {"hpo": runs(100.0 + gap, 102.0 + gap)}, "optimum",
        ...     100.0) for name, gap in (("inventory", 0.0), ("lqr", 4.0))]
        >>> (row,), shared = compare_overall(problems)
        >>> len(shared), row["runs"], round(row["gap_iqm"], 6), round(row["gap_worst"], 6)
        (2, 4, 0.03, 0.06)
    """
    names = list(dict.fromkeys(name for problem in problems for name in problem.algorithms))
    gaps: dict[str, list[list[float]]] = {name: [] for name in names}
    shared = []
    for problem in problems:
        costs = {name: finished_costs(problem.algorithms.get(name, ())) for name in names}
        if problem.reference_cost and all(costs.values()):
            shared.append(problem)
            for name in names:
                gaps[name].append([cost / problem.reference_cost - 1.0 for cost in costs[name]])
    if len(shared) < 2:
        return [], shared
    rows = []
    for name in names:
        row = {"algorithm": name, "runs": sum(map(len, gaps[name]))}
        row |= _columns("gap_iqm", estimate_iqm(*gaps[name]))
        rows.append(row | {"gap_worst": max(map(max, gaps[name]))})
    return rows, shared


def finished_costs(runs: Sequence[Run]) -> list[float]:
    """Return the test costs of the runs that finished."""
    return [float(run.summary["test_cost"]) for run in runs if run.status == FINISHED]


def times_to_target(problem: Problem, runs: Sequence[Run], target: float) -> dict[str, list[float]]:
    """Return updates, environment steps and seconds of each run to the target gap.

    See :meth:`Run.time_to_target`; infinity where a run did not get there, or did not finish.
    """
    rows = [run.time_to_target(target, problem.gap_column) for run in runs]
    return {
        name: [math.inf if row is None else row[column] for row in rows]
        for name, column in _TIMES.items()
    }


def _columns(name: str, estimate: Estimate | None) -> dict[str, Any]:
    value, low, high = estimate or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
