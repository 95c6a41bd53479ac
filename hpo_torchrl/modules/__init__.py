"""The hybrid policy, its distribution and its networks."""

from hpo_torchrl.modules.critics import make_q_network, make_value_network
from hpo_torchrl.modules.distribution import HybridDistribution
from hpo_torchrl.modules.networks import HybridNetwork
from hpo_torchrl.modules.policy import HybridAction, HybridPolicy, HybridSampler
from hpo_torchrl.modules.rules import (
    FixedModePolicy,
    OrderUpToPolicy,
    PeriodicPolicy,
    TotalDemandPolicy,
)

__all__ = [
    "FixedModePolicy",
    "HybridAction",
    "HybridDistribution",
    "HybridNetwork",
    "HybridPolicy",
    "HybridSampler",
    "OrderUpToPolicy",
    "PeriodicPolicy",
    "TotalDemandPolicy",
    "make_q_network",
    "make_value_network",
]
