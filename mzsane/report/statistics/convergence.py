"""How far each backbone was trained, which stands beside every effect of what it was trained on.

More models at equal steps are each seen less often: what looks like an effect of size may be one of training that has
not ended. And a backbone that has failed says nothing of its composition at all.
"""

from collections.abc import Collection, Mapping

import polars as pl

CONVERGENCE_SCHEMA = {
    "arm": pl.String,
    "composition": pl.String,
    "seed": pl.Int64,
    "steps": pl.Int64,
    "passes": pl.Float64,
    "val_r2": pl.Float64,
    "gain_last_quarter": pl.Float64,
    "reconstruction_loss_of_accuracy": pl.Float64,
    "failed": pl.Boolean,
}
_FAILED_SHARE = 0.5  # of its accuracy, that a held-out model loses by reconstruction when a backbone has failed


def measure_convergence(curves: pl.DataFrame, passes: Mapping[str, float] | None = None) -> pl.DataFrame:
    """Return how far the backbone of each arm was trained.

    It has failed if on some zoo of its composition the reconstructions of validation models have lost half of the
    accuracy of their originals, or, where that was not measured, are no better than the mean of the zoo (R2 below 0).

    Args:
        curves: Training curves, long: arm, composition, seed, step, metric, value; validation metrics by zoo, such as
            `val_r2/digits` (see `mzsane.backbone.validation.measure`).
        passes: By arm, how often each checkpoint was seen in training.

    Returns:
        A row an arm, with the columns of `CONVERGENCE_SCHEMA`; what was not measured is null.
    """
    rows = []
    for (arm, composition, seed), curve in curves.group_by("arm", "composition", "seed", maintain_order=True):
        steps = int(curve["step"].max())  # type: ignore[arg-type]  # polars knows no type of a column's maximum
        r2 = _read(curve, "val_r2")
        accuracy, gap = (_read_last(curve, name) for name in ("val_accuracy", "val_accuracy_gap"))
        ends = {zoo: list(found.values())[-1] for zoo, found in r2.items()}
        # Written so that what is not a number counts as lost.
        kept = [
            gap[zoo] < _FAILED_SHARE * (accuracy[zoo] + gap[zoo]) if zoo in gap and zoo in accuracy else end >= 0
            for zoo, end in ends.items()
        ]
        rows.append(
            {
                "arm": arm,
                "composition": composition,
                "seed": seed,
                "steps": steps,
                "passes": (passes or {}).get(str(arm)),
                "val_r2": _mean(ends.values()),
                "gain_last_quarter": _mean([_measure_gain(found, steps) for found in r2.values()]),
                "reconstruction_loss_of_accuracy": _mean(list(gap.values())),
                "failed": not all(kept),
            }
        )
    return pl.DataFrame(rows, schema=CONVERGENCE_SCHEMA)


def list_failed(convergence: pl.DataFrame) -> list[str]:
    """Return the arms whose backbone has failed."""
    return convergence.filter("failed")["arm"].to_list()


def describe_failed(convergence: pl.DataFrame) -> str:
    """Say which backbones have failed; empty if none has."""
    failed = convergence.filter("failed")
    if failed.is_empty():
        return ""
    names = failed["arm"].to_list()
    shown = ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
    what = f"The backbone of {shown} has" if len(names) == 1 else f"The backbones of {shown} have"
    loss = failed["reconstruction_loss_of_accuracy"].drop_nulls()
    text = f"{what} failed"
    if len(loss):
        text += f": what is reconstructed is {100 * loss.mean():.0f} points less accurate"  # type: ignore[str-bytes-safe, operator]
    return f"{text}; {'its' if len(names) == 1 else 'their'} numbers say nothing of what a zoo should be made of."


def describe_convergence(convergence: pl.DataFrame, compositions: Collection[str]) -> str:
    """Say how far the backbones of some compositions were trained; empty if nothing is known of them."""
    some = convergence.filter(pl.col("composition").is_in(list(compositions)))
    parts = []
    for column, text in (
        ("passes", "saw each checkpoint {:.0f} times"),
        ("val_r2", "reached a validation R2 of {:.2f}"),
        ("gain_last_quarter", "gained {:+.3f} of it in the last quarter of training"),
    ):
        values = some[column].drop_nulls().drop_nans()
        if len(values):
            parts.append(text.format(values.mean()))
    return ", ".join(parts)


def _read(curve: pl.DataFrame, metric: str) -> dict[str, dict[int, float]]:
    """Return a metric of validation by zoo and step."""
    found: dict[str, dict[int, float]] = {}
    of_metric = curve.filter(pl.col("metric").str.starts_with(f"{metric}/")).sort("step")
    for step, name, value in of_metric.select("step", "metric", "value").rows():
        found.setdefault(name.partition("/")[2], {})[step] = value
    return found


def _read_last(curve: pl.DataFrame, metric: str) -> dict[str, float]:
    return {zoo: list(values.values())[-1] for zoo, values in _read(curve, metric).items()}


def _measure_gain(values: Mapping[int, float], steps: int) -> float | None:
    """Return what a metric gained in the last quarter, between two validations on the line; None if none was before."""
    begin = 0.75 * steps
    before = [step for step in values if step <= begin]
    after = [step for step in values if step > begin]
    if not before or not after:
        return None
    left, right = before[-1], after[0]
    share = (begin - left) / (right - left)
    return values[after[-1]] - ((1 - share) * values[left] + share * values[right])


def _mean(values: Collection[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
