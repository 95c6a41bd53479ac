"""The runs of a sweep: the folder of each, what it holds, and training or going on in it."""

from __future__ import annotations

import re
import shutil
import traceback
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torchrl.checkpoint import CheckpointRotation

from hpo_torchrl.core.checks import first_line
from hpo_torchrl.experiments.run import (
    CONFIG_FILE,
    GRADIENT_FILES,
    NOT_SETTINGS,
    SUMMARY_FILE,
    load_config,
    run_settings,
    train_run,
)
from hpo_torchrl.training.checkpoint import differences

FAILURE_FILE = "failed.txt"
DONE, UNFINISHED, NEW, FAILED = "done already", "unfinished", "new", "failed"
# Overrides that do not name a run: where it goes, what is shown, what is measured afterwards.
_NOT_IN_NAMES = {*NOT_SETTINGS, "experiment", "gradients", "trainer.progress"}
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


def make_job(config: DictConfig, overrides: list[str], experiment: str | None) -> Job:
    """Return the job of a composed configuration.

    Args:
        config: the configuration, without Hydra's own section.
        overrides: the job's overrides.
        experiment: name of the experiment, which names the sweep's folder.

    Raises:
        ValueError: the job would resume a run, or train several seeds.
    """
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    if resolved["resume"] is not None:
        raise ValueError(
            f"resume={resolved['resume']} goes on with one run: leave --multirun out. A sweep goes "
            "on where it stopped when its own command is given again."
        )
    if resolved["num_seeds"] != 1:
        raise ValueError(
            f"num_seeds={resolved['num_seeds']} trains its seeds in one run: leave --multirun out, "
            "or sweep over seed=0,1,..."
        )
    if resolved["output_dir"] is not None:
        folder = Path(str(resolved["output_dir"]))
    else:
        parent = Path(str(resolved["sweep_dir"] or Path("runs", experiment or "sweep")))
        folder = parent / run_name(overrides)
    return Job(_naming(overrides), folder, run_settings(resolved))


def run_state(folder: Path, settings: Mapping[str, Any]) -> str:
    """Return ``DONE``, ``UNFINISHED`` or ``NEW``: what a folder holds of a run.

    New is also a run that was stopped before its first checkpoint.

    Raises:
        ValueError: the folder holds a run of another configuration, or an incomplete one.
        CheckpointError: its configuration is damaged.
    """
    if not (folder / CONFIG_FILE).exists():
        found = [name for name in (SUMMARY_FILE, "checkpoints") if (folder / name).exists()]
        if found:
            raise ValueError(
                f"{folder} holds {' and '.join(found)} without {CONFIG_FILE}, so nobody knows of "
                "which run. Move it away, or give this sweep another folder by sweep_dir=DIR."
            )
        return NEW
    changed = differences(_compared(load_config(folder)), _compared(settings))
    if changed:
        raise ValueError(
            f"{folder} holds a run of another configuration: {'; '.join(changed)}. Give this "
            "sweep another folder by sweep_dir=DIR, or move that run away; nothing was changed."
        )
    usable = updates_done(folder) is not None
    measured = settings.get("gradients") is None or all(
        (folder / name).exists() for name in GRADIENT_FILES
    )
    if (folder / SUMMARY_FILE).exists() and (measured or not usable):
        return DONE
    return UNFINISHED if usable else NEW


def updates_done(folder: Path) -> int | None:
    """Return the updates of the newest checkpoint that can be read, or ``None``."""
    newest = CheckpointRotation(folder / "checkpoints", keep_last=1).latest()
    return None if newest is None else int(newest.stem.rpartition("-")[2])


def train_job(job: Job, *, progress: bool) -> Outcome:
    """Train a job of a sweep, go on with it, or skip it; a failure is recorded in its folder.

    Args:
        job: the job.
        progress: whether to show a progress bar of its own.

    Raises:
        ValueError: its folder holds a run of another configuration.
        CheckpointError: the configuration in its folder is damaged.
    """
    state = run_state(job.folder, job.settings)
    if state == DONE:
        return Outcome(DONE, job.folder, "")
    failure = job.folder / FAILURE_FILE
    failure.unlink(missing_ok=True)
    try:
        if state == UNFINISHED:
            saved = load_config(job.folder)
            summary = train_run(saved, job.folder, resume=True, progress=progress)
        else:
            # Stopped before its first checkpoint, a run leaves nothing to keep.
            (job.folder / CONFIG_FILE).unlink(missing_ok=True)
            shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
            summary = train_run(job.settings, job.folder, progress=progress)
    except Exception as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # tensordict 0.14 puts its own error on top
        job.folder.mkdir(parents=True, exist_ok=True)
        words = f"{type(error).__name__}: {first_line(error)}"
        failure.write_text(f"{words}\n\n{traceback.format_exc()}")
        return Outcome(FAILED, job.folder, words)
    return Outcome("trained", job.folder, _in_short(summary))


def _naming(overrides: Iterable[str]) -> list[str]:
    """The overrides that name a run, by alphabet."""
    keys = {text: text.split("=", 1)[0].lstrip("+~") for text in overrides}
    left_out = {text for text, key in keys.items() if {key, key.split(".")[0]} & _NOT_IN_NAMES}
    return sorted(text.lstrip("+") for text in keys if text not in left_out)


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the one that may change on the way: whether a bar is shown."""
    trainer = {key: value for key, value in settings["trainer"].items() if key != "progress"}
    return {**settings, "trainer": trainer}


def _in_short(summary: Mapping[str, Any]) -> str:
    words = [f"test cost {summary['test_cost']:.4f}"]
    for key, label in (("gap", "gap"), ("gap_to_lower_bound", "gap at most")):
        if summary.get(key) is not None:
            words.append(f"{label} {100 * summary[key]:+.2f} %")
            break
    return ", ".join([*words, f"{summary['wall_seconds']:.0f} s"])
