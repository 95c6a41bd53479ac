"""Periods as people write them: whole numbers, days, weeks, months; which follow each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hpo_torchrl.problems.table_file import TableFileError

CALENDARS = ("all", "weekdays", "present")
# Formats by what they look like, with the texts that they are tried on. The first of equals counts.
_FORMATS = {
    "2024-01-31": ("ISO8601", r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.0*)?)?)?"),
    "2024/01/31": ("%Y/%m/%d", r"\d{4}/\d{1,2}/\d{1,2}"),
    "31.01.2024": ("%d.%m.%Y", r"\d{1,2}\.\d{1,2}\.\d{4}"),
    "31/01/2024": ("%d/%m/%Y", r"\d{1,2}/\d{1,2}/\d{4}"),
    "01/31/2024": ("%m/%d/%Y", r"\d{1,2}/\d{1,2}/\d{4}"),
    "31-01-2024": ("%d-%m-%Y", r"\d{1,2}-\d{1,2}-\d{4}"),
    "01-31-2024": ("%m-%d-%Y", r"\d{1,2}-\d{1,2}-\d{4}"),
    "31/01/24": ("%d/%m/%y", r"\d{1,2}/\d{1,2}/\d{2}"),
    "01/31/24": ("%m/%d/%y", r"\d{1,2}/\d{1,2}/\d{2}"),
    "31/01/2024 06:00": ("%d/%m/%Y %H:%M", r"\d{1,2}/\d{1,2}/\d{4} \d{1,2}:\d{2}"),
    "01/31/2024 06:00": ("%m/%d/%Y %H:%M", r"\d{1,2}/\d{1,2}/\d{4} \d{1,2}:\d{2}"),
    "31 Jan 2024": ("%d %b %Y", r"\d{1,2} [A-Za-z]{3} \d{4}"),
    "31-Jan-2024": ("%d-%b-%Y", r"\d{1,2}-[A-Za-z]{3}-\d{4}"),
    "20240131": ("%Y%m%d", r"(19|20)\d{6}"),
    "2024-01": ("%Y-%m", r"\d{4}-\d{2}"),
    "01/2024": ("%m/%Y", r"\d{1,2}/\d{4}"),
    "Jan 2024": ("%b %Y", r"[A-Za-z]{3} \d{4}"),
    "2024M01": ("%YM%m", r"\d{4}M\d{2}"),
    "202401, a month": ("%Y%m", r"(19|20)\d{4}"),
    "2024-W05": ("%G-W%V", r"\d{4}-W\d{2}"),
    "202405, a week": ("%G%V", r"(19|20)\d{4}"),
    "2024Q1": ("quarter", r"\d{4}-?Q[1-4]"),
    "whole numbers": ("whole", r"[+-]?[0-9]{1,15}"),
    "d_1, d_2, ...": ("numbered", r"[^\d-]*[^\d\s-][^\d-]*[0-9]{1,9}"),
}
_WEEK = "-1"  # its Monday
# Of two ways to read dates, the one is right that leaves so many times fewer gaps.
_CLEARLY = 2.0
# Steps of periods that dates are added up to.
PER = {"day": "D", "week": "W-SUN", "month": "M"}


@dataclass
class Periods:
    """What texts say of time.

    Attributes:
        values: whole numbers or times, as float64 or datetime64, by line; missing where unread.
        example: how they are written.
    """

    values: pd.Series
    example: str


def read_periods(texts: pd.Series, dates: str | None) -> Periods:
    """Read periods by a declared format, or by the one that all texts have.

    Where two formats fit all texts, such as 01/02/2024, that which leaves far fewer gaps counts.

    Args:
        texts: periods, by line; empty ones are left out.
        dates: the format, such as ``"%d/%m/%Y"``; ``None`` finds it.

    Raises:
        TableFileError: it is not clear which of two formats is meant, or the declared one is none.
    """
    known = texts[texts != ""].drop_duplicates()
    if dates is not None:
        if "%" not in str(dates):
            raise TableFileError(
                f"dates={dates!r} must be a format such as %d/%m/%Y: %Y year, %m month, %d day, %b "
                "Jan, %G-W%V a week."
            )
        return Periods(_parse(texts, str(dates)), f"the format {dates}")
    read = {name: _parse(known, *how) for name, how in _FORMATS.items()}
    counts = {name: int(found.notna().sum()) for name, found in read.items()}
    most = max(counts.values())
    full = [name for name, count in counts.items() if count == most > 0]
    if not full:
        return Periods(pd.Series(np.nan, texts.index), "2024-01-31")
    gaps = {name: _holes(read[name].dropna().unique()) for name in full}
    best = min(full, key=gaps.__getitem__)
    rivals = [
        name
        for name in full
        if gaps[name] < _CLEARLY * gaps[best] and "whole" not in name
        if not read[name].equals(read[best])
    ]
    if rivals and most == len(known):
        first, other = (_FORMATS[name][0] for name in (best, rivals[0]))
        raise TableFileError(
            f"Dates like {known.iloc[0]!r} can be read as {best} and as {rivals[0]}; say which: "
            f"dates={first} or dates={other}."
        )
    return Periods(_parse(texts, *_FORMATS[best]), best)


def _parse(texts: pd.Series, how: str, pattern: str = ".+") -> pd.Series:
    """Return times or whole numbers, missing where a text is not of the format."""
    fits = texts.where(texts.str.fullmatch(pattern))
    if how == "whole":
        return pd.to_numeric(fits, errors="coerce")
    if how == "numbered":
        parts = fits.str.extract(r"^(.*?)(\d+)$")
        same = parts[0].dropna().str.lower().nunique() == 1
        return pd.to_numeric(parts[1], errors="coerce") if same else fits.where(fits.isna())
    if how == "quarter":
        quarters = fits.str.replace("-", "").dropna()
        times = pd.PeriodIndex(quarters, freq="Q").to_timestamp()
        return pd.Series(times, quarters.index).reindex(texts.index)
    if how.endswith("%V"):
        fits, how = fits + _WEEK, f"{how}-%u"
    try:
        return pd.to_datetime(fits, format=how, errors="coerce")
    except ValueError as error:
        raise TableFileError(f"dates={how!r} is no format of dates: {error}.") from error


def _holes(values: Any) -> float:
    """Return periods that there should be for each that there is."""
    index = pd.Index(values).sort_values()
    steps, step, _ = spacing(index)
    return 1.0 if len(index) < 2 else float((steps / step).sum() + 1) / len(index)


def spacing(index: pd.Index) -> tuple[pd.Series, Any, Any]:
    """Return distances between neighbours, the usual one, and what a unit of it is.

    Distances of dates are in months where they are uneven in days, but all on one day of the month
    or all on its last. The smallest of equally frequent ones is the usual one: a gap is a multiple
    of it.
    """
    apart, unit = pd.Series(np.diff(index)), 1
    if index.dtype.kind == "M" and apart.nunique() > 1 and apart.min() >= pd.Timedelta(days=28):
        ends = index.is_month_end.all()
        if ends or index.day.nunique() == 1:
            apart = pd.Series(np.diff(12 * index.year + index.month))
            unit = pd.offsets.MonthEnd() if ends else pd.DateOffset(months=1)
    return apart, apart.mode().iloc[0] if len(apart) else 1, unit


def expected_periods(index: pd.Index, calendar: str) -> pd.Index:
    """Return all periods that a calendar has from the first to the last of those that are there.

    Args:
        index: the periods that are there, in order.
        calendar: ``"all"``, at the usual distance; ``"weekdays"``, the days of the week that occur;
            or ``"present"``.
    """
    if calendar == "present" or len(index) < 2:
        return index
    if calendar == "weekdays":
        if index.dtype.kind != "M" or (index != index.normalize()).any():
            raise TableFileError("calendar=weekdays is of days; these periods are none.")
        days = pd.date_range(index[0], index[-1], freq="D")
        return days[days.day_of_week.isin(index.day_of_week.unique())]
    apart, step, unit = spacing(index)
    number = round(float(apart.sum() / step))
    if index.dtype.kind != "M":
        return pd.Index(np.arange(number + 1) * int(step) + int(index[0]))
    return pd.DatetimeIndex([index[0] + k * step * unit for k in range(number + 1)])


def usual_season(labels: Sequence[int | str]) -> int | None:
    """Return the periods of the season that such periods usually have.

    That is a day for hours, a week for days, a year for weeks, months and quarters; ``None`` for
    numbers and for other distances. A week has as many days as there are days of the week.

    Examples:
        >>> usual_season(["2024-01-01", "2024-01-08", "2024-01-15"])
        52
        >>> usual_season([1, 2, 3]) is None
        True
    """
    if len(labels) < 2 or not isinstance(labels[0], str):
        return None
    index = pd.DatetimeIndex(pd.to_datetime(list(labels), format="ISO8601"))
    _, step, unit = spacing(index)
    if not isinstance(unit, int):
        return 12 // int(step) if 12 % int(step) == 0 and step < 12 else None
    if step == pd.Timedelta(days=1):
        return int(index.day_of_week.nunique())
    return {pd.Timedelta(hours=1): 24, pd.Timedelta(weeks=1): 52}.get(step)


def rounded(values: pd.Series, per: str) -> pd.Series:
    """Return the beginnings of the days, weeks (Mondays) or months that times lie in."""
    return values.dt.to_period(PER[per]).dt.start_time


def label_of(period: Any) -> int | str:
    """Return a period as a person writes it."""
    if not isinstance(period, pd.Timestamp):
        return int(period)
    return re.sub(r"[ T]00:00:00$", "", str(period))
