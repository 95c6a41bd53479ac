"""Checkpoints that resume a run exactly, and that are refused unless they are whole."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchrl.checkpoint import GlobalRNGState

from hpo_torchrl.core import ranks
from hpo_torchrl.core.checks import first_line
from hpo_torchrl.core.finite import NonFiniteError, not_finite
from hpo_torchrl.training.run_folder import RunFolder, RunFolderError, replace

_SUFFIX, _KEPT = ".ckpt", 2
# Differences with which a run may go on; the content of its files is checked where they are found.
_FREE = ("algorithm.learning_rate ", "files ", "files.", "logger.")


class CheckpointError(RunFolderError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


class DamagedError(CheckpointError):
    """A checkpoint is not what was written."""


class Saved(NamedTuple):
    """The content of a checkpoint."""

    update: int
    config: dict[str, Any]
    counters: dict[str, Any]
    states: dict[str, Any]


class Checkpoint:
    """The checkpoints of one run, in ``DIR/checkpoints``; the newest two stay.

    Each is one file: a SHA-256 digest, then what :func:`torch.save` makes of the update, the
    configuration, the trainer's counters and the state of each component, the global
    random-number generators among them. It is written beside its place, flushed to the disk and
    moved there in one step, so that a killed run leaves whole checkpoints only. Loading accepts
    tensors and plain values alone (``torch.load(weights_only=True)``): no code in it is run.

    Args:
        run_dir: folder of the run.
        components: by name, objects with ``state_dict`` and ``load_state_dict``.
        config: the resolved configuration; a checkpoint loads only under the same one.

    Examples:
        >>> import tempfile, torch
        >>> from hpo_torchrl.training import Checkpoint
        >>> net = torch.nn.Linear(2, 1)
        >>> checkpoint = Checkpoint(tempfile.mkdtemp(), {"net": net}, config={"seed": 0})
        >>> path = checkpoint.save(10, {"wall_seconds": 1.5})
        >>> checkpoint.load()
        (10, {'wall_seconds': 1.5})
    """

    def __init__(
        self, run_dir: str | Path, components: Mapping[str, Any], *, config: Mapping[str, Any]
    ) -> None:
        self.directory, self.config = RunFolder(run_dir).checkpoints, dict(config)
        self.components = {**components, "rng": GlobalRNGState()}

    def save(self, update: int, counters: Mapping[str, Any]) -> Path:
        """Write the checkpoint of an update; a crash on the way leaves the older ones as they are.

        Args:
            update: number of updates done.
            counters: JSON values of the trainer, given back by :meth:`load`.

        Returns:
            The file.

        Raises:
            NonFiniteError: a component holds NaN or infinity; nothing is written.
        """
        states = {name: one.state_dict() for name, one in self.components.items()}
        if bad := not_finite(states):
            last = self.newest() if self.updates() else "none"
            raise NonFiniteError(
                f"Update {update} spoilt {bad}, which is not finite, so it is not saved; {last} "
                "stays the newest checkpoint."
            )
        if not ranks.main():
            return self._path(update)
        replace(self._path(update), packed(Saved(update, self.config, dict(counters), states)))
        for old in self.updates()[:-_KEPT]:
            self._path(old).unlink()
        return self._path(update)

    def load(
        self, update: int | None = None, components: Collection[str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Restore the newest checkpoint that is whole, or that of an update.

        Args:
            update: number of updates after which it was written.
            components: names of what is to be restored, of those there are; all by default.

        Returns:
            The number of updates done and the trainer's counters.

        Raises:
            CheckpointError: there is none, it is damaged, it cannot be read, or it is of another
                configuration; the message says what to do.
        """
        (saved,) = read_together([self], update)
        self.restore(saved, components)
        return saved.update, saved.counters

    def restore(self, saved: Saved, components: Collection[str] | None = None) -> None:
        """Give the components the states of a checkpoint.

        Raises:
            CheckpointError: a state does not fit its component.
        """
        for name, state in saved.states.items():
            if name in self.components and (components is None or name in components):
                try:
                    self.components[name].load_state_dict(state)
                except (RuntimeError, ValueError, KeyError, TypeError) as error:
                    raise CheckpointError(
                        f"{self._path(saved.update)} does not fit: {name} is built differently now "
                        f"({first_line(error)}). Resume with the version that trained the run."
                    ) from error

    def read(self, update: int) -> Saved:
        """Return the checkpoint of an update, after checking all of it; change nothing.

        Raises:
            DamagedError: it is not what was written.
            CheckpointError: it cannot be read, or is of another configuration.
        """
        path = self._path(update)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.directory} holds no checkpoint of update {update}."
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror}); the file itself may well be whole. "
                f"Mend that, then go on by resume={self.directory.parent}."
            ) from error
        try:
            saved = _unpacked(data)
            if saved.update != update:
                raise ValueError(f"it is of update {saved.update}, not {update}")
            if absent := {*self.components} - {*saved.states}:
                raise ValueError(f"it holds no {', '.join(sorted(absent))}")
        except MemoryError:
            raise
        except Exception as error:
            raise DamagedError(f"{path} is damaged or incomplete ({first_line(error)}).") from error
        check_same_run(saved.config, self.config, path)
        return saved

    def forget(self, update: int) -> None:
        """Delete the checkpoints of later updates."""
        for later in self.updates():
            if later > update:
                self._path(later).unlink()

    def updates(self) -> list[int]:
        """Return the updates that have a checkpoint here, whole or not, in order."""
        names = (path.stem.removeprefix("checkpoint-") for path in self.directory.glob("*"))
        return sorted(
            int(name) for name in names if name.isdigit() and self._path(int(name)).is_file()
        )

    def newest(self) -> Path:
        """Return the newest checkpoint, whole or not.

        Raises:
            CheckpointError: there is none.
        """
        if not (updates := self.updates()):
            raise CheckpointError(
                f"{self.directory} holds no checkpoint (checkpoint-*{_SUFFIX}): either this is not "
                "the folder of a run, or the run stopped before its first one."
            )
        return self._path(updates[-1])

    def _path(self, update: int) -> Path:
        return self.directory / f"checkpoint-{update:012d}{_SUFFIX}"


def read_together(checkpoints: Sequence[Checkpoint], update: int | None = None) -> list[Saved]:
    """Read the newest update of which all runs have a whole checkpoint, or that of an update.

    A damaged checkpoint is passed over, with a warning that names it.

    Raises:
        CheckpointError: there is none; see :meth:`Checkpoint.read`.
    """
    if update is not None:
        return [checkpoint.read(update) for checkpoint in checkpoints]
    for checkpoint in checkpoints:
        checkpoint.newest()
    damage = ""
    for common in sorted(set.intersection(*(set(c.updates()) for c in checkpoints)), reverse=True):
        try:
            found = [checkpoint.read(common) for checkpoint in checkpoints]
        except DamagedError as error:
            damage += f"{error} "
            continue
        if damage:
            warnings.warn(f"{damage}Going on from update {common}.", stacklevel=2)
        return found
    if damage:
        raise DamagedError(f"{damage}No other checkpoint is left: start the run anew.")
    newest = [checkpoint.updates()[-1] for checkpoint in checkpoints]
    raise CheckpointError(
        f"The seeds have no checkpoint in common: they have come to different updates, "
        f"{min(newest)} to {max(newest)}. Go on with each alone, as by "
        f"resume={checkpoints[0].directory.parent}."
    )


def differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], at: str = "", pins: Collection[str] = ()
) -> list[str]:
    """Return in words what changed from one configuration to another, key by key.

    A file that a run is pinned to is known by its content, wherever it lies: what counts is its
    digest in the section ``files``, not its path; ``units`` are a consequence of the rest.
    """
    pins = pins if at else {**saved.get("files", {}), **current.get("files", {})}
    found = []
    for key in sorted({*saved, *current}, key=str):
        name, old, new = f"{at}{key}", saved.get(key, "absent"), current.get(key, "absent")
        if name in pins or name == "units":
            continue
        if any(pin.startswith(f"{name}.") for pin in pins):
            old, new = (dict(enumerate(x)) if isinstance(x, list) else x for x in (old, new))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{name}.", pins)
        elif old != new:
            found.append(f"{name} was {old!r}, is {new!r}")
    return found


def check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any], where: Path) -> None:
    """Raise a ``CheckpointError`` if a run cannot go on under the current configuration.

    Its learning rate may be another one, so that a run that diverged is not lost.
    """
    changed = [text for text in differences(saved, current) if not text.startswith(_FREE)]
    if changed:
        raise CheckpointError(
            f"{where} was written under another configuration: {'; '.join(changed)}. A run goes on "
            "under its own, but for algorithm.learning_rate; or start a new one in another folder."
        )


def packed(saved: Saved) -> bytes:
    """Return the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(saved._asdict(), buffer)
    content = buffer.getvalue()
    return hashlib.sha256(content).digest() + content


def _unpacked(data: bytes) -> Saved:
    """Return the content of a checkpoint, or raise an error of any kind."""
    digest, content = data[:32], data[32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its digest is not that of its content")
    # Refuses everything but tensors and plain values, so that no code is run.
    saved = Saved(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    if bad := not_finite(saved.states):
        raise ValueError(f"{bad} is not finite")
    return saved
