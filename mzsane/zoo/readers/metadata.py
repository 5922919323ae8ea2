"""A table beside the checkpoints: what it says of a file or model is joined to the listing."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from mzsane.addresses import show_address, split_query
from mzsane.errors import ConfigError
from mzsane.zoo.readers.files import sort_entries
from mzsane.zoo.readers.listing import Entry, Listing, find_split, is_metric, pick_metrics
from mzsane.zoo.readers.sources import Source, open_storage

_KEYS = ("file", "model", "epoch", "split", "dataset")
_Row = dict[str, Any]


def apply_metadata(listing: Listing, source: Source, names: list[str], address: str) -> Listing:
    """Join a table to a listing.

    A row belongs to the checkpoint with its `file`; without such a column, to those of its `model`, and its `epoch` if
    there is that column. A row that belongs to nothing is rejected, checkpoints without a row stay as they are.

    Args:
        listing: the checkpoints.
        source: where they lie.
        names: all files of the source.
        address: name of the table in the source, or an address of its own.

    Raises:
        ConfigError: the table cannot be read, or does not say which checkpoint a row is of.
    """
    table = _read_table(source, names, address)
    address = show_address(address)
    by_file = "file" in table.columns
    if not by_file and "model" not in table.columns:
        raise ConfigError(f"metadata {address} has no column file or model; it has {', '.join(table.columns)}")
    by_epoch = not by_file and "epoch" in table.columns
    rows: dict[tuple[Any, ...], _Row] = {}
    for row in table.iter_rows(named=True):
        told = {name: value for name, value in row.items() if value is not None}
        rows[_find_key(told, address, by_file, by_epoch)] = told
    known = set(names)
    entries, used = [], set()
    for entry in listing.entries:
        key = (entry.file,) if by_file else (entry.model, entry.epoch)[: 1 + by_epoch]
        used.add(key)
        entries.append(_join(entry, rows[key], address) if key in rows else entry)
    for key in (key for key in rows if key not in used):
        if by_file and key[0] in known:
            entries.append(_join(Entry(str(PurePosixPath(key[0]).with_suffix("")), None, key[0]), rows[key], address))
        else:
            model, epoch = rows[key].get("model"), _find_epoch(rows[key], address)
            listing.reject(
                "not in the source: the metadata names it",
                None if model is None else str(model),
                epoch,
                str(key[0]) if by_file else None,
            )
    return replace(listing, entries=sort_entries(entries))


def _find_key(row: Mapping[str, Any], address: str, by_file: bool, by_epoch: bool) -> tuple[Any, ...]:
    if by_file:
        return (str(row.get("file", "")),)
    key: tuple[Any, ...] = (str(row.get("model", "")),)
    return (*key, _find_epoch(row, address)) if by_epoch else key


def _find_epoch(row: Mapping[str, Any], address: str) -> int | None:
    epoch = row.get("epoch")
    if epoch is None:
        return None
    try:
        number = int(epoch)
        if number != float(epoch) or number < 0:
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(f"metadata {address} has epoch {epoch!r}: epochs are whole numbers from 0") from None
    return number


def _join(entry: Entry, row: Mapping[str, Any], address: str) -> Entry:
    split = row.get("split")
    if split is not None and find_split(split) is None:
        raise ConfigError(f"metadata {address} has split {split!r}; a split is train, val or test")
    epoch = _find_epoch(row, address)
    recipe = {name: value for name, value in row.items() if name not in _KEYS and not is_metric(name)}
    return replace(
        entry,
        model=str(row.get("model", entry.model)),
        epoch=entry.epoch if epoch is None else epoch,
        metrics={**entry.metrics, **pick_metrics({**entry.metrics, **row})},
        recipe={**entry.recipe, **recipe},
        dataset=str(row["dataset"]) if "dataset" in row else entry.dataset,
        split=entry.split if split is None else find_split(split),
    )


def _read_table(source: Source, names: list[str], address: str) -> pl.DataFrame:
    if address in names:
        data = source.read(address)
    else:
        plain, query = split_query(address)
        folder, slash, name = plain.rpartition("/")
        address = plain
        try:
            data = open_storage(folder or slash or ".").read(name + query)
        except FileNotFoundError:
            raise ConfigError(f"there is no metadata {address}, neither in the source nor at that address") from None
    suffix = PurePosixPath(address).suffix.lower()
    try:
        if suffix == ".csv":
            return pl.read_csv(io.BytesIO(data), infer_schema_length=None)
        if suffix == ".json":
            return pl.read_json(io.BytesIO(data), infer_schema_length=None)
        if suffix in (".jsonl", ".ndjson"):
            return pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
        if suffix == ".parquet":
            return pl.read_parquet(io.BytesIO(data))
    except Exception as error:  # polars has many, and what they say is of use
        raise ConfigError(f"metadata {address} cannot be read: {' '.join(str(error).split())[:200]}") from None
    raise ConfigError(f"metadata {address} is not a .csv, .json, .jsonl or .parquet file")
