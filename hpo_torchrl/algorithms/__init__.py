"""Algorithms: each collects and updates in one small class."""

from hpo_torchrl.algorithms.base import Algorithm, NonFiniteError
from hpo_torchrl.algorithms.ddpg import DDPG
from hpo_torchrl.algorithms.hpo import HPO
from hpo_torchrl.algorithms.learner import Learner
from hpo_torchrl.algorithms.pathwise import GumbelSoftmax, Pathwise
from hpo_torchrl.algorithms.population import HPOPopulation
from hpo_torchrl.algorithms.ppo import PPO
from hpo_torchrl.algorithms.rules import (
    FixedModeRule,
    OrderUpToRule,
    RSRule,
    Rule,
    SSRule,
    recorded_rule,
)

__all__ = [
    "DDPG",
    "HPO",
    "PPO",
    "Algorithm",
    "FixedModeRule",
    "GumbelSoftmax",
    "HPOPopulation",
    "Learner",
    "NonFiniteError",
    "OrderUpToRule",
    "Pathwise",
    "RSRule",
    "Rule",
    "SSRule",
    "recorded_rule",
]
