"""Which runs belong together: the same problem, the same algorithm, other seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hpo_torchrl.reporting.runs import FINISHED, REPLACED, Run

# Settings under `env` that say how to train on a problem, or on what machine, not what it is.
_NOT_THE_PROBLEM = ("batch_size", "device", "dtype")
# Settings that change neither what is learned nor how fast.
_NO_EFFECT = ("algorithm.name", "trainer.progress", "trainer.log_every", "trainer.checkpoint_every")
_SECTIONS = ("algorithm", "policy", "critic", "trainer")
_GAPS = {"optimum": ("optimal_cost", "gap"), "lower bound": ("lower_bound", "gap_to_lower_bound")}
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
        upper_bound: cost that some known policy attains.
        baselines: costs of simple rules by name.
    """

    label: str
    env: str
    settings: Mapping[str, Any]
    algorithms: Mapping[str, Sequence[Run]]
    reference: str | None = None
    reference_cost: float | None = None
    upper_bound: float | None = None
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

    def lines_to_beat(self) -> dict[str, float]:
        """Return the costs of simple rules, and the upper bound, by name."""
        lines = dict(self.baselines)
        if self.upper_bound is not None:
            lines["upper bound"] = self.upper_bound
        return lines


def group_runs(runs: Sequence[Run]) -> tuple[list[Problem], list[Run], list[str]]:
    """Group runs by problem and algorithm over seeds.

    A problem is the ``env`` section but for its seed and for ``batch_size``, ``device`` and
    ``dtype``, which belong to the training. An algorithm is all else. Labels show the settings
    that differ: those of ``env`` between problems of the same environment, those of ``algorithm``,
    ``policy``, ``critic`` and ``trainer`` between runs of the same algorithm *on the same problem*.
    A setting that changes only from problem to problem, as when larger ones are trained longer, is
    told in a note instead, so that an algorithm keeps its name across problems.

    Args:
        runs: the runs, as :func:`read_runs` returns them.

    Returns:
        The problems; all runs, of which those run again are marked as replaced; notes.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting import Run, group_runs
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
    problem_of = {run.folder: _problem_settings(run) for run in runs}
    algorithm_of = {run.folder: _algorithm_settings(run) for run in runs}
    runs = _mark_replaced(
        runs, {key: _text((problem_of[key], algorithm_of[key])) for key in problem_of}
    )
    counted = [run for run in runs if run.status != REPLACED]
    shown = {
        env: _differing([problem_of[run.folder] for run in counted if _env(run) == env])
        for env in dict.fromkeys(map(_env, counted))
    }
    by_problem: dict[str, list[Run]] = {}
    for run in counted:
        by_problem.setdefault(_env(run) + _text(problem_of[run.folder]), []).append(run)
    varied: dict[str, list[str]] = {}
    for members in by_problem.values():
        for name in dict.fromkeys(map(_name, members)):
            rows = [algorithm_of[run.folder] for run in members if _name(run) == name]
            known = varied.setdefault(name, [])
            known += [key for key in _differing(rows) if key not in known]
    problems, notes = [], []
    for members in by_problem.values():
        algorithms: dict[str, list[Run]] = {}
        for run in members:
            label = _label(_name(run), varied[_name(run)], algorithm_of[run.folder])
            algorithms.setdefault(label, []).append(run)
        first = members[0]
        settings = {key: problem_of[first.folder].get(key, "unset") for key in shown[_env(first)]}
        label = _label(_env(first), list(settings), settings)
        ordered = dict(sorted(algorithms.items()))
        problem, warning = _with_reference(Problem(label, _env(first), settings, ordered))
        problems.append(problem)
        notes += warning
    notes += _moving_settings(counted, algorithm_of, varied)
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
        >>> from hpo_torchrl.reporting import Problem, find_families
        >>> problems = [Problem(f"lqr dim={n}", "lqr", {"dim": n}, {}) for n in (48, 3, 10)]
        >>> families = find_families(problems)
        >>> [problem.label for problem in families["lqr", "dim"][""]]
        ['lqr dim=3', 'lqr dim=10', 'lqr dim=48']
    """
    families: dict[tuple[str, str], dict[str, list[Problem]]] = {}
    for problem in problems:
        for key, value in problem.settings.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            others = {k: v for k, v in problem.settings.items() if k != key}
            title = _label("", list(others), others).strip()
            families.setdefault((problem.env, key), {}).setdefault(title, []).append(problem)
    for (_, key), members in families.items():
        for title, family in list(members.items()):
            family.sort(key=lambda problem: problem.settings[key])
            if len(family) < 2:
                del members[title]
    return {place: members for place, members in families.items() if members}


def _mark_replaced(runs: Sequence[Run], group: Mapping[Any, str]) -> list[Run]:
    """Mark all but the newest run of every problem, algorithm and seed."""
    newest: dict[Any, Run] = {}
    for run in runs:
        place = (_env(run), _name(run), group[run.folder], str(run.seed))
        if place not in newest or run.modified >= newest[place].modified:
            newest[place] = run
    marked = []
    for run in runs:
        kept = newest[_env(run), _name(run), group[run.folder], str(run.seed)]
        if kept is not run:
            note = f"seed {run.seed} again in {kept.folder}, which is newer and {kept.status}"
            run = replace(run, status=REPLACED, note=note)
        marked.append(run)
    return marked


def _env(run: Run) -> str:
    return str(run.config["env"]["name"])


def _name(run: Run) -> str:
    return str(run.config["algorithm"]["name"])


def _problem_settings(run: Run) -> dict[str, Any]:
    flat = _flatten(run.config["env"], "")
    drop = (*_NOT_THE_PROBLEM, "name", "seed")
    return {key: value for key, value in flat.items() if key not in drop}


def _algorithm_settings(run: Run) -> dict[str, Any]:
    flat = _flatten({key: run.config.get(key) for key in _SECTIONS}, "")
    flat |= {f"env.{key}": run.config["env"].get(key) for key in _NOT_THE_PROBLEM}
    return {key: value for key, value in flat.items() if key not in _NO_EFFECT}


def _flatten(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ; tests that follow from other settings are left out."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    differing = [k for k in keys if len({_text(row.get(k, "unset")) for row in rows}) > 1]
    shown = [key for key in differing if not key.startswith("evaluation.")]
    for key in differing:
        if key in shown:
            continue
        coarse = {_text([row.get(k, "unset") for k in shown]) for row in rows}
        fine = {_text([row.get(k, "unset") for k in [*shown, key]]) for row in rows}
        if len(fine) > len(coarse):
            shown.append(key)
    return shown


def _label(name: str, keys: Sequence[str], settings: Mapping[str, Any]) -> str:
    words = [name]
    for key in keys:
        short = key
        for section in ("algorithm.", "trainer.", "env."):
            short = short.removeprefix(section)
        words.append(f"{short}={settings.get(key, 'unset')}")
    return " ".join(words).replace("|", "/").replace("\n", " ")


def _order(problem: Problem) -> tuple[Any, ...]:
    """Sort numbers as numbers."""
    values = [
        (0, value, "") if isinstance(value, (int, float)) else (1, 0.0, str(value))
        for value in problem.settings.values()
    ]
    return (problem.env, values)


def _with_reference(problem: Problem) -> tuple[Problem, list[str]]:
    """Fill in what the runs know about the optimum; notes tell where they disagree."""
    runs = [run for members in problem.algorithms.values() for run in members]
    known = [run.summary for run in runs if run.status == FINISHED]
    notes: list[str] = []

    def agreed(key: str) -> float | None:
        values = [summary[key] for summary in known if summary.get(key) is not None]
        if values and max(values) - min(values) > _SAME * abs(max(values)):
            notes.append(
                f"{problem.label}: the runs give {key} from {min(values):.6g} to "
                f"{max(values):.6g}; the lowest is taken."
            )
        return min(values) if values else None

    reference, cost = None, None
    for name, (key, column) in _GAPS.items():
        cost = agreed(key)
        # Unfinished runs know by their tests alone.
        if cost is not None or any(column in row for run in runs for row in run.tests):
            reference = name
            break
    baselines: dict[str, float] = {}
    for summary in known:
        baselines |= summary.get("baseline_costs") or {}
    filled = replace(
        problem,
        reference=reference,
        reference_cost=cost,
        upper_bound=agreed("upper_bound"),
        baselines=baselines,
    )
    return filled, notes


def _moving_settings(
    runs: Sequence[Run], settings: Mapping[Any, Mapping[str, Any]], varied: Mapping[str, list[str]]
) -> list[str]:
    """Return notes on settings that change from problem to problem."""
    notes = []
    for name, shown in varied.items():
        rows = [settings[run.folder] for run in runs if _name(run) == name]
        for key in _differing(rows):
            if key not in shown:
                values = dict.fromkeys(str(row.get(key, "unset")) for row in rows)
                notes.append(f"{name}: {key} changes with the problem ({', '.join(values)}).")
    return notes
