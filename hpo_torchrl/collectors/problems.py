"""Whether environments are of one problem, so that the equations of one serve all."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.envs import EnvBase

from hpo_torchrl.envs import DifferentiableEnv

# What tells one problem from another by its value.
_NUMBERS = (int, float, complex, np.generic)
_PLAIN = (*_NUMBERS, str, bytes, set, frozenset, range, Enum, torch.dtype, torch.device, type(None))
# Whose objects are not looked into: what they hold may depend on how they were used.
_FOREIGN = {*sys.stdlib_module_names, "torch", "torchrl", "tensordict", "numpy", "scipy"}
_FOREIGN |= {"pandas", "polars", "pyarrow"}
# What an environment holds that depends on how it was used; its buffers are of the problem.
_HOUSEKEEPING = vars(nn.Module()).keys() - {"_buffers", "_parameters", "_modules"}
_HOUSEKEEPING |= {"_cache", "_loaded_noise"}


def check_same_problem(first: DifferentiableEnv, other: DifferentiableEnv) -> None:
    """Raise a ``ValueError`` that names what differs, if two environments differ in it.

    Looked into are numbers, words, tensors, arrays, collections of these, modules, and objects of
    classes that are the library's or the user's. Of anything else (generators, functions, specs,
    data frames) two count as alike.
    """
    if type(first) is not type(other):
        raise ValueError(
            "Worlds side by side must be of one problem, got environments of "
            f"{type(first).__name__} and {type(other).__name__}."
        )
    inner = dict(other.named_children())
    for name, one in first.named_children():
        another = inner.get(name)
        if isinstance(one, DifferentiableEnv) and isinstance(another, DifferentiableEnv):
            check_same_problem(one, another)
    comparison = _Comparison()
    for name in dict.fromkeys((*vars(first), *vars(other))):
        if name in _HOUSEKEEPING:
            continue
        pair = (vars(env).get(name) for env in (first, other))
        difference = comparison.difference(name, *pair)
        if difference is not None:
            raise ValueError(
                f"Worlds side by side must be of one problem, but {difference}. Build them from "
                "one configuration; seeds alone may differ."
            )


class _Comparison:
    def __init__(self) -> None:
        # Objects may hold each other. They are kept, for an id is free again once its owner is.
        self._seen: dict[tuple[int, int], Any] = {}

    def difference(self, at: str, one: Any, other: Any) -> str | None:
        """Tell where two values differ first, or ``None``; ``at`` is what they are called."""
        if one is other or (id(one), id(other)) in self._seen:
            return None
        self._seen[id(one), id(other)] = one, other
        looked_into = self._parts(at, one, other)
        if looked_into is None:
            return f"{at} of one environment is {one!r}, of another {other!r}"
        found = (self.difference(*part) for part in looked_into)
        return next((difference for difference in found if difference is not None), None)

    def _parts(self, at: str, one: Any, other: Any) -> Iterable[tuple[str, Any, Any]] | None:
        """What remains to be compared of two values; ``None`` if they differ already."""
        if isinstance(one, _PLAIN) or isinstance(other, _PLAIN):
            plain = isinstance(one, _PLAIN) and isinstance(other, _PLAIN)
            return [] if plain and one == other else None
        if type(one) is not type(other):
            return None
        if isinstance(one, Tensor):
            return [] if one.dtype == other.dtype and torch.equal(one, other) else None
        if isinstance(one, np.ndarray):
            return [] if np.array_equal(one, other) else None
        if isinstance(one, (list, tuple)):
            pairs = enumerate(zip(one, other, strict=False))
            same = len(one) == len(other)
            return [(f"{at}[{i}]", *pair) for i, pair in pairs] if same else None
        if isinstance(one, Mapping):
            keys = list(one.keys())
            same = set(keys) == set(other.keys())
            return [(f"{at}[{key!r}]", one[key], other[key]) for key in keys] if same else None
        if isinstance(one, (EnvBase, TensorSpec)):
            return []  # compared by themselves; made of what is compared
        if isinstance(one, nn.Module):
            return [(f"{at}.state_dict()", dict(one.state_dict()), dict(other.state_dict()))]
        if type(one).__module__.partition(".")[0] in _FOREIGN:
            return []
        mine, theirs = _attributes(one), _attributes(other)
        names = dict.fromkeys((*mine, *theirs))
        return [(f"{at}.{name}", mine.get(name), theirs.get(name)) for name in names]


def _attributes(thing: Any) -> dict[str, Any]:
    names = [field.name for field in fields(thing)] if is_dataclass(thing) else []  # with slots
    held = {name: getattr(thing, name, None) for name in names}
    return {**held, **getattr(thing, "__dict__", {})}
