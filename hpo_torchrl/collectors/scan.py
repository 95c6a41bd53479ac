"""Steps that XLA runs: one is traced by PyTorch, and JAX scans over all."""

from __future__ import annotations

import operator
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from hpo_torchrl.collectors.inputs import Step, one_by_one, warn_uncompiled
from hpo_torchrl.collectors.kept_programs import keep_programs
from hpo_torchrl.collectors.program import DifferentStepError, Program, beside_torch, to_torch
from hpo_torchrl.core.checks import first_line

# Share of the entries that may differ from those of torch by more than rounding: where two
# actions are as good, rounding chooses between them.
_DIFFERING = 0.01
# How often one object may trace steps.
_MOST_PROGRAMS = 8
# How deep the numbers of an environment lie in its objects, and where none of them lie.
_DEPTH, _LIBRARIES = 4, ("torch", "torchrl", "tensordict", "numpy", "builtins", "functools")

keep_programs()


class Scan:
    """Many steps of one kind as one function of XLA, with its gradient.

    A step is traced once for every shape, forward and backward, as PyTorch computes it, and JAX
    runs the graphs of both in a loop without a word of Python between. A step must be a pure
    function of what is carried, of its inputs, of the weights of some modules, and of tensors that
    it finds elsewhere: of these the values of today count. Where one cannot be traced, or a traced
    one leads elsewhere than the step itself, a warning says why, and steps are taken one by one.

    Args:
        modules: their parameters and buffers are read at every call, and have gradients.
        name: what takes the steps, for the warning; ``None`` warns of nothing.

    Attributes:
        programs: what has been traced, by shapes and settings.
    """

    def __init__(self, modules: Sequence[nn.Module], name: str | None) -> None:
        self.modules, self.name = modules, name
        self.programs: dict[Any, Program] = {}
        self.given_up = False
        self._holders: list[dict[str, Any]] | None = None

    @property
    def seconds(self) -> float:
        """Time spent on tracing, compiling and comparing so far."""
        return sum(program.seconds for program in self.programs.values())

    def __call__(
        self, step: Step, carried: dict[str, Tensor], inputs: Any, settings: Any = None
    ) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        """Take all steps.

        Args:
            step: takes one; carried are tensors by name, whose shapes stay.
            carried: where the first one starts.
            inputs: tensors of any structure, time first.
            settings: numbers that steps depend on; for others they are traced anew.

        Returns:
            Where the last one leads to, and the entries of all, time first.
        """
        if self.given_up:
            return one_by_one(step, carried, inputs)
        weights = self._weights()
        parts, form = tree_flatten(inputs)
        begin = [*carried.values()]
        graph = torch.is_grad_enabled() and any(value.requires_grad for value in weights)
        shapes = [None if v is None else (v.shape, v.dtype) for v in (*weights, *begin, *parts)]
        key = (tuple(shapes), tuple(carried), form, graph, settings)
        with beside_torch():
            if (program := self.programs.get(key)) is not None:
                return program.call(weights, begin, parts)
            began = time.perf_counter()
            try:
                if len(self.programs) >= _MOST_PROGRAMS:
                    raise DifferentStepError(f"it has been traced {len(self.programs)} times")
                if any(part._forward_hooks or part._forward_pre_hooks for part in self._parts()):
                    raise DifferentStepError("a module has hooks, which only PyTorch would call")
                program = Program.of(step, weights, carried, parts, form, graph)
                _compare(program, [*weights, *begin, *parts], step, inputs)
                found = program.call(weights, begin, parts)
            except Exception as error:  # whatever the reason, torch can take the steps
                self._give_up(first_line(error))
                return one_by_one(step, carried, inputs)
            program.seconds += time.perf_counter() - began
            self.programs[key] = program
            return found

    def _weights(self) -> list[Tensor]:
        """Return parameters and buffers: of the parts as they were at the first call."""
        if self._holders is None:
            parts = ((part._parameters, part._buffers) for part in self._parts())
            self._holders = [own for pair in parts for own in pair]
        found = (value for own in self._holders for value in own.values() if value is not None)
        return [*dict.fromkeys(found)]

    def _parts(self) -> list[nn.Module]:
        return [*dict.fromkeys(part for module in self.modules for part in module.modules())]

    def _give_up(self, cause: str) -> None:
        self.given_up = True
        self.programs.clear()
        if self.name is not None:
            warn_uncompiled(self.name, cause)


def _compare(program: Program, leaves: list[Any], step: Step, inputs: Any) -> None:
    """Raise an error if a traced step, or its gradient, is not that of the step itself.

    Args:
        program: the traced step.
        leaves: weights, what the first step starts from, and inputs.
        step: the step itself.
        inputs: the inputs in their structure.
    """
    first, number, _ = program.numbers
    begin = leaves[first : first + number]
    length = len(next(part for part in tree_leaves(inputs) if part is not None))
    arrays = program.arrays(leaves)
    last, rows = program.forward(*arrays)
    found = program.found(rows)

    def taken(at: int, start: Sequence[Tensor]) -> list[Tensor]:
        own = tree_map_only(Tensor, operator.itemgetter(at), inputs)
        after, entries = step(dict(zip(program.carried, start, strict=True)), own)
        return [*(after[n] for n in program.carried), *(entries[n] for n in program.names)]

    for at in sorted({0, length // 2, length - 1}):
        start = [value[at - 1] for value in found[:number]] if at else begin
        ends = [value[at] for value in found]
        if at + 1 == length:
            ends[:number] = map(to_torch, last)
        names = program.carried + program.names
        for name, one, other in zip(names, taken(at, start), ends, strict=True):
            pair = one.detach().double(), other.double()
            near = torch.isclose(*pair, 1e-3, 1e-3, equal_nan=True)
            if (~near).double().mean() > _DIFFERING:
                raise DifferentStepError(f"the entry {name!r} of a traced step is another")
    if not program.gradients_asked:
        return
    # Of what the first two steps find, by many slopes: those of the trace are ones.
    start = [value.detach() for value in begin]
    asked = [leaves[i] for i in program.learned]
    asked += [start[i].requires_grad_() for i in program.differentiable if i < number]
    steps = [taken(0, start)]
    if length > 1:
        steps.append(taken(1, steps[0][:number]))
    later = length - len(steps)
    ends, slopes = [], []
    tangents: list[Any] = []
    for i in program.differentiable:
        carried = i < number
        value = steps[-1][i] if carried else torch.stack([row[i] for row in steps])
        slope = torch.linspace(0.5, 1.5, value.numel()).to(value).view_as(value)
        if carried and later:  # the last step leads to something else
            slope = torch.zeros_like(slope)
        ends.append(value)
        slopes.append(slope)
        if not carried:
            slope = torch.cat([slope, slope.new_zeros(later, *slope.shape[1:])])
        tangents.append(slope.numpy())
    true = torch.autograd.grad(ends, asked, slopes, allow_unused=True)
    arrays = program.arrays(leaves, backward=True)
    total, at_begin = program.backward(*arrays, [rows[i] for i in program.needed], tangents)
    for one, value in zip(true, total + at_begin, strict=True):
        other = to_torch(value)
        size = 0.0 if one is None else float(one.norm())
        if float((other - (0.0 if one is None else one)).norm()) > _DIFFERING * size + 1e-6:
            raise DifferentStepError("the gradient of a traced step is another")


def settings_of(*owners: Any) -> tuple[Any, ...]:
    """Return the numbers, and which tensors, objects hold: what a traced step has taken as given.

    Args:
        owners: environments and the like; of their parts those count that are plain objects.
    """
    found: list[Any] = []
    seen: set[int] = set()

    def visit(path: str, value: Any, depth: int) -> None:
        if isinstance(value, (bool, int, float, str)):
            found.append((path, value))
        elif isinstance(value, (Tensor, np.ndarray)):
            found.append((path, id(value)))
        elif depth and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, (list, tuple)):
                parts: Any = enumerate(value)
            elif isinstance(value, dict):
                parts = value.items()
            elif type(value).__module__.partition(".")[0] in _LIBRARIES:
                parts = ()
            else:
                parts = getattr(value, "__dict__", {}).items()
            for name, part in [*parts]:
                visit(f"{path}.{name}", part, depth - 1)

    for at, owner in enumerate(owners):
        for name, value in [*vars(owner).items()]:
            # In private dictionaries TorchRL remembers what it has looked up.
            if not (name.startswith("_") and isinstance(value, dict)):
                visit(f"{at}.{name}", value, _DEPTH)
    return tuple(found)
