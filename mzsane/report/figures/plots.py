"""The figures of an ablation: accuracy, fine-tuning, training curves. No global state of pyplot."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from mzsane.appearance import (
    BAND,
    FAINT,
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
from mzsane.report.cells import Cell, average_seeds, check_rows, explain_interval, list_names, rank_method
from mzsane.report.statistics.pooling import pool_seeds
from mzsane.report.words import PLACES

_EVEN_EPOCHS = 5  # more epochs of fine-tuning than this are drawn on a logarithmic scale
_SHOWN_CURVES = r"^(loss.*|r2|val_(r2|accuracy)/.*)$"


def plot_cells(
    axes: Axes, xs: Sequence[float], cells: Sequence[Cell], look: Style, line: str = "", alpha: float = 1.0
) -> None:
    """Draw cells as markers with error bars, hollow out of distribution, pale where that is not known."""
    ys = [math.nan if cell.accuracy is None else cell.accuracy for cell in cells]
    intervals = [cell.interval or 0.0 for cell in cells]
    axes.errorbar(
        xs, ys, yerr=intervals, color=look.color, linestyle=line, linewidth=1.6, elinewidth=1.2, capsize=2, alpha=alpha
    )
    for x, y, cell in zip(xs, ys, cells, strict=True):
        face = {True: look.color, False: "white", None: FAINT}[cell.in_distribution]
        axes.plot(x, y, look.marker, markersize=6.5, markerfacecolor=face, markeredgecolor=look.color, alpha=alpha)


def explain_fill(inside: Iterable[bool | None]) -> list[Line2D]:
    """Return the legend's entries for filled, hollow and pale markers: in and out of distribution, and not known."""
    found = set(inside)
    return [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            color=MUTED,
            markerfacecolor={True: MUTED, False: "white", None: FAINT}[known],
            label=PLACES[known],
        )
        for known in PLACES
        if known in found
    ]


def plot_accuracy(rows: pl.DataFrame, looks: Mapping[str, Style] | None = None) -> Figure:
    """Plot zero-shot accuracy: one panel a target, methods downwards, one marker for each composition.

    Args:
        rows: One measurement a row.
        looks: The look of each composition; by default by its place in the alphabet.

    Raises:
        ConfigError: A column is missing.
    """
    cells = pool_seeds(check_rows(rows)).filter(finetune_epochs=0, ensemble=1)
    if cells.is_empty():
        return create_message("No zero-shot accuracy in these rows.")
    seen = pl.when(pl.col("sees") == "none").then(pl.lit("")).otherwise(" (" + pl.col("sees") + ")")
    cells = cells.with_columns(label=pl.col("name") + seen)
    labels = cells["label"].unique(maintain_order=True).to_list()
    targets = cells["target"].unique(maintain_order=True).to_list()
    compositions = [name for name in list_names(rows, "composition") if name in cells["composition"]]
    looks = looks or assign_styles(compositions)

    figure = create_figure(
        max(7.0, 2.4 + 3.2 * len(targets)),
        1.9 + 0.32 * len(labels),
        "Zero-shot accuracy of every method, by composition and target",
        "Bars: 95 % intervals over independent units. In brackets: what the score saw of the target, if anything.",
        [
            *list_handles({name: looks[name] for name in compositions}, lines=False),
            *explain_fill(cells["in_distribution"]),
        ],
    )
    panels = figure.subplots(1, len(targets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, target in zip(panels, targets, strict=True):
        style_axes(axes, f"target: {quote(target)}")
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        for row in cells.filter(target=target).iter_rows(named=True):
            look = looks[row["composition"]]
            place = compositions.index(row["composition"]) - (len(compositions) - 1) / 2
            y = labels.index(row["label"]) + place * 0.75 / len(compositions)
            axes.errorbar(row["accuracy"], y, xerr=row["interval"] or 0.0, color=look.color, elinewidth=1.2)
            face = {True: look.color, False: "white", None: FAINT}[row["in_distribution"]]
            axes.plot(row["accuracy"], y, look.marker, markersize=5, markerfacecolor=face, markeredgecolor=look.color)
        axes.set_xlabel("accuracy (0 to 1)", fontsize=SIZE)
    for axes in panels:
        for y in range(1, len(labels), 2):
            axes.axhspan(y - 0.5, y + 0.5, color=BAND, zorder=0, linewidth=0)
    panels[0].set_xlim(0, 1.04)
    panels[0].set_yticks(range(len(labels)), [quote(label) for label in labels])
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    return figure


def arrange_series(cells: Iterable[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """Group cells to lines over epochs, by (method, sees).

    Fine-tuning itself sees labels, so a method's `sees` may change along the way. Where a method has one value at each
    number of epochs it is one line; where it has several at once, each is a line of its own.
    """
    series: dict[tuple[str, str], list[Cell]] = {}
    for method, of_method in groupby(sorted(cells, key=lambda cell: rank_method(cell.method, "")), lambda c: c.method):
        group = list(of_method)
        places = [(cell.epochs, cell.target, cell.composition) for cell in group]
        for cell in sorted(group, key=lambda cell: cell.epochs):
            series.setdefault((method, cell.sees if len(places) > len(set(places)) else ""), []).append(cell)
    return {key: group for key, group in series.items() if len({cell.epochs for cell in group}) > 1}


def plot_finetuning(rows: pl.DataFrame, looks: Mapping[str, Style] | None = None) -> Figure:
    """Plot accuracy over epochs of fine-tuning: a row a method, a column a target, a line a composition.

    Training from scratch (`random_init`), averaged over compositions, is repeated in every panel.

    Args:
        rows: One measurement a row.
        looks: The look of each composition; by default by its place in the alphabet.

    Raises:
        ConfigError: A column is missing.
    """
    series = arrange_series(average_seeds(rows))
    scratch = [cell for (method, _), cells in series.items() if method == "random_init" for cell in cells]
    shown = {key: cells for key, cells in series.items() if key[0] != "random_init"} or series
    if not shown:
        return create_message("No method was scored at more than one number of fine-tuning epochs.")
    cells = [cell for group in shown.values() for cell in group]
    targets = [name for name in list_names(rows, "target") if any(cell.target == name for cell in cells)]
    compositions = [name for name in list_names(rows, "composition") if any(cell.composition == name for cell in cells)]
    looks = looks or assign_styles(compositions)
    extra = [Line2D([], [], color=MUTED, linestyle="--", label="random_init")] if scratch else []

    figure = create_figure(
        max(7.0, 1.2 + 3.2 * len(targets)),
        1.7 + 2.3 * len(shown),
        "Accuracy while fine-tuning, by method and target",
        explain_interval(cells).replace("±", "Error bar"),
        [
            *list_handles({name: looks[name] for name in compositions}),
            *extra,
            *explain_fill(cell.in_distribution for cell in cells),
        ],
    )
    panels = figure.subplots(len(shown), len(targets), sharex=True, sharey=True, squeeze=False)
    epochs = sorted({cell.epochs for cell in cells})
    for row, ((method, sees), group) in zip(panels, shown.items(), strict=True):
        for axes, target in zip(row, targets, strict=True):
            style_axes(axes, f"{quote(method)}{sees and f' (sees {quote(sees)})'} on {quote(target, 18)}")
            mean = average_accuracy(cell for cell in scratch if cell.target == target)
            axes.plot(mean.keys(), mean.values(), color=MUTED, linestyle="--", linewidth=1.6, zorder=1.5)
            for name in compositions:
                line = [cell for cell in group if cell.target == target and cell.composition == name]
                plot_cells(axes, [cell.epochs for cell in line], line, looks[name], looks[name].dash)
        row[0].set_ylabel("accuracy (0 to 1)", fontsize=SIZE)
    for axes in panels[-1]:
        axes.set_xlabel("fine-tuning (epochs)", fontsize=SIZE)
        if epochs[-1] > _EVEN_EPOCHS:
            axes.set_xscale("symlog", linthresh=1, linscale=0.5)
        axes.set_xticks(epochs, [str(epoch) for epoch in epochs])
        axes.xaxis.set_minor_locator(NullLocator())
    return figure


def average_accuracy(cells: Iterable[Cell]) -> dict[int, float]:
    """Return the mean accuracy for each number of epochs."""
    found: dict[int, list[float]] = {}
    for cell in cells:
        if cell.accuracy is not None:
            found.setdefault(cell.epochs, []).append(cell.accuracy)
    return {epochs: sum(values) / len(values) for epochs, values in sorted(found.items())}


def plot_curves(curves: pl.DataFrame, looks: Mapping[str, Style] | None = None) -> Figure:
    """Plot how backbones were trained: panels for each part of the loss, R2, and each zoo's validation.

    Args:
        curves: Long form with the columns arm, composition, seed, step, metric, value. Losses, R2, and R2 and accuracy
            of reconstructed validation models are shown; one line an arm.
        looks: The look of each composition; by default by its place in the alphabet.
    """
    if curves.is_empty():
        return create_message("No training curves.")
    curves = curves.filter(pl.col("metric").str.contains(_SHOWN_CURVES) & pl.col("value").is_finite())
    metrics = sorted(curves["metric"].unique().to_list(), key=lambda name: ("loss" not in name, "val" in name, name))
    if not metrics:
        return create_message("No training curve of a loss, of R2 or of accuracy.")
    compositions = curves["composition"].unique(maintain_order=True).to_list()
    looks = looks or assign_styles(compositions)

    across = min(3, len(metrics))
    down = math.ceil(len(metrics) / across)
    figure = create_figure(
        max(7.0, 3.7 * across),
        1.5 + 2.3 * down,
        "How the backbones were trained",
        "One line an arm (a composition with one seed).",
        list_handles({name: looks[name] for name in compositions}, markers=False),
    )
    panels = figure.subplots(down, across, sharex=True, squeeze=False).flatten()
    for axes in panels[len(metrics) :]:
        axes.remove()
    for axes, metric in zip(panels, metrics, strict=False):
        of_metric = curves.filter(pl.col("metric") == metric)
        style_axes(axes, quote(metric, 32))
        for (_, name), line in of_metric.group_by("arm", "composition", maintain_order=True):
            line = line.sort("step")
            axes.plot(
                line["step"],
                line["value"],
                color=looks[name].color,
                linestyle=looks[name].dash,
                linewidth=1.3,
                alpha=0.85,
            )
        lowest: float = min(of_metric["value"].to_list())
        if "r2" in metric:
            # The first steps can be far below zero; what matters is the way from 0 to 1.
            axes.set_ylim(max(-0.25, lowest - 0.05), 1.03)
            axes.set_ylabel("R² (1 is perfect)", fontsize=SIZE)
        elif "accuracy" in metric:
            axes.set_ylim(0, 1.03)
            axes.set_ylabel("accuracy (0 to 1)", fontsize=SIZE)
        else:
            axes.set_ylabel("loss", fontsize=SIZE)
            if lowest > 0:
                axes.set_yscale("log")
                axes.set_ylabel("loss (log scale)", fontsize=SIZE)
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_locator(NullLocator())
    for axes in panels[max(0, len(metrics) - across) : len(metrics)]:
        axes.set_xlabel("training (steps)", fontsize=SIZE)
        axes.tick_params(labelbottom=True)
    return figure
