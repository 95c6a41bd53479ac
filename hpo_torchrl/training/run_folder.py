"""The folder of a run: the name, the writing and the reading of every file in it."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from hpo_torchrl.core import ranks
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
        kept_policy: folder of the policy that the run ends with, see :class:`PolicyFolder`.
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
        self.kept_policy = self.path / "policy"
        self.gradients = self.path / "gradients.csv"
        self.gradients_picture = self.path / "gradients.png"
        self.failure = self.path / "failed.txt"
        self.seeds = self.path / "seeds.yaml"

    @property
    def found(self) -> list[str]:
        """The names of those files here that belong to a run."""
        files = (self.config, self.summary, self.seeds, self.checkpoints)
        return [path.name for path in files if path.exists()]

    def of_seed(self, seed: int) -> RunFolder:
        """Return the folder of one seed's run, in that of several."""
        return RunFolder(self.path / f"seed={seed}")

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder until the block ends; the kernel lets go of it where a process dies.

        It is made if need be, and removed if nothing was written there.

        Raises:
            FileExistsError: another process owns it, whom the message names; or it is a file.
        """
        import fcntl

        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"output_dir={str(self.path)!r} is a file; name a folder.")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"
        with lock.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise FileExistsError(
                    f"{self.path} is in use by {file.read() or 'another process'}, and a folder "
                    "has one owner: wait for it, stop it, or choose another output_dir."
                ) from error
            if not os.fstat(file.fileno()).st_nlink:  # opened before its last owner removed it
                raise FileExistsError(f"{self.path} was in use until just now; try again.")
            file.truncate(0)
            print(f"process {os.getpid()} on {platform.node()}", end="", file=file, flush=True)
            drafts = map(_draft, (self.config, self.metrics, self.summary, self.seeds))
            for draft in (*drafts, *self.checkpoints.glob(_draft(Path("checkpoint-*")).name)):
                draft.unlink(missing_ok=True)  # of a process that was killed
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
                with suppress(OSError):
                    self.path.rmdir()

    @contextmanager
    def advising(self, key: str = "output_dir") -> Iterator[None]:
        """Let an error of the disk in this block name its path and how to go on.

        Args:
            key: the setting that the folder comes from.
        """
        try:
            yield
        except OSError as error:
            if error.errno is None:  # says it already
                raise
            fix = f"Mend that or choose another {key}, and start again."
            if any(map(os.path.exists, (self.config, self.seeds))):  # of no name is it an error
                fix = f"What was saved is whole: mend that, then go on by resume={self.path}."
            raise OSError(f"{error.filename or self.path}: {error.strerror}. {fix}") from error

    def check_new(self) -> None:
        """Raise a ``FileExistsError`` if the folder holds a run."""
        if found := self.found:
            raise FileExistsError(
                f"output_dir={str(self.path)!r} already holds a run ({', '.join(found)}). Go on "
                f"with it by resume={self.path}, or choose another output_dir; nothing was changed."
            )

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Make the folder and write the resolved configuration, unless it is there already."""
        content = yaml.safe_dump(dict(config), sort_keys=False)
        if not self.config.is_file() or self.config.read_bytes() != content.encode():
            replace(self.config, content)

    def read_config(self, *, of_seeds: bool = False) -> dict[str, Any]:
        """Return the configuration.

        Args:
            of_seeds: return what several seeds share, that of the first of them.

        Raises:
            RunFolderError: the folder holds no run, or its configuration is damaged.
        """
        if not of_seeds and not self.config.is_file():
            seeds = self.read_seeds()
            fix = f"it holds no {self.config.name}."
            if seeds is not None:
                fix = f"it holds those of seeds {seeds}. Name one: {self.of_seed(seeds[0]).path}"
            raise RunFolderError(f"{self.path} is not the folder of a run: {fix}")
        config = _read_names(self.seeds if of_seeds else self.config, yaml.safe_load)
        config = config.get("config") or {} if of_seeds else config
        lacking = [name for name in _SECTIONS if not isinstance(config.get(name), dict)]
        lacking += [] if "seed" in config else ["seed"]
        if lacking:
            raise RunFolderError(
                f"{self.config} is damaged: it is not the configuration of a run, for it lacks "
                f"{', '.join(lacking)}."
            )
        return config

    def write_seeds(self, seeds: Sequence[int], config: Mapping[str, Any]) -> None:
        """Make the folder and write which seeds have folders in it, with their configuration."""
        content = {"seeds": list(seeds), "config": dict(config)}
        replace(self.seeds, yaml.safe_dump(content, sort_keys=False))

    def read_seeds(self) -> list[int] | None:
        """Return the seeds that have folders in this one; ``None`` if it is no such folder.

        Raises:
            RunFolderError: the list of seeds is damaged.
        """
        if not self.seeds.is_file():
            return None
        seeds = _read_names(self.seeds, yaml.safe_load).get("seeds")
        if not isinstance(seeds, list) or not all(type(s) is int and s >= 0 for s in seeds):
            raise RunFolderError(f"{self.seeds} is damaged: seeds must be a list, got {seeds!r}.")
        return seeds

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary; numbers that are not finite become null."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in summary.items()
        }
        replace(self.summary, json.dumps(clean, indent=2) + "\n")

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
        return _read_names(self.summary, json.loads)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of the metrics as numbers; a value that was not logged is left out.

        A killed run may leave a half-written last row, which is dropped.

        Raises:
            RunFolderError: another row is damaged; the message names its line.
        """
        return _read(self.metrics, _numbers) if self.metrics.is_file() else []

    def read_gradients(self) -> list[dict[str, Any]]:
        """Return the rows of the gradient report; numbers and truth values as such.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        import pandas as pd  # half a second, and seldom needed

        return _read(self.gradients, lambda text: pd.read_csv(io.StringIO(text)).to_dict("records"))


def replace(path: Path, content: str | bytes) -> None:
    """Write a file in one step, on the disk before it has its name, and the folder it lies in.

    Of ranks that share a training, rank 0 writes.
    """
    if not ranks.main():
        return
    draft = _draft(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let an error of the disk name the file; a write that fails does not say which it was of."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """Return what ``parse`` makes of a text file."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RunFolderError(f"{path} is damaged: line {line}: not UTF-8.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise RunFolderError(f"{path} is damaged: {first_line(error)}.") from error


def _read_names(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    content = _read(path, parse)
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} is damaged: it holds no names and values.")
    return content


def _numbers(text: str) -> list[dict[str, Any]]:
    """Parse a table of numbers whose last line may be cut off."""
    rows: list[dict[str, Any]] = []
    table = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    try:
        if text and "update" not in (table.fieldnames or ()):
            raise ValueError("the header is missing, or names no update")
        for line in table:
            if None in line or None in line.values() or not line["update"]:
                raise ValueError("it is incomplete")
            row = {
                key: int(value) if value.lstrip("-").isdigit() else float(value)
                for key, value in line.items()
                if value
            }
            if rows and row["update"] <= rows[-1]["update"]:
                raise ValueError(f"update {row['update']} is not after the one before")
            rows.append(row)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"line {max(table.line_num, 1)}: {error}") from error
    return rows
