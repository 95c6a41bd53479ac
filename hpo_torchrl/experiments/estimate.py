"""How long runs will take: some updates and the start of each test, measured and multiplied."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpo_torchrl.core.checks import first_line
from hpo_torchrl.diagnostics import GradientSampler
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.threads import set_threads
from hpo_torchrl.training import Evaluation

_TEST_STEPS = 50


def describe_cost(pending: Sequence[tuple[Mapping[str, Any], int]], workers: int | None) -> str:
    """Measure the first and the last of some runs, and return the line that says what all cost.

    Args:
        pending: the configuration of each run and the updates it has done.
        workers: how many go side by side; ``None`` if unknown.
    """
    ends = pending[:1] if len(pending) == 1 else (pending[0], pending[-1])
    try:
        seconds = [seconds_left(settings, done) for settings, done in ends]
    except Exception as error:  # the run will report the full error
        return f"{'estimated time':<17}unknown: {type(error).__name__}: {first_line(error)}"
    # A sweep lasts at least as long as its longest run.
    rounds = math.ceil(len(pending) / (workers or 1))
    low, high = (_hours_minutes(rounds * each) for each in (min(seconds), max(seconds)))
    each = " and ".join(f"{one:.{0 if one >= 10 else 1}f}" for one in seconds)
    how = {None: ", shared by the launcher's workers", 1: ""}.get(workers, f", {workers} at a time")
    return (
        f"{'estimated time':<17}{low if low == high else f'{low} to {high}'} (hours:minutes): "
        f"{len(pending)} runs{how}; the first and the last take {each} s"
    )


def seconds_left(settings: Mapping[str, Any], updates_done: int = 0) -> float:
    """Measure how long a run takes from an update to its end; takes seconds, writes nothing.

    One update after one to warm up, the first periods of each test, and with ``gradients`` one
    batch of each kind are measured; the reference cost, files and pictures are not.

    Args:
        settings: the resolved configuration of a run.
        updates_done: updates of its newest checkpoint.

    Raises:
        ValueError: a value of the configuration is refused.
    """
    set_threads(settings)
    algorithm = build_algorithm(settings)
    tests, _, validation = build_tests(settings)
    total = sum(_test_seconds(test, algorithm.policy) for test in tests.values())
    if algorithm.learns:
        algorithm.anneal(0.0)
        _seconds(algorithm.iterate)
        last, every = settings["trainer"]["num_updates"], settings["trainer"]["eval_every"]
        left = range(updates_done + 1, last + 1)
        tested = sum(update in (1, last) or update % every == 0 for update in left)
        total += len(left) * _seconds(algorithm.iterate)
        total += tested * _test_seconds(validation, algorithm.policy)
    if (sizes := settings.get("gradients")) is not None:
        sampler = GradientSampler.of(algorithm)
        total += sizes.get("num_reference", 160) * _seconds(lambda: sampler.sample(["mixed"]))
        total += sizes.get("num_batches", 40) * _seconds(sampler.sample)
    algorithm.collector.shutdown()
    return total


def _hours_minutes(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d}"


def _test_seconds(test: Evaluation, policy: Any) -> float:
    steps = min(_TEST_STEPS, test.num_steps)
    start = Evaluation(test.env, num_steps=steps, seed=test.seed)
    return _seconds(lambda: start.run(policy)) * test.num_steps / steps


def _seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
