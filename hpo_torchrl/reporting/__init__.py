"""Tables and figures, from plain numbers and from the folders of runs."""

from importlib import import_module
from typing import Any

# Where a name comes from. It is imported when it is first used: pandas takes a second to load.
_MODULES = {
    "figures": ("plot_gradients", "plot_learning_curve"),
    "report": ("write_report",),
    "tables": (
        "format_gradients",
        "format_seeds",
        "format_summary",
        "recommendation",
        "write_rows",
    ),
}
__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
