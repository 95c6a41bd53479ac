"""Gymnasium in and out: its environments for TorchRL, and ours for its users."""

from hpo_torchrl.envs.gym.export import as_gymnasium, as_vector_env
from hpo_torchrl.envs.gym.spaces import HybridSpace
from hpo_torchrl.envs.gym.wrapper import GymHybridEnv

__all__ = ["GymHybridEnv", "HybridSpace", "as_gymnasium", "as_vector_env"]
