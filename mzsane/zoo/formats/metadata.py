"""A table beside the checkpoints: what it says of a file or model is joined to the listing."""

import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from mzsane.addresses import show_address
from mzsane.errors import ConfigError
from mzsane.fetch.sources import Source
from mzsane.zoo.formats.listing import Candidate, Listing, find_metric, find_split, is_metric, pick_metrics
from mzsane.zoo.formats.loose_files import sort_entries
from mzsane.zoo.formats.tables import Row, Table, parse_number, read_table, to_text, type_columns

_KEYS = ("file", "model", "epoch", "split", "dataset")
_EPOCHS = 10**9


@dataclass(frozen=True)
class _Told:
    """What a row says: its key as it is written, the cells of a key column as text, metrics and recipe as they are."""

    number: int
    file: str | None
    model: str | None
    epoch: int | None
    split: str | None
    dataset: str | None
    metrics: Row
    recipe: Row


def apply_metadata(listing: Listing, source: Source, names: list[str], address: str) -> Listing:
    """Join a table to a listing.

    A row belongs to the checkpoint with its `file`, however its path is written; without such a column, to those of its
    `model`, and its `epoch` if there is that column. A row that belongs to nothing is rejected, checkpoints without a
    row stay as they are.

    Args:
        listing: the checkpoints.
        source: where they lie.
        names: all files of the source.
        address: name of the table in the source, or an address of its own.

    Raises:
        ConfigError: the table cannot be read, does not say which checkpoint a row is of, says it twice, has a metric
            that is no number, belongs to other checkpoints, or puts a model into two splits.
    """
    table = read_table(source, names, address)
    address = show_address(address)
    _check_columns(table, address)
    rows = _read_rows(table, address)
    if "file" in table.columns:
        joined, used = _join_files(listing, rows, source, names, address)
    else:
        joined, used = _join_models(listing, rows, "epoch" in table.columns, address)
    if not used:
        first = rows[0]
        ours = listing.entries[0] if listing.entries else None
        theirs = f"file {first.file!r}" if "file" in table.columns else f"model {first.model!r}, epoch {first.epoch}"
        said = (ours.file if "file" in table.columns else f"{ours.model!r}, epoch {ours.epoch}") if ours else "none"
        raise ConfigError(
            f"no row of metadata {address} belongs to a checkpoint of {source.address}: the first row is of {theirs}, "
            f"the first checkpoint is {said}"
        )
    for row in rows:
        if row.number not in used:
            listing.reject("not in the source: the metadata names it", row.model, row.epoch, row.file)
    _check_splits(joined, address)
    return replace(listing, entries=sort_entries(joined))


def _check_columns(table: Table, address: str) -> None:
    for name in table.columns:
        ours = name.strip().lower()
        if ours in _KEYS and name != ours:
            raise ConfigError(f"metadata {address} has a column {name!r}: call it {ours!r}, by which it is known")
    if not {"file", "model"} & set(table.columns):
        raise ConfigError(f"metadata {address} has no column file or model; it has {', '.join(table.columns)}")
    metrics: dict[str, str] = {}
    for name in table.columns:
        if metric := find_metric(name):
            if metric in metrics:
                raise ConfigError(
                    f"metadata {address} has {metric} twice, as {metrics[metric]!r} and {name!r}: keep one of them"
                )
            metrics[metric] = name


def _read_rows(table: Table, address: str) -> list[_Told]:
    others = [name for name in table.columns if name not in _KEYS and not is_metric(name)]
    recipes = type_columns(table.rows, others)
    by_file, by_epoch = "file" in table.columns, "file" not in table.columns and "epoch" in table.columns
    rows: list[_Told] = []
    seen: dict[tuple[Any, ...], int] = {}
    for number, (row, recipe) in enumerate(zip(table.rows, recipes, strict=True), start=1):
        told = _Told(
            number,
            to_text(row.get("file")),
            to_text(row.get("model")),
            _find_epoch(row, address),
            _find_split(row, address),
            to_text(row.get("dataset")),
            _check_metrics(row, number, address),
            {name: value for name, value in recipe.items() if value == value},  # not NaN, which is a gap here
        )
        key = (_normalise(told.file or ""),) if by_file else (told.model, told.epoch)[: 1 + by_epoch]
        if not key[0]:
            raise ConfigError(f"row {number} of metadata {address} has no {'file' if by_file else 'model'}")
        if key in seen:
            what = " epoch ".join(map(str, key))
            raise ConfigError(f"metadata {address} has two rows of {what}, {seen[key]} and {number}: keep one of them")
        seen[key] = number
        rows.append(told)
    return rows


def _check_metrics(row: Mapping[str, Any], number: int, address: str) -> Row:
    metrics = {name: value for name, value in row.items() if is_metric(name)}
    for name, value in metrics.items():
        if parse_number(value) is None:
            key = to_text(row.get("file")) or to_text(row.get("model"))
            raise ConfigError(
                f"metadata {address}: {name} in row {number} ({key}) is {value!r}, which is not, or not certainly, a "
                "number: write a number such as 0.91, or nothing where it is not known"
            )
    return metrics


def _find_epoch(row: Mapping[str, Any], address: str) -> int | None:
    if to_text(row.get("epoch")) is None:
        return None
    number = parse_number(row["epoch"])
    if number is None or not 0 <= number < _EPOCHS or number != int(number):
        raise ConfigError(f"metadata {address} has epoch {row['epoch']!r}: epochs are whole numbers from 0")
    return int(number)


def _find_split(row: Mapping[str, Any], address: str) -> str | None:
    split = to_text(row.get("split"))
    if split is not None and find_split(split) is None:
        raise ConfigError(f"metadata {address} has split {split!r}; a split is train, val or test")
    return None if split is None else find_split(split)


def _join_files(
    listing: Listing, rows: Sequence[_Told], source: Source, names: list[str], address: str
) -> tuple[list[Candidate], set[int]]:
    """Return the checkpoints with what is told of their files, and the numbers of the rows that are of one."""
    entries = {entry.file: entry for entry in listing.entries}
    known = {name: name for name in names}
    written = Counter(_normalise(name) for name in names)
    for name in names:
        if written[_normalise(name)] == 1:
            known.setdefault(_normalise(name), name)
    used = set()
    for row in rows:
        path = row.file or ""
        below = path.removeprefix(f"{source.address}/")
        file = next((known[form] for form in (path, _normalise(path), _normalise(below)) if form in known), None)
        if file is not None:
            used.add(row.number)
            bare = Candidate(str(PurePosixPath(file).with_suffix("")), None, file)
            entries[file] = _join(entries.get(file, bare), row)
    return list(entries.values()), used


def _join_models(
    listing: Listing, rows: Sequence[_Told], by_epoch: bool, address: str
) -> tuple[list[Candidate], set[int]]:
    """Return the checkpoints with what is told of their models, and the numbers of the rows that are of one."""
    told: dict[str, dict[int | None, _Told]] = defaultdict(dict)
    for each in rows:
        told[each.model or ""][each.epoch if by_epoch else None] = each
    counts = Counter(entry.model for entry in listing.entries)
    joined, used = [], set()
    for entry in listing.entries:
        of_model = told.get(entry.model, {})
        row: _Told | None = of_model.get(entry.epoch if by_epoch else None)
        if by_epoch and entry.epoch is None and len(of_model) == counts[entry.model] == 1:
            row = next(iter(of_model.values()))  # it tells the epoch, which the path does not
        if row is not None and row.metrics and not by_epoch and counts[entry.model] > 1:
            raise ConfigError(
                f"metadata {address} gives {', '.join(row.metrics)} by model, and model {entry.model!r} has "
                f"{counts[entry.model]} checkpoints: add a column epoch or file that says which one is meant"
            )
        if row is not None:
            used.add(row.number)
        joined.append(entry if row is None else _join(entry, row))
    return joined, used


def _join(entry: Candidate, row: _Told) -> Candidate:
    return replace(
        entry,
        model=entry.model if row.model is None else row.model,
        lineage=entry.lineage if row.model in (None, entry.model) else None,
        epoch=entry.epoch if row.epoch is None else row.epoch,
        metrics={**entry.metrics, **pick_metrics({**entry.metrics, **row.metrics})},
        recipe={**entry.recipe, **row.recipe},
        dataset=entry.dataset if row.dataset is None else row.dataset,
        split=entry.split if row.split is None else row.split,
    )


def _normalise(path: str) -> str:
    """Return a path as all ways of writing it have it: `/` between its parts, no `.`, one form of every letter."""
    return posixpath.normpath(unicodedata.normalize("NFC", path).replace("\\", "/")) if path else ""


def _check_splits(entries: Sequence[Candidate], address: str) -> None:
    given: dict[str, str] = {}
    for entry in entries:
        if entry.split is not None and given.setdefault(entry.model, entry.split) != entry.split:
            raise ConfigError(
                f"metadata {address} puts model {entry.model!r} into {given[entry.model]} and {entry.split}: a model "
                "is in one split with all its checkpoints"
            )
