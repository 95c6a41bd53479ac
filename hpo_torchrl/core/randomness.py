"""Where random numbers come from: torch's global generator, or one generator for each seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hpo_torchrl.core import ranks
from hpo_torchrl.core.checks import check_int


class Randomness:
    """A source of random numbers.

    With a sequence of S seeds every draw has a leading axis of length S, and row s is exactly what
    ``Randomness(seeds[s])`` alone would have drawn. A copy (``copy.deepcopy``) is the object
    itself, so that copies of a policy go on drawing from one stream.

    Args:
        seeds: ``None`` draws from torch's global generator, an integer from a generator of its own,
            a sequence of integers from one generator each.
        device: device of the generators; draws must be made there.
        instances: length of the whole batch's first axis, where ranks share it: each draws the
            numbers of all and takes those of its own instances, so that they do not depend on how
            many ranks there are.

    Attributes:
        num_seeds: number S of seeds of a sequence, else ``None``.

    Raises:
        ValueError: a seed is negative, or the sequence is empty.

    Examples:
        >>> from hpo_torchrl.core.randomness import Randomness
        >>> together = Randomness([3, 4]).draw("normal", (2, 5))
        >>> bool((together[1] == Randomness(4).draw("normal", (5,))).all())
        True
    """

    def __init__(
        self,
        seeds: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        instances: int | None = None,
    ) -> None:
        own = list(seeds) if isinstance(seeds, Sequence) else [seeds]
        if not own:
            raise ValueError("seeds must hold at least one seed, got an empty sequence.")
        self.num_seeds = len(own) if isinstance(seeds, Sequence) else None
        self.instances = instances
        self.generators = [
            torch.Generator(device or "cpu").manual_seed(check_int("seed", seed, minimum=0))
            for seed in own
            if seed is not None
        ]

    def __deepcopy__(self, memo: dict) -> Randomness:
        """Return the object itself."""
        return self

    def draw(self, kind: str, shape: Sequence[int], **place: Any) -> Tensor:
        """Draw numbers of a kind, see :meth:`fill`; with S seeds the shape begins with S."""
        return self.fill(kind, torch.empty(tuple(shape), **place))

    def fill(self, kind: str, values: Tensor, axis: int = 0) -> Tensor:
        """Fill a tensor with draws of a kind: ``"exponential"``, ``"normal"`` or ``"uniform"``.

        Args:
            kind: the kind.
            values: what is filled, and returned.
            axis: its first axis of the batch, which ranks share.
        """
        if self.instances is not None and ranks.active():
            shape = (*values.shape[:axis], self.instances, *values.shape[axis + 1 :])
            rows = ranks.share(self.instances)
            drawn = self._filled(kind, values.new_empty(shape))
            return values.copy_(drawn.narrow(axis, rows.start, rows.stop - rows.start))
        return self._filled(kind, values)

    def _filled(self, kind: str, values: Tensor) -> Tensor:
        draw: Callable[..., Tensor] = getattr(torch.Tensor, f"{kind}_")
        if self.num_seeds is None:
            return draw(values, generator=next(iter(self.generators), None))
        if len(values) != self.num_seeds:
            raise ValueError(
                f"A draw for {self.num_seeds} seeds needs a shape that begins with that number, "
                f"got {tuple(values.shape)}."
            )
        for row, generator in zip(values.unbind(0), self.generators, strict=True):
            draw(row, generator=generator)
        return values

    def permutation(self, number: int, device: Any = None) -> Tensor:
        """Draw an order of 0, ..., number - 1: int64 ``(n,)``, or ``(S, n)``."""
        if not self.generators:
            return torch.randperm(number, device=device)
        orders = [torch.randperm(number, generator=g, device=g.device) for g in self.generators]
        return orders[0] if self.num_seeds is None else torch.stack(orders)

    def state(self, index: int | None = None) -> _State:
        """Return what a checkpoint of one seed holds: an object with ``state_dict``.

        Args:
            index: number of the seed; ``None`` where there is only one generator.
        """
        if (index is None) != (self.num_seeds is None):
            wanted = "no index" if self.num_seeds is None else f"an index below {self.num_seeds}"
            raise ValueError(f"The state of this Randomness needs {wanted}, got {index}.")
        if self.generators:
            return _State(self.generators[index or 0])
        return _State(torch.default_generator, *torch.cuda.default_generators)


class _State:
    """The state of generators."""

    def __init__(self, *generators: torch.Generator) -> None:
        self.generators = generators

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"generators": [generator.get_state() for generator in self.generators]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        # A checkpoint may be of a machine with other devices.
        for generator, own in zip(self.generators, state["generators"], strict=False):
            generator.set_state(own.cpu())
