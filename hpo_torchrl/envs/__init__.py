"""Environments: batched, differentiable, with hybrid actions."""

from hpo_torchrl.envs.differentiable import DifferentiableEnv
from hpo_torchrl.envs.inventory import InventoryEnv

__all__ = ["DifferentiableEnv", "InventoryEnv"]
