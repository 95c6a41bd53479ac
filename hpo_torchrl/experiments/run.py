"""A run: a configuration and a folder. What the commands do, without the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from hpo_torchrl.algorithms import HPO, Algorithm
from hpo_torchrl.core.checks import check_int
from hpo_torchrl.diagnostics import GradientReport, GradientSampler, gradient_report
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.config import load_config
from hpo_torchrl.experiments.targets import call_with
from hpo_torchrl.experiments.threads import set_threads
from hpo_torchrl.reporting import plot_gradients, plot_learning_curve, write_rows
from hpo_torchrl.training import (
    Checkpoint,
    Trainer,
    write_json,
)

CONFIG_FILE, SUMMARY_FILE = "config.yaml", "summary.json"
# Of a folder that holds the runs of several seeds.
SEEDS_FILE = "seeds.yaml"
GRADIENT_FILES = ("gradients.csv", "gradients.png")


def train_run(
    config: Mapping[str, Any],
    run_dir: str | Path,
    *,
    resume: bool = False,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train as configured, in ``run_dir``, and leave summary and pictures there.

    Everything is built and checked before the folder is touched. With ``gradients`` in the
    configuration, the trained policy's gradients are measured too; see :func:`gradients_run`.

    Args:
        config: the resolved configuration, as ``configs/train.yaml`` lays it out.
        run_dir: folder of the run: new or empty of runs, or with ``resume`` an interrupted run.
        resume: go on from the newest checkpoint.
        progress: whether to show progress bars; as configured by default.

    Returns:
        The summary.

    Raises:
        FileExistsError: ``run_dir`` already holds a run.
        ValueError: a value of the configuration is refused; the message names its key.
        TypeError: a value has the wrong type.
        CheckpointError: the run cannot be resumed.
        NonFiniteError: training met NaN or infinity.
    """
    run_dir = Path(run_dir)
    if not resume:
        check_new(run_dir)
    trainer = _build(config, run_dir)
    trainer.progress = trainer.progress if progress is None else progress
    gradients = gradient_sizes(config, trainer.algorithm)
    if resume:
        trainer.resume()
    else:
        write_config(run_dir, config)
    return finish_run(trainer, trainer.train(), gradients)


def write_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Make the folder of a run and write its configuration there."""
    run_dir.mkdir(parents=True, exist_ok=True)
    draft = run_dir / f"{CONFIG_FILE}.tmp"
    draft.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    draft.replace(run_dir / CONFIG_FILE)


def finish_run(
    trainer: Trainer, summary: Mapping[str, Any], gradients: Mapping[str, int] | None
) -> dict[str, Any]:
    """Leave summary and pictures of a trained policy in its folder; return the summary.

    Args:
        trainer: the trainer of the run.
        summary: its summary so far.
        gradients: sizes of its gradient report, or ``None``; see :func:`gradient_sizes`.
    """
    run_dir, config = trainer.run_dir, trainer.checkpoint.config
    summary = {**summary, **_describe(trainer, run_dir)}
    write_json(run_dir / SUMMARY_FILE, summary)
    tested = [row for row in trainer.logger.rows if "test_cost" in row]
    plot_learning_curve(
        run_dir / "learning_curve.png",
        [row["update"] for row in tested],
        [row["test_cost"] for row in tested],
        errors=[row["test_cost_se"] for row in tested],
        optimum=trainer.quick_reference.optimal_cost,
        lower_bound=trainer.quick_reference.lower_bound,
        baselines=trainer.quick_reference.baselines,
    )
    if gradients is not None:
        gradients_run(config, run_dir, output_dir=run_dir, progress=trainer.progress, **gradients)
    return summary


def evaluate_run(
    run_dir: str | Path, *, device: str | None = None, allow: Sequence[str] = ()
) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run on its tests; no file is changed.

    Args:
        run_dir: folder of the run.
        device: where to evaluate; the run's own device by default.
        allow: modules whose classes the run may name; see :func:`load_config`.

    Returns:
        A summary like that of training.

    Raises:
        CheckpointError: the folder holds no run, or its checkpoint is damaged.
    """
    config = load_config(run_dir, allow)
    if device is not None:
        config["device"] = device
    config["logger"] = {"backend": None}
    trainer = _build(config, Path(run_dir))
    # The tests may run on another device than the training: only that may differ.
    trainer.checkpoint.config = load_config(run_dir, allow)
    trainer.restore()
    return trainer.summary() | _describe(trainer, None)


def gradients_run(
    config: Mapping[str, Any],
    run_dir: str | Path | None = None,
    *,
    output_dir: str | Path | None = None,
    num_batches: int = 40,
    num_reference: int = 160,
    seed: int = 0,
    progress: bool = True,
) -> GradientReport:
    """Measure the gradient estimators on a configured problem; see :func:`gradient_report`.

    Args:
        config: the resolved configuration.
        run_dir: folder of a run whose newest checkpoint is measured; ``None`` measures the
            untrained policy.
        output_dir: where ``gradients.csv`` and ``gradients.png`` go; ``None`` writes nothing.
        num_batches: gradients per estimator.
        num_reference: batches behind the reference gradient.
        seed: seed of the batches.
        progress: whether to show a progress bar.

    Raises:
        CheckpointError: the folder holds no run, or its checkpoint is damaged.
        ValueError: a value of the configuration is refused, or its algorithm has no simulator
            gradients.
    """
    check_int("seed", seed, minimum=0)
    set_threads(config)
    algorithm = _differentiable(build_algorithm(config), config)
    if run_dir is not None:
        Checkpoint(run_dir, algorithm.components(), config=config).load()
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
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / GRADIENT_FILES[0], report.rows)
        plot_gradients(folder / GRADIENT_FILES[1], report.rows, ceiling=report.ceiling)
    return report


def _build(config: Mapping[str, Any], run_dir: Path) -> Trainer:
    set_threads(config)
    return make_trainer(config, run_dir, build_algorithm(config), build_goals(config))


def build_goals(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trainer compares policies by: tests and references, the same for all seeds."""
    tests, headline, quick = build_tests(config)
    tested = tests[headline]
    other_starts = (quick.env.batch_size, quick.seed) != (tested.env.batch_size, tested.seed)
    return {
        "tests": tests,
        "headline": headline,
        "quick_test": quick,
        "reference": tested.reference(),
        "quick_reference": quick.reference() if other_starts or quick is not tested else None,
    }


def make_trainer(
    config: Mapping[str, Any], run_dir: Path, algorithm: Algorithm, goals: Mapping[str, Any]
) -> Trainer:
    """Return the trainer of a configuration.

    Args:
        config: the resolved configuration.
        run_dir: folder of the run.
        algorithm: what it trains.
        goals: see :func:`build_goals`.

    Raises:
        ValueError: a key of the ``trainer`` section is unknown, or a value is refused.
    """
    settings = {key: value for key, value in config["trainer"].items() if key != "num_threads"}
    arguments = {
        "algorithm": algorithm,
        "run_dir": run_dir,
        "config": config,
        **goals,
        "env_name": config["env"]["name"],
        "algorithm_name": config["algorithm"]["name"],
        "seed": config["seed"],
        "logger_backend": config["logger"]["backend"],
    }
    return call_with("trainer", Trainer, {**settings, **arguments})


def gradient_sizes(config: Mapping[str, Any], algorithm: Algorithm) -> dict[str, int] | None:
    """Return the checked ``gradients`` section of a configuration."""
    section = config.get("gradients")  # runs of older versions have none
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise TypeError(
            "gradients must be null, or sizes such as {num_batches: 40, num_reference: 160}, "
            f"got {section!r}."
        )
    _differentiable(algorithm, config)
    return call_with("gradients", _checked_sizes, section)


def _checked_sizes(num_batches: int = 40, num_reference: int = 160) -> dict[str, int]:
    sizes = {"num_batches": num_batches, "num_reference": num_reference}
    for name, size in sizes.items():
        check_int(f"gradients.{name}", size, minimum=2)
    return sizes


def _differentiable(algorithm: Algorithm, config: Mapping[str, Any]) -> HPO:
    if not isinstance(algorithm, HPO):
        raise ValueError(
            "Gradients are measured of algorithms that roll out differentiably (algorithm=hpo), "
            f"got {config['algorithm']['name']!r}."
        )
    return algorithm


def _describe(trainer: Trainer, run_dir: Path | None) -> dict[str, Any]:
    env, policy = trainer.tests[trainer.headline].env, trainer.algorithm.policy
    if not trainer.algorithm.learns or not hasattr(env, "describe"):
        return {}  # a rule says what it does
    env.set_seed(trainer.tests[trainer.headline].seed)
    return env.describe(policy, trainer.tests, trainer.reference, run_dir)


def check_new(run_dir: Path) -> None:
    """Raise a ``FileExistsError`` if a folder holds a run, or is none."""
    if run_dir.exists() and not run_dir.is_dir():
        raise FileExistsError(f"output_dir={str(run_dir)!r} is a file; name a folder.")
    names = (CONFIG_FILE, SUMMARY_FILE, SEEDS_FILE, "checkpoints")
    found = [name for name in names if (run_dir / name).exists()]
    if found:
        raise FileExistsError(
            f"output_dir={str(run_dir)!r} already holds a run ({', '.join(found)}). Go on with it "
            f"by resume={run_dir}, or choose another output_dir; nothing was changed."
        )
