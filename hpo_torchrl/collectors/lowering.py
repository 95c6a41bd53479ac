"""What operations of PyTorch are in JAX: a graph of one, run by the other."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch._decomp import core_aten_decompositions
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# The package torchax has such a table too. It is made for other versions of torch, and does not
# load beside the one that is tested here.
Array = jax.Array
# How many times as many rows as columns the narrow product of two long matrices has.
_NARROW = 4
_aten = torch.ops.aten


class UnknownOperationError(NotImplementedError):
    """A graph has an operation that is not in the table."""


def dtype_of(dtype: torch.dtype) -> Any:
    """Return JAX's dtype of the same name."""
    return jnp.dtype(str(dtype).removeprefix("torch."))


def trace(function: Callable[..., Any], *given: Any) -> GraphModule:
    """Return what a function does to tensors, and its gradients in it, as operations of ATen.

    Raises:
        RuntimeError: it looks at the value of a tensor.
    """
    # One mode for the shapes of all nodes; torch makes one for each otherwise, which takes longer
    # than the node.
    with tracing(TracingContext(FakeTensorMode())):
        with _WithoutLooking():
            traced = make_fx(function, _decompositions(), tracing_mode="real")(*given)
        # Once more, for what writes in place: there it makes new tensors instead.
        if any(_writes(node) for node in traced.graph.nodes):
            with torch.no_grad():
                pure = functionalize(traced, remove="mutations")
                traced = make_fx(pure, _decompositions(), tracing_mode="real")(*given)
        return traced


def _writes(node: Node) -> bool:
    """Return whether an operation writes to what it is given."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Return how operations are told by others, those that are not in the table."""
    return {name: how for name, how in core_aten_decompositions().items() if name not in OPERATIONS}


class _WithoutLooking(TorchFunctionMode):
    """Functions of torch that look at values only to check them."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    if num_classes < 0:  # as many as there are
        return F.one_hot(tensor, num_classes)
    every = torch.arange(num_classes, device=tensor.device)
    return (tensor.unsqueeze(-1) == every).to(torch.int64)


class Lowered:
    """A graph of ATen operations, part by part as functions of JAX.

    Args:
        graph: as ``make_fx`` traces it.

    Raises:
        UnknownOperationError: an operation is not in the table.
    """

    def __init__(self, graph: Graph) -> None:
        self.nodes = [node for node in graph.nodes if node.op != "output"]
        for node in self.nodes:
            if node.op == "call_function" and node.target not in OPERATIONS:
                name = getattr(node.target, "__name__", str(node.target))
                raise UnknownOperationError(f"{name} has no counterpart in JAX here")
            if "strided" in str(node.target) and not _in_order(node):
                raise UnknownOperationError(f"{node.target} is of a memory in another order")

    def text(self) -> str:
        """Return all that the graph says: two of one text are the same function."""

        def kind(value: Any) -> Any:
            return None if value is None else (value.shape, value.dtype, value.stride())

        kinds = [tree_map(kind, node.meta.get("val")) for node in self.nodes]
        parts = [(node.name, node.target, node.args, node.kwargs) for node in self.nodes]
        return repr((parts, kinds))

    def needed(self, wanted: Iterable[Node], known: Iterable[Node]) -> list[Node]:
        """Return what must be computed for the nodes that are wanted, in order."""
        found, stack = set(known), list(wanted)
        before = set(found)
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack += node.all_input_nodes
        return [node for node in self.nodes if node in found - before]

    def run(self, steps: Sequence[Node], known: Mapping[Node, Any]) -> dict[Node, Any]:
        """Compute nodes, in order, from those that are known."""
        values = dict(known)
        for node in steps:
            args, kwargs = tree_map(
                lambda part: values[part] if isinstance(part, Node) else part,
                (tuple(node.args), dict(node.kwargs)),
            )
            if node.target is _aten.bmm.default:
                args = tuple(
                    _once(part, value) for part, value in zip(node.args, args, strict=True)
                )
            found = OPERATIONS[node.target](*args, **kwargs)
            values[node] = tree_map(_in_dtype, found, node.meta["val"])
        return values


def _once(node: Any, value: Array) -> Array:
    """Return one of the matrices of a batch where all are the same, for one larger product."""
    return value[0] if node.meta["val"].stride(0) == 0 else value


def source_of(node: Node, through: Container[Any], among: Container[Node] | None = None) -> Node:
    """Return what a node has its numbers from, by operations that change none.

    Args:
        node: the node.
        through: the operations.
        among: goes no further back than these; ``None`` goes as far as it can.
    """
    while node.target in through or _of_one(node):
        before = node.all_input_nodes[0]
        if among is not None and before not in among:
            break
        node = before
    return node


def _of_one(node: Node) -> bool:
    """Return whether a node is one part alone, stacked, or lies between a value and itself."""
    args: Any = node.args
    if node.target is _aten.stack.default:
        return len(args[0]) == 1
    if node.target is _aten.lerp.Scalar:  # whose gradient is another
        return source_of(args[0], SAME) is source_of(args[1], SAME)
    return False


def _in_order(node: Node) -> bool:
    """Return whether what has strides lies in memory in the order of its axes."""
    new = node.target is _aten.new_empty_strided.default
    laid: Any = node if new else node.args[0]
    return bool(laid.meta["val"].is_contiguous())


def _in_dtype(found: Any, like: Any) -> Any:
    """Return a value in the dtype that torch has: JAX widens in other places."""
    if not isinstance(like, torch.Tensor):
        return found
    return jnp.asarray(found, dtype_of(like.dtype))


# -- operations that take more than a line ---------------------------------------------------------


def _axes(dim: Any) -> tuple[int, ...] | None:
    """Return the axes of a reduction: a number, some, or all where none is named."""
    if dim is None or dim == []:
        return None
    return tuple(dim) if isinstance(dim, (list, tuple)) else (dim,)


def _reduced(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduce(value: Array, dim: Any = None, keepdim: bool = False, **_: Any) -> Array:
        return function(value, axis=_axes(dim), keepdims=keepdim)

    return reduce


def _variance(
    value: Array, dim: Any = None, *, correction: Any = 1, keepdim: bool = False
) -> Array:
    return jnp.var(value, axis=_axes(dim), ddof=correction, keepdims=keepdim)


def _norm(
    value: Array, order: float = 2, dim: Any = None, keepdim: bool = False, **_: Any
) -> Array:
    size: Array = jnp.abs(value)
    over: dict[str, Any] = {"axis": _axes(dim), "keepdims": keepdim}
    if order in (math.inf, -math.inf):
        return (jnp.max if order > 0 else jnp.min)(size, **over)
    if order == 2:
        return jnp.sqrt(jnp.sum(size**2, **over))
    return jnp.sum(size**order, **over) ** (1.0 / order)


def _extreme(reduce: Callable[..., Array], arg: Callable[..., Array]) -> Callable[..., Any]:
    def extreme(value: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
        return reduce(value, axis=dim, keepdims=keepdim), arg(value, axis=dim, keepdims=keepdim)

    return extreme


def _arg(function: Callable[..., Array]) -> Callable[..., Array]:
    def arg(value: Array, dim: int | None = None, keepdim: bool = False) -> Array:
        return function(value, axis=dim, keepdims=keepdim)

    return arg


def _added(value: Any, other: Any, *, alpha: Any = 1) -> Any:
    return value + (other if alpha == 1 else alpha * other)


def _subtracted(value: Any, other: Any, *, alpha: Any = 1) -> Any:
    return value - (other if alpha == 1 else alpha * other)


def _divided(value: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return jnp.true_divide(value, other)
    rounded = jnp.floor if rounding_mode == "floor" else jnp.trunc
    return rounded(jnp.true_divide(value, other))


def _expanded(value: Array, size: Sequence[int], **_: Any) -> Array:
    new = len(size) - value.ndim
    kept = [value.shape[i - new] if n == -1 else n for i, n in enumerate(size)]
    return jnp.broadcast_to(value, kept)


def _cut(value: Array, dim: int, start: int | None, end: int | None, step: int) -> tuple:
    """Return the index of a slice along one axis."""
    size = value.shape[dim]
    stop = None if end is None or end > size else end
    return (slice(None),) * (dim % value.ndim) + (slice(start, stop, step),)


def _slice(
    value: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    return value[_cut(value, dim, start, end, step)]


def _slice_scatter(
    value: Array,
    part: Array,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Array:
    return value.at[_cut(value, dim, start, end, step)].set(part)


def _select(value: Array, dim: int, index: int) -> Array:
    return value[(slice(None),) * (dim % value.ndim) + (index,)]


def _select_scatter(value: Array, part: Array, dim: int, index: int) -> Array:
    return value.at[(slice(None),) * (dim % value.ndim) + (index,)].set(part)


def _along(value: Array, dim: int, index: Array) -> tuple[Any, ...]:
    """Return the indices of a gather or scatter along one axis, which broadcast."""
    places: list[Any] = list(jnp.indices(index.shape, sparse=True))
    places[dim] = jnp.where(index < 0, index + value.shape[dim], index)
    return tuple(places)


def _gather(value: Array, dim: int, index: Array, **_: Any) -> Array:
    return value[_along(value, dim, index)] if value.ndim else value


def _scatter(value: Array, dim: int, index: Array, source: Any) -> Array:
    return value.at[_along(value, dim, index)].set(jnp.asarray(source, value.dtype))


def _scatter_add(value: Array, dim: int, index: Array, source: Any) -> Array:
    return value.at[_along(value, dim, index)].add(source)


def _places(indices: Sequence[Array | None]) -> tuple[Any, ...]:
    if any(part is not None and part.dtype == bool for part in indices):
        raise UnknownOperationError("an index by a mask, whose length is not known, is no array")
    return tuple(slice(None) if part is None else part for part in indices)


def _index(value: Array, indices: Sequence[Array | None]) -> Array:
    return value[_places(indices)]


def _index_put(
    value: Array, indices: Sequence[Array | None], source: Any, accumulate: bool = False
) -> Array:
    mask = indices[0]
    if len(indices) == 1 and mask is not None and mask.dtype == bool and jnp.size(source) == 1:
        apart = mask.reshape(*mask.shape, *(1,) * (value.ndim - mask.ndim))
        return jnp.where(apart, jnp.reshape(source, ()) + (value if accumulate else 0), value)
    at = value.at[_places(indices)]
    return at.add(source) if accumulate else at.set(source)


def _index_select(value: Array, dim: int, index: Array) -> Array:
    return jnp.take(value, index, axis=dim)


def _index_add(value: Array, dim: int, index: Array, source: Array) -> Array:
    return value.at[(slice(None),) * (dim % value.ndim) + (index,)].add(source)


def _squeezed(value: Array, dims: Any = None) -> Array:
    axes = range(value.ndim) if dims is None else _axes(dims)
    return jnp.squeeze(value, tuple(i for i in axes or () if value.shape[i] == 1))


def _strides(size: Sequence[int], stride: Sequence[int], offset: int | None) -> Any:
    """Return the places in memory of the entries of a strided array."""
    axes = [step * np.arange(number) for number, step in zip(size, stride, strict=True)]
    return sum(np.ix_(*axes), np.zeros(size, np.int64)) + (offset or 0)


def _strided(
    value: Array, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> Array:
    return value.reshape(-1)[_strides(size, stride, offset)]


def _strided_scatter(
    value: Array,
    source: Array,
    size: Sequence[int],
    stride: Sequence[int],
    offset: int | None = None,
) -> Array:
    flat = value.reshape(-1).at[_strides(size, stride, offset)].set(source)
    return flat.reshape(value.shape)


def _constant(value: Any) -> Callable[..., Array]:
    def constant(size: Sequence[int], *_: Any, dtype: Any = torch.float32, **__: Any) -> Array:
        return jnp.full(size, value, dtype_of(dtype or torch.float32))

    return constant


def _full(size: Sequence[int], value: Any, *, dtype: Any = None, **_: Any) -> Array:
    return jnp.full(size, value, None if dtype is None else dtype_of(dtype))


def _padded(value: Array, pad: Sequence[int], filled: Any = 0) -> Array:
    sides = [*zip(pad[::2], pad[1::2], strict=True)]  # of the last axis first; below 0 cuts
    every = [(0, 0)] * (value.ndim - len(sides)) + sides[::-1]
    filling = jnp.asarray(filled, value.dtype)
    return lax.pad(value, filling, [(before, after, 0) for before, after in every])


def _like(filled: Any) -> Callable[..., Array]:
    def like(value: Array, *_: Any, dtype: Any = None, **__: Any) -> Array:
        return jnp.full_like(value, filled, dtype=None if dtype is None else dtype_of(dtype))

    return like


def _full_like(value: Array, filled: Any, *, dtype: Any = None, **_: Any) -> Array:
    return jnp.full_like(value, filled, dtype=None if dtype is None else dtype_of(dtype))


def _new_full(value: Array, size: Sequence[int], filled: Any, **how: Any) -> Array:
    return jnp.full(size, filled, dtype_of(how["dtype"]) if how.get("dtype") else value.dtype)


def _range(start: Any, end: Any, step: Any = 1, **_: Any) -> Array:
    return jnp.arange(start, end, step)


def _copied(value: Array, *, dtype: Any = None, **_: Any) -> Array:
    return value if dtype is None else value.astype(dtype_of(dtype))


def _as_it_is(value: Array, *_: Any, **__: Any) -> Array:
    return value


def _clamped(value: Array, low: Any = None, high: Any = None) -> Array:
    return jnp.clip(value, low, high)


def _product(left: Array, right: Array) -> Array:
    """Return a product of matrices; of a long and narrow one, such as gradients have, transposed.

    XLA takes three to six times as long for these on a CPU otherwise, and only barriers keep it
    from turning them back.
    """
    rows, long = left.shape
    if right.shape[1] * _NARROW > rows or rows > long:
        return left @ right
    turned = lax.optimization_barrier(right.T) @ left.T
    return lax.optimization_barrier(turned).T


def _product_added(
    added: Array, left: Array, right: Array, *, beta: Any = 1, alpha: Any = 1
) -> Any:
    return beta * added + alpha * (left @ right)


def _softmax(value: Array, dim: int, *_: Any, **__: Any) -> Array:
    return jax.nn.softmax(value, axis=dim)


def _log_softmax(value: Array, dim: int, *_: Any, **__: Any) -> Array:
    return jax.nn.log_softmax(value, axis=dim)


def _elu(value: Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Array:
    below = alpha * jnp.expm1(jnp.minimum(value, 0.0) * input_scale)
    return jnp.where(value > 0, scale * value, scale * below)


def _softplus(value: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    return jnp.where(value * beta > threshold, value, jnp.logaddexp(value * beta, 0.0) / beta)


def _sorted(value: Array, dim: int = -1, descending: bool = False, **_: Any) -> tuple[Array, Array]:
    order = jnp.argsort(value, axis=dim, stable=True, descending=descending)
    return jnp.take_along_axis(value, order, axis=dim), order


def _stable_sorted(
    value: Array, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Array, Array]:
    return _sorted(value, dim, descending)


def _rolled(value: Array, shifts: Any, dims: Any = ()) -> Array:
    return jnp.roll(value, tuple(shifts), tuple(dims) or None)


def _cumulated(function: Callable[..., Array]) -> Callable[..., Array]:
    def cumulate(value: Array, dim: int, **_: Any) -> Array:
        return function(value, axis=dim)

    return cumulate


def _split(value: Array, size: int, dim: int = 0) -> list[Array]:
    return jnp.split(value, [*range(size, value.shape[dim], size)], axis=dim)


def _split_by(value: Array, sizes: Sequence[int], dim: int = 0) -> list[Array]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return jnp.split(value, ends, axis=dim)


def _table() -> dict[Any, Callable[..., Any]]:
    """Return the operations by ATen's overloads."""
    one_line: dict[str, Callable[..., Any]] = {
        "abs": jnp.abs,
        "ceil": jnp.ceil,
        "cos": jnp.cos,
        "copy": lambda value, source, *_: jnp.broadcast_to(source, value.shape),
        "erf": jax.scipy.special.erf,
        "special_ndtri": jax.scipy.special.ndtri,
        "constant_pad_nd": _padded,
        "exp": jnp.exp,
        "expm1": jnp.expm1,
        "floor": jnp.floor,
        "gelu": lambda value, *, approximate="none": jax.nn.gelu(value, approximate == "tanh"),
        "hardtanh": lambda value, low=-1.0, high=1.0: jnp.clip(value, low, high),
        "hypot": jnp.hypot,
        "embedding": lambda weight, index, *_: weight[index],
        "isinf": jnp.isinf,
        "isnan": jnp.isnan,
        "log": jnp.log,
        "log1p": jnp.log1p,
        "logical_not": jnp.logical_not,
        "bitwise_not": jnp.bitwise_not,
        "neg": jnp.negative,
        "reciprocal": jnp.reciprocal,
        "relu": jax.nn.relu,
        "round": jnp.round,
        "rsqrt": lax.rsqrt,
        "sigmoid": jax.nn.sigmoid,
        "sgn": jnp.sign,
        "sign": jnp.sign,
        "sin": jnp.sin,
        "sqrt": jnp.sqrt,
        "tan": jnp.tan,
        "tanh": jnp.tanh,
        "trunc": jnp.trunc,
        "atan2": jnp.arctan2,
        "lerp": lambda start, end, weight: start + weight * (end - start),
        "logaddexp": jnp.logaddexp,
        "maximum": jnp.maximum,
        "minimum": jnp.minimum,
        "logical_and": jnp.logical_and,
        "logical_or": jnp.logical_or,
        "logical_xor": jnp.logical_xor,
        "mm": _product,
        "bmm": jnp.matmul,
        "mv": jnp.matmul,
        "dot": jnp.matmul,
        "addmm": _product_added,
        "baddbmm": _product_added,
        "alias": _as_it_is,
        "clone": _as_it_is,
        "detach": _as_it_is,
        "lift_fresh_copy": _as_it_is,
        "_to_copy": _copied,
        "expand": _expanded,
        "permute": jnp.transpose,
        "view": jnp.reshape,
        "reshape": jnp.reshape,
        "_unsafe_view": jnp.reshape,
        "unsqueeze": jnp.expand_dims,
        "squeeze": _squeezed,
        "t": jnp.transpose,
        "repeat": jnp.tile,
        "as_strided": _strided,
        "as_strided_scatter": _strided_scatter,
        "roll": _rolled,
        "flip": jnp.flip,
        "index_select": _index_select,
        "index_add": _index_add,
        "index_put": _index_put,
        "gather": _gather,
        "scatter_add": _scatter_add,
        "slice_scatter": _slice_scatter,
        "select_scatter": _select_scatter,
        "full": _full,
        "full_like": _full_like,
        "zeros_like": _like(0),
        "ones_like": _like(1),
        "new_zeros": lambda value, size, **how: _new_full(value, size, 0, **how),
        "new_ones": lambda value, size, **how: _new_full(value, size, 1, **how),
        "new_full": _new_full,
        "new_empty_strided": lambda value, size, _, **how: _new_full(value, size, 0, **how),
        "zeros": _constant(0),
        "ones": _constant(1),
        "scalar_tensor": lambda value, **how: _full((), value, **how),
        "clamp": _clamped,
        "clamp_min": jnp.maximum,
        "clamp_max": jnp.minimum,
        "_softmax": _softmax,
        "_log_softmax": _log_softmax,
        "elu": _elu,
        "softplus": _softplus,
        "silu": jax.nn.silu,
        "leaky_relu": jax.nn.leaky_relu,
        "argmax": _arg(jnp.argmax),
        "argmin": _arg(jnp.argmin),
        "amax": _reduced(jnp.max),
        "amin": _reduced(jnp.min),
        "sum": _reduced(jnp.sum),
        "linalg_vector_norm": _norm,
        "mean": _reduced(jnp.mean),
        "any": _reduced(jnp.any),
        "all": _reduced(jnp.all),
        "prod": _reduced(jnp.prod),
        "sort": _sorted,
        "topk": lambda value, k, dim=-1, *_: tuple(
            part[_cut(value, dim, 0, k, 1)] for part in _sorted(value, dim, descending=True)
        ),
        "cumsum": _cumulated(jnp.cumsum),
        "cumprod": _cumulated(jnp.cumprod),
        "add": _added,
        "sub": _subtracted,
        "mul": lambda value, other: value * other,
        "div": _divided,
        "pow": lambda value, other: value**other,
        "remainder": jnp.mod,
        "fmod": jnp.fmod,
        "floor_divide": jnp.floor_divide,
        "bitwise_and": jnp.bitwise_and,
        "bitwise_or": jnp.bitwise_or,
        "bitwise_xor": jnp.bitwise_xor,
        "eq": lambda value, other: value == other,
        "ne": lambda value, other: value != other,
        "ge": lambda value, other: value >= other,
        "gt": lambda value, other: value > other,
        "le": lambda value, other: value <= other,
        "lt": lambda value, other: value < other,
    }
    found: dict[Any, Callable[..., Any]] = {}
    for name, function in one_line.items():
        packet = getattr(_aten, name)
        found |= {getattr(packet, overload): function for overload in packet.overloads()}
    return found | {
        # Of these some overloads mean something else.
        _aten.arange.default: lambda end, **_: jnp.arange(end),
        _aten.arange.start: _range,
        _aten.arange.start_step: _range,
        _aten.cat.default: lambda parts, dim=0: jnp.concatenate(parts, axis=dim),
        _aten.index.Tensor: _index,
        _aten.max.default: jnp.max,
        _aten.max.dim: _extreme(jnp.max, jnp.argmax),
        _aten.min.default: jnp.min,
        _aten.min.dim: _extreme(jnp.min, jnp.argmin),
        _aten.masked_fill.Scalar: lambda value, mask, other: jnp.where(mask, other, value),
        _aten.masked_fill.Tensor: lambda value, mask, other: jnp.where(mask, other, value),
        _aten.scatter.src: _scatter,
        _aten.scatter.value: _scatter,
        _aten.select.int: _select,
        _aten.slice.Tensor: _slice,
        _aten.sort.stable: _stable_sorted,
        _aten.split.Tensor: _split,
        _aten.split_with_sizes.default: _split_by,
        _aten.stack.default: lambda parts, dim=0: jnp.stack(parts, axis=dim),
        _aten.sub.Scalar: _subtracted,
        _aten.transpose.int: jnp.swapaxes,
        _aten.var.correction: _variance,
        _aten.where.self: jnp.where,
        _aten.where.ScalarSelf: jnp.where,
        _aten.where.ScalarOther: jnp.where,
        _aten.where.Scalar: jnp.where,
        operator.getitem: lambda parts, place: parts[place],
    }


OPERATIONS = _table()


def _overloads(names: str) -> set[Any]:
    packets = {f"aten.{name}" for name in names.split()}
    return {name for name in OPERATIONS if str(getattr(name, "overloadpacket", "")) in packets}


# The same numbers in order, other forms of them, and operations that take less than to keep what
# they find.
SAME = _overloads("alias clone detach view reshape _unsafe_view squeeze unsqueeze")
VIEWS = SAME | _overloads("expand permute t transpose")
CHEAP = VIEWS | _overloads(
    "select neg abs add sub rsub mul div le lt ge gt eq ne where relu bitwise_and bitwise_not "
    "logical_and logical_not"
)
