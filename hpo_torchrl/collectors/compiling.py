"""A chunk of a rollout by ``torch.compile``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import calculate_time_spent

from hpo_torchrl.collectors.inputs import Inputs
from hpo_torchrl.core.checks import first_line

# Steps of a chunk, the better first: one that leaves no rest is taken.
_LENGTHS = (5, 6, 4, 7, 8, 3)
# Graphs that one object may compile, and that all of a process may: torch counts them per function.
_OWN_GRAPHS, _ALL_GRAPHS = 8, 1024
# The errors of torch where it does not compile, whatever the reason.
_REFUSALS = (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit)


def _seconds() -> float:
    """Return the time that this process has spent on compiling, forward and backward."""
    return calculate_time_spent()["total_wall_time"]


class Compiled:
    """A compiled chunk; where it cannot be compiled, a warning and the chunk itself.

    On a GPU each chunk, forward and backward, is replayed as a CUDA graph. Compiled code is cached
    on disk, so that the first call of a later process takes a part of the time.

    Args:
        chunk: from a state, inputs and a flag to a state and entries.
        name: what the chunk is called in the warning.
    """

    def __init__(self, chunk: Callable[..., Any], name: str) -> None:
        self.chunk, self.name = chunk, name
        self._before, self._graphs = _seconds(), 0
        self._length: int | None = None
        # A loss may go through the graph more than once. For good, because torch asks for it when
        # gradients are taken, too.
        torch._functorch.config.donated_buffer = False
        options: dict[str, Any] = {"triton.cudagraphs": True} if torch.cuda.is_available() else {}
        self._compiled: Any = torch.compile(chunk, fullgraph=True, dynamic=False, options=options)

    @property
    def seconds(self) -> float:
        """Time spent on compiling in this process since this object was made."""
        return _seconds() - self._before

    def length(self, num_steps: int, given: int | None) -> int:
        """Return the steps of a chunk: those given, or about five that divide the first rollout."""
        if self._length is None:
            dividing = (length for length in _LENGTHS if num_steps % length == 0)
            self._length = given or min(num_steps, next(dividing, _LENGTHS[0]))
        return self._length

    def prepare(
        self, begin: Mapping[str, Tensor], inputs: Inputs
    ) -> tuple[dict[str, Tensor], Inputs]:
        """Bring a rollout into the form that all its chunks share, so that there is one graph."""
        if torch.cuda.is_available():
            torch.compiler.cudagraph_mark_step_begin()  # it may take the last rollout's memory
        fresh = inputs.fresh
        if any(fresh):
            # A step without an end takes nothing from what stands there. Always other objects: a
            # graph is bound to which of its inputs are the same.
            fresh = [
                {key: value.detach() for key, value in (new or begin).items()} for new in fresh
            ]
        # The first chunk, like all others, has gradients for where it begins.
        carried = {
            key: value.detach().requires_grad_()
            if value.is_floating_point() and not value.requires_grad
            else value
            for key, value in begin.items()
        }
        return carried, inputs._replace(fresh=fresh)

    def __call__(self, *given: Any) -> Any:
        """Call the chunk."""
        if self._compiled is None:
            return self.chunk(*given)
        before = _seconds()
        try:
            limits = {"recompile_limit": _ALL_GRAPHS, "accumulated_recompile_limit": _ALL_GRAPHS}
            with torch._dynamo.config.patch(limits):
                found = self._compiled(*given)
        except _REFUSALS as error:
            self._give_up(first_line(getattr(error, "inner_exception", error)))
            return self.chunk(*given)
        self._graphs += _seconds() > before
        if self._graphs > _OWN_GRAPHS:
            self._give_up(f"it has been compiled {self._graphs} times")
        return found

    def _give_up(self, cause: str) -> None:
        self._compiled = None
        warnings.warn(
            f"compile: {self.name} cannot be compiled, and go on as they are ({cause}). Usual "
            "causes: dynamics that look at a tensor's value (if, .item(), numpy), numbers of the "
            "environment that change from rollout to rollout, or no C++ compiler on this machine.",
            stacklevel=2,
        )
