"""The hybrid policy, its distribution and its networks."""

from hpo_torchrl.modules.action_range import ActionRange
from hpo_torchrl.modules.continuous import ContinuousDistribution
from hpo_torchrl.modules.deterministic import DeterministicPolicy
from hpo_torchrl.modules.layers import make_q_network, make_value_network
from hpo_torchrl.modules.network import HybridNetwork
from hpo_torchrl.modules.policy import HybridPolicy, RulePolicy
from hpo_torchrl.modules.replicate import replicate
from hpo_torchrl.modules.sampler import HybridSampler
from hpo_torchrl.modules.sampling import HybridDistribution
from hpo_torchrl.modules.set_net import SetNet
from hpo_torchrl.modules.smoothed import SmoothedNetwork

__all__ = [
    "ActionRange",
    "ContinuousDistribution",
    "DeterministicPolicy",
    "HybridDistribution",
    "HybridNetwork",
    "HybridPolicy",
    "HybridSampler",
    "RulePolicy",
    "SetNet",
    "SmoothedNetwork",
    "make_q_network",
    "make_value_network",
    "replicate",
]
