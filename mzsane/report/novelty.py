"""Accuracy against novelty: what generation is worth, since a copy is as accurate as its original."""

from collections.abc import Mapping

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mzsane.appearance import (
    COLORS,
    MUTED,
    Look,
    assign_looks,
    create_figure,
    create_message,
    list_handles,
    quote,
    style_axes,
)
from mzsane.report.cells import average_seeds, list_names

_MARKERS = {
    "samples": "o",
    "selected": "*",
    "anchors": "s",
    "anchor_noise": "x",
    "best_anchor": "^",
    "interpolation": "v",
    "average": "P",
    "statistics": "+",
    "reconstruction": "D",
}


def plot_novelty(rows: pl.DataFrame, looks: Mapping[str, Look] | None = None) -> Figure:
    """Plot zero-shot accuracy over novelty: a panel a target, a colour a composition, a marker a method.

    With more compositions than colours, the colour says whether the target is in distribution.

    Args:
        rows: One measurement a row.
        looks: The look of each composition; by default by its place in the alphabet.

    Raises:
        ConfigError: A column is missing.
    """
    cells = [cell for cell in average_seeds(rows) if cell.epochs == 0 and cell.accuracy is not None]
    shown = [cell for cell in cells if cell.novelty is not None and cell.method in _MARKERS]
    if not shown:
        return create_message("No novelty was measured.")
    targets = list(dict.fromkeys(cell.target for cell in shown))
    compositions = [name for name in list_names(rows, "composition") if any(cell.composition == name for cell in shown)]
    looks = looks or assign_looks(compositions)
    # A marker is a method here, so that only colours can tell compositions apart.
    many = len(compositions) > len(COLORS)
    colors = {(cell.composition, inside): looks[cell.composition].color for cell in shown for inside in (True, False)}
    handles = list_handles({name: looks[name] for name in compositions}, markers=False)
    if many:
        names = {True: "in distribution", False: "out of distribution"}
        by_place = dict(zip(names, COLORS, strict=False))
        colors = {key: by_place[key[1]] for key in colors}
        handles = [Line2D([], [], color=by_place[inside], linewidth=4, label=name) for inside, name in names.items()]
    methods = [
        Line2D([], [], linestyle="", marker=marker, color=MUTED, label=method)
        for method, marker in _MARKERS.items()
        if any(cell.method == method for cell in shown)
    ]
    figure = create_figure(
        max(7.0, 1.2 + 4.2 * len(targets)),
        5.0,
        "Accuracy against novelty: are generated networks more than copies?",
        "Novelty: distance to the nearest training model over the mean distance of training models to the nearest "
        "other one; 0 is a copy, 1 as new as they are to each other. Hollow: sees labels. Dashed: the zoo.",
        [*handles, *methods],
    )
    panels = figure.subplots(1, len(targets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, target in zip(panels, targets, strict=True):
        style_axes(axes, f"target: {quote(target, 24)}")
        for cell in cells:
            if cell.target == target and cell.method == "zoo":
                axes.axhline(cell.accuracy, color=MUTED, linestyle="--", linewidth=1.0, zorder=1)
        axes.axvline(1.0, color=MUTED, linestyle=":", linewidth=1.0, zorder=1)
        for cell in shown:
            if cell.target == target and cell.novelty is not None and cell.accuracy is not None:
                color = colors[cell.composition, cell.in_distribution]
                face = "white" if cell.sees == "labels" else color
                marker = _MARKERS[cell.method]
                axes.plot(
                    cell.novelty, cell.accuracy, marker, markersize=7, color=color, markerfacecolor=face, alpha=0.9
                )
        axes.set_xlabel("novelty (zoo spacings)", fontsize=10)
    panels[0].set_ylabel("accuracy (0 to 1)", fontsize=10)
    panels[0].set_ylim(0, 1.04)
    panels[0].set_xlim(left=-0.03)
    return figure
