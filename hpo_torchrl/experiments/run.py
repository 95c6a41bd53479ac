"""A run: a configuration and a folder. What the commands do, without the command line."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrl.envs import EnvBase
from tqdm import tqdm

from hpo_torchrl import reporting
from hpo_torchrl.algorithms import Algorithm
from hpo_torchrl.core import ranks
from hpo_torchrl.core.checks import check_bool, check_choice, check_int
from hpo_torchrl.core.console import announced
from hpo_torchrl.core.figures import drawn
from hpo_torchrl.core.memory import keep_freed_memory
from hpo_torchrl.diagnostics import GradientReport, GradientSampler, gradient_report
from hpo_torchrl.envs import RankEnv
from hpo_torchrl.experiments.build import build_algorithm, build_env, build_tests
from hpo_torchrl.experiments.pins import check_files, pinned
from hpo_torchrl.experiments.reference import KINDS, References
from hpo_torchrl.experiments.targets import check_keys
from hpo_torchrl.training import Callback, Evaluation, RunFolder, Trainer
from hpo_torchrl.training.checkpoint import check_same_run
from hpo_torchrl.training.evaluation import validates_primary
from hpo_torchrl.training.policy_folder import PolicyFolder
from hpo_torchrl.training.seed_run import SeedRun

Tests = Evaluation | Mapping[str, Evaluation] | None

# Products of narrower layers are over before a second thread has woken up.
_WIDE = 256
_MOST_THREADS = 4
# Threads a core that can be asked for: thousands end the process, and none of them helps.
_CROWDED = 8


def train_run(
    config: Mapping[str, Any],
    run_dir: str | Path,
    *,
    num_seeds: int = 1,
    resume: bool = False,
    changed_files: bool = False,
    **how: Any,
) -> Any:
    """Train as configured, in ``run_dir``, and leave summary and pictures there.

    Everything is built and checked before the folder is touched. With ``gradients`` in the
    configuration, the trained policy's gradients are measured too; see :func:`gradients_run`.

    Several seeds, that of the configuration and those after it, train as one computation. Each run
    is what it would be alone, up to rounding, and its folder ``run_dir/seed=K`` is as good: it can
    be evaluated, compared, and gone on with by itself.

    Under ``torchrun`` the processes share the training of one seed, see
    :mod:`hpo_torchrl.core.ranks`; all call this function alike. A run may go on with another number
    of them.

    Args:
        config: the resolved configuration, as ``configs/train.yaml`` lays it out.
        run_dir: folder of the run: new or empty of runs, or with ``resume`` an interrupted run.
        num_seeds: number of seeds; a resumed run has those that it had.
        resume: go on from the newest checkpoint (that all seeds have), under the configuration of
            the run, but for another ``algorithm.learning_rate`` and other places of its files.
        changed_files: whether those may have another content, on a resume.
        how: further arguments of :func:`make_trainer`.

    Returns:
        The summary; of several seeds a list with that of each.

    Raises:
        FileExistsError: a folder already holds a run.
        FileNotFoundError: a file that a resumed run was trained on is missing.
        OSError: the disk is full, or the like; the message names the path and how to go on.
        ValueError: a value of the configuration is refused, or a file has another content; the
            message names its key.
        TypeError: a value has the wrong type; several seeds of this cannot be batched.
        CheckpointError: the run cannot be resumed.
        NonFiniteError: training met NaN or infinity.
    """
    with ranks.joined(), ExitStack() as owned:
        config, seeds = ranks.from_main(
            partial(_claimed, config, run_dir, owned, num_seeds, resume, changed_files)
        )
        keep_freed_memory()
        with RunFolder(run_dir).advising(), threads(config):
            return _trained(config, run_dir, seeds, resume, **how)


def _claimed(
    config: Mapping[str, Any],
    run_dir: str | Path,
    owned: ExitStack,
    num_seeds: int,
    resume: bool,
    changed_files: bool,
) -> tuple[dict[str, Any], list[int] | None]:
    """Own the folder of a run, or of several seeds; return its configuration and the seeds.

    The arguments are those of :func:`train_run`, and what lets go of the folder.
    """
    folder = RunFolder(run_dir)
    seeds = folder.read_seeds() if resume else None
    if check_int("num_seeds", num_seeds, minimum=1) > 1 and not resume:
        first = check_int("seed", config["seed"], minimum=0)
        if (own := config["env"].get("seed")) is not None:
            raise ValueError(
                f"num_seeds trains seeds {first} and up, but env.seed={own!r} would be one for "
                "all; leave env.seed out."
            )
        seeds = list(range(first, first + num_seeds))
    places = [folder, *map(folder.of_seed, seeds or ())]
    with folder.advising():
        for place in places:
            owned.enter_context(place.owned())
            if not resume:
                place.check_new()
        begun = resume and (seeds is not None or folder.config.exists())
        saved = folder.read_config(of_seeds=seeds is not None) if begun else None
        config = _bound(config, saved, folder, check_bool("changed_files", changed_files))
    return config, seeds


def _trained(
    config: Mapping[str, Any],
    run_dir: str | Path,
    seeds: Sequence[int] | None,
    resume: bool,
    **how: Any,
) -> Any:
    """Train in a folder that is owned; the arguments are those of :func:`train_run`."""
    folder = RunFolder(run_dir)
    # Nothing here draws from these two; an environment of the user's own may.
    random.seed(check_int("seed", config["seed"], minimum=0))
    np.random.seed(config["seed"] % 2**32)  # noqa: NPY002
    trainer = make_trainer(config, folder.path, seeds=seeds, **how)
    if resume and trainer.begun:  # it may have stopped before its first checkpoint
        trainer.resume()
    if seeds is not None:
        folder.write_seeds(seeds, config)
    for run in trainer.runs:
        run.folder.write_config(run.checkpoint.config)
        if ranks.main():
            run.folder.summary.unlink(missing_ok=True)  # a run that goes on has not finished
            PolicyFolder(run.folder.kept_policy).forget()
    return trainer.train()


def _bound(
    config: Mapping[str, Any], saved: Mapping[str, Any] | None, folder: RunFolder, changed: bool
) -> dict[str, Any]:
    """Return the configuration of a run, bound to its files and to the units derived from them.

    Args:
        config: the configuration that is wanted.
        saved: that of the run which goes on, if one does; the files and units are its own.
        folder: the folder of the run.
        changed: whether its files may have another content.

    Raises:
        CheckpointError: the run would go on under another configuration.
        ValueError: a file has another content.
    """
    if saved is not None:
        check_same_run(saved, config, folder.config)
    own = saved or config
    files = own.get("files") or pinned(config).get("files", {})
    check_files({**config, "files": files}, folder.path, files if changed else ())
    units = own.get("units", {})
    if files and not units:
        found = getattr(build_env(config), "derived_units", {})
        units = {f"env.{name}": unit for name, unit in found.items()}
    return {**pinned(config), **({"units": units} if units else {})}


def make_trainer(
    config: Mapping[str, Any],
    run_dir: str | Path,
    *,
    seeds: Sequence[int] | None = None,
    env: EnvBase | None = None,
    tests: Tests = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    logs: bool = True,
) -> Trainer:
    """Return the trainer of a configuration.

    Args:
        config: the resolved configuration; with several seeds that of the first.
        run_dir: folder of the run, or of the folders of several seeds.
        seeds: the seeds to train as one computation; ``None`` trains that of the configuration.
        env: the environment, if the configuration does not describe it.
        tests: what the policy is tested on; as configured by default.
        callbacks: what else happens; see :class:`~hpo_torchrl.training.Callback`.
        progress: whether to show progress bars; as configured by default.
        logs: whether the logger of the configuration is opened.

    Raises:
        ValueError: a value of the configuration is refused.
    """
    settings = {key: value for key, value in config["trainer"].items() if key != "num_threads"}
    if progress is not None:
        settings["progress"] = progress
    shown = check_bool("trainer.progress", settings["progress"]) and ranks.main()
    # Runs of before there was a choice know nothing of it.
    kind = check_choice("reference", config.get("reference", "auto"), KINDS)
    kind = kind if ranks.main() else "none"  # what is compared is written by rank 0
    with announced(f"building {config['algorithm']['name']}", shown=shown):  # a rule is searched
        algorithm = build_algorithm(config, seeds, env=env)
    known, primary, validation = build_tests(config, env, tests, run=algorithm)

    references = References(kind, shown=shown)
    compared = references.of(known[primary])
    if validation is not known[primary]:
        # It is mostly the same problem with other sizes.
        validated = references.of(validation, anew=not validates_primary(config["evaluation"]))
    else:
        validated = None
    folder, members = RunFolder(run_dir), seeds or ()
    return Trainer(
        algorithm,
        **settings,
        run_dir=[folder.of_seed(seed).path for seed in members] or run_dir,
        config=[{**config, "seed": seed} for seed in members] or config,
        tests=known,
        primary=primary,
        validation=validation,
        reference=compared,
        validation_reference=validated,
        env_name=config["env"]["name"],
        algorithm_name=config["algorithm"]["name"],
        logger=config["logger"] if logs else {},
        callbacks=[Pictures(config["gradients"]), *callbacks],
    )


class Pictures(Callback):
    """Draws ``learning_curve.png`` at the end of a run, and measures its gradients if asked to.

    Args:
        gradients: sizes of the report of :func:`gradients_run`, ``None`` for none.

    Raises:
        TypeError: the sizes are no mapping of integers.
        ValueError: a size is unknown or too small.
    """

    def __init__(self, gradients: Mapping[str, int] | None) -> None:
        if not isinstance(gradients, Mapping | None):
            raise TypeError(
                "gradients must be null, or sizes such as {num_batches: 40, num_reference: 160}, "
                f"got {gradients!r}."
            )
        self.sizes = gradients
        check_keys("gradients", gradients or {}, ["num_batches", "num_reference"])
        for name, size in (gradients or {}).items():
            check_int(f"gradients.{name}", size, minimum=2)

    def on_train_end(self, trainer: Trainer, summary: Any) -> None:
        """Draw the curve, and write ``gradients.csv`` and ``gradients.png``, of each seed."""
        algorithm: Any = trainer.algorithm
        reference = trainer.validation_reference
        for run in trainer.runs:
            tested = [row for row in run.logger.rows if "test_cost" in row]
            curve = partial(
                reporting.plot_learning_curve,
                run.folder.learning_curve,
                [row["update"] for row in tested],
                [row["test_cost"] for row in tested],
                errors=[row["test_cost_se"] for row in tested],
                optimum=reference.optimal_cost,
                lower_bound=reference.lower_bound,
                baselines=reference.baselines,
            )
            drawn(run.folder.learning_curve, curve)
            if self.sizes is not None:
                gradients_run(
                    run.checkpoint.config,
                    run.folder.path,
                    output_dir=run.folder.path,
                    env=_whole(algorithm.env) if run.index is None else None,
                    progress=trainer.progress,
                    **self.sizes,
                )


def _whole(env: EnvBase) -> EnvBase:
    """Return the environment of the whole batch, of which ranks may have shares."""
    return env.original if isinstance(env, RankEnv) else env


def gradients_run(
    config: Mapping[str, Any],
    run_dir: str | Path | None = None,
    *,
    output_dir: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    env: EnvBase | None = None,
    **sizes: int,
) -> GradientReport:
    """Measure the gradient estimators on a configured problem; see :func:`gradient_report`.

    Args:
        config: the resolved configuration.
        run_dir: folder of a run; the policy that it ends with is measured. ``None`` measures the
            untrained policy.
        output_dir: where ``gradients.csv`` and ``gradients.png`` go; ``None`` writes nothing.
        seed: seed of the batches.
        progress: whether to show a progress bar.
        env: the environment, if the configuration does not describe it.
        sizes: ``num_batches`` (gradients per estimator) and ``num_reference`` (batches behind the
            reference gradient).

    Raises:
        RunFolderError: the folder holds no run, or its checkpoint is damaged.
        ValueError: a value of the configuration is refused, or its algorithm has no simulator
            gradients.
    """
    check_int("seed", seed, minimum=0)
    with threads(config):
        algorithm: Any = build_algorithm(config, env=env)
        if run_dir is not None:
            restore_policy(algorithm, config, run_dir)
        torch.manual_seed(seed)
        algorithm.env.set_seed(seed)
        bar = partial(tqdm, unit="batch", dynamic_ncols=True, disable=not progress)
        report = gradient_report(
            GradientSampler.of(algorithm), progress=lambda loop: iter(bar([*loop])), **sizes
        )
    if output_dir is not None:
        folder = RunFolder(output_dir)
        folder.path.mkdir(parents=True, exist_ok=True)
        reporting.write_rows(folder.gradients, report.rows)
        picture = folder.gradients_picture
        plot = partial(reporting.plot_gradients, picture, report.rows, ceiling=report.ceiling)
        drawn(picture, plot)
    return report


def restore_policy(
    algorithm: Algorithm,
    config: Mapping[str, Any],
    run_dir: str | Path,
    *,
    only_policy: bool = False,
) -> None:
    """Load a run's newest checkpoint, and give the policy the weights that the run ends with.

    Args:
        algorithm: the algorithm that the configuration describes.
        config: the configuration of the run.
        run_dir: folder of the run, or of its policy alone (``policy/``).
        only_policy: leave all else as it is: optimizer, running instances, random numbers.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another configuration.
    """
    if (kept := PolicyFolder(run_dir)).found:
        kept.load(algorithm.policy)
        return
    run = SeedRun(algorithm, run_dir, config, select=config["trainer"]["select"])
    run.checkpoint.load(components=("policy", "selection") if only_policy else None)
    run.select()


@contextmanager
def threads(config: Mapping[str, Any]) -> Iterator[None]:
    """Compute with as many threads as ``trainer.num_threads`` says, and leave torch as it was.

    ``None`` is 1 for nets whose layers are all narrower than 256 units, else torch's own number,
    that of the cores, at most 4.

    Raises:
        TypeError: the number is not an integer.
        ValueError: it is below 1, or far above the number of cores.
    """
    before, number = torch.get_num_threads(), config["trainer"]["num_threads"]
    if number is None:
        # Sizes that are no integers will be refused by the networks.
        layers = [config[section].get("hidden") for section in ("policy", "critic")]
        sizes = [size for hidden in layers if isinstance(hidden, list) for size in hidden]
        wide = any(isinstance(size, int) and size >= _WIDE for size in sizes)
        number = min(_MOST_THREADS, before) if wide else 1
    check_int("trainer.num_threads", number, minimum=1)
    cores = os.cpu_count() or 1
    if number > _CROWDED * cores:
        raise ValueError(
            f"trainer.num_threads must be at most {_CROWDED * cores}, {_CROWDED} for each of the "
            f"{cores} cores here, got {number}; null chooses a number, and more than the cores "
            "never helps."
        )
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def new_folder(config: Mapping[str, Any]) -> Path:
    """Return a new folder under ``runs/``, named by problem, algorithm, seed and time."""
    name = f"{config['env']['name']}-{config['algorithm']['name']}-seed{config['seed']}"
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def in_short(summary: Mapping[str, Any]) -> str:
    """Return the cost (or reward) of a summary and its gap in a few words."""
    figure = "test_reward" if "test_reward" in summary else "test_cost"
    gap = "" if summary.get("gap") is None else f", gap {summary['gap']:+.2%}"
    lost = f", loses to the {summary['loses_to']}" if summary.get("loses_to") else ""
    return f"{figure.replace('_', ' ')} {summary[figure]:.4f}{gap}{lost}"
