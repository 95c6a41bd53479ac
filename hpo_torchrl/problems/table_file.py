"""Tables of texts, as they stand in a file: CSV, Excel and Parquet, packed or not."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from hpo_torchrl.core.checks import first_line

__all__ = ["Problems", "TableFileError", "read_table"]

# What stands for no number.
ABSENT = ("", "na", "n/a", "nan", "null", "none", "-")
_SHOWN = 10

_DELIMITERS = ",;\t|"
# First bytes of what Excel saves as "Unicode text".
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class TableFileError(ValueError):
    """A file that cannot be read as it stands; the message lists the lines."""


def read_table(path: Path, encoding: str, sheet: str | int | None) -> pd.DataFrame:
    """Return the cells of a file as texts, by the lines (or rows) that they stand in.

    Args:
        path: a file whose suffix is one of :data:`READERS`, or that and ``.gz``.
        encoding: of a text file.
        sheet: name of an Excel sheet, or its number from 0.

    Raises:
        FileNotFoundError: there is no such file.
        TableFileError: it is of another kind, or cannot be read.
    """
    suffix = kind_of(path)
    if suffix not in READERS:
        raise TableFileError(
            f"{str(path)!r} must end in {', '.join(READERS)}, or one of these and .gz."
        )
    if path.is_dir():
        raise TableFileError(f"{str(path)!r} is a folder; name a file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a file.")
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise TableFileError(f"{path} is no whole gzip file: {first_line(error)}.") from error
    table = READERS[suffix](path, data, encoding, sheet)
    return table.apply(lambda column: column.str.strip()) if len(table) else table


def kind_of(path: Path) -> str:
    """Return the suffix of a file, in small letters and without ``.gz``."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def row_name(path: Path) -> str:
    """Return what a person calls the place of a row."""
    return "row" if kind_of(path) == ".parquet" else "line"


class Problems:
    """All that is wrong with a file, by line, and the options that would help."""

    def __init__(self, path: Path) -> None:
        self.path, self.found, self.help = path, list[pd.Series](), dict[str, None]()

    def say(self, rows: pd.DataFrame, text: str, *options: str) -> None:
        """Say of rows, by their line, what is wrong; the text has columns in braces."""
        if len(rows):
            said = [text.format(**row) for row in rows.to_dict("records")]
            self.found.append(pd.Series(said, rows.index, object))
            self.help |= dict.fromkeys(options)

    def refuse(self) -> None:
        """Raise an error that says the first ten problems and counts the others, if any."""
        if not self.found:
            return
        found, unit = pd.concat(self.found).sort_index(kind="stable"), row_name(self.path)
        text = [f"{self.path} cannot be read as it stands, things wrong: {len(found)}"]
        text += [f"  {unit} {line:.0f}: {words}" for line, words in found.head(_SHOWN).items()]
        if len(found) > _SHOWN:
            text.append(f"  and {len(found) - _SHOWN} more")
        text.append("Nothing was left out or filled in.")
        text += [f"  {option}" for option in self.help]
        raise TableFileError("\n".join(text))


def _read_csv(path: Path, data: bytes, encoding: str, sheet: Any) -> pd.DataFrame:
    if data.startswith(_UTF_16):
        encoding = "utf-16"
    name = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        text = data.decode(name)
    except LookupError as error:
        raise TableFileError(f"encoding={encoding!r} is unknown; try utf-8 or cp1252.") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TableFileError(
            f"{path}, line {line}: not {encoding.upper()}; save the file as UTF-8, or say what it "
            "is: encoding=cp1252 (Windows in the West), latin-1, utf-16, shift_jis, ..."
        ) from error
    begin, first = 0, text.split("\n", 1)[0].strip().strip('"')
    delimiter = max(_DELIMITERS, key=text.lstrip().split("\n", 1)[0].count)
    if first.lower().startswith("sep=") and len(first) == 5:  # Excel's own first line
        delimiter, begin = first[4], text.index("\n") + 1 if "\n" in text else len(text)
    reader = csv.reader(io.StringIO(text[begin:], newline=""), delimiter=delimiter, strict=True)
    rows, offset = dict[int, list[str]](), 1 if begin else 0
    line = 1 + offset
    try:
        for values in reader:
            if len(values) > 1 or "".join(values).strip():
                columns = next(iter(rows.values()), values)
                if len(values) != len(columns):
                    raise csv.Error(f"{len(values)} fields, but there are {len(columns)} columns")
                rows[line] = values
            line = reader.line_num + 1 + offset  # a quoted name may run over several
    except csv.Error as error:
        raise TableFileError(f"{path}, line {line}: {error}.") from error
    table = pd.DataFrame.from_dict(rows, orient="index", dtype=str)
    return table.iloc[1:].set_axis(next(iter(rows.values()), []), axis=1)


def _read_parquet(path: Path, data: bytes, encoding: str, sheet: Any) -> pd.DataFrame:
    try:
        import pyarrow.parquet as parquet

        table = parquet.ParquetFile(io.BytesIO(data)).read().to_pandas(ignore_metadata=True)
        table = table.convert_dtypes()
    except Exception as error:
        raise TableFileError(
            f"{path} cannot be read as Parquet: {first_line(error)}; it takes pyarrow: "
            'pip install "hpo_torchrl[parquet]". Or save it as CSV.'
        ) from error
    table.index += 1
    return table.astype(str).where(table.notna(), "")


def _read_excel(path: Path, data: bytes, encoding: str, sheet: Any) -> pd.DataFrame:
    try:
        given = {"sheet_name": 0 if sheet is None else sheet, "header": None, "dtype": object}
        cells = pd.read_excel(io.BytesIO(data), engine="openpyxl", **given)
    except Exception as error:
        raise TableFileError(
            f"{path} cannot be read as Excel: {first_line(error)}; it takes openpyxl: "
            'pip install "hpo_torchrl[excel]". Or save the sheet as CSV.'
        ) from error
    cells.index += 1
    texts = cells.map(_cell).loc[cells.notna().any(axis=1)]
    if texts.empty:
        return texts
    return texts.iloc[1:].set_axis(texts.iloc[0].tolist(), axis=1)


def _cell(value: Any) -> str:
    """Return a cell of a sheet as a text: whole numbers and days without what Excel adds."""
    if value is None or value is pd.NaT or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


READERS: dict[str, Callable[[Path, bytes, str, Any], pd.DataFrame]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), _read_csv),
    ".xlsx": _read_excel,
    ".parquet": _read_parquet,
}
