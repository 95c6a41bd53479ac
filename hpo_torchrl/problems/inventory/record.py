"""Recorded demand, replayed: one record for all env instances, or a trace for each."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from hpo_torchrl.core.checks import (
    check_bool,
    check_choice,
    check_int,
    entries_of,
    first_line,
    in_dtype,
)
from hpo_torchrl.envs.differentiable import DifferentiableEnv, State
from hpo_torchrl.problems.inventory.demand import Demand


class Record(Demand, name="record"):
    """Demand that is replayed from a record, period by period.

    Every item of an env instance has a place in the record and meets the demand that stands there;
    after the last of ``periods`` come the first ones again. The state has the place, ``"period"``
    (not with a horizon, where the step of the episode tells it, unless the season is shown), and
    ``"recent"`` demand. The observation has the recent demand, but not the place, which means
    nothing in other periods: with ``show_season`` only its place in the season. The noise depends
    on the state: :meth:`InventoryEnv.sample_noise` needs the state that a rollout starts in.

    A start has k periods of history, which may precede ``periods``. Stocks of a ``"stationary"``
    start have met periods of ``train_periods``, drawn independently.

    A record is short, and a policy learns to know its periods by their recent demand. With
    ``season`` the items of an instance start at places of their own, multiples of a season apart:
    each still meets its own record, in combinations too many to know. All that items have in
    common besides the season is lost.

    Args:
        record: demand of all periods there are, ``(T, n)``; or ``(B, T, n)``, of its own for each
            of B env instances; or the path of a ``.npy`` file that holds it.
        periods: which of them are replayed: ``(first, end)``, without ``end``; all by default.
        train_periods: which of them are known when decisions are learned: their mean is the unit
            of observations and actions, and rules are tuned to them. By default ``periods``.
        history: number k of recent demands in the observation, 0 and up.
        start_period: ``"random"``: anywhere in ``periods``, for training; ``"first"``: all items
            at the first of them that has k periods before it, for tests.
        season: periods of a season, by whose multiples items are apart at random starts (1: by any
            number); ``None`` keeps them together. It is kept too where the record begins again, as
            the first periods of an incomplete season are then left out.
        show_season: whether the observation has sine and cosine of the place in the season, which
            is counted from the first period of the record.
        mean: unit of observations and actions, instead of the mean of ``train_periods``.
        items: names of the items; numbers by default.
        labels: names of the T periods; numbers by default.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the record is not finite, negative or of the wrong shape, a period is out of
            range, or an item has no demand in ``train_periods``.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.problems.inventory import Record
        >>> record = torch.arange(12.0).unsqueeze(-1)  # one item, twelve periods
        >>> demand = Record(record, (8, 12), (0, 8), history=3, start_period="first")
        >>> env = InventoryEnv(demand=demand)
        >>> start = env.reset()
        >>> start["recent"].tolist(), start["period"].tolist()
        ([[5.0, 6.0, 7.0]], [8.0])
        >>> env.sample_noise(6, start).squeeze(-1).tolist()
        [8.0, 9.0, 10.0, 11.0, 8.0, 9.0]
    """

    num_periods: int

    def __init__(
        self,
        record: Any,
        periods: Sequence[int] | None = None,
        train_periods: Sequence[int] | None = None,
        *,
        history: int = 0,
        start_period: str = "random",
        season: int | None = None,
        show_season: bool = False,
        mean: float | Sequence[float] | None = None,
        items: Sequence[str] | None = None,
        labels: Sequence[Any] | None = None,
    ) -> None:
        self.history = check_int("history", history, minimum=0)
        self.start_period = check_choice("start_period", start_period, ("random", "first"))
        self.season = None if season is None else check_int("season", season, minimum=1)
        if check_bool("show_season", show_season):
            if season is None or season < 2:
                raise ValueError(
                    f"show_season=True needs the periods of a season, 2 or more, got season="
                    f"{season}; give it (52 for weeks of a year), or show none."
                )
            self.shown_season = season
        self.record = check_record("record", record, 2, 3)
        length, self.num_items = self.record.shape[-2:]
        self.batch_size = self.record.shape[0] if self.record.ndim == 3 else None
        self.periods = check_periods("periods", periods or (0, length), length, history)
        known = train_periods or self.periods
        self.train_periods = check_periods("train_periods", known, length, 0)
        average = self.record[..., slice(*self.train_periods), :].flatten(0, -2).mean(0)
        self.items = [str(item) for item in entries_of("items", items or range(self.num_items))]
        self.labels = entries_of("labels", labels or range(length))
        for name, wanted in {"items": self.num_items, "labels": length}.items():
            if len(found := getattr(self, name)) != wanted:
                raise ValueError(f"{name} must hold {wanted} names, got {len(found)}.")
        silent = [item for item, value in zip(self.items, average, strict=True) if value == 0]
        if silent and mean is None:
            raise ValueError(
                f"No demand in train_periods={self.train_periods} for item {', '.join(silent)}: "
                "nothing can be learned of it. Leave such items out, or give a longer record "
                "(of a file, other fractions)."
            )
        super().__init__(average.tolist() if mean is None else mean)
        # The earliest start that has ``history`` before it, and what is left from there.
        self.first_period = max(self.periods[0], history)
        self.num_periods = self.periods[1] - self.first_period

    def bind(self, num_items: int, horizon: int | None, batch_size: Any, **place: Any) -> Self:
        """Return a copy for an environment; with a horizon all episodes are the first periods."""
        bound = super().bind(num_items, horizon, batch_size, **place)
        bound.record, horizon = in_dtype("record", self.record, **place), bound.horizon
        bound.keeps_place = horizon is None or self.shown_season is not None
        if horizon is not None and self.start_period != "first":
            raise ValueError(
                f"Episodes of horizon={horizon} begin at the same period: give the record "
                "start_period='first', or leave the horizon out."
            )
        if isinstance(horizon, int) and horizon > self.num_periods:
            raise ValueError(
                f"horizon={horizon} is longer than the demand, which holds {self.num_periods} "
                "periods; shorten the horizon or give a longer record."
            )
        return bound

    def span(self, first: int, end: int) -> str:
        """Return the first and the last of some periods, counted from the start, by their names."""
        first, end = (min(self.first_period + at, self.periods[1]) for at in (first, end))
        return f"{self.labels[first]} to {self.labels[end - 1]}"

    def draw(self, num_steps: int, state: State, env: DifferentiableEnv) -> Tensor:
        """Read the demand of the coming periods from each item's place, ``(*B, T, n)``."""
        steps = torch.arange(num_steps, device=self.record.device).unsqueeze(-1)
        if self.horizon is not None:
            place = self.first_period + (state["step"].unsqueeze(-2) + steps) % self.horizon
            return self._read(place.expand(*env.batch_size, -1, len(self.mean)))
        place = state["period"].long().unsqueeze(-2) + steps
        return self._read(self.wrapped(place))

    def draw_any(self, env: DifferentiableEnv) -> Tensor:
        """Draw whole periods of ``train_periods``: items keep what they have in common."""
        rng, shape = env.rng, (*env.batch_size, 1)
        place = torch.randint(*self.train_periods, shape, generator=rng, device=rng.device)
        return self._read(place.expand(*env.batch_size, len(self.mean)))

    def start(self, env: DifferentiableEnv) -> dict[str, Tensor]:
        """Draw a place, with the demand before it.

        Items of an instance are multiples of a season apart; without a season they are together.
        """
        period = self._first(env)
        if self.start_period == "random":
            draw = functools.partial(torch.randint, generator=env.rng, device=env.rng.device)
            # Periods that hold no whole season are one season.
            season = min(self.season or self.num_periods, self.num_periods)
            period = period + draw(season, (*period.shape[:-1], 1))
            period = period + season * draw(self.num_periods // season, period.shape)
        entries = {"period": period.to(self.record.dtype)} if self.keeps_place else {}
        if self.history:
            before = torch.arange(-self.history, 0, device=period.device).unsqueeze(-1)
            recent = self._read(period.unsqueeze(-2) + before).transpose(-1, -2)
            entries = {"recent": recent, **entries}
        return entries

    def usual_start(self, env: DifferentiableEnv) -> dict[str, Tensor]:
        """Return the first place, if all start there."""
        if self.start_period != "first":
            raise ValueError(
                "Recorded demand depends on where a rollout starts: give that too, "
                "env.sample_noise(T, env.reset()), or make the record with start_period='first'."
            )
        period = self._first(env)
        return {"period": period, "step": torch.zeros_like(period[..., :1])}

    def wrapped(self, place: Tensor) -> Tensor:
        """Bring places beyond the end of ``periods`` back to their beginning, by whole seasons."""
        first, end = self.periods
        begin = first + (end - first) % min(self.season or 1, end - first)
        return torch.where(place < end, place, begin + (place - begin) % (end - begin))

    def _first(self, env: DifferentiableEnv) -> Tensor:
        shape = (*env.batch_size, len(self.mean))
        return torch.full(shape, self.first_period, device=self.record.device)

    def _read(self, place: Tensor) -> Tensor:
        """Return the demand of each item at a place of its own: ``(..., n)`` of ``(..., n)``."""
        record = self.record.reshape(-1, *self.record.shape[-2:])
        row, item = (torch.arange(size, device=place.device) for size in record.shape[::2])
        return record[row.reshape(-1, *[1] * (place.ndim - 1)), place, item]


class Traces(Record, name="traces"):
    """A trace of demand for each of B env instances; an episode is the trace, from its start.

    Args:
        traces: demand, ``(B, T, n)``, or the path of a ``.npy`` file that holds it. It
            sets the batch size to B and, where none is given, the horizon to T.
        mean: unit of observations and actions; the mean of the traces by default.
    """

    def __init__(self, traces: Any, mean: float | Sequence[float] | None = None) -> None:
        record = check_record("traces", traces, 3)
        super().__init__(record, start_period="first", mean=mean)
        self.horizon = self.num_periods


_SHAPES = {2: "(T, n) = (periods, items)", 3: "(B, T, n) = (env instances, periods, items)"}


def check_record(name: str, record: Any, *dimensions: int) -> Tensor:
    """Return a record as a tensor of doubles.

    Args:
        name: what to call it in errors.
        record: demand, ``(T, n)``, or ``(B, T, n)`` by env instance; or the path of its file.
        dimensions: how many it may have.

    Raises:
        ValueError: it has another shape, or holds NaN, infinity or negative numbers.
    """
    if isinstance(record, (str, Path)):
        record = _load(f"demand.{name}", Path(record))
    if not isinstance(record, Tensor):
        try:
            record = torch.as_tensor(np.array(record, dtype=np.float64))  # some are read-only
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must hold rows of numbers: {error}.") from error
    if record.ndim not in dimensions or record.numel() == 0:
        shapes = " or ".join(_SHAPES[number] for number in dimensions)
        raise ValueError(f"{name} must have shape {shapes}, got {tuple(record.shape)}.")
    if not bool(((record >= 0) & (record < math.inf)).all()):
        raise ValueError(f"{name} must be finite and >= 0; it holds NaN, inf or negatives.")
    return record.double()


def check_periods(name: str, periods: Any, length: int, history: int) -> tuple[int, int]:
    """Return periods ``(first, end)`` of a record, of which one at least has a history.

    Raises:
        TypeError: they are not whole numbers.
        ValueError: there are no such periods.
    """
    if np.shape(periods) != (2,):
        raise ValueError(f"{name} must be two whole numbers (first, end), got {periods!r}.")
    first, end = (check_int(name, at, minimum=0) for at in periods)
    if not max(first, history) < end <= length:
        raise ValueError(
            f"{name} must be (first, end) within the {length} periods of the record, one of them "
            f"with history={history} periods before it, got {(first, end)}; take other periods, a "
            "longer record or a shorter history."
        )
    return first, end


def _load(key: str, path: Path) -> Tensor:
    """Read numbers from a ``.npy`` file."""
    try:
        if path.suffix != ".npy":
            raise ValueError("give a .npy file, as numpy.save writes it")
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except Exception as error:
        raise ValueError(f"{key}={str(path)!r} cannot be read: {first_line(error)}.") from error
