"""Several seeds of one configuration as one computation: ``hpo-train num_seeds=16``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.run import make_trainer, start
from hpo_torchrl.experiments.threads import set_threads
from hpo_torchrl.training import Callback, RunFolder


def train_seeds(
    config: Mapping[str, Any],
    folder: str | Path,
    num_seeds: int,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, Any]]:
    """Train as many seeds as one computation, each into the folder of an ordinary run.

    The seeds are that of the configuration and those after it. Each run is what
    :func:`~hpo_torchrl.experiments.run.train_run` makes of its seed, up to rounding, and its folder
    is as good: it can be evaluated, compared, and gone on with by itself.

    Args:
        config: the resolved configuration of the first seed.
        folder: where the runs go: ``seed=0``, ``seed=1``, ...
        num_seeds: number of seeds.
        resume: go on from the newest checkpoint that all have.
        callbacks: what else happens; see :class:`~hpo_torchrl.training.Callback`.

    Returns:
        The summary of each run, by seed.

    Raises:
        FileExistsError: a folder already holds a run.
        TypeError: the algorithm or environment cannot be batched; a value has the wrong type.
        ValueError: a value of the configuration is refused.
        CheckpointError: the runs cannot be resumed.
        NonFiniteError: training met NaN or infinity.
    """
    check_int("num_seeds", num_seeds, minimum=1)
    first = check_int("seed", config["seed"], minimum=0)
    if (own := config["env"].get("seed")) is not None:
        raise ValueError(
            f"num_seeds trains seeds {first} and up, but env.seed={own!r} would be one for all; "
            "leave env.seed out."
        )
    seeds = list(range(first, first + num_seeds))
    whole = RunFolder(folder)
    folders = [whole.of_seed(seed) for seed in seeds]
    if not resume:
        for place in (whole, *folders):
            place.check_new()
    set_threads(config)
    configs = [{**config, "seed": seed} for seed in seeds]
    paths = [place.path for place in folders]
    algorithm = build_algorithm(config, seeds=seeds)
    trainer = make_trainer(configs, paths, algorithm, build_tests(config), callbacks=callbacks)
    if not resume:
        whole.write_seeds(seeds)
    return start(trainer, resume=resume)
