"""Training several seeds as one computation, each with the folder of an ordinary run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tqdm import tqdm

from hpo_torchrl.algorithms import HPOPopulation
from hpo_torchrl.algorithms.stacked import NonFiniteMemberError
from hpo_torchrl.training.checkpoint import CheckpointError
from hpo_torchrl.training.evaluation import CostEstimate
from hpo_torchrl.training.trainer import Trainer


class PopulationTrainer:
    """Drive the trainers of a population's members through its updates.

    Each member's folder comes to hold what its own trainer would have written there: metrics,
    evaluations and checkpoints, from which that member can go on alone. ``wall_seconds`` is a
    member's share, the time of all divided by their number.

    Args:
        population: the members.
        trainers: the trainer of each, all with the same tests and settings.
    """

    def __init__(self, population: HPOPopulation, trainers: Sequence[Trainer]) -> None:
        self.population, self.trainers = population, list(trainers)
        self._shown: dict[str, str] = {}  # in the bar: means over the members

    def resume(self) -> None:
        """Go on from the newest checkpoint that all members have.

        Only when all have loaded theirs, each member's folder is cut back to it: newer checkpoints
        would belong to rows of ``metrics.csv`` that are written anew.

        Raises:
            CheckpointError: there is none, or one is damaged or of another configuration; no file
                has changed.
        """
        newest = [trainer.checkpoint.newest_update() for trainer in self.trainers]
        update = min(newest)
        for trainer, stream in zip(self.trainers, self.population.streams, strict=True):
            try:
                with stream.in_place():
                    trainer.restore(update)
            except CheckpointError as error:
                if len(set(newest)) == 1:
                    raise
                raise CheckpointError(
                    f"{error} The seeds have come to different updates, {update} to {max(newest)}; "
                    f"go on with each alone, as by resume={trainer.run_dir}."
                ) from error
        for trainer in self.trainers:
            while trainer.checkpoint.newest_update() > update:
                trainer.checkpoint.newest().unlink()
            trainer.logger.resume(update)

    def train(self) -> list[dict[str, Any]]:
        """Run all updates, evaluate, and return each member's summary.

        Raises:
            NonFiniteError: a member met NaN or infinity; the message names update, seed and tensor.
        """
        first = self.trainers[0]
        for trainer, stream in zip(self.trainers, self.population.streams, strict=True):
            with stream.in_place():
                trainer.begin()
        with first.bar() as bar:
            while first.update < first.num_updates:
                self._one_update(bar)
        return self._summaries()

    def _one_update(self, bar: tqdm) -> None:
        start, first = time.perf_counter(), self.trainers[0]
        self.population.anneal(first.update / first.num_updates)
        try:
            metrics = self.population.iterate()
        except NonFiniteMemberError as error:
            raise self.trainers[error.member].stopped(error) from error
        costs: Sequence[CostEstimate | None] = [None] * len(self.trainers)
        if first.quick_test is not None and first.test_is_due:
            costs = first.quick_test.run_all([t.algorithm.policy for t in self.trainers])
        seconds = (time.perf_counter() - start) / len(self.trainers)
        members = zip(self.trainers, self.population.streams, metrics, costs, strict=True)
        rows = []
        for trainer, stream, own, cost in members:
            with stream.in_place():  # a checkpoint holds the member's random numbers
                rows.append(trainer.record(own, cost, seconds))
        self._show(bar, rows)

    def _show(self, bar: tqdm, rows: Sequence[Mapping[str, Any]]) -> None:
        bar.update()
        cost = fmean(row["cost"] for row in rows)
        self._shown["cost"] = f"{cost:.2f}"
        if "test_cost" in rows[0]:
            self._shown["test"] = f"{fmean(row['test_cost'] for row in rows):.3f}"
        bar.set_postfix(self._shown, refresh=False)

    def _summaries(self) -> list[dict[str, Any]]:
        policies = [trainer.algorithm.policy for trainer in self.trainers]
        for trainer, policy in zip(self.trainers, policies, strict=True):
            trainer.selection.apply(policy)
        found = {name: test.run_all(policies) for name, test in self.trainers[0].tests.items()}
        return [
            trainer.summary({name: costs[at] for name, costs in found.items()})
            for at, trainer in enumerate(self.trainers)
        ]
