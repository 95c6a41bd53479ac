"""Recorded demand, replayed: one record for all env instances, or a trace for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from hpo_torchrl.core.checks import check_choice, check_int, first_line
from hpo_torchrl.envs.differentiable import DifferentiableEnv, State
from hpo_torchrl.problems.inventory.demand import Demand

START_PERIODS = ("random", "first")


class Record(Demand, name="record"):
    """Demand that is replayed from a record, period by period.

    Every item of an env instance has a place in the record and meets the demand that stands there;
    after the last of ``periods`` come the first ones again. The state has two entries more:
    ``"period"``, ``(*B, n)``: the places of the demand to come, as floats (not with a horizon,
    where the step of the episode tells it); and with ``history``, ``"recent"``, ``(*B, n, k)``: the
    last k demands met, oldest first. The observation has the recent demand in periods of mean
    demand, but not the place, which means nothing in other periods. The noise depends on the
    state: :meth:`InventoryEnv.sample_noise` needs the state that a rollout starts in.

    A start has k periods of history, which may precede ``periods``. Stocks of a ``"stationary"``
    start have met periods of ``train_periods``, drawn independently.

    A record is short, and a policy learns to know its periods by their recent demand. With
    ``season`` the items of an instance start at places of their own, multiples of a season apart:
    each still meets its own record, in combinations too many to know. What items have in common
    besides the season is lost.

    Args:
        record: demand of all periods there are, ``(T, n)``; or ``(B, T, n)``, of its own for each
            of B env instances; or the path of a ``.npy`` or ``.pt`` file that holds it.
        periods: which of them are replayed: ``(first, end)``, without ``end``; all by default.
        train_periods: which of them are known when decisions are learned: their mean is the unit
            of observations and actions, and rules are tuned to them. By default ``periods``.
        history: number k of recent demands in the observation, 0 and up.
        start_period: ``"random"``: anywhere in ``periods``, for training; ``"first"``: all items
            at the first of them that has k periods before it, for tests.
        season: periods of a season, by whose multiples items are apart at random starts (1: by any
            number); ``None`` keeps them together. It is kept too where the record begins again, as
            the first periods of an incomplete season are then left out.
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
        mean: float | Sequence[float] | None = None,
        items: Sequence[str] | None = None,
        labels: Sequence[Any] | None = None,
    ) -> None:
        self.history = check_int("history", history, minimum=0)
        self.start_period = check_choice("start_period", start_period, START_PERIODS)
        self.season = None if season is None else check_int("season", season, minimum=1)
        loaded = load_tensor("demand.record", record) if isinstance(record, (str, Path)) else record
        self.record = torch.as_tensor(check_record("record", loaded))
        length, self.num_items = self.record.shape[-2:]
        self.batch_size = self.record.shape[0] if self.record.ndim == 3 else None
        self.periods = check_periods("periods", periods or (0, length), length, history)
        self.train_periods = check_periods(
            "train_periods", train_periods or self.periods, length, 0
        )
        known = self.record[..., slice(*self.train_periods), :].reshape(-1, self.num_items)
        self.items = [*items] if items is not None else [str(i) for i in range(self.num_items)]
        silent = [item for item, total in zip(self.items, known.sum(0), strict=True) if total == 0]
        if silent and mean is None:
            raise ValueError(
                f"No demand in train_periods={self.train_periods} for item {', '.join(silent)}: "
                "nothing can be learned of it. Leave such items out, or give a longer record "
                "(of a file, other fractions)."
            )
        super().__init__(known.mean(0).tolist() if mean is None else mean)
        self.labels = range(length) if labels is None else labels
        # The earliest start that has ``history`` before it, and what is left from there.
        self.first_period = max(self.periods[0], history)
        self.num_periods = self.periods[1] - self.first_period

    def bind(self, num_items: int, horizon: int | None, batch_size: Any, **place: Any) -> Self:
        """Return a copy for an environment; with a horizon all episodes are the first periods."""
        bound = super().bind(num_items, horizon, batch_size, **place)
        bound.record, horizon = self.record.to(**place), bound.horizon
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
        return self._read(wrap(place, self.periods, self.season))

    def draw_any(self, env: DifferentiableEnv) -> Tensor:
        """Draw whole periods of ``train_periods``: items keep what they have in common."""
        rng, shape = env.rng, (*env.batch_size, 1)
        place = torch.randint(*self.train_periods, shape, generator=rng, device=rng.device)
        return self._read(place.expand(*env.batch_size, len(self.mean)))

    def state_shapes(self, num_items: int) -> dict[str, tuple[int, ...]]:
        """Recent demand, and the place in the record."""
        recent = {"recent": (num_items, self.history)} if self.history else {}
        return {**recent, "period": (num_items,)} if self.horizon is None else dict(recent)

    def observation_dim(self, num_items: int) -> int:
        """The recent demand of all items."""
        return num_items * self.history

    def start(self, env: DifferentiableEnv) -> dict[str, Tensor]:
        """Draw a place, with the demand before it."""
        period = self._first(env)
        if self.start_period == "random":
            starts = (self.first_period, self.periods[1])
            period = draw_places(period.shape, starts, self.season, env.rng)
        entries = {} if self.horizon is not None else {"period": period.to(self.record.dtype)}
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

    def advance(self, state: State, met: Tensor) -> dict[str, Tensor]:
        """Remember the demand and move on."""
        after = {}
        if "period" in state:  # stocks that are warmed up have no place in the record yet
            after["period"] = wrap(state["period"] + 1, self.periods, self.season)
        if "recent" in state:
            after["recent"] = torch.cat([state["recent"][..., 1:], met.unsqueeze(-1)], -1)
        return after

    def observe(self, state: State) -> Tensor | None:
        """Return recent demand in periods of mean demand, flat."""
        if not self.history:
            return None
        return (state["recent"] / self.mean.unsqueeze(-1)).flatten(-2)

    def _first(self, env: DifferentiableEnv) -> Tensor:
        shape = (*env.batch_size, len(self.mean))
        return torch.full(shape, self.first_period, device=self.record.device)

    def _read(self, place: Tensor) -> Tensor:
        """Return the demand of each item at a place of its own: ``(..., n)`` of ``(..., n)``."""
        item = torch.arange(place.shape[-1], device=place.device)
        if self.record.ndim == 2:
            return self.record[place, item]
        row = torch.arange(len(self.record), device=place.device)
        return self.record[row.reshape(-1, *[1] * (place.ndim - 1)), place, item]


class Traces(Record, name="traces"):
    """A trace of demand for each of B env instances; an episode is the trace, from its start.

    Args:
        traces: demand, ``(B, T, n)``, or the path of a ``.npy`` or ``.pt`` file that holds it. It
            sets the batch size to B and, where none is given, the horizon to T.
        mean: unit of observations and actions; the mean of the traces by default.
    """

    def __init__(self, traces: Any, mean: float | Sequence[float] | None = None) -> None:
        if traces is None:
            raise ValueError(
                "demand.traces must be an array or name a .npy or .pt file, got None; on the "
                "command line env.demand.traces=FILE."
            )
        if isinstance(traces, (str, Path)):
            traces = load_tensor("demand.traces", traces)
        super().__init__(
            check_record("traces", traces, ("B", "T", "n")), start_period="first", mean=mean
        )
        self.horizon = self.num_periods


def wrap(place: Tensor, periods: tuple[int, int], season: int | None) -> Tensor:
    """Bring places beyond the end of ``periods`` back to their beginning, by whole seasons.

    Examples:
        >>> wrap(torch.arange(8, 14), (0, 10), None).tolist()
        [8, 9, 0, 1, 2, 3]
        >>> wrap(torch.arange(8, 14), (0, 10), 4).tolist()
        [8, 9, 2, 3, 4, 5]
    """
    first, end = periods
    begin = first + (end - first) % _fitting(season or 1, end - first)
    return torch.where(place < end, place, begin + (place - begin) % (end - begin))


def draw_places(
    shape: Sequence[int], periods: tuple[int, int], season: int | None, rng: torch.Generator
) -> Tensor:
    """Draw where each item of each env instance starts, int64 ``(*B, n)``.

    Items of an instance are multiples of a season apart; without a season they are together.
    """
    first, end = periods
    whole = _fitting(season or end - first, end - first)
    place: dict[str, Any] = {"generator": rng, "device": rng.device}
    phase = torch.randint(whole, (*shape[:-1], 1), **place)
    return first + phase + whole * torch.randint((end - first) // whole, shape, **place)


def check_record(name: str, record: Any, shape: Sequence[str] = ()) -> Any:
    """Return a record of doubles: a tensor where it is one, else an array of its own.

    Args:
        name: what to call it in errors.
        record: demand, ``(T, n)``, or ``(B, T, n)`` by env instance.
        shape: the only shape allowed, such as ``("T", "n")``.

    Raises:
        ValueError: it has another shape, or holds NaN, infinity or negative numbers.
    """
    given = isinstance(record, Tensor)  # else a copy: an array of a file is read-only
    record = record.double() if given else np.array(record, dtype=np.float64)
    if record.ndim not in ((len(shape),) if shape else (2, 3)) or 0 in record.shape:
        axes = ", ".join(shape or ("T", "n"))
        words = axes.replace("n", "items").replace("T", "periods").replace("B", "env instances")
        raise ValueError(
            f"{name} must have shape ({axes}) = ({words}){'' if shape else ', or (B, T, n)'}, got "
            f"{tuple(record.shape)}."
        )
    if not bool(((record >= 0) & (record < math.inf)).all()):
        raise ValueError(f"{name} must be finite and >= 0; it holds NaN, inf or negatives.")
    return record


def check_periods(name: str, periods: Any, length: int, history: int) -> tuple[int, int]:
    """Return periods ``(first, end)`` of a record, of which one at least has a history.

    Raises:
        TypeError: they are not whole numbers.
        ValueError: there are no such periods.
    """
    if isinstance(periods, str) or not isinstance(periods, Sequence) or len(periods) != 2:
        raise ValueError(f"{name} must be two whole numbers (first, end), got {periods!r}.")
    first, end = (check_int(f"{name}[{i}]", at, minimum=0) for i, at in enumerate(periods))
    if not max(first, history) < end <= length:
        words = f", one of them with history={history} periods before it" if history else ""
        raise ValueError(
            f"{name} must be (first, end) within the {length} periods of the record{words}, got "
            f"{(first, end)}; take other periods, a longer record or a shorter history."
        )
    return first, end


def load_tensor(key: str, path: str | Path) -> Tensor:
    """Read numbers from a ``.npy`` or ``.pt`` file.

    Raises:
        ValueError: there is no such file, or it holds something else; the message names the key.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".pt"):
        raise ValueError(f"{key} must name a .npy or .pt file, got {str(path)!r}.")
    if not path.is_file():
        raise ValueError(f"{key}={str(path)!r} is not a file.")
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ValueError(
            f"{key}={str(path)!r} cannot be read as numbers: {first_line(error)}"
        ) from error
    if not isinstance(content, Tensor):
        raise ValueError(
            f"{key}={str(path)!r} must hold one tensor, got a {type(content).__name__}."
        )
    return content


def _fitting(season: int, length: int) -> int:
    return min(season, length)  # what holds no whole season is one season
