"""What every algorithm is to the trainer."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from hpo_torchrl.core.checks import accepted

Metrics = dict[str, float]


class NonFiniteError(RuntimeError):
    """A loss, gradient or batch entry became NaN or infinite; the message names it.

    Attributes:
        seed_index: place of the seed among those trained together; ``None`` in an ordinary run.
    """

    def __init__(self, message: str, seed_index: int | None = None) -> None:
        super().__init__(message)
        self.seed_index = seed_index


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
            NonFiniteError: a loss or gradient is not finite; no parameter has been changed by it.
        """

    @abc.abstractmethod
    def anneal(self, progress: float) -> None:
        """Set scheduled coefficients for ``progress`` in [0, 1] of the run."""

    @abc.abstractmethod
    def components(self, seed_index: int | None = None) -> dict[str, Any]:
        """Return what a checkpoint of one seed holds: by name, objects with ``state_dict``."""

    def iterate(self) -> Metrics | list[Metrics]:
        """Collect a batch and update."""
        return self.update(self.collector.collect())


class SeedState:
    """The buffers of one seed in a module whose buffers are ``(S, ...)``, for its checkpoint."""

    def __init__(self, module: nn.Module, seed_index: int) -> None:
        self._module, self._index = module, seed_index

    def state_dict(self) -> dict[str, Tensor]:
        """Return the seed's buffers."""
        return {name: value[self._index] for name, value in self._module.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the seed's buffers."""
        for name, value in self._module.state_dict().items():
            value[self._index] = state[name]


def build_loss(
    algorithm: Any,
    factory: Callable[..., LossModule],
    chosen: Mapping[str, Any],
    **others: Any,
) -> LossModule:
    """Build an algorithm's loss of policy and critic from the coefficients that it takes.

    Args:
        algorithm: has ``policy``, ``critic``, ``discount`` and ``gae_lambda``.
        factory: a loss class, or any callable ``(policy, critic, **coefficients)``.
        chosen: coefficients that are arguments of the algorithm, by their names.
        others: further coefficients.

    Raises:
        ValueError: the loss does not take a coefficient that was changed from its default.
    """
    known = accepted(factory)
    for name, value in chosen.items():
        default = accepted(type(algorithm))[name].default
        if name not in known and value != default:
            raise ValueError(
                f"The loss {getattr(factory, '__name__', factory)} takes no {name}, got "
                f"{name}={value!r}; leave it at {default!r}, or let the loss take it."
            )
    given = {name: value for name, value in {**others, **chosen}.items() if name in known}
    loss = factory(algorithm.policy, algorithm.critic, **given)
    if loss.default_value_estimator is not None:
        loss.make_value_estimator(gamma=algorithm.discount, lmbda=algorithm.gae_lambda)
    return loss
