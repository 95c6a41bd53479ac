"""Algorithms: each collects and updates in one small class."""

from hpo_torchrl.algorithms.base import Algorithm, NonFiniteError, Rule
from hpo_torchrl.algorithms.ddpg import DDPG
from hpo_torchrl.algorithms.hpo import HPO
from hpo_torchrl.algorithms.learner import Learner
from hpo_torchrl.algorithms.pathwise import GumbelSoftmax, Pathwise
from hpo_torchrl.algorithms.ppo import PPO

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
