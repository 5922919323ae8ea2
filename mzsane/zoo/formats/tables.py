"""Tables that people keep beside checkpoints (.csv, .json, .jsonl, .parquet), as rows whose cells are what was written.

Cells of a csv are text, so that an identifier such as `001` stays one; only columns that nobody asks for by name become
numbers where all of their cells are. Of numbers as people and programs write them what is certain is read, and what can
be read in two ways is not.
"""

import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from mzsane.addresses import show_address, split_query
from mzsane.errors import ConfigError
from mzsane.fetch.sources import Source, open_storage

_HUGE = 10**300  # a float would not hold some whole numbers beyond
_GROUPED = re.compile(r"^[+-]?[0-9]{1,3}((,[0-9]{3}){2,}|(,[0-9]{3})+\.[0-9]+)$")  # 1,234,567 and 1,234.5
_COMMA = re.compile(r"^([+-]?)([0-9]*),([0-9]+)(e[+-]?[0-9]+)?$", re.IGNORECASE)
_THOUSANDS = re.compile(r"^[+-]?[1-9][0-9]{0,2},[0-9]{3}$")
Row = dict[str, Any]
_SUFFIXES = (".csv", ".json", ".jsonl", ".ndjson", ".parquet")
_TWICE = re.compile(r"^(.*)_duplicated_[0-9]+$")  # what polars calls a column that comes again
_INTEGER = re.compile(r"^[+-]?(0|[1-9][0-9]{0,17})$")
_NUMBER = re.compile(r"^[+-]?(0|[1-9][0-9]*)?(\.[0-9]*)?(e[+-]?[0-9]+)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """Rows without the cells that are empty, and the names of all columns."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_table(source: Source, names: Iterable[str], address: str) -> Table:
    """Read a table inside a source, or at an address of its own.

    Raises:
        ConfigError: there is no such table, it cannot be read, or a column or key of it comes twice.
    """
    data = _read_bytes(source, names, address)
    address = show_address(split_query(address)[0])
    suffix = PurePosixPath(address).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ConfigError(f"metadata {address} is not a .csv, .json, .jsonl or .parquet file")
    try:
        if suffix == ".csv":
            rows = _read_csv(data)
        elif suffix == ".parquet":
            rows = pl.read_parquet(io.BytesIO(data)).to_dicts()
        else:
            rows = _read_json(data, whole=suffix == ".json")
    except Exception as error:  # polars has many, and what they say is of use
        raise ConfigError(f"metadata {address} cannot be read: {' '.join(str(error).split())[:200]}") from None
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        if match := _TWICE.match(name):
            raise ConfigError(f"metadata {address} has the column {match[1]} twice: keep one of them")
    return Table(columns, tuple({name: value for name, value in row.items() if not is_empty(value)} for row in rows))


def is_empty(value: Any) -> bool:
    """Tell whether a cell has nothing in it."""
    return value is None or (isinstance(value, str) and not value.strip())


def to_text(value: Any) -> str | None:
    """Return a cell that names something as text; None when it names nothing. 3.0 is 3, as tables with gaps have it."""
    if is_empty(value) or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _read_bytes(source: Source, names: Iterable[str], address: str) -> bytes:
    if address in names:
        return source.read(address)
    plain, query = split_query(address)
    folder, slash, name = plain.rpartition("/")
    try:
        return open_storage(folder or slash or ".").read(name + query)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no metadata {show_address(address)}, neither in the source nor at that address"
        ) from None


def _read_csv(data: bytes) -> list[Row]:
    header = data.partition(b"\n")[0]
    separator = next((mark for mark in (",", ";", "\t") if mark.encode() in header), ",")
    frame = pl.read_csv(io.BytesIO(data), infer_schema=False, separator=separator)
    if frame.is_empty():
        raise ValueError("it has no rows")
    return frame.to_dicts()


def _read_json(data: bytes, whole: bool) -> list[Row]:
    text = data.decode("utf-8-sig")
    pieces = [text] if whole else [line for line in text.splitlines() if line.strip()]
    try:
        values = [json.loads(piece, object_pairs_hook=_refuse_repeated) for piece in pieces]
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    rows = values[0] if whole else values
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is not a list of rows, each an object of names and values")
    return rows


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the key {next(n for n in names if names.count(n) > 1)!r} twice")
    return row


def type_columns(rows: Iterable[Mapping[str, Any]], names: Iterable[str]) -> list[Row]:
    """Return some columns of rows, numbers where all cells of a column are text of one kind of number."""
    kept = [{name: row[name] for name in names if name in row} for row in rows]
    for name in names:
        cells = [row[name] for row in kept if name in row]
        convert = _find_type(cells)
        for row in kept:
            if convert is not None and name in row:
                row[name] = convert(row[name])
    return kept


def _find_type(cells: list[Any]) -> Any:
    if not all(isinstance(cell, str) for cell in cells):
        return None
    stripped = [cell.strip() for cell in cells]
    if all(_INTEGER.match(cell) for cell in stripped):
        return int
    if all(_NUMBER.match(cell) and any(map(str.isdigit, cell)) for cell in stripped):
        return float
    if all(cell in ("true", "false") for cell in stripped):
        return lambda cell: cell.strip() == "true"
    return None


def parse_number(value: Any) -> float | None:
    """Return a value as a number; None when it is none, or can be read in two ways (`1,234`).

    Text is read with space around it, with a decimal comma, with commas between thousands, and as per cent. NaN and
    infinities are numbers: those of a run that has diverged.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return float(value) if abs(value) < _HUGE else math.inf * (1 if value > 0 else -1)
    if isinstance(value, float | Decimal):
        return float(value)
    return _parse_text(value.strip()) if isinstance(value, str) else None


def _parse_text(text: str) -> float | None:
    if text.endswith("%"):
        number = None if text.endswith("%%") else _parse_text(text[:-1].rstrip())
        return None if number is None else number / 100
    if _GROUPED.match(text):
        text = text.replace(",", "")
    elif _COMMA.match(text) and not _THOUSANDS.match(text):
        text = text.replace(",", ".")
    try:
        return None if "_" in text or "," in text else float(text)
    except ValueError:
        return None
