"""Checkpoints that resume a run exactly, on TorchRL's checkpoint format (no pickle)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torchrl.checkpoint import Checkpoint as TorchRLCheckpoint
from torchrl.checkpoint import CheckpointRotation, GlobalRNGState

from hpo_torchrl.core.checks import first_line
from hpo_torchrl.training.run_folder import RunFolder, RunFolderError


class CheckpointError(RunFolderError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


class Checkpoint:
    """The checkpoints of one run, in ``DIR/checkpoints``; the newest two stay.

    Each is one archive of tensors and JSON, written beside its place and moved there in one
    step, so that a killed run leaves whole checkpoints only. Loading executes no pickled code.
    It keeps all components, the global random-number generators and the trainer's counters.

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
        self._checkpoint = TorchRLCheckpoint(format="archive", **components, rng=GlobalRNGState())
        self._rotation = CheckpointRotation(self.directory, keep_last=2)

    def save(self, update: int, counters: Mapping[str, Any]) -> Path:
        """Write the checkpoint of an update; a crash on the way leaves the older ones as they are.

        Args:
            update: number of updates done.
            counters: JSON values of the trainer, given back by :meth:`load`.
        """
        metadata = {"config": self.config, "counters": dict(counters)}
        return self._rotation.save(self._checkpoint, step=update, metadata=metadata)

    def load(
        self, update: int | None = None, components: Collection[str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Restore the newest checkpoint, or that of an update.

        Args:
            update: number of updates after which it was written.
            components: names of what is to be restored, of those there are; all by default.

        Returns:
            The number of updates done and the trainer's counters.

        Raises:
            CheckpointError: there is none, it is damaged, or it is of another configuration; the
                message says what to do.
        """
        update = self.newest_update() if update is None else update
        path = self._path(update)
        if not path.exists():
            raise CheckpointError(f"{self.directory} holds no checkpoint of update {update}.")
        names = None if components is None else [n for n in components if n in self._checkpoint]
        try:
            metadata = TorchRLCheckpoint.manifest(path)["metadata"]
            changed = differences(metadata["config"], self.config)
            if not changed:
                self._checkpoint.load(path, components=names)
        except Exception as error:
            others = [other for other in self._rotation.checkpoints() if other != path]
            fix = "No other checkpoint is left: start the run anew in another folder."
            if others:
                fix = f"Delete it to go on from {others[-1].name}."
            raise CheckpointError(
                f"{path} is damaged or incomplete ({first_line(error)}). {fix}"
            ) from error
        if changed:
            raise CheckpointError(
                f"{path} was written under another configuration: {'; '.join(changed)}. "
                "Resume with the run's own configuration, or start a new run in another folder."
            )
        return update, metadata["counters"]

    def newest(self) -> Path:
        """Return the newest checkpoint, whole or not; raise as :meth:`newest_update` does."""
        return self._path(self.newest_update())

    def newest_update(self) -> int:
        """Return the number of updates of the newest checkpoint, whole or not.

        Raises:
            CheckpointError: there is none.
        """
        paths = self.directory.glob(f"checkpoint-{'[0-9]' * 12}.torchrl")
        newest = max((path.stem for path in paths), default=None)
        if newest is None:
            raise CheckpointError(
                f"{self.directory} holds no checkpoint (checkpoint-*.torchrl): either this is not "
                "the folder of a run, or the run stopped before its first one. Start it with "
                "output_dir=DIR, after deleting what the folder holds, instead of resume=DIR."
            )
        return int(newest.rpartition("-")[2])

    def _path(self, update: int) -> Path:
        return self.directory / f"checkpoint-{update:012d}.torchrl"


def differences(saved: Mapping[str, Any], current: Mapping[str, Any], at: str = "") -> list[str]:
    """Return in words what changed from one configuration to another, key by key."""
    found = []
    for key in sorted({*saved, *current}):
        old, new = saved.get(key, "absent"), current.get(key, "absent")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{at}{key}.")
        elif old != new:
            found.append(f"{at}{key} was {old!r}, is {new!r}")
    return found
