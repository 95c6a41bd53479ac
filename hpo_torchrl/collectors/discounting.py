"""Gradients that shrink with every transition they pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Entries = Mapping[str, Tensor]


def discount_gradients(entries: Entries, discount: float) -> dict[str, Tensor]:
    """Return the entries with the gradients of those that have any multiplied by ``discount``.

    Their values stay the same to the last bit; only an infinite one becomes NaN.
    """
    if discount == 1.0:
        return dict(entries)
    # Between a value and itself, of which one end has a gradient: two operations of torch's own
    # take half the time of a function in Python, which could leave infinities alone.
    return {
        key: torch.lerp(value.detach(), value, discount) if value.requires_grad else value
        for key, value in entries.items()
    }


def before_and_after(states: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Return what steps start from and what they lead to, of a rollout without resets.

    Both are views of the same memory.

    Args:
        states: the start and what each step leads to, time first, T + 1 rows.
        discount: factor on the gradient through each transition.
    """
    before = states[:-1]
    if states.requires_grad and discount != 1.0:
        before = _ScaleByStep.apply(before, discount)
    return before, states[1:]


def stack_states(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack, time first, what steps start from and what they lead to, without resets.

    But for the start, what steps start from has the values of what the last one led to and a graph
    of its own. Both stacks are views of the same memory.

    Args:
        before: what each step starts from.
        after: what each step leads to.
    """
    if any(value.requires_grad for value in (before[0], *after)):
        return _StackStates.apply(len(before), *before, *after)
    states = torch.stack([before[0], *after])
    return states[:-1], states[1:]


class _StackStates(torch.autograd.Function):
    """Both stacks at once."""

    @staticmethod
    def forward(ctx: Any, number: int, *values: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.number = number
        states = torch.stack([values[0], *values[number:]])
        return states[:-1], states[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        none = (None,) * ctx.number
        return None, *(g for both in gradients for g in (none if both is None else both.unbind()))


class _ScaleByStep(torch.autograd.Function):
    """The identity, with all gradients but the first row's multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        scaled = gradient * ctx.factor
        scaled[0] = gradient[0]  # no transition leads to the start
        return scaled, None
