"""Algorithms compared problem by problem, in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.reporting.groups import TIMES, Problem, algorithms_of
from hpo_torchrl.reporting.runs import FINISHED
from hpo_torchrl.reporting.statistics import (
    Estimate,
    estimate_improvement,
    estimate_iqm,
    estimate_median_ratio,
)


def compare_algorithms(problems: Sequence[Problem], *, target: float) -> list[dict[str, Any]]:
    """Return one row per problem and algorithm: costs, gaps and times to a target gap.

    Args:
        problems: as :func:`group_runs` returns them.
        target: gap to reach, above 0: 0.10 is 10 % above the reference.

    Returns:
        Rows with the keys ``problem``, ``algorithm``, ``seeds`` (runs in all), ``finished``;
        ``cost_iqm`` (an :class:`Estimate`, per unit and period); ``reference`` (what the gap is
        to), ``reference_cost``; ``gap_iqm`` (an estimate), ``gap_worst``; ``reached`` (runs that
        reached the target), ``updates_to_target``, ``env_steps_to_target``, ``seconds_to_target``
        (medians over all runs, infinite where half of them never did) and ``wall_seconds`` (median
        of the finished runs). What is unknown is ``None``, or an estimate of NaN.

    Raises:
        TypeError: ``target`` is not a number.
        ValueError: it is not above 0.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting.compare import compare_algorithms
        >>> from hpo_torchrl.reporting.groups import group_runs
        >>> from hpo_torchrl.reporting.runs import Run
        >>> config = {"env": {"name": "inventory"}, "algorithm": {"name": "hpo"}, "trainer": {}}
        >>> runs = [Run(Path(f"run-{seed}"), {**config, "seed": seed}, status="finished", summary={
        ...     "test_cost": 100.0 + seed, "optimal_cost": 100.0, "wall_seconds": 60.0})
        ...     for seed in range(5)]
        >>> (row,) = compare_algorithms(group_runs(runs)[0], target=0.10)
        >>> row["seeds"], row["cost_iqm"].value, round(row["gap_worst"], 6), row["reached"]
        (5, 102.0, 0.04, 0)
    """
    check_float("target", target, minimum=0.0, strict=True)
    rows = []
    for problem in problems:
        for name, runs in problem.algorithms.items():
            costs, gaps = problem.costs(name), problem.gaps(name)
            times = problem.times(runs, target)
            seconds = [run.summary["wall_seconds"] for run in runs if run.status == FINISHED]
            row = {
                "problem": problem.label,
                "algorithm": name,
                "seeds": len(runs),
                "finished": len(costs),
                "cost_iqm": _iqm(costs),
                "reference": problem.reference,
                "reference_cost": problem.reference_cost,
                "gap_iqm": _iqm(gaps),
                "gap_worst": max(gaps, default=None),
                "reached": times and sum(map(math.isfinite, times["updates"])),
            }
            for unit in TIMES:
                row[f"{unit}_to_target"] = times and float(np.median(times[unit]))
            row["wall_seconds"] = float(np.median(seconds)) if seconds else None
            rows.append(row)
    return rows


def compare_pairs(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Return the probability that one algorithm costs less than another, for every pair.

    Args:
        problems: as :func:`group_runs` returns them. Several are averaged over those on which both
            algorithms finished a run.

    Returns:
        Rows with the keys ``first``, ``second``, ``problems`` (how many) and ``probability``, an
        estimate; see :func:`estimate_improvement`.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting.compare import compare_pairs
        >>> from hpo_torchrl.reporting.groups import Problem
        >>> from hpo_torchrl.reporting.runs import Run
        >>> def runs(*costs):
        ...     return [Run(Path(), {}, {"test_cost": c}, status="finished") for c in costs]
        >>> problem = Problem("lqr", "lqr", {}, {"hpo": runs(1.0, 2.0), "ppo": runs(1.5, 3.0)})
        >>> compare_pairs([problem])[0]["probability"].value
        0.75
    """
    rows = []
    for first, second in combinations(algorithms_of(problems), 2):
        costs = [(problem.costs(first), problem.costs(second)) for problem in problems]
        shared = [pair for pair in costs if all(pair)]
        if shared:
            probability = estimate_improvement(*zip(*shared, strict=True))
            row = {"first": first, "second": second, "problems": len(shared)}
            rows.append(row | {"probability": probability})
    return rows


def compare_times(problem: Problem, *, target: float) -> list[dict[str, Any]]:
    """Return how many times as long as the fastest algorithm the others take to the target.

    Args:
        problem: the problem.
        target: gap to reach.

    Returns:
        Rows with the keys ``algorithm``, ``fastest`` (the one with the lowest median number of
        updates), ``updates_ratio`` and ``seconds_ratio``, which are estimates. Empty if no
        algorithm got there in at least half of its runs. See :func:`estimate_median_ratio`.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting.compare import compare_times
        >>> from hpo_torchrl.reporting.groups import Problem
        >>> from hpo_torchrl.reporting.runs import Run
        >>> def runs(update):
        ...     tests = [{"update": update + k, "env_steps": 64.0, "wall_seconds": 1.0, "gap": 0.0}
        ...         for k in (0, 10)]
        ...     return [Run(Path(), {}, tests=tests, status="finished")] * 3
        >>> problem = Problem("lqr", "lqr", {}, {"hpo": runs(20), "ppo": runs(50)}, "optimum", 1.0)
        >>> (row,) = compare_times(problem, target=0.10)
        >>> row["algorithm"], row["fastest"], row["updates_ratio"]
        ('ppo', 'hpo', Estimate(value=2.5, low=2.5, high=2.5))
    """
    found = {name: problem.times(runs, target) for name, runs in problem.algorithms.items()}
    times = {name: time for name, time in found.items() if time is not None}
    medians = {
        name: (np.median(time["updates"]), np.median(time["seconds"]))
        for name, time in times.items()
    }
    fastest = min(medians, key=lambda name: medians[name], default=None)
    if fastest is None or not math.isfinite(medians[fastest][0]):
        return []
    return [
        {"algorithm": name, "fastest": fastest}
        | {
            f"{unit}_ratio": estimate_median_ratio(time[unit], times[fastest][unit])
            for unit in ("updates", "seconds")
        }
        for name, time in times.items()
        if name != fastest
    ]


def compare_overall(problems: Sequence[Problem]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the gap of every algorithm over the problems that all of them share.

    Args:
        problems: as :func:`group_runs` returns them.

    Returns:
        Rows with the keys ``algorithm``, ``runs``, ``gap_iqm`` (an estimate) and ``gap_worst``, and
        those problems; no rows for fewer than two. The intervals are of a bootstrap stratified by
        problem; see :func:`estimate_iqm`.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting.compare import compare_overall
        >>> from hpo_torchrl.reporting.groups import Problem
        >>> from hpo_torchrl.reporting.runs import Run
        >>> def runs(*costs):
        ...     return [Run(Path(), {}, {"test_cost": c}, status="finished") for c in costs]
        >>> problems = [Problem(name, name, {}, {"hpo": runs(100.0 + gap, 102.0 + gap)}, "optimum",
        ...     100.0) for name, gap in (("inventory", 0.0), ("lqr", 4.0))]
        >>> (row,), shared = compare_overall(problems)
        >>> len(shared), row["runs"], round(row["gap_iqm"].value, 6), round(row["gap_worst"], 6)
        (2, 4, 0.03, 0.06)
    """
    names = algorithms_of(problems)
    shared = [problem for problem in problems if all(problem.gaps(name) for name in names)]
    rows = []
    for name in names if len(shared) > 1 else ():
        gaps = [problem.gaps(name) for problem in shared]
        row = {"algorithm": name, "runs": sum(map(len, gaps)), "gap_iqm": estimate_iqm(*gaps)}
        rows.append(row | {"gap_worst": max(map(max, gaps))})
    return rows, shared


def _iqm(values: Sequence[float]) -> Estimate:
    return estimate_iqm(values) if values else Estimate(math.nan)
