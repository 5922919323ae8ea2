"""Figures of latents: what probes read from them, and maps of them."""

import altair as alt
import polars as pl

from mzsane.probing.features import FEATURES
from mzsane.probing.picture import name_features, name_property, pick_shown
from mzsane.report.figures.vega import (
    CATEGORIES,
    Figure,
    LegendEntry,
    axis_x,
    axis_y,
    chart_panel,
    color_by,
    shape_by,
    tell,
)

_SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right")


def chart_probes(probes: pl.DataFrame) -> Figure | None:
    """Draw what probes reach from latents, weights and statistics: a panel a zoo and distribution.

    Args:
        probes: Of all arms, with the columns of `probing.stage.PROBE_SCHEMA`.
    """
    if probes.is_empty():
        return None
    shown = pick_shown(probes)
    if shown.is_empty():
        return None
    order = [name for name in FEATURES if name in shown["features"]]
    means = shown.group_by("zoo", "in_distribution", "property", "metric", "features", maintain_order=True).agg(
        pl.col("value", "low", "high", "chance").fill_nan(None).mean(),
        pl.col("models").max(),
        pl.len().alias("backbones"),
    )
    # The interval over models is one backbone's; of several backbones' mean there is none.
    alone = pl.when(pl.col("backbones") == 1)
    means = means.with_columns(
        alone.then(pl.col(end).clip(-0.5, 1.0)).alias(end) for end in ("low", "high")
    ).with_columns(
        shown=pl.col("value").clip(-0.5, 1.0),
        features=pl.col("features").replace_strict({name: name_features(name) for name in order}),
        property=pl.Series(
            [f"{name_property(name)} ({metric})" for name, metric in means.select("property", "metric").rows()]
        ),
    )
    entries = [
        LegendEntry(name_features(name), f"--c{place + 1}", _SHAPES[place])
        for place, name in enumerate(FEATURES)
        if name in order
    ]
    panels = []
    means = means.sort("in_distribution", descending=True, maintain_order=True)
    for (zoo, inside), data in means.group_by("zoo", "in_distribution", maintain_order=True):
        properties = data["property"].unique(maintain_order=True).to_list()
        y = alt.Y(field="property", type="nominal", title=None, sort=properties)
        offset = alt.YOffset(
            field="features",
            type="nominal",
            sort=[entry.name for entry in entries],
            scale=alt.Scale(domain=[entry.name for entry in entries], paddingOuter=0.3),
        )
        x = axis_x("shown", "score (1 is perfect, 0 is guessing)", domain=[-0.5, 1])
        color = color_by("features", entries)
        bars = (
            alt.Chart()
            .mark_rule(strokeWidth=1.5, opacity=0.6)
            .encode(
                x=axis_x("low", "score (1 is perfect, 0 is guessing)", domain=[-0.5, 1]),
                x2="high",
                y=y,
                yOffset=offset,
                color=color,
            )
        )
        marks = (
            alt.Chart()
            .mark_point(size=50, filled=True)
            .encode(
                x=x,
                y=y,
                yOffset=offset,
                color=color,
                shape=shape_by("features", entries),
                tooltip=tell(
                    "features",
                    "property",
                    ("value", "score", ".2f"),
                    ("low", "from", ".2f"),
                    ("high", "to", ".2f"),
                    ("chance", "guessing", ".2f"),
                    "backbones",
                ),
            )
        )
        title = f"{zoo}, {'in' if inside else 'out of'} distribution"
        panels.append(chart_panel(title, data.drop("zoo", "in_distribution"), [bars, marks], 24 + 52 * len(properties)))
    return Figure(
        "probes",
        "What latents tell of a model, beside its weights and their statistics",
        "Linear probes, fitted on training models and scored on models that neither probe nor backbone has seen. "
        "Latents are worth something where they are to the right of the statistics of the weights.",
        panels,
        entries,
    )


def chart_latents(latents: pl.DataFrame) -> Figure | None:
    """Draw maps of latents: two panels a backbone, coloured by zoo and by accuracy.

    Args:
        latents: With the columns of `latents.LATENT_SCHEMA`.
    """
    if latents.is_empty():
        return None
    zoos = sorted(latents["zoo"].unique())
    entries = [
        LegendEntry(name, f"--c{place % CATEGORIES + 1}", _SHAPES[place % len(_SHAPES)])
        for place, name in enumerate(zoos)
    ]
    panels = []
    for (arm,), data in latents.group_by("arm", maintain_order=True):
        x = axis_x("x", "first component", zero=False)
        y = axis_y("y", "second component", zero=False)
        hint = tell("zoo", "model", "epoch", ("accuracy", "accuracy", ".3f"))
        shape = shape_by("zoo", entries)
        by_zoo = (
            alt.Chart()
            .mark_point(size=30, opacity=0.75)
            .encode(x=x, y=y, color=color_by("zoo", entries), shape=shape, tooltip=hint)
        )
        panels.append(chart_panel(f"{arm}: by zoo", data.drop("arm", "composition"), [by_zoo], 260))
        if data["accuracy"].drop_nulls().is_empty():
            continue
        scale = alt.Scale(scheme="viridis")
        color = alt.Color(field="accuracy", type="quantitative", scale=scale, title="accuracy")
        by_accuracy = (
            alt.Chart()
            .mark_point(size=30, filled=True, opacity=0.85)
            .encode(x=x, y=y, color=color, shape=shape, tooltip=hint)
        )
        panels.append(chart_panel(f"{arm}: by accuracy", data.drop("arm", "composition"), [by_accuracy], 260))
    return Figure(
        "latents",
        "Latents of models that the backbones were not trained on, in two dimensions",
        "A mark is a held-out checkpoint: mean and deviation of its latents over the tokens, first two principal "
        "components. One backbone for each diversity, of its largest composition.",
        panels,
        entries,
        columns=2,
    )
