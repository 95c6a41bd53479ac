"""The report on many runs: tables, figures and files in one folder; the command hpo-report."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.core.console import run_command
from hpo_torchrl.core.figures import drawn
from hpo_torchrl.reporting import statistics
from hpo_torchrl.reporting.figures import Labels, Names, plot_lines
from hpo_torchrl.reporting.groups import TIMES, Groups, group_runs
from hpo_torchrl.reporting.published import PUBLISHED
from hpo_torchrl.reporting.runs import FINISHED, read_runs
from hpo_torchrl.reporting.tables import (
    PERCENT,
    fill,
    format_latex,
    format_table,
    interval,
    plain,
    write_rows,
)

_RUN_COLUMNS = ["problem", "algorithm", "seed", "status", "folder", "update", "num_updates"]
_RUN_COLUMNS += ["env_steps", "wall_seconds", "test_cost", "test_cost_se", "reference", "gap"]
_LEGEND = """\
## What the numbers mean

* Runs of one problem and algorithm differ by their seed; those *finished* have a test cost.
* *Test cost* is per unit and period, from the test at the end of a run. It and the *gap*, how far
  it is above the reference, are interquartile means: the lowest and highest quarter of the runs,
  rounded down, are left out. *Worst* is the largest gap.
* The reference is the *optimum*; where that is unknown, the *best known* cost, of the cheapest
  simple rule or upper bound, below which a run may get; else a *lower bound*, to which the true gap
  is smaller.
* [low, high] is a 95 % percentile interval of a bootstrap over runs, stratified by problem where
  several are pooled; [-] stands for a single run. With few runs it is too narrow: of normal scores
  it covers the truth in 50 % of all cases with two runs, 76 % with three, 91 % with five.
* *To {target}*: the first of two tests in succession, during training, within {target} of the
  reference; *reached* counts the runs that got there. Medians are over all runs, where one that
  never got there, or did not finish, counts as infinity ("never", and a cross at the upper edge
  of a figure). Tests set the resolution.
* A table of an environment has a row for each problem and one table for each *test*: these may
  measure other things, so that costs compare within a test only. *Published* figures are those of
  the paper that an instance is from. Where a test is not the one that runs are judged by, its
  reference is the best of the rules that were run (`algorithm=s_S,R_S`).
* *Wall seconds* is the median training time of the finished runs; it compares machines too.
* *Probability of improvement*: the share of pairs of runs in which the first algorithm costs less;
  ties count half. [1.00, 1.00] only says that all runs of one beat all of the other.
* *Signal / noise* is the length of the mean gradient over how far one batch strays from it,
  *alignment* the cosine of one batch with a well-averaged gradient. [low, high] is over the batches
  of a single run.

Interquartile mean, stratified bootstrap and probability of improvement as in Agarwal et al. (2021),
*Deep reinforcement learning at the edge of the statistical precipice*, NeurIPS.
"""


def write_report(
    folders: Iterable[str | Path], output: str | Path, *, target: float = 0.10
) -> tuple[str, list[Path]]:
    """Compare the runs under some folders, and write tables and figures.

    Args:
        folders: where to search for runs, at any depth; nothing there is changed.
        output: folder of ``report.md``, ``runs.csv`` (a row per run), ``comparison.csv`` (a row
            per problem and algorithm), ``tests.csv`` (a row per problem, test and algorithm, with
            published figures), ``tables.tex`` (the tables of the environments) and the
            figures ``report-*.png``. Those of an earlier report are replaced.
        target: gap to the reference that times are measured to: 0.10 is 10 %.

    Returns:
        The tables as text, and the files written.

    Raises:
        NotADirectoryError: a folder does not exist or is a file, or the output is a file.
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
        Runs: 1 finished.
        >>> [path.name for path in written]
        ['report.md', 'runs.csv', 'comparison.csv', 'tests.csv']
    """
    check_float("target", target, minimum=0.0, strict=True)
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output {output} is a file; name a folder.")
    found = read_runs(folders)
    output.mkdir(parents=True, exist_ok=True)
    groups = group_runs(found, target=target)
    runs, report = groups.runs, _Report(output, groups, f"{100 * target:g} %")
    counts = [f"{number} {status}" for status, number in runs["status"].value_counts().items()]
    report.sections.append(f"# Comparison of runs\n\nRuns: {', '.join(counts)}.")
    report.add_tests()
    report.add_problems()
    report.add_sizes()
    report.add_gradients(statistics.compare_gradients(found.gradients, groups))
    tables = [
        write_rows(output / "runs.csv", runs[[*_RUN_COLUMNS, *TIMES]]),
        write_rows(output / "comparison.csv", report.comparison),
        write_rows(output / "tests.csv", report.tests),
    ]
    if report.latex:
        tables.append(output / "tables.tex")
        tables[-1].write_text("\n\n".join(report.latex) + "\n", encoding="utf-8")
    finished = runs["status"] == FINISHED
    columns = plain("folder", "status", "update", "num_updates", "note")
    report.add_table("Not in the costs above", runs[~finished], columns)
    notes = [note for note in runs["note"][finished] if note]
    if lines := [*found.unreadable, *notes, *groups.notes]:
        report.sections.append("\n".join(["## Notes\n", *(f"* {line}" for line in lines)]))
    text = "\n\n".join([*report.sections, _LEGEND.format(target=report.target)])
    (output / "report.md").write_text(text, encoding="utf-8")
    shown = "\n\n".join(section for section in report.sections if "![" not in section)
    return shown, [output / "report.md", *tables, *report.pictures]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare training runs from the command line: ``hpo-report DIR [DIR ...]``.

    Args:
        arguments: the arguments; those of the command line by default.

    Raises:
        SystemExit: an argument is refused or no run can be read; the message, on standard error,
            says why.
    """
    parser = argparse.ArgumentParser("hpo-report", description="Compare training runs over seeds.")
    add = parser.add_argument
    add("folders", nargs="+", metavar="DIR", help="folder that holds runs, at any depth")
    text = "gap to the reference that training times are measured to (default 0.10: 10 %%)"
    add("--target", type=float, default=0.10, metavar="GAP", help=text)
    text = "folder of report.md, the tables and figures; the first DIR by default"
    add("--output", metavar="DIR", help=text)
    run_command(parser, arguments, _report)


def _report(given: argparse.Namespace) -> None:
    output = given.output or given.folders[0]
    shown, written = write_report(given.folders, output, target=given.target)
    print(shown)
    print(f"\nwritten: {', '.join(map(str, written))}")


class _Report:
    """Collects the sections of a report, and writes its pictures."""

    def __init__(self, output: Path, groups: Groups, target: str) -> None:
        self.output, self.groups, self.target = output, groups, target
        self.comparison = statistics.compare_algorithms(groups)
        self.tests = statistics.compare_tests(groups)
        trained = groups.counted[groups.counted["updates"] != 0]
        self.names = sorted(trained["algorithm"].unique())
        self.sections: list[str] = []
        self.pictures: list[Path] = []
        self.latex: list[str] = []

    def add_table(self, title: str, rows: pd.DataFrame, columns: Labels) -> None:
        """Add a section with a table, unless it is empty; see :func:`format_table`."""
        if len(rows):
            self.sections += [f"## {title}", format_table(rows, columns)]

    def draw(self, kind: str, rows: pd.DataFrame, xs: Labels, ys: Labels, names: Names) -> None:
        """Add a figure, unless there is nothing on it; see :func:`plot_lines`."""
        rows = rows[rows[list(ys)].notna().any(axis=1).groupby(rows["title"]).transform("any")]
        if len(rows):
            words = re.sub(r"[^A-Za-z0-9_.=]+", "-", kind).strip("-.")[:80]
            path = self.output / f"report-{words}.png"
            if path in self.pictures:
                path = path.with_name(f"report-{words}-{len(self.pictures)}.png")
            if drawn(path, partial(plot_lines, path, rows, xs, ys, names)):
                self.pictures.append(path)
                self.sections.append(f"![{words}]({path.name})")

    def add_problems(self) -> None:
        """Add the table and the learning curves of each problem, and pairs of algorithms."""
        columns = plain("algorithm", "seeds", "finished") | {
            "test cost": interval("cost_iqm", ".4f"),
            "gap": interval("gap_iqm", PERCENT),
            "worst": f"{{gap_worst:{PERCENT}}}",
            "reached": "{reached}",
            f"updates to {self.target}": "{updates_to_target:,.0f}",
            f"env steps to {self.target}": "{env_steps_to_target:,.0f}",
            f"seconds to {self.target}": "{seconds_to_target:,.1f}",
            "wall seconds": "{wall_seconds:,.0f}",
        }
        curves = statistics.compare_curves(self.groups)
        curves = curves.assign(title=curves["problem"], line=curves["algorithm"])
        xs = {"update": "updates", "env_steps": "environment steps"}
        for label, rows in self.comparison.groupby("problem", sort=False):
            reference, ys = rows["reference"].iloc[0], {"test_cost": "test cost"}
            title = f"{label}: neither optimum nor rule nor bound is known"
            if isinstance(reference, str):
                title = fill("{problem}: {reference}, {reference_cost:.4f}", rows.iloc[0])
                if reference == "best known" and rows["bound"].notna().any():
                    title += fill("; lower bound, {bound:.4f}", rows.iloc[0])
                title = title.removesuffix(", -")
                ys = {"gap": f"above the {reference}, %"}
            self.add_table(title, rows, columns)
            self.draw(f"curves-{label}", curves[curves["problem"] == label], xs, ys, self.names)
        pairs = plain("problem") | {"algorithm": "{first}", "costs less than": "{second}"}
        pairs["with probability"] = interval("probability", ".2f")
        self.add_table("Probability of improvement", statistics.compare_pairs(self.groups), pairs)

    def add_tests(self) -> None:
        """Add a table for each environment and test: a row a problem, a column an algorithm."""
        if self.tests.empty:
            return
        envs = self.groups.runs.drop_duplicates("problem").set_index("problem")["env"]
        tests = self.tests.assign(env=self.tests["problem"].map(envs))
        for (env, test), rows in tests.groupby(["env", "test"], sort=False):
            names = list(rows["algorithm"].unique())
            if rows["problem"].nunique() < 2 and not any(
                name.startswith(PUBLISHED) for name in names
            ):
                continue
            columns = {"problem": "{name}", "reference": "{reference_cost:#.5g} ({reference})"}
            for place, name in enumerate(names):
                columns[name] = f"{{cost_{place}:#.5g}} ({{gap_{place}:{PERCENT}}})"
            lines = []
            for problem, same in rows.groupby("problem", sort=False):
                known, name = same.set_index("algorithm"), problem.removeprefix(env).strip()
                line = {"name": name or env, **dict(same.iloc[0][["reference", "reference_cost"]])}
                found = known.reindex(names)[["cost_iqm", "gap_iqm"]].to_numpy()
                for place, (cost, gap) in enumerate(found):
                    line |= {f"cost_{place}": cost, f"gap_{place}": gap}
                lines.append(line)
            title, table = f"{env}, test {test}", pd.DataFrame(lines)
            self.add_table(title, table, columns)
            self.latex.append(f"% {title}\n{format_latex(table, columns)}")

    def add_sizes(self) -> None:
        """Add the figures of costs and training times by size."""
        rows = self.tests.assign(line=self.tests["algorithm"])
        for (env, setting), members in self._by_setting(rows):
            titles = members["title"]
            if members["test"].nunique() > 1:
                titles = (titles + " " + members["test"]).str.strip()
            known = set(members["reference"].dropna())
            level = known.pop() if len(known) == 1 else "best known cost"  # of which an optimum is
            gaps = {"gap_iqm": f"above the {level}, %"}
            members = members.assign(title=titles)
            self.draw(f"gap-{env}-{setting}", members, {"size": setting}, gaps, self.names)
            published = members["algorithm"].str.startswith(PUBLISHED).groupby(titles)
            shown = members[published.transform("any")]
            costs = {"cost_iqm": "cost per unit and period"}
            self.draw(f"cost-{env}-{setting}", shown, {"size": setting}, costs, self.names)
        times = {"updates_to_target": f"updates to a gap of {self.target}"}
        rows = self.comparison.assign(line=self.comparison["algorithm"])
        for (env, setting), members in self._by_setting(rows):
            self.draw(f"updates-{env}-{setting}", members, {"size": setting}, times, self.names)

    def add_gradients(self, rows: pd.DataFrame) -> None:
        """Add the table and figures of the gradient reports."""
        if rows.empty:
            return
        columns = plain("problem", "algorithm", "group", "estimator", "folders")
        columns["signal / noise"] = interval("signal_to_noise", ".2f")
        columns["alignment"] = interval("alignment", ".2f")
        terms = rows["estimator"].where(rows["whole"], rows["estimator"] + " (term)")
        self.add_table("Gradients", rows.assign(estimator=terms), columns)
        ys = {"signal_to_noise": "signal / noise", "alignment": "alignment"}
        rows = rows.assign(line=rows["algorithm"] + ", " + rows["estimator"])[rows["whole"]]
        for (env, setting), members in self._by_setting(rows):
            titles = (members["group"] + " " + members["title"]).str.strip()
            lines = sorted(members["line"].unique())
            data = members.assign(title=titles), {"size": setting}, ys, lines
            self.draw(f"gradients-{env}-{setting}", *data)

    def _by_setting(self, rows: pd.DataFrame) -> Any:
        return rows.merge(self.groups.sizes, on="problem").groupby(["env", "setting"], sort=False)
