"""Hybrid Policy Optimization for discrete-continuous actions in differentiable simulators."""

__version__ = "0.1.0"
