"""Exact optima that a learned policy can be measured against."""

from hpo_torchrl.oracles.s_S import optimal_s_S, s_S_cost

__all__ = ["optimal_s_S", "s_S_cost"]
