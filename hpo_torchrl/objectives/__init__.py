"""Loss modules."""

from hpo_torchrl.objectives.base import HybridLossModule
from hpo_torchrl.objectives.hpo import HPOLoss

__all__ = ["HPOLoss", "HybridLossModule"]
