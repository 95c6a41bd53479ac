"""The algorithm as the trainer sees it; and rules, which need no training."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase

from hpo_torchrl.core.checks import did_you_mean

Metrics = dict[str, float]


class Algorithm(abc.ABC):
    """Collects a batch and updates a policy; the trainer owns time, logging and files.

    Attributes:
        policy: the policy in training: a :class:`HybridPolicy`, or a rule's module.
        collector: where its batches come from; has ``collect``, ``frames``, ``state_dict``,
            ``load_state_dict`` and ``shutdown``.
        learns: whether there is anything to train.
        differentiable: whether its batches carry the simulator's graph, so that
            :class:`~hpo_torchrl.diagnostics.GradientSampler` can measure it.
        num_seeds: number S of seeds trained together; ``None`` in an ordinary run.
    """

    policy: Any
    collector: Any
    learns = True
    differentiable = False
    num_seeds: int | None = None

    @abc.abstractmethod
    def update(self, batch: TensorDictBase) -> Metrics | list[Metrics]:
        """Update the policy from one batch and return what is worth logging, for each seed.

        Raises:
            NonFiniteError: a reward, a loss, a gradient or a weight is not finite.
        """

    @abc.abstractmethod
    def anneal(self, progress: float) -> None:
        """Set scheduled coefficients for ``progress`` in [0, 1] of the run."""

    @abc.abstractmethod
    def components(self, seed_index: int | None = None) -> dict[str, Any]:
        """Return what a checkpoint of one seed holds: by name, objects with ``state_dict``."""

    def scouting(self, num_updates: int) -> int:
        """Return how many updates are tried before a run begins, for :meth:`measure`."""
        return 0

    def measure(self) -> None:
        """Adapt what is fixed in a run to what scouting has shown."""
        raise NotImplementedError

    def imitate_rule(self) -> bool:
        """Imitate a rule before a run begins, if one is asked for; return whether it is."""
        return False

    def gather_last_batch(self) -> None:  # noqa: B027
        """Let the last batch be that of all ranks, if ranks share it; optional."""

    def release(self) -> None:  # noqa: B027
        """End the processes that training began, if there are any; optional."""

    def starts(self, num_updates: int) -> tuple[int, int]:
        """Return from how many starts a run may choose, and after how many updates it does.

        See :func:`~hpo_torchrl.training.starts.choose_start`.
        """
        return 1, 0

    def begin(self, start: int | None) -> Metrics | list[Metrics]:
        """Begin one of the :meth:`starts`, or the run itself; return what is worth logging."""
        return {}

    def iterate(self) -> Metrics | list[Metrics]:
        """Collect a batch and update."""
        return self.update(self.collector.collect())


class SeedState:
    """The buffers of one seed in a module whose buffers are ``(S, ...)``, for its checkpoint.

    In an ordinary run, for an index of ``None``, all of them.
    """

    def __init__(self, module: nn.Module, seed_index: int | None) -> None:
        self._module, self._index = module, ... if seed_index is None else seed_index

    def state_dict(self) -> dict[str, Tensor]:
        """Return the seed's buffers."""
        return {name: value[self._index] for name, value in self._module.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the seed's buffers."""
        for name, value in self._module.state_dict().items():
            value[self._index] = state[name]


def rule_of(env: Any, name: str) -> Callable[[], nn.Module]:
    """Return what computes a rule of an environment.

    Raises:
        ValueError: the environment has no such rule.
    """
    known = env.rules() if hasattr(env, "rules") else {}
    if name not in known:
        has = f"its rules are {', '.join(map(repr, known))}" if known else "it has no rules"
        raise ValueError(
            f"{type(env).__name__} has no rule {name!r}: {has}.{did_you_mean(name, known)} "
            "Choose one of these, or another algorithm or environment."
        )
    return known[name]


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
        self.env, self.collector = env, SimpleNamespace(frames=0, shutdown=lambda: None)
        self.policy = rule_of(env, rule)()

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Do nothing: a rule does not learn."""
        return {}

    def anneal(self, progress: float) -> None:
        """Do nothing."""

    def components(self, seed_index: int | None = None) -> dict[str, Any]:
        """Return the rule."""
        return {"policy": self.policy}
