"""A step, traced by PyTorch, as two functions of JAX: all steps forward, and backward."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.fx import Node
from torch.utils._pytree import tree_unflatten

from hpo_torchrl.collectors.inputs import Step
from hpo_torchrl.collectors.kept_programs import kept
from hpo_torchrl.collectors.lowering import (
    CHEAP,
    SAME,
    VIEWS,
    Lowered,
    dtype_of,
    source_of,
    trace,
)


class DifferentStepError(RuntimeError):
    """A traced step does not do what the step does."""


@dataclass(eq=False, repr=False)
class Program:
    """A step as two functions of JAX, forward and backward.

    What steps find is written down row by row: each output once, however many names it has, and
    what the backward pass reads besides.

    Attributes:
        lowered: its graph.
        numbers: how many weights, carried tensors and inputs there are.
        constants: tensors that the step found elsewhere, with the nodes that read them.
        leaves: placeholders of weights, carried tensors and inputs, in this order.
        tangents: placeholders of the gradients of ``differentiable`` outputs.
        outputs: nodes of what is carried on, then of the entries.
        gradients: nodes of the gradients of weights and carried tensors; ``None`` without one.
        differentiable: places of outputs that have a gradient.
        names: of the entries.
        carried: of what is carried.
        seconds: time spent on tracing, compiling and comparing.
    """

    lowered: Lowered
    numbers: tuple[int, int, int]
    constants: dict[Node, Tensor]
    leaves: list[Node]
    tangents: list[Node]
    outputs: list[Node]
    gradients: list[Node | None]
    differentiable: list[int]
    names: list[Any]
    carried: list[str]
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        step: Step,
        weights: list[Tensor],
        carried: dict[str, Tensor],
        parts: list[Tensor],
        form: Any,
        graph: bool,
    ) -> Program:
        """Trace a step at the inputs of the first one.

        Args:
            step: the step.
            weights: parameters and buffers that it reads.
            carried: where the first one starts.
            parts: the inputs of all steps, time first.
            form: the structure of inputs.
            graph: whether there are gradients.

        Raises:
            DifferentStepError: what is carried changes its shape or dtype.
            RuntimeError: it looks at the value of a tensor.
            UnknownOperationError: an operation has no counterpart.
        """
        names: list[Any] = []
        begin = [
            value.detach().clone().requires_grad_(graph and value.is_floating_point())
            for value in carried.values()
        ]
        first = [None if part is None else part[0].clone() for part in parts]
        keys = list(carried)

        def flat(values: list[Tensor], own: list[Any]) -> list[Tensor]:
            after, entries = step(dict(zip(keys, values, strict=True)), tree_unflatten(own, form))
            names[:] = list(entries)
            return [after[key] for key in keys] + list(entries.values())

        with torch.set_grad_enabled(graph):
            example = flat(begin, first)
        for key, before, after in zip(keys, begin, example, strict=False):
            if before.shape != after.shape or before.dtype != after.dtype:
                raise DifferentStepError(
                    f"{key!r} changes from {tuple(before.shape)}, {before.dtype} to "
                    f"{tuple(after.shape)}, {after.dtype} in a step"
                )
        differentiable = [i for i, value in enumerate(example) if value.requires_grad]

        def joint(
            weights: list[Tensor], values: list[Tensor], own: list[Any], tangents: list[Tensor]
        ) -> list[Any]:
            # A leaf of its own, so that what is carried may be carried on as it is.
            inner = [value.detach().requires_grad_(value.requires_grad) for value in values]
            with torch.set_grad_enabled(graph):
                found = flat(inner, own)
            slopes: dict[int, Tensor | None] = {}
            if differentiable:
                asked = [value for value in (*weights, *inner) if value.requires_grad]
                ends = [found[i] for i in differentiable]
                row = torch.autograd.grad(ends, asked, tangents, allow_unused=True)
                slopes = dict(zip(map(id, asked), row, strict=True))
            given = [slopes.get(id(value)) for value in (*weights, *inner)]
            return [value.detach() for value in found] + given

        ones = [torch.ones_like(example[i]) for i in differentiable]
        del example
        traced = trace(joint, weights, begin, first, ones)
        placed = [node for node in traced.graph.nodes if node.op == "placeholder"]
        (output,) = (node for node in traced.graph.nodes if node.op == "output")
        results = list(output.args[0])
        number = len(weights) + len(begin) + len(first)
        last = len(keys) + len(names)
        return cls(
            lowered=Lowered(traced.graph),
            numbers=(len(weights), len(begin), len(first)),
            constants={
                node: getattr(traced, str(node.target))
                for node in traced.graph.nodes
                if node.op == "get_attr"
            },
            leaves=placed[:number],
            tangents=placed[number:],
            outputs=results[:last],
            gradients=results[last:],
            differentiable=differentiable,
            names=names,
            carried=keys,
        )

    def __post_init__(self) -> None:
        first, number, _ = self.numbers
        given = [*self.leaves, *self.constants]
        # What follows from gradients is the backward pass; what it reads of the forward one is
        # written down, but for what the weights alone say.
        late, fixed = set(self.tangents), set(self.leaves[:first]) | set(self.constants)
        for node in self.lowered.nodes:
            before = node.all_input_nodes
            if any(part in late for part in before):
                late.add(node)
            elif node not in given and all(part in fixed for part in before):
                fixed.add(node)
        others = {*late, *fixed, *given}
        moving = dict.fromkeys(node for node in self.lowered.nodes if node not in others)
        sources = [source_of(node, SAME, moving) for node in self.outputs]
        written = [*dict.fromkeys(sources)]
        slopes = [node for node in self.gradients if node is not None]
        read = {part for node in late for part in node.all_input_nodes} | {*slopes}
        read = {source_of(node, VIEWS, moving) for node in moving if node in read}
        saved = [node for node in moving if node in read and node not in written]
        for node in reversed(saved.copy()):  # rather twice than written and read
            others = {*given, *written, *saved} - {node}
            if all(part.target in CHEAP for part in self.lowered.needed([node], others)):
                saved.remove(node)
        self.rows = written + saved
        self.places = [written.index(node) for node in sources]
        self.forward_steps = self.lowered.needed(self.outputs + self.rows, given)
        self.backward_steps = self.lowered.needed(slopes, [*given, *self.tangents, *self.rows])
        # What each of both reads; the places of rows that the backward pass does, and of what is
        # carried.
        begins = self.leaves[first : first + number]
        self.read_forward = _inputs_of(self.forward_steps) | {*self.outputs, *begins}
        self.read_backward = read = _inputs_of(self.backward_steps) | {*slopes}
        self.read = [i for i, node in enumerate(self.rows) if node in read and node not in given]
        self.recalled = [i for i in range(number) if self.leaves[first + i] in read]
        # Places of the rows that the backward pass is given.
        self.needed = sorted({*self.read, *(self.places[i] for i in self.recalled)})
        self.gradients_asked = bool(self.differentiable)
        self.learned = [i for i in range(first) if self.gradients[i] is not None]
        ends = self.outputs, self.gradients, self.rows, self.numbers, self.differentiable
        recipe = repr((self.lowered.text(), ends))
        self.forward, self.backward = kept(self._forward, recipe), kept(self._backward, recipe)

    def _known(self, weights: Any, constants: Any, carried: Any, inputs: Any) -> dict[Node, Any]:
        known = dict(zip(self.constants, constants, strict=True))
        return known | dict(zip(self.leaves, (*weights, *carried, *inputs), strict=True))

    def _forward(self, weights: Any, constants: Any, begin: Any, inputs: Any) -> Any:
        def body(carried: Any, own: Any) -> Any:
            known = self._known(weights, constants, carried, own)
            values = self.lowered.run(self.forward_steps, known)
            after = [values[node] for node in self.outputs[: len(carried)]]
            return after, [values[node] for node in self.rows]

        return lax.scan(body, begin, inputs)

    def _backward(
        self, weights: Any, constants: Any, begin: Any, inputs: Any, rows: Any, tangents: Any
    ) -> Any:
        """Return the gradients of weights and of where the first step starts.

        Rows are those at :attr:`needed`; tangents are the gradients of what the last step leads to,
        then of the entries, of those that have one.
        """
        first = self.numbers[0]
        number = sum(i < len(begin) for i in self.differentiable)
        at_end, of_entries = tangents[:number], tangents[number:]
        every = dict(zip(self.needed, rows, strict=True))

        def before(i: int, at: Any) -> Any:
            """Return what is carried into a step: what the one before has written down."""
            row = lax.dynamic_index_in_dim(every[self.places[i]], jnp.maximum(at - 1, 0), 0, False)
            return jnp.where(at == 0, begin[i], row.reshape(begin[i].shape))

        def body(state: Any, row: Any) -> Any:
            total, slopes = state
            at, own, saved, entries = row
            carried = [before(i, at) if i in self.recalled else None for i in range(len(begin))]
            known = self._known(weights, constants, carried, own)
            known |= {self.rows[i]: value for i, value in zip(self.read, saved, strict=True)}
            known |= dict(zip(self.tangents, (*slopes, *entries), strict=True))
            values = self.lowered.run(self.backward_steps, known)
            found = [None if node is None else values[node] for node in self.gradients]
            total = [part + found[i] for part, i in zip(total, self.learned, strict=True)]
            later = [
                self._zeros(first + i) if found[first + i] is None else found[first + i]
                for i in self.differentiable
                if i < len(begin)
            ]
            return (total, later), None

        start = ([self._zeros(i) for i in self.learned], at_end)
        length = len(next(v for v in (*of_entries, *rows, *inputs) if v is not None))
        steps = (jnp.arange(length), inputs, [every[i] for i in self.read], of_entries)
        (total, slopes), _ = lax.scan(body, start, steps, reverse=True)
        return total, slopes

    def _zeros(self, place: int) -> Any:
        value = self.leaves[place].meta["val"]
        return jnp.zeros(value.shape, dtype_of(value.dtype))

    def arrays(
        self, leaves: Sequence[Tensor | None], *, backward: bool = False
    ) -> tuple[list[Any], ...]:
        """Return weights, constants, carried tensors and inputs for JAX, those that are read."""
        first, number, _ = self.numbers
        read = self.read_backward if backward else self.read_forward
        values = [
            value.detach().numpy() if value is not None and node in read else None
            for value, node in zip(leaves, self.leaves, strict=True)
        ]
        constants = [value.detach().numpy() for value in self.constants.values()]
        return values[:first], constants, values[first : first + number], values[first + number :]

    def found(self, rows: Sequence[Any]) -> list[Tensor]:
        """Return what every step carries on, and the entries, time first: views of what it wrote.

        Args:
            rows: all of them.
        """
        shapes = (node.meta["val"].shape for node in self.outputs)
        return [
            to_torch(np.asarray(rows[place]).reshape(len(rows[place]), *shape))
            for place, shape in zip(self.places, shapes, strict=True)
        ]

    def call(
        self, weights: list[Tensor], begin: list[Tensor], parts: list[Tensor]
    ) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        """Take all steps."""
        found = _Steps.apply(self, *weights, *begin, *parts)
        number = len(self.carried)
        carried = dict(zip(self.carried, found[:number], strict=True))
        return carried, dict(zip(self.names, found[number:], strict=True))


def _inputs_of(steps: Sequence[Node]) -> set[Node]:
    return {part for node in steps for part in node.all_input_nodes}


class _Steps(torch.autograd.Function):
    """All steps, with the gradients of the weights and of where they began."""

    @staticmethod
    def forward(ctx: Any, program: Program, *leaves: Tensor) -> tuple[Tensor, ...]:
        carried, rows = jax.block_until_ready(program.forward(*program.arrays(leaves)))
        number = len(carried)
        found = [*map(to_torch, carried), *program.found(rows)[number:]]
        fixed = [value for i, value in enumerate(found) if i not in program.differentiable]
        ctx.mark_non_differentiable(*fixed)
        # They must be the same then, and so must entries, whose memory is that of rows.
        ctx.save_for_backward(*leaves, *found[number:])
        ctx.program, ctx.rows = program, [rows[i] for i in program.needed]
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        program = ctx.program
        first, number, _ = program.numbers
        with beside_torch():
            arrays = program.arrays(ctx.saved_tensors[: sum(program.numbers)], backward=True)
            tangents = [gradients[i].numpy() for i in program.differentiable]
            found = jax.block_until_ready(program.backward(*arrays, ctx.rows, tangents))
            total, at_begin = ([*map(to_torch, part)] for part in found)
        places = [*program.learned, *(first + i for i in program.differentiable if i < number)]
        every = dict(zip(places, (*total, *at_begin), strict=True))
        return (None, *(every.get(i) for i in range(len(ctx.needs_input_grad) - 1)))


def to_torch(value: Any) -> Tensor:
    """Return an array as a tensor of the same memory, which nobody may write to."""
    return torch.from_numpy(np.asarray(value))


def _read_only() -> None:
    """Take PyTorch's warning of such memory, which comes once in a process."""
    memory = np.zeros(1)
    memory.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(memory)


_read_only()


@contextlib.contextmanager
def beside_torch() -> Iterator[None]:
    """Let JAX have 64 bits where torch does, and compute on the CPU, though it may have a GPU."""
    with jax.enable_x64(True), jax.default_device(_cpu()):
        yield


@functools.cache
def _cpu() -> Any:
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:  # somebody has told JAX to do without one
        return None
