"""Files as people have them: each shape is read, or refused with the cause and the option."""

from __future__ import annotations

import gzip
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from shrunk import TINY

from hpo_torchrl import load_run
from hpo_torchrl.experiments.cli import data, train
from hpo_torchrl.problems.inventory.demand_file import FileFormat, TableFileError, read_demand

NAMES = {"period": "Date", "item": "SKU", "demand": "Qty"}
DAYS = [date(2024, 1, 1) + timedelta(days=k) for k in range(40)]  # the first is a Monday
DEMAND = (np.arange(40) * 7 % 11).astype(float)


def rows(days=DAYS, write=str, header="Date,SKU,Qty", item="A", demand=DEMAND, number="{:g}"):
    """A row for each day, with demand as of the day's place in DAYS."""
    text = [header]
    for day in days:
        value = number.format(demand[DAYS.index(day)])
        text.append(f"{write(day)},{item},{value}")
    return "\n".join(text) + "\n"


def on(days):
    return DEMAND[[DAYS.index(day) for day in days]]


OPEN = [day for day in DAYS if day.weekday() < 5]
SIX = [day for day in DAYS if day.weekday() < 6]
HOLIDAYS = [day for day in OPEN if day not in (DAYS[9], DAYS[23])]
SOLD = [day for day in DAYS if on([day])[0] > 0]
WEEKS = [date(2023, 1, 2) + timedelta(weeks=k) for k in range(60)]
MONTHS = [(year, month) for year in (2022, 2023) for month in range(1, 13)]


def dated(labels, header="Date,SKU,Qty"):
    return "\n".join([header, *(f"{label},A,{k % 5}" for k, label in enumerate(labels))]) + "\n"


def cycle(number):
    return np.arange(number) % 5.0


WIDE = "Store,Product," + ",".join(map(str, WEEKS)) + "\n"
WIDE += "".join(
    f"S{s},P{s}," + ",".join(str((k + s) % 5) for k in range(60)) + "\n" for s in (0, 1)
)
M5 = "id,cat_id," + ",".join(f"d_{k}" for k in range(1, 31)) + "\n"
M5 += "X,FOOD," + ",".join(str(k % 5) for k in range(30)) + "\n"
TWO = rows() + rows(DAYS[12:], item="B", header="").lstrip("\n")

# Name: (content, options, demand of the first item).
READ = {
    "names of columns": (rows(), {"columns": NAMES}, DEMAND),
    "names in capitals": (rows(header="DATE,sku,QTY"), {"columns": NAMES}, DEMAND),
    "the library's own names": (rows(header="period,item,demand"), {}, DEMAND),
    "columns that are not used": (
        "\n".join(line + ",x" for line in rows().splitlines()),
        {"columns": NAMES},
        DEMAND,
    ),
    "month first": (rows(write=lambda d: d.strftime("%m/%d/%Y")), {"columns": NAMES}, DEMAND),
    "day first": (rows(write=lambda d: d.strftime("%d/%m/%Y")), {"columns": NAMES}, DEMAND),
    "no leading zeros": (
        rows(write=lambda d: f"{d.month}/{d.day}/{d.year}"),
        {"columns": NAMES},
        DEMAND,
    ),
    "short years": (rows(write=lambda d: d.strftime("%d/%m/%y")), {"columns": NAMES}, DEMAND),
    "points": (rows(write=lambda d: d.strftime("%d.%m.%Y")), {"columns": NAMES}, DEMAND),
    "dashes": (rows(write=lambda d: d.strftime("%d-%m-%Y")), {"columns": NAMES}, DEMAND),
    "year first, slashes": (
        rows(write=lambda d: d.strftime("%Y/%m/%d")),
        {"columns": NAMES},
        DEMAND,
    ),
    "eight digits": (rows(write=lambda d: d.strftime("%Y%m%d")), {"columns": NAMES}, DEMAND),
    "names of months": (rows(write=lambda d: d.strftime("%d-%b-%Y")), {"columns": NAMES}, DEMAND),
    "a declared format": (
        rows(write=lambda d: d.strftime("%Y, day %j")).replace(", day", " day"),
        {"columns": NAMES, "dates": "%Y day %j"},
        DEMAND,
    ),
    "times of midnight": (rows(write=lambda d: f"{d} 00:00:00"), {"columns": NAMES}, DEMAND),
    "ambiguous, declared": (
        dated(f"0{k}/01/2024" for k in range(1, 9)),
        {"columns": NAMES, "dates": "%d/%m/%Y"},
        cycle(8),
    ),
    "months, day first by their spacing": (
        dated(f"01/{month:02}/{year}" for year, month in MONTHS),
        {"columns": NAMES},
        cycle(24),
    ),
    "year and month": (dated(f"{y}-{m:02}" for y, m in MONTHS), {"columns": NAMES}, cycle(24)),
    "six digits, months": (dated(f"{y}{m:02}" for y, m in MONTHS), {"columns": NAMES}, cycle(24)),
    "month and year": (dated(f"{m:02}/{y}" for y, m in MONTHS), {"columns": NAMES}, cycle(24)),
    "2022M01": (dated(f"{y}M{m:02}" for y, m in MONTHS), {"columns": NAMES}, cycle(24)),
    "quarters": (
        dated(f"{y}Q{q}" for y in range(2015, 2022) for q in range(1, 5)),
        {"columns": NAMES},
        cycle(28),
    ),
    "weeks of the calendar": (
        dated("{}-W{:02}".format(*day.isocalendar()) for day in WEEKS),
        {"columns": NAMES},
        cycle(60),
    ),
    "six digits, weeks": (
        dated("{}{:02}".format(*day.isocalendar()) for day in WEEKS),
        {"columns": NAMES},
        cycle(60),
    ),
    "weeks by their Mondays": (dated(WEEKS), {"columns": NAMES}, cycle(60)),
    "numbered periods": (dated(f"Week {k}" for k in range(1, 31)), {"columns": NAMES}, cycle(30)),
    "Monday to Friday": (rows(OPEN), {"columns": NAMES, "calendar": "weekdays"}, on(OPEN)),
    "Monday to Saturday": (rows(SIX), {"columns": NAMES, "calendar": "weekdays"}, on(SIX)),
    "holidays": (rows(HOLIDAYS), {"columns": NAMES, "calendar": "present"}, on(HOLIDAYS)),
    "days with sales alone": (rows(SOLD), {"columns": NAMES, "missing": "zero"}, DEMAND[1:]),
    "weeks of days": (
        rows(DAYS[:35]),
        {"columns": NAMES, "per": "week"},
        DEMAND[:35].reshape(5, 7).sum(1),
    ),
    "several sales a day": (
        rows() + rows(DAYS[:3], header="").lstrip("\n"),
        {"columns": NAMES, "repeated": "sum"},
        np.where(np.arange(40) < 3, 2 * DEMAND, DEMAND),
    ),
    "tills, added up by day": (
        rows(write=lambda d: f"{d}T09:{d.day % 60:02}"),
        {"columns": NAMES, "per": "day"},
        DEMAND,
    ),
    "returns": (
        rows(demand=DEMAND - 2),
        {"columns": NAMES, "negative": "zero"},
        np.maximum(DEMAND - 2, 0),
    ),
    "store and product": (
        WIDE,
        {"wide": True, "columns": {"item": ["Store", "Product"]}},
        cycle(60),
    ),
    "M5": (M5, {"wide": True, "columns": {"item": "id"}}, cycle(30)),
    "not yet sold, cut": (TWO, {"columns": NAMES, "late_items": "cut"}, DEMAND[12:]),
    "not yet sold, dropped": (TWO, {"columns": NAMES, "late_items": "drop"}, DEMAND),
    "not yet sold, zero": (TWO, {"columns": NAMES, "late_items": "zero"}, DEMAND),
    "NA before the first sale": (
        TWO + rows(DAYS[:12], item="B", header="", number="NA").lstrip("\n"),
        {"columns": NAMES, "late_items": "cut"},
        DEMAND[12:],
    ),
    "thousands": (
        rows(number='"1,{:03.0f}"'),
        {"columns": NAMES, "thousands": ","},
        1000 + DEMAND,
    ),
    "a decimal comma": (
        rows(number="{:.1f}").replace(",", ";").replace(".", ","),
        {"columns": NAMES, "decimal": ","},
        DEMAND,
    ),
    "comma and thousands": (
        rows(number="1.{:03.0f},5", header="Date;SKU;Qty").replace(",A,", ";A;"),
        {"columns": NAMES, "decimal": ",", "thousands": "."},
        1000.5 + DEMAND,
    ),
    "Excel's first line": ("sep=;\n" + rows().replace(",", ";"), {"columns": NAMES}, DEMAND),
    "tabs": (rows().replace(",", "\t"), {"columns": NAMES}, DEMAND),
    "bars": (rows().replace(",", "|"), {"columns": NAMES}, DEMAND),
    "UTF-16": (rows(item="Ä").encode("utf-16"), {"columns": NAMES}, DEMAND),
    "cp1252": (rows(item="Ä").encode("cp1252"), {"columns": NAMES, "encoding": "cp1252"}, DEMAND),
    "a byte-order mark": (rows().encode("utf-8-sig"), {"columns": NAMES}, DEMAND),
}

# Name: (content, options, words of the error).
REFUSED = {
    "a wide file": (WIDE, {}, r"wide: wide=true columns=\{item: \[Store, Product\]\}"),
    "other names": (rows(), {}, r"columns=\{period: Date, item: SKU, demand: Qty\}"),
    "parts": (
        rows(header="week_start,part_id,units_demanded"),
        {},
        r"columns=\{period: week_start, item: part_id, demand: units_demanded\}",
    ),
    "a misspelt column": (rows(), {"columns": NAMES | {"item": "SKUs"}}, "'skus'.* Did you mean"),
    "thousands": (rows(number='"1,{:03.0f}"'), {"columns": NAMES}, "thousands=','"),
    "a decimal comma": (
        rows(number='"{:.1f}"').replace(".", ","),
        {"columns": NAMES},
        "decimal=','",
    ),
    "days with sales alone": (rows(SOLD), {"columns": NAMES}, "missing=zero"),
    "Monday to Friday": (rows(OPEN), {"columns": NAMES}, "calendar=weekdays"),
    "holidays": (rows(HOLIDAYS), {"columns": NAMES}, "calendar=present"),
    "returns": (rows(demand=DEMAND - 2), {"columns": NAMES}, "negative=zero"),
    "several sales a day": (
        rows() + rows(DAYS[:3], header="").lstrip("\n"),
        {"columns": NAMES},
        r"repeated=sum.*\[Store, SKU\]",
    ),
    "not yet sold": (TWO, {"columns": NAMES}, "late_items=cut"),
    "NA": (rows(number="NA"), {"columns": NAMES}, "missing=zero.*late_items=cut"),
    "ambiguous dates": (
        dated(f"0{k}/01/2024" for k in range(1, 4)),
        {"columns": NAMES},
        "dates=%d/%m/%Y or dates=%m/%d/%Y",
    ),
    "not UTF-8": (rows(item="Ä").encode("cp1252"), {"columns": NAMES}, "encoding=cp1252"),
    "times that are uneven": (
        rows(write=lambda d: f"{d}T09:{d.day:02}"),
        {"columns": NAMES},
        "per=day",
    ),
    "weeks of numbers": (dated(range(9)), {"columns": NAMES, "per": "week"}, "are numbers"),
    "a format that is none": (rows(), {"columns": NAMES, "dates": "dayfirst"}, "format such as"),
}


def write(folder, content):
    path = folder / "sales.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", READ)
def test_a_shape_is_read(name, tmp_path):
    content, options, expected = READ[name]
    found = read_demand(write(tmp_path, content), **options)
    np.testing.assert_array_equal(found.demand[:, 0], expected)


@pytest.mark.parametrize("name", REFUSED)
def test_a_shape_is_refused_with_the_option_that_helps(name, tmp_path):
    content, options, words = REFUSED[name]
    with pytest.raises(TableFileError, match=f"(?s){words}") as error:
        read_demand(write(tmp_path, content), **options)
    assert len(str(error.value)) < 2500


def test_no_hint_spoils_the_data(tmp_path):
    """1,482 has no decimal point to be written, and a closed day no demand of 0."""
    for content in (REFUSED["thousands"][0], REFUSED["Monday to Friday"][0]):
        with pytest.raises(TableFileError) as error:
            read_demand(write(tmp_path, content), columns=NAMES)
        assert "decimal point" not in str(error.value)
        assert "write 0" not in str(error.value)


def test_packed_files_and_sheets_are_read_like_text(tmp_path):
    pytest.importorskip("openpyxl")
    packed = tmp_path / "sales.csv.gz"
    packed.write_bytes(gzip.compress(rows().encode()))
    sheet = tmp_path / "sales.xlsx"
    table = pd.DataFrame({"Date": pd.to_datetime(DAYS), "SKU": 17, "Qty": DEMAND})
    with pd.ExcelWriter(sheet) as book:
        pd.DataFrame({"nothing": [1]}).to_excel(book, sheet_name="cover", index=False)
        table.to_excel(book, sheet_name="sales", index=False)
    for path, options in ((packed, {}), (sheet, {"sheet": "sales"}), (sheet, {"sheet": 1})):
        found = read_demand(path, columns=NAMES, **options)
        np.testing.assert_array_equal(found.demand[:, 0], DEMAND)
        assert (found.periods[0], found.periods[-1]) == ("2024-01-01", "2024-02-09")
    assert found.items == ("17",)
    table = table.astype(object)
    table.iloc[3, 2] = "many"
    table.to_excel(sheet, index=False)
    with pytest.raises(TableFileError, match=r"line 5.*many"):
        read_demand(sheet, columns=NAMES)
    packed.write_bytes(packed.read_bytes()[:40])
    with pytest.raises(TableFileError, match="no whole gzip file"):
        read_demand(packed, columns=NAMES)


def test_what_was_filled_in_is_said(tmp_path):
    found = read_demand(write(tmp_path, rows(SOLD)), columns=NAMES, missing="zero")
    assert any(f"{39 - len(SOLD)} of 39 demands" in note for note in found.notes)
    found = read_demand(write(tmp_path, TWO), columns=NAMES, late_items="drop")
    assert found.items == ("A",)
    assert any("left out" in note and "B" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": "Date"}, "must be a mapping"),
        ({"columns": {"perod": "Date"}}, "Did you mean 'period'"),
        ({"missing": "nil"}, "missing must be"),
        ({"per": "fortnight"}, "per must be"),
        ({"thousands": "."}, "both"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        FileFormat(**options)


def test_a_sales_export_is_looked_at_and_trained_on(tmp_path, monkeypatch, capsys):
    """The same words for both commands; what the second trains on is what the first has shown."""
    days = [date(2024, 1, 1) + timedelta(days=k) for k in range(150)]
    text = ["Date;Store;SKU;Qty"]
    for k, day in enumerate(days):
        for item, level in (("N;7", 3), ("S;7", 40)):
            if (k + level) % 4:
                text.append(f"{day.strftime('%d/%m/%Y')};{item};{level + k % 5},0")
    path = tmp_path / "sales export.csv"
    path.write_text("\n".join(text))
    how = ["columns={period: Date, item: [Store, SKU], demand: Qty}", "decimal=','", "missing=zero"]
    data([str(path), *how, "history=3"])
    shown = capsys.readouterr().out
    for words in (
        "150, from 2024-01-01 to 2024-05-29",
        "N/7",
        "have no row and count as 0",
        "90 p",
    ):
        assert words in shown
    train(
        ["env=inventory_from_file", f"env.path='{path}'", "env.history=3", "env.lead_time=1"]
        + [f"env.{word}" for word in how]
        + [*TINY, "trainer.num_updates=2", f"output_dir={tmp_path / 'run'}"]
    )
    run = load_run(tmp_path / "run")
    assert run.policy.env.demand.items == ["N/7", "S/7"]
    expected = [[level + k % 5 if (k + level) % 4 else 0 for level in (3, 40)] for k in range(150)]
    assert run.policy.env.record.tolist() == expected
    capsys.readouterr()
    with pytest.raises(SystemExit):
        data([str(path)])
    assert "columns={period: Date, item: SKU, demand: Qty}" in capsys.readouterr().err


def test_the_usual_season_of_periods_is_that_of_their_distance(tmp_path):
    def season(periods, least=1.0, given=None):
        rows = [f"{period},A,{3 + at % 5}" for at, period in enumerate(periods)]
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        path.write_text("\n".join(["period,item,demand", *rows]))
        source = read_demand(path, calendar="present")
        return source.season(given, source.split()["train"], least)

    def dates(freq, number=120):
        return [str(day)[:10] for day in pd.date_range("2021-01-04", periods=number, freq=freq)]

    for freq, expected in {"D": 7, "B": 5, "7D": 52, "MS": 12, "QS": 4, "2D": None}.items():
        assert season(dates(freq)) == expected, freq
    assert season(range(120)) is None
    hours = [str(at) for at in pd.date_range("2021-01-04", periods=120, freq="h")]
    assert season(hours) == 24
    # 72 training weeks hold a season, but neither one and a half nor four.
    assert season(dates("7D"), 1.5) is None
    assert season(dates("7D"), 4.0) is None
    assert season(dates("7D"), 4.0, given=13) == 13
    assert season(dates("D"), given=0) is None
    with pytest.raises(ValueError, match="season must be an integer >= 0, got -1"):
        season(dates("D"), given=-1)


def test_a_record_that_is_too_short_is_shown_before_it_is_refused(tmp_path, capsys):
    rows = [f"2024-01-0{day},A,{day}" for day in range(1, 9)]
    (tmp_path / "short.csv").write_text("\n".join(["period,item,demand", *rows]))
    with pytest.raises(SystemExit):
        data([str(tmp_path / "short.csv")])
    said = capsys.readouterr()
    assert "train     8 periods, 2024-01-01 to 2024-01-08" in said.out
    assert "give a longer record, a shorter history or other fractions" in said.err
