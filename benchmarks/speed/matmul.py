"""The matrix products of a computation, and nothing else: how fast could it be at most?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
PRODUCTS = {
    ATEN.mm.default: torch.mm,
    ATEN.addmm.default: torch.addmm,
    ATEN.bmm.default: torch.bmm,
    ATEN.baddbmm.default: torch.baddbmm,
}


class _Recorder(TorchDispatchMode):
    """Note the operands of every matrix product, in the order of execution."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Tensor, ...], Tensor]] = []
        self.stand_ins: dict[tuple, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            operands = tuple(self.stand_in(place, operand) for place, operand in enumerate(args))
            self.seen.append((PRODUCTS[func], operands, self.stand_in("result", result)))
        return result

    def stand_in(self, place: object, value: Tensor) -> Tensor:
        """Return a tensor of the same shape and strides, one for all products that ask for it."""
        key = (place, value.shape, value.stride(), value.dtype, value.device)
        if key not in self.stand_ins:
            with torch.no_grad():
                like = torch.empty_strided(
                    value.shape, value.stride(), dtype=value.dtype, device=value.device
                )
                self.stand_ins[key] = like.zero_() if 0 in value.stride() else like.normal_()
        return self.stand_ins[key]


class MatmulReplay:
    """Record the matrix products of one call, forward and backward; a call repeats just them.

    Operands are stand-ins of the same shapes and strides that are used again and again, so that
    they are in the cache more often than the real ones: a limit that no program reaches.

    Args:
        call: the computation.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        with _Recorder() as recorder:
            call()
        self.products = recorder.seen

    def __len__(self) -> int:
        """Return the number of products."""
        return len(self.products)

    def flops(self) -> int:
        """Return the number of multiplications and additions."""
        return sum(
            2 * result.numel() * operands[-1].shape[-2] for _, operands, result in self.products
        )

    @torch.no_grad()
    def __call__(self) -> None:
        """Repeat the products."""
        for product, operands, result in self.products:
            product(*operands, out=result)
