"""Gradients that shrink with every transition they pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Entries = Mapping[str, Tensor]


def discount_gradients(entries: Entries, discount: float) -> dict[str, Tensor]:
    """Return the entries with the gradients of those that have any multiplied by ``discount``."""
    entries = dict(entries)
    if discount == 1.0:
        return entries
    if torch.compiler.is_compiling():  # exact in its value too, and compiles into nothing
        return {
            key: torch.lerp(value.detach(), value, discount) if value.is_floating_point() else value
            for key, value in entries.items()
        }
    names = [key for key, value in entries.items() if value.requires_grad]
    if names:
        scaled = _ScaleGradients.apply(discount, *(entries[key] for key in names))
        entries |= zip(names, scaled, strict=True)
    return entries


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


class _ScaleGradients(torch.autograd.Function):
    """The identity on all values, with their gradients multiplied by a factor."""

    # With the context in ``forward``: apart, torch binds the arguments by signature in every call,
    # which takes four times as long as all the rest.
    @staticmethod
    def forward(ctx: Any, factor: float, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.factor = factor
        return tuple([value.view_as(value) for value in values])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[gradient * ctx.factor for gradient in gradients]


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
