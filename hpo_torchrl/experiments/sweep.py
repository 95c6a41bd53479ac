"""Sweeps: a plan with its cost, a folder for each run, a count of runs, failures at the end."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback as HydraCallback
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from hpo_torchrl.core.checks import check_bool, first_line
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.config import COMMAND_KEYS, compose_sweep, hydra_session, key_of
from hpo_torchrl.experiments.run import in_short, threads, train_run
from hpo_torchrl.experiments.targets import build_callbacks, target_of
from hpo_torchrl.training.checkpoint import (
    Checkpoint,
    DamagedError,
    differences,
    read_together,
)
from hpo_torchrl.training.run_folder import RunFolder

DONE, UNFINISHED, NEW = "done already", "unfinished", "new"
# Overrides that do not name a run: where it goes, what is shown, what is measured afterwards.
_NOT_IN_NAMES = {*COMMAND_KEYS, "experiment", "gradients", "trainer.progress", "hydra.searchpath"}
_LONGEST_NAME = 180
_CHANGEABLE = ("trainer.progress ", "logger.")


class Job(NamedTuple):
    """One run of a sweep: its folder, its settings, and the overrides that make it."""

    folder: Path
    settings: dict[str, Any]
    overrides: list[str]


def run_sweep(overrides: Sequence[str], config_dir: str | None = None) -> None:
    """Train all runs of a sweep, each in a folder of its own, by the launcher that Hydra is told.

    Args:
        overrides: settings, with several values by commas.
        config_dir: a folder of further YAML files.

    Raises:
        ValueError: the sweep cannot be; nothing was started.
        SystemExit: runs failed.
    """
    with hydra_session():
        config, runs = compose_sweep(overrides, config_dir)
        for key, default in (("output_dir", None), ("resume", None), ("num_seeds", 1)):
            if config[key] != default:
                raise ValueError(
                    f"{key}={config[key]} is of a single run: leave --multirun out, or sweep over "
                    "seed=0,1,... into sweep_dir=DIR."
                )
        if config.hydra.get("callbacks"):
            raise ValueError("hydra.callbacks are not called here; give callbacks=[...] instead.")
        if (sweeper := config.hydra.runtime.choices.get("hydra/sweeper")) != "basic":
            raise ValueError(
                f"hydra/sweeper={sweeper} is not used: a sweep trains every combination of values. "
                "examples/search.py searches with Optuna."
            )
        build_callbacks(_plain(config.callbacks))  # a fault of theirs stops the sweep, not each run
        experiment = config.hydra.runtime.choices.get("experiment") or "sweep"
        where = Path(str(config.sweep_dir or Path("runs", experiment)))
        jobs = [Job(where / run_name(words), settings, words) for words, settings in runs]
        if len({job.folder for job in jobs}) < len(jobs):
            raise ValueError("Two runs of this sweep are the same: give each value once.")
        jobs = _without_seeds_of_rules(jobs)
        with RunFolder(where).advising("sweep_dir"):
            states = [run_state(job.folder, job.settings) for job in jobs]
        kinds = [state for state in (DONE, UNFINISHED, NEW) if state in states]
        shown = ", ".join(f"{states.count(state)} {state}" for state in kinds)
        number = "1 run" if len(jobs) == 1 else f"{len(jobs)} runs"
        print(f"{'plan':<17}{number} in {where}: {shown}", flush=True)
        pending = [job for job, state in zip(jobs, states, strict=True) if state != DONE]
        # Hydra's own launcher trains one after another; another one may not say how many at once.
        workers = config.hydra.launcher.get("n_jobs", 1)
        workers = workers if workers > 0 else os.cpu_count() or 1
        if pending and check_bool("sweep_estimate", config.sweep_estimate):
            print(describe_cost([job.settings for job in pending], workers), flush=True)
        hooks: Any = HydraCallback()  # Hydra's own, which do nothing
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(GlobalHydra.instance().config_loader(), hooks),
            task_function=partial(train_job, jobs, pending, workers == 1),
            config=config,
        )
        ended = launcher.launch([job.overrides for job in pending], 0) if pending else []
        failures = [job.return_value for job in ended if job.return_value]
    if failures:
        print(f"hpo-train: {len(failures)} of {len(jobs)} runs failed:", file=sys.stderr)
        print(*failures, "The same command tries them again.", sep="\n", file=sys.stderr)
        raise SystemExit(1)


def _without_seeds_of_rules(jobs: Sequence[Job]) -> list[Job]:
    """Leave out the runs of a rule, which does not learn, that differ from another by their seed.

    The noise of tests has a seed of its own: all of them would end with the same figures.
    """
    kept, met = list[Job](), list[dict[str, Any]]()
    for job in jobs:
        algorithm = job.settings["algorithm"]
        if not getattr(target_of("algorithm", algorithm), "learns", True):
            others = {**job.settings, "seed": None}
            if others in met:
                continue
            met.append(others)
        kept.append(job)
    return kept


def train_job(
    jobs: Sequence[Job], pending: Sequence[Job], bars: bool, config: DictConfig
) -> str | None:
    """Train a run of a sweep, in any process of a launcher, and say how it ended.

    Args:
        jobs: all runs, which are counted.
        pending: those to train, in the order in which they are launched.
        bars: whether a run may show its progress bars.
        config: what Hydra composed for the run.

    Returns:
        The failure, if any, which the folder of the run records too.
    """
    job = pending[HydraConfig.get().job.num]
    files, failure = RunFolder(job.folder), None
    files.failure.unlink(missing_ok=True)
    resume = run_state(job.folder, job.settings) == UNFINISHED
    if not resume:
        # Stopped before its first checkpoint, a run leaves nothing to keep.
        files.config.unlink(missing_ok=True)
        shutil.rmtree(files.checkpoints, ignore_errors=True)
    # A run goes on under its own configuration: that of this sweep, but perhaps for a bar.
    own = {"trainer": files.read_config()["trainer"]} if resume else {}
    settings = {**job.settings, **own}
    bar = bars and sys.stderr.isatty() and job.settings["trainer"]["progress"]
    try:
        callbacks = build_callbacks(_plain(config.callbacks))
        how: dict[str, Any] = {"resume": resume, "progress": bar, "callbacks": callbacks}
        summary = train_run(settings, job.folder, **how)
        words = f"{in_short(summary)}, {summary['wall_seconds']:.0f} s"
        done = sum(RunFolder(other.folder).summary.exists() for other in jobs)
        count = f"{done} of {len(jobs)} done"
    except Exception as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # tensordict 0.14 puts its own error on top
        count, words = "failed", f"{type(error).__name__}: {first_line(error)}"
        failure = f"  {files.failure}: {words}"
        job.folder.mkdir(parents=True, exist_ok=True)
        files.failure.write_text(f"{words}\n\n{traceback.format_exc()}")
    common = set.intersection(*(set(other.overrides) for other in jobs))
    label = run_name(text for text in job.overrides if text not in common)
    print(f"{count:<17}{label}   {words}", flush=True)
    return failure


def run_name(overrides: Iterable[str]) -> str:
    """Return the folder name of a run: its overrides by alphabet, safe on file systems.

    A name that is too long, or has lost a character, ends in a hash of the whole.

    Examples:
        >>> run_name(["seed=0", "experiment=inventory_sizes", "algorithm=hpo", "env.num_items=5"])
        'algorithm=hpo,env.num_items=5,seed=0'
        >>> run_name(["policy.hidden=[8,8]", "device=cuda:1"])
        'device=cuda-1,policy.hidden=[8,8]~6e4471a0'
    """
    keys = {text.lstrip("+"): key_of(text) for text in overrides}
    named = [
        text for text in sorted(keys) if not {keys[text], keys[text].split(".")[0]} & _NOT_IN_NAMES
    ]
    raw = short = ",".join(named) or "default"
    if len(raw) > _LONGEST_NAME:  # the last words of the keys
        short = ",".join(re.sub(r"^[^=]*\.", "", text) for text in named)[:_LONGEST_NAME]
    name = re.sub(r"[^\w.,=+\[\]-]", "-", short, flags=re.ASCII)
    return name if name == raw else f"{name}~{sha256(raw.encode()).hexdigest()[:8]}"


def run_state(folder: Path, settings: Mapping[str, Any]) -> str:
    """Return ``DONE``, ``UNFINISHED`` or ``NEW``: what a folder holds of a run.

    New is also a run that was stopped before its first checkpoint.

    Raises:
        ValueError: the folder holds a run of another configuration.
        FileExistsError: it holds a run without its configuration.
    """
    files = RunFolder(folder)
    if not files.config.exists():
        files.check_new()  # of what else it holds nobody knows the configuration
        return NEW
    changed = differences(files.read_config(), settings)
    # Whether a bar is shown, and what tracks the run, may change on the way.
    if changed := [text for text in changed if not text.startswith(_CHANGEABLE)]:
        raise ValueError(
            f"{folder} holds a run of another configuration: {'; '.join(changed)}. Give this "
            "sweep another folder by sweep_dir=DIR, or move that run away; nothing was changed."
        )
    if files.summary.exists():
        return DONE
    checkpoint = Checkpoint(folder, {}, config=files.read_config())
    try:
        whole = bool(checkpoint.updates() and read_together([checkpoint]))
    except DamagedError:
        whole = False
    return UNFINISHED if whole else NEW


def describe_cost(pending: Sequence[Mapping[str, Any]], workers: int) -> str:
    """Measure the first and the last of some runs, and return the line that says what all cost.

    Args:
        pending: the configuration of each run.
        workers: how many go side by side.
    """
    try:
        ends = [seconds_of(settings) for settings in (pending[0], pending[-1])]
    except Exception as error:  # the run will report the full error
        return f"{'estimated time':<17}unknown: {type(error).__name__}: {first_line(error)}"
    minutes = math.ceil(sum(ends) / 2 * math.ceil(len(pending) / workers) / 60)
    return (
        f"{'estimated time':<17}{minutes // 60}:{minutes % 60:02d} (hours:minutes): "
        f"{len(pending)} runs, {workers} at a time; the first and the last take "
        f"{ends[0]:.1f} and {ends[1]:.1f} s"
    )


def seconds_of(settings: Mapping[str, Any]) -> float:
    """Measure how long a run takes; takes seconds, writes nothing.

    One update, after one to warm up, and each test are measured; a batch of ``gradients`` counts as
    an update; the reference cost, files and pictures are left out.

    Raises:
        ValueError: a value of the configuration is refused.
    """
    with threads(settings):
        algorithm = build_algorithm(settings)
        tests, _, validation = build_tests(settings)
        total = sum(_seconds(partial(test.run, algorithm.policy)) for test in tests.values())
        if algorithm.learns:
            algorithm.anneal(0.0)
            _seconds(algorithm.iterate)
            updates, every = (settings["trainer"][key] for key in ("num_updates", "eval_every"))
            batches = updates + sum((settings["gradients"] or {}).values())
            total += batches * _seconds(algorithm.iterate)
            total += (1 + updates / every) * _seconds(partial(validation.run, algorithm.policy))
        algorithm.collector.shutdown()
    return total


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
