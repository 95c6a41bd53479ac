"""Unit commitment: which units run, and how much each gives."""

from hpo_torchrl.problems.unit_commitment.env import UnitCommitmentEnv
from hpo_torchrl.problems.unit_commitment.units import Units

__all__ = ["UnitCommitmentEnv", "Units"]
