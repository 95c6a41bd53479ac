"""Loss modules."""

from hpo_torchrl.objectives.hpo import HPOLoss

__all__ = ["HPOLoss"]
