"""Differentiable data: rollouts and a collector that keep the graph."""

from hpo_torchrl.collectors.collector import DifferentiableCollector
from hpo_torchrl.collectors.rollout import differentiable_rollout

__all__ = ["DifferentiableCollector", "differentiable_rollout"]
