"""Where the numbers of a run go: always a CSV file, and any of TorchRL's loggers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl.record.loggers import Logger, get_logger

from hpo_torchrl.core.checks import check_choice
from hpo_torchrl.training.run_folder import RunFolder, replace_text

BACKENDS = ("tensorboard", "wandb", "mlflow", "trackio")


class RunLogger:
    """Write one row per logged update to ``metrics.csv`` and pass it to a TorchRL logger.

    Columns appear as they are first logged. After a resume the rows that come after the
    checkpoint are dropped, so that the file reads like that of an uninterrupted run.

    Args:
        run_dir: folder of the run.
        backend: ``None`` for the CSV file alone, or one of ``"tensorboard"``, ``"wandb"``,
            ``"mlflow"``, ``"trackio"`` besides (their package must be installed).
    """

    def __init__(self, run_dir: str | Path, backend: str | None = None) -> None:
        self.folder = RunFolder(run_dir)
        self.rows: list[dict[str, Any]] = []
        self._columns: list[str] = []
        self._backend: Logger | None = None
        if backend is not None:
            check_choice("logger.backend", backend, BACKENDS)
            try:
                self._backend = get_logger(backend, str(Path(run_dir)), "logger")
            except ImportError as error:
                raise ValueError(
                    f"logger.backend={backend!r} needs its package ({error}); install it with "
                    f"pip install {backend}, or use logger=csv."
                ) from error

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row; it must hold ``"update"``."""
        self.rows.append(dict(row))
        new = [key for key in row if key not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
        else:
            with self.folder.metrics.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(dict(row))
        if self._backend is not None:
            for key, value in row.items():
                if isinstance(value, (int, float)) and key != "update":
                    self._backend.log_scalar(key, value, step=row["update"])

    def resume(self, update: int) -> None:
        """Read the file back and keep the rows up to ``update``."""
        rows = self.folder.read_metrics()
        self.rows = [row for row in rows if row["update"] <= update]
        self._columns = list(dict.fromkeys(key for row in self.rows for key in row))
        if rows:
            self._rewrite()

    def _rewrite(self) -> None:
        draft = io.StringIO(newline="")
        writer = csv.DictWriter(draft, self._columns)
        writer.writeheader()
        writer.writerows(self.rows)
        replace_text(self.folder.metrics, draft.getvalue())
