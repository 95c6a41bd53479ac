"""The problems that the library ships, each with its optimum, rules and pictures."""

from hpo_torchrl.problems.inventory import (
    InventoryEnv,
    OrderUpToPolicy,
    PeriodicPolicy,
    TotalDemandPolicy,
)
from hpo_torchrl.problems.switched_lqr import FixedModePolicy, SwitchedLQREnv

__all__ = [
    "FixedModePolicy",
    "InventoryEnv",
    "OrderUpToPolicy",
    "PeriodicPolicy",
    "SwitchedLQREnv",
    "TotalDemandPolicy",
]
