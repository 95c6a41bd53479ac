"""Gradients under the microscope: exact values, and what estimators make of them."""

from hpo_torchrl.diagnostics.estimators import ESTIMATORS, Draw, estimator
from hpo_torchrl.diagnostics.exact import BestResponse, ExactGradient, exact_gradient
from hpo_torchrl.diagnostics.grid import GridOptimum, grid_optimum, split_gap
from hpo_torchrl.diagnostics.report import GradientReport, gradient_report
from hpo_torchrl.diagnostics.sampler import GradientSampler
from hpo_torchrl.diagnostics.yardsticks import yardsticks

__all__ = [
    "ESTIMATORS",
    "BestResponse",
    "Draw",
    "ExactGradient",
    "GradientReport",
    "GradientSampler",
    "GridOptimum",
    "estimator",
    "exact_gradient",
    "gradient_report",
    "grid_optimum",
    "split_gap",
    "yardsticks",
]
