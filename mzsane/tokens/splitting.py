"""The splits of a zoo's models: what the zoo says, and for all others the rule of `mzsane.splits`."""

import polars as pl

from mzsane.config import TokensConfig
from mzsane.errors import ConfigError
from mzsane.splits import SPLITS, assign_split


def split_models(index: pl.DataFrame, config: TokensConfig) -> pl.DataFrame:
    """Fill the column `split` of a zoo's index, by model.

    Models of one lineage (the column of that name; without it each model is its own) share a split: the one that the
    zoo gives to any of them, else the one of their lineage's name.

    Raises:
        ConfigError: the zoo puts one model, or models of one lineage, into several splits, or none is left to train on.
    """
    if "lineage" not in index.columns:
        index = index.with_columns(pl.lit(None, dtype=pl.String).alias("lineage"))
    index = index.with_columns(pl.coalesce("lineage", "model").alias("lineage"))
    given = _read_given(index)
    roots = index["lineage"].unique().to_list()
    split = {root: given.get(root) or assign_split(root, config.shares, config.split_seed) for root in roots}
    index = index.with_columns(pl.col("lineage").replace_strict(split, return_dtype=pl.String).alias("split"))
    if "train" not in split.values():
        raise ConfigError(
            f"no model of the zoo is in the train split ({index['model'].n_unique()} models, tokens.train_fraction "
            f"{config.train_fraction}): raise tokens.train_fraction, set another tokens.split_seed, or add models"
        )
    return index.drop("lineage")


def find_empty(index: pl.DataFrame, config: TokensConfig) -> list[str]:
    """Return the splits that are to have models, and have none."""
    there = set(index["split"].to_list())
    return [split for split, share in zip(SPLITS, config.shares, strict=True) if share and split not in there]


def _read_given(index: pl.DataFrame) -> dict[str, str]:
    """Return the splits that a zoo gives, by lineage."""
    given: dict[str, tuple[str, str]] = {}
    told = index.filter(pl.col("split").is_not_null()).select("lineage", "model", "split").unique(maintain_order=True)
    for root, model, split in told.iter_rows():
        first, before = given.setdefault(root, (model, split))
        if before != split:
            both = (
                f"model {model!r}" if first == model else f"models {first!r} and {model!r}, which are of one lineage,"
            )
            raise ConfigError(
                f"the zoo puts {both} into the splits {before} and {split}: a model is in one split with all its "
                "checkpoints; correct the split column of its metadata"
            )
    return {root: split for root, (_, split) in given.items()}
