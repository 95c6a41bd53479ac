"""Environments: batched, differentiable, with hybrid actions."""

from hpo_torchrl.core.categorical import BranchBounds
from hpo_torchrl.envs.certificate import certify, find_jumps
from hpo_torchrl.envs.differentiable import DifferentiableEnv
from hpo_torchrl.envs.hybridize import HybridizedEnv, PiecewiseAction, hybridize
from hpo_torchrl.envs.pieces import Breakpoint, Gap, Pieces
from hpo_torchrl.envs.wrapped import RankEnv, ReplicatedEnv

__all__ = [
    "BranchBounds",
    "Breakpoint",
    "DifferentiableEnv",
    "Gap",
    "HybridizedEnv",
    "Pieces",
    "PiecewiseAction",
    "RankEnv",
    "ReplicatedEnv",
    "certify",
    "find_jumps",
    "hybridize",
]
