"""Draw how steep the choice becomes: the probability of an order, by stage of training.

    python benchmarks/steepness.py [--items 1 10 50] [--out docs/figures/steepness.png]

Each run of the paper's joint replenishment stops at a few stages and asks its policy in the same
random states. Against the mean inventory position of the items, a line is the mean probability of
an order, its band what eight tenths of the states with that position have: what else the choice
depends on. Dashed is where the best rule for total demand orders.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tensordict import TensorDictBase

from hpo_torchrl import train
from hpo_torchrl.core.figures import GREY, MODES, new_figure, save_figure
from hpo_torchrl.experiments.build import build_env
from hpo_torchrl.experiments.config import compose_config
from hpo_torchrl.problems.inventory.rules import TotalDemandPolicy
from hpo_torchrl.training import Callback

STAGES = (0.05, 0.15, 0.4, 0.7, 1.0)
INSTANCES, HIGHEST = 16384, 100.0  # states, and the highest position that is drawn
_FEWEST = 20  # states of a position, below which a line has no point


class Stages(Callback):
    """Records positions and probabilities at the stages of a run."""

    def __init__(self, states: TensorDictBase, num_updates: int) -> None:
        self.states = states
        self.due = {max(1, round(share * num_updates)): share for share in STAGES}
        self.seen: list[pd.DataFrame] = []

    def on_update_end(self, trainer: Any, row: Any) -> None:
        """Ask the policy, at a stage."""
        if (share := self.due.get(trainer.update)) is None:
            return
        policy = trainer.algorithm.policy
        with torch.no_grad():
            ordering = policy.discrete_logits(self.states).exp()[..., 1]
        position = self.states["inventory"].sum(-1).mean(-1).round()
        columns = {"position": position, "probability": ordering, "stage": share}
        self.seen.append(pd.DataFrame(columns))


def measure(items: int, updates: int) -> tuple[pd.DataFrame, float]:
    """Return what the stages of one run show, and the position below which the best rule orders."""
    named = ["env=paper/joint", f"env.num_items={items}"]
    facts: dict[str, Any] = {"initial_state": "random", "batch_size": INSTANCES, "seed": 1}
    env: Any = build_env(compose_config(named), **facts)
    stages = Stages(env.reset(), updates)
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {"num_updates": updates, "progress": False, "reference": "none"}
        train(named, callbacks=[stages], folder=Path(folder) / "run", **how)
    rule = TotalDemandPolicy.best(env)
    return pd.concat(stages.seen), float(rule.S.sum() - rule.Q) / items


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--updates", type=int, default=640)
    parser.add_argument("--out", default="docs/figures/steepness.png")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figure, [panels] = new_figure(1, len(given.items), share_x=False)
    for items, axes in zip(given.items, panels, strict=True):
        rows, threshold = measure(items, given.updates)
        for colour, (stage, seen) in zip(MODES, rows.groupby("stage"), strict=False):
            states = seen.groupby("position")["probability"]
            lines = states.quantile([0.1, 0.9]).unstack().assign(mean=states.mean())
            lines = lines[states.size() >= _FEWEST].loc[:HIGHEST]
            axes.plot(lines.index, lines["mean"], color=colour, label=f"{stage:.0%} of the updates")
            axes.fill_between(lines.index, lines[0.1], lines[0.9], color=colour, alpha=0.2, lw=0)
        axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1.0)
        axes.set(xlabel="mean inventory position", title=f"{items} item{'s' * (items > 1)}")
        axes.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel("probability of an order")
    panels[-1].legend(frameon=False, fontsize=8)
    print(f"written: {save_figure(figure, given.out)}")


if __name__ == "__main__":
    main()
