"""Count the updates that HPO needs to come within 1 % of the optimum, by choice of cross term.

    python benchmarks/cross_term_choice.py PROBLEM ... [--seeds 3] [--gap 0.01] [--out FILE]

Problems are ``inventoryN`` (N identical items, N <= 4, where value iteration gives the optimum) and
``lqrN`` (two modes, dimension N). Every choice of ``cross_term`` trains under the same seeds, with
the defaults otherwise. What counts is the first of three tests in a row within the gap; tests come
after every update once the policy is within 10 %, and after every fifth before.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time

import torch

from hpo_torchrl.core.reference import Reference
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.cli import compose_config
from hpo_torchrl.reporting import write_rows

CHOICES = (True, False, "adaptive")
# Long-run cost per item of identical items, by value iteration on the inventory positions.
INVENTORY = {
    "inventory1": 37.0644,
    "inventory2": 38.1397,
    "inventory3": 38.5078,
    "inventory4": 38.674,
}
IN_A_ROW = 3


def problem(name: str) -> list[str]:
    """Return the settings of a problem."""
    kind, number = re.fullmatch(r"(inventory|lqr)(\d+)", name).groups()
    if kind == "inventory":
        return [f"env.num_items={number}", "trainer.num_updates=300"]
    return [
        "env=switched_lqr",
        f"env.dim={number}",
        "collect.batch_size=128",
    ]


def updates_to_gap(name: str, choice: bool | str, seed: int, target: float) -> dict:
    """Train until the gap has been reached in three tests in a row."""
    settings = [*problem(name), f"seed={seed}", f"algorithm.cross_term={choice}".lower()]
    config = compose_config(settings)
    algorithm = build_algorithm(config)
    validation = build_tests(config)[2]
    known = {"optimal_cost": INVENTORY.get(name), "objective": "average"}
    reference = Reference(**known) if name in INVENTORY else validation.reference()
    start, total, row, near = time.perf_counter(), config["trainer"]["num_updates"], 0, False
    for update in range(total):
        algorithm.anneal(update / total)
        algorithm.iterate()
        if not near and update % 5:
            continue
        gap = reference.gaps(validation.run(algorithm.policy).mean, validation, algorithm)["gap"]
        near = near or gap < 0.1
        row = row + 1 if gap <= target else 0
        if row == IN_A_ROW:
            break
    reached = update + 2 - IN_A_ROW if row == IN_A_ROW else None
    seconds = round(time.perf_counter() - start, 1)
    found = {"problem": name, "cross_term": choice, "seed": seed, "updates": reached}
    return found | {"last_gap": round(gap, 5), "seconds": seconds}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="+", metavar="PROBLEM")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gap", type=float, default=0.01)
    parser.add_argument("--out", default="cross_term_choice.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in given.problems:
        for choice in CHOICES:
            for seed in range(given.seeds):
                rows.append(updates_to_gap(name, choice, seed, given.gap))
                print(rows[-1], flush=True)
            write_rows(given.out, rows)
    print(f"\n{'updates to the gap':<20}" + "".join(f"{choice!s:>24}" for choice in CHOICES))
    for name in given.problems:
        cells = ""
        for choice in CHOICES:
            counts = [
                row["updates"]
                for row in rows
                if row["problem"] == name and row["cross_term"] == choice
            ]
            known = [count if count is not None else float("inf") for count in counts]
            cells += f"{statistics.median(known):>6g} of {counts!s:<16}"
        print(f"{name:<20}{cells}")


if __name__ == "__main__":
    main()
