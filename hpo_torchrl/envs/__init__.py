"""Environments: batched, differentiable, with hybrid actions."""

from hpo_torchrl.envs.differentiable import DifferentiableEnv
from hpo_torchrl.envs.inventory import InventoryEnv
from hpo_torchrl.envs.switched_lqr import SwitchedLQREnv

__all__ = ["DifferentiableEnv", "InventoryEnv", "SwitchedLQREnv"]
