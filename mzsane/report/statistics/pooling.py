"""Measurements pooled over seeds, for the report's page."""

from collections.abc import Sequence

import polars as pl

from mzsane.report.cells import METHODS, SEES, list_names
from mzsane.report.statistics.intervals import LEAST_UNITS, t_factors
from mzsane.report.words import KINDS, name_epochs, name_method, name_sight

KEYS = (
    *("composition", "target", "in_distribution", "method", "sees", "ensemble", "finetune_epochs", "images_per_class"),
    "steps",
)
_MEASURES = (
    *("novelty_mean", "sampling_novelty_mean", "seconds", "loss_mean", "calibration_mean", "outside_norms_share"),
    *("norm_ratio_mean", "error_overlap_mean", "spread_mean"),
)


def pool_seeds(rows: pl.DataFrame) -> pl.DataFrame:
    """Pool measurements over the seeds of their composition.

    Args:
        rows: A row a measurement, with the columns of `cells.ROW_SCHEMA`.

    Returns:
        The columns of `KEYS`, accuracy, interval (half of 95 %, null where unknown), units, unit_kind, image_passes and
        the measures without `_mean`, seen (in sampling or in making the generator, the larger) and for people
        kind, stage, name and saw; in the order of targets, methods, `sees`, steps and compositions.
    """
    finite = pl.col("accuracy_mean").is_finite()
    steps = pl.when(pl.col("method") == "zoo").then(0).otherwise(pl.col("gradient_steps").fill_null(0))
    groups = (
        rows.filter(finite)
        .with_columns(steps=steps)
        .group_by(KEYS, maintain_order=True)
        .agg(
            pl.col("generator_sees").first(),
            pl.col("accuracy_mean").mean().alias("accuracy"),
            pl.col("accuracy_mean").std().alias("over_seeds"),
            pl.col("seed").n_unique().alias("seeds"),
            ((pl.col("accuracy_interval") ** 2).sum().sqrt() / pl.len()).alias("own_interval"),
            pl.col("clusters").max(),
            pl.col("n").max(),
            pl.col("chosen_of").max(),
            pl.col("image_passes").max(),
            *(pl.col(name).fill_nan(None).mean().alias(name.removesuffix("_mean")) for name in _MEASURES),
        )
    )
    several = pl.col("seeds") >= LEAST_UNITS
    factors = t_factors(groups["seeds"])
    units = pl.when(several).then("seeds").otherwise("clusters")
    own = pl.when(pl.col("clusters") >= LEAST_UNITS).then("own_interval")
    groups = groups.with_columns(
        interval=pl.when(several).then(pl.col("over_seeds") * factors).otherwise(own).fill_nan(None),
        units=units,
        unit_kind=pl.when(several).then(pl.lit("seeds")).otherwise(pl.lit("independent networks")),
        kind=pl.col("method").replace_strict(KINDS, default="other"),
        stage=pl.col("finetune_epochs").map_elements(name_epochs, pl.String),
        name=pl.struct("method", "steps").map_elements(lambda s: name_method(s["method"], s["steps"]), pl.String),
        saw=pl.struct("sees", "generator_sees").map_elements(lambda s: name_sight(**s), pl.String),
        seen=pl.when(_place("generator_sees", SEES) > _place("sees", SEES)).then("generator_sees").otherwise("sees"),
    ).drop("own_interval", "over_seeds")
    orders = {
        "target": list_names(rows, "target"),
        "method": METHODS,
        "sees": SEES,
        "composition": list_names(rows, "composition"),
    }
    return groups.sort(
        "ensemble",
        "finetune_epochs",
        *(_place(name, orders[name]) for name in ("target", "method", "sees")),
        "steps",
        _place("composition", orders["composition"]),
        maintain_order=True,
    )


def _place(name: str, order: Sequence[str]) -> pl.Expr:
    return pl.col(name).replace_strict(
        {value: place for place, value in enumerate(order)}, default=len(order), return_dtype=pl.Int64
    )
