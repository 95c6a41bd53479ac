"""The rewards of a rollout know their graph: its discount, and whether it is used up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rewards are often rescaled before they reach a loss: so many steps back the rollout is looked for.
_STEPS = 8
_USED_UP = (
    "The graph of this batch is used up: a differentiable rollout serves once, for one backward "
    "pass. Collect another one; for further epochs on the same data, use a second loss with "
    "pathwise=False and cross_term=False, which needs no graph."
)


def check_unused(node: Any) -> None:
    """Raise a ``RuntimeError`` if what a node of a rollout's graph has saved is freed.

    Args:
        node: a node, or its context, that has saved something.
    """
    try:
        node.saved_tensors  # noqa: B018
    except RuntimeError as error:
        raise RuntimeError(_USED_UP) from error


class _Rolled(torch.autograd.Function):
    """The rewards themselves; what is saved is freed with the rest of the graph."""

    @staticmethod
    def forward(ctx: Any, reward: Tensor, discount: float) -> Tensor:
        ctx.discount = discount
        ctx.save_for_backward(reward.new_empty(0))
        return reward.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        check_unused(ctx)
        return gradient, None


def rolled(reward: Tensor, discount: float) -> Tensor:
    """Return the rewards of a rollout whose transitions carry a discount."""
    return _Rolled.apply(reward, discount)


def discount_of(reward: Tensor) -> float | None:
    """Return the discount of the rollout that rewards are of; ``None`` if it is not known.

    Raises:
        RuntimeError: gradients have been taken of that rollout, whose graph is freed.
    """
    node: Any = reward.grad_fn
    for _ in range(_STEPS):
        if getattr(node, "_forward_cls", None) is _Rolled:
            break
        node = next((before for before, _ in getattr(node, "next_functions", ()) if before), None)
    else:
        return None
    check_unused(node)
    return node.discount
