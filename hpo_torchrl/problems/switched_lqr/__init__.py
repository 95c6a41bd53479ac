"""The switched linear-quadratic regulator: environment, exact optimum and fixed modes."""

from hpo_torchrl.problems.switched_lqr.env import SwitchedLQREnv
from hpo_torchrl.problems.switched_lqr.optimum import SwitchedLQRPolicy, switched_lqr_optimum
from hpo_torchrl.problems.switched_lqr.system import FixedModePolicy, fixed_mode_cost

__all__ = [
    "FixedModePolicy",
    "SwitchedLQREnv",
    "SwitchedLQRPolicy",
    "fixed_mode_cost",
    "switched_lqr_optimum",
]
