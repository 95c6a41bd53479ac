"""Loss modules."""

from hpo_torchrl.objectives.base import HybridLossModule
from hpo_torchrl.objectives.cross_term import CrossTermWeight
from hpo_torchrl.objectives.hpo import HPOLoss
from hpo_torchrl.objectives.learned_critic import LearnedCriticLoss

__all__ = ["CrossTermWeight", "HPOLoss", "HybridLossModule", "LearnedCriticLoss"]
