"""Tensors of a container, moved to a device."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor


def moved_to(device: torch.device | str, value: Any) -> Any:
    """Return a value with its tensors on a device, in dicts, lists and tuples of any depth too.

    Args:
        device: the device.
        value: anything; tuples may be named. What holds no tensor that is elsewhere is returned
            itself.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.core.moving import moved_to
        >>> table = {"power": [torch.zeros(2)], "names": ("a", "b")}
        >>> moved_to("meta", table)["power"][0].device
        device(type='meta')
        >>> moved_to("cpu", table) is table
        True
    """
    if isinstance(value, Tensor):
        return value.to(device)
    if not isinstance(value, (dict, list, tuple)):
        return value
    kept = list(value.values()) if isinstance(value, dict) else list(value)
    parts = [moved_to(device, part) for part in kept]
    if all(map(operator.is_, parts, kept)):
        return value
    if isinstance(value, dict):
        moved = copy.copy(value)  # with its attributes: a state dict has some
        moved.update(zip(value, parts, strict=True))
        return moved
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
