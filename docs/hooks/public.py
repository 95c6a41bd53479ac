"""The public names of the package, and where each is described on the site."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import FunctionType

_METHODS = (FunctionType, classmethod, staticmethod, property)


@functools.cache
def rooms() -> dict[str, list[str]]:
    """Return the public names by the package that offers them in its ``__all__``."""
    import hpo_torchrl

    found = pkgutil.walk_packages(hpo_torchrl.__path__, "hpo_torchrl.")
    packages = ["hpo_torchrl", *(module.name for module in found if module.ispkg)]
    offered = {name: getattr(importlib.import_module(name), "__all__", []) for name in packages}
    return {name: list(names) for name, names in offered.items() if names}


def where(package: str, name: str) -> str:
    """Return the path of an object by the module that defines it, its one place on the site."""
    value = getattr(importlib.import_module(package), name)
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    known = module and path and module.startswith("hpo_torchrl")
    return f"{module}.{path}" if known else f"{package}.{name}"


@functools.cache
def places() -> dict[str, str]:
    """Return the place of each public name, and of the methods of public classes as ``C.m``."""
    found = {}
    for package, names in rooms().items():
        for name in names:
            found[name] = where(package, name)
            value = getattr(importlib.import_module(package), name)
            for member, part in vars(value).items() if isinstance(value, type) else ():
                if isinstance(part, _METHODS) and part.__doc__ and not member.startswith("_"):
                    found[f"{name}.{member}"] = f"{found[name]}.{member}"
    return found
