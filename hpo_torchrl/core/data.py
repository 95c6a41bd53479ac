"""The entries of a tensordict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

# The name of an entry, or the names on the way to a nested one.
Key = str | tuple[str, ...]


def entry(
    data: Any, key: NestedKey, owner: str, last: Sequence[int] | None = None, dtype: Any = None
) -> Tensor:
    """Return an entry.

    Args:
        data: the tensordict.
        key: the entry.
        owner: who asks, for messages.
        last: its shape behind the batch, if that is known.
        dtype: its type, likewise.

    Raises:
        TypeError: the data are no tensordict.
        KeyError: the entry is missing; the message names it, what is there, and the fix.
        ValueError: it has another shape or dtype.
    """
    if not isinstance(data, TensorDictBase):
        raise TypeError(
            f"{owner} needs a tensordict, got {data!r:.60} of type {type(data).__name__}."
        )
    value = data.get(key, None)
    if value is None:
        found = sorted(map(str, data.keys(include_nested=True, leaves_only=True)))
        raise KeyError(
            f"{owner} needs the entry {key!r}, which the data does not hold. Its entries are "
            f"{', '.join(found)}. Collect it with differentiable_rollout, or name your own entry "
            "by set_keys."
        )
    shape = value.shape if last is None else (*data.shape, *last)
    if value.shape != shape or dtype not in (None, value.dtype):
        raise ValueError(
            f"{owner}: {key!r} must be {dtype or value.dtype} of shape {tuple(shape)}, got "
            f"{value.dtype} of shape {tuple(value.shape)}."
        )
    return value
