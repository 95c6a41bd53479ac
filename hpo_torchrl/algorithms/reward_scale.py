"""One running scale for all rewards, so that every gradient term shares it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpo_torchrl.objectives.base import unsqueeze_like


class RewardScaler(nn.Module):
    r"""Divide rewards by a running standard deviation.

    Advantages, value targets and the pathwise term inherit the scale. With :math:`m_b, v_b` the
    mean and variance of a batch, :math:`w \leftarrow \beta w + 1 - \beta` and
    :math:`\eta = (1 - \beta) / w`,

    .. math::
        v \leftarrow (1 - \eta)\, v + \eta\, (v_b + (1 - \eta) (m_b - m)^2), \qquad
        m \leftarrow m + \eta\, (m_b - m).

    Args:
        decay: weight :math:`\beta` of the past; 0 uses each batch alone.
        num_seeds: number S of runs on a leading axis, each with a scale of its own; ``None`` is a
            single run without that axis.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99, *, num_seeds: int | None = None) -> None:
        super().__init__()
        self.decay, self.num_seeds = decay, num_seeds
        shape = () if num_seeds is None else (num_seeds,)
        for name in ("mean", "variance", "weight"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, reward: Tensor) -> None:
        """Take a batch of rewards into the running moments."""
        rows = reward.detach().double().reshape(*self.mean.shape, -1)
        self.weight.mul_(self.decay).add_(1.0 - self.decay)
        share = (1.0 - self.decay) / self.weight
        shift = rows.mean(-1) - self.mean
        self.variance.lerp_(rows.var(-1, correction=0) + (1.0 - share) * shift**2, share)
        self.mean.add_(share * shift)

    @property
    def scale(self) -> Tensor:
        """The running standard deviation; where rewards do not vary, their size."""
        deviation, size = self.variance.sqrt(), self.mean.abs()
        return torch.where(deviation > 1e-6 * size, deviation, size).clamp_min(1e-8)

    def forward(self, reward: Tensor) -> Tensor:
        """Return the scaled rewards; gradients flow."""
        return reward / unsqueeze_like(self.scale.to(reward.dtype), reward)
