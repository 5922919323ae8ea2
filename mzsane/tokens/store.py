"""The TOKENS artifact: a zoo's weights as flat rows of parquet with their layout, and reading them back.

`weights.parquet` has one row a checkpoint: model, epoch, split, the metrics as plain columns, and its flat weights,
unpadded and in canonical form. `layout.json` holds the token layout and the permutation groups of the architecture,
`rejected.parquet` the checkpoints that were set aside, with the reason.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mzsane.artifacts import Artifact, ArtifactStore, Work
from mzsane.config import AnyZooConfig, TokensConfig
from mzsane.errors import ConfigError
from mzsane.files import to_parquet
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.randomness import make_generator
from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.symmetry import PermutationGroup, build_permutation_map, derive_groups, match_weights
from mzsane.zoo.architectures import build_network
from mzsane.zoo.images import load_images
from mzsane.zoo.origins import plan_zoo
from mzsane.zoo.shards import load_weights, select_parameters

VERSION = 2
_ROW_GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TokenTable:
    """A TOKENS artifact in memory.

    Attributes:
        index: a row a checkpoint: model, epoch, split, metrics.
        flat_NP: the flat weights of each row, float32.
        layout: where each weight sits in the tokens.
        groups: the architecture's permutation groups.
    """

    index: pl.DataFrame
    flat_NP: Tensor
    layout: TokenLayout
    groups: tuple[PermutationGroup, ...]

    def pick_rows(self, split: str, last_epochs: int | None = None, models: list[str] | None = None) -> Tensor:
        """Return the row numbers of a split: of all its models or of some, of all kept epochs or of the last ones."""
        rows = self.index.with_row_index("row").filter(pl.col("split") == split)
        if models is not None:
            rows = rows.filter(pl.col("model").is_in(models))
        if last_epochs is not None:
            rows = rows.filter(pl.col("epoch").rank("dense", descending=True).over("model") <= last_epochs)
        return torch.from_numpy(rows["row"].cast(pl.Int64).to_numpy().copy())


def plan_tokens(config: TokensConfig, zoo: AnyZooConfig) -> Work:
    """Name the work of tokenizing a zoo."""
    return Work("tokens", VERSION, config.recipe(), {"zoo": plan_zoo(zoo).ref}, seed=config.split_seed)


def build_tokens(config: TokensConfig, zoo: AnyZooConfig, store: ArtifactStore, sink: MetricSink = NO_SINK) -> Artifact:
    """Split a trained zoo by model, bring it to canonical form, and write its flat weights with their layout.

    The reference model is the first training model. The permutation is found on each model's last epoch and applied to
    all its epochs, so that a model's trajectory stays one.
    """
    work = plan_tokens(config, zoo)
    if found := store.find(work.ref):
        return found
    index, tensors = load_weights(store.open(work.inputs["zoo"]))
    weights = select_parameters(tensors)
    layout = TokenLayout.from_state_dict(weights_of_first(weights), config.token_dim)
    groups, without = _find_groups(zoo)
    flat_NP = layout.flatten(weights)
    index = _split_models(index.drop("shard", "row"), config)
    index, flat_NP, rejected = _set_aside(index, flat_NP, config.max_rejected)
    if config.canonical and groups:
        flat_NP = canonicalise(index, flat_NP, layout, groups, sink)
    else:
        sink.progress(len(index), len(index), "checkpoints")
    description = {
        "layout": layout.model_dump(mode="json"),
        "digest": layout.digest,
        "groups": [group.model_dump(mode="json") for group in groups],
    }
    counts: dict[str, Any] = {
        "checkpoints": len(index),
        "rejected": len(rejected),
        "models": index["model"].n_unique(),
        "tokens_per_model": layout.length,
        "filled": float(layout.mask_TD.float().mean()),
    }
    if without:
        counts["no_symmetry"] = without
    files = {
        "weights.parquet": _write_rows(index, flat_NP),
        "layout.json": json.dumps(description, indent=1).encode(),
        "rejected.parquet": to_parquet(rejected),
    }
    return store.publish(work, files, counts)


def _find_groups(zoo: AnyZooConfig) -> tuple[tuple[PermutationGroup, ...], str]:
    """Return the permutation groups of a zoo's architecture, or none and why."""
    if zoo.network is None or zoo.images is None:
        return (), "the zoo's network and images are not given"
    images = load_images(zoo.images)
    try:
        return derive_groups(build_network(zoo.network, images.channels, images.classes, images.size)), ""
    except ValueError as error:
        return (), str(error)


def read_tokens(tokens: Artifact) -> TokenTable:
    """Read a TOKENS artifact into memory."""
    table = pq.read_table(tokens.path("weights.parquet"))
    column = table.column("weights").combine_chunks()
    flat = np.asarray(column.flatten()).reshape(len(column), -1).copy()
    description = json.loads(tokens.path("layout.json").read_bytes())
    index = pl.from_arrow(table.drop_columns(["weights"]))
    assert isinstance(index, pl.DataFrame)
    groups = tuple(PermutationGroup.model_validate(group) for group in description["groups"])
    return TokenTable(index, torch.from_numpy(flat), TokenLayout.model_validate(description["layout"]), groups)


def weights_of_first(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of the first row of stacked weights."""
    return {name: value[0] for name, value in weights.items()}


def canonicalise(
    index: pl.DataFrame,
    flat_NP: Tensor,
    layout: TokenLayout,
    groups: tuple[PermutationGroup, ...],
    sink: MetricSink = NO_SINK,
) -> Tensor:
    """Permute every model to match the first training model's last epoch; return the permuted flat weights, (N, P).

    Raises:
        ConfigError: there is no training model.
    """
    rows = index.with_row_index("row").sort("model", "epoch")
    last = rows.group_by("model", maintain_order=True).agg(
        pl.col("row").alias("rows"), pl.col("row").sort_by("epoch").last().alias("last"), pl.col("split").first()
    )
    training = last.filter(pl.col("split") == "train")["last"]
    if training.is_empty():
        raise ConfigError(
            "no model is in the train split, so there is no reference for the canonical form: "
            "raise tokens.train_fraction or the zoo's models"
        )
    reference = layout.unflatten(flat_NP[training[0]])
    result_NP = flat_NP.clone()
    for done, model in enumerate(last.iter_rows(named=True), start=1):
        permutations = match_weights(layout.unflatten(flat_NP[model["last"]]), reference, groups)
        map_1P = build_permutation_map(layout, groups, [permutation[None] for permutation in permutations])
        result_NP[model["rows"]] = flat_NP[model["rows"]][:, map_1P[0]]
        sink.progress(done, len(last), "models aligned")
    return result_NP


def _split_models(index: pl.DataFrame, config: TokensConfig) -> pl.DataFrame:
    """Fill the column `split` where the zoo does not say: models, sorted and shuffled by the seed, are cut in three."""
    models = index["model"].unique().sort()
    order = torch.randperm(len(models), generator=make_generator(config.split_seed, "tokens", "split")).tolist()
    names = [name for name, count in config.count_split(len(models)).items() for _ in range(count)]
    split = dict(zip((models[i] for i in order), names, strict=True))
    drawn = pl.col("model").replace_strict(split)
    return index.with_columns(pl.coalesce(pl.col("split"), drawn).alias("split"))


def _set_aside(index: pl.DataFrame, flat_NP: Tensor, max_rejected: float) -> tuple[pl.DataFrame, Tensor, pl.DataFrame]:
    """Split off checkpoints whose weights are not finite; return index and weights of the rest, and the rejected."""
    finite_N = flat_NP.isfinite().all(dim=1)
    rejected = index.filter(~pl.Series(finite_N.numpy())).select(
        "model", "epoch", "split", pl.lit("weights that are not finite").alias("reason")
    )
    if len(rejected) > max_rejected * len(index):
        raise ConfigError(
            f"{len(rejected)} of {len(index)} checkpoints have weights that are not finite, more than "
            f"tokens.max_rejected ({max_rejected}) allows: lower the zoo's learning_rate, or raise max_rejected"
        )
    return index.filter(pl.Series(finite_N.numpy())), flat_NP[finite_N], rejected


def _write_rows(index: pl.DataFrame, flat_NP: Tensor) -> bytes:
    width = flat_NP.shape[1]
    values = pa.FixedSizeListArray.from_arrays(pa.array(flat_NP.numpy().reshape(-1)), width)
    table = index.to_arrow().append_column("weights", values)
    sink = pa.BufferOutputStream()
    group = max(1, _ROW_GROUP_BYTES // (width * flat_NP.element_size()))
    pq.write_table(
        table,
        sink,
        row_group_size=group,
        compression="zstd",
        use_dictionary=index.columns,
        use_byte_stream_split=["weights.list.element"],
    )
    return bytes(sink.getvalue())
