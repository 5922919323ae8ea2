"""Lazy tables for people: a TOKENS artifact's checkpoints, and its weights as a long table of tokens."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from polars.io.plugins import register_io_source
from torch import Tensor

from mzsane.layout.token_layout import TokenLayout
from mzsane.store.artifacts import Artifact
from mzsane.tokens.store import TokenTable, name_part, read_tokens

_KEYS = ("model", "epoch", "split")
_WEIGHTS, _PLACE = "weights", "place in the part"


def scan_checkpoints(tokens: Artifact) -> pl.LazyFrame:
    """Scan the rows of a TOKENS artifact, locally or on S3; every file that is read is verified against the manifest.

    A row a checkpoint: zoo, model, epoch, split, the metrics, the layout's digest, and `weights`, the bytes of its flat
    weights; `decode_weights` turns them into numbers. Parts are read only where weights are asked for, those without a
    row that passes a filter on the other columns not at all:

        scan_checkpoints(tokens).filter(pl.col("epoch") == 5, pl.col("test_accuracy") > 0.9).select("model")

    Raises:
        CorruptArtifactError: a file is missing or damaged; for the parts, when the frame is collected.
    """
    index = pl.read_parquet(tokens.read("index.parquet"))
    schema = {**index.drop("part").schema, _WEIGHTS: pl.Binary()}

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, batch_rows: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = list(schema) if columns is None else columns
        asked = set(wanted) if predicate is None else {*wanted, *predicate.meta.root_names()}
        early = predicate is not None and _WEIGHTS not in predicate.meta.root_names()
        chosen = index.with_columns(pl.int_range(pl.len()).over("part").alias(_PLACE))
        chosen = chosen.filter(predicate) if early and predicate is not None else chosen
        blocks = chosen.partition_by("part", maintain_order=True) if _WEIGHTS in asked else [chosen]
        for block in blocks or [chosen]:
            frame = block if _WEIGHTS not in asked else _attach_weights(tokens, block)
            frame = frame if predicate is None or early else frame.filter(predicate)
            frame = frame.select(wanted)
            frame = frame if rows is None else frame.head(rows)
            rows = None if rows is None else rows - len(frame)
            yield frame
            if rows == 0:
                return

    return register_io_source(read, schema=schema, validate_schema=True)


def decode_weights(table: TokenTable) -> pl.Expr:
    """Return an expression that turns the column `weights` of `scan_checkpoints` into arrays of numbers.

    bfloat16, which polars does not have, is returned as float32.
    """
    weights = table.layout.weights
    if table.dtype == torch.bfloat16:
        halves = pl.col("weights").bin.reinterpret(dtype=pl.Array(pl.UInt16, weights), endianness="little")
        words = halves.map_batches(_widen, return_dtype=pl.Array(pl.Float32, weights), is_elementwise=True)
        return words.alias("weights")
    number = pl.Float16 if table.dtype == torch.float16 else pl.Float32
    return pl.col("weights").bin.reinterpret(dtype=pl.Array(number, weights), endianness="little")


def scan_tokens(tokens: Artifact, where: pl.Expr | None = None) -> pl.LazyFrame:
    """Scan a TOKENS artifact as a long table of tokens, a row a token, part by part.

    Columns: model, epoch, split; number (of the token in the network), layer (its name), kind (conv, linear, norm,
    ...), row (in the layer), part (of the row); values (float32, without padding).

    Args:
        tokens: a TOKENS artifact.
        where: a filter on the checkpoints' columns (model, epoch, split, metrics): what it leaves out is not read.

    Example, the norm of each layer's tokens over the epochs of one model:
        scan_tokens(tokens, where=pl.col("model") == "000003").group_by("epoch", "layer").agg(
            pl.col("values").list.eval(pl.element().pow(2)).list.sum().mean().sqrt()
        ).collect()
    """
    table = read_tokens(tokens)
    places = describe_tokens(table.layout)
    chosen = table.index.with_row_index("row")
    chosen = chosen if where is None else chosen.filter(where)
    schema = {
        **{name: table.index.schema[name] for name in _KEYS},
        **places.schema,
        "values": pl.List(pl.Float32),
    }

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, batch_rows: int | None
    ) -> Iterator[pl.DataFrame]:
        for part in sorted(chosen["part"].unique().to_list()):
            numbers = chosen.filter(pl.col("part") == part)["row"].to_list()
            for row, flat_P in zip(numbers, table.load(torch.tensor(numbers)), strict=True):
                frame = _list_tokens(table, places, row, flat_P)
                frame = frame if predicate is None else frame.filter(predicate)
                frame = frame if columns is None else frame.select(columns)
                frame = frame if rows is None else frame.head(rows)
                rows = None if rows is None else rows - len(frame)
                yield frame
                if rows == 0:
                    return

    return register_io_source(read, schema=schema, validate_schema=True)


def describe_tokens(layout: TokenLayout) -> pl.DataFrame:
    """Return a row for each token of a layout: number, layer, kind, row, part."""
    frames = [
        pl.DataFrame(
            {
                "layer": [layer.name] * layer.tokens,
                "kind": [layer.kind] * layer.tokens,
                "row": np.repeat(np.arange(layer.rows), layer.parts),
                "part": np.tile(np.arange(layer.parts), layer.rows),
            }
        )
        for layer in layout.layers
    ]
    return pl.concat(frames).with_row_index("number").with_columns(pl.col("number").cast(pl.Int64))


def _attach_weights(tokens: Artifact, block: pl.DataFrame) -> pl.DataFrame:
    """Return rows of one part, or none, with their weights."""
    if block.is_empty():
        return block.with_columns(pl.lit(None, pl.Binary).alias(_WEIGHTS))
    data = tokens.read(name_part(block["part"][0]))
    return block.with_columns(pl.read_parquet(data, columns=[_WEIGHTS])[_WEIGHTS].gather(block[_PLACE]))


def _list_tokens(table: TokenTable, places: pl.DataFrame, row: int, flat_P: Tensor) -> pl.DataFrame:
    values = table.layout.tokenize(flat_P)[table.layout.mask_TD].numpy()
    lengths = table.layout.weights_T.numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    lists = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)))
    keys = table.index[row].select(_KEYS)
    return pl.concat([keys[[0] * len(places)], places], how="horizontal").with_columns(pl.Series("values", lists))


def _widen(halves: pl.Series) -> pl.Series:
    """Turn arrays of bfloat16 bits into arrays of float32."""
    bits = halves.to_numpy().astype(np.uint32) << 16
    return pl.Series("weights", bits.view(np.float32))
