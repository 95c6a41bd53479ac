"""The loop around an algorithm: evaluation, checkpoints, logs, summary, for one seed or several."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hpo_torchrl.algorithms import Algorithm, NonFiniteError
from hpo_torchrl.core import ranks
from hpo_torchrl.core.checks import accepted, check_bool, check_int
from hpo_torchrl.core.console import announced
from hpo_torchrl.core.figures import drawn
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.training.callbacks import ActionWarnings, Callback, ProgressBar, StopTraining
from hpo_torchrl.training.checkpoint import read_together
from hpo_torchrl.training.evaluation import CostEstimate, Evaluation
from hpo_torchrl.training.policy_folder import PolicyFolder
from hpo_torchrl.training.seed_run import SeedRun
from hpo_torchrl.training.starts import choose_start, scout


@dataclass(eq=False, repr=False, kw_only=True)
class Trainer:
    """Train an algorithm for a number of updates and leave a folder that tells how it went.

    The folder holds ``metrics.csv``, ``checkpoints/`` and, written last, ``summary.json``.
    Interrupted at any point, a run resumes from its newest checkpoint and ends with the very
    parameters it would have had. An algorithm of several seeds (``algorithm.num_seeds``) leaves a
    folder for each, from which that seed can go on alone; ``wall_seconds`` is then a seed's part of
    the time, the time of all divided by their number.

    Where ranks share the training, rank 0 tests, calls the callbacks and writes, and the others
    wait for it. A callback must then neither collect nor update, and changes nothing but rows and
    summaries.

    Args:
        algorithm: what to train.
        num_updates: number of updates in all.
        run_dir: folder of the run, which must exist; a list with one for each seed if there are
            several.
        config: the resolved configuration that checkpoints are bound to; a list likewise.
        validation: evaluation during training, or ``None``.
        tests: evaluations at the end, by name.
        primary: the test whose cost is compared with the reference.
        reference: cost of the optimum, or bounds, on the primary test. Costs of another objective
            than that of the test and of the algorithm are left out, see :meth:`Reference.compared`.
        validation_reference: the same on the validation; that of the primary test by default.
        env_name: name of the environment in the summary.
        algorithm_name: name of the algorithm in the summary.
        log_every: updates between rows of ``metrics.csv``.
        eval_every: updates between evaluations; the first update is evaluated too.
        checkpoint_every: updates between checkpoints.
        select: whose policy the run ends with: the ``"last"`` update's, or that of the ``"best"``
            evaluation; see :class:`Selection`.
        logger: where rows go besides ``metrics.csv``: ``backend``, ``name``, ``group`` and
            ``options`` of :class:`RunLogger`.
        progress: whether to show a progress bar.
        callbacks: what else happens; see :class:`Callback`.

    Attributes:
        runs: what belongs to each seed.
        update: number of updates done.
        wall_seconds: what they took of a seed's time.
        stopped: why a callback ended training, or ``None``.

    Raises:
        ValueError: an argument is out of range.
    """

    algorithm: Algorithm = field(kw_only=False)
    num_updates: int
    run_dir: str | Path | Sequence[str | Path]
    config: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    tests: Mapping[str, Evaluation]
    primary: str
    validation: Evaluation | None = None
    reference: Reference = field(default_factory=Reference)
    validation_reference: Any = None
    env_name: str = ""
    algorithm_name: str = ""
    log_every: int = 5
    eval_every: int = 20
    checkpoint_every: int = 25
    select: str = "last"
    logger: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        if self.primary not in self.tests:
            raise ValueError(
                f"primary must be one of the tests {list(self.tests)}, got {self.primary!r}."
            )
        for name in ("num_updates", "log_every", "eval_every", "checkpoint_every"):
            check_int(name, getattr(self, name), minimum=1)
        check_bool("progress", self.progress)
        if not self.algorithm.learns:
            self.num_updates = 0
        elif self.select == "best" and self.validation is None:
            raise ValueError("select='best' needs evaluations to choose by: give a validation.")
        # Costs of another objective than a test's or the run's are left out here, once for all.
        known, against = self.reference, self.validation_reference or self.reference
        self.reference = known.compared(self.tests[self.primary], self.algorithm)
        self.validation_reference = against.compared(self.validation, self.algorithm)
        self.progress &= ranks.main()
        bar = [ProgressBar()] if self.progress else []
        self.callbacks = [*bar, ActionWarnings(), *self.callbacks]
        pairs = zip(self.each(self.run_dir), self.each(self.config), strict=True)
        many = self.algorithm.num_seeds is not None
        shared: Any = {"select": self.select, "logger": self.logger}
        self.runs = [
            SeedRun(self.algorithm, folder, config, index=at if many else None, **shared)
            for at, (folder, config) in enumerate(pairs)
        ]
        self.update, self.wall_seconds = 0, 0.0
        self.stopped: str | None = None

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint of every seed, or of a later update than 0 of any."""
        updates = ranks.from_main(lambda: [run.checkpoint.updates() for run in self.runs])
        return all(updates) or any(max(own, default=0) > 0 for own in updates)

    def restore(self) -> None:
        """Load the newest checkpoint that all seeds have; change no file.

        Raises:
            CheckpointError: see :meth:`Checkpoint.load`.
        """
        saved = ranks.from_main(partial(read_together, [run.checkpoint for run in self.runs]))
        for run, own in zip(self.runs, saved, strict=True):
            run.checkpoint.restore(own)
            self.update, self.wall_seconds = own.update, own.counters["wall_seconds"]
            run.logger.rows = own.counters["rows"]

    def resume(self) -> None:
        """Go on from a checkpoint: :meth:`restore`, and cut every folder back to it.

        No file changes before all seeds have loaded theirs.
        """
        self.restore()
        for run in self.runs if ranks.main() else ():
            run.checkpoint.forget(self.update)
            run.logger.resume()

    def train(self) -> Any:
        """Run all updates, test, and write the summary last.

        Returns:
            The summary; a list with one for each seed if the algorithm has several.

        Raises:
            NonFiniteError: an update or a test met NaN or infinity; the message names it, the
                tensor that was spoilt first, the last good checkpoint and the way on.
        """
        try:
            if self.update == 0:
                self._offer_untrained()
                self._save()
            self._call("on_train_start")
            if self.update == 0:
                scout(self)
                self._imitate()
                if choose_start(self):
                    self._save()
            while self.update < self.num_updates and self.stopped is None:
                self._one_update()
            summaries = self.each(self.summary(pictures=True))
            self.algorithm.gather_last_batch()
            self._call("on_train_end", self._shown(summaries))
        except BaseException as error:
            for callback in self.callbacks if ranks.main() else ():
                callback.on_exception(self, error)
            for run in self.runs:
                with suppress(Exception):  # the error that came first is the one to show
                    run.logger.end(None)
            raise
        finally:
            self.algorithm.release()
        for run, summary in zip(self.runs, summaries, strict=True):
            self._keep_policy(run)
            run.folder.write_summary(summary)
            run.logger.end(summary)
        return self._shown(summaries)

    def _keep_policy(self, run: SeedRun) -> None:
        """Write the policy that the run ends with to a folder of its own; a rule has no weights."""
        if self.algorithm.learns and ranks.main():
            update = self.update if run.selection.update < 0 else run.selection.update
            folder, env = PolicyFolder(run.folder.kept_policy), self.tests[self.primary].env
            folder.write(run.policy, env, run.checkpoint.config, update)

    def summary(self, *, pictures: bool = False) -> Any:
        """Test the policy that the run ends with.

        Args:
            pictures: whether the environment may draw the policy into the folder.

        Returns:
            The figures of the run, under the names that every run uses: the ``objective`` that was
            trained and its ``discount``, ``test_objective`` and ``test_discount`` of the primary
            test, its ``test_cost`` and ``test_cost_se`` (of a period or of an episode,
            ``test_cost_per``), ``test_return`` and ``test_length`` of an
            episode where episodes end, ``sampled_cost`` and ``sampled_cost_se``
            of the same test with actions that are drawn (the policy that is kept takes the most
            probable ones), ``validation_cost`` and ``validation_cost_se`` of the evaluation during
            training, by which settings are to be chosen, ``optimal_cost``, ``lower_bound``,
            ``upper_bound``, ``gap``,
            ``gap_to_lower_bound`` and ``gap_to_upper_bound`` (``None`` where unknown), ``no_gap``
            (why a known optimum is not compared), ``baseline_costs`` of
            simple rules, ``loses_to`` (which of them costs less, in words), names, steps and
            seconds, for each test ``<name>_cost`` and ``<name>_cost_se``, and what the environment
            says of a learned policy. A list with one for each seed if the algorithm has several.
        """
        for run in self.runs:
            run.select()
        with announced("testing the policy", shown=self.progress):
            costs = {name: self.test(name, test) for name, test in self.tests.items()}
            test = self.tests[self.primary]
            if hasattr(self.algorithm.policy, "randomness") and "sampled" in accepted(test.run):
                costs["sampled"] = self.test(self.primary, test, sampled=True)
            if self.validation is not None and "validation" not in costs:
                same = [name for name, test in self.tests.items() if test is self.validation]
                again = costs[same[0]] if same else self.test("validation", self.validation)
                costs["validation"] = again

        def summaries() -> list[dict[str, Any]]:
            return [
                self._summary(run, {name: found[at] for name, found in costs.items()}, pictures)
                for at, run in enumerate(self.runs)
            ]

        return self._shown(ranks.from_main(summaries))

    def _summary(
        self, run: SeedRun, costs: Mapping[str, CostEstimate], pictures: bool
    ) -> dict[str, Any]:
        test, cost, reference = self.tests[self.primary], costs[self.primary], self.reference
        # A rule is not trained: it is judged by what is tested.
        trained: Any = self.algorithm if getattr(self.algorithm, "objective", None) else test
        summary: dict[str, Any] = {
            "env": self.env_name,
            "algorithm": self.algorithm_name,
            "seed": run.checkpoint.config["seed"],
            "objective": getattr(trained, "objective", None),
            "discount": getattr(trained, "discount", 1.0),
            "test_objective": getattr(test, "objective", None),
            "test_discount": getattr(test, "discount", 1.0),
            "test_cost": cost.mean,
            "test_cost_se": cost.standard_error,
            "test_cost_per": getattr(test, "per", "period"),
            **cost.episode(),
            "optimal_cost": reference.optimal_cost,
            "lower_bound": reference.lower_bound,
            "upper_bound": reference.upper_bound,
            **reference.gaps(cost.mean, test, self.algorithm),
            "no_gap": reference.no_gap,
            "baseline_costs": dict(reference.baselines),
            "loses_to": reference.loses_to(cost.mean),
            "env_steps": self._frames,
            "updates": self.update,
            "wall_seconds": self.wall_seconds,
        }
        if self.stopped is not None:
            summary["stopped"] = self.stopped
        if run.selection.update >= 0:
            summary["selected_update"] = run.selection.update
        if getattr(test.env, "reports", "cost") == "reward":
            summary["test_reward"] = -cost.mean
        for name, found in costs.items():
            summary |= {f"{name}_cost": found.mean, f"{name}_cost_se": found.standard_error}
        if self.algorithm.learns and hasattr(test.env, "describe"):  # a rule says what it does

            def described(folder: Path | None = None) -> dict[str, Any]:
                test.env.set_seed(test.seed)
                return test.env.describe(run.policy, self.tests, reference, folder)

            with_picture = partial(described, run.folder.path)
            facts = drawn(run.folder.policy, with_picture) if pictures else None
            summary |= described() if facts is None else facts
        return summary

    def advance(self) -> tuple[list[dict[str, Any]], bool]:
        """Do one update, and test the policy where that is due.

        Returns:
            The row of each seed, and whether it is time to log them.
        """
        start = time.perf_counter()
        self.algorithm.anneal(self.update / self.num_updates)
        with self._advising(f"Update {self.update + 1}: "):
            metrics = self.each(self.algorithm.iterate())
        self.update += 1
        costs: list[CostEstimate] = []
        if self.validation is not None and (self.update == 1 or self._due(self.eval_every)):
            with announced("testing the policy", shown=self.progress):
                costs = self.test("validation", self.validation)
        self.wall_seconds += (time.perf_counter() - start) / len(self.runs)
        rows = [{"update": self.update, "env_steps": self._frames, **own} for own in metrics]
        if costs:
            for run, row, cost in zip(self.runs, rows, costs, strict=True):
                run.selection.offer(run.policy, self.update, cost.mean)
                row |= {"test_cost": cost.mean, "test_cost_se": cost.standard_error}
                row |= cost.episode()
                known = self.validation_reference
                gaps = known.gaps(cost.mean, self.validation, self.algorithm)
                row |= {name: gap for name, gap in gaps.items() if gap is not None}
            self._call("on_evaluation", self._shown(costs))
        for row in rows:
            row["wall_seconds"] = self.wall_seconds
        self._call("on_update_end", self._shown(rows))
        return rows, bool(costs) or self._due(self.log_every)

    def _imitate(self) -> None:
        """Let the policy begin as a rule, if that is asked for; it may be chosen as it is then.

        Nothing is saved: a run that is interrupted before its first update imitates again.
        """
        start = time.perf_counter()
        if self.stopped is None:
            with announced("imitating the rule", shown=self.progress):
                done = self.algorithm.imitate_rule()
            self.wall_seconds += (time.perf_counter() - start) / len(self.runs)
            if done:
                self._offer_untrained()

    def _offer_untrained(self) -> None:
        """Let the policy before the first update be chosen too: it may begin as a good rule."""
        if self.algorithm.learns and self.select == "best" and self.validation is not None:
            with announced("testing the policy", shown=self.progress):
                costs = self.test("validation", self.validation)
            for run, cost in zip(self.runs, costs, strict=True):
                run.selection.offer(run.policy, 0, cost.mean)

    def _one_update(self) -> None:
        rows, due = self.advance()
        if due:
            for run, row in zip(self.runs, rows, strict=True):
                run.logger.log(row)
        if self._due(self.checkpoint_every):
            self._save()

    def _due(self, every: int) -> bool:
        """Whether it is time, after this update, for what is done so often and at the end."""
        last = self.update == self.num_updates or self.stopped is not None
        return last or self.update % every == 0

    def _save(self) -> None:
        seconds = {"wall_seconds": self.wall_seconds}
        self._check_ranks()
        with self._advising():
            paths = [
                run.checkpoint.save(self.update, seconds | {"rows": run.logger.rows})
                for run in self.runs
            ]
        self._call("on_checkpoint", self._shown(paths))

    def _check_ranks(self) -> None:
        """Raise an error if the ranks have come to different weights: by a callback, say."""
        if ranks.active() and self.algorithm.learns:
            weights = [weight.detach().double() for weight in self.algorithm.policy.parameters()]
            sizes = [float(weight.square().sum()) for weight in weights]
            ranks.check_same("the policy's weights", sizes)

    def test(self, name: str, test: Evaluation, **how: Any) -> list[CostEstimate]:
        """Return what the policy of each seed costs on a test."""
        with self._advising(f"The test {name!r} after update {self.update}: "):
            costs = self.each(ranks.from_main(partial(test.run, self.algorithm.policy, **how)))
            for at, cost in enumerate(costs):
                if not math.isfinite(cost.mean):  # of a test of the user's own
                    raise NonFiniteError(f"its cost is {cost.mean}.", at)
        return costs

    @contextmanager
    def _advising(self, what: str = "") -> Iterator[None]:
        """Say where something became NaN or infinite, and how to go on."""
        try:
            yield
        except NonFiniteError as error:
            run = self.runs[error.seed_index or 0]
            if error.seed_index is not None and not str(error).startswith("Seed "):
                what += f"Seed {run.checkpoint.config['seed']}: "
            advice = "There is no checkpoint yet: change the configuration."
            if run.checkpoint.updates():
                folder = run.folder.path if run.index is None else run.folder.path.parent
                rate = getattr(self.algorithm, "learning_rate", None)
                smaller = "" if rate is None else f" algorithm.learning_rate={rate / 2:g}"
                advice = (
                    f"The last good checkpoint is {run.checkpoint.newest()}; go on from it by "
                    f"hpo-train resume={folder}{smaller}."
                )
            raise NonFiniteError(
                f"{what}{error} {advice} Common causes: a learning rate or reward that is too "
                "large, or dynamics that overflow.",
                error.seed_index,
            ) from error

    @property
    def extra_updates(self) -> int:
        """Updates at the beginning of a run that are no part of it: scouting, and starts."""
        number, updates = self.algorithm.starts(self.num_updates)
        scouting = self.algorithm.scouting(self.num_updates)
        return scouting + number * updates if self.update == 0 else 0

    @property
    def _frames(self) -> int:
        """Environment steps of one seed."""
        return self.algorithm.collector.frames // len(self.runs)

    def _call(self, hook: str, *arguments: Any) -> None:
        def called() -> str | None:
            for callback in self.callbacks:
                try:
                    getattr(callback, hook)(self, *arguments)
                except StopTraining as stop:
                    self.stopped = str(stop) or "by a callback"
            return self.stopped

        self.stopped = ranks.from_main(called)

    def each(self, answer: Any) -> list[Any]:
        """Return an answer of the algorithm or of a test as one for each seed."""
        return [answer] if self.algorithm.num_seeds is None else answer

    def _shown(self, answers: list[Any]) -> Any:
        """Return what is known of each seed as a caller sees it: the only one's by itself."""
        return answers[0] if self.algorithm.num_seeds is None else answers
