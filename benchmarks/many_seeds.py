"""How much longer many seeds take as one computation than a single one.

    python benchmarks/many_seeds.py [--seeds 16] [--pairs 25] [--items 1] [--batch 64]
        [--compile]

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

from hpo_torchrl.algorithms import HPO
from hpo_torchrl.core.memory import keep_freed_memory
from hpo_torchrl.envs import ReplicatedEnv
from hpo_torchrl.modules import HybridPolicy, make_value_network, replicate
from hpo_torchrl.problems import InventoryEnv

# Updates of the single seed in a pair, so that both are measured for some time.
_REPEATED = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Many seeds as one computation, against one.")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--items", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64, help="instances of each seed")
    parser.add_argument("--compile", action="store_true", help="by XLA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as trainings do
    single, many = _build(given, 0), _build(given, range(given.seeds))
    for trained in (single, many):
        trained.anneal(0.0)
        trained.iterate()
    alone, together = [], []
    for _ in range(given.pairs):
        alone.append(_seconds(single.iterate, _REPEATED))
        together.append(_seconds(many.iterate, 1))
    ratios = [several / one for several, one in zip(together, alone, strict=True)]
    print(f"one seed         {1e3 * median(alone):.0f} ms an update")
    print(f"{given.seeds} seeds".ljust(17) + f"{1e3 * median(together):.0f} ms")
    print(f"ratio            {median(ratios):.2f}")


def _parts(given: argparse.Namespace, seed: int) -> tuple[Any, Any, Any]:
    torch.manual_seed(seed)
    env = InventoryEnv(
        num_items=given.items, batch_size=given.batch, initial_state="random", seed=seed
    )
    return env, HybridPolicy.for_env(env), make_value_network(env)


def _build(given: argparse.Namespace, seeds: int | range) -> Any:
    """One learner: of a single seed, or of many."""
    how = "xla" if given.compile else False
    if isinstance(seeds, int):
        return HPO(*_parts(given, seeds), seed=seeds, compile=how)
    envs, policies, critics = zip(*(_parts(given, seed) for seed in seeds), strict=True)
    networks = replicate(policies), replicate(critics)
    return HPO(ReplicatedEnv(envs), *networks, seed=seeds, compile=how)


def _seconds(action: Callable[[], Any], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - start) / times


if __name__ == "__main__":
    main()
