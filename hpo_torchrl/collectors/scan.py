"""Steps that XLA runs: one is traced by PyTorch, and JAX scans over all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.fx import Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from hpo_torchrl.collectors.inputs import Step, one_by_one, warn_uncompiled
from hpo_torchrl.collectors.lowering import CHEAP, Lowered, source_of, trace
from hpo_torchrl.core.checks import first_line

# Share of the entries that may differ from those of torch by more than rounding: where two
# actions are as good, rounding chooses between them.
_DIFFERING = 0.01
# How often one object may trace steps.
_MOST_PROGRAMS = 8
# Programs on disk: the most bytes, of which the least recently used go first, and how many seconds
# one must have taken.
_KEPT_BYTES, _KEPT_SECONDS = 1 << 28, 0.05
# What a process may be writing right now.
_WRITING_SECONDS = 60
# How deep the numbers of an environment lie in its objects, and where none of them lie.
_DEPTH, _LIBRARIES = 4, ("torch", "torchrl", "tensordict", "numpy", "builtins", "functools")


def keep_programs() -> None:
    """Let JAX keep what it compiles on disk, for later runs of the same program.

    Programs are known by all that they are made of, with JAX's version; the folder,
    ``~/.cache/hpo_torchrl``, has a part for each kind of processor. Where it cannot be made,
    nothing is kept. Whoever has told JAX where to keep them (``JAX_COMPILATION_CACHE_DIR``) has the
    last word.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None:
        return
    kind = hashlib.sha256(_processor().encode()).hexdigest()[:16]
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "hpo_torchrl" / f"xla-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        _mend(folder)
    except (OSError, RuntimeError):  # nowhere to write, no home: JAX would warn of each program
        return
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_compilation_cache_max_size", _KEPT_BYTES)
    config.update("jax_persistent_cache_min_compile_time_secs", _KEPT_SECONDS)


def _mend(folder: Path) -> None:
    """Take programs away that a process was writing when it was killed.

    They lack the time of their last use, without which JAX would keep nothing any more.
    """
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process has done it
            used = path.with_name(path.name.removesuffix("-cache") + "-atime")
            if not used.exists() and time.time() - path.stat().st_mtime > _WRITING_SECONDS:
                path.unlink()


def _processor() -> str:
    """Return what a program compiled for this processor may rely on."""
    facts = Path("/proc/cpuinfo")
    if not facts.exists():
        return platform.processor()
    lines = {*facts.read_text().splitlines()}
    return "\n".join(sorted(line for line in lines if line.startswith(("model name", "flags"))))


keep_programs()


class DifferentStepError(RuntimeError):
    """A traced step does not do what the step does."""


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
        self.programs: dict[Any, _Program] = {}
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
        with _in_torchs_widths():
            if (program := self.programs.get(key)) is not None:
                return program.call(weights, begin, parts)
            began = time.perf_counter()
            try:
                if len(self.programs) >= _MOST_PROGRAMS:
                    raise DifferentStepError(f"it has been traced {len(self.programs)} times")
                if any(part._forward_hooks or part._forward_pre_hooks for part in self._parts()):
                    raise DifferentStepError("a module has hooks, which only PyTorch would call")
                program = _Program.of(step, weights, carried, parts, form, graph)
                self._compare(program, [*weights, *begin, *parts], step, inputs)
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

    def _compare(self, program: _Program, leaves: list[Any], step: Step, inputs: Any) -> None:
        """Raise an error if a traced step, or its gradient, is not that of the step itself."""
        weights, begin, parts, constants = program.arrays(leaves)
        # Not by JAX, which would compile each cut of an array.
        last, (entries, *kept) = jax.tree.map(
            np.asarray, program.forward(weights, constants, begin, parts)
        )
        given, form = tree_flatten(inputs)
        before = kept[-1]
        number = len(next(part for part in given if part is not None))
        for at in sorted({0, number // 2, number - 1}):
            own = tree_unflatten([None if part is None else part[at] for part in given], form)
            start = {n: _to_torch(v[at]) for n, v in zip(program.carried, before, strict=True)}
            for value in start.values() if program.gradients_asked else ():
                value.requires_grad_(value.is_floating_point())
            after, exact = step(start, own)
            ahead = [v[at + 1] for v in before] if at + 1 < number else last
            found = [*ahead, *(value[at] for value in entries)]
            true = [*(after[name] for name in program.carried), *(exact[n] for n in program.names)]
            for name, one, value in zip(program.carried + program.names, true, found, strict=True):
                other = _to_torch(value).double()
                near = torch.isclose(one.detach().double(), other, 1e-3, 1e-3, equal_nan=True)
                if (~near).double().mean() > _DIFFERING:
                    raise DifferentStepError(f"the entry {name!r} of a traced step is another")
        if not program.gradients_asked:
            return
        # The last of them again, by other slopes than those of the trace, which are ones.
        row = jax.tree_util.tree_map(lambda value: value[at : at + 1], (parts, kept))
        given = [true[i].detach() for i in program.differentiable]
        given = [torch.linspace(0.5, 1.5, v.numel()).to(v).view_as(v) for v in given]
        first, begun = len(program.carried), [*start.values()]
        asked = [leaves[i] for i in program.learned]
        asked += [begun[i] for i in program.differentiable if i < first]
        slopes = torch.autograd.grad(
            [true[i] for i in program.differentiable], asked, given, allow_unused=True
        )
        rows = [(v.numpy(), i < first) for v, i in zip(given, program.differentiable, strict=True)]
        tangents = [v for v, carried in rows if carried], [v[None] for v, c in rows if not c]
        total, at_begin = program.backward(weights, constants, *row, tangents)
        for one, value in zip(slopes, total + at_begin, strict=True):
            other = _to_torch(value)
            size = 0.0 if one is None else float(one.norm())
            if float((other - (0.0 if one is None else one)).norm()) > _DIFFERING * size + 1e-6:
                raise DifferentStepError("the gradient of a traced step is another")

    def _give_up(self, cause: str) -> None:
        self.given_up = True
        self.programs.clear()
        if self.name is not None:
            warn_uncompiled(self.name, cause)


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


@dataclass(eq=False, repr=False)
class _Program:
    """A step as two functions of JAX, forward and backward.

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
        seconds: time spent on tracing and compiling.
    """

    lowered: Lowered
    numbers: tuple[int, int, int]
    constants: dict[Node, Tensor]
    leaves: list[Node]
    tangents: list[Node]
    outputs: list[Any]
    gradients: list[Any]
    differentiable: list[int]
    names: list[Any]
    carried: list[str]
    seconds: float = 0.0
    compiled: bool = False  # backward too

    @classmethod
    def of(
        cls,
        step: Step,
        weights: list[Tensor],
        carried: dict[str, Tensor],
        parts: list[Tensor],
        form: Any,
        graph: bool,
    ) -> _Program:
        """Trace a step at the inputs of the first one."""
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
        nodes = self.lowered.nodes
        given = [*self.leaves, *self.constants]
        # What follows from gradients is the backward pass; what it reads of the forward one is
        # kept, but for what the weights alone say.
        late, fixed = set(self.tangents), set(self.leaves[: self.numbers[0]]) | set(self.constants)
        for node in nodes:
            before = node.all_input_nodes
            if any(part in late for part in before):
                late.add(node)
            elif node not in given and all(part in fixed for part in before):
                fixed.add(node)
        moving = [node for node in nodes if node not in {*late, *fixed, *given}]
        read = {part for node in late for part in node.all_input_nodes} | {*self.gradients}
        read = {source_of(node, moving) for node in moving if node in read}
        self.kept = [node for node in moving if node in read]
        for node in reversed(self.kept.copy()):  # rather twice than written and read
            others = {*given, *self.kept} - {node}
            if all(part.target in CHEAP for part in self.lowered.needed([node], others)):
                self.kept.remove(node)
        self.forward_steps = self.lowered.needed(self._nodes(self.outputs) + self.kept, given)
        known = [*given, *self.tangents, *self.kept]
        self.backward_steps = self.lowered.needed(self._nodes(self.gradients), known)
        self.gradients_asked = bool(self.differentiable)
        self.learned = [i for i in range(self.numbers[0]) if self.gradients[i] is not None]
        self.forward, self.backward = jax.jit(self._forward), jax.jit(self._backward)

    @staticmethod
    def _nodes(values: Sequence[Any]) -> list[Node]:
        return [value for value in values if isinstance(value, Node)]

    def _known(self, weights: Any, constants: Any, carried: Any, inputs: Any) -> dict[Node, Any]:
        known = dict(zip(self.constants, constants, strict=True))
        return known | dict(zip(self.leaves, (*weights, *carried, *inputs), strict=True))

    def _forward(self, weights: Any, constants: Any, carried: Any, inputs: Any) -> Any:
        number = len(self.carried)

        def body(carried: Any, own: Any) -> Any:
            known = self._known(weights, constants, carried, own)
            values = self.lowered.run(self.forward_steps, known)
            found = [values[node] for node in self.outputs]
            kept = [values[node] for node in self.kept]
            return found[:number], (found[number:], kept, carried)

        return lax.scan(body, carried, inputs)

    def _backward(self, weights: Any, constants: Any, inputs: Any, kept: Any, tangents: Any) -> Any:
        first, number = self.numbers[0], len(self.carried)
        at_end, of_entries = tangents

        def body(state: Any, row: Any) -> Any:
            total, slopes = state
            own, (saved, carried), entries = row
            known = self._known(weights, constants, carried, own)
            known |= dict(zip(self.kept, saved, strict=True))
            known |= dict(zip(self.tangents, (*slopes, *entries), strict=True))
            values = self.lowered.run(self.backward_steps, known)
            found = [None if node is None else values[node] for node in self.gradients]
            total = [part + found[i] for part, i in zip(total, self.learned, strict=True)]
            later = [
                jnp.zeros_like(carried[i]) if found[first + i] is None else found[first + i]
                for i in self.differentiable
                if i < number
            ]
            return (total, later), None

        begin = ([jnp.zeros_like(weights[i]) for i in self.learned], at_end)
        (total, slopes), _ = lax.scan(body, begin, (inputs, kept, of_entries), reverse=True)
        return total, slopes

    def arrays(self, leaves: Sequence[Tensor | None]) -> tuple[list[Any], ...]:
        """Return weights, carried tensors, inputs and constants, those that are read, for JAX."""
        first, number, _ = self.numbers
        values = [
            value.detach().numpy() if value is not None and node.users else None
            for value, node in zip(leaves, self.leaves, strict=True)
        ]
        constants = [value.detach().numpy() for value in self.constants.values()]
        return values[:first], values[first : first + number], values[first + number :], constants

    def call(
        self, weights: list[Tensor], begin: list[Tensor], parts: list[Tensor]
    ) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        """Take all steps."""
        found = _Steps.apply(self, *weights, *begin, *parts)
        number = len(self.carried)
        carried = dict(zip(self.carried, found[:number], strict=True))
        return carried, dict(zip(self.names, found[number:], strict=True))


class _Steps(torch.autograd.Function):
    """All steps, with the gradients of the weights and of where they began."""

    @staticmethod
    def forward(ctx: Any, program: _Program, *leaves: Tensor) -> tuple[Tensor, ...]:
        weights, begin, inputs, constants = program.arrays(leaves)
        carried, (entries, *kept) = jax.block_until_ready(
            program.forward(weights, constants, begin, inputs)
        )
        found = [*map(_to_torch, (*carried, *entries))]
        fixed = [value for i, value in enumerate(found) if i not in program.differentiable]
        ctx.mark_non_differentiable(*fixed)
        ctx.save_for_backward(*leaves)  # which must be the same then
        ctx.program, ctx.kept = program, kept
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        program, began = ctx.program, time.perf_counter()
        first, number, _ = program.numbers
        with _in_torchs_widths():
            weights, _, inputs, constants = program.arrays(ctx.saved_tensors)
            slopes = {i: gradients[i].numpy() for i in program.differentiable}
            tangents = [
                [slope for i, slope in slopes.items() if (i < number) == carried]
                for carried in (True, False)
            ]
            found = jax.block_until_ready(
                program.backward(weights, constants, inputs, ctx.kept, tangents)
            )
            total, at_begin = ([*map(_to_torch, part)] for part in found)
        if not program.compiled:
            program.seconds, program.compiled = program.seconds + time.perf_counter() - began, True
        places = [*program.learned, *(first + i for i in slopes if i < number)]
        every = dict(zip(places, (*total, *at_begin), strict=True))
        return (None, *(every.get(i) for i in range(len(ctx.needs_input_grad) - 1)))


def _to_torch(value: Any) -> Tensor:
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


def _in_torchs_widths() -> Any:
    """Return a context in which JAX has 64 bits where torch does."""
    return jax.enable_x64(True)
