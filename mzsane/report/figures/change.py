"""Figures of what changes accuracy: epochs of fine-tuning, and the size and diversity of a composition."""

import altair as alt
import polars as pl

from mzsane.report.cells import SEES
from mzsane.report.figures.vega import (
    ACCURACY,
    Figure,
    LegendEntry,
    axis_x,
    axis_y,
    chart_panel,
    color_by,
    fill_by,
    method_entries,
    shape_by,
    tell,
)
from mzsane.report.statistics.effects import CHANGES
from mzsane.report.words import name_epochs


def chart_finetuning(cells: pl.DataFrame) -> Figure | None:
    """Draw accuracy over epochs of fine-tuning: a panel a target, a line a method, thin lines for compositions.

    Args:
        cells: As of `pooling.pool_seeds`.
    """
    tuned = cells.filter(pl.col("finetune_epochs") > 0, ensemble=1)["method"].unique(maintain_order=True).to_list()
    if not tuned:
        return None
    entries = method_entries(tuned)
    methods = [entry.name for entry in entries]
    # Fine-tuning sees labels: a line goes on from what its method had seen the least of before.
    shown = cells.filter(pl.col("method").is_in(methods), ensemble=1)
    order = pl.col("sees").replace_strict({name: place for place, name in enumerate(SEES)}, default=len(SEES))
    shown = shown.filter(order == order.min().over("composition", "target", "method", "finetune_epochs"))
    keys = ("target", "method", "finetune_epochs")
    means = shown.group_by(*keys, maintain_order=True).agg(pl.col("accuracy").mean(), pl.len().alias("compositions"))
    own = shown.filter(method="samples").select(*keys, "composition", "accuracy", "interval")
    data = pl.concat([own, means.with_columns(composition=pl.lit("mean"))], how="diagonal")
    epochs = sorted(data["finetune_epochs"].unique())
    panels = []
    for target in data["target"].unique(maintain_order=True).to_list():
        scale = "symlog" if epochs[-1] > 5 else "linear"
        x = axis_x("finetune_epochs", "epochs of fine-tuning", epochs, type=scale)
        y = axis_y("accuracy", "accuracy", domain=[0, 1])
        color = color_by("method", entries)
        thin = (
            alt.Chart()
            .transform_filter("datum.composition != 'mean'")
            .mark_line(strokeWidth=1, opacity=0.3)
            .encode(x=x, y=y, color=color, detail=["composition:N"])
        )
        thick = (
            alt.Chart()
            .transform_filter("datum.composition == 'mean'")
            .mark_line(strokeWidth=2.2)
            .encode(x=x, y=y, color=color)
        )
        marks = (
            alt.Chart()
            .mark_point(size=40, filled=True)
            .encode(
                x=x,
                y=y,
                color=color,
                opacity=alt.condition("datum.composition == 'mean'", alt.value(1), alt.value(0.35)),
                tooltip=tell(
                    "method", "composition", ("finetune_epochs", "epochs"), ACCURACY, ("interval", "± (95 %)", ".3f")
                ),
            )
        )
        panels.append(chart_panel(target, data.filter(target=target).drop("target"), [thin, thick, marks], 240))
    return Figure(
        "finetuning",
        "Accuracy while fine-tuning",
        "Thick: the mean of a method over compositions; thin: samples of each composition. A generated start is worth "
        "something where samples stay above random initialisations, and above the best model that was there before.",
        panels,
        entries,
    )


def chart_effects(effects: pl.DataFrame) -> Figure | None:
    """Draw total effects with their intervals, and beside them the adjusted ones: a panel for each stage.

    Args:
        effects: With the columns of `effects.EFFECT_SCHEMA`.
    """
    if effects.is_empty() or effects["estimate"].drop_nulls().is_empty():
        return None
    place = pl.when("in_distribution").then(pl.lit("in distribution")).otherwise(pl.lit("out of distribution"))
    shown = effects.filter(pl.col("estimate").is_not_null()).with_columns(
        place=place,
        change=pl.col("factor").replace(CHANGES),
        line=pl.col("kind") + ", " + place,
    )
    shown = shown.with_columns((100 * pl.col(name)).alias(name) for name in ("estimate", "low", "high"))
    entries = [
        LegendEntry("total, in distribution", "--c1", "circle"),
        LegendEntry("total, out of distribution", "--c2", "square"),
        LegendEntry("adjusted, in distribution", "--c1", "circle", hollow=True),
        LegendEntry("adjusted, out of distribution", "--c2", "square", hollow=True),
    ]
    entries = [entry for entry in entries if entry.name in shown["line"]]
    panels = []
    changes = shown["change"].unique(maintain_order=True).to_list()
    for epochs in sorted(shown["epochs"].unique()):
        data = shown.filter(epochs=epochs).drop("epochs")
        y = alt.Y(field="change", type="nominal", title=None, sort=changes, scale=alt.Scale(domain=changes))
        offset = alt.YOffset(
            field="line", type="nominal", sort=[e.name for e in entries], scale=alt.Scale(paddingOuter=0.4)
        )
        zero = alt.Chart().mark_rule(color="--muted").encode(x=alt.datum(0, type="quantitative"))
        bars = (
            alt.Chart()
            .mark_rule(strokeWidth=2)
            .encode(
                x=axis_x("low", "change of accuracy (percentage points)"),
                x2="high",
                y=y,
                yOffset=offset,
                color=color_by("line", entries),
                strokeDash=alt.condition("datum.kind == 'total'", alt.value([1, 0]), alt.value([4, 3])),
            )
        )
        marks = (
            alt.Chart()
            .mark_point(size=70, strokeWidth=2)
            .encode(
                x=axis_x("estimate", "change of accuracy (percentage points)"),
                y=y,
                yOffset=offset,
                color=color_by("line", entries),
                shape=shape_by("line", entries),
                fill=alt.condition("datum.kind == 'total'", fill_by("line", entries), alt.value("--card")),
                tooltip=tell(
                    ("label", "what"),
                    ("line", "effect"),
                    ("estimate", "points", "+.2f"),
                    ("low", "from", "+.2f"),
                    ("high", "to", "+.2f"),
                    "units",
                    ("over", "interval over"),
                ),
            )
        )
        panels.append(chart_panel(name_epochs(epochs), data, [zero, bars, marks], 90 * len(changes)))
    return Figure(
        "effects",
        "Total and adjusted effects of size and diversity",
        "The total effect (filled) is what happens when a composition is made larger or more diverse. The adjusted one "
        "(hollow, dashed) is at equal novelty, which is a consequence of the composition: it tells why, not whether. "
        "Bars are 95 % intervals; one that crosses 0 tells no effect from chance.",
        panels,
        entries,
        columns=2,
    )
