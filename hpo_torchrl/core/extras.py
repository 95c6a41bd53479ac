"""Packages that only some need: imported where they are used, missed with the way to get them."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MissingExtraError(ImportError):
    """A package is not installed that an extra of this one brings."""


def extra(module: str, name: str) -> Any:
    """Import a package of an extra.

    Args:
        module: what is imported.
        name: name of the extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise MissingExtraError(
            f"{module} is not installed, and this needs it: pip install 'hpo_torchrl[{name}]'."
        ) from error
