"""The switched linear-quadratic regulator: environment, exact optimum and fixed modes."""

from hpo_torchrl.problems.switched_lqr.env import SwitchedLQREnv
from hpo_torchrl.problems.switched_lqr.optimum import (
    SwitchedLQROptimum,
    fixed_mode_cost,
    fixed_mode_gains,
    switched_lqr_optimum,
)

__all__ = [
    "SwitchedLQREnv",
    "SwitchedLQROptimum",
    "fixed_mode_cost",
    "fixed_mode_gains",
    "switched_lqr_optimum",
]
