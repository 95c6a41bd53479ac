"""How many threads torch computes with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from hpo_torchrl.core.checks import check_int

# Products of narrower layers are over before a second thread has woken up.
_WIDE = 256
_MOST = 4


def set_threads(config: Mapping[str, Any]) -> int:
    """Set torch's number of threads as ``trainer.num_threads`` of a configuration says.

    ``None`` is 1 for nets whose layers are all narrower than 256 units, else the number of cores,
    at most 4.

    Returns:
        The number.

    Raises:
        TypeError: the number is not an integer.
        ValueError: it is below 1.
    """
    number = config["trainer"]["num_threads"]
    if number is None:
        number = 1
        if widest_layer(config) >= _WIDE:
            # Not all cores of a machine need be this process's own.
            affinity = getattr(os, "sched_getaffinity", None)
            number = min(_MOST, len(affinity(0)) if affinity else os.cpu_count() or 1)
    torch.set_num_threads(check_int("trainer.num_threads", number, minimum=1))
    return number


def widest_layer(config: Mapping[str, Any]) -> int:
    """Return the width of the widest hidden layer; sizes that will be refused do not count."""
    hidden = [config.get(section, {}).get("hidden") for section in ("policy", "critic")]
    sizes = [size for layers in hidden if isinstance(layers, (list, tuple)) for size in layers]
    return max((size for size in sizes if isinstance(size, int)), default=0)
