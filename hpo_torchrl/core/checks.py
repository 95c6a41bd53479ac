"""Argument checks shared by every room: each error names the argument, the value and the fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_int(name: str, value: Any, *, minimum: int) -> int:
    """Return ``value`` if it is an integer of at least ``minimum``.

    Raises:
        TypeError: ``value`` is not an int (a bool is not one).
        ValueError: ``value`` is below ``minimum``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{name} must be an integer >= {minimum}, got {value!r} of type "
            f"{type(value).__name__}; write it without quotes or a decimal point."
        )
    if value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value}.")
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
    too_low = number <= minimum if strict else number < minimum
    if not math.isfinite(number) or too_low or number > maximum:
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
    sizes = list(value) if isinstance(value, (Sequence, torch.Size)) else [value]
    if isinstance(value, str):
        sizes = [value]
    return [check_int(name, size, minimum=1) for size in sizes]


def check_range(name: str, value: Any) -> tuple[float, float]:
    """Return ``value`` if it is two numbers, the first above 0 and at most the second.

    Raises:
        TypeError: a bound is not a number.
        ValueError: it is not two bounds in this order.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers [low, high], got {value!r}.")
    low = check_float(f"{name}[0]", value[0], minimum=0.0, strict=True)
    return low, check_float(f"{name}[1]", value[1], minimum=low)


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
    value: float | Sequence[float],
    num_items: int,
    *,
    dtype: torch.dtype,
    device: torch.device | None,
    minimum: float = 0.0,
    strict: bool = False,
) -> Tensor:
    """Expand a scalar, or check a sequence with one entry per item, to a tensor of shape ``(n,)``.

    Raises:
        TypeError: an entry is not a number.
        ValueError: the length is not ``num_items``, or an entry is NaN, infinite or too small.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    if isinstance(value, Real):
        value = [check_float(name, value, minimum=minimum, strict=strict)] * num_items
    elif isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(
            f"{name} must be a number or a sequence with one number per item, got {value!r} "
            f"of type {type(value).__name__}."
        )
    if len(value) != num_items:
        raise ValueError(
            f"{name} must be a number or hold one entry per item: expected num_items={num_items} "
            f"entries, got {len(value)}."
        )
    entries = [
        check_float(f"{name}[{i}]", entry, minimum=minimum, strict=strict)
        for i, entry in enumerate(value)
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
