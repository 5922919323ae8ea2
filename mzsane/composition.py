"""From a composition to checkpoints: which rows of which tokens a backbone is trained on.

Suffixes: N checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any

import polars as pl
import torch
from torch import Tensor

from mzsane.config import SliceConfig
from mzsane.errors import ConfigError
from mzsane.randomness import make_generator
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from mzsane.tokens.store import TokenTable, read_tokens


@dataclass(frozen=True)
class TokenSlice:
    """A slice of a zoo by the TOKENS artifact that it is taken from."""

    tokens: ArtifactRef
    part: SliceConfig

    def recipe(self) -> dict[str, Any]:
        """Return what shapes the slice, as JSON data: all but the zoo's name."""
        return self.part.model_dump(mode="json", exclude={"zoo"})


@dataclass(frozen=True)
class ChosenSlice:
    """A slice when its tokens are there: their table, and the rows that are trained on."""

    table: TokenTable
    rows_N: Tensor
    weight: float


def choose_checkpoints(slices: Sequence[TokenSlice], seed: int, store: ArtifactStore) -> list[ChosenSlice]:
    """Open the tokens of a composition and draw its training models.

    Raises:
        ConfigError: there are no slices, or one has fewer models or epochs than are asked for, or no metric of the
            name that it is filtered by.
    """
    if not slices:
        raise ConfigError("the composition is empty: give it at least one slice")
    tables = [read_tokens(store.open(part.tokens)) for part in slices]
    return [
        ChosenSlice(table, _choose_rows(table, item, seed, number), item.part.weight)
        for number, (table, item) in enumerate(zip(tables, slices, strict=True))
    ]


def list_trained(used: pl.DataFrame, number: int, table: TokenTable) -> Tensor:
    """Return the rows of a slice's tokens that a backbone was trained on, by model and epoch."""
    rows = table.index.with_row_index("row").join(used.filter(slice=number), on=["model", "epoch"], how="semi")
    return torch.tensor(rows.sort("model", "epoch")["row"].to_list())


def _choose_rows(table: TokenTable, item: TokenSlice, seed: int, number: int) -> Tensor:
    part = item.part
    rows = table.index.with_row_index("at").filter(pl.col("split") == "train")
    kept = set(rows["epoch"].to_list())
    if (part.last_epochs or 0) > len(kept) or not set(part.epochs or ()) <= kept:
        wanted = f"the last {part.last_epochs}" if part.last_epochs else str(list(part.epochs or ()))
        raise ConfigError(
            f"slice {number} of the composition asks for epochs {wanted}; {item.tokens} has {sorted(kept)}"
        )
    if part.last_epochs is not None:
        rows = rows.filter(pl.col("epoch").rank("dense", descending=True).over("model") <= part.last_epochs)
    if part.epochs is not None:
        rows = rows.filter(pl.col("epoch").is_in(part.epochs))
    rows = rows.filter(reduce(and_, [_pass(table, item, number, i) for i in range(len(part.where))], pl.lit(True)))
    models = rows["model"].unique().sort()
    if part.models > len(models):
        filtered = " that pass its filters" if part.where else ""
        raise ConfigError(
            f"slice {number} of the composition asks for {part.models} training models; {item.tokens} has "
            f"{len(models)}{filtered}"
        )
    order = torch.randperm(len(models), generator=make_generator(seed, "composition", number))
    drawn = [models[i] for i in sorted(order[: part.models].tolist())]
    return torch.tensor(rows.filter(pl.col("model").is_in(drawn))["at"].to_list())


def _pass(table: TokenTable, item: TokenSlice, number: int, position: int) -> pl.Expr:
    condition = item.part.where[position]
    if condition.metric not in table.index.columns or not table.index.schema[condition.metric].is_numeric():
        numeric = [name for name, kind in table.index.schema.items() if kind.is_numeric() and name != "part"]
        raise ConfigError(
            f"slice {number} of the composition is filtered by {condition.metric!r}; {item.tokens} has the metrics "
            f"{', '.join(numeric)}"
        )
    passes = pl.col(condition.metric).cast(pl.Float64).is_finite()  # for polars NaN is above every minimum
    if condition.minimum is not None:
        passes &= pl.col(condition.metric) >= condition.minimum
    if condition.maximum is not None:
        passes &= pl.col(condition.metric) <= condition.maximum
    return passes
