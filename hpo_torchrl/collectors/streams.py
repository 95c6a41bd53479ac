"""Random numbers of several runs side by side, each as if it were alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Stream:
    """The global random-number generators as one run would have them, kept beside the real ones.

    Args:
        device: where the run draws.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.collectors.streams import Stream
        >>> _ = torch.manual_seed(3)
        >>> stream = Stream("cpu")
        >>> here = torch.rand(1)
        >>> with stream.in_place():
        ...     there = torch.rand(1)
        >>> torch.equal(here, there)
        True
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        device = torch.device("cpu" if device is None else device)
        places = [torch.device("cpu"), *([] if device.type == "cpu" else [device])]
        self._generators = [torch.Generator(place) for place in places]
        self.take()

    @property
    def generator(self) -> torch.Generator:
        """The generator of the run's device."""
        return self._generators[-1]

    def take(self) -> None:
        """Go on from the state of the global generators."""
        for generator in self._generators:
            generator.set_state(_get_global(generator.device))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put these generators in place of the global ones for as long as the context lasts."""
        kept = [_get_global(generator.device) for generator in self._generators]
        for generator in self._generators:
            _set_global(generator.device, generator.get_state())
        try:
            yield
        finally:
            self.take()
            for generator, state in zip(self._generators, kept, strict=True):
                _set_global(generator.device, state)


class Streams:
    """The streams of S runs as a source of draws, see :meth:`HybridDistribution.draw`.

    Args:
        streams: one for each run.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.generators = [stream.generator for stream in streams]

    def exponential_(self, values: Tensor) -> Tensor:
        """Fill ``values`` ``(S, ...)`` from Exp(1), each run's row from its own stream."""
        for row, generator in zip(values.unbind(0), self.generators, strict=True):
            row.exponential_(generator=generator)
        return values

    def normal_(self, values: Tensor) -> Tensor:
        """Fill ``values`` from the standard normal distribution, likewise."""
        for row, generator in zip(values.unbind(0), self.generators, strict=True):
            row.normal_(generator=generator)
        return values


def _get_global(device: torch.device) -> Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def _set_global(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)
