"""Reading the TOKENS artifact: a zoo's weights as flat rows of parquet, with their layout.

Files: `weights-NNNNN.parquet`, parts of one row group of about 64 MB, a row a checkpoint (model, epoch, split, the
metrics, the layout's digest, and its flat weights, unpadded, as bytes); `index.parquet`, the same rows without weights
and with the part that each lies in; `layout.json`, the token layout, the permutation groups and what is known of them;
`alignment.parquet` and `barriers.parquet`, what the canonical form brought; `rejected.parquet`, what was set aside.

Suffixes: N checkpoints, P weights of a model.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.utils.dlpack
from torch import Tensor

from mzsane.layout.token_layout import DTYPES, TokenLayout
from mzsane.store.artifacts import Artifact
from mzsane.symmetry.groups import PermutationGroup


@dataclass(frozen=True)
class TokenTable:
    """A TOKENS artifact: what is in it, in memory; its weights, when they are asked for.

    Attributes:
        index: a row a checkpoint: model, epoch, split, metrics, and `part`, the part that holds its weights.
        layout: where each weight sits in the tokens.
        groups: the architecture's permutation groups.
        dtype: type of the stored weights.
        artifact: where it was opened from.
    """

    index: pl.DataFrame
    layout: TokenLayout
    groups: tuple[PermutationGroup, ...]
    dtype: torch.dtype
    artifact: Artifact

    @property
    def parts(self) -> int:
        """Number of parts."""
        return count_parts(self.artifact)

    @cached_property
    def part_rows(self) -> tuple[tuple[int, ...], ...]:
        """For each part the numbers of its rows."""
        found = self.index.with_row_index("row").group_by("part", maintain_order=True).agg("row").sort("part")
        return tuple(tuple(rows) for rows in found["row"].to_list())

    def pick_rows(self, split: str, last_epochs: int | None = None, models: list[str] | None = None) -> Tensor:
        """Return the row numbers of a split: of all its models or of some, of all kept epochs or of the last ones."""
        rows = self.index.with_row_index("row").filter(pl.col("split") == split)
        if models is not None:
            rows = rows.filter(pl.col("model").is_in(models))
        if last_epochs is not None:
            rows = rows.filter(pl.col("epoch").rank("dense", descending=True).over("model") <= last_epochs)
        return torch.from_numpy(rows["row"].cast(pl.Int64).to_numpy().copy())

    def read_part(self, part: int) -> Tensor:
        """Read the weights of a part, (N, P), in the stored type.

        Raises:
            CorruptArtifactError: its bytes are not those of the manifest.
        """
        return read_weights(self.artifact.read(name_part(part)), self.dtype)

    def load(
        self,
        rows: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        read_part: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """Read the weights of some rows, or of all, in their order: (N, P); parts by `read_part` if that is given."""
        chosen = torch.arange(len(self.index)) if rows is None else rows
        flat_NP = torch.empty(len(chosen), self.layout.weights, dtype=dtype)
        part_of = torch.from_numpy(self.index["part"].to_numpy().copy())[chosen]
        for part in part_of.unique().tolist():
            inside = torch.tensor(self.part_rows[part])
            wanted = torch.nonzero(part_of == part).squeeze(1)
            flat_NP[wanted] = (read_part or self.read_part)(part)[torch.searchsorted(inside, chosen[wanted])].to(dtype)
        return flat_NP


def read_tokens(tokens: Artifact) -> TokenTable:
    """Open a TOKENS artifact."""
    description = json.loads(tokens.read("layout.json"))
    return TokenTable(
        index=pl.read_parquet(tokens.read("index.parquet")),
        layout=TokenLayout.model_validate(description["layout"]),
        groups=tuple(PermutationGroup.model_validate(group) for group in description["groups"]),
        dtype=DTYPES[description["dtype"]],
        artifact=tokens,
    )


def count_parts(tokens: Artifact) -> int:
    """Return the number of parts of a TOKENS artifact; its manifest tells."""
    return sum(name.startswith("weights-") for name in tokens.manifest.files)


def name_part(part: int) -> str:
    """Return the name of a part's file."""
    return f"weights-{part:05d}.parquet"


def write_weights(index: pl.DataFrame, flat_NP: Tensor, path: Path) -> None:
    """Write rows of an index and their weights to a parquet file of one row group.

    The weights are a column of fixed-size binary, little-endian, not compressed: read several times as fast as lists of
    numbers, which parquet assembles one by one, and bfloat16 is no parquet type.
    """
    stored = flat_NP.contiguous().view(torch.uint8)
    width = stored.shape[1]
    values = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(stored), [None, pa.py_buffer(stored.numpy().reshape(-1))]
    )
    table = index.to_arrow()
    table = table.append_column(pa.field("weights", values.type, nullable=False), values)
    pq.write_table(
        table,
        path,
        row_group_size=max(1, len(index)),
        compression={name: "none" if name == "weights" else "zstd" for name in table.column_names},
        use_dictionary=index.columns,
        write_statistics=index.columns,
    )


def read_weights(data: bytes, dtype: torch.dtype) -> Tensor:
    """Return the weights in the bytes of `write_weights`, (N, P)."""
    # `read_table` would set up a dataset and its threads, which takes longer than the reading.
    column = pq.ParquetFile(pa.BufferReader(data)).read(columns=["weights"], use_threads=False).column("weights")
    chunk = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    width = chunk.type.byte_width
    # Passed on without a copy: the memory is arrow's, which nobody writes to.
    stored = pa.UInt8Array.from_buffers(
        pa.uint8(), len(chunk) * width, [None, chunk.buffers()[1]], 0, chunk.offset * width
    )
    return torch.utils.dlpack.from_dlpack(stored).view(dtype).view(len(chunk), -1)
