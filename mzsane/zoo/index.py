"""Rows that come in small numbers, kept as columns: as dicts a million of them would take several gigabytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

_BLOCK = 2048  # rows that are kept as dicts until they are turned into columns


class Rows:
    """Rows of a table that grows.

    Args:
        schema: names and types of the columns; found in the rows when None, in the order in which names come.
    """

    def __init__(self, schema: Mapping[str, Any] | None = None) -> None:
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._blocks: list[pl.DataFrame] = []

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows; what a row has not is null."""
        self._rows += rows
        if len(self._rows) >= _BLOCK:
            self._pack()

    def frame(self) -> pl.DataFrame:
        """Return all rows."""
        if self._rows or not self._blocks:
            self._pack()
        if len(self._blocks) > 1:
            self._blocks = [pl.concat(self._blocks, how="diagonal_relaxed", rechunk=True)]
        return self._blocks[0]

    def _pack(self) -> None:
        self._blocks.append(pl.DataFrame(self._rows, schema=self._schema, infer_schema_length=None, orient="row"))
        self._rows = []
