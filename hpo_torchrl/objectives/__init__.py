"""Loss modules."""

from hpo_torchrl.objectives.base import HybridLossModule
from hpo_torchrl.objectives.hpo import CrossTermWeight, HPOLoss
from hpo_torchrl.objectives.learned_critic import LearnedCriticLoss

__all__ = ["CrossTermWeight", "HPOLoss", "HybridLossModule", "LearnedCriticLoss"]
