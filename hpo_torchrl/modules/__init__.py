"""The hybrid policy, its distribution and its networks."""

from hpo_torchrl.modules.action_range import ActionRange
from hpo_torchrl.modules.continuous import ContinuousDistribution
from hpo_torchrl.modules.critics import make_q_network, make_value_network
from hpo_torchrl.modules.distribution import HybridDistribution
from hpo_torchrl.modules.network import HybridNetwork
from hpo_torchrl.modules.policy import HybridAction, HybridPolicy
from hpo_torchrl.modules.replicate import replicate
from hpo_torchrl.modules.rule import RulePolicy
from hpo_torchrl.modules.sampler import HybridSampler

__all__ = [
    "ActionRange",
    "ContinuousDistribution",
    "HybridAction",
    "HybridDistribution",
    "HybridNetwork",
    "HybridPolicy",
    "HybridSampler",
    "RulePolicy",
    "make_q_network",
    "make_value_network",
    "replicate",
]
