"""Compositions against each other: which one is best, where a test tells it from the next, and contrasts of two."""

from collections.abc import Collection, Sequence
from typing import Any

import polars as pl

from mzsane.report.cells import SEES
from mzsane.report.statistics.duels import LEAST_SEEDS, describe_difference
from mzsane.report.statistics.intervals import Interval, compare_means, compare_pairs

LEADER_SCHEMA = {
    "target": pl.String,
    "method": pl.String,
    "sees": pl.String,
    "finetune_epochs": pl.Int64,
    "best": pl.String,
    "accuracy": pl.Float64,
    "next": pl.String,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "units": pl.Int64,
    "unit_kind": pl.String,
    "verdict": pl.String,
}


def find_leaders(models: pl.DataFrame, methods: Sequence[str] = ("samples", "selected")) -> pl.DataFrame:
    """Compare the best composition on each target with the next one, among those that saw as much of the target.

    Args:
        models: A row a single model: arm, composition, seed, target, in_distribution and the columns of a score.
        methods: Whose accuracies.

    Returns:
        A row a target, method, what was seen in all (`sees`, the larger of both) and number of epochs, with the columns
        of `LEADER_SCHEMA`; `verdict` is `win` where the best is told from the next, and `untested` where it has none.
    """
    sight = pl.max_horizontal(pl.col("sees", "generator_sees").replace_strict(SEES, range(len(SEES)), default=0))
    used = models.filter(_usable(methods)).with_columns(sight.alias("_sight"))
    rows = []
    for key, group in used.group_by("target", "method", "_sight", "finetune_epochs", maintain_order=True):
        by_seed = group.group_by("composition", "seed", maintain_order=True).agg(pl.col("accuracy").mean())
        means = by_seed.group_by("composition", maintain_order=True).agg(pl.col("accuracy").mean())
        ranked = means.sort("accuracy", descending=True, maintain_order=True).rows()
        row: dict[str, Any] = dict(zip(("target", "method", "sees", "finetune_epochs"), key, strict=True))
        row |= {"sees": SEES[row["sees"]], "best": ranked[0][0], "accuracy": ranked[0][1], "verdict": "untested"}
        if len(ranked) > 1:
            found, kind = compare_compositions(group, ranked[0][0], ranked[1][0])
            row |= {"next": ranked[1][0], "unit_kind": kind, **describe_difference(found)}
        rows.append(row)
    return pl.DataFrame(rows, schema=LEADER_SCHEMA)


def find_contrast(
    models: pl.DataFrame,
    contrast: tuple[str, str],
    method: str = "samples",
    epochs: int = 0,
    in_distribution: bool | None = None,
    targets: Collection[str] = (),
) -> tuple[Interval, str] | None:
    """Return the accuracy of a composition less that of another, and what its units are; None if they share no cell.

    Args:
        models: As for `find_leaders`.
        contrast: The two compositions.
        method: Whose accuracies.
        epochs: After how many epochs of fine-tuning.
        in_distribution: Only targets that are in (or out of) distribution for both.
        targets: Only these targets; all if empty.
    """
    some = models.filter(_usable([method]), pl.col("finetune_epochs") == epochs)
    if in_distribution is not None:
        some = some.filter(pl.col("in_distribution") == in_distribution)
    if targets:
        some = some.filter(pl.col("target").is_in(list(targets)))
    places = [set(some.filter(composition=name).select("target", "seed").rows()) for name in contrast]
    shared = pl.DataFrame(sorted(places[0] & places[1]), schema={"target": pl.String, "seed": pl.Int64}, orient="row")
    some = some.join(shared, on=("target", "seed"))
    return compare_compositions(some, *contrast) if len(shared) else None


def compare_compositions(models: pl.DataFrame, first: str, second: str) -> tuple[Interval, str]:
    """Return the difference of the mean accuracies of two compositions over seeds and targets, and what its units are.

    With three seeds or more the pairs are seeds, each with its mean over the targets, which share their backbones. With
    fewer the units are anchors; those of two compositions are never paired, whatever they are called.

    Args:
        models: Models of one method, with both compositions for each seed and target.
        first: The one composition.
        second: The other.
    """
    of_both = [models.filter(composition=name) for name in (first, second)]
    means = []
    for frame in of_both:
        by_target = frame.group_by("seed", "target").agg(pl.col("accuracy").mean())
        means.append(dict(by_target.group_by("seed").agg(pl.col("accuracy").mean()).rows()))
    seeds = sorted(means[0].keys() & means[1].keys())
    if len(seeds) >= LEAST_SEEDS:
        return compare_pairs([means[0][seed] - means[1][seed] for seed in seeds]), "seeds"
    cell = pl.concat_str("seed", "target", separator=" ")
    itself = pl.concat_str(cell, "model", separator=" ")
    unit = pl.concat_str("composition", pl.coalesce("cluster", itself), separator=" ")
    kept = pl.col("seed").is_in(seeds)
    sides = [frame.filter(kept).select(cell.alias("cell"), unit.alias("unit"), "accuracy").rows() for frame in of_both]
    return compare_means(*sides), "anchors"


def _usable(methods: Sequence[str]) -> pl.Expr:
    return pl.col("accuracy").is_finite() & (pl.col("ensemble") == 1) & pl.col("method").is_in(list(methods))
