"""The hybrid policy, its distribution and its networks."""

from hpo_torchrl.modules.distribution import HybridDistribution
from hpo_torchrl.modules.networks import HybridNetwork, make_value_network
from hpo_torchrl.modules.policy import HybridAction, HybridPolicy, HybridSampler

__all__ = [
    "HybridAction",
    "HybridDistribution",
    "HybridNetwork",
    "HybridPolicy",
    "HybridSampler",
    "make_value_network",
]
