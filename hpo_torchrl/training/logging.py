"""Where the numbers of a run go: always a CSV file, and any of TorchRL's loggers."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl.record.loggers import Logger, get_logger

from hpo_torchrl.core.checks import check_choice

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
        self.path = Path(run_dir) / "metrics.csv"
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
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(dict(row))
        if self._backend is not None:
            for key, value in row.items():
                if isinstance(value, (int, float)) and key != "update":
                    self._backend.log_scalar(key, value, step=row["update"])

    def resume(self, update: int) -> None:
        """Read the file back and keep the rows up to ``update``."""
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            # A killed run may have left a half-written last row, which comes after any checkpoint.
            self.rows = [
                {key: _number(text) for key, text in row.items() if text}
                for row in rows
                if (row.get("update") or "").isdigit() and int(row["update"]) <= update
            ]
            self._columns = list(dict.fromkeys(key for row in self.rows for key in row))
            self._rewrite()

    def _rewrite(self) -> None:
        draft = self.path.with_suffix(".csv.tmp")
        with draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(draft, self.path)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step; numbers that are not finite become null."""
    path = Path(path)
    draft = path.with_suffix(path.suffix + ".tmp")
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in content.items()
    }
    draft.write_text(json.dumps(clean, indent=2) + "\n")
    os.replace(draft, path)


def _number(text: str) -> float | int:
    return int(text) if text.lstrip("-").isdigit() else float(text)
