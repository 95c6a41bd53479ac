"""The folders of training runs, read back: what finished, what did not, and what is damaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_torchrl.core.checks import first_line
from hpo_torchrl.reporting.statistics import Estimate
from hpo_torchrl.training.run_folder import RunFolder, RunFolderError

FINISHED, UNFINISHED, DAMAGED, REPLACED = "finished", "not finished", "damaged", "replaced"
# Settings of the env section that say on what machine a problem is simulated, not what it is.
_NOT_THE_PROBLEM = ("name", "seed", "device", "dtype")
# Sections that say how a run was trained, and settings there that change neither what is learned
# nor how fast.
_TRAINING = ("collect", "policy", "critic", "algorithm", "evaluation", "trainer", "device", "dtype")
_NO_EFFECT = ("algorithm.name", "trainer.progress", "trainer.log_every", "trainer.checkpoint_every")
_NEEDED = ("test_cost", "updates", "env_steps", "wall_seconds")
_OPTIONAL = ("optimal_cost", "lower_bound", "upper_bound")
MEASURES = ("signal_to_noise", "alignment")


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
    def env(self) -> str:
        """Name of the environment; that of its class where it has none."""
        return _name(self.config["env"])

    @property
    def algorithm(self) -> str:
        """Name of the algorithm; that of its class where it has none."""
        return _name(self.config["algorithm"])

    @property
    def problem(self) -> dict[str, Any]:
        """Settings of the environment, which say what problem is solved; nested keys by dots."""
        flat = _flatten(self.config["env"])
        return {key: value for key, value in flat.items() if key not in _NOT_THE_PROBLEM}

    @property
    def training(self) -> dict[str, Any]:
        """All other settings, which say how it is solved; nested keys by dots."""
        flat = _flatten({key: self.config.get(key) for key in _TRAINING})
        return {key: value for key, value in flat.items() if key not in _NO_EFFECT}

    @property
    def learns(self) -> bool:
        """Whether it makes updates; a rule is only tested."""
        return self.summary.get("updates") != 0

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
    """The runs under some folders.

    Attributes:
        runs: the runs, in the order of their paths.
        unreadable: messages about folders whose configuration or gradient report cannot be read.
        gradients: by folder, the rows of its gradient report, each measure as an estimate.
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
        >>> import tempfile
        >>> from hpo_torchrl.reporting.runs import read_runs
        >>> from hpo_torchrl.training.run_folder import RunFolder
        >>> config = {"env": {"name": "inventory"}, "algorithm": {"name": "hpo"},
        ...     "trainer": {"num_updates": 100}, "seed": 0}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     RunFolder(folder).write_config(config)
        ...     (run,) = read_runs([folder]).runs
        >>> run.status, run.update, run.env, run.seed
        ('not finished', 0, 'inventory', 0)
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.exists():
            raise FileNotFoundError(f"There is no folder {root}; name a folder that holds runs.")
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is a file; name a folder that holds runs.")
    names = RunFolder("")
    runs, unreadable, gradients = [], [], {}
    for path in _find(names.config.name, roots):
        try:
            runs.append(_read_run(RunFolder(path)))
        except RunFolderError as error:
            unreadable.append(str(error))
    for path in _find(names.gradients.name, roots):
        try:
            gradients[path] = _read_gradients(RunFolder(path))
        except RunFolderError as error:
            unreadable.append(str(error))
    if not runs and not gradients:
        where = ", ".join(map(str, roots))
        if unreadable:
            raise ValueError(f"No run under {where} can be read: {' '.join(unreadable)}")
        raise ValueError(
            f"No run found under {where}: no folder there holds a {names.config.name}. Train with "
            "hpo-train output_dir=DIR, or name the folder that holds the runs."
        )
    return RunFolders(runs, unreadable, gradients)


def _find(name: str, roots: Sequence[Path]) -> list[Path]:
    """Return the folders under ``roots`` that hold a file of this name."""
    found: dict[Path, Path] = {}
    for root in roots:
        for path in sorted(root.rglob(name)):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.is_file() and not hidden:
                found.setdefault(path.parent.resolve(), path.parent)
    return list(found.values())


def _read_run(folder: RunFolder) -> Run:
    config, notes = folder.read_config(), []
    summary: Mapping[str, Any] = {}
    status = UNFINISHED
    if folder.summary.exists():
        try:
            summary, status = _read_summary(folder), FINISHED
        except RunFolderError as error:
            status = DAMAGED
            notes.append(str(error))
    tests: Sequence[Mapping[str, float]] = ()
    update = 0
    never = "It counts as never reaching the target."
    try:
        tests, update = _read_tests(folder)
        if status == FINISHED and not tests and summary["updates"]:
            notes.append(f"{folder.metrics} has no tested row. {never}")
    except RunFolderError as error:
        notes.append(f"{error} {never}")
    files = (folder.config, folder.metrics, folder.summary)
    modified = max(path.stat().st_mtime for path in files if path.exists())
    return Run(folder.path, config, summary, tests, status, " ".join(notes), update, modified)


def _read_summary(folder: RunFolder) -> dict[str, Any]:
    """Return a summary whose costs are finite numbers."""
    summary = folder.read_summary()
    baselines = summary.get("baseline_costs") or {}
    if not isinstance(baselines, dict):
        raise RunFolderError(
            f"{folder.summary} cannot be used: baseline_costs must hold names and costs."
        )
    numbers: dict[str, Any] = {key: summary.get(key) for key in _NEEDED}
    numbers |= {key: summary[key] for key in _OPTIONAL if summary.get(key) is not None}
    numbers |= {f"baseline_costs[{name!r}]": cost for name, cost in baselines.items()}
    for key, value in numbers.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise RunFolderError(
                f"{folder.summary} cannot be used: {key} must be a finite number, got {value!r}."
            )
    return summary


def _read_tests(folder: RunFolder) -> tuple[list[dict[str, Any]], int]:
    """Return the tested rows of the metrics, and the last update."""
    rows = folder.read_metrics()
    for row in rows:
        tested = "test_cost" in row
        for key in ("update", "env_steps", "wall_seconds") if tested else ("update",):
            if not 0 < row.get(key, 0) < math.inf:
                raise RunFolderError(
                    f"{folder.metrics} is damaged: a row must have {key} above 0, got {row}."
                )
    tests = [row for row in rows if "test_cost" in row]
    return tests, int(rows[-1]["update"]) if rows else 0


def _read_gradients(folder: RunFolder) -> list[dict[str, Any]]:
    rows = folder.read_gradients()
    try:
        return [
            {key: row[key] for key in ("group", "estimator", "whole")}
            | {
                name: Estimate(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))
                for name in MEASURES
            }
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{folder.gradients} is damaged: {first_line(error)}.") from error


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
