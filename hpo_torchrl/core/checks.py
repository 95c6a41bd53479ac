"""The arguments that a callable takes, and checks of their values, for every room.

Each error names the argument, the value and the fix.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


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
    number = float(value)
    inside = minimum < number if strict else minimum <= number
    if not (math.isfinite(number) and inside and number <= maximum):
        raise ValueError(f"{name} must be {expected}, got {value}.")
    return number


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
            f"entries, got {len(value)}."
        )
    entries = [
        check_float(f"{name}[{i}]" if many else name, entry, minimum=minimum, strict=strict)
        for i, entry in enumerate(value if many else [value] * num_items)
    ]
    return torch.tensor(entries, dtype=dtype, device=device)


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
