"""Hybrid Policy Optimization for discrete-continuous actions in differentiable simulators."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# The same names for type checkers.
# ruff: noqa: F401
if TYPE_CHECKING:
    from hpo_torchrl.algorithms import HPO, PPO
    from hpo_torchrl.collectors import DifferentiableCollector, differentiable_rollout
    from hpo_torchrl.diagnostics import exact_gradient, grid_optimum
    from hpo_torchrl.envs import DifferentiableEnv, certify, hybridize
    from hpo_torchrl.experiments.api import Run, load_policy, load_run, train
    from hpo_torchrl.modules import HybridPolicy, make_value_network
    from hpo_torchrl.objectives import HPOLoss
    from hpo_torchrl.training import Evaluation

__version__ = "0.1.0"

# Where a name comes from. It is imported when it is first used: torch takes seconds to load.
_ROOMS = {
    "algorithms": ("HPO", "PPO"),
    "collectors": ("DifferentiableCollector", "differentiable_rollout"),
    "diagnostics": ("exact_gradient", "grid_optimum"),
    "envs": ("DifferentiableEnv", "certify", "hybridize"),
    "experiments.api": ("Run", "load_policy", "load_run", "train"),
    "modules": ("HybridPolicy", "make_value_network"),
    "objectives": ("HPOLoss",),
    "training": ("Evaluation",),
}

__all__ = sorted(name for names in _ROOMS.values() for name in names)


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
