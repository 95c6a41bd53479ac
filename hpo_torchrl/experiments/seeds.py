"""Several seeds of one configuration as one computation: ``hpo-train num_seeds=16``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hpo_torchrl.algorithms import HPO, HPOPopulation
from hpo_torchrl.collectors.streams import Stream
from hpo_torchrl.core.checks import check_int, first_line
from hpo_torchrl.experiments.build import build_algorithm
from hpo_torchrl.experiments.run import (
    SEEDS_FILE,
    build_goals,
    check_new,
    finish_run,
    gradient_sizes,
    make_trainer,
    write_config,
)
from hpo_torchrl.experiments.threads import set_threads
from hpo_torchrl.training import CheckpointError
from hpo_torchrl.training.population import PopulationTrainer


def seed_folder(folder: str | Path, seed: int) -> Path:
    """Return the folder of one seed's run, in that of all."""
    return Path(folder) / f"seed={seed}"


def train_seeds(
    config: Mapping[str, Any], folder: str | Path, num_seeds: int, *, resume: bool = False
) -> list[dict[str, Any]]:
    """Train as many seeds as one computation, each into the folder of an ordinary run.

    The seeds are that of the configuration and those after it. Each run is what
    :func:`~hpo_torchrl.experiments.run.train_run` makes of its seed, up to rounding, and its
    folder is as
    good: it can be evaluated, compared, and gone on with by itself.

    Args:
        config: the resolved configuration of the first seed.
        folder: where the runs go: ``seed=0``, ``seed=1``, ...
        num_seeds: number of seeds.
        resume: go on from the newest checkpoint that all have.

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
    folder, first = Path(folder), check_int("seed", config["seed"], minimum=0)
    seeds = list(range(first, first + num_seeds))
    folders = [seed_folder(folder, seed) for seed in seeds]
    if not resume:
        for place in (folder, *folders):
            check_new(place)
    set_threads(config)
    configs = [with_seed(config, seed) for seed in seeds]
    members, streams = [], []
    for own in configs:
        members.append(_checked(build_algorithm(own)))
        streams.append(Stream(members[-1].env.device))
    population = HPOPopulation(members, streams, seeds)
    goals = build_goals(config)
    trainers = [
        make_trainer(own, run_dir, member, goals)
        for own, run_dir, member in zip(configs, folders, members, strict=True)
    ]
    gradients = gradient_sizes(config, members[0])
    training = PopulationTrainer(population, trainers)
    if resume:
        training.resume()
    else:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SEEDS_FILE).write_text(yaml.safe_dump({"seeds": seeds}))
        for own, run_dir in zip(configs, folders, strict=True):
            write_config(run_dir, own)
    summaries = training.train()
    finished = []
    for trainer, summary, stream in zip(trainers, summaries, streams, strict=True):
        with stream.in_place():  # pictures may draw, and as each run's own would
            finished.append(finish_run(trainer, summary, gradients))
    return finished


def with_seed(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the configuration of another seed, as ``seed=`` on the command line would give it.

    Raises:
        ValueError: the environment has a seed of its own.
    """
    env = config["env"]
    if env.get("seed", config["seed"]) != config["seed"]:
        raise ValueError(
            f"num_seeds trains seeds {config['seed']} and up, but env.seed={env['seed']!r} would "
            "be one for all; leave env.seed out."
        )
    return {**config, "seed": seed, "env": {**env, "seed": seed} if "seed" in env else {**env}}


def load_seeds(folder: str | Path) -> list[int] | None:
    """Return the seeds that a folder holds the runs of; ``None`` if it is no such folder.

    Raises:
        CheckpointError: the list of seeds is damaged.
    """
    path = Path(folder) / SEEDS_FILE
    if not path.is_file():
        return None
    try:
        seeds = yaml.safe_load(path.read_text())["seeds"]
        return [check_int("seeds", seed, minimum=0) for seed in seeds]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {first_line(error)}") from error


def _checked(algorithm: Any) -> HPO:
    if not isinstance(algorithm, HPO):
        raise ValueError(
            "num_seeds above 1 is of algorithm=hpo, whose seeds are trained as one computation, "
            f"got {type(algorithm).__name__}. Train its seeds one after another by "
            "--multirun seed=0,1,..."
        )
    return algorithm
