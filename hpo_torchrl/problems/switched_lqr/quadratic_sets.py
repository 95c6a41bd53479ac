"""Functions that are the minimum of finitely many quadratic forms, x -> min over P of x'Px.

The cost-to-go of a switched LQR is such a function, and one step backwards gives the next set. A
set of N symmetric ``(n, n)`` matrices is kept packed, as ``(N, n (n + 1) / 2)``: half the memory,
and evaluating all forms at many states is one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hpo_torchrl.problems.switched_lqr.system import System

# Largest table of values (states by forms) that is held at once.
_TABLE = 2**24
# States at which forms are compared before any factorisation, and those of them tried first.
_PROBES, _FIRST_PROBES = 192, 12
_BLOCK = 256
# Dominators tried for one form.
_TRIES = 10
# "At most" leaves this much room for rounding, relative to the form.
_ROUNDING = 1e-11
# Matrices that go through one batched Riccati step.
_CHUNK = 1024


def pack(matrices: Tensor) -> Tensor:
    """Pack symmetric matrices ``(N, n, n)``."""
    rows, columns = torch.triu_indices(matrices.shape[-1], matrices.shape[-1])
    return matrices[:, rows, columns]


def unpack(packed: Tensor) -> Tensor:
    """Undo :func:`pack`."""
    n = int((2 * packed.shape[-1]) ** 0.5)
    rows, columns = torch.triu_indices(n, n)
    matrices = packed.new_empty(len(packed), n, n)
    matrices[:, rows, columns] = packed
    matrices[:, columns, rows] = packed
    return matrices


def features(x: Tensor) -> Tensor:
    """Return the products whose inner product with a packed P is x'Px, ``(B, n (n + 1) / 2)``."""
    rows, columns = torch.triu_indices(x.shape[-1], x.shape[-1])
    return x[:, rows] * x[:, columns] * torch.where(rows == columns, 1.0, 2.0).to(x)


def minimum(x: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return min over P of x'Px and the position of the P that attains it, each ``(B,)``."""
    best = [
        (features(part) @ packed.mT).min(-1)
        for part in x.split(max(1, _TABLE // max(packed.shape)))
    ]
    return torch.cat([values for values, _ in best]), torch.cat([index for _, index in best])


def prune(packed: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    r"""Return fewer forms that together lie at or below the given ones, by little.

    A form is dropped if a kept :math:`P_j` dominates it: :math:`P_j / (1 + \epsilon) \preceq P_i`
    in the Loewner order, with :math:`\epsilon` the tolerance. A kept form that took the place of
    another without its consent, :math:`P_j \not\preceq P_i`, is returned divided by
    :math:`1 + \epsilon`. So the returned minimum m obeys :math:`V / (1 + \epsilon) \le m \le V`
    for the given minimum V at every state; with tolerance 0 they are equal.

    Lincoln and Rantzer, "Relaxing dynamic programming", IEEE Trans. Automatic Control 51(8), 2006.

    Args:
        packed: the forms, ``(N, n (n + 1) / 2)``.
        tolerance: epsilon.

    Returns:
        The forms, and the positions they had.
    """
    probes = features(_discriminating_states(packed))
    values = packed @ probes.mT
    room = values + _ROUNDING * _trace(packed).unsqueeze(-1)
    order = values.mean(1).argsort()
    lowered = 1.0 / (1.0 + tolerance)
    kept, scales = order[:0], packed[:0, 0]
    for block in order.split(_BLOCK):
        block = block[~_drop(packed, values, room, block, kept, scales, lowered)]
        # Most forms have no rival among their neighbours; only the others are compared one by one.
        rivals = (values[block] * lowered)[None] <= room[block][:, None]
        alone = ~rivals.all(-1).tril(-1).any(-1)
        fresh, fresh_scales = block[alone], packed.new_ones(int(alone.sum()))
        for form in block[~alone].unsqueeze(-1):
            if not _drop(packed, values, room, form, fresh, fresh_scales, lowered):
                fresh = torch.cat([fresh, form])
                fresh_scales = torch.cat([fresh_scales, fresh_scales.new_ones(1)])
        kept, scales = torch.cat([kept, fresh]), torch.cat([scales, fresh_scales])
    return packed[kept] * scales.unsqueeze(-1), kept


def _drop(
    packed: Tensor,
    values: Tensor,
    room: Tensor,
    forms: Tensor,
    kept: Tensor,
    scales: Tensor,
    lowered: float,
) -> Tensor:
    """Say which forms a kept one dominates, and lower in ``scales`` those that have to be."""
    dropped = torch.zeros(len(forms), dtype=torch.bool)
    if len(kept) == 0:
        return dropped
    room = room[forms]
    offers = values[kept] * lowered
    few = slice(_FIRST_PROBES)
    i, j = (offers[:, few] <= room[:, None, few]).all(-1).nonzero(as_tuple=True)
    possible = (offers[j] <= room[i]).all(-1)
    i, j = i[possible], j[possible]
    # The dominator with the widest margin first; what the probes allow, a factorisation decides.
    margin = (room[i] - offers[j]).div(room[i].clamp_min(1e-300)).amin(-1)
    by_margin = margin.argsort(descending=True)
    i, j = i[by_margin], j[by_margin]
    by_form = i.argsort(stable=True)
    i, j = i[by_form], j[by_form]
    rank = torch.arange(len(i)) - torch.searchsorted(i, torch.arange(len(forms)))[i]
    for attempt in range(_TRIES):
        chosen = (rank == attempt) & ~dropped[i]
        one, other = i[chosen], j[chosen]
        scale = scales[other]
        free = _dominates(packed[kept[other]] * scale.unsqueeze(-1), packed[forms[one]])
        dropped[one[free]] = True
        if lowered < 1:
            one, other = one[~free], other[~free]
            below = _dominates(packed[kept[other]] * lowered, packed[forms[one]])
            dropped[one[below]] = True
            scales[other[below]] = lowered
    return dropped


def _dominates(lower: Tensor, upper: Tensor) -> Tensor:
    """Say for each pair of forms whether the first is at most the second everywhere."""
    gap = unpack(upper - lower)
    gap.diagonal(dim1=-2, dim2=-1).add_(_ROUNDING * _trace(upper).unsqueeze(-1))
    return torch.linalg.cholesky_ex(gap)[1] == 0


def _trace(packed: Tensor) -> Tensor:
    # A trace of zero is that of the zero form, which everything is above: any number will do.
    return unpack(packed).diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-300)


def _discriminating_states(packed: Tensor) -> Tensor:
    """Return states at which random pairs of the forms differ most."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(len(packed), (2, _PROBES // 2), generator=generator)
    vectors = torch.linalg.eigh(unpack(packed[one] - packed[other]))[1]
    states = torch.cat([vectors[:, :, 0], vectors[:, :, -1]])
    return states[torch.randperm(len(states), generator=generator)]


# -- backward recursion ---------------------------------------------------------------------------


class Stage(NamedTuple):
    """The matrices of one number of steps to go, with the decision that each stands for.

    Matrix i is one Riccati step in ``mode[i]`` from ``source[parent[i]]``.
    """

    packed: Tensor
    mode: Tensor
    parent: Tensor
    source: Tensor

    @classmethod
    def zero(cls, size: int) -> Stage:
        """Return the stage with no steps to go: nothing is left to pay."""
        nothing = pack(torch.zeros(1, size, size, dtype=torch.float64))
        return cls(nothing, torch.zeros(1).long(), torch.zeros(1).long(), nothing)


# From the candidates of a stage and its number, the matrices to keep and where they stood.
Select = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def recursion(system: System, num_stages: int, select: Select, limit: int) -> list[Stage]:
    """Step backwards from nothing to pay."""
    stages = [Stage.zero(system.A.shape[-1])]
    for number in range(1, num_stages + 1):
        source = stages[-1].packed
        size = system.num_modes * len(source)
        if size > limit:
            raise MemoryError(
                f"max_matrices={limit} is less than the {size} matrices with {number} steps to "
                "go; raise tolerance (a stage holds fewer), shorten horizon, or raise max_matrices."
            )
        modes = torch.arange(system.num_modes).repeat_interleave(len(source))
        parents = torch.arange(len(source)).repeat(system.num_modes)
        packed, kept = select(riccati_steps(system, source, modes, parents), number)
        stages.append(Stage(packed, modes[kept], parents[kept], source))
    return stages


def riccati_steps(system: System, source: Tensor, modes: Tensor, parents: Tensor) -> Tensor:
    """Step from each parent in its mode, packed."""
    # Per mode, so that the matrices of the system are shared and not gathered.
    result = torch.empty(len(modes), source.shape[-1], dtype=source.dtype)
    for mode in range(system.num_modes):
        for at in (modes == mode).nonzero().squeeze(-1).split(_CHUNK):
            result[at] = pack(system.riccati(unpack(source[parents[at]]), mode))
    return result


def pruning(losses: list[float]) -> Select:
    """Prune each stage by its loss, but not the last: it is evaluated and never stepped from."""

    def select(candidates: Tensor, number: int) -> tuple[Tensor, Tensor]:
        if number == len(losses):
            return candidates, torch.arange(len(candidates))
        return prune(candidates, losses[number - 1])

    return select
