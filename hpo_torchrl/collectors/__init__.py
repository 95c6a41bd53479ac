"""Differentiable data: rollouts and a collector that keep the graph."""

from hpo_torchrl.collectors.branching import branched_returns
from hpo_torchrl.collectors.collector import DifferentiableCollector, SampleCollector
from hpo_torchrl.collectors.ray_workers import RayCollector
from hpo_torchrl.collectors.rollout import Rollout, differentiable_rollout, straight_through_rollout

__all__ = [
    "DifferentiableCollector",
    "RayCollector",
    "Rollout",
    "SampleCollector",
    "branched_returns",
    "differentiable_rollout",
    "straight_through_rollout",
]
