"""The problems that the library ships, each with its optimum, rules and pictures."""

from hpo_torchrl.problems.inventory import (
    ContinuousInventoryEnv,
    InventoryEnv,
    OrderUpToPolicy,
    PeriodicPolicy,
    RecordedInventoryEnv,
    TotalDemandPolicy,
)
from hpo_torchrl.problems.switched_lqr import FixedModePolicy, SwitchedLQREnv

__all__ = [
    "ContinuousInventoryEnv",
    "FixedModePolicy",
    "InventoryEnv",
    "OrderUpToPolicy",
    "PeriodicPolicy",
    "RecordedInventoryEnv",
    "SwitchedLQREnv",
    "TotalDemandPolicy",
]
