"""The report on many runs: tables, figures and files in one folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.reporting.comparison import (
    compare_algorithms,
    compare_overall,
    compare_pairs,
    times_to_target,
)
from hpo_torchrl.reporting.comparison_figures import (
    plot_gap_against_size,
    plot_learning_curves,
    plot_updates_against_size,
)
from hpo_torchrl.reporting.comparison_gradients import (
    compare_gradients,
    format_gradient_comparison,
    plot_gradients_against_size,
)
from hpo_torchrl.reporting.comparison_tables import format_comparison, format_overall, format_pairs
from hpo_torchrl.reporting.gradients import write_rows
from hpo_torchrl.reporting.groups import Problem, find_families, group_runs
from hpo_torchrl.reporting.runs import (
    DAMAGED,
    FINISHED,
    REPLACED,
    UNFINISHED,
    Run,
    RunFolders,
    read_runs,
)

_LEGEND = """\
* Runs of the same problem and algorithm differ by their seed alone. *Seeds* "4 of 5": five runs, of
  which four finished and have a test cost.
* *Test cost* is per unit and period, from the test at the end of each run. It and the *gap*, cost /
  reference - 1, are interquartile means: the lowest and the highest quarter of the runs, rounded
  down, are left out. *Worst* is the largest gap of a run that finished.
* [low, high] is a 95 % percentile interval of a bootstrap over runs, stratified by problem where
  several are pooled; [-] stands where a single run allows none. With few runs such intervals are
  too narrow: of normal scores they cover the truth in 50 % of all cases with two runs, 76 % with
  three, 91 % with five and 94 % with ten.
* Above a *lower bound* the true gap to the optimum is smaller than the one shown.
* *To {target:g} %*: the first of two tests in succession, during training, within {target:g} % of
  the reference. *Reached* counts the runs that got there. Medians are over all runs; one that never
  got there, or did not finish, counts as infinity, and "never" stands where half of them did not.
  The resolution is the distance between tests.
* *Wall seconds* is the median training time of the finished runs; it compares machines too.
* *Probability of improvement*: the share of pairs of finished runs, one of each algorithm, in which
  the first costs less; ties count half. [1.00, 1.00] only says that all runs of one beat all of the
  other.
* A ratio of times divides medians, so that 2 is twice as long; the fastest is chosen by these same
  runs, which flatters it. Resamples in which neither gets there widen the interval at both ends.

Interquartile mean, stratified bootstrap and probability of improvement as in Agarwal et al. (2021),
*Deep reinforcement learning at the edge of the statistical precipice*, NeurIPS."""
_GRADIENTS = """\
Signal / noise is the length of the mean gradient over how far one batch strays from it; alignment
is the cosine of one batch with a well-averaged mixed gradient. Of one folder, [low, high] is the
report's own interval over batches; of several, the interquartile mean and a bootstrap over
folders."""


def write_report(
    folders: Iterable[str | Path], output: str | Path, *, target: float = 0.10
) -> tuple[str, list[Path]]:
    """Compare the runs under some folders, and write tables and figures.

    Args:
        folders: where to search for runs, at any depth; nothing there is changed.
        output: folder of ``report.md``, ``runs.csv`` (a row per run), ``comparison.csv`` (a row
            per problem and algorithm) and the figures ``report-*.png``. Those of an earlier report
            are replaced.
        target: gap to the reference that times are measured to: 0.10 is 10 %.

    Returns:
        The tables as text, and the files written.

    Raises:
        FileNotFoundError: a folder does not exist.
        NotADirectoryError: a folder, or the output, is a file.
        TypeError: ``target`` is not a number.
        ValueError: it is not above 0, or there is no run that can be read.

    Examples:
        >>> import json, tempfile, yaml
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting import write_report
        >>> config = {"env": {"name": "inventory"}, "algorithm": {"name": "hpo"},
        ...     "trainer": {"num_updates": 100}, "seed": 0}
        >>> summary = {"test_cost": 37.1, "updates": 100, "env_steps": 1000, "wall_seconds": 3.0}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config))
        ...     _ = (Path(folder) / "summary.json").write_text(json.dumps(summary))
        ...     text, written = write_report([folder], Path(folder) / "report")
        >>> print(text.splitlines()[2])
        1 run: 1 finished; 1 problem, 1 algorithm.
        >>> [path.name for path in written]
        ['report.md', 'runs.csv', 'comparison.csv']
    """
    check_float("target", target, minimum=0.0, strict=True)
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output {output} is a file; name a folder.")
    found = read_runs(folders)
    problems, runs, notes = group_runs(found.runs)
    output.mkdir(parents=True, exist_ok=True)
    rows = compare_algorithms(problems, target=target)
    names = sorted({name for problem in problems for name in problem.algorithms})
    pictures = _Pictures(output, names)
    sections = [
        _heading(runs, problems),
        *_problem_sections(problems, rows, target, pictures),
        *_size_section(problems, target, pictures),
        *_gradient_section(found, problems, pictures),
        *_rest(runs, found.unreadable, notes),
    ]
    legend = f"## What the numbers mean\n\n{_LEGEND.format(target=100 * target)}"
    report = output / "report.md"
    report.write_text("\n\n".join([*sections, legend]) + "\n", encoding="utf-8")
    written = [report]
    if runs:
        written.append(write_rows(output / "runs.csv", _run_rows(runs, problems, target)))
        written.append(write_rows(output / "comparison.csv", rows))
    text = "\n\n".join(section for section in sections if "![" not in section)
    return text, written + pictures.written


class _Pictures:
    """Names and counts the figures of a report, in which each algorithm keeps its colour."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names, self.written = folder, names, list[Path]()

    def path(self, kind: str, of: str) -> Path:
        """Return a new file name for a picture of something."""
        words = re.sub(r"[^A-Za-z0-9_.=]+", "-", of).strip("-.")[:80]
        path = self.folder / f"report-{kind}-{words}.png"
        number = 2
        while path in self.written:
            path = path.with_name(f"report-{kind}-{words}-{number}.png")
            number += 1
        return path

    def embed(self, path: Path | None, title: str) -> list[str]:
        """Return the markdown that shows a picture, if it was drawn."""
        if path is None:
            return []
        self.written.append(path)
        return [f"![{title.replace('[', '(').replace(']', ')')}]({path.name})"]


def _heading(runs: Sequence[Run], problems: Sequence[Problem]) -> str:
    found = [run.status for run in runs]
    states = [
        f"{found.count(status)} {status}"
        for status in (FINISHED, UNFINISHED, DAMAGED, REPLACED)
        if status in found
    ]
    algorithms = {name for problem in problems for name in problem.algorithms}
    return (
        f"# Comparison of runs\n\n{_count(len(runs), 'run')}: {', '.join(states) or 'none'}; "
        f"{_count(len(problems), 'problem')}, {_count(len(algorithms), 'algorithm')}."
    )


def _problem_sections(
    problems: Sequence[Problem], rows: Sequence[Any], target: float, pictures: _Pictures
) -> list[str]:
    sections = []
    for problem in problems:
        sections.append(f"## {problem.label}\n\n{format_comparison(problem, rows, target=target)}")
        path = pictures.path("curves", problem.label)
        drawn = plot_learning_curves(path, problem, names=pictures.names)
        sections += pictures.embed(drawn, f"Learning curves of {problem.label}")
    overall, shared = compare_overall(problems)
    if len(overall) > 1:
        text = f"## Over the {len(shared)} problems that all algorithms share"
        if len({problem.reference for problem in shared}) > 1:
            text += "\n\nGaps to optima and to lower bounds are pooled here."
        pairs = format_pairs(compare_pairs(shared))
        sections.append("\n\n".join([text, format_overall(overall), pairs]))
    return sections


def _size_section(problems: Sequence[Problem], target: float, pictures: _Pictures) -> list[str]:
    sections = []
    for (env, setting), families in find_families(problems).items():
        known = {
            title: family
            for title, family in families.items()
            if any(problem.reference_cost for problem in family)
        }
        if not known:
            continue
        parts = [f"## {env} against {setting}"]
        path = pictures.path(f"gap-{env}", setting)
        plot_gap_against_size(path, setting, known, names=pictures.names)
        parts += pictures.embed(path, f"Gap against {setting}")
        path = pictures.path(f"updates-{env}", setting)
        plot_updates_against_size(path, setting, known, target=target, names=pictures.names)
        parts += pictures.embed(path, f"Updates to the target against {setting}")
        sections.append("\n\n".join(parts))
    return sections


def _gradient_section(
    found: RunFolders, problems: Sequence[Problem], pictures: _Pictures
) -> list[str]:
    labels = {
        run.folder: (problem.label, name)
        for problem in problems
        for name, runs in problem.algorithms.items()
        for run in runs
    }
    # The gradients of a run that was replaced by a newer one go with it.
    gone = {run.folder for run in found.runs} - set(labels)
    reports = {folder: rows for folder, rows in found.gradients.items() if folder not in gone}
    rows = compare_gradients(reports, labels)
    if not rows:
        return []
    sections = [f"## Gradients\n\n{_GRADIENTS}\n\n{format_gradient_comparison(rows)}"]
    for (env, setting), families in find_families(problems).items():
        path = pictures.path(f"gradients-{env}", setting)
        drawn = plot_gradients_against_size(path, setting, families, rows)
        sections += pictures.embed(drawn, f"Gradients against {setting}")
    return sections


def _rest(runs: Sequence[Run], unreadable: Sequence[str], notes: Sequence[str]) -> list[str]:
    """Return sections on runs that are not in the costs, and on what else to know."""
    left_out = [_left_out(run) for run in runs if run.status != FINISHED] + list(unreadable)
    remarks = [run.note for run in runs if run.status == FINISHED and run.note] + list(notes)
    sections = []
    for title, lines in (("Not in the costs above", left_out), ("Notes", remarks)):
        if lines:
            sections.append(f"## {title}\n\n" + "\n".join(f"* {line}" for line in lines))
    return sections


def _left_out(run: Run) -> str:
    text = f"{run.folder}: {run.status}"
    if run.status == UNFINISHED:
        text += f", update {run.update} of {run.num_updates}"
    return f"{text}. {run.note}".rstrip() if run.status == DAMAGED else _with(text, run.note)


def _with(text: str, note: str) -> str:
    return f"{text} ({note})." if note else f"{text}."


def _run_rows(
    runs: Sequence[Run], problems: Sequence[Problem], target: float
) -> list[dict[str, Any]]:
    """Return a row per run, in the order of the tables; replaced runs come last."""
    places = {
        run.folder: (problem, name)
        for problem in problems
        for name, members in problem.algorithms.items()
        for run in members
    }
    order = {folder: place for place, folder in enumerate(places)}
    rows = []
    for run in sorted(runs, key=lambda run: order.get(run.folder, len(order))):
        problem, name = places.get(run.folder, (None, None))
        cost = run.summary.get("test_cost")
        row: dict[str, Any] = {"problem": problem.label if problem else None, "algorithm": name}
        row |= {"seed": run.seed, "status": run.status, "folder": str(run.folder)}
        row |= {"update": run.update, "num_updates": run.num_updates}
        for key in ("env_steps", "wall_seconds", "test_cost", "test_cost_se"):
            row[key] = run.summary.get(key)
        row["reference"] = problem.reference if problem else None
        row["gap"] = problem.gap(cost) if problem else None
        for unit in ("updates", "env_steps", "seconds"):
            known = problem is not None and problem.reference is not None
            row[f"{unit}_to_target"] = (
                times_to_target(problem, [run], target)[unit][0] if problem and known else None
            )
        rows.append(row)
    return rows


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
