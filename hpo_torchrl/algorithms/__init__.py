"""Algorithms: each collects and updates in one small class."""

from hpo_torchrl.algorithms.base import Algorithm, NonFiniteError
from hpo_torchrl.algorithms.hpo import HPO

__all__ = ["HPO", "Algorithm", "NonFiniteError"]
