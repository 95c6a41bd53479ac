"""The rows of a run: written as it goes, and restored from a checkpoint."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping
from itertools import zip_longest
from numbers import Integral
from pathlib import Path
from typing import Any

from hpo_torchrl.core import ranks
from hpo_torchrl.training.run_folder import RunFolder, RunFolderError, replace, writing
from hpo_torchrl.training.tracking import Tracker, tracked, tracker_of


class RunLogger:
    """Write one row per logged update to ``metrics.csv`` and pass it to a tracker.

    Columns appear as they are first logged. A checkpoint holds the rows up to its update, so that
    the file of a resumed run reads like that of an uninterrupted one, whatever befell it.

    Args:
        run_dir: folder of the run.
        backend: ``None`` for the CSV file alone, or one of ``"tensorboard"``, ``"wandb"``,
            ``"mlflow"`` besides (their package must be installed). The run begins
            there with its first row; one that goes on begins there anew, with all rows so far.
        config: the resolved configuration, for the tracker.
        how: name, group and options of the run there, see
            :func:`~hpo_torchrl.training.tracking.tracked`.

    Attributes:
        rows: what has been logged.
    """

    def __init__(
        self,
        run_dir: str | Path,
        backend: str | None = None,
        config: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> None:
        self.folder = RunFolder(run_dir)
        self.rows: list[dict[str, Any]] = []
        self._columns: list[str] = []
        self._size = 0  # of the file, as it was left
        self._kind = None if backend is None else tracker_of(backend)
        self._tracked = tracked(run_dir, config or {}, **how)
        self._tracker: Tracker | None = None

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row; it must hold ``"update"``.

        Raises:
            TypeError: a value is not a number.
        """
        try:
            items = [(key, value) for key, value in row.items() if value is not None]
            row = {k: int(v) if isinstance(v, Integral) else float(v) for k, v in items}
        except (TypeError, ValueError) as error:
            raise TypeError(f"metrics.csv takes numbers, got {row!r} of a callback.") from error
        self.rows.append(row)
        if not ranks.main():
            return
        path = self.folder.metrics
        whole = path.exists() and path.stat().st_size == self._size
        if not whole and len(self.rows) > 1:
            warnings.warn(f"{path} was changed by another hand; it is written anew.", stacklevel=2)
        if whole and set(row) <= set(self._columns):
            with writing(path), path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._rewrite()
        self._size = path.stat().st_size
        self._track()

    def _track(self) -> None:
        """Pass the last row on; to a tracker that is only now opened, all rows so far."""
        if self._kind is None:
            return
        rows = self.rows[-1:]
        if self._tracker is None:
            rows = self.rows
            self._tracker = self._kind(self._tracked, rows[0]["update"])
        for row in rows:
            self._tracker.log(row)

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """End the run of the tracker, if it has begun.

        Args:
            summary: that of the run; ``None`` where it failed.
        """
        if self._tracker is not None:
            self._tracker.end(summary)
            self._tracker = None

    def resume(self) -> None:
        """Give the file the ``rows``, those of the checkpoint; say where it had others."""
        try:
            found = self.folder.read_metrics()[: len(self.rows)]
            texts = ([str(sorted(row.items())) for row in rows] for rows in (found, self.rows))
            pairs = enumerate(zip_longest(*texts), start=2)
            line = next((at for at, (one, own) in pairs if one != own), None)
            wrong = line and f"{self.folder.metrics}, line {line}: this is not what was logged."
        except RunFolderError as error:
            wrong = str(error)
        if wrong:
            warnings.warn(f"{wrong} The file is restored from the checkpoint.", stacklevel=2)
        self._rewrite()

    def _rewrite(self) -> None:
        if not self.rows:  # a header without columns would be no header
            self.folder.metrics.unlink(missing_ok=True)
            return
        self._columns = list(dict.fromkeys(key for row in self.rows for key in row))
        draft = io.StringIO(newline="")
        writer = csv.DictWriter(draft, self._columns)
        writer.writeheader()
        writer.writerows(self.rows)
        replace(self.folder.metrics, draft.getvalue())
        self._size = self.folder.metrics.stat().st_size
