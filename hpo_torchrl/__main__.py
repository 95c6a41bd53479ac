"""The commands by one name: ``python -m hpo_torchrl train ...`` is ``hpo-train ...``.

In this form ``torchrun`` starts them: ``torchrun --nproc_per_node=2 -m hpo_torchrl train ...``.
"""

from __future__ import annotations

import sys

from hpo_torchrl.experiments import commands

_NAMES = ("train", "eval", "data", "order", "gradients", "export", "report")


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in _NAMES:
        sys.exit(
            f"hpo_torchrl: error: the first argument must be one of {', '.join(_NAMES)}, got "
            f"{name!r}; hpo-train is the first of them, and so on."
        )
    sys.argv[:2] = [f"hpo-{name}"]
    getattr(commands, {"eval": "evaluate"}.get(name, name))()


if __name__ == "__main__":
    main()
