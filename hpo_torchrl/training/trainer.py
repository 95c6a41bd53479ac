"""The loop around an algorithm: evaluation, checkpoints, logs, summary, for one seed or several."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_torchrl.algorithms import Algorithm, NonFiniteError
from hpo_torchrl.core.checks import check_bool, check_int
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.training.callbacks import Callback, ProgressBar, StopTraining
from hpo_torchrl.training.checkpoint import Checkpoint, CheckpointError
from hpo_torchrl.training.evaluation import Evaluation
from hpo_torchrl.training.logging import RunLogger
from hpo_torchrl.training.run_folder import RunFolder
from hpo_torchrl.training.selection import Selection
from hpo_torchrl.training.summary import summarise


class SeedRun:
    """What belongs to one seed of a run: policy, folder, checkpoints, log, and the best policy.

    Args:
        algorithm: the algorithm.
        folder: folder of the run.
        config: the configuration that checkpoints are bound to.
        index: which of the algorithm's seeds it is; ``None`` for an algorithm of one seed.
        select: see :class:`Selection`.
        logger_backend: see :class:`RunLogger`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        index: int | None = None,
        select: str = "last",
        logger_backend: str | None = None,
    ) -> None:
        self.folder, self.index = RunFolder(folder), index
        self.policy = algorithm.policy if index is None else algorithm.policy.members[index]
        self.selection = Selection(select)
        components = algorithm.components(index)
        if algorithm.learns and select == "best":
            components = {**components, "selection": self.selection}
        self.checkpoint = Checkpoint(folder, components, config=config)
        self.logger = RunLogger(folder, logger_backend)

    def select(self) -> None:
        """Give the policy the weights that the run ends with."""
        self.selection.apply(self.policy)


class Trainer:
    """Train an algorithm for a number of updates and leave a folder that tells how it went.

    The folder holds ``metrics.csv``, ``checkpoints/`` and, written last, ``summary.json``.
    Interrupted at any point, a run resumes from its newest checkpoint and ends with the very
    parameters it would have had. An algorithm of several seeds (``algorithm.num_seeds``) leaves a
    folder for each, from which that seed can go on alone; ``wall_seconds`` is then a seed's part of
    the time, the time of all divided by their number.

    Args:
        algorithm: what to train.
        num_updates: number of updates in all.
        run_dir: folder of the run, which must exist; a list with one for each seed if there are
            several.
        config: the resolved configuration that checkpoints are bound to; a list likewise.
        validation: evaluation during training, or ``None``.
        tests: evaluations at the end, by name.
        primary: the test whose cost is compared with the reference.
        reference: cost of the optimum, or bounds, on the primary test.
        validation_reference: the same on the validation; that of the primary test by default.
        env_name: name of the environment in the summary.
        algorithm_name: name of the algorithm in the summary.
        log_every: updates between rows of ``metrics.csv``.
        eval_every: updates between evaluations; the first update is evaluated too.
        checkpoint_every: updates between checkpoints.
        select: whose policy the run ends with: the ``"last"`` update's, or that of the ``"best"``
            evaluation; see :class:`Selection`.
        logger_backend: see :class:`RunLogger`.
        progress: whether to show a progress bar.
        callbacks: what else happens; see :class:`Callback`.

    Attributes:
        runs: what belongs to each seed.
        update: number of updates done.
        stopped: why a callback ended training, or ``None``.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        *,
        num_updates: int,
        run_dir: str | Path | Sequence[str | Path],
        config: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        tests: Mapping[str, Evaluation],
        primary: str,
        validation: Evaluation | None = None,
        reference: Reference | None = None,
        validation_reference: Reference | None = None,
        env_name: str = "",
        algorithm_name: str = "",
        log_every: int = 5,
        eval_every: int = 10,
        checkpoint_every: int = 25,
        select: str = "last",
        logger_backend: str | None = None,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if primary not in tests:
            raise ValueError(f"primary must be one of the tests {list(tests)}, got {primary!r}.")
        check_int("num_updates", num_updates, minimum=1)
        self.algorithm, self.tests, self.primary = algorithm, dict(tests), primary
        self.num_updates = num_updates if algorithm.learns else 0
        self.validation = validation
        self.reference = Reference() if reference is None else reference
        self.validation_reference = validation_reference or self.reference
        self.names = {"env": env_name, "algorithm": algorithm_name}
        self.log_every = check_int("log_every", log_every, minimum=1)
        self.eval_every = check_int("eval_every", eval_every, minimum=1)
        self.checkpoint_every = check_int("checkpoint_every", checkpoint_every, minimum=1)
        self.progress = check_bool("progress", progress)
        self.callbacks = [*([ProgressBar()] if progress else []), *callbacks]
        if algorithm.learns and select == "best" and validation is None:
            raise ValueError("select='best' needs evaluations to choose by: give a validation.")
        number = algorithm.num_seeds
        folders: Any = [run_dir] if number is None else run_dir
        configs: Any = [config] if number is None else config
        self.runs = [
            SeedRun(
                algorithm,
                folder,
                own,
                index=None if number is None else at,
                select=select,
                logger_backend=logger_backend,
            )
            for at, (folder, own) in enumerate(zip(folders, configs, strict=True))
        ]
        self.update, self.wall_seconds = 0, 0.0
        self.stopped: str | None = None

    def restore(self, update: int | None = None) -> None:
        """Load the newest checkpoint that all seeds have, or that of an update; change no file.

        Raises:
            CheckpointError: see :meth:`Checkpoint.load`.
        """
        newest = [run.checkpoint.newest_update() for run in self.runs]
        update = min(newest) if update is None else update
        for run in self.runs:
            try:
                self.update, counters = run.checkpoint.load(update)
            except CheckpointError as error:
                if len(set(newest)) == 1:
                    raise
                raise CheckpointError(
                    f"{error} The seeds have come to different updates, {update} to {max(newest)}; "
                    f"go on with each alone, as by resume={run.folder.path}."
                ) from error
            self.wall_seconds = counters["wall_seconds"]

    def resume(self, update: int | None = None) -> None:
        """Go on from a checkpoint: :meth:`restore`, and cut every folder back to it.

        No file changes before all seeds have loaded theirs.
        """
        self.restore(update)
        for run in self.runs:
            while run.checkpoint.newest_update() > self.update:
                run.checkpoint.newest().unlink()
            run.logger.resume(self.update)

    def train(self) -> Any:
        """Run all updates, test, and write the summary last.

        Returns:
            The summary; a list with one for each seed if the algorithm has several.

        Raises:
            NonFiniteError: an update met NaN or infinity; the message names the update, the
                tensor and the last good checkpoint.
        """
        try:
            if self.update == 0:
                self._save()
            self._call("on_train_start")
            while self.update < self.num_updates and self.stopped is None:
                self._one_update()
            summaries = self._each(self.summary(pictures=True))
            self._call("on_train_end", self._shown(summaries))
        except BaseException as error:
            for callback in self.callbacks:
                callback.on_exception(self, error)
            raise
        for run, summary in zip(self.runs, summaries, strict=True):
            run.folder.write_summary(summary)
        return self._shown(summaries)

    def summary(self, *, pictures: bool = False) -> Any:
        """Test the policy that the run ends with; see :func:`summarise`.

        Args:
            pictures: whether the environment may draw the policy into the folder.

        Returns:
            The summary; a list with one for each seed if the algorithm has several.
        """
        for run in self.runs:
            run.select()
        policy = self.algorithm.policy
        costs = {name: self._each(test.run(policy)) for name, test in self.tests.items()}
        counters: dict[str, Any] = {"env_steps": self._frames, "updates": self.update}
        counters["wall_seconds"] = self.wall_seconds
        if self.stopped is not None:
            counters["stopped"] = self.stopped
        return self._shown(
            [
                summarise(
                    {name: estimates[at] for name, estimates in costs.items()},
                    self.primary,
                    self.reference,
                    {**self.names, "seed": run.checkpoint.config["seed"]}
                    | counters
                    | run.selection.counters,
                    reports=getattr(self.tests[self.primary].env, "reports", "cost"),
                )
                | self._described(run, run.folder.path if pictures else None)
                for at, run in enumerate(self.runs)
            ]
        )

    def _one_update(self) -> None:
        start = time.perf_counter()
        self.algorithm.anneal(self.update / self.num_updates)
        try:
            metrics = self._each(self.algorithm.iterate())
        except NonFiniteError as error:
            raise self._explained(error) from error
        self.update += 1
        costs = None
        if self.validation is not None and self._due(self.eval_every, first=True):
            costs = self._each(self.validation.run(self.algorithm.policy))
        self.wall_seconds += (time.perf_counter() - start) / len(self.runs)
        rows: list[dict[str, Any]] = []
        for at, run in enumerate(self.runs):
            row = {"update": self.update, "env_steps": self._frames, **metrics[at]}
            if costs is not None:
                cost = costs[at]
                run.selection.offer(run.policy, self.update, cost.mean)
                row |= {"test_cost": cost.mean, "test_cost_se": cost.standard_error}
                gaps = self.validation_reference.gaps(cost.mean)
                row |= {name: gap for name, gap in gaps.items() if gap is not None}
            rows.append(row | {"wall_seconds": self.wall_seconds})
        if costs is not None:
            self._call("on_evaluation", self._shown(costs))
        self._call("on_update_end", self._shown(rows))
        if costs is not None or self._due(self.log_every):
            for run, row in zip(self.runs, rows, strict=True):
                run.logger.log(row)
        if self._due(self.checkpoint_every):
            self._save()

    def _due(self, every: int, *, first: bool = False) -> bool:
        """Whether it is time, after this update, for what is done so often and at the end."""
        last = self.update == self.num_updates or self.stopped is not None
        return self.update % every == 0 or last or (first and self.update == 1)

    def _save(self) -> None:
        counters = {"wall_seconds": self.wall_seconds}
        paths = [run.checkpoint.save(self.update, counters) for run in self.runs]
        self._call("on_checkpoint", self._shown(paths))

    def _explained(self, error: NonFiniteError) -> NonFiniteError:
        run = self.runs[error.seed_index or 0]
        return NonFiniteError(
            f"Update {self.update + 1}: {error} Training stopped; the last good checkpoint is "
            f"{run.checkpoint.newest()}. Common causes: a learning rate or reward that is too "
            "large, or dynamics that overflow."
        )

    def _described(self, run: SeedRun, folder: Path | None) -> dict[str, Any]:
        test = self.tests[self.primary]
        if not self.algorithm.learns or not hasattr(test.env, "describe"):
            return {}  # a rule says what it does
        test.env.set_seed(test.seed)
        return test.env.describe(run.policy, self.tests, self.reference, folder)

    @property
    def _frames(self) -> int:
        """Environment steps of one seed."""
        return self.algorithm.collector.frames // len(self.runs)

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            try:
                getattr(callback, hook)(self, *arguments)
            except StopTraining as stop:
                self.stopped = str(stop) or "by a callback"

    def _each(self, answer: Any) -> list[Any]:
        """Return an answer of the algorithm or of a test as one for each seed."""
        return [answer] if self.runs[0].index is None else answer

    def _shown(self, answers: list[Any]) -> Any:
        """Return what is known of each seed as a caller sees it: the only one's by itself."""
        return answers[0] if self.runs[0].index is None else answers
