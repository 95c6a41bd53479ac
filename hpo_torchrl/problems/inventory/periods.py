"""Periods of a demand record: whole numbers or ISO dates, and how they are spaced."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

Period = int | date  # a datetime is a date too
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_SECOND = timedelta(seconds=1)


class Grid(NamedTuple):
    """Evenly spaced places on which the periods of a record should lie.

    Attributes:
        place: the place of a period, a whole number.
        label: the period at a place, as text.
        step: places from one period to the next.
    """

    place: Callable[[Any], int]
    label: Callable[[int], str]
    step: int


def parse_period(value: Any) -> Period:
    """Return a period given as text, number or date.

    Args:
        value: ``7``, ``"7"``, ``"2024-01-31"``, ``"2024-01-31T06:00"``, a date or a datetime.

    Raises:
        ValueError: it is something else; the message says what it must be.

    Examples:
        >>> parse_period("7"), str(parse_period("2024-01-31"))
        (7, '2024-01-31')
    """
    if isinstance(value, str):
        return _parse_text(value.strip())
    if isinstance(value, float) and value.is_integer():  # whole numbers beside a missing one
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, date)):
        raise ValueError("must be a whole number or a date")
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            raise ValueError("must be a time without a time zone")
        if value.microsecond or getattr(value, "nanosecond", 0):
            raise ValueError("must be a time in whole seconds")
        value = datetime.fromisoformat(value.isoformat())  # of pandas, too
    return value


def kind_of(period: Period) -> str:
    """Return what a period is; all periods of a file must be of one kind."""
    if isinstance(period, datetime):
        return "date with a time"
    return "date" if isinstance(period, date) else "whole number"


def without_midnight(periods: Sequence[Any]) -> list[Any]:
    """Return times that are all 0:00, as tables of dates hold them, as the dates that they are."""
    midnight = all(isinstance(p, datetime) and p.time() == datetime.min.time() for p in periods)
    return [period.date() for period in periods] if midnight else list(periods)


def find_grid(periods: Sequence[Any]) -> Grid:
    """Find the spacing of sorted, distinct periods: the most frequent one.

    Dates are counted in days; where those are uneven, but all on one day of the month or all on
    its last, in months. Times are counted in seconds.

    Examples:
        >>> from datetime import date
        >>> grid = find_grid([date(2024, 1, 31), date(2024, 2, 29), date(2024, 4, 30)])
        >>> grid.step, grid.label(grid.place(date(2024, 2, 29)) + 1)
        (1, '2024-03-31')
    """
    first = periods[0]
    grid = Grid(int, str, 1)
    if isinstance(first, datetime):
        grid = Grid(lambda p: (p - first) // _SECOND, lambda at: str(first + at * _SECOND), 1)
    elif isinstance(first, date):
        grid = Grid(date.toordinal, lambda at: str(date.fromordinal(at)), 1)
        ends = all(
            period == _in_month(12 * period.year + period.month - 1, 31) for period in periods
        )
        monthly = ends or len({period.day for period in periods}) == 1
        if monthly and len(_spacings(grid, periods)) > 1:
            day = 31 if ends else first.day
            grid = Grid(lambda p: 12 * p.year + p.month - 1, lambda at: str(_in_month(at, day)), 1)
    spacings = _spacings(grid, periods)
    # Of equally frequent ones the smallest: a gap is a multiple of it.
    step = min(spacings, key=lambda size: (-spacings[size], size), default=1)
    return grid._replace(step=step)


def _spacings(grid: Grid, periods: Sequence[Any]) -> Counter[int]:
    places = [grid.place(period) for period in periods]
    return Counter(after - before for before, after in itertools.pairwise(places))


def _in_month(month: int, day: int) -> date:
    """Return a day of a month counted from year 0, or its last day where it has no such day."""
    following = month + 1
    last = date(following // 12, following % 12 + 1, 1) - timedelta(days=1)
    return last.replace(day=min(day, last.day))


def _parse_text(text: str) -> Period:
    try:
        if re.fullmatch(r"[+-]?[0-9]{1,15}", text):
            return int(text)
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
        if _DATE.match(text) and text[10:11] in ("T", " "):
            return parse_period(datetime.fromisoformat(text))
    except ValueError as error:
        if str(error).startswith("must be"):
            raise
    raise ValueError("must be a whole number or an ISO date such as 2024-01-31")
