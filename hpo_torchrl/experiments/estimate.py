"""How long runs will take: a few updates and the start of each test, measured and multiplied."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from hpo_torchrl.core.checks import first_line
from hpo_torchrl.diagnostics import GradientSampler
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.threads import set_threads
from hpo_torchrl.training import Evaluation

MOST_MEASURED = 12
_TEST_STEPS = 50
# A first update this slow is the measurement: its warm-up hardly counts.
_SLOW_SECONDS = 2.0


class Speed(NamedTuple):
    """Seconds that the parts of a run take; a rule that needs no training has the last alone."""

    update: float
    quick_test: float
    final: float  # the final tests, and the gradient report where there is one


class Measured(NamedTuple):
    """What :func:`measure_spread` found.

    Attributes:
        speeds: one per configuration; ``None`` where it could not be built or run.
        measured: numbers of the configurations that were measured.
        problems: by number of the configuration, why it could not be measured.
    """

    speeds: list[Speed | None]
    measured: list[int]
    problems: dict[int, str]


def measure_speed(settings: Mapping[str, Any]) -> Speed:
    """Measure how fast a configuration trains and is tested here; takes seconds, writes nothing.

    Two updates after one to warm up, the first periods of each test, and with ``gradients`` one
    batch of each kind. Not measured are the reference cost, files and pictures.

    Args:
        settings: the resolved configuration of a run.

    Raises:
        ValueError: a value of the configuration is refused.
    """
    set_threads(settings)
    algorithm = build_algorithm(settings)
    tests, _, quick = build_tests(settings["env"])
    update = quick_test = 0.0
    if algorithm.learns:
        algorithm.anneal(0.0)
        update = _seconds(algorithm.iterate)
        if update < _SLOW_SECONDS:
            update = sum(_seconds(algorithm.iterate) for _ in range(2)) / 2
        quick_test = _test_seconds(quick, algorithm)
    final = sum(_test_seconds(test, algorithm) for test in tests.values())
    sizes = settings.get("gradients")
    if sizes is not None:
        sampler = GradientSampler.of(algorithm)
        final += sizes.get("num_reference", 160) * _seconds(sampler.sample_mixed)
        final += sizes.get("num_batches", 40) * _seconds(sampler.sample)
    algorithm.collector.shutdown()
    return Speed(update, quick_test, final)


def measure_spread(
    configurations: Sequence[Mapping[str, Any]], *, most: int = MOST_MEASURED
) -> Measured:
    """Measure configurations: all, or ``most`` evenly spread ones and the others in between.

    Args:
        configurations: resolved configurations, in an order in which neighbours are alike.
        most: how many to measure.
    """
    count = len(configurations)
    chosen = sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})
    speeds: list[Speed | None] = [None] * count
    problems: dict[int, str] = {}
    for number in tqdm(chosen, desc="measuring", leave=False, dynamic_ncols=True):
        try:
            speeds[number] = measure_speed(configurations[number])
        except Exception as error:  # the run itself will tell the whole of it
            problems[number] = f"{type(error).__name__}: {first_line(error)}"
    known = {number: speed for number, speed in enumerate(speeds) if speed is not None}
    if known:
        table = np.array(list(known.values()))
        for number in set(range(count)) - set(chosen):
            between = (np.interp(number, list(known), column) for column in table.T)
            speeds[number] = Speed(*map(float, between))
    return Measured(speeds, sorted(known), problems)


def seconds_left(speed: Speed, settings: Mapping[str, Any], updates_done: int = 0) -> float:
    """Return how long a run takes from an update to its end.

    Args:
        speed: of its configuration.
        settings: its resolved configuration.
        updates_done: updates of its newest checkpoint.

    Examples:
        >>> trainer = {"num_updates": 100, "eval_every": 10}
        >>> seconds_left(Speed(1.0, 2.0, 5.0), {"trainer": trainer})  # 100 updates, 11 tests
        127.0
        >>> seconds_left(Speed(1.0, 2.0, 5.0), {"trainer": trainer}, updates_done=95)
        12.0
    """
    last, every = settings["trainer"]["num_updates"], settings["trainer"]["eval_every"]
    left = range(updates_done + 1, last + 1)
    tests = sum(update in (1, last) or update % every == 0 for update in left)
    return len(left) * speed.update + tests * speed.quick_test + speed.final


class Pending(NamedTuple):
    """A run that is still to be made: its name, its configuration and the updates it has done."""

    name: str
    settings: Mapping[str, Any]
    updates_done: int


def describe_cost(pending: Sequence[Pending], workers: int | None) -> list[str]:
    """Measure what runs will cost and return the lines that say so.

    Args:
        pending: the runs.
        workers: how many go side by side; ``None`` if unknown.
    """
    groups: dict[str, list[Pending]] = {}
    for run in pending:
        groups.setdefault(_without_seed(run.settings), []).append(run)
    first = [runs[0] for runs in groups.values()]
    found = measure_spread([run.settings for run in first])
    lines = ["seconds per run  two updates and the start of each test, measured"]
    seconds: list[float] = []
    for number, runs in enumerate(groups.values()):
        speed = found.speeds[number]
        name = re.sub(r"(^|,)seed=\d+", "", runs[0].name).strip(",") or "every seed"
        if speed is None:
            why = found.problems.get(number, "none could be measured")
            lines.append(f"        ?  x {len(runs):<3} {name}   {why}")
            continue
        each = [seconds_left(speed, run.settings, run.updates_done) for run in runs]
        seconds += each
        mark = " " if number in found.measured else "~"
        mean = sum(each) / len(each)
        lines.append(f"{mark} {mean:7.{0 if mean >= 10 else 1}f}  x {len(runs):<3} {name}")
    if len(first) > MOST_MEASURED:
        lines.append(
            f"{'':<17}{len(found.measured)} of {len(first)} configurations measured; "
            "~ lies between its neighbours in this list"
        )
    total = sum(seconds)
    how = "one run after another"
    if workers is None:
        how = "of computing in all, shared by the launcher's workers"
    elif workers > 1:
        # A sweep lasts at least as long as its longest run.
        total = max([total / workers, *seconds])
        how = f"with {workers} runs side by side, if none slows another"
    how += "; without those marked ?" if None in found.speeds else ""
    return [*lines, f"{'estimated time':<17}{_hours_minutes(total)} (hours:minutes) {how}"]


def _without_seed(settings: Mapping[str, Any]) -> str:
    env = {key: value for key, value in settings["env"].items() if key != "seed"}
    return json.dumps({**settings, "seed": None, "env": env}, sort_keys=True, default=str)


def _hours_minutes(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d}"


def _test_seconds(test: Evaluation, algorithm: Any) -> float:
    steps = min(_TEST_STEPS, test.num_steps)
    start = Evaluation(test.env, num_steps=steps, seed=test.seed)
    return _seconds(lambda: start.run(algorithm.policy)) * test.num_steps / steps


def _seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
