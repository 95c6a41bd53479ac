"""Sweeps: a plan with its cost, a folder for each run, a count of runs, failures at the end."""

from __future__ import annotations

import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from torchrl.checkpoint import CheckpointRotation
from tqdm import tqdm

from hpo_torchrl.core.checks import check_bool, first_line
from hpo_torchrl.experiments.config import (
    NOT_SETTINGS,
    compose_worded,
    explain,
    free_key,
    hydra_session,
    prepare,
    resolve,
    run_settings,
)
from hpo_torchrl.experiments.estimate import describe_cost
from hpo_torchrl.experiments.run import train_run
from hpo_torchrl.training.checkpoint import differences
from hpo_torchrl.training.run_folder import RunFolder

DONE, UNFINISHED, NEW, FAILED = "done already", "unfinished", "new", "failed"
# Overrides that do not name a run: where it goes, what is shown, what is measured afterwards.
_NOT_IN_NAMES = {*NOT_SETTINGS, "experiment", "gradients", "trainer.progress", "hydra.searchpath"}
_LONGEST_NAME = 180


class Job(NamedTuple):
    """One run of a sweep: its folder, settings, and the overrides that name it."""

    overrides: list[str]
    folder: Path
    settings: dict[str, Any]


class Outcome(NamedTuple):
    """What became of a job: ``DONE``, ``FAILED`` or ``"trained"``, and the words for it."""

    status: str
    folder: Path
    words: str


class SweepRefused(BaseException):
    """A sweep that cannot start; the cause says why.

    Not an ``Exception``: Hydra turns those of a callback into warnings and goes on.
    """


def run_sweep(overrides: Sequence[str], config_dir: str | None = None) -> None:
    """Train all runs of a sweep, each in a folder of its own.

    Args:
        overrides: settings, with several values by commas.
        config_dir: a folder of further YAML files.

    Raises:
        ValueError: the sweep cannot be; nothing was started.
        SystemExit: runs failed.
    """
    with hydra_session():
        try:
            GlobalHydra.instance().hydra.multirun(
                config_name="train",
                task_function=_run_job,
                overrides=prepare(overrides, config_dir),
                with_log_configuration=True,
            )
        except SweepRefused as refused:
            raise (refused.__cause__ or refused) from None
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(explain(str(error), overrides)) from error


def _run_job(config: DictConfig) -> Outcome:
    """Do one job, in the process that the launcher chose for it."""
    settings = HydraConfig.get()
    job = make_job(resolve(config, settings), list(settings.overrides.task), _experiment(settings))
    shows_bar = _workers(settings) == 1 and sys.stderr.isatty()
    return train_job(job, progress=shows_bar and job.settings["trainer"]["progress"])


def make_job(settings: dict[str, Any], overrides: Sequence[str], experiment: str | None) -> Job:
    """Return the job of a configuration.

    Args:
        settings: the resolved configuration, with the keys of the command.
        overrides: the job's overrides.
        experiment: name of the experiment, which names the sweep's folder.

    Raises:
        ValueError: the job would resume a run, or train several seeds.
    """
    if settings["resume"] is not None:
        raise ValueError(
            f"resume={settings['resume']} goes on with one run: leave --multirun out. A sweep goes "
            "on where it stopped when its own command is given again."
        )
    if settings["num_seeds"] != 1:
        raise ValueError(
            f"num_seeds={settings['num_seeds']} trains its seeds in one run: leave --multirun out, "
            "or sweep over seed=0,1,..."
        )
    if settings["output_dir"] is not None:
        folder = Path(str(settings["output_dir"]))
    else:
        parent = Path(str(settings["sweep_dir"] or Path("runs", experiment or "sweep")))
        folder = parent / run_name(overrides)
    return Job(_naming(overrides), folder, run_settings(settings))


def run_name(overrides: Iterable[str]) -> str:
    """Return the folder name of a run: its overrides by alphabet, safe on file systems.

    A name that is too long, or has lost a character, ends in a hash of the whole.

    Examples:
        >>> run_name(["seed=0", "experiment=inventory_sizes", "algorithm=hpo", "env.num_items=5"])
        'algorithm=hpo,env.num_items=5,seed=0'
        >>> run_name(["policy.hidden=[8,8]", "device=cuda:1"])
        'device=cuda-1,policy.hidden=[8,8]~6e4471a0'
    """
    named = _naming(overrides)
    raw = ",".join(named) or "default"
    short = raw
    if len(raw) > _LONGEST_NAME:  # the last words of the keys
        short = ",".join(re.sub(r"^[^=]*\.", "", text) for text in named)[:_LONGEST_NAME]
    name = re.sub(r"[^\w.,=+\[\]-]", "-", short, flags=re.ASCII)
    return name if name == raw else f"{name}~{sha256(raw.encode()).hexdigest()[:8]}"


def run_state(folder: Path, settings: Mapping[str, Any]) -> str:
    """Return ``DONE``, ``UNFINISHED`` or ``NEW``: what a folder holds of a run.

    New is also a run that was stopped before its first checkpoint.

    Raises:
        ValueError: the folder holds a run of another configuration, or an incomplete one.
    """
    files = RunFolder(folder)
    if not files.config.exists():
        if files.found:
            raise ValueError(
                f"{folder} holds {' and '.join(files.found)} without {files.config.name}, so the "
                "run cannot be identified. Move it away, or give this sweep another folder by "
                "sweep_dir=DIR."
            )
        return NEW
    # Whether a bar is shown may change on the way.
    saved, wanted = (
        {**config, "trainer": {**config["trainer"], "progress": None}}
        for config in (files.read_config(), settings)
    )
    if changed := differences(saved, wanted):
        raise ValueError(
            f"{folder} holds a run of another configuration: {'; '.join(changed)}. Give this "
            "sweep another folder by sweep_dir=DIR, or move that run away; nothing was changed."
        )
    usable = updates_done(folder) is not None
    measured = settings.get("gradients") is None or (
        files.gradients.exists() and files.gradients_picture.exists()
    )
    if files.summary.exists() and (measured or not usable):
        return DONE
    return UNFINISHED if usable else NEW


def updates_done(folder: Path) -> int | None:
    """Return the updates of the newest checkpoint that can be read, or ``None``."""
    newest = CheckpointRotation(RunFolder(folder).checkpoints, keep_last=1).latest()
    return None if newest is None else int(newest.stem.rpartition("-")[2])


def train_job(job: Job, *, progress: bool) -> Outcome:
    """Train a job of a sweep, go on with it, or skip it; a failure is recorded in its folder.

    Raises:
        ValueError: its folder holds a run of another configuration.
    """
    state, files = run_state(job.folder, job.settings), RunFolder(job.folder)
    if state == DONE:
        return Outcome(DONE, job.folder, "")
    files.failure.unlink(missing_ok=True)
    try:
        if state == UNFINISHED:  # under its own configuration, which is that of this sweep
            summary = train_run(files.read_config(), job.folder, resume=True, progress=progress)
        else:
            # Stopped before its first checkpoint, a run leaves nothing to keep.
            files.config.unlink(missing_ok=True)
            shutil.rmtree(files.checkpoints, ignore_errors=True)
            summary = train_run(job.settings, job.folder, progress=progress)
    except Exception as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # tensordict 0.14 puts its own error on top
        job.folder.mkdir(parents=True, exist_ok=True)
        words = f"{type(error).__name__}: {first_line(error)}"
        files.failure.write_text(f"{words}\n\n{traceback.format_exc()}")
        return Outcome(FAILED, job.folder, words)
    return Outcome("trained", job.folder, _in_short(summary))


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
            raise SweepRefused from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say how a job ended and how many are done; in the launcher's process of the job."""
        if not self.labels or job_return.status != JobStatus.COMPLETED:
            return
        status, folder, words = job_return.return_value
        done = sum(RunFolder(other).summary.exists() for other in self.labels)
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
        records = [RunFolder(folder).failure for folder in self.labels]
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
            (job.settings, updates_done(job.folder) or 0)
            for job, state in zip(jobs, states, strict=True)
            if state != DONE
        ]
        if pending and check_bool("sweep_estimate", config.sweep_estimate):
            print(describe_cost(pending, _workers(config.hydra)), flush=True)
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
    # An experiment's keys as the command line's: the same key given there takes their place.
    params = {free_key(f"{key}="): value for key, value in (sweeper.params or {}).items()}
    with read_write(config), open_dict(config):
        sweeper.params = {key.rstrip("="): value for key, value in params.items()}
    texts = [f"{key}{value}" for key, value in params.items()]
    parsed = OverridesParser.create().parse_overrides([*texts, *config.hydra.overrides.task])
    jobs: dict[Path, Job] = {}
    for overrides in BasicSweeper.split_arguments(parsed, None)[0]:
        composed = compose_worded([*config.hydra.overrides.hydra, *overrides])
        experiment = _experiment(composed.hydra)  # before it is resolved
        job = make_job(resolve(composed), overrides, experiment)
        if job.folder in jobs:
            raise ValueError(
                f"Two runs of this sweep would share the folder {job.folder}. Give each value "
                "once, and in a sweep sweep_dir=DIR instead of output_dir=DIR."
            )
        jobs[job.folder] = job
    return list(jobs.values())


def _experiment(hydra_config: DictConfig) -> str | None:
    return hydra_config.runtime.choices.get("experiment")


def _workers(hydra_config: DictConfig) -> int | None:
    """Runs side by side; ``None`` where only the launcher knows."""
    launcher = hydra_config.launcher
    if launcher._target_.endswith(".BasicLauncher"):
        return 1
    number = launcher.get("n_jobs")
    if number is None or not launcher._target_.endswith(".JoblibLauncher"):
        return None
    return number if number > 0 else max(1, (os.cpu_count() or 1) + 1 + number)


def _naming(overrides: Iterable[str]) -> list[str]:
    """The overrides that name a run, by alphabet."""
    keys = {text: text.split("=", 1)[0].lstrip("+~") for text in overrides}
    left_out = {text for text, key in keys.items() if {key, key.split(".")[0]} & _NOT_IN_NAMES}
    return sorted(text.lstrip("+") for text in keys if text not in left_out)


def _in_short(summary: Mapping[str, Any]) -> str:
    words = [f"test cost {summary['test_cost']:.4f}"]
    for key, label in (("gap", "gap"), ("gap_to_lower_bound", "gap at most")):
        if summary.get(key) is not None:
            words.append(f"{label} {100 * summary[key]:+.2f} %")
            break
    return ", ".join([*words, f"{summary['wall_seconds']:.0f} s"])
