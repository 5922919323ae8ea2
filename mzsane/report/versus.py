"""Two comparisons side by side: what each measured, and which effects it found."""

import polars as pl

from mzsane.store.artifacts import Artifact

_CELL = ("composition", "target", "method", "sees", "finetune_epochs", "ensemble", "gradient_steps")
_EFFECT = ("factor", "kind", "epochs", "in_distribution")


def compare_measurements(one: Artifact, other: Artifact) -> pl.DataFrame:
    """Return the mean accuracies over seeds of what both measured, and the difference, in shares of 1.

    Rows are in order of how much they differ.
    """
    sides = [_mean_accuracies(each, name) for each, name in ((one, "A"), (other, "B"))]
    joined = sides[0].join(sides[1], on=_CELL, how="inner", nulls_equal=True)
    difference = (pl.col("B") - pl.col("A")).alias("B - A")
    return joined.with_columns(difference).sort(pl.col("B - A").abs(), descending=True, maintain_order=True)


def compare_effects(one: Artifact, other: Artifact) -> pl.DataFrame:
    """Return the effects that both estimated, with their intervals, in shares of 1."""
    sides = []
    for each, name in ((one, "A"), (other, "B")):
        effects = pl.read_parquet(each.path("effects.parquet")).filter(pl.col("estimate").is_not_null())
        names = {"estimate": name, "low": f"{name} low", "high": f"{name} high"}
        sides.append(effects.select(*_EFFECT, *names).rename(names))
    return sides[0].join(sides[1], on=_EFFECT, how="inner", nulls_equal=True)


def _mean_accuracies(comparison: Artifact, name: str) -> pl.DataFrame:
    rows = pl.read_parquet(comparison.path("comparison.parquet"))
    return rows.group_by(_CELL, maintain_order=True).agg(pl.col("accuracy_mean").mean().alias(name))
