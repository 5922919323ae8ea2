"""Figures of zero-shot accuracy: over novelty, over cost, and by method."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from mzsane.report.figures.vega import (
    ACCURACY,
    Figure,
    LegendEntry,
    Panel,
    axis_x,
    axis_y,
    chart_panel,
    color_by,
    fill_by,
    shape_by,
    tell,
)

_KINDS = (
    LegendEntry("generated", "--c1", "circle"),
    LegendEntry("anchor and noise", "--c2", "cross"),
    LegendEntry("copies", "--c3", "square"),
    LegendEntry("new initialisations", "--c4", "diamond"),
    LegendEntry("from weights alone", "--c6", "triangle-down"),
    LegendEntry("trained models", "--ink", "triangle-up"),
)
_SIGHTS = (
    LegendEntry("none", "--c1", "circle"),
    LegendEntry("statistics", "--c6", "square"),
    LegendEntry("images", "--c2", "diamond"),
    LegendEntry("labels", "--c4", "triangle-up"),
)
_MANY_MARKS = 300  # in a panel


def chart_novelty(cells: pl.DataFrame) -> Figure | None:
    """Draw zero-shot accuracy over novelty: a panel a target, a mark a method and composition.

    Args:
        cells: As of `pooling.pool_seeds`.
    """
    shown = cells.filter(pl.col("novelty").is_not_null(), finetune_epochs=0, ensemble=1)
    if shown.is_empty():
        return None
    names = ("composition", "target", "kind", "name", "saw", "seen", "accuracy", "interval", "novelty")
    # What is drawn last is on top: the generated ones.
    shown = shown.select(*names, "sampling_novelty").sort(pl.col("kind") == "generated", maintain_order=True)
    kinds = [entry for entry in _KINDS if entry.name in shown["kind"]]
    edge = max(1.1, 1.05 * float(shown["novelty"].max() or 0.0))  # type: ignore[arg-type]
    targets = shown["target"].unique(maintain_order=True).to_list()
    few = len(targets) <= 3
    panels = [
        _draw_novelty(target, shown.filter(target=target).drop("target"), kinds, edge, 270 if few else 150)
        for target in targets
    ]
    return Figure(
        "novelty",
        "Accuracy against novelty",
        "A mark is a method with a composition; hover to see which, and where else its composition stands. Upper right "
        "is what generation is for: as accurate as trained models, and as far from all training models as these are "
        "from each other (dotted). A copy is at the left. Hollow: it saw images or labels of the target.",
        panels,
        kinds,
        columns=len(targets) if few else 2,
    )


def _draw_novelty(title: str, data: pl.DataFrame, kinds: Sequence[LegendEntry], edge: float, height: int) -> Panel:
    hovered = alt.selection_point(
        name="hovered", on="pointerover", clear="pointerout", fields=["composition"], nearest=False
    )
    base = alt.Chart()
    line = base.mark_rule(strokeDash=[2, 3], color="--muted").encode(x=alt.datum(1.0, type="quantitative"))
    points = (
        base.mark_point(size=20 if len(data) > _MANY_MARKS else 50, strokeWidth=1.5)
        .encode(
            x=axis_x("novelty", "novelty (zoo spacings)", domain=[0, edge], nice=False),
            y=axis_y("accuracy", "accuracy", domain=[0, 1]),
            color=color_by("kind", kinds),
            fill=alt.condition(
                "datum.seen == 'none' || datum.seen == 'statistics'", fill_by("kind", kinds), alt.value("transparent")
            ),
            shape=shape_by("kind", kinds),
            opacity=alt.when(hovered).then(alt.value(0.85)).otherwise(alt.value(0.1)),
            tooltip=tell(
                ("name", "method"),
                "composition",
                ("saw", "target"),
                ACCURACY,
                ("interval", "± (95 %)", ".3f"),
                ("novelty", "novelty", ".2f"),
                ("sampling_novelty", "sampling novelty", ".2f"),
            ),
        )
        .add_params(hovered)
    )
    return chart_panel(title, data, [line, points], height)


def chart_methods(cells: pl.DataFrame) -> Figure | None:
    """Draw zero-shot accuracy by method: a panel a target, a mark a composition.

    Args:
        cells: As of `pooling.pool_seeds`.
    """
    shown = cells.filter(finetune_epochs=0, ensemble=1)
    if shown["method"].n_unique() < 2:
        return None
    label = pl.col("method") + pl.when(pl.col("sees") == "none").then(pl.lit("")).otherwise(" (" + pl.col("sees") + ")")
    shown = shown.with_columns(label=label).select(
        *("composition", "target", "kind", "name", "label", "saw", "accuracy", "interval", "in_distribution"),
        low=(pl.col("accuracy") - pl.col("interval")).clip(0, 1),
        high=(pl.col("accuracy") + pl.col("interval")).clip(0, 1),
    )
    order = shown["label"].unique(maintain_order=True).to_list()
    kinds = [entry for entry in _KINDS if entry.name in shown["kind"]]
    targets = shown["target"].unique(maintain_order=True).to_list()
    panels = []
    for target in targets:
        hovered = alt.selection_point(name="hovered", on="pointerover", clear="pointerout", fields=["composition"])
        y = alt.Y(field="label", type="nominal", sort=order, title=None, scale=alt.Scale(domain=order))
        clear = alt.when(hovered).then(alt.value(0.85)).otherwise(alt.value(0.1))
        bars = (
            alt.Chart()
            .mark_rule(strokeWidth=1.5)
            .encode(
                x=axis_x("low", "accuracy", domain=[0, 1]), x2="high", y=y, color=color_by("kind", kinds), opacity=clear
            )
        )
        marks = (
            alt.Chart()
            .mark_point(size=45, filled=True)
            .encode(
                x=axis_x("accuracy", "accuracy", domain=[0, 1]),
                y=y,
                color=color_by("kind", kinds),
                shape=shape_by("kind", kinds),
                opacity=clear,
                tooltip=tell(
                    ("name", "method"), "composition", ("saw", "target"), ACCURACY, ("interval", "± (95 %)", ".3f")
                ),
            )
            .add_params(hovered)
        )
        panels.append(chart_panel(target, shown.filter(target=target).drop("target"), [bars, marks], 20 * len(order)))
    return Figure(
        "methods",
        "Zero-shot accuracy of every method",
        "A mark is a composition, the bar its 95 % interval; hover to follow one through the methods. Compare only "
        "methods that have seen the same of the target (in brackets). Of distilled_init each number of gradient steps "
        "has a mark.",
        panels,
        kinds,
        columns=2,
    )


def chart_cost(cells: pl.DataFrame) -> Figure | None:
    """Draw zero-shot accuracy over the time to make a network: a panel a target, a colour for what was seen.

    Args:
        cells: As of `pooling.pool_seeds`.
    """
    known = (pl.col("seconds") > 0) & pl.col("novelty").is_not_null()
    shown = cells.filter(known, finetune_epochs=0, ensemble=1)
    if shown["name"].n_unique() < 3:
        return None
    means = shown.group_by("target", "name", "method", "seen", "saw", "steps", maintain_order=True).agg(
        pl.col("accuracy", "novelty", "seconds").mean(), pl.col("image_passes").max()
    )
    # Few are named, lest names cover each other: what is judged, and the last points of the ways to train.
    last = (pl.col("steps") > 0) & (pl.col("steps") == pl.col("steps").max().over("method"))
    named = pl.col("method").is_in(["samples", "zoo"]) | (last & (pl.col("seen") == "none"))
    means = means.with_columns(label=pl.when(named).then("method"))
    sights = [entry for entry in _SIGHTS if entry.name in means["seen"]]
    panels = []
    for target in means["target"].unique(maintain_order=True).to_list():
        x = axis_x("seconds", "seconds for one network", type="log", nice=False, padding=20)
        y = axis_y("accuracy", "accuracy", domain=[0, 1])
        lines = (
            alt.Chart()
            .transform_filter("datum.steps > 0")
            .mark_line(strokeWidth=1.2, opacity=0.5)
            .encode(x=x, y=y, color=color_by("seen", sights), detail=["method:N"])
        )
        marks = (
            alt.Chart()
            .mark_point(size=55, filled=True, opacity=0.85)
            .encode(
                x=x,
                y=y,
                color=color_by("seen", sights),
                shape=shape_by("seen", sights),
                tooltip=tell(
                    ("name", "method"),
                    ("saw", "target"),
                    ACCURACY,
                    ("novelty", "novelty", ".2f"),
                    ("seconds", "seconds", ".2~g"),
                    ("image_passes", "image passes", ",.0f"),
                ),
            )
        )
        names = [
            alt.Chart()
            .transform_filter(f"datum.label != null && {'' if left else '!'}(datum.method == 'samples')")
            .mark_text(align="left" if left else "right", dx=8 if left else -8, dy=8 if left else -8, color="--ink")
            .encode(x=x, y=y, text=alt.Text(field="label", type="nominal"))
            for left in (True, False)
        ]
        panels.append(chart_panel(target, means.filter(target=target).drop("target"), [lines, marks, *names], 260))
    return Figure(
        "cost",
        "Accuracy over what a network costs, by what was seen of the target",
        "A mark is a method, the mean over compositions; lines join one method with more and more gradient steps. A "
        "generator is worth its place where nothing of the same colour is at its upper left. Novelty is in the hint.",
        panels,
        sights,
    )
