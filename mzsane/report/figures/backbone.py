"""Figures of backbones: how far they have converged, how they were trained, and what share of networks is new."""

import altair as alt
import polars as pl

from mzsane.report.figures.vega import (
    CATEGORIES,
    Figure,
    LegendEntry,
    axis_x,
    axis_y,
    chart_panel,
    color_by,
    method_entries,
    name_categories,
    shape_by,
    tell,
)
from mzsane.report.words import PLACES

_MOST_POINTS = 40  # of a curve
_SHOWN_CURVES = r"^(loss.*|r2|val_(r2|accuracy)/.*)$"
_LEAST_R2 = -0.25  # the first steps can be far below zero; what matters is the way from 0 to 1


def chart_convergence(convergence: pl.DataFrame) -> Figure | None:
    """Draw what reconstruction costs over how often each checkpoint was seen: a mark an arm.

    Args:
        convergence: With the columns of `convergence.CONVERGENCE_SCHEMA`.
    """
    if len(convergence) < 2:
        return None
    passes = convergence["passes"].is_not_null().all()
    x = axis_x(
        "passes" if passes else "steps",
        "passes over each checkpoint" if passes else "training steps",
        type="log",
        nice=False,
        padding=20,
    )
    shown = convergence.with_columns(
        lost=100 * pl.col("reconstruction_loss_of_accuracy"),
        state=pl.when("failed").then(pl.lit("failed")).otherwise(pl.lit("trained")),
    )
    entries = [LegendEntry("trained", "--c1", "circle"), LegendEntry("failed", "--c2", "triangle-down")]
    entries = [entry for entry in entries if entry.name in shown["state"]]
    panels = []
    for name, title, form in (
        ("lost", "points lost by reconstruction", ".1f"),
        ("gain_last_quarter", "R² gained in the last quarter", ".3f"),
    ):
        known = shown.filter(pl.col(name).is_finite())
        if len(known) < 2:
            continue
        marks = (
            alt.Chart()
            .mark_point(size=60, filled=True, opacity=0.8)
            .encode(
                x=x,
                y=axis_y(name, None),
                color=color_by("state", entries),
                shape=shape_by("state", entries),
                tooltip=tell(
                    "composition",
                    "seed",
                    (name, title, form),
                    ("val_r2", "validation R²", ".3f"),
                    ("passes", "passes", ".1f"),
                    ("steps", "steps", ",d"),
                    "state",
                ),
            )
        )
        panels.append(chart_panel(title, known, [marks], 240))
    if not panels:
        return None
    return Figure(
        "convergence",
        "How far each backbone has converged",
        "A mark is a composition with one seed. Two compositions are compared fairly where both have converged: little "
        "was still gained in the last quarter of training, and reconstruction costs as little.",
        panels,
        entries,
        columns=2,
    )


def chart_curves(curves: pl.DataFrame) -> Figure | None:
    """Draw how backbones were trained: a panel a metric, a line a composition (the mean of its seeds).

    Args:
        curves: arm, composition, seed, step, metric, value.
    """
    if curves.is_empty():
        return None
    shown = curves.filter(pl.col("metric").str.contains(_SHOWN_CURVES) & pl.col("value").is_finite())
    # Up to forty windows of steps, so that any number of arms fits into the page.
    window = pl.col("step") * _MOST_POINTS // (pl.col("step").max().over("metric") + 1)
    shown = (
        shown.group_by("metric", "composition", window.alias("window"), maintain_order=True)
        .agg(pl.col("step").mean(), pl.col("value").mean())
        .drop("window")
    )
    metrics = sorted(shown["metric"].unique(), key=lambda name: ("loss" not in name, "val" in name, name))
    if not metrics:
        return None
    compositions = shown["composition"].unique(maintain_order=True).to_list()
    many = len(compositions) > CATEGORIES
    entries = [] if many else name_categories(compositions)
    panels = []
    for metric in metrics:
        data = shown.filter(metric=metric).drop("metric")
        logarithmic = "loss" in metric and float(data["value"].min() or 0.0) > 0  # type: ignore[arg-type]
        if "r2" in metric:
            data = data.with_columns(pl.col("value").clip(_LEAST_R2, 1.0))
        hovered = alt.selection_point(
            name="hovered", on="pointerover", clear="pointerout", fields=["composition"], nearest=True
        )
        x = axis_x("step", "training steps")
        kind = {"type": "log"} if logarithmic else {"zero": True}
        y = axis_y("value", None, **kind)
        color = alt.value("--c1") if many else color_by("composition", entries)
        faint = 0.08 if many else 0.2
        lines = (
            alt.Chart()
            .mark_line(strokeWidth=1.6)
            .encode(
                x=x,
                y=y,
                color=color,
                detail=["composition:N"],
                opacity=alt.when(hovered).then(alt.value(0.55 if many else 0.9)).otherwise(alt.value(faint)),
            )
        )
        hints = (
            alt.Chart()
            .mark_point(size=80, opacity=0)
            .encode(x=x, y=y, tooltip=tell("composition", ("step", "step", ",.0f"), ("value", metric, ".4~g")))
            .add_params(hovered)
        )
        panels.append(chart_panel(metric, data, [lines, hints], 200))
    note = "A line is a composition, the mean of its seeds; hover to bring one out and to read its name."
    return Figure("curves", "How the backbones were trained", note, panels, entries)


def chart_shares(shares: pl.DataFrame) -> Figure | None:
    """Draw the share of models that are novel and as accurate as the zoo: a panel a target and distribution.

    Args:
        shares: With the columns of `shares.SHARE_SCHEMA`.
    """
    if shares.is_empty() or not float(shares["share"].max() or 0.0) > 0:  # type: ignore[arg-type]
        return None
    means = shares.group_by("target", "in_distribution", "method", "threshold", maintain_order=True).agg(
        pl.col("share").mean()
    )
    own = shares.filter(method="samples").group_by(
        "target", "in_distribution", "method", "threshold", "composition", maintain_order=True
    )
    data = pl.concat([own.agg(pl.col("share").mean()), means.with_columns(composition=pl.lit("mean"))], how="diagonal")
    entries = method_entries(means["method"].unique())
    data = data.filter(pl.col("method").is_in([entry.name for entry in entries]))
    panels = []
    for inside in PLACES:
        for target in data["target"].unique(maintain_order=True).to_list():
            own_place = pl.col("in_distribution").eq_missing(pl.lit(inside, pl.Boolean))
            here = data.filter(own_place, target=target).drop("target", "in_distribution")
            if here.is_empty():
                continue
            x = axis_x("threshold", "least novelty (zoo spacings)")
            y = axis_y("share", "share of networks", domain=[0, 1])
            color = color_by("method", entries)
            thin = (
                alt.Chart()
                .transform_filter("datum.composition != 'mean'")
                .mark_line(strokeWidth=1, opacity=0.35)
                .encode(x=x, y=y, color=color, detail=["composition:N"])
            )
            thick = (
                alt.Chart()
                .transform_filter("datum.composition == 'mean'")
                .mark_line(strokeWidth=2.2)
                .encode(x=x, y=y, color=color)
            )
            hints = (
                alt.Chart()
                .mark_point(size=60, opacity=0)
                .encode(
                    x=x,
                    y=y,
                    tooltip=tell(
                        "method", "composition", ("threshold", "least novelty", ".2f"), ("share", "share", ".1%")
                    ),
                )
            )
            title = f"{target}, {PLACES[inside]}"
            panels.append(chart_panel(title, here, [thin, thick, hints], 200))
    return Figure(
        "shares",
        "Share of networks that are novel and as accurate as the zoo",
        "Novel: at least as far from every training model as the threshold at the bottom. As accurate: at least the "
        "lower quartile of the zoo's held-out models. Networks with a norm outside the zoo's range count in no share. "
        "Thick: mean over compositions; thin: samples of each. None was selected.",
        panels,
        entries,
    )
