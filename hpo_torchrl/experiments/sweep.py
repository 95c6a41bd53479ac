"""Sweeps: a plan with its cost before the first run, a count of runs, failures at the end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from textwrap import shorten
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from tqdm import tqdm

from hpo_torchrl.core.checks import check_bool
from hpo_torchrl.experiments.estimate import Pending, describe_cost
from hpo_torchrl.experiments.jobs import (
    DONE,
    FAILED,
    FAILURE_FILE,
    NEW,
    UNFINISHED,
    Job,
    make_job,
    run_state,
    updates_done,
)
from hpo_torchrl.experiments.run import SUMMARY_FILE


class SweepRefused(BaseException):
    """A sweep that cannot start; the cause says why.

    Not an ``Exception``: Hydra turns those of a callback into warnings and goes on.
    """

    def __init__(self, overrides: list[str]) -> None:
        super().__init__()
        self.overrides = overrides


def shows_bars(hydra_config: DictConfig) -> bool:
    """Whether the jobs of a sweep may draw bars: one after another, on a terminal."""
    return _workers(hydra_config) == 1 and sys.stderr.isatty()


class SweepCallback(Callback):
    """Prints the plan before the first job, counts runs, and lists failures at the end."""

    def __init__(self) -> None:
        self.labels: dict[Path, str] = {}  # what tells a run from the others, by its folder
        self.bar: tqdm | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Plan all jobs, refuse what cannot be, and say what it will cost."""
        try:
            self._start(config)
        except Exception as error:
            raise SweepRefused(list(config.hydra.overrides.task)) from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say how a job ended and how many are done; in the launcher's process of the job."""
        if not self.labels or job_return.status != JobStatus.COMPLETED:
            return
        status, folder, words = job_return.return_value
        done = sum((other / SUMMARY_FILE).exists() for other in self.labels)
        count = status if status in (DONE, FAILED) else f"{done} of {len(self.labels)} done"
        label = self.labels.get(folder, str(folder))
        tqdm.write(f"{count:<17}{label}   {shorten(words, 100)}".rstrip())
        sys.stdout.flush()
        if self.bar is not None and status != DONE:
            self.bar.update()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close the bar; list failures and exit with code 1 if there are any."""
        if self.bar is not None:
            self.bar.close()
        records = [folder / FAILURE_FILE for folder in self.labels]
        failures = [record for record in records if record.exists()]
        if failures:
            print(f"hpo-train: {len(failures)} of {len(records)} runs failed:", file=sys.stderr)
            for record in failures:
                print(f"  {record}: {record.read_text().splitlines()[0]}", file=sys.stderr)
            print("The same command tries them again.", file=sys.stderr)
            raise SystemExit(1)

    def _start(self, config: DictConfig) -> None:
        jobs = _plan(config)
        states = [run_state(job.folder, job.settings) for job in jobs]
        common = set.intersection(*(set(job.overrides) for job in jobs))
        self.labels = {
            job.folder: ",".join(text for text in job.overrides if text not in common) or "the run"
            for job in jobs
        }
        where = Path(os.path.commonpath([job.folder.parent for job in jobs]))
        counts = {state: states.count(state) for state in (DONE, UNFINISHED, NEW)}
        shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        runs = "1 run" if len(jobs) == 1 else f"{len(jobs)} runs"
        print(f"{'plan':<17}{runs} in {where}: {shown}", flush=True)
        pending = [
            Pending(self.labels[job.folder], job.settings, updates_done(job.folder) or 0)
            for job, state in zip(jobs, states, strict=True)
            if state != DONE
        ]
        if pending and check_bool("sweep_estimate", config.sweep_estimate):
            print("\n".join(describe_cost(pending, _workers(config.hydra))), flush=True)
        if config.hydra.sweep.dir == ".":
            with read_write(config), open_dict(config):
                config.hydra.sweep.dir = str(where)  # Hydra's record of the sweep goes there too
        if _workers(config.hydra) == 1:
            self.bar = tqdm(
                total=len(jobs), initial=counts[DONE], unit="run", position=0, dynamic_ncols=True
            )


def _plan(config: DictConfig) -> list[Job]:
    """Return the jobs that Hydra's basic sweeper will start."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(".BasicSweeper"):
        raise ValueError(
            f"Sweeps are planned with Hydra's basic sweeper, got {sweeper._target_}; leave "
            "hydra/sweeper out."
        )
    texts = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*texts, *config.hydra.overrides.task])
    jobs: dict[Path, Job] = {}
    for overrides in BasicSweeper.split_arguments(parsed, None)[0]:
        try:
            composed = compose(config.hydra.job.config_name, overrides, return_hydra_config=True)
        except Exception as error:
            raise SweepRefused(overrides) from error
        experiment = composed.hydra.runtime.choices.get("experiment")
        with read_write(composed), open_dict(composed):
            del composed["hydra"]
        job = make_job(composed, overrides, experiment)
        if job.folder in jobs:
            raise ValueError(
                f"Two runs of this sweep would share the folder {job.folder}. Give each value "
                "once, and in a sweep sweep_dir=DIR instead of output_dir=DIR."
            )
        jobs[job.folder] = job
    return list(jobs.values())


def _workers(hydra_config: DictConfig) -> int | None:
    """Runs side by side; ``None`` where only the launcher knows."""
    launcher = hydra_config.launcher
    if launcher._target_.endswith(".BasicLauncher"):
        return 1
    number = launcher.get("n_jobs")
    if number is None or not launcher._target_.endswith(".JoblibLauncher"):
        return None
    return number if number > 0 else max(1, (os.cpu_count() or 1) + 1 + number)
