"""What every algorithm is to the trainer."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from hpo_torchrl.modules import HybridPolicy


class NonFiniteError(RuntimeError):
    """A loss, gradient or batch entry became NaN or infinite; the message names it."""


class Algorithm(abc.ABC):
    """Collects a batch and updates a policy; the trainer owns time, logging and files.

    Attributes:
        policy: the policy in training.
        collector: where its batches come from; has ``collect``, ``frames``, ``state_dict``,
            ``load_state_dict`` and ``shutdown``.
    """

    policy: HybridPolicy
    collector: Any

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
        self.variance.lerp_(reward.var() + (1.0 - share) * shift**2, share)
        self.mean.add_(share * shift)

    def forward(self, reward: Tensor) -> Tensor:
        """Return the scaled rewards; gradients flow."""
        return reward / self.variance.sqrt().clamp_min(1e-8).to(reward.dtype)


def clip_gradients(
    groups: Mapping[str, Iterable[nn.Parameter]], max_norm: float
) -> dict[str, float]:
    """Clip the gradient of each component to ``max_norm`` and return the norms before.

    Raises:
        NonFiniteError: a gradient is not finite; the message names the component and parameter.
    """
    norms = {}
    for name, parameters in groups.items():
        held = [parameter for parameter in parameters if parameter.grad is not None]
        if not held:
            continue
        norm = float(nn.utils.clip_grad_norm_(held, max_norm))
        if not norm < float("inf"):
            shapes = [
                tuple(parameter.shape)
                for parameter in held
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
            ]
            raise NonFiniteError(
                f"The gradient of the {name} network is not finite (parameters of shape {shapes})."
            )
        norms[name] = norm
    return norms


def check_finite(terms: TensorDictBase | Mapping[str, Tensor]) -> None:
    """Raise a :class:`NonFiniteError` that names the first entry that is NaN or infinite."""
    for key, value in terms.items():
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(f"{key} is not finite: {value.detach().mean().item()}.")
