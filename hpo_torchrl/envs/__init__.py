"""Environments: batched, differentiable, with hybrid actions."""

from hpo_torchrl._pieces import Breakpoint, Gap, Piece, Pieces
from hpo_torchrl.envs.certificate import Certificate, certify
from hpo_torchrl.envs.continuous_inventory import ContinuousInventoryEnv
from hpo_torchrl.envs.differentiable import DifferentiableEnv
from hpo_torchrl.envs.hybridize import HybridizedEnv, PiecewiseAction, hybridize
from hpo_torchrl.envs.inventory import InventoryEnv
from hpo_torchrl.envs.jumps import Jump, find_jumps
from hpo_torchrl.envs.recorded import RecordedInventoryEnv
from hpo_torchrl.envs.switched_lqr import SwitchedLQREnv

__all__ = [
    "Breakpoint",
    "Certificate",
    "ContinuousInventoryEnv",
    "DifferentiableEnv",
    "Gap",
    "HybridizedEnv",
    "InventoryEnv",
    "Jump",
    "Piece",
    "Pieces",
    "PiecewiseAction",
    "RecordedInventoryEnv",
    "SwitchedLQREnv",
    "certify",
    "find_jumps",
    "hybridize",
]
