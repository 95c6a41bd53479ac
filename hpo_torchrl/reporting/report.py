"""The report on many runs: tables, figures and files in one folder; the command hpo-report."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.reporting.compare import (
    compare_algorithms,
    compare_overall,
    compare_pairs,
    compare_times,
)
from hpo_torchrl.reporting.figures import (
    plot_gap_against_size,
    plot_learning_curves,
    plot_updates_against_size,
)
from hpo_torchrl.reporting.gradients import (
    compare_gradients,
    format_gradient_comparison,
    plot_gradients_against_size,
)
from hpo_torchrl.reporting.groups import TIMES, Problem, algorithms_of, find_families, group_runs
from hpo_torchrl.reporting.runs import DAMAGED, FINISHED, REPLACED, UNFINISHED, Run, read_runs
from hpo_torchrl.reporting.tables import PERCENT, format_table, format_value, write_rows

Row = Mapping[str, Any]

_LEGEND = """\
## What the numbers mean

* Runs of the same problem and algorithm differ by their seed alone. *Seeds* "4 of 5": of five runs
  four finished and have a test cost.
* *Test cost* is per unit and period, from the test at the end of a run. It and the *gap*, cost /
  reference - 1, are interquartile means: the lowest and highest quarter of the runs, rounded down,
  are left out. *Worst* is the largest gap. The true gap is smaller than the one to a *lower bound*.
* [low, high] is a 95 % percentile interval of a bootstrap over runs, stratified by problem where
  several are pooled; [-] stands for a single run. With few runs it is too narrow: of normal scores
  it covers the truth in 50 % of all cases with two runs, 76 % with three, 91 % with five.
* *To {target:g} %*: the first of two tests in succession, during training, within {target:g} % of
  the reference; *reached* counts the runs that got there. Medians are over all runs, where one that
  never got there, or did not finish, counts as infinity ("never"). Tests set the resolution.
* *Wall seconds* is the median training time of the finished runs; it compares machines too.
* *Probability of improvement*: the share of pairs of runs in which the first algorithm costs less;
  ties count half. [1.00, 1.00] only says that all runs of one beat all of the other.
* A ratio of times divides medians: 2 is twice as long. The fastest is chosen by these same runs,
  which flatters it. Resamples in which neither gets there widen the interval at both ends.

Interquartile mean, stratified bootstrap and probability of improvement as in Agarwal et al. (2021),
*Deep reinforcement learning at the edge of the statistical precipice*, NeurIPS.
"""
_GRADIENTS = """\
## Gradients

Signal / noise is the length of the mean gradient over how far one batch strays from it; alignment
is the cosine of one batch with a well-averaged mixed gradient. [low, high] is the report's
own interval over batches for one folder; for several, the interquartile mean and a bootstrap.\
"""


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
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting import write_report
        >>> from hpo_torchrl.training.run_folder import RunFolder
        >>> config = {"env": {"name": "inventory"}, "algorithm": {"name": "hpo"},
        ...     "trainer": {"num_updates": 100}, "seed": 0}
        >>> summary = {"test_cost": 37.1, "updates": 100, "env_steps": 1000, "wall_seconds": 3.0}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     RunFolder(folder).write_config(config)
        ...     RunFolder(folder).write_summary(summary)
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
    pictures = _Pictures(output)
    draw, names = pictures.draw, sorted(algorithms_of(problems))
    families = find_families(problems)
    sections = [_heading(runs, problems, names)]
    for problem in problems:
        sections += [f"## {problem.label}", *_problem(problem, rows, target)]
        sections += draw(f"curves-{problem.label}", plot_learning_curves, problem, names)
    sections += _overall(problems)
    for (env, setting), panels in families.items():
        known = {title: f for title, f in panels.items() if any(p.reference_cost for p in f)}
        if known:
            name, data = f"{env}-{setting}", (setting, known, names)
            parts = draw(f"gap-{name}", plot_gap_against_size, *data)
            parts += draw(f"updates-{name}", plot_updates_against_size, *data, target)
            sections.append("\n\n".join([f"## {env} against {setting}", *parts]))
    placed = [
        (run, problem, name)
        for problem in problems
        for name, members in problem.algorithms.items()
        for run in members
    ]
    labels = {run.folder: (problem.label, name) for run, problem, name in placed}
    # The gradients of a run that was replaced by a newer one go with it.
    gone = {run.folder for run in runs} - set(labels)
    reports = {folder: lines for folder, lines in found.gradients.items() if folder not in gone}
    if compared := compare_gradients(reports, labels):
        sections += [_GRADIENTS, format_gradient_comparison(compared)]
        for (env, setting), panels in families.items():
            name = f"gradients-{env}-{setting}"
            sections += draw(name, plot_gradients_against_size, setting, panels, compared)
    left_out = [_left_out(run) for run in runs if run.status != FINISHED]
    remarks = [run.note for run in runs if run.status == FINISHED and run.note]
    sections += _list("Not in the costs above", [*left_out, *found.unreadable])
    sections += _list("Notes", [*remarks, *notes])
    report = output / "report.md"
    text = "\n\n".join([*sections, _LEGEND.format(target=100 * target)])
    report.write_text(text, encoding="utf-8")
    written = [report]
    if runs:
        nowhere = Problem("", "", {}, {})
        placed += [(run, nowhere, "") for run in runs if run.status == REPLACED]
        written.append(write_rows(output / "runs.csv", [_run_row(*p, target) for p in placed]))
        written.append(write_rows(output / "comparison.csv", rows))
    shown = "\n\n".join(section for section in sections if "![" not in section)
    return shown, written + pictures.written


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare training runs from the command line: ``hpo-report DIR [DIR ...]``.

    Args:
        arguments: the arguments; those of the command line by default.

    Raises:
        SystemExit: an argument is refused or no run can be read; the message, on standard error,
            says why.
    """
    parser = argparse.ArgumentParser(
        prog="hpo-report",
        description="Compare training runs: tables and figures with interquartile means and "
        "bootstrap intervals over seeds.",
    )
    add = parser.add_argument
    add("folders", nargs="+", metavar="DIR", help="folder that holds runs, at any depth")
    text = "gap to the reference that training times are measured to (default 0.10: 10 %%)"
    add("--target", type=float, default=0.10, metavar="GAP", help=text)
    text = "folder of report.md, the tables and figures; the first DIR by default"
    add("--output", metavar="DIR", help=text)
    given = parser.parse_args(arguments)
    try:
        output = given.output or given.folders[0]
        shown, written = write_report(given.folders, output, target=given.target)
    except (ValueError, TypeError, OSError) as error:
        print(f"hpo-report: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("hpo-report: error: interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    print(shown)
    print(f"\nwritten: {', '.join(map(str, written))}")


class _Pictures:
    """Draws the figures of a report, under names that differ, and counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.written = folder, list[Path]()

    def draw(self, kind: str, plot: Callable[..., Path | None], *data: Any) -> list[str]:
        """Draw a figure by ``plot(path, *data)``; return the markdown that shows it."""
        words = re.sub(r"[^A-Za-z0-9_.=]+", "-", kind).strip("-.")[:80]
        path, number = self.folder / f"report-{words}.png", 2
        while path in self.written:
            path, number = path.with_name(f"report-{words}-{number}.png"), number + 1
        if plot(path, *data) is None:
            return []
        self.written.append(path)
        return [f"![{words}]({path.name})"]


def _heading(runs: Sequence[Run], problems: Sequence[Problem], names: Sequence[str]) -> str:
    states = [run.status for run in runs]
    kinds = (FINISHED, UNFINISHED, DAMAGED, REPLACED)
    counts = ", ".join(f"{states.count(kind)} {kind}" for kind in kinds if kind in states)
    return (
        f"# Comparison of runs\n\n{_count(len(runs), 'run')}: {counts or 'none'}; "
        f"{_count(len(problems), 'problem')}, {_count(len(names), 'algorithm')}."
    )


def _problem(problem: Problem, rows: Sequence[Row], target: float) -> Iterator[str]:
    """Yield the tables of a problem."""
    if problem.reference is None:
        words = ["Neither optimum nor lower bound is known: no gap"]
    elif problem.reference_cost is None:
        words = [f"The {problem.reference} stands in the summary of a finished run: none yet"]
    else:
        words = [f"{problem.reference.capitalize()} {problem.reference_cost:.4f}"]
    for name, cost in problem.baselines.items():
        gap = problem.gap(cost)
        words.append(f"{name} {cost:.4f}" + (f" ({format_value(gap, PERCENT)})" if gap else ""))
    yield "; ".join(words) + "."
    reach = f"to {100 * target:g} %"
    yield format_table(
        [row for row in rows if row["problem"] == problem.label],
        {
            "algorithm": ("algorithm", "{}"),
            "seeds": lambda row: _part(row, "finished").removeprefix(f"{row['seeds']} of "),
            "test cost": ("cost_iqm", "{:.4f}"),
            f"gap to {problem.reference}" if problem.reference else "gap": ("gap_iqm", PERCENT),
            "worst": ("gap_worst", PERCENT),
            "reached": lambda row: "-" if row["reached"] is None else _part(row, "reached"),
            f"updates {reach}": ("updates_to_target", "{:,.0f}"),
            f"env steps {reach}": ("env_steps_to_target", "{:,.0f}"),
            f"seconds {reach}": ("seconds_to_target", "{:,.1f}"),
            "wall seconds": ("wall_seconds", "{:,.0f}"),
        },
    )
    yield from _pairs([problem])
    if len(problem.algorithms) > 1 and problem.reference is not None:
        ratios = compare_times(problem, target=target)
        if not ratios:
            yield "No algorithm reached the target in half of its runs: no ratio of times."
            return
        yield f"Times as many as {ratios[0]['fastest']}, which is the fastest:"
        names = {f"{unit} {reach}": (f"{unit}_ratio", "{:.2f}") for unit in ("updates", "seconds")}
        yield format_table(ratios, {"algorithm": ("algorithm", "{}"), **names})


def _pairs(problems: Sequence[Problem]) -> Iterator[str]:
    if pairs := compare_pairs(problems):
        yield "Probability of improvement:"
        columns = {"algorithm": ("first", "{}"), "costs less than": ("second", "{}")}
        yield format_table(pairs, {**columns, "with probability": ("probability", "{:.2f}")})


def _overall(problems: Sequence[Problem]) -> Iterator[str]:
    rows, shared = compare_overall(problems)
    if len(rows) > 1:
        yield f"## Over the {len(shared)} problems that all algorithms share"
        if len({problem.reference for problem in shared}) > 1:
            yield "Gaps to optima and to lower bounds are pooled here."
        columns = {"algorithm": ("algorithm", "{}"), "runs": ("runs", "{}")}
        columns |= {"gap": ("gap_iqm", PERCENT), "worst": ("gap_worst", PERCENT)}
        yield format_table(rows, columns)
        yield from _pairs(shared)


def _part(row: Row, key: str) -> str:
    return f"{row[key]} of {row['seeds']}"


def _list(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"* {line}" for line in lines)] if lines else []


def _left_out(run: Run) -> str:
    text = f"{run.folder}: {run.status}"
    if run.status == UNFINISHED:
        text += f", update {run.update} of {run.config['trainer'].get('num_updates')}"
    if run.status == DAMAGED:
        return f"{text}. {run.note}"
    return f"{text} ({run.note})." if run.note else f"{text}."


def _run_row(run: Run, problem: Problem, name: str, target: float) -> dict[str, Any]:
    """Return the row of a run in ``runs.csv``."""
    row: dict[str, Any] = {"problem": problem.label, "algorithm": name, "seed": run.seed}
    row |= {"status": run.status, "folder": run.folder, "update": run.update}
    row["num_updates"] = run.config["trainer"].get("num_updates")
    for key in ("env_steps", "wall_seconds", "test_cost", "test_cost_se"):
        row[key] = run.summary.get(key)
    row |= {"reference": problem.reference, "gap": problem.gap(row["test_cost"])}
    times = problem.times([run], target) or {}
    return row | {f"{unit}_to_target": times.get(unit, [None])[0] for unit in TIMES}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
