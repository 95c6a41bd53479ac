"""How far trained storage policies are from the plan of the fleet and from its bound, precisely.

A run's own test has the noise of some hundred days; this one has a hundred years of them.

python benchmarks/storage_gaps.py 20 runs/storage-seed-0 runs/storage-seed-1   # N, folders of runs
"""

import sys

import torch

from hpo_torchrl import Evaluation, load_policy
from hpo_torchrl.problems import StorageEnv
from hpo_torchrl.problems.storage.rules import PlanPolicy

INSTANCES, STEPS, SKIP, SEED = 1024, 864, 96, 5
PARTS = 8  # of the instances, whose differences give the error


def costs(policy, number):
    """Return what a policy costs in each part of the test."""
    return torch.tensor(
        [
            Evaluation(
                StorageEnv(number, batch_size=INSTANCES // PARTS),
                num_steps=STEPS,
                skip=SKIP,
                seed=seed,
            )
            .run(policy)
            .mean
            for seed in range(SEED, SEED + PARTS)
        ]
    )


def main(number: int, folders: list[str]) -> None:
    """Print the mean cost of the plan, its bound, and the gaps of the policies."""
    torch.set_num_threads(1)
    plan = PlanPolicy.best(StorageEnv(number))
    bound, base = plan.plan.cost, costs(plan, number)

    def said(values, unit):
        return f"{100 * values.mean() / unit:.2f} +- {100 * values.std() / unit / PARTS**0.5:.2f} %"

    size = abs(bound)
    print(f"bound {bound:.4f}; plan {base.mean():.4f}, above it by {said(base - bound, size)}")
    for folder in folders:
        found = costs(load_policy(folder), number)
        over = said(found - base, size)
        print(f"{folder}: above the plan by {over}, above the bound by {said(found - bound, size)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
