"""Hooks into a training run, and the progress bar, which is one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hpo_torchrl.training.evaluation import CostEstimate

if TYPE_CHECKING:
    from hpo_torchrl.training.trainer import Trainer

_GAPS = {
    "gap": "gap to optimum",
    "gap_to_lower_bound": "above lower bound",
    "gap_to_upper_bound": "against upper bound",
}


class StopTraining(Exception):  # noqa: N818
    """Raised by a callback to end training after the present update.

    That update is logged and saved, the policy is tested, and ``summary.json`` gets the message as
    ``"stopped"``.
    """


class Callback:
    """What happens around a training run; override what you need.

    A hook that gets one value per run (a row, a cost, a path, a summary) gets a list of them, one
    per seed, where the algorithm trains several seeds (``algorithm.num_seeds``).

    Any hook but :meth:`on_exception` may raise :class:`StopTraining`.

    Examples:
        >>> from hpo_torchrl.training import Callback, StopTraining
        >>> class GoodEnough(Callback):
        ...     def on_update_end(self, trainer, row):
        ...         if row.get("test_cost", 99.0) < 40.0:
        ...             raise StopTraining("the test cost is below 40")
    """

    def on_train_start(self, trainer: Trainer) -> None:
        """Run before the first update, or the first one after a resume."""

    def on_evaluation(self, trainer: Trainer, cost: CostEstimate | list[CostEstimate]) -> None:
        """Run after the policy was tested during training."""

    def on_update_end(self, trainer: Trainer, row: Any) -> None:
        """Run after an update, before it is logged; what is added to the row is logged too.

        Args:
            trainer: the trainer.
            row: the update's entries of ``metrics.csv``.
        """

    def on_checkpoint(self, trainer: Trainer, path: Path | list[Path]) -> None:
        """Run after a checkpoint was written."""

    def on_train_end(self, trainer: Trainer, summary: Any) -> None:
        """Run after the final tests, before ``summary.json`` is written; entries may be added."""

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Run when training fails or is interrupted."""


class ProgressBar(Callback):
    """A bar with the training cost, the test cost and the known gaps; means over several seeds."""

    def on_train_start(self, trainer: Trainer) -> None:
        """Show the bar of the updates to come."""
        self._shown: dict[str, str] = {}
        self._bar = tqdm(
            total=trainer.num_updates,
            initial=trainer.update,
            unit="update",
            dynamic_ncols=True,
            # In a log file, where lines cannot be overwritten, few of them.
            mininterval=0.1 if sys.stderr.isatty() else 15.0,
        )
        logged = [run.logger.rows for run in trainer.runs]
        tested = [[row for row in rows if "test_cost" in row] for rows in logged]
        if all(tested):
            self._show_test([rows[-1] for rows in tested], trainer.validation_reference.paired)

    def on_update_end(self, trainer: Trainer, row: Any) -> None:
        """Move the bar on."""
        rows = row if isinstance(row, list) else [row]
        if "compile_seconds" in rows[0]:
            text = f"{'compiled in':<17}{rows[0]['compile_seconds']:.1f} s"
            self._bar.write(text, file=sys.stderr)
        self._shown["cost"] = f"{_mean(rows, 'cost'):.2f}"
        if "test_cost" in rows[0]:
            self._show_test(rows, trainer.validation_reference.paired)
        self._bar.update()
        self._bar.set_postfix(self._shown, refresh=False)

    def on_train_end(self, trainer: Trainer, summary: Any) -> None:
        """Close the bar."""
        self._bar.close()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Close the bar."""
        if hasattr(self, "_bar"):
            self._bar.close()

    def _show_test(self, rows: Sequence[Mapping[str, Any]], paired: bool) -> None:
        cost, error = _mean(rows, "test_cost"), _mean(rows, "test_cost_se")
        self._shown["test"] = f"{cost:.3f}"
        for name, label in _GAPS.items():
            if name in rows[0]:
                gap = _mean(rows, name)
                self._shown[label] = f"{gap:+.2%}"
                if len(rows) == 1 and not paired:
                    # Without its error a gap below zero looks like a triumph.
                    self._shown[label] += f" +-{error * (1.0 + gap) / cost:.2%}"


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return fmean(row[key] for row in rows)
