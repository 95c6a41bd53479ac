"""How much longer many seeds take as one computation than a single one.

    python benchmarks/many_seeds.py [--seeds 16] [--pairs 25] [KEY=VALUE ...]

Updates of both take turns in one process; printed are the medians of their processor time and of
the ratio within a pair. Tests, checkpoints and pictures are not in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from hpo_torchrl.collectors.streams import Stream

from hpo_torchrl.algorithms import HPOPopulation
from hpo_torchrl.experiments.build import build_algorithm
from hpo_torchrl.experiments.cli import compose_config

# Updates of the single seed in a pair, so that both are measured for some time.
_REPEATED = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Many seeds as one computation, against one.")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as of hpo-train")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=25)
    given = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    single = _build(given.settings, 0)
    members, streams = [], []
    for seed in range(given.seeds):
        members.append(_build(given.settings, seed))
        streams.append(Stream(members[-1].env.device))
    population = HPOPopulation(members, streams)
    for trained in (single, population):
        trained.anneal(0.0)
        trained.iterate()
    alone, together = [], []
    for _ in range(given.pairs):
        alone.append(_seconds(single.iterate, _REPEATED))
        together.append(_seconds(population.iterate, 1))
    ratios = [many / one for many, one in zip(together, alone, strict=True)]
    print(f"one seed         {1e3 * median(alone):.0f} ms an update")
    print(f"{given.seeds} seeds".ljust(17) + f"{1e3 * median(together):.0f} ms")
    print(f"ratio            {median(ratios):.2f}")


def _build(settings: list[str], seed: int) -> Any:
    return build_algorithm(compose_config([*settings, f"seed={seed}"]))


def _seconds(action: Callable[[], Any], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - start) / times


if __name__ == "__main__":
    main()
