"""Rules that need no training, as algorithms: run and reported like any other."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from hpo_torchrl.algorithms.base import Algorithm
from hpo_torchrl.core.checks import did_you_mean


class _NoCollector:
    """Stands for a collector where nothing is collected."""

    frames = 0

    def shutdown(self) -> None:
        """Nothing is open."""


class Rule(Algorithm):
    """A rule of the environment's own: its best numbers, computed, and no training.

    Args:
        env: the environment; its :meth:`~hpo_torchrl.envs.DifferentiableEnv.rules` has the rules.
        policy: not used; it is taken so that every algorithm is built alike.
        critic: not used.
        rule: name of the rule.

    Raises:
        ValueError: the environment has no such rule, or the instance is beyond its formulas.

    Examples:
        >>> from hpo_torchrl.algorithms import Rule
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> rule = Rule(InventoryEnv(batch_size=4), rule="s_S").policy
        >>> rule.Q, rule.S.tolist()
        (36.0, [62.0])
    """

    learns = False

    def __init__(self, env: EnvBase, policy: Any = None, critic: Any = None, *, rule: str) -> None:
        self.env, self.collector = env, _NoCollector()
        known = env.rules() if hasattr(env, "rules") else {}
        if rule not in known:
            has = f"its rules are {', '.join(map(repr, known))}" if known else "it has no rules"
            raise ValueError(
                f"{type(env).__name__} has no rule {rule!r}: {has}.{did_you_mean(rule, known)} "
                "Choose one of these, or another algorithm or environment."
            )
        self.policy = known[rule]()

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Do nothing: a rule does not learn."""
        return {}

    def anneal(self, progress: float) -> None:
        """Do nothing."""

    def components(self, seed_index: int | None = None) -> dict[str, Any]:
        """Return the rule."""
        return {"policy": self.policy}
