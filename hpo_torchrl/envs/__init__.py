"""Environments: batched, differentiable, with hybrid actions."""

from hpo_torchrl.core.pieces import Breakpoint, Gap, Piece, Pieces
from hpo_torchrl.envs.certificate import Certificate, Jump, certify, find_jumps
from hpo_torchrl.envs.differentiable import DifferentiableEnv
from hpo_torchrl.envs.hybridize import HybridizedEnv, PiecewiseAction, hybridize
from hpo_torchrl.envs.replicated import ReplicatedEnv

__all__ = [
    "Breakpoint",
    "Certificate",
    "DifferentiableEnv",
    "Gap",
    "HybridizedEnv",
    "Jump",
    "Piece",
    "Pieces",
    "PiecewiseAction",
    "ReplicatedEnv",
    "certify",
    "find_jumps",
    "hybridize",
]
