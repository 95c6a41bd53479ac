"""Rollouts that keep part of their graph at a time: activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict.nn.probabilistic import interaction_type, set_interaction_type
from torch import Tensor
from torch.autograd.function import once_differentiable

from hpo_torchrl.collectors.discounting import Entries, before_and_after

# From where a stretch begins, its noise and the fresh states of each step to where it leads and
# what each step holds; what a step leads to has names that begin with NEXT.
Stretch = Callable[
    [Entries, Sequence[Tensor], Sequence[Entries | None]],
    tuple[Entries, list[dict[str, Tensor | None]]],
]
NEXT = "next "


def recomputed(
    stretch: Stretch,
    start: Entries,
    noise: Tensor,
    fresh: Sequence[Entries | None],
    size: int,
    discount: float,
    parameters: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Take all steps without a graph, which is built again backwards, ``size`` steps at once.

    Results are written where they stay, so that nothing is held twice: also not what a step leads
    to and what the next one starts from, if no system is reset.

    Args:
        stretch: takes some steps.
        start: where to start.
        noise: of each step, time first.
        fresh: for each step the states after a reset, or ``None``.
        size: steps whose graph is kept at once.
        discount: factor on the gradient through each transition.
        parameters: what gradients may flow to besides the start.

    Returns:
        The entries of all steps, time first.
    """
    rollout = _Rollout(stretch, tuple(start), noise, fresh, size, parameters)
    results = _Recomputed.apply(rollout, *start.values(), *parameters)
    stacked = dict(zip(rollout.keys, results, strict=True))
    if not rollout.once:
        return stacked
    for name in start:
        states = stacked.pop(NEXT + name)
        stacked[name], stacked[NEXT + name] = before_and_after(states, discount)
    return stacked


class _Rollout:
    """What a recomputation needs to know."""

    def __init__(
        self,
        stretch: Stretch,
        names: tuple[str, ...],
        noise: Tensor,
        fresh: Sequence[Entries | None],
        size: int,
        parameters: Sequence[Tensor],
    ) -> None:
        self.stretch, self.names, self.noise, self.fresh = stretch, names, noise, fresh
        self.size, self.parameters = size, list(parameters)
        self.interaction = interaction_type()
        self.versions = [parameter._version for parameter in self.parameters]
        self.once = all(new is None for new in fresh)
        self.keys: list[str] = []
        self.generators: list[list[Tensor]] = []  # before each stretch

    @property
    def parts(self) -> list[slice]:
        """The stretches."""
        return [slice(i, i + self.size) for i in range(0, len(self.noise), self.size)]

    def results(self, row: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Return what is kept of a step."""
        left_out = self.names if self.once else ()
        return {k: v for k, v in row.items() if v is not None and k not in left_out}

    def is_state(self, key: str) -> bool:
        """Whether an entry is held with the start before it, one row more than there are steps."""
        return self.once and key.removeprefix(NEXT) in self.names

    def first_of(self, held: Entries, part: slice) -> dict[str, Tensor]:
        """Return where a stretch began."""
        prefix = NEXT if self.once else ""
        return {name: held[prefix + name][part.start].detach() for name in self.names}

    def remember_generators(self) -> None:
        """Keep the state of torch's generators, from which policies sample."""
        states = [torch.get_rng_state()]
        if self.noise.is_cuda:
            states.append(torch.cuda.get_rng_state(self.noise.device))
        self.generators.append(states)

    def replay(self, index: int, start: Entries) -> tuple[Entries, list]:
        """Take a stretch again, with its random numbers and with a graph."""
        part, cuda = self.parts[index], [self.noise.device] if self.noise.is_cuda else []
        acting = set_interaction_type(self.interaction)
        with torch.random.fork_rng(devices=cuda), torch.enable_grad(), acting:
            torch.set_rng_state(self.generators[index][0])
            if cuda:
                torch.cuda.set_rng_state(self.generators[index][1], cuda[0])
            return self.stretch(start, self.noise[part].unbind(), self.fresh[part])


class _Recomputed(torch.autograd.Function):
    """All steps of a rollout as one operation."""

    @staticmethod
    def forward(ctx: Any, rollout: _Rollout, *tensors: Tensor) -> tuple[Tensor, ...]:
        start = dict(zip(rollout.names, tensors, strict=False))
        carried: Entries = start
        held: dict[str, Tensor] = {}
        for part in rollout.parts:
            rollout.remember_generators()
            noise = rollout.noise[part].unbind()
            carried, history = rollout.stretch(carried, noise, rollout.fresh[part])
            for step, row in enumerate(history, part.start):
                for key, value in rollout.results(row).items():
                    ahead = rollout.is_state(key)
                    if key not in held:
                        rows = len(rollout.noise) + ahead
                        held[key] = value.new_empty(rows, *value.shape)
                        if ahead:
                            held[key][0] = start[key.removeprefix(NEXT)]
                    held[key][step + ahead] = value
        rollout.keys = list(held)
        ctx.rollout = rollout
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[v for v in held.values() if not v.is_floating_point()])
        ctx.save_for_backward(*held.values())
        return tuple(held.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        rollout: _Rollout = ctx.rollout
        if rollout.versions != [parameter._version for parameter in rollout.parameters]:
            raise RuntimeError(
                "The parameters have changed since the rollout, whose steps are computed again "
                "when gradients are taken: take them before the optimizer's step, or leave "
                "checkpoint_steps out."
            )
        held = dict(zip(rollout.keys, ctx.saved_tensors, strict=True))
        wanted = dict(zip(rollout.keys, gradients, strict=True))
        learned = [p for p in rollout.parameters if p.requires_grad]
        sums: list[Tensor | None] = [None] * len(learned)
        flowing: dict[str, Tensor | None] = {}
        for index in reversed(range(len(rollout.parts))):
            part = rollout.parts[index]
            begin = rollout.first_of(held, part)
            moved = {k: v.requires_grad_() for k, v in begin.items() if v.is_floating_point()}
            end, history = rollout.replay(index, begin)
            pairs = [(end[name], gradient) for name, gradient in flowing.items()]
            for offset, row in enumerate(history):
                for key, value in rollout.results(row).items():
                    gradient = wanted[key]
                    if gradient is not None:
                        at = part.start + offset + rollout.is_state(key)
                        pairs.append((value, gradient[at]))
            pairs = [(v, g) for v, g in pairs if g is not None and v.requires_grad]
            flowing = dict.fromkeys(moved)
            if pairs:
                outputs, into = zip(*pairs, strict=True)
                inputs = [*moved.values(), *learned]
                found = torch.autograd.grad(outputs, inputs, into, allow_unused=True)
                flowing = dict(zip(moved, found, strict=False))
                sums = [_plus(a, b) for a, b in zip(sums, found[len(moved) :], strict=True)]
        for name in flowing:
            row = wanted.get(NEXT + name) if rollout.once else None
            flowing[name] = _plus(flowing[name], None if row is None else row[0])
        own = iter(sums)
        totals = [next(own) if p.requires_grad else None for p in rollout.parameters]
        return None, *[flowing.get(name) for name in rollout.names], *totals


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
