"""The arguments that a callable takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def accepted(function: Callable) -> dict[str, inspect.Parameter]:
    """Return the arguments that a function, class or class method takes, by name.

    ``**kwargs`` stands for the arguments of the next constructor: a class's own of the next class
    that it derives from, a class method's of its class.
    """
    found: dict[str, inspect.Parameter] = {}
    for number, parameters in enumerate(signatures(function)):
        named = [p for p in parameters if p.kind in NAMED and p.name not in found]
        if number and inspect.ismethod(function):
            # A class method that hands arguments on gives what the class requires itself.
            named = [p for p in named if p.default is not p.empty]
        found |= {p.name: p for p in named}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    if isinstance(function, partial):
        found = {name: p for name, p in found.items() if name not in function.keywords}
    return found


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
