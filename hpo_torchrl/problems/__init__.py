"""The problems that the library ships, each with its optimum, rules and pictures."""

from hpo_torchrl.problems.inventory import InventoryEnv, InventoryFamily
from hpo_torchrl.problems.storage import StorageEnv
from hpo_torchrl.problems.switched_lqr import SwitchedLQREnv
from hpo_torchrl.problems.unit_commitment import UnitCommitmentEnv

__all__ = ["InventoryEnv", "InventoryFamily", "StorageEnv", "SwitchedLQREnv", "UnitCommitmentEnv"]
