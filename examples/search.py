"""Search for settings with Optuna: python examples/search.py env.num_items=3 --trials 20.

Each trial is a training run in a folder of its own. The search minimises its validation cost, and
leaves the test alone. A trial that does worse than the median of the others is stopped early.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hpo_torchrl
from hpo_torchrl.training import Callback

try:
    import optuna
except ImportError as error:
    raise SystemExit("This needs Optuna: pip install 'hpo-torchrl[optuna]'") from error

# The interval of each setting that is searched, on a logarithmic scale, by algorithm.
SPACES: dict[str, dict[str, tuple[float, float]]] = {
    "hpo": {
        "algorithm.learning_rate": (3e-4, 1e-2),
        "algorithm.entropy_coeff": (1e-3, 1.0),
    },
    "ppo": {
        "algorithm.learning_rate": (1e-4, 1e-2),
        "algorithm.entropy_coeff": (1e-3, 1.0),
        "policy.scale": (0.02, 0.5),
    },
}


class Report(Callback):
    """Tell the trial what each evaluation says, and stop it where it is hopeless."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial, self.last = trial, 0

    def on_evaluation(self, trainer: Any, cost: Any) -> None:
        if trainer.update <= self.last:  # starts that are compared count their updates anew
            return
        self.last = trainer.update
        self.trial.report(cost.mean, trainer.update)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def main(argv: Sequence[str] | None = None) -> optuna.Study:
    parser = argparse.ArgumentParser(description="Search for settings with Optuna.")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as of hpo-train")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("runs/search"))
    parser.add_argument("--storage", help="such as sqlite:///search.db: goes on, and is shared")
    given = parser.parse_args(argv)
    settings = dict(text.split("=", 1) for text in given.settings)
    algorithm = settings.pop("algorithm", "hpo")
    fixed = [f"{key}={value}" for key, value in settings.items()]

    def objective(trial: optuna.Trial) -> float:
        space = SPACES[algorithm].items()
        drawn = {name: trial.suggest_float(name, *ends, log=True) for name, ends in space}
        run = hpo_torchrl.train(
            [*fixed, "evaluation.validation.seed=1", "reference=none"],
            algorithm,
            folder=given.folder / f"trial={trial.number}",
            callbacks=[Report(trial)],
            **{"trainer.progress": False, **drawn},
        )
        return run.summary["validation_cost"]

    study = optuna.create_study(
        study_name=f"{algorithm} {' '.join(fixed)}",
        storage=given.storage,
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=100),
    )
    study.optimize(objective, n_trials=given.trials)
    found = [f"{name}={value:.4g}" for name, value in study.best_params.items()]
    print(f"validation cost  {study.best_value:.4f}   trial {study.best_trial.number}")
    print(f"train with       hpo-train algorithm={algorithm} {' '.join([*fixed, *found])}")
    return study


if __name__ == "__main__":
    main()
