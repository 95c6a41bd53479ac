"""Exact optima that a learned policy can be measured against."""

from hpo_torchrl.oracles.s_S import optimal_s_S, s_S_cost
from hpo_torchrl.oracles.switched_lqr import (
    SwitchedLQROptimum,
    fixed_mode_cost,
    switched_lqr_optimum,
)

__all__ = [
    "SwitchedLQROptimum",
    "fixed_mode_cost",
    "optimal_s_S",
    "s_S_cost",
    "switched_lqr_optimum",
]
