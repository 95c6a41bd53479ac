"""The problems that the library ships, each with its optimum, rules and pictures."""

from hpo_torchrl.problems.inventory import InventoryEnv
from hpo_torchrl.problems.inventory.rules import OrderUpToPolicy, PeriodicPolicy, TotalDemandPolicy
from hpo_torchrl.problems.switched_lqr import SwitchedLQREnv
from hpo_torchrl.problems.switched_lqr.rules import FixedModePolicy

__all__ = [
    "FixedModePolicy",
    "InventoryEnv",
    "OrderUpToPolicy",
    "PeriodicPolicy",
    "SwitchedLQREnv",
    "TotalDemandPolicy",
]
