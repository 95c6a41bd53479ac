"""The folder of a run: the name, the writing and the reading of every file in it."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hpo_torchrl.core.checks import first_line

_SECTIONS = ("env", "algorithm", "trainer")


class RunFolderError(ValueError):
    """A file of a run is missing or damaged; the message names it and says what to do."""


class RunFolder:
    """The folder of a run, or of the runs of several seeds.

    Every file is written beside its place and moved there in one step, so that a killed run leaves
    whole files only; ``metrics.csv`` alone is appended to.

    Args:
        path: where the folder lies; it need not exist yet.

    Attributes:
        path: the folder.
        config: ``config.yaml``, the resolved configuration.
        metrics: ``metrics.csv``, a row per logged update.
        checkpoints: folder of the checkpoints.
        summary: ``summary.json``; it is there once the run has finished.
        learning_curve: ``learning_curve.png``.
        policy: ``policy.png``, the picture that an environment draws of a policy.
        gradients: ``gradients.csv``, the gradient report.
        gradients_picture: ``gradients.png``.
        failure: ``failed.txt``, what stopped a run of a sweep.
        seeds: ``seeds.yaml``, the seeds whose runs lie in folders below.

    Examples:
        >>> import tempfile
        >>> from hpo_torchrl.training import RunFolder
        >>> folder = RunFolder(tempfile.mkdtemp())
        >>> folder.write_summary({"test_cost": 37.1, "gap": float("nan")})
        >>> folder.read_summary(), folder.found
        ({'test_cost': 37.1, 'gap': None}, ['summary.json'])
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.checkpoints = self.path / "checkpoints"
        self.summary = self.path / "summary.json"
        self.learning_curve = self.path / "learning_curve.png"
        self.policy = self.path / "policy.png"
        self.gradients = self.path / "gradients.csv"
        self.gradients_picture = self.path / "gradients.png"
        self.failure = self.path / "failed.txt"
        self.seeds = self.path / "seeds.yaml"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def found(self) -> list[str]:
        """The names of those files here that belong to a run."""
        files = (self.config, self.summary, self.seeds, self.checkpoints)
        return [path.name for path in files if path.exists()]

    def of_seed(self, seed: int) -> RunFolder:
        """Return the folder of one seed's run, in that of several."""
        return RunFolder(self.path / f"seed={seed}")

    def check_new(self) -> None:
        """Raise a ``FileExistsError`` if the folder holds a run, or is a file."""
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"output_dir={str(self.path)!r} is a file; name a folder.")
        if found := self.found:
            raise FileExistsError(
                f"output_dir={str(self.path)!r} already holds a run ({', '.join(found)}). Go on "
                f"with it by resume={self.path}, or choose another output_dir; nothing was changed."
            )

    # -- configuration -------------------------------------------------------------------------

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Make the folder and write the resolved configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.config, yaml.safe_dump(dict(config), sort_keys=False))

    def read_config(self) -> dict[str, Any]:
        """Return the configuration.

        Raises:
            RunFolderError: the folder holds no run, or its configuration is damaged.
        """
        if not self.config.is_file():
            raise RunFolderError(
                f"{self.path} is not the folder of a run: it holds no {self.config.name}."
            )
        config = self._yaml(self.config)
        lacking = [name for name in _SECTIONS if not isinstance(config.get(name), dict)]
        lacking += [] if "seed" in config else ["seed"]
        if lacking:
            raise RunFolderError(
                f"{self.config} is damaged: it is not the configuration of a run, for it lacks "
                f"{', '.join(lacking)}."
            )
        return config

    def write_seeds(self, seeds: Sequence[int]) -> None:
        """Make the folder and write which seeds have folders in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.seeds, yaml.safe_dump({"seeds": list(seeds)}))

    def read_seeds(self) -> list[int] | None:
        """Return the seeds that have folders in this one; ``None`` if it is no such folder.

        Raises:
            RunFolderError: the list of seeds is damaged.
        """
        if not self.seeds.is_file():
            return None
        seeds = self._yaml(self.seeds).get("seeds")
        if not isinstance(seeds, list) or not all(type(s) is int and s >= 0 for s in seeds):
            raise RunFolderError(f"{self.seeds} is damaged: seeds must be a list, got {seeds!r}.")
        return seeds

    @staticmethod
    def _yaml(path: Path) -> dict[str, Any]:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RunFolderError(f"{path} is damaged: {first_line(error)}") from error
        if not isinstance(content, dict):
            raise RunFolderError(f"{path} is damaged: it holds no names and values.")
        return content

    # -- figures -------------------------------------------------------------------------------

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary; numbers that are not finite become null."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in summary.items()
        }
        replace_text(self.summary, json.dumps(clean, indent=2) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """Return the summary.

        Raises:
            RunFolderError: the run has not finished, or the file is damaged.
        """
        if not self.summary.is_file():
            raise RunFolderError(
                f"{self.path} holds no {self.summary.name}: its run has not finished. Go on with "
                f"it by resume={self.path}."
            )
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.summary} is damaged: {first_line(error)}.") from error
        if not isinstance(summary, dict):
            raise RunFolderError(f"{self.summary} is damaged: it holds no names and values.")
        return summary

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of the metrics as numbers; a value that was not logged is left out.

        A killed run may leave a half-written last row, which is dropped.

        Raises:
            RunFolderError: another row is damaged; the message names its line.
        """
        if not self.metrics.is_file():
            return []
        rows, lines = [], list(_csv_rows(self.metrics))
        for place, line in enumerate(lines):
            try:
                if None in line or None in line.values() or not line.get("update"):
                    raise ValueError("it is incomplete")
                rows.append({key: _number(text) for key, text in line.items() if text})
            except ValueError as error:
                if place == len(lines) - 1:
                    break
                raise RunFolderError(
                    f"{self.metrics} is damaged in line {place + 2}: {first_line(error)}."
                ) from error
        return rows

    def read_gradients(self) -> list[dict[str, Any]]:
        """Return the rows of the gradient report; numbers and truth values as such.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        return [
            {key: _value(text) for key, text in row.items()} for row in _csv_rows(self.gradients)
        ]


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(text, encoding="utf-8", newline="")
    os.replace(draft, path)


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunFolderError(f"{path} cannot be read: {first_line(error)}.") from error


def _number(text: str) -> float | int:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _value(text: str | None) -> Any:
    if text in ("True", "False"):
        return text == "True"
    try:
        return _number(text or "")
    except ValueError:
        return text
