"""What every algorithm is to the trainer."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn


class NonFiniteError(RuntimeError):
    """A loss, gradient or batch entry became NaN or infinite; the message names it."""


class Algorithm(abc.ABC):
    """Collects a batch and updates a policy; the trainer owns time, logging and files.

    Attributes:
        policy: the policy in training: a :class:`HybridPolicy`, or a rule's module.
        collector: where its batches come from; has ``collect``, ``frames``, ``state_dict``,
            ``load_state_dict`` and ``shutdown``.
        learns: whether there is anything to train.
    """

    policy: Any
    collector: Any
    learns = True

    @abc.abstractmethod
    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Update the policy from one batch and return what is worth logging.

        Raises:
            NonFiniteError: a loss or gradient is not finite; no parameter has been changed by it.
        """

    @abc.abstractmethod
    def anneal(self, progress: float) -> None:
        """Set scheduled coefficients for ``progress`` in [0, 1] of the run."""

    @abc.abstractmethod
    def components(self) -> dict[str, Any]:
        """Return what a checkpoint holds: by name, objects with ``state_dict``."""

    def iterate(self) -> dict[str, float]:
        """Collect a batch and update."""
        return self.update(self.collector.collect())


class RewardScaler(nn.Module):
    """One running scale for all rewards, so that every gradient term shares it.

    Rewards are divided by a running standard deviation, which advantages, value targets and the
    pathwise term then inherit.

    Args:
        decay: weight of the past in the running mean and variance; 0 uses each batch alone.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        for name in ("mean", "variance", "weight"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def observe(self, reward: Tensor) -> None:
        """Take a batch of rewards into the running moments."""
        reward = reward.detach().double()
        self.weight.mul_(self.decay).add_(1.0 - self.decay)
        share = (1.0 - self.decay) / self.weight
        shift = reward.mean() - self.mean
        self.variance.lerp_(reward.var(correction=0) + (1.0 - share) * shift**2, share)
        self.mean.add_(share * shift)

    @property
    def scale(self) -> Tensor:
        """The running standard deviation; of rewards that do not vary, their size."""
        deviation, size = self.variance.sqrt(), self.mean.abs()
        return torch.where(deviation > 1e-6 * size, deviation, size).clamp_min(1e-8)

    def forward(self, reward: Tensor) -> Tensor:
        """Return the scaled rewards; gradients flow."""
        return reward / self.scale.to(reward.dtype)


def clip_gradients(
    groups: Mapping[str, Mapping[str, nn.Parameter]], max_norm: float
) -> dict[str, float]:
    """Clip the gradient of each component to ``max_norm`` and return the norms before.

    Args:
        groups: parameters by name, by component.
        max_norm: largest norm of a component's gradient.

    Raises:
        NonFiniteError: a gradient is not finite; the message names component and parameters.
    """
    totals = {}
    for component, parameters in groups.items():
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        if gradients:
            totals[component] = nn.utils.get_total_norm(gradients)
    norms = numbers(totals)
    for component, norm in norms.items():
        if not math.isfinite(norm):
            named = groups[component].items()
            bad = [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
            what = ", ".join(bad) if bad else "its norm overflows"
            raise NonFiniteError(f"The gradient of the {component} network is not finite: {what}.")
    for component, total in totals.items():
        nn.utils.clip_grads_with_norm_(groups[component].values(), max_norm, total)
    return norms


def numbers(terms: TensorDictBase | Mapping[str, Tensor]) -> dict[str, float]:
    """Return scalars as numbers; the host waits for all of them once."""
    names = list(terms.keys())
    if not names:
        return {}
    values = torch.stack([terms[name].detach().double().reshape(()) for name in names])
    return dict(zip(names, values.tolist(), strict=True))


def check_finite(terms: TensorDictBase | Mapping[str, Tensor]) -> None:
    """Raise a :class:`NonFiniteError` that names the first entry that is NaN or infinite."""
    if bool(torch.stack([value.isfinite().all() for value in terms.values()]).all()):
        return
    for key, value in terms.items():
        if not bool(value.isfinite().all()):
            raise NonFiniteError(f"{key} is not finite: {value.detach().mean().item()}.")
