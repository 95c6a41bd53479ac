"""The hybrid policy, its distribution and its networks."""

from hpo_torchrl.modules.continuous import ActionRange, ContinuousDistribution
from hpo_torchrl.modules.critics import make_q_network, make_value_network
from hpo_torchrl.modules.distribution import HybridDistribution
from hpo_torchrl.modules.network import HybridNetwork
from hpo_torchrl.modules.policy import HybridAction, HybridPolicy, HybridSampler
from hpo_torchrl.modules.replicate import replicate
from hpo_torchrl.modules.rule import RulePolicy

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
