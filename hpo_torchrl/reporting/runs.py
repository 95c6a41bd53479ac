"""The folders of training runs as tables: what finished, what did not, and what is damaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hpo_torchrl.core.checks import check_float, first_line
from hpo_torchrl.training.evaluation import validates_primary
from hpo_torchrl.training.run_folder import RunFolder, RunFolderError

FINISHED, UNFINISHED, DAMAGED, REPLACED = "finished", "not finished", "damaged", "replaced"
# The costs that a gap may be to, in the order of preference, and that gap.
REFERENCES = {
    "optimum": ("optimal_cost", "gap"),
    "lower bound": ("lower_bound", "gap_to_lower_bound"),
    "upper bound": ("upper_bound", "gap_to_upper_bound"),
}
MEASURES = ("signal_to_noise", "alignment")

_UNITS = ["update", "env_steps", "wall_seconds"]
_TESTED = [*_UNITS, "test_cost", "gap", "gap_to_lower_bound"]
_NEEDED = ["test_cost", "updates", "env_steps", "wall_seconds"]
_SUMMARY = [*_NEEDED, "test_cost_se", "optimal_cost", "lower_bound"]
_REPORTED = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]


@dataclass(frozen=True)
class RunFolders:
    """The runs under some folders, as tables.

    Attributes:
        runs: a row per run, in the order of their paths: ``folder``; ``env`` and ``algorithm``
            (their names, or those of their classes); ``seed``; ``num_updates``; ``settings`` (the
            whole configuration, nested keys by dots); ``status``, which is ``"finished"``, ``"not
            finished"`` or ``"damaged"`` (the summary cannot be used); ``note`` (what a reader
            should know of it, or an empty string); ``update`` (the last one in ``metrics.csv``);
            ``objective`` (what it was trained for and tested on, if it finished and says so);
            ``primary`` (the name of the test whose cost it is judged by) and ``costs`` (those of
            all its tests by name, if it finished); ``comparable`` (whether the tests during
            training are of the same problem as the one at the end, so that costs compare);
            ``modified`` (when its files were last written, seconds since 1970); and the numbers of
            ``summary.json``, unknown unless it finished.
        tests: a row per run and test in the order of time: ``folder``, ``update``, ``env_steps``,
            ``wall_seconds``, ``test_cost``, ``gap`` and ``gap_to_lower_bound``.
        rules: a row per finished run and simple rule, or upper bound: ``folder``, ``algorithm``
            (its name) and ``cost_iqm`` (its cost).
        gradients: a row per run with a gradient report, parameter group and estimator: ``folder``,
            ``group``, ``estimator``, ``whole`` and the measures with their intervals.
        unreadable: messages about folders whose configuration cannot be read.
    """

    runs: pd.DataFrame
    tests: pd.DataFrame
    rules: pd.DataFrame
    gradients: pd.DataFrame
    unreadable: Sequence[str]


def read_runs(folders: Iterable[str | Path]) -> RunFolders:
    """Find the runs under some folders and read them; no file is changed.

    A run is a folder with a ``config.yaml``; it finished if it holds a ``summary.json``. Hidden
    folders are passed over, and a folder met twice is read once.

    Args:
        folders: where to search, at any depth.

    Returns:
        The runs, and what could not be read.

    Raises:
        NotADirectoryError: a folder does not exist, or is a file.
        ValueError: nothing was found, or nothing that was found can be read.

    Examples:
        >>> import tempfile
        >>> from hpo_torchrl.reporting.runs import read_runs
        >>> from hpo_torchrl.training.run_folder import RunFolder
        >>> config = {"env": {"name": "inventory"}, "algorithm": {"name": "hpo"},
        ...     "trainer": {"num_updates": 100}, "seed": 0}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     RunFolder(folder).write_config(config)
        ...     runs = read_runs([folder]).runs
        >>> runs[["status", "update", "env", "seed"]].to_dict("records")
        [{'status': 'not finished', 'update': 0, 'env': 'inventory', 'seed': 0}]
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise NotADirectoryError(f"There is no folder {root}; name a folder that holds runs.")
    runs, unreadable = [], []
    for path in _find(RunFolder("").config.name, roots):
        try:
            runs.append(_read_run(RunFolder(path)))
        except RunFolderError as error:
            unreadable.append(str(error))
    if not runs:
        reasons = unreadable or [
            "no folder there holds a config.yaml. Train with hpo-train output_dir=DIR, or name the "
            "folder that holds the runs."
        ]
        raise ValueError(f"No run in {', '.join(map(str, roots))} can be read: {' '.join(reasons)}")

    def gather(name: str, texts: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
        rows = [{"folder": run["folder"], **row} for run in runs for row in run[name]]
        table = pd.DataFrame(rows, columns=["folder", *texts, *numbers])
        return table.astype(dict.fromkeys(numbers, float))

    return RunFolders(
        pd.DataFrame(runs).astype(dict.fromkeys(_SUMMARY, float)),
        gather("tests", [], _TESTED),
        gather("rules", ["algorithm"], ["cost_iqm"]),
        gather("gradients", ["group", "estimator", "whole"], _REPORTED),
        unreadable,
    )


def _find(name: str, roots: Sequence[Path]) -> list[Path]:
    """Return the folders under ``roots`` that hold a file of this name."""
    found: dict[Path, Path] = {}
    for root in roots:
        for path in sorted(root.rglob(name)):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.is_file() and not hidden:
                found.setdefault(path.parent.resolve(), path.parent)
    return list(found.values())


def _read_run(folder: RunFolder) -> dict[str, Any]:
    """Return the row of a run, with lists of the rows that belong to the other tables."""
    config, notes = folder.read_config(), []
    evaluation = config.get("evaluation", {})
    row: dict[str, Any] = {
        "folder": folder.path,
        "env": _name(config["env"]),
        "algorithm": _name(config["algorithm"]),
        "seed": config["seed"],
        "num_updates": config["trainer"].get("num_updates"),
        "settings": _flatten(config),
        "objective": None,
        "primary": evaluation.get("primary", "test"),
        "costs": {},
        "comparable": validates_primary(evaluation),
        "status": DAMAGED if folder.summary.exists() else UNFINISHED,
        "update": 0,
        **dict.fromkeys(_SUMMARY),
        **{name: [] for name in ("tests", "rules", "gradients")},
    }
    for read in (_read_summary, _read_tests, _read_gradients):
        try:
            row |= read(folder)
        except RunFolderError as error:
            notes.append(str(error))
    if row["status"] == FINISHED:
        summary = folder.read_summary()
        others = {name: summary.get(f"{name}_cost") for name in evaluation.get("tests", ())}
        row["costs"] = {**others, row["primary"]: row["test_cost"]}
    if row["status"] == FINISHED and row["updates"] and not row["tests"]:
        notes.append(f"No test in {folder.metrics}: it counts as never reaching the target.")
    files = (folder.config, folder.metrics, folder.summary)
    modified = max(path.stat().st_mtime for path in files if path.exists())
    return row | {"note": " ".join(notes), "modified": modified}


def _read_summary(folder: RunFolder) -> dict[str, Any]:
    """Return the numbers of a summary, which are finite, and the ``rules`` it names."""
    if not folder.summary.exists():
        return {}
    known = {key: value for key, value in folder.read_summary().items() if value is not None}
    numbers = {key: known.get(key) for key in _SUMMARY if key in known or key in _NEEDED}
    try:
        rules = dict(known.get("baseline_costs", {}))
        if "upper_bound" in known:
            rules["upper bound"] = known["upper_bound"]
        for key, value in (rules | numbers).items():
            check_float(key, value)
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"{folder.summary} cannot be used: {error}") from error
    rows = [{"algorithm": name, "cost_iqm": cost} for name, cost in rules.items()]
    aims = []
    for of in ("", "test_"):
        if (aim := known.get(f"{of}objective")) is not None:
            # Elsewhere a discount is how a run learns.
            aims.append(f"{aim} {known[f'{of}discount']}" if aim == "discounted" else aim)
    numbers["objective"] = ", tested ".join(dict.fromkeys(aims)) or None
    return numbers | {"status": FINISHED, "rules": rows}


def _read_tests(folder: RunFolder) -> dict[str, Any]:
    """Return the tested rows of the metrics, and the last update."""
    rows = folder.read_metrics()
    for line, row in enumerate(rows, start=2):
        for key in _UNITS if "test_cost" in row else _UNITS[:1]:
            if not 0 < row.get(key, 0) < math.inf:
                raise RunFolderError(
                    f"{folder.metrics} is damaged: line {line} must have {key} above 0, got {row}."
                )
    tests = [row for row in rows if "test_cost" in row]
    return {"tests": tests, "update": int(rows[-1]["update"]) if rows else 0}


def _read_gradients(folder: RunFolder) -> dict[str, Any]:
    """Return the rows of the gradient report, if there is one."""
    if not folder.gradients.exists():
        return {}
    rows = pd.DataFrame(folder.read_gradients())
    try:
        rows[_REPORTED] = rows[_REPORTED].apply(pd.to_numeric)
        rows = rows[["group", "estimator", "whole", *_REPORTED]]
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{folder.gradients} is damaged: {first_line(error)}.") from error
    return {"gradients": rows.to_dict("records")}


def _name(section: Mapping[str, Any]) -> str:
    return str(section.get("name") or str(section.get("_target_", "unnamed")).rpartition(".")[2])


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
