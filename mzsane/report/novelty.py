"""Accuracy against novelty: what generation is worth, since a copy is as accurate as its original."""

from collections.abc import Mapping

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mzsane.appearance import (
    COLORS,
    MUTED,
    SIZE,
    Style,
    assign_styles,
    create_figure,
    create_message,
    list_handles,
    quote,
    style_axes,
)
from mzsane.report.cells import check_rows, list_names
from mzsane.report.statistics.pooling import pool_seeds
from mzsane.report.words import PLACES

_MARKERS = {
    "samples": "o",
    "selected": "*",
    "anchors": "s",
    "decoded_noise": "x",
    "layer_noise": "+",
    "flat_noise": "1",
    "distilled_init": "p",
    "best_anchor": "^",
    "interpolation": "v",
    "average": "P",
    "statistics": "2",
    "reconstruction": "D",
}


def plot_novelty(rows: pl.DataFrame, looks: Mapping[str, Style] | None = None) -> Figure:
    """Plot zero-shot accuracy over novelty: a panel a target, a colour a composition, a marker a method.

    With more compositions than colours, the colour says whether the target is in distribution.

    Args:
        rows: One measurement a row.
        looks: The look of each composition; by default by its place in the alphabet.

    Raises:
        ConfigError: A column is missing.
    """
    cells = pool_seeds(check_rows(rows)).filter(finetune_epochs=0, ensemble=1)
    shown = cells.filter(pl.col("novelty").is_not_null() & pl.col("method").is_in(list(_MARKERS)))
    if shown.is_empty():
        return create_message("No novelty was measured.")
    targets = shown["target"].unique(maintain_order=True).to_list()
    compositions = [name for name in list_names(rows, "composition") if name in shown["composition"]]
    looks = looks or assign_styles(compositions)
    # A marker is a method here, so that only colours can tell compositions apart.
    many = len(compositions) > len(COLORS)
    colors = {(name, inside): looks[name].color for name in compositions for inside in PLACES}
    handles = list_handles({name: looks[name] for name in compositions}, markers=False)
    if many:
        by_place = dict(zip(PLACES, COLORS, strict=False))
        colors = {key: by_place[key[1]] for key in colors}
        handles = [Line2D([], [], color=by_place[inside], linewidth=4, label=name) for inside, name in PLACES.items()]
    methods = [
        Line2D([], [], linestyle="", marker=marker, color=MUTED, label=method)
        for method, marker in _MARKERS.items()
        if method in shown["method"]
    ]
    figure = create_figure(
        max(7.0, 1.2 + 4.2 * len(targets)),
        5.0,
        "Accuracy against novelty, by method and composition",
        "Novelty: distance to the nearest training model over the mean distance of training models to the nearest "
        "other one; 0 is a copy, 1 as new as they are to each other. Hollow: sees images or labels. Dashed: the zoo.",
        [*handles, *methods],
    )
    panels = figure.subplots(1, len(targets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, target in zip(panels, targets, strict=True):
        style_axes(axes, f"target: {quote(target, 24)}")
        for accuracy in cells.filter(target=target, method="zoo")["accuracy"]:
            axes.axhline(accuracy, color=MUTED, linestyle="--", linewidth=1.0, zorder=1)
        axes.axvline(1.0, color=MUTED, linestyle=":", linewidth=1.0, zorder=1)
        for row in shown.filter(target=target).iter_rows(named=True):
            color = colors[row["composition"], row["in_distribution"]]
            face = "white" if row["sees"] in ("images", "labels") else color
            marker = _MARKERS[row["method"]]
            axes.plot(
                row["novelty"], row["accuracy"], marker, markersize=7, color=color, markerfacecolor=face, alpha=0.9
            )
        axes.set_xlabel("novelty (zoo spacings)", fontsize=SIZE)
    panels[0].set_ylabel("accuracy (0 to 1)", fontsize=SIZE)
    panels[0].set_ylim(0, 1.04)
    panels[0].set_xlim(left=-0.03)
    return figure
