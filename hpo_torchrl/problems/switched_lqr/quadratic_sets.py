"""Functions that are the minimum of finitely many quadratic forms, x -> min over P of x'Px.

The cost-to-go of a switched LQR is such a function, and one step backwards gives the next set. A
set of N forms is a tensor of symmetric matrices, ``(N, n, n)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
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


def evaluate(forms: Tensor, x: Tensor) -> Tensor:
    """Return x'Px of every form at states ``(B, n)``, as one matrix product: ``(N, B)``."""
    return forms.flatten(1) @ (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(1).mT


def minimum(x: Tensor, forms: Tensor) -> tuple[Tensor, ...]:
    """Return min over P of x'Px at ``(*B, n)`` and the position of that P, each ``(*B,)``."""
    size = max(1, _TABLE // max(len(forms), forms[0].numel()))
    parts = [evaluate(forms, part).min(0) for part in x.reshape(-1, x.shape[-1]).split(size)]
    return tuple(torch.cat(column).reshape(x.shape[:-1]) for column in zip(*parts, strict=True))


def prune(forms: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    r"""Return fewer forms that together lie at or below the given ones, by little.

    A form is dropped if a kept :math:`P_j` dominates it: :math:`P_j / (1 + \epsilon) \preceq P_i`
    in the Loewner order, with :math:`\epsilon` the tolerance. A kept form that took the place of
    another without its consent, :math:`P_j \not\preceq P_i`, is returned divided by
    :math:`1 + \epsilon`. So the returned minimum m obeys :math:`V / (1 + \epsilon) \le m \le V`
    for the given minimum V at every state; with tolerance 0 they are equal.

    Lincoln and Rantzer, "Relaxing dynamic programming", IEEE Trans. Automatic Control 51(8), 2006.

    Args:
        forms: the forms, ``(N, n, n)``.
        tolerance: epsilon.

    Returns:
        The forms, and the positions they had.
    """
    values = evaluate(forms, _discriminating_states(forms))
    # A trace of zero is that of the zero form, which everything is above: any number will do.
    slack = _ROUNDING * forms.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True).clamp_min(1e-300)
    room, lowered = values + slack, 1.0 / (1.0 + tolerance)
    scale = torch.ones(len(forms), 1, 1, dtype=forms.dtype)

    def below(lower: Tensor, at: Tensor) -> Tensor:
        """Say for each pair of forms whether the first is at most the second everywhere."""
        gap = forms[at] - lower + torch.diag_embed(slack[at].expand(-1, forms.shape[-1]))
        return torch.linalg.cholesky_ex(gap)[1] == 0

    def dominated(block: Tensor, kept: Tensor) -> Tensor:
        """Say which forms of a block a kept one dominates; lower the ``scale`` of those that do."""
        gone = torch.zeros(len(block), dtype=torch.bool)
        offers, limits = values[kept] * lowered, room[block]
        few = slice(_FIRST_PROBES)
        i, j = (offers[:, few] <= limits[:, None, few]).all(-1).nonzero(as_tuple=True)
        possible = (offers[j] <= limits[i]).all(-1)
        i, j = i[possible], j[possible]
        # The dominator with the widest margin first; what probes allow, a factorisation decides.
        margin = (limits[i] - offers[j]).div(limits[i].clamp_min(1e-300)).amin(-1)
        ranked = torch.from_numpy(np.lexsort((-margin, i)))
        i, j = i[ranked], j[ranked]
        rank = torch.arange(len(i)) - torch.searchsorted(i, torch.arange(len(block)))[i]
        for attempt in range(min(_TRIES, len(i))):
            tried = (rank == attempt) & ~gone[i]
            one, other = i[tried], kept[j[tried]]
            free = below(forms[other] * scale[other], block[one])
            gone[one[free]] = True
            if lowered < 1:
                one, other = one[~free], other[~free]
                taken = below(forms[other] * lowered, block[one])
                gone[one[taken]] = True
                scale[other[taken]] = lowered
        return gone

    order = values.mean(1).argsort()
    kept = order[:0]
    for block in order.split(_BLOCK):
        block = block[~dominated(block, kept)]
        # Most forms have no rival among their neighbours; only the others are compared one by one.
        rivals = (values[block] * lowered)[None] <= room[block][:, None]
        alone = ~rivals.all(-1).tril(-1).any(-1)
        fresh = block[alone]
        for form in block[~alone].split(1):
            fresh = torch.cat([fresh, form[~dominated(form, fresh)]])
        kept = torch.cat([kept, fresh])
    return forms[kept] * scale[kept], kept


def _discriminating_states(forms: Tensor) -> Tensor:
    """Return states at which random pairs of the forms differ most."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(len(forms), (2, _PROBES // 2), generator=generator)
    vectors = torch.linalg.eigh(forms[one] - forms[other])[1]
    states = torch.cat([vectors[:, :, 0], vectors[:, :, -1]])
    return states[torch.randperm(len(states), generator=generator)]


# -- backward recursion ---------------------------------------------------------------------------


class Stage(NamedTuple):
    """The forms of one number of steps to go, with the decision that each stands for.

    Form i is one Riccati step in ``mode[i]`` from form ``parent[i]`` of the stage before.
    """

    forms: Tensor
    mode: Tensor
    parent: Tensor


def recursion(
    system: System, selects: Sequence[Callable[[Tensor], Any] | None], limit: int
) -> list[Stage]:
    """Step backwards from nothing to pay.

    Args:
        system: the matrices.
        selects: one function for each stage, from its candidates to those to keep and where they
            stood; ``None`` keeps all.
        limit: most candidates of a stage.

    Raises:
        MemoryError: a stage has more than ``limit`` candidates.
    """
    nothing = torch.zeros(1, dtype=torch.int64)
    stages = [Stage(torch.zeros_like(system.A[:1]), nothing, nothing)]
    for number, select in enumerate(selects, 1):
        source = stages[-1].forms
        size = system.num_modes * len(source)
        if size > limit:
            raise MemoryError(
                f"max_matrices={limit} is less than the {size} matrices with {number} steps to "
                "go; raise tolerance (a stage holds fewer), shorten horizon, or raise max_matrices."
            )
        mode = torch.arange(system.num_modes).repeat_interleave(len(source))
        parent = torch.arange(len(source)).repeat(system.num_modes)
        stage = step_back(system, source, mode, parent)
        if select is not None:
            forms, kept = select(stage.forms)
            stage = Stage(forms, mode[kept], parent[kept])
        stages.append(stage)
    return stages


def step_back(system: System, source: Tensor, mode: Tensor, parent: Tensor) -> Stage:
    """Step from each parent among the forms of ``source`` in its mode."""
    pairs = zip(mode.split(_CHUNK), parent.split(_CHUNK), strict=True)
    return Stage(torch.cat([system.riccati(source[p], m)[0] for m, p in pairs]), mode, parent)
