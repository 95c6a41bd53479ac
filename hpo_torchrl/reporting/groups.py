"""Which runs belong together: the same problem, the same algorithm, other seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hpo_torchrl.core.reference import excess
from hpo_torchrl.reporting.runs import FINISHED, REPLACED, RunFolders

TIMES = {
    "updates_to_target": "update",
    "env_steps_to_target": "env_steps",
    "seconds_to_target": "wall_seconds",
}
# Settings that say on what machine a problem is simulated, not what it is.
_NOT_THE_PROBLEM = ("env.name", "env.seed", "env.device", "env.dtype")
# Sections that say how a run was trained, and settings there that change neither what is learned
# nor how fast.
_TRAINING = ("collect", "policy", "critic", "algorithm", "evaluation", "trainer", "device", "dtype")
_NO_EFFECT = ("algorithm.name", "trainer.progress", "trainer.log_every", "trainer.checkpoint_every")
# Sections that a label does not name.
_SHORT = ("env", "algorithm", "trainer", "collect")
# Relative difference above which two runs give different references.
_SAME = 1e-6


@dataclass(frozen=True)
class Groups:
    """Runs by problem and algorithm, as tables.

    Attributes:
        runs: the runs in the order of the problems, with more columns than those of
            :class:`RunFolders`: ``problem`` and ``algorithm`` are labels; ``reference`` is the
            first known of ``"optimum"``, ``"best known"`` (the cheapest simple rule or upper
            bound) and ``"lower bound"``, and ``reference_cost`` its cost; ``bound`` is the lower
            bound; ``gap`` is how far the cost at the end is above the reference, relative to its
            size; ``updates_to_target``, ``env_steps_to_target`` and ``seconds_to_target`` are
            infinite where a run did not get there, or did not finish, and NaN where no gap is
            known, where the tests during training are of another problem, and for rules, which do
            not train. The ``status`` of a run that was run again is ``"replaced"``: it does not
            count.
        tests: the tests of the finished runs, with their ``problem`` and ``algorithm``; ``gap`` is
            that to the reference of the problem.
        rules: a row per problem and simple rule, or upper bound: ``problem``, ``algorithm`` (its
            name), ``cost_iqm`` (its cost), ``reference``, ``reference_cost``, ``bound`` and
            ``gap_iqm``.
        sizes: a row per problem and numerical setting in which problems differ: ``problem``,
            ``env``, ``setting``, ``size`` (its value) and ``title`` (what the other settings are).
            Problems that differ in this setting alone, at least two, share the title.
        notes: what a reader should know.
    """

    runs: pd.DataFrame
    tests: pd.DataFrame
    rules: pd.DataFrame
    sizes: pd.DataFrame
    notes: Sequence[str]

    @property
    def counted(self) -> pd.DataFrame:
        """The runs but for those that were run again."""
        return self.runs[self.runs["status"] != REPLACED]


def group_runs(found: RunFolders, *, target: float) -> Groups:
    """Group runs by problem and algorithm over seeds, and time them.

    A problem is the ``env`` section but for its seed, device and dtype, and the objective, so that
    costs of one are never compared with an optimum of another; an algorithm is all else.
    Labels show the settings that differ: those of ``env`` between problems of the same environment,
    the others between runs of the same algorithm *on the same problem*. A setting that changes only
    from problem to problem, as when larger ones are trained longer, is told in a note instead, so
    that an algorithm keeps its name across problems.

    The time to the target is that of the first of two tests in succession with a gap of at most
    ``target``: one good test may be luck, and the second one confirms it.

    Args:
        found: the runs, as :func:`read_runs` returns them.
        target: gap to reach: 0.10 is 10 % above the reference.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting.groups import group_runs
        >>> from hpo_torchrl.reporting.runs import read_runs
        >>> from hpo_torchrl.training.run_folder import RunFolder
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for place, (items, cross_term) in enumerate([(1, True), (1, False), (2, True)]):
        ...         RunFolder(Path(root) / str(place)).write_config({
        ...             "env": {"name": "inventory", "num_items": items}, "trainer": {}, "seed": 0,
        ...             "algorithm": {"name": "hpo", "cross_term": cross_term}})
        ...     groups = group_runs(read_runs([root]), target=0.10)
        >>> print(groups.runs[["problem", "algorithm"]].to_string(index=False, header=False))
        inventory num_items=1 hpo cross_term=False
        inventory num_items=1  hpo cross_term=True
        inventory num_items=2  hpo cross_term=True
    """
    runs, notes = found.runs.copy(), list[str]()
    _label_runs(runs, notes)
    by_age = runs.sort_values("modified", kind="stable")
    seeds = by_age.groupby(["problem", "algorithm", "seed"], dropna=False)
    newest = seeds["folder"].transform("last").sort_index()
    again = runs["folder"] != newest
    runs.loc[again, "status"] = REPLACED
    runs.loc[again, "note"] = "run again in " + newest.map(str)
    runs = runs.loc[sorted(runs.index, key=lambda place: _order(runs.loc[place]))]
    rules = found.rules.merge(runs[["folder", "problem"]], on="folder").drop(columns="folder")
    rules = rules.drop_duplicates(["problem", "algorithm"], keep="last")
    runs = runs.join(_find_references(runs, rules, notes), on="problem")
    runs["gap"] = excess(runs["test_cost"], runs["reference_cost"])

    known = runs[["folder", "problem", "algorithm", "reference", "reference_cost", "comparable"]]
    tests = found.tests.merge(known[runs["status"] == FINISHED], on="folder")
    bound, rule = (tests["reference"] == name for name in ("lower bound", "best known"))
    tests["gap"] = tests["gap"].mask(bound, tests["gap_to_lower_bound"])
    above = excess(tests["test_cost"], tests["reference_cost"]).where(tests["comparable"])
    tests["gap"] = tests["gap"].mask(rule, above)
    good = tests["gap"] <= target
    confirmed = good & good.groupby(tests["folder"]).shift(-1, fill_value=False)
    first = tests[confirmed].drop_duplicates("folder").set_index("folder")
    timed = runs["reference"].notna() & (runs["updates"] != 0) & (runs["status"] != REPLACED)
    timed &= runs["comparable"] | (runs["reference"] != "best known")
    for name, unit in TIMES.items():
        runs[name] = runs["folder"].map(first[unit]).fillna(math.inf).where(timed)

    levels = runs.drop_duplicates("problem")[["problem", "reference", "reference_cost", "bound"]]
    rules = rules.merge(levels, on="problem")
    rules["gap_iqm"] = excess(rules["cost_iqm"], rules["reference_cost"])
    return Groups(runs, tests, rules, find_sizes(runs), notes)


def find_sizes(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the numerical settings in which problems differ, as :class:`Groups` holds them.

    Args:
        runs: the columns ``problem``, ``env`` and ``shown``, the settings in the label.

    Examples:
        >>> import pandas as pd
        >>> from hpo_torchrl.reporting.groups import find_sizes
        >>> runs = pd.DataFrame({"problem": ["lqr 48", "lqr 3"], "env": "lqr",
        ...     "shown": [{"dim": 48, "A": "x"}, {"dim": 3, "A": "x"}]})
        >>> print(find_sizes(runs).to_string(index=False))
        problem env setting title  size
         lqr 48 lqr     dim   A=x    48
          lqr 3 lqr     dim   A=x     3
    """
    rows = []
    for run in runs.drop_duplicates("problem").itertuples():
        for key, value in run.shown.items():
            if _is_number(value):
                title = _label("", {k: v for k, v in run.shown.items() if k != key})
                rows.append((run.problem, run.env, key.removeprefix("env."), title, value))
    sizes = pd.DataFrame(rows, columns=["problem", "env", "setting", "title", "size"])
    family = sizes.groupby(["env", "setting", "title"])["problem"]
    return sizes[family.transform("size") > 1]


def _label_runs(runs: pd.DataFrame, notes: list[str]) -> None:
    """Label problems and algorithms by every setting that differs: equal labels are equal ones."""
    # Of what has not finished, that of the others: it has no cost that would be compared.
    usual = runs.groupby("env")["objective"].transform("first")
    aims = runs["objective"].where(runs["status"] == FINISHED, usual)
    rows = [
        row | ({"env.objective": aim} if isinstance(aim, str) else {})
        for row, aim in zip(runs["settings"], aims, strict=True)
    ]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    settings = [dict.fromkeys(keys, "unset") | row for row in rows]
    texts = pd.DataFrame(settings, columns=keys, dtype=object).map(str)
    problems = texts[[k for k in keys if k.startswith("env.") and k not in _NOT_THE_PROBLEM]]
    texts = texts[[k for k in keys if k.partition(".")[0] in _TRAINING and k not in _NO_EFFECT]]

    def chosen(names: pd.Series, differ: pd.DataFrame) -> list[dict[str, Any]]:
        named = zip(settings, names, strict=True)
        return [{key: row[key] for key in differ if differ.at[name, key]} for row, name in named]

    kinds = runs["algorithm"]
    runs["shown"] = chosen(runs["env"], problems.groupby(runs["env"]).nunique() > 1)
    runs["problem"] = list(map(_label, runs["env"], runs["shown"]))
    varied = (texts.groupby([runs["problem"], kinds]).nunique() > 1).groupby("algorithm").any()
    for key in [key for key in texts if key.endswith("._target_") and varied[key].any()]:
        # What only one of two classes takes says no more than their names do.
        own = [k for k in texts if k.startswith(key.removesuffix("_target_")) and k != key]
        varied.loc[varied[key], [k for k in own if (texts[k] == "unset").any()]] = False
    runs["algorithm"] = list(map(_label, kinds, chosen(kinds, varied)))
    for name, changes in ((texts.groupby(kinds).nunique() > 1) & ~varied).iterrows():
        for key in changes.index[changes]:
            if not key.startswith("evaluation."):
                values = ", ".join(texts[key][kinds == name].unique())
                notes.append(f"{name}: {key} changes with the problem ({values}).")


def _find_references(runs: pd.DataFrame, rules: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Return what the runs of each problem know about its optimum; notes tell of disagreement."""
    finished = runs[runs["status"] == FINISHED]
    costs = finished.groupby("problem")[["optimal_cost", "lower_bound"]]
    least, most = costs.min(), costs.max()
    for label, disagree in (most - least > _SAME * most.abs()).iterrows():
        for key in disagree.index[disagree]:
            text = f"from {least.at[label, key]:.6g} to {most.at[label, key]:.6g}"
            notes.append(f"{label}: the runs give {key} {text}; the lowest is taken.")
    best = rules.groupby("problem")["cost_iqm"].min()
    kinds = {"optimum": least["optimal_cost"], "best known": best}
    levels = pd.DataFrame(kinds | {"lower bound": least["lower_bound"]})
    levels = levels.replace(0.0, math.nan).dropna(how="all")
    return pd.DataFrame(
        {
            "reference": levels.notna().idxmax(axis=1).astype(object),
            "reference_cost": levels.bfill(axis=1).iloc[:, 0],
            "bound": levels["lower bound"],
        }
    )


def _label(name: str, settings: Mapping[str, Any]) -> str:
    words = [name]
    for key, value in settings.items():
        section, _, short = key.partition(".")
        if short == "_target_":  # the class of a section that is named by its class alone
            parts = [part for part in str(value).split(".") if part[:1].isupper()]
            key, short, value = section, section, (parts or [value])[-1]
        words.append(f"{short if section in _SHORT else key}={value}")
    return " ".join(words).strip().replace("|", "/").replace("\n", " ")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _order(run: pd.Series) -> tuple[Any, ...]:
    """Sort by problem, numbers as numbers, and then by algorithm."""
    values = run["shown"].values()
    sizes = [(0, v, "") if _is_number(v) else (1, 0.0, str(v)) for v in values]
    return run["env"], sizes, run["algorithm"]
