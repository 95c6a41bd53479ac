"""The loop around an algorithm: progress, evaluation, checkpoints, summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hpo_torchrl.algorithms import Algorithm, NonFiniteError
from hpo_torchrl.core.checks import check_bool, check_int
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.training.checkpoint import Checkpoint
from hpo_torchrl.training.evaluation import CostEstimate, Evaluation
from hpo_torchrl.training.logging import RunLogger, write_json
from hpo_torchrl.training.selection import Selection
from hpo_torchrl.training.summary import summarise

_GAPS = {
    "gap": "gap to optimum",
    "gap_to_lower_bound": "above lower bound",
    "gap_to_upper_bound": "against upper bound",
}


class Trainer:
    """Train an algorithm for a number of updates and leave a folder that tells how it went.

    The folder holds ``metrics.csv``, ``checkpoints/`` and, at the end, ``summary.json``.
    Interrupted at any point, a run resumes from its newest checkpoint and ends with the very
    parameters it would have had.

    Args:
        algorithm: what to train.
        num_updates: number of updates in all.
        run_dir: folder of the run; it must exist.
        config: the resolved configuration that checkpoints are bound to.
        quick_test: evaluation during training, or ``None``.
        tests: evaluations at the end, by name.
        headline: the test whose cost is compared with the reference.
        reference: cost of the optimum, or bounds, on the headline test.
        quick_reference: the same on the quick test; that of the headline by default.
        env_name: name of the environment in the summary.
        algorithm_name: name of the algorithm in the summary.
        seed: seed in the summary.
        log_every: updates between rows of ``metrics.csv``.
        eval_every: updates between evaluations; the first update is evaluated too.
        checkpoint_every: updates between checkpoints.
        select: whose policy the run ends with: the ``"last"`` update's, or that of the ``"best"``
            evaluation; see :class:`Selection`.
        logger_backend: see :class:`RunLogger`.
        progress: whether to show a progress bar.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        *,
        num_updates: int,
        run_dir: str | Path,
        config: Mapping[str, Any],
        tests: Mapping[str, Evaluation],
        headline: str,
        quick_test: Evaluation | None = None,
        reference: Reference | None = None,
        quick_reference: Reference | None = None,
        env_name: str = "",
        algorithm_name: str = "",
        seed: int = 0,
        log_every: int = 5,
        eval_every: int = 10,
        checkpoint_every: int = 25,
        select: str = "last",
        logger_backend: str | None = None,
        progress: bool = True,
    ) -> None:
        if headline not in tests:
            raise ValueError(f"headline must be one of the tests {list(tests)}, got {headline!r}.")
        self.algorithm, self.run_dir = algorithm, Path(run_dir)
        check_int("num_updates", num_updates, minimum=1)
        self.num_updates = num_updates if algorithm.learns else 0
        self.quick_test, self.tests, self.headline = quick_test, dict(tests), headline
        self.reference = Reference() if reference is None else reference
        self.quick_reference = quick_reference or self.reference
        self.names = {"env": env_name, "algorithm": algorithm_name, "seed": seed}
        self.log_every = check_int("log_every", log_every, minimum=1)
        self.eval_every = check_int("eval_every", eval_every, minimum=1)
        self.checkpoint_every = check_int("checkpoint_every", checkpoint_every, minimum=1)
        self.progress = check_bool("progress", progress)
        self.selection = Selection(select)
        components = algorithm.components()
        if algorithm.learns and select == "best":
            if quick_test is None:
                raise ValueError("select='best' needs evaluations to choose by: give a quick_test.")
            components["selection"] = self.selection
        self.checkpoint = Checkpoint(self.run_dir, components, config=config)
        self.logger = RunLogger(self.run_dir, logger_backend)
        self.update, self.wall_seconds = 0, 0.0

    def restore(self, update: int | None = None) -> None:
        """Load the newest checkpoint, or that of an update, and change no file.

        Raises:
            CheckpointError: see :meth:`Checkpoint.load`.
        """
        self.update, counters = self.checkpoint.load(update)
        self.wall_seconds = counters["wall_seconds"]

    def resume(self, update: int | None = None) -> None:
        """Go on from a checkpoint: :meth:`restore`, and cut ``metrics.csv`` back to it."""
        self.restore(update)
        self.logger.resume(self.update)

    def begin(self) -> None:
        """Write the checkpoint that a run starts from, if it starts."""
        if self.update == 0:
            self.checkpoint.save(0, {"wall_seconds": 0.0})

    def train(self) -> dict[str, Any]:
        """Run all updates, evaluate, and return the summary that is also written.

        Raises:
            NonFiniteError: an update met NaN or infinity; the message names the update, the
                tensor and the last good checkpoint.
        """
        self.begin()
        with self.bar() as bar:
            while self.update < self.num_updates:
                self._one_update(bar)
        summary = self.summary()
        write_json(self.run_dir / "summary.json", summary)
        return summary

    def bar(self) -> tqdm:
        """Return the progress bar of the updates to come."""
        return tqdm(
            total=self.num_updates,
            initial=self.update,
            unit="update",
            disable=not self.progress,
            dynamic_ncols=True,
            # In a log file, where lines cannot be overwritten, few of them.
            mininterval=0.1 if sys.stderr.isatty() else 15.0,
        )

    def _one_update(self, bar: tqdm) -> None:
        start = time.perf_counter()
        self.algorithm.anneal(self.update / self.num_updates)
        try:
            metrics = self.algorithm.iterate()
        except NonFiniteError as error:
            raise self.stopped(error) from error
        cost = None
        if self.quick_test is not None and self.test_is_due:
            cost = self.quick_test.run(self.algorithm.policy)
        self._show(bar, self.record(metrics, cost, time.perf_counter() - start))

    @property
    def test_is_due(self) -> bool:
        """Whether the coming update is evaluated."""
        update = self.update + 1
        return update in (1, self.num_updates) or update % self.eval_every == 0

    def stopped(self, error: NonFiniteError) -> NonFiniteError:
        """Return an error of the coming update with what there is to know of it."""
        return NonFiniteError(
            f"Update {self.update + 1}: {error} Training stopped; the last good checkpoint is "
            f"{self.checkpoint.newest()}. Common causes: a learning rate or reward that is too "
            "large, or dynamics that overflow."
        )

    def record(
        self, metrics: Mapping[str, float], cost: CostEstimate | None, seconds: float
    ) -> dict[str, Any]:
        """Count an update that was made; log it and write a checkpoint where that is due.

        Args:
            metrics: what the algorithm says of it.
            cost: cost of the policy now, if it was evaluated.
            seconds: how long it took.

        Returns:
            The row of ``metrics.csv``.
        """
        self.update += 1
        last = self.update == self.num_updates
        row: dict[str, Any] = {"update": self.update}
        row |= {"env_steps": self.algorithm.collector.frames, **metrics}
        if cost is not None:
            self.selection.offer(self.algorithm.policy, self.update, cost.mean)
            row |= {"test_cost": cost.mean, "test_cost_se": cost.standard_error}
            gaps = self.quick_reference.gaps(cost.mean)
            row |= {name: gap for name, gap in gaps.items() if gap is not None}
        self.wall_seconds += seconds
        row["wall_seconds"] = self.wall_seconds
        if "test_cost" in row or self.update % self.log_every == 0 or last:
            self.logger.log(row)
        if self.update % self.checkpoint_every == 0 or last:
            self.checkpoint.save(self.update, {"wall_seconds": self.wall_seconds})
        return row

    def _show(self, bar: tqdm, row: dict[str, Any]) -> None:
        if "compile_seconds" in row:
            bar.write(f"{'compiled in':<17}{row['compile_seconds']:.1f} s", file=sys.stderr)
        bar.update()
        shown = {"cost": f"{row['cost']:.2f}"}
        tested = next((r for r in reversed(self.logger.rows) if "test_cost" in r), None)
        if tested is not None:
            cost, error = tested["test_cost"], tested["test_cost_se"]
            shown["test"] = f"{cost:.3f}"
            for name, label in _GAPS.items():
                if name in tested:
                    shown[label] = f"{tested[name]:+.2%}"
                    if not self.quick_reference.paired:
                        # Without its error a gap below zero looks like a triumph.
                        shown[label] += f" +-{error * (1.0 + tested[name]) / cost:.2%}"
        bar.set_postfix(shown, refresh=False)

    def summary(self, costs: Mapping[str, CostEstimate] | None = None) -> dict[str, Any]:
        """Evaluate the policy that the run ends with; see :func:`summarise`.

        Args:
            costs: what it costs in each test, if that is known.
        """
        self.selection.apply(self.algorithm.policy)
        if costs is None:
            tests = self.tests.items()
            costs = {name: test.run(self.algorithm.policy) for name, test in tests}
        counters = {
            **self.names,
            "env_steps": self.algorithm.collector.frames,
            "updates": self.update,
            "wall_seconds": self.wall_seconds,
        }
        if self.selection.update > 0:
            counters["selected_update"] = self.selection.update
        return summarise(costs, self.headline, self.reference, counters)
