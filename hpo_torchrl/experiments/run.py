"""A run: a configuration and a folder. What the commands do, without the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchrl.envs import EnvBase
from tqdm import tqdm

from hpo_torchrl import reporting
from hpo_torchrl.algorithms import Algorithm
from hpo_torchrl.core.checks import check_int
from hpo_torchrl.diagnostics import GradientReport, GradientSampler, gradient_report
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.config import load_config
from hpo_torchrl.experiments.targets import call_with
from hpo_torchrl.experiments.threads import set_threads
from hpo_torchrl.training import Callback, Evaluation, RunFolder, SeedRun, Trainer

Tests = tuple[Mapping[str, Evaluation], str, Evaluation]


def train_run(
    config: Mapping[str, Any],
    run_dir: str | Path,
    *,
    resume: bool = False,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train as configured, in ``run_dir``, and leave summary and pictures there.

    Everything is built and checked before the folder is touched. With ``gradients`` in the
    configuration, the trained policy's gradients are measured too; see :func:`gradients_run`.

    Args:
        config: the resolved configuration, as ``configs/train.yaml`` lays it out.
        run_dir: folder of the run: new or empty of runs, or with ``resume`` an interrupted run.
        resume: go on from the newest checkpoint.
        progress: whether to show progress bars; as configured by default.
        callbacks: what else happens; see :class:`~hpo_torchrl.training.Callback`.

    Returns:
        The summary.

    Raises:
        FileExistsError: ``run_dir`` already holds a run.
        ValueError: a value of the configuration is refused; the message names its key.
        TypeError: a value has the wrong type.
        CheckpointError: the run cannot be resumed.
        NonFiniteError: training met NaN or infinity.
    """
    if not resume:
        RunFolder(run_dir).check_new()
    set_threads(config)
    trainer = make_trainer(
        config,
        run_dir,
        build_algorithm(config),
        build_tests(config),
        progress=progress,
        callbacks=callbacks,
    )
    return start(trainer, resume=resume)


def start(trainer: Trainer, *, resume: bool = False) -> Any:
    """Write the configuration of each seed to its folder, or resume there; then train."""
    if resume:
        trainer.resume()
    else:
        for run in trainer.runs:
            run.folder.write_config(run.checkpoint.config)
    return trainer.train()


def make_trainer(
    config: Any,
    run_dir: Any,
    algorithm: Algorithm,
    tests: Tests,
    *,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    logs: bool = True,
) -> Trainer:
    """Return the trainer of a configuration.

    Args:
        config: the resolved configuration; a list with one for each seed if there are several.
        run_dir: folder of the run; a list likewise.
        algorithm: what it trains.
        tests: what :func:`~hpo_torchrl.experiments.build.build_tests` returns.
        callbacks: what else happens.
        progress: whether to show progress bars; as configured by default.
        logs: whether the logger of the configuration is opened.

    Raises:
        ValueError: a key of the ``trainer`` section is unknown, or a value is refused.
    """
    first = config if isinstance(config, Mapping) else config[0]
    settings = {key: value for key, value in first["trainer"].items() if key != "num_threads"}
    named, primary, validation = tests
    if progress is not None:
        settings["progress"] = progress
    arguments = {
        "algorithm": algorithm,
        "run_dir": run_dir,
        "config": config,
        "tests": named,
        "primary": primary,
        "validation": validation,
        "reference": named[primary].reference(),
        "validation_reference": None if validation is named[primary] else validation.reference(),
        "env_name": first["env"]["name"],
        "algorithm_name": first["algorithm"]["name"],
        "logger_backend": first["logger"]["backend"] if logs else None,
        "callbacks": [LearningCurve(), *_measuring(first, algorithm), *callbacks],
    }
    return call_with("trainer", Trainer, {**settings, **arguments})


class LearningCurve(Callback):
    """Draws ``learning_curve.png`` at the end of a run."""

    def on_train_end(self, trainer: Trainer, summary: Any) -> None:
        """Draw the curve of each seed."""
        reference = trainer.validation_reference
        for run in trainer.runs:
            tested = [row for row in run.logger.rows if "test_cost" in row]
            reporting.plot_learning_curve(
                run.folder.learning_curve,
                [row["update"] for row in tested],
                [row["test_cost"] for row in tested],
                errors=[row["test_cost_se"] for row in tested],
                optimum=reference.optimal_cost,
                lower_bound=reference.lower_bound,
                baselines=reference.baselines,
            )


class Gradients(Callback):
    """Measures the gradients of a trained policy at the end of a run; see :func:`gradients_run`.

    Args:
        num_batches: gradients per estimator.
        num_reference: batches behind the reference gradient.
    """

    def __init__(self, num_batches: int = 40, num_reference: int = 160) -> None:
        self.sizes = {"num_batches": num_batches, "num_reference": num_reference}
        for name, size in self.sizes.items():
            check_int(f"gradients.{name}", size, minimum=2)

    def on_train_end(self, trainer: Trainer, summary: Any) -> None:
        """Write ``gradients.csv`` and ``gradients.png`` of each seed."""
        algorithm: Any = trainer.algorithm
        for run in trainer.runs:
            folder = run.folder.path
            gradients_run(
                run.checkpoint.config,
                folder,
                output_dir=folder,
                progress=trainer.progress,
                env=algorithm.env if run.index is None else None,
                **self.sizes,
            )


def _measuring(config: Mapping[str, Any], algorithm: Algorithm) -> list[Callback]:
    section = config.get("gradients")  # runs of older versions have none
    if section is None:
        return []
    if not isinstance(section, Mapping):
        raise TypeError(
            "gradients must be null, or sizes such as {num_batches: 40, num_reference: 160}, "
            f"got {section!r}."
        )
    _differentiable(algorithm, config)
    return [call_with("gradients", Gradients, section)]


def evaluate_run(
    run_dir: str | Path, *, device: str | None = None, allow: Sequence[str] = ()
) -> dict[str, Any]:
    """Evaluate the policy that a run ends with, by its newest checkpoint; no file is changed.

    Args:
        run_dir: folder of the run.
        device: where to evaluate; the run's own device by default.
        allow: modules whose classes the run may name; see
            :func:`~hpo_torchrl.experiments.config.load_config`.

    Returns:
        A summary like that of training.

    Raises:
        RunFolderError: the folder holds no run, or its checkpoint is damaged.
    """
    saved = load_config(run_dir, allow)
    config = saved if device is None else {**saved, "device": device}
    set_threads(config)
    algorithm = build_algorithm(config)
    trainer = make_trainer(config, run_dir, algorithm, build_tests(config), logs=False)
    # The tests may run on another device than the training: only that may differ.
    trainer.runs[0].checkpoint.config = saved
    trainer.restore()
    return trainer.summary()


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
        run_dir: folder of the run.
        only_policy: leave all else as it is: optimizer, running instances, random numbers.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another configuration.
    """
    run = SeedRun(algorithm, run_dir, config, select=config["trainer"].get("select", "last"))
    run.checkpoint.load(components=("policy", "selection") if only_policy else None)
    run.select()


def gradients_run(
    config: Mapping[str, Any],
    run_dir: str | Path | None = None,
    *,
    output_dir: str | Path | None = None,
    num_batches: int = 40,
    num_reference: int = 160,
    seed: int = 0,
    progress: bool = True,
    env: EnvBase | None = None,
) -> GradientReport:
    """Measure the gradient estimators on a configured problem; see :func:`gradient_report`.

    Args:
        config: the resolved configuration.
        run_dir: folder of a run; the policy that it ends with is measured. ``None`` measures the
            untrained policy.
        output_dir: where ``gradients.csv`` and ``gradients.png`` go; ``None`` writes nothing.
        num_batches: gradients per estimator.
        num_reference: batches behind the reference gradient.
        seed: seed of the batches.
        progress: whether to show a progress bar.
        env: the environment, if the configuration does not describe it.

    Raises:
        RunFolderError: the folder holds no run, or its checkpoint is damaged.
        ValueError: a value of the configuration is refused, or its algorithm has no simulator
            gradients.
    """
    check_int("seed", seed, minimum=0)
    set_threads(config)
    algorithm = _differentiable(build_algorithm(config, env=env), config)
    if run_dir is not None:
        restore_policy(algorithm, config, run_dir)
    torch.manual_seed(seed)
    algorithm.env.set_seed(seed)
    report = gradient_report(
        GradientSampler.of(algorithm),
        num_batches=num_batches,
        num_reference=num_reference,
        progress=lambda loop: iter(
            tqdm(
                loop,
                total=num_batches + num_reference,
                unit="batch",
                disable=not progress,
                dynamic_ncols=True,
            )
        ),
    )
    if output_dir is not None:
        folder = RunFolder(output_dir)
        folder.path.mkdir(parents=True, exist_ok=True)
        reporting.write_rows(folder.gradients, report.rows)
        reporting.plot_gradients(folder.gradients_picture, report.rows, ceiling=report.ceiling)
    return report


def _differentiable(algorithm: Algorithm, config: Mapping[str, Any]) -> Any:
    if not algorithm.differentiable:
        raise ValueError(
            "Gradients are measured of algorithms that roll out differentiably (algorithm=hpo), "
            f"got {config['algorithm']['name']!r}."
        )
    return algorithm
