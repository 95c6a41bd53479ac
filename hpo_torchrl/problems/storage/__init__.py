"""Storage of energy: batteries on a wandering price, with optima, bounds and rules."""

from hpo_torchrl.problems.storage.batteries import Batteries
from hpo_torchrl.problems.storage.env import StorageEnv

__all__ = ["Batteries", "StorageEnv"]
