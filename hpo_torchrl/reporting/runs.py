"""The folders of training runs, read back: what finished, what did not, and what is damaged."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hpo_torchrl.core.checks import first_line

FINISHED, UNFINISHED, DAMAGED, REPLACED = "finished", "not finished", "damaged", "replaced"
_CONFIG, _SUMMARY, _METRICS = "config.yaml", "summary.json", "metrics.csv"
_GRADIENTS = "gradients.csv"
_TESTED = ("update", "env_steps", "wall_seconds", "test_cost", "gap", "gap_to_lower_bound")


@dataclass(frozen=True)
class Run:
    """A training run, as its folder tells.

    Attributes:
        folder: where it lies.
        config: its configuration.
        summary: content of ``summary.json``; empty unless it finished.
        tests: tested rows of ``metrics.csv`` in order: ``update``, ``env_steps``,
            ``wall_seconds``, ``test_cost`` and the gap that is known, as numbers.
        status: ``"finished"``, ``"not finished"``, ``"damaged"`` (the summary cannot be used), or
            ``"replaced"`` by a newer run of the same problem, algorithm and seed.
        note: what a reader should know of it, or an empty string.
        update: last update in ``metrics.csv``.
        modified: when its files were last written, seconds since 1970.
    """

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any] = field(default_factory=dict)
    tests: Sequence[Mapping[str, float]] = ()
    status: str = UNFINISHED
    note: str = ""
    update: int = 0
    modified: float = 0.0

    @property
    def seed(self) -> Any:
        """Seed of the run."""
        return self.config["seed"]

    @property
    def num_updates(self) -> Any:
        """Number of updates that it was to make."""
        return self.config["trainer"].get("num_updates")

    def time_to_target(self, target: float, gap: str) -> Mapping[str, float] | None:
        """Return the first of two tested rows in succession with a gap of at most ``target``.

        One good test may be luck; the second one confirms it.

        Args:
            target: gap to reach, 0.10 for 10 %.
            gap: column of the gap: ``"gap"`` or ``"gap_to_lower_bound"``.

        Returns:
            The row; ``None`` if there is none, or if the run did not finish.
        """
        if self.status != FINISHED:
            return None
        for row, following in zip(self.tests, self.tests[1:], strict=False):
            if row.get(gap, math.inf) <= target and following.get(gap, math.inf) <= target:
                return row
        return None


@dataclass(frozen=True)
class RunFolders:
    """What was found in the folders searched.

    Attributes:
        runs: the runs, in the order of their paths.
        unreadable: messages about folders whose configuration cannot be read.
        gradients: by folder, the rows of a ``gradients.csv``.
    """

    runs: Sequence[Run]
    unreadable: Sequence[str] = ()
    gradients: Mapping[Path, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def read_runs(folders: Iterable[str | Path]) -> RunFolders:
    """Find the runs under some folders and read them; no file is changed.

    A run is a folder with a ``config.yaml``; it finished if it holds a ``summary.json``. Hidden
    folders are passed over, and a folder met twice is read once.

    Args:
        folders: where to search, at any depth.

    Returns:
        The runs, and what could not be read.

    Raises:
        FileNotFoundError: a folder does not exist.
        NotADirectoryError: it is a file.
        ValueError: nothing was found, or nothing that was found can be read.

    Examples:
        >>> import tempfile, yaml
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting import read_runs
        >>> config = {"env": {"name": "inventory"}, "algorithm": {"name": "hpo"},
        ...     "trainer": {"num_updates": 100}, "seed": 0}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config))
        ...     (run,) = read_runs([folder]).runs
        >>> run.status, run.update, run.num_updates
        ('not finished', 0, 100)
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.exists():
            raise FileNotFoundError(f"There is no folder {root}; name a folder that holds runs.")
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is a file; name a folder that holds runs.")
    runs, unreadable = [], []
    for folder in _holding(_CONFIG, roots):
        try:
            runs.append(_read_run(folder))
        except _DamagedError as error:
            unreadable.append(str(error))
    gradients = {}
    for folder in _holding(_GRADIENTS, roots):
        try:
            gradients[folder] = _read_gradients(folder / _GRADIENTS)
        except _DamagedError as error:
            unreadable.append(str(error))
    if not runs and not gradients:
        where = ", ".join(map(str, roots))
        if unreadable:
            raise ValueError(f"No run under {where} can be read: {' '.join(unreadable)}")
        raise ValueError(
            f"No run found under {where}: no folder there holds a {_CONFIG}. Train with hpo-train "
            "output_dir=DIR, or name the folder that holds the runs."
        )
    return RunFolders(runs, unreadable, gradients)


class _DamagedError(ValueError):
    """A file of a run cannot be used; the message names it and says why."""


def _holding(name: str, roots: Sequence[Path]) -> list[Path]:
    """Return the folders under ``roots`` that hold a file of this name."""
    found: dict[Path, Path] = {}
    for root in roots:
        for path in sorted(root.rglob(name)):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.is_file() and not hidden:
                found.setdefault(path.parent.resolve(), path.parent)
    return list(found.values())


def _read_run(folder: Path) -> Run:
    config = _read_config(folder / _CONFIG)
    notes, status = [], UNFINISHED
    summary: Mapping[str, Any] = {}
    files = [folder / name for name in (_CONFIG, _METRICS, _SUMMARY)]
    if files[-1].exists():
        try:
            summary, status = _read_summary(files[-1]), FINISHED
        except _DamagedError as error:
            status = DAMAGED
            notes.append(str(error))
    tests: list[dict[str, float]] = []
    update = 0
    try:
        tests, update = _read_metrics(files[1])
        if status == FINISHED and not tests:
            notes.append(f"{files[1]} has no tested row: it counts as never reaching the target.")
    except _DamagedError as error:
        if status == FINISHED or files[1].exists():
            notes.append(f"{error} It counts as never reaching the target.")
    modified = max(path.stat().st_mtime for path in files if path.exists())
    return Run(folder, config, summary, tests, status, " ".join(notes), update, modified)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _DamagedError(f"{path} cannot be read: {first_line(error)}.") from error
    sections = ("env", "algorithm", "trainer")
    lacking = [
        name
        for name in sections
        if not isinstance(config, dict) or not isinstance(config.get(name), dict)
    ]
    lacking += [
        f"{name}.name" for name in sections[:2] if not lacking and "name" not in config[name]
    ]
    if not lacking and "seed" not in config:
        lacking = ["seed"]
    if lacking:
        raise _DamagedError(
            f"{path} is not the configuration of a run: it lacks {', '.join(lacking)}."
        )
    return config


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _DamagedError(f"{path} cannot be read: {first_line(error)}.") from error
    if not isinstance(summary, dict):
        raise _DamagedError(f"{path} is damaged: it holds no names and values.")
    needed = ("test_cost", "updates", "env_steps", "wall_seconds")
    for key in (*needed, "optimal_cost", "lower_bound", "upper_bound"):
        _check_finite(path, key, summary.get(key), optional=key not in needed)
    baselines = summary.get("baseline_costs")
    if baselines is not None and not isinstance(baselines, dict):
        raise _DamagedError(f"{path} cannot be used: baseline_costs must hold names and costs.")
    for name, cost in (baselines or {}).items():
        _check_finite(path, f"baseline_costs[{name!r}]", cost, optional=False)
    return summary


def _check_finite(path: Path, key: str, value: Any, *, optional: bool) -> None:
    if value is None and optional:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise _DamagedError(f"{path} cannot be used: {key} must be a finite number, got {value!r}.")


def _read_metrics(path: Path) -> tuple[list[dict[str, float]], int]:
    """Return the tested rows and the last update."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _DamagedError(f"{path} cannot be read: {first_line(error)}.") from error
    tests, update = [], 0
    for place, row in enumerate(rows):
        last = place == len(rows) - 1
        if last and None in row.values():
            break  # a killed run may leave a half-written last row
        try:
            numbers = {key: float(row[key]) for key in _TESTED if row.get(key)}
            update = int(numbers["update"])
            if "test_cost" in numbers and min(numbers[key] for key in _TESTED[:3]) <= 0:
                raise ValueError(f"{', '.join(_TESTED[:3])} must be positive, got {numbers}")
        except (KeyError, ValueError, OverflowError) as error:
            if last:
                break
            raise _DamagedError(
                f"{path} is damaged in line {place + 2}: {first_line(error)}."
            ) from error
        if "test_cost" in numbers:
            tests.append(numbers)
    return tests, update


def _read_gradients(path: Path) -> list[dict[str, Any]]:
    measures = [
        f"{name}{end}" for name in ("signal_to_noise", "alignment") for end in ("", "_low", "_high")
    ]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                {"group": row["group"], "estimator": row["estimator"]}
                | {"whole": row["whole"] == "True"}
                | {measure: float(row[measure]) for measure in measures}
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise _DamagedError(f"{path} cannot be read: {first_line(error)}.") from error
