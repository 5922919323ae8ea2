"""Figures of accuracy: over novelty, over cost, by method, over fine-tuning, and the effects of a composition."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from mzsane.report.figures import (
    Entry,
    Figure,
    Panel,
    axis_x,
    axis_y,
    color_by,
    draw_panel,
    method_entries,
    shape_by,
    tell,
)
from mzsane.report.words import name_epochs

_KINDS = (
    Entry("generated", "--c1", "circle"),
    Entry("anchor and noise", "--c2", "cross"),
    Entry("copies", "--c3", "square"),
    Entry("new initialisations", "--c4", "diamond"),
    Entry("from weights alone", "--c6", "triangle-down"),
    Entry("trained models", "--ink", "triangle-up"),
)
_SIGHTS = (
    Entry("none", "--c1", "circle"),
    Entry("statistics", "--c6", "square"),
    Entry("images", "--c2", "diamond"),
    Entry("labels", "--c4", "triangle-up"),
)
_MANY_MARKS = 300  # in a panel
_ACCURACY = ("accuracy", "accuracy", ".3f")


def draw_novelty(cells: pl.DataFrame) -> Figure | None:
    """Draw zero-shot accuracy over novelty: a panel a target, a mark a method and composition.

    Args:
        cells: As of `pooling.pool_seeds`.
    """
    shown = cells.filter(pl.col("novelty").is_not_null(), finetune_epochs=0, ensemble=1)
    if shown.is_empty():
        return None
    names = ("composition", "target", "kind", "name", "saw", "sees", "accuracy", "interval", "novelty")
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


def _draw_novelty(title: str, data: pl.DataFrame, kinds: Sequence[Entry], edge: float, height: int) -> Panel:
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
            fill=alt.condition("datum.sees == 'none' || datum.sees == 'statistics'", _fill(kinds), alt.value("transparent")),
            shape=shape_by("kind", kinds),
            opacity=alt.when(hovered).then(alt.value(0.85)).otherwise(alt.value(0.1)),
            tooltip=tell(
                ("name", "method"),
                "composition",
                ("saw", "target"),
                _ACCURACY,
                ("interval", "± (95 %)", ".3f"),
                ("novelty", "novelty", ".2f"),
                ("sampling_novelty", "sampling novelty", ".2f"),
            ),
        )
        .add_params(hovered)
    )
    return draw_panel(title, data, [line, points], height)


def _fill(kinds: Sequence[Entry]) -> alt.Fill:
    scale = alt.Scale(domain=[entry.name for entry in kinds], range=[entry.color for entry in kinds])
    return alt.Fill(field="kind", type="nominal", scale=scale, legend=None)


def draw_methods(cells: pl.DataFrame) -> Figure | None:
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
                    ("name", "method"), "composition", ("saw", "target"), _ACCURACY, ("interval", "± (95 %)", ".3f")
                ),
            )
            .add_params(hovered)
        )
        panels.append(draw_panel(target, shown.filter(target=target).drop("target"), [bars, marks], 20 * len(order)))
    return Figure(
        "methods",
        "Zero-shot accuracy of every method",
        "A mark is a composition, the bar its 95 % interval; hover to follow a composition through the methods. Compare "
        "only methods that have seen the same of the target (in brackets). Of distilled_init there is a mark for each number "
        "of gradient steps.",
        panels,
        kinds,
        columns=2,
    )


def draw_cost(cells: pl.DataFrame) -> Figure | None:
    """Draw zero-shot accuracy over the time to make a network: a panel a target, a colour for what was seen.

    Args:
        cells: As of `pooling.pool_seeds`.
    """
    known = (pl.col("seconds") > 0) & pl.col("novelty").is_not_null()
    shown = cells.filter(known, finetune_epochs=0, ensemble=1)
    if shown["name"].n_unique() < 3:
        return None
    means = shown.group_by("target", "name", "method", "sees", "saw", "steps", maintain_order=True).agg(
        pl.col("accuracy", "novelty", "seconds").mean(), pl.col("image_passes").max()
    )
    # Few are named, lest names cover each other: what is judged, and the last points of the ways to train.
    last = (pl.col("steps") > 0) & (pl.col("steps") == pl.col("steps").max().over("method"))
    named = pl.col("method").is_in(["samples", "zoo"]) | (last & (pl.col("sees") == "none"))
    means = means.with_columns(label=pl.when(named).then("method"))
    sights = [entry for entry in _SIGHTS if entry.name in means["sees"]]
    panels = []
    for target in means["target"].unique(maintain_order=True).to_list():
        x = axis_x("seconds", "seconds for one network", type="log", nice=False, padding=20)
        y = axis_y("accuracy", "accuracy", domain=[0, 1])
        lines = (
            alt.Chart()
            .transform_filter("datum.steps > 0")
            .mark_line(strokeWidth=1.2, opacity=0.5)
            .encode(x=x, y=y, color=color_by("sees", sights), detail=["method:N"])
        )
        marks = (
            alt.Chart()
            .mark_point(size=55, filled=True, opacity=0.85)
            .encode(
                x=x,
                y=y,
                color=color_by("sees", sights),
                shape=shape_by("sees", sights),
                tooltip=tell(
                    ("name", "method"),
                    ("saw", "target"),
                    _ACCURACY,
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
        panels.append(draw_panel(target, means.filter(target=target).drop("target"), [lines, marks, *names], 260))
    return Figure(
        "cost",
        "Accuracy over what a network costs, by what was seen of the target",
        "A mark is a method, the mean over compositions; lines join one method with more and more gradient steps. A "
        "generator is worth its place where nothing of the same colour is at its upper left. Novelty is in the hint.",
        panels,
        sights,
    )


def draw_finetuning(cells: pl.DataFrame) -> Figure | None:
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
    order = pl.col("sees").replace_strict({"none": 0, "statistics": 1, "images": 2, "labels": 3}, default=4)
    shown = shown.filter(order == order.min().over("composition", "target", "method", "finetune_epochs"))
    keys = ("target", "method", "finetune_epochs")
    means = shown.group_by(*keys, maintain_order=True).agg(pl.col("accuracy").mean(), pl.len().alias("compositions"))
    own = shown.filter(method="samples").select(*keys, "composition", "accuracy", "interval")
    data = pl.concat([own, means.with_columns(composition=pl.lit("mean"))], how="diagonal")
    epochs = sorted(data["finetune_epochs"].unique())
    panels = []
    for target in data["target"].unique(maintain_order=True).to_list():
        x = axis_x("finetune_epochs", "epochs of fine-tuning", type="symlog" if epochs[-1] > 5 else "linear")
        x.axis = alt.Axis(values=epochs, format="d")
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
                    "method", "composition", ("finetune_epochs", "epochs"), _ACCURACY, ("interval", "± (95 %)", ".3f")
                ),
            )
        )
        panels.append(draw_panel(target, data.filter(target=target).drop("target"), [thin, thick, marks], 240))
    return Figure(
        "finetuning",
        "Accuracy while fine-tuning",
        "Thick: the mean of a method over compositions; thin: samples of each composition. A generated start is worth "
        "something where samples stay above random initialisations, and above the best model that was there before.",
        panels,
        entries,
    )


def draw_effects(effects: pl.DataFrame) -> Figure | None:
    """Draw total effects with their intervals, and beside them the adjusted ones: a panel for each stage.

    Args:
        effects: With the columns of `effects.EFFECT_SCHEMA`.
    """
    if effects.is_empty() or effects["estimate"].drop_nulls().is_empty():
        return None
    place = pl.when("in_distribution").then(pl.lit("in distribution")).otherwise(pl.lit("out of distribution"))
    shown = effects.filter(pl.col("estimate").is_not_null()).with_columns(
        place=place,
        change=pl.col("label").first().over("factor"),
        line=pl.col("kind") + ", " + place,
        *((100 * pl.col(name)).alias(name) for name in ("estimate", "low", "high")),
    )
    entries = [
        Entry("total, in distribution", "--c1", "circle"),
        Entry("total, out of distribution", "--c2", "square"),
        Entry("adjusted, in distribution", "--c1", "circle", hollow=True),
        Entry("adjusted, out of distribution", "--c2", "square", hollow=True),
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
                fill=alt.condition("datum.kind == 'total'", _fill_lines(entries), alt.value("--card")),
                tooltip=tell(
                    ("label", "change"),
                    ("line", "effect"),
                    ("estimate", "points", "+.2f"),
                    ("low", "from", "+.2f"),
                    ("high", "to", "+.2f"),
                    "units",
                    ("over", "interval over"),
                ),
            )
        )
        panels.append(draw_panel(name_epochs(epochs), data, [zero, bars, marks], 90 * len(changes)))
    return Figure(
        "effects",
        "Total and adjusted effects of size and diversity",
        "The total effect (filled) is the answer to what happens when a composition is made larger or more diverse. The "
        "adjusted one (hollow, dashed) is at equal novelty, which is a consequence of the composition: it tells why, not "
        "whether. Bars are 95 % intervals; one that crosses 0 tells no effect from chance.",
        panels,
        entries,
        columns=2,
    )


def _fill_lines(entries: Sequence[Entry]) -> alt.Fill:
    scale = alt.Scale(domain=[entry.name for entry in entries], range=[entry.color for entry in entries])
    return alt.Fill(field="line", type="nominal", scale=scale, legend=None)
