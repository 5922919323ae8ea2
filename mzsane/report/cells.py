"""The cells of a comparison: measurements averaged over the seeds of their composition."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from mzsane.errors import ConfigError
from mzsane.evaluation.scorer import SEES as SEES  # the report orders by it
from mzsane.report.statistics.intervals import LEAST_UNITS, t_factors

METHODS = (
    "zoo",
    "best_model",
    "transfer",
    "reconstruction",
    "samples",
    "selected",
    "anchors",
    "best_anchor",
    "decoded_noise",
    "layer_noise",
    "flat_noise",
    "distilled_init",
    "interpolation",
    "average",
    "statistics",
    "random_init",
)
ROW_SCHEMA = {
    "arm": pl.String,
    "composition": pl.String,
    "seed": pl.Int64,
    "target": pl.String,
    "in_distribution": pl.Boolean,
    "models": pl.Int64,
    "datasets": pl.Int64,
    "architectures": pl.Int64,
    "method": pl.String,
    "sees": pl.String,
    "generator_sees": pl.String,
    "ensemble": pl.Int64,
    "finetune_epochs": pl.Int64,
    "learning_rate": pl.Float64,
    "images_per_class": pl.Int64,
    "gradient_steps": pl.Int64,
    "image_passes": pl.Int64,
    "seconds": pl.Float64,
    "n": pl.Int64,
    "clusters": pl.Int64,
    "chosen_of": pl.Int64,
    "accuracy_mean": pl.Float64,
    "accuracy_std": pl.Float64,
    "accuracy_interval": pl.Float64,
    "loss_mean": pl.Float64,
    "calibration_mean": pl.Float64,
    "novelty_mean": pl.Float64,
    "sampling_novelty_mean": pl.Float64,
    "norm_ratio_mean": pl.Float64,
    "outside_norms_share": pl.Float64,
    "error_overlap_mean": pl.Float64,
    "disagreement_mean": pl.Float64,
    "spread_mean": pl.Float64,
    "coverage": pl.Float64,
    "copying_z": pl.Float64,
}
_COUNTED = ("learning_rate", "seconds")  # numbers that are null where there is nothing to count
_MEASURED = tuple(name for name, kind in ROW_SCHEMA.items() if kind == pl.Float64 and name not in _COUNTED)
# What names a single model of `models.parquet`, beside the columns of its score (`mzsane.evaluation.scorer`).
MODEL_LABELS = {name: ROW_SCHEMA[name] for name in ("arm", "composition", "seed", "target", "in_distribution")}


@dataclass(frozen=True)
class Cell:
    """One number of the comparison.

    Attributes:
        composition: What the backbone was trained on.
        target: What was scored.
        in_distribution: Whether the target's dataset is among the composition's; None if that is not known.
        method: Where the weights come from.
        sees: The information about the target that the score used.
        epochs: Epochs of fine-tuning on the target.
        accuracy: Mean over seeds, 0 to 1; None when no seed has a finite accuracy.
        spread: Standard deviation, over seeds when there are three or more, else over the models; None when unknown.
        interval: Half of the 95 % confidence interval of the accuracy, over seeds when there are three or more, else
            over the anchors that the models go back to; None when unknown.
        seeds: Seeds with a finite accuracy.
        models: Models of a seed, in whatever ensembles.
        chosen_of: Of how many models these were selected on validation images; None if they were not.
        novelty: Mean over seeds of the distance to what was trained on, in spacings of the zoo; None when unknown.
        failed: Measurements left out because their accuracy is not finite.
        steps: Gradient steps a model before fine-tuning; None for models that somebody trained.
    """

    composition: str
    target: str
    in_distribution: bool | None
    method: str
    sees: str
    epochs: int
    accuracy: float | None
    spread: float | None
    interval: float | None
    seeds: int
    models: int
    chosen_of: int | None
    novelty: float | None
    failed: int
    steps: int | None


def check_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the measurements with the report's columns, every missing number as NaN.

    Args:
        rows: One measurement a row; an empty frame needs no columns.

    Raises:
        ConfigError: A column is missing.
    """
    if rows.is_empty():
        return pl.DataFrame(schema=ROW_SCHEMA)
    missing = [name for name in ROW_SCHEMA if name not in rows.columns]
    if missing:
        raise ConfigError(f"the report's rows lack the columns {missing}; they have {rows.columns}")
    return rows.select(pl.col(name).cast(kind) for name, kind in ROW_SCHEMA.items()).with_columns(
        pl.col(_MEASURED).fill_null(float("nan"))
    )


def list_names(rows: pl.DataFrame, column: str) -> list[str]:
    """Return the column's different values in the order in which they first appear."""
    return check_rows(rows)[column].unique(maintain_order=True).to_list()


def rank_method(method: str, sees: str) -> tuple[int, str, int, str]:
    """Return a sort key: the report's order of methods, then from seeing nothing to seeing labels."""
    return (
        METHODS.index(method) if method in METHODS else len(METHODS),
        method,
        SEES.index(sees) if sees in SEES else len(SEES),
        sees,
    )


def average_seeds(rows: pl.DataFrame, ensemble: int = 1) -> list[Cell]:
    """Average the measurements over seeds.

    The confidence interval is Student's over the means of seeds, which covers both, what a seed changes and what a
    model does. With fewer than three seeds it is the clustered one of their models, and holds for these seeds.

    Args:
        rows: One measurement a row.
        ensemble: Of which measurements: of ensembles of so many models, 1 for single ones.

    Returns:
        Cells by epochs, target (as first seen), method (the report's order) and composition (as first seen).

    Raises:
        ConfigError: A column is missing.
    """
    rows = check_rows(rows).filter(pl.col("ensemble") == ensemble)
    targets, compositions = list_names(rows, "target"), list_names(rows, "composition")
    finite = pl.col("accuracy_mean").is_finite()
    groups = rows.group_by("composition", "target", "method", "sees", "gradient_steps", "finetune_epochs").agg(
        in_distribution=pl.col("in_distribution").first(),
        accuracy=pl.col("accuracy_mean").filter(finite).mean(),
        seeds=pl.col("seed").filter(finite).n_unique(),
        over_seeds=pl.col("accuracy_mean").filter(finite).std(),
        over_models=pl.col("accuracy_std").filter(finite & pl.col("accuracy_std").is_finite()).mean(),
        interval=(pl.col("accuracy_interval").filter(finite) ** 2).sum().sqrt() / finite.sum(),
        models=(pl.col("n") * pl.col("ensemble")).max(),
        chosen_of=pl.col("chosen_of").max(),
        novelty=pl.col("novelty_mean").filter(pl.col("novelty_mean").is_finite()).mean(),
        failed=(~finite).sum(),
    )
    groups = groups.with_columns(
        spread=pl.when(pl.col("seeds") >= LEAST_UNITS).then("over_seeds").otherwise("over_models"),
        interval=pl.when(pl.col("seeds") >= LEAST_UNITS)
        .then(pl.col("over_seeds") * t_factors(groups["seeds"]))
        .otherwise("interval")
        .fill_nan(None),
    ).drop("over_seeds", "over_models")
    cells = [
        Cell(epochs=group.pop("finetune_epochs"), steps=group.pop("gradient_steps"), **group)
        for group in groups.to_dicts()
    ]
    return sorted(
        cells,
        key=lambda cell: (
            cell.epochs,
            targets.index(cell.target),
            rank_method(cell.method, cell.sees),
            cell.steps or 0,
            compositions.index(cell.composition),
        ),
    )


def format_accuracy(accuracy: float | None, interval: float | None = None) -> str:
    """Return a number such as `0.876 ±.021`, or `n/a` when it is None."""
    if accuracy is None:
        return "n/a"
    return f"{accuracy:.3f}" if interval is None else f"{accuracy:.3f} ±{interval:.3f}".replace("±0", "±")


def explain_interval(cells: Sequence[Cell]) -> str:
    """Return a sentence on what `±` means in these cells, and on what was left out of their means."""
    several = {cell.seeds >= LEAST_UNITS for cell in cells if cell.accuracy is not None}
    if several == {True}:
        text = "± is the 95 % confidence interval over seeds."
    elif several == {True, False}:
        text = "± is the 95 % confidence interval over seeds where there are three, else over anchors."
    else:
        text = "± is the 95 % confidence interval over anchors (for these seeds)."
    failed = sum(cell.failed for cell in cells)
    if failed:
        text += f" Left out: {failed} measurement{'s' * (failed > 1)} without a finite accuracy."
    return text


def join_names(names: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
