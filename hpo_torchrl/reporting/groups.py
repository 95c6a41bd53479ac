"""Which runs belong together: the same problem, the same algorithm, other seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hpo_torchrl.reporting.runs import FINISHED, REPLACED, Run

T = TypeVar("T")
TIMES = {"updates": "update", "env_steps": "env_steps", "seconds": "wall_seconds"}
_GAPS = {"optimum": ("optimal_cost", "gap"), "lower bound": ("lower_bound", "gap_to_lower_bound")}
# Relative difference above which two runs give different references.
_SAME = 1e-6


@dataclass(frozen=True)
class Problem:
    """A problem with its runs.

    Attributes:
        label: name of the environment and the settings in which its problems differ.
        env: name of the environment.
        settings: these settings.
        algorithms: runs by label of the algorithm, replaced ones left out.
        reference: ``"optimum"`` or ``"lower bound"``: what gaps are relative to; ``None`` where
            neither is known.
        reference_cost: its cost.
        baselines: costs of simple rules by name, and the upper bound.
    """

    label: str
    env: str
    settings: Mapping[str, Any]
    algorithms: Mapping[str, Sequence[Run]]
    reference: str | None = None
    reference_cost: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)

    @property
    def gap_column(self) -> str:
        """Column of the gap in the metrics of a run."""
        return _GAPS[self.reference][1] if self.reference else "gap"

    def gap(self, cost: float | None) -> float | None:
        """Return cost / reference - 1, or ``None`` where either is unknown."""
        if cost is None or not self.reference_cost:
            return None
        return cost / self.reference_cost - 1.0

    def costs(self, algorithm: str) -> list[float]:
        """Return the test costs of an algorithm's runs that finished."""
        runs = self.algorithms.get(algorithm, ())
        return [float(run.summary["test_cost"]) for run in runs if run.status == FINISHED]

    def gaps(self, algorithm: str) -> list[float]:
        """Return the gaps of these costs; empty where no reference is known."""
        found = map(self.gap, self.costs(algorithm))
        return [gap for gap in found if gap is not None]

    def times(self, runs: Sequence[Run], target: float) -> dict[str, list[float]] | None:
        """Return updates, environment steps and seconds of each run to the target gap.

        See :meth:`Run.time_to_target`; infinity where a run did not get there, or did not finish.
        ``None`` where no gap is known, and for rules, which do not train.
        """
        if self.reference is None or not any(run.learns for run in runs):
            return None
        rows = [run.time_to_target(target, self.gap_column) for run in runs]
        return {
            unit: [math.inf if row is None else row[column] for row in rows]
            for unit, column in TIMES.items()
        }


def group_runs(runs: Sequence[Run]) -> tuple[list[Problem], list[Run], list[str]]:
    """Group runs by problem and algorithm over seeds.

    A problem is the ``env`` section but for its seed, device and dtype; an algorithm is all else.
    Labels show the settings that differ: those of ``env`` between problems of the same environment,
    the others between runs of the same algorithm *on the same problem*. A setting that changes only
    from problem to problem, as when larger ones are trained longer, is told in a note instead, so
    that an algorithm keeps its name across problems.

    Args:
        runs: the runs, as :func:`read_runs` returns them.

    Returns:
        The problems; all runs, of which those run again are marked as replaced; notes.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting.groups import group_runs
        >>> from hpo_torchrl.reporting.runs import Run
        >>> def run(items, seed, cross_term):
        ...     return Run(Path(f"{items}-{seed}-{cross_term}"), {
        ...         "env": {"name": "inventory", "num_items": items}, "trainer": {}, "seed": seed,
        ...         "algorithm": {"name": "hpo", "cross_term": cross_term}})
        >>> problems, _, _ = group_runs([run(1, 0, True), run(1, 0, False), run(2, 0, True)])
        >>> for problem in problems:
        ...     print(problem.label, list(problem.algorithms))
        inventory num_items=1 ['hpo cross_term=False', 'hpo cross_term=True']
        inventory num_items=2 ['hpo cross_term=True']
    """
    runs = _mark_replaced(runs)
    counted = [run for run in runs if run.status != REPLACED]
    by_problem = gather(counted, lambda run: (run.env, _text(run.problem))).values()
    shown = {
        env: _differing([run.problem for run in members])
        for env, members in gather(counted, lambda run: run.env).items()
    }
    varied: dict[str, list[str]] = {}
    for members in by_problem:
        for name, same in gather(members, lambda run: run.algorithm).items():
            known = varied.setdefault(name, [])
            known += [key for key in _differing([r.training for r in same]) if key not in known]
    problems, notes = [], []
    for members in by_problem:
        algorithms = gather(
            members, lambda run: _label(run.algorithm, _chosen(run.training, varied[run.algorithm]))
        )
        settings = _chosen(members[0].problem, shown[members[0].env])
        env = members[0].env
        problem = Problem(_label(env, settings), env, settings, dict(sorted(algorithms.items())))
        problem, doubts = _with_reference(problem)
        problems.append(problem)
        notes += doubts
    for name, same in gather(counted, lambda run: run.algorithm).items():
        rows = [run.training for run in same]
        for key in _differing(rows):
            if key not in varied[name] and not key.startswith("evaluation."):
                values = ", ".join(dict.fromkeys(str(row.get(key, "unset")) for row in rows))
                notes.append(f"{name}: {key} changes with the problem ({values}).")
    return sorted(problems, key=_order), runs, notes


def find_families(
    problems: Sequence[Problem],
) -> dict[tuple[str, str], dict[str, list[Problem]]]:
    """Return problems that differ in one numerical setting alone, smallest first.

    Args:
        problems: the problems.

    Returns:
        By environment and setting, and by what its other settings are (an empty string if there
        are none that differ): at least two problems.

    Examples:
        >>> from hpo_torchrl.reporting.groups import Problem, find_families
        >>> problems = [Problem(f"lqr dim={n}", "lqr", {"dim": n}, {}) for n in (48, 3, 10)]
        >>> families = find_families(problems)
        >>> [problem.label for problem in families["lqr", "dim"][""]]
        ['lqr dim=3', 'lqr dim=10', 'lqr dim=48']
    """
    families: dict[tuple[str, str], dict[str, list[Problem]]] = {}
    for problem in sorted(problems, key=_order):
        for key, value in problem.settings.items():
            if _is_number(value):
                title = _label("", {k: v for k, v in problem.settings.items() if k != key})
                family = families.setdefault((problem.env, key), {}).setdefault(title, [])
                family.append(problem)
    found = {
        place: {title: family for title, family in members.items() if len(family) > 1}
        for place, members in families.items()
    }
    return {place: members for place, members in found.items() if members}


def gather(items: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Return items in groups of equal keys, in the order in which the keys come up."""
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def algorithms_of(problems: Iterable[Problem]) -> list[str]:
    """Return the labels of all algorithms of some problems."""
    return list(dict.fromkeys(name for problem in problems for name in problem.algorithms))


def _mark_replaced(runs: Sequence[Run]) -> list[Run]:
    """Mark all but the newest run of every problem, algorithm and seed."""
    marked = {id(run): run for run in runs}
    for same in gather(
        runs, lambda run: _text((run.env, run.problem, run.algorithm, run.training, run.seed))
    ).values():
        kept = max(reversed(same), key=lambda run: run.modified)
        note = f"seed {kept.seed} again in {kept.folder}, which is newer and {kept.status}"
        for run in same:
            if run is not kept:
                marked[id(run)] = replace(run, status=REPLACED, note=note)
    return list(marked.values())


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if len({_text(row.get(key, "unset")) for row in rows}) > 1]


def _chosen(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: settings.get(key, "unset") for key in keys}


def _label(name: str, settings: Mapping[str, Any]) -> str:
    words = [name]
    for key, value in settings.items():
        section, _, short = key.partition(".")
        words.append(f"{short if section in ('algorithm', 'trainer', 'collect') else key}={value}")
    return " ".join(words).strip().replace("|", "/").replace("\n", " ")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _order(problem: Problem) -> tuple[Any, ...]:
    """Sort numbers as numbers."""
    values = problem.settings.values()
    return problem.env, [(0, v, "") if _is_number(v) else (1, 0.0, str(v)) for v in values]


def _with_reference(problem: Problem) -> tuple[Problem, list[str]]:
    """Fill in what the runs know about the optimum; notes tell where they disagree."""
    runs = [run for members in problem.algorithms.values() for run in members]
    known = [run.summary for run in runs if run.status == FINISHED]
    costs, notes = {}, []
    for key in ("optimal_cost", "lower_bound", "upper_bound"):
        values = [summary[key] for summary in known if summary.get(key) is not None]
        costs[key] = min(values, default=None)
        if values and max(values) - min(values) > _SAME * abs(max(values)):
            notes.append(
                f"{problem.label}: the runs give {key} from {min(values):.6g} to "
                f"{max(values):.6g}; the lowest is taken."
            )
    baselines: dict[str, float] = {}
    for summary in known:
        baselines |= summary.get("baseline_costs") or {}
    if costs["upper_bound"] is not None:
        baselines["upper bound"] = costs["upper_bound"]
    for name, (key, column) in _GAPS.items():
        # Unfinished runs know by their tests alone.
        if costs[key] is not None or any(column in row for run in runs for row in run.tests):
            problem = replace(problem, reference=name, reference_cost=costs[key])
            break
    return replace(problem, baselines=baselines), notes
