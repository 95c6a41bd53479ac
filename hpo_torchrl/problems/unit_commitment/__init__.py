"""Unit commitment: which units run, and how much each gives."""

from hpo_torchrl.problems.unit_commitment.env import UnitCommitmentEnv
from hpo_torchrl.problems.unit_commitment.milp import Schedule, solve
from hpo_torchrl.problems.unit_commitment.units import Units, kazarlis_demand

__all__ = ["Schedule", "UnitCommitmentEnv", "Units", "kazarlis_demand", "solve"]
