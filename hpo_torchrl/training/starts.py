"""What comes before a run: a look at where a policy leads, and a choice of starts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpo_torchrl.core import ranks
from hpo_torchrl.core.finite import NonFiniteError
from hpo_torchrl.training.evaluation import CostEstimate

if TYPE_CHECKING:
    from hpo_torchrl.training.trainer import Trainer

_CLEAR = 2.0  # standard errors by which a later start must be better

Rows = list[list[dict[str, Any]]]


def scout(trainer: Trainer) -> None:
    """Try a few updates, let the algorithm measure what they have shown, and go back to the start.

    A network finds thresholds where its inputs are of size 1 around 0, which the observations under
    random actions do not tell: a room is kept within half a degree of 21.
    """
    algorithm = trainer.algorithm
    if not (updates := algorithm.scouting(trainer.num_updates)):
        return
    first = [_states(run) for run in trainer.runs]
    try:
        _train(trainer, updates)
    except NonFiniteError as error:  # the run will meet it as well, and say so
        if not ranks.in_common(error):
            raise
        _restore(trainer, first)
        return
    if trainer.stopped is None:
        frames = algorithm.collector.frames
        _restore(trainer, first)
        algorithm.measure()
        algorithm.collector.frames = frames


def choose_start(trainer: Trainer) -> bool:
    """Do the first part of a run, and go on from the best of several starts.

    A gradient leads to a local optimum, and to which one is settled early: a policy that at first
    orders every other period, say, will find the amounts for two periods, and then the periods for
    these amounts. So after its first updates the run is tried from each start of the algorithm
    (:meth:`Algorithm.starts`), each a run in little: the first one shows where the run itself is
    bound for, the others are pushed elsewhere. They go on from the best policy so far: what it has
    learned keeps a policy that is pushed from running away. Each seed goes on from the start whose
    policy costs least in the validation; a later one must be better by two standard errors. If that
    is the first, the run goes on as if there had been none: its schedules, slower ones, lead to
    better policies. One that meets NaN or infinity is out. Nothing is saved meanwhile: an
    interrupted choice is made again.

    Returns:
        Whether there was anything to choose from.

    Raises:
        NonFiniteError: the run, or every start, met NaN or infinity.
    """
    algorithm, runs = trainer.algorithm, trainer.runs
    number, updates = algorithm.starts(trainer.num_updates)
    if number < 2 or trainer.stopped is not None:
        return False
    test = trainer.validation or trainer.tests[trainer.primary]
    logged = _train(trainer, updates)
    before = [_states(run) for run in runs]
    updated, frames = trainer.update, algorithm.collector.frames
    best: list[Any] = [None] * len(runs)  # cost, start, where it has led, facts
    failure = None
    for start in range(number) if trainer.stopped is None else ():
        _restore(trainer, [own[2] if own else at for own, at in zip(best, before, strict=True)])
        facts, counted = trainer.each(algorithm.begin(start)), algorithm.collector.frames
        try:
            rows = _train(trainer, updates)
            costs = _tested(rows, trainer.update) or trainer.test("validation", test)
        except NonFiniteError as error:
            if not ranks.in_common(error):
                raise
            failure = failure or error
            continue
        frames += algorithm.collector.frames - counted
        for at, (cost, run) in enumerate(zip(costs, runs, strict=True)):
            if best[at] is None or cost.mean + _CLEAR * cost.standard_error < best[at][0]:
                best[at] = cost.mean, start, _states(run), facts[at]
        if trainer.stopped is not None:
            break
    if failure is not None and None in best:
        raise failure
    ends = [own[2] if own and own[1] else at for own, at in zip(best, before, strict=True)]
    _restore(trainer, ends)
    algorithm.begin(None)
    trainer.update, algorithm.collector.frames = updated, frames
    for run, own, last in zip(runs, logged, best, strict=True):
        for row in own:
            run.logger.log({**row, **(last[3] if last else {})})
    return True


def _train(trainer: Trainer, updates: int) -> Rows:
    """Do some updates and return the rows of each seed that would be logged."""
    logged: Rows = [[] for _ in trainer.runs]
    while trainer.update < updates and trainer.stopped is None:
        rows, due = trainer.advance()
        for own, row in zip(logged, rows, strict=True):
            own.extend([row] * due)
    return logged


def _tested(rows: Rows, update: int) -> list[CostEstimate]:
    """Return what the policies cost after an update, if an evaluation was due then."""
    last = [own[-1] if own else {} for own in rows]
    if any(row.get("update") != update or "test_cost" not in row for row in last):
        return []
    return [CostEstimate(row["test_cost"], row["test_cost_se"]) for row in last]


def _states(run: Any) -> dict[str, Any]:
    parts = run.checkpoint.components.items()
    return copy.deepcopy({name: part.state_dict() for name, part in parts})


def _restore(trainer: Trainer, states: Sequence[Mapping[str, Any]]) -> None:
    """Put every seed where it was at its beginning or, of a later state, at its end."""
    for run, own in zip(trainer.runs, states, strict=True):
        for name, part in run.checkpoint.components.items():
            part.load_state_dict(copy.deepcopy(own[name]))
    trainer.update = 0
