"""The loss of several independent policies at once."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from hpo_torchrl.objectives.hpo import HPOLoss


class StackedHPOLoss(HPOLoss):
    """:class:`HPOLoss` of S policies and critics, on data whose first dimension is S.

    Every mean and every deviation is taken over each member's own data: a term holds S losses,
    whose sum has for each member the gradient of its loss alone.

    Args:
        actor_network: the policies as one, see :class:`~hpo_torchrl.modules.stacked.ModuleStack`.
        critic_network: the critics, likewise.
        options: further arguments of :class:`HPOLoss`. Advantages must be in the data, and
            ``cross_term="adaptive"`` has no such form.

    Returns:
        The tensordict of :class:`HPOLoss`, each entry ``(S,)``.
    """

    def __init__(self, actor_network: Any, critic_network: Any, **options: Any) -> None:
        super().__init__(actor_network, critic_network, functional=False, **options)
        if self.cross_term == "adaptive":
            raise ValueError(
                "cross_term='adaptive' weighs one policy's gradients and has no form for several; "
                "use True or False."
            )

    def _value_where(self, ends: Tensor, after: TensorDictBase) -> Tensor:
        # Of all systems at the steps where any ends, so that members keep to their rows.
        steps = ends.flatten(0, -2).any(0).nonzero().squeeze(-1)
        value = self._value(after[..., steps], held=True).squeeze(-1)
        value = torch.where(ends[..., steps], value, 0.0)
        return value.new_zeros(ends.shape).index_copy(-1, steps, value)

    def _reduce_loss(self, loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return loss.flatten(1).mean(1)

    def _mean(self, value: Tensor, held: TensorDictBase) -> Tensor:
        mean = self._reduce_loss(value)
        return mean.reshape(-1, *(1,) * (value.ndim - 1))  # beside the data that it is the mean of

    def _finish(self, *args: Any) -> TensorDict:
        return super()._finish(*args).apply(Tensor.flatten)
