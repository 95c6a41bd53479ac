"""The arguments that a callable takes, and checks of their values, for every room.

Each error names the argument, the value and the fix.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
Checked = TypeVar("Checked", bound=Callable)
_hints = functools.cache(get_type_hints)
_EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


def checked(function: Checked) -> Checked:
    """Let a function refuse arguments that are not what its annotations say.

    Numbers are left to :func:`check_int` and :func:`check_float`, which know their ranges.
    """
    names = [name for name, p in inspect.signature(function).parameters.items() if p.kind in NAMED]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_annotated(function, dict(zip(names, args, strict=False)) | kwargs)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def check_annotated(owner: Any, given: Mapping[str, Any]) -> None:
    """Raise a ``TypeError`` where a value is not what a function or dataclass is annotated with."""
    for name, hint in _hints(owner).items():
        if name not in given or given[name] is getattr(owner, name, _EXACT):  # a field's default
            continue
        if hint is bool:
            check_bool(name, given[name])
        if not _fits(given[name], hint):
            text = getattr(hint, "__name__", str(hint)).replace("collections.abc.", "")
            kind = type(given[name]).__name__
            raise TypeError(f"{name} must be {text}, got {shown(given[name])} of type {kind}.")


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if kind in (int, float):
        return isinstance(value, Real)
    if kind is Any or not isinstance(kind, type):
        return True
    # Text is a sequence of nothing that is asked for.
    return kind in (str, object) if type(value) is str else isinstance(value, kind)


def shown(value: Any) -> str:
    """Return a value as a message shows it: a tensor by its shape, what is long cut short."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"numbers of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_int(name: str, value: Any, *, minimum: int) -> int:
    """Return ``value`` if it is an integer of at least ``minimum`` that fits into 64 bits.

    Raises:
        TypeError: ``value`` is not an int (a bool is not one).
        ValueError: ``value`` is below ``minimum``, or 2**63 or more.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{name} must be an integer >= {minimum}, got {value!r} of type "
            f"{type(value).__name__}; write it without quotes or a decimal point."
        )
    if value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value}.")
    if int(value) >= 2**63:
        raise ValueError(f"{name} must be an integer below 2**63, got {value}.")
    return int(value)


def check_float(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    strict: bool = False,
) -> float:
    """Return ``value`` as a finite float in ``[minimum, maximum]`` (``strict``: above ``minimum``).

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` is NaN, infinite or out of range.
    """
    expected = f"a finite number {'>' if strict else '>='} {minimum:g}"
    if maximum != math.inf:
        expected += f" and <= {maximum:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {expected}, got {value!r} of type {type(value).__name__}.")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    inside = minimum < number if strict else minimum <= number
    if not (math.isfinite(number) and inside and number <= maximum):
        raise ValueError(f"{name} must be {expected}, got {value}.")
    return number


def in_dtype(
    name: str, value: Any, dtype: torch.dtype, device: Any = None, *, strict: bool = False
) -> Tensor:
    """Return numbers as a tensor of a type that holds them and their squares.

    Raises:
        TypeError: they are no numbers.
        ValueError: one is NaN, infinite, too large for the type, or (strict) too close to 0.
    """
    try:
        exact = torch.as_tensor(value, **_EXACT)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must hold real numbers, got {shown(value)}.") from error
    limit = torch.finfo(dtype).max ** 0.5
    least = 1 / limit if strict else 0.0
    wrong = ~((exact.abs() <= limit) & (exact.abs() >= least))
    if bool(wrong.any()):
        raise ValueError(
            f"{name} must be finite in {dtype}, got {float(exact[wrong][0])}; so must its square"
            f"{' and inverse' * strict} ({least:.1e} to {limit:.1e} in size). Use another unit or "
            "dtype=torch.float64."
        )
    return exact.to(device, dtype)


def check_finite(name: str, values: Tensor) -> None:
    """Raise a ``ValueError`` if a tensor holds NaN or infinity."""
    wrong = ~values.isfinite()
    if bool(wrong.any()):
        raise ValueError(
            f"{name} must be finite, got {float(values[wrong][0])} in {int(wrong.sum())} of "
            f"{values.numel()} places."
        )


def check_range(name: str, ends: Any, number: Any) -> None:
    """Raise a ``ValueError`` if ends ``(low, high)`` are no range.

    Args:
        name: name of the argument.
        ends: the ends, each ``None`` (infinite), one number, or one for each coordinate.
        number: number of coordinates; or the shape that both ends must have, by branch.
    """
    exact = isinstance(number, tuple)
    try:
        rows = zip(ends, (-math.inf, math.inf), strict=True)
        found = [torch.as_tensor(none if end is None else end, **_EXACT) for end, none in rows]
        low, high = both = torch.stack([end.expand(number) for end in found])
        inside = (low <= high) & (low < math.inf) & (high > -math.inf)
        sound = bool((inside & (both.float().isinf() == both.isinf())).all())
        sound &= not exact or found[0].shape == found[1].shape == number
    except (TypeError, ValueError, RuntimeError):
        sound = False
    if not sound:
        form = f"of shape {number}" if exact else f"None or a number, or {number} of them"
        raise ValueError(
            f"{name} must be (low, high) with low <= high, each {form}, got {shown(ends)}."
        )


def check_heads(num_heads: Any, continuous_dim: int) -> None:
    """Raise an error if a number of heads is neither ``None`` nor a divisor of the dimension."""
    if num_heads is not None and continuous_dim % check_int("num_heads", num_heads, minimum=1):
        raise ValueError(
            f"num_heads must divide continuous_dim={continuous_dim}, got {num_heads}: each head "
            "chooses for an equal part of the continuous action."
        )


def check_device(device: Any) -> torch.device | None:
    """Return a device of torch, ``None`` for ``None``; else raise a ``ValueError``."""
    try:
        return None if device is None else torch.device(device)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"device must be one of torch's, got {device!r}.") from error


def check_bool(name: str, value: Any) -> bool:
    """Return ``value`` if it is a bool, else raise a ``TypeError``: ``no`` and ``off`` are text."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {value!r}.")
    return value


def check_sizes(name: str, value: Any) -> list[int]:
    """Return a size or a sequence of sizes, each at least 1, as a list.

    Raises:
        TypeError: it is neither an integer nor a sequence of integers.
        ValueError: a size is below 1.
    """
    many = isinstance(value, Sequence) and not isinstance(value, str)
    return [check_int(name, size, minimum=1) for size in (value if many else [value])]


def entries_of(name: str, value: Any) -> list[Any]:
    """Return the entries of a sequence, else raise a ``TypeError``."""
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a sequence, got {shown(value)}.")
    return list(value)


def check_dtype(dtype: Any) -> torch.dtype:
    """Return ``dtype`` if it is a floating-point type of torch, else raise a ``TypeError``."""
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"dtype must be a floating-point torch.dtype such as torch.float32, got {dtype!r}."
        )
    return dtype


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``, else raise a ``ValueError`` that lists them."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}."
            + did_you_mean(str(value), choices)
        )
    return value


def per_item(
    name: str,
    value: Any,
    num_items: int,
    *,
    dtype: torch.dtype,
    device: torch.device | None,
    minimum: float = 0.0,
    strict: bool = False,
) -> Tensor:
    """Expand a number, or check a sequence with one entry per item, to a tensor of shape ``(n,)``.

    Raises:
        TypeError: an entry is not a number.
        ValueError: the length is not ``num_items``, or an entry is NaN, infinite or too small.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    many = isinstance(value, Sequence) and not isinstance(value, str)
    if many and len(value) != num_items:
        raise ValueError(
            f"{name} must be a number or hold one entry per item: expected num_items={num_items} "
            f"entries, got {len(value)}: {shown(value)}."
        )
    entries = [
        check_float(f"{name}[{i}]" if many else name, entry, minimum=minimum, strict=strict)
        for i, entry in enumerate(value if many else [value] * num_items)
    ]
    return in_dtype(name, entries, dtype, device, strict=strict)


def check_floats(name: str, values: Any, *, strict: bool = False) -> list[float]:
    """Return a sequence of finite numbers >= 0 (strict: > 0) as a list."""
    entries = entries_of(name, values)
    return [check_float(name, entry, minimum=0.0, strict=strict) for entry in entries]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def accepted(function: Callable) -> dict[str, inspect.Parameter]:
    """Return the arguments that a function, class or class method takes, by name.

    ``**kwargs`` stands for the arguments of the next constructor: a class's own of the next class
    that it derives from, a class method's of its class.
    """
    found: dict[str, inspect.Parameter] = {}
    for number, parameters in enumerate(signatures(function)):
        for p in parameters:
            # A class method that hands arguments on gives what the class requires itself.
            given = number > 0 and inspect.ismethod(function) and p.default is p.empty
            if p.kind in NAMED and not given:
                found.setdefault(p.name, p)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    bound = function.keywords if isinstance(function, partial) else ()
    return {name: p for name, p in found.items() if name not in bound}


def signatures(function: Callable) -> Iterator[list[inspect.Parameter]]:
    """Yield the parameters of a function, then of each constructor that ``**kwargs`` reach."""
    function = function.func if isinstance(function, partial) else function
    owner = function if inspect.isclass(function) else getattr(function, "__self__", None)
    chain = [] if inspect.isclass(function) else [function]
    if isinstance(owner, type):
        # The constructors' own signatures: TorchRL's metaclass hides them.
        chain += [vars(cls)["__init__"] for cls in owner.__mro__ if "__init__" in vars(cls)]
    for target in chain:
        yield [p for p in inspect.signature(target).parameters.values() if p.name != "self"]
