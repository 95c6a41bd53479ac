"""Algorithms: each collects and updates in one small class."""

from hpo_torchrl.algorithms.base import Algorithm, Rule
from hpo_torchrl.algorithms.ddpg import DDPG
from hpo_torchrl.algorithms.hpo import HPO
from hpo_torchrl.algorithms.learner import Learner
from hpo_torchrl.algorithms.pathwise import GumbelSoftmax, Pathwise
from hpo_torchrl.algorithms.ppo import PPO
from hpo_torchrl.core.finite import NonFiniteError

__all__ = [
    "DDPG",
    "HPO",
    "PPO",
    "Algorithm",
    "GumbelSoftmax",
    "Learner",
    "NonFiniteError",
    "Pathwise",
    "Rule",
]
