"""Unit commitment: which units run, and how much each gives."""

from hpo_torchrl.problems.unit_commitment.env import UnitCommitmentEnv
from hpo_torchrl.problems.unit_commitment.optimum import solve
from hpo_torchrl.problems.unit_commitment.schedule import Schedule
from hpo_torchrl.problems.unit_commitment.units import Units, kazarlis_demand

__all__ = ["Schedule", "UnitCommitmentEnv", "Units", "kazarlis_demand", "solve"]
