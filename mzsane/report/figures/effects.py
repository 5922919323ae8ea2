"""The figures of what compositions do: effects of size and diversity, and every composition on every target."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mzsane.appearance import COLORS, INK, MUTED, SIZE, Style, create_figure, create_message, quote, style_axes
from mzsane.report.cells import SEES, Cell, average_seeds, format_accuracy, list_names
from mzsane.report.statistics.effects import CHANGES
from mzsane.report.table import MISSING
from mzsane.report.words import name_epochs

_HEAT = "YlGnBu"
_EFFECT_LOOKS = {
    ("total", True): (Style(COLORS[0], "o", "-"), COLORS[0], "total, in distribution"),
    ("total", False): (Style(COLORS[1], "s", "-"), COLORS[1], "total, out of distribution"),
    ("adjusted", True): (Style(COLORS[0], "o", "--"), "white", "adjusted, in distribution"),
    ("adjusted", False): (Style(COLORS[1], "s", "--"), "white", "adjusted, out of distribution"),
}
_DARK = 0.55  # accuracy from which text on the heat map is white


def plot_effects(effects: pl.DataFrame) -> Figure:
    """Plot total and adjusted effects of size and diversity with their intervals: a panel for each stage.

    Args:
        effects: With the columns of `effects.EFFECT_SCHEMA`.
    """
    if effects.is_empty():
        return create_message("Compositions do not differ in size or diversity: there is no effect to estimate.")
    factors = effects["factor"].unique(maintain_order=True).to_list()
    stages = sorted(effects["epochs"].unique())
    note = (
        "Change of the samples' mean accuracy in percentage points, with 95 % intervals; one that crosses 0 tells no "
    )
    note += "effect from chance. Adjusted: at equal novelty, which is itself a consequence of the composition."
    found = {(kind, inside) for kind, inside in effects.select("kind", "in_distribution").rows()}
    figure = create_figure(
        max(7.5, 2.3 + 4.2 * len(stages)),
        1.9 + 0.95 * len(factors),
        "Effects of size and diversity of a composition on its samples",
        note,
        [
            Line2D([], [], linestyle=look.dash, marker=look.marker, color=look.color, markerfacecolor=face, label=label)
            for key, (look, face, label) in _EFFECT_LOOKS.items()
            if key in found
        ],
    )
    panels = figure.subplots(1, len(stages), sharex=True, sharey=True, squeeze=False)[0]
    for axes, epochs in zip(panels, stages, strict=True):
        style_axes(axes, name_epochs(epochs))
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=MUTED, linewidth=1.2, zorder=1)
        for row in effects.filter(epochs=epochs).iter_rows(named=True):
            _draw_effect(axes, row, factors.index(row["factor"]))
        axes.set_xlabel("change of accuracy (percentage points)", fontsize=SIZE)
    panels[0].set_yticks(range(len(factors)), [CHANGES[factor] for factor in factors])
    panels[0].set_ylim(len(factors) - 0.5, -0.5)
    return figure


def _draw_effect(axes: Axes, row: Mapping[str, Any], place: float) -> None:
    key = (row["kind"], row["in_distribution"])
    look, face, _ = _EFFECT_LOOKS[key]
    y = place + (list(_EFFECT_LOOKS).index(key) - 1.5) * 0.19
    if row["estimate"] is None:
        if row["kind"] == "total":
            axes.annotate(
                "cannot be estimated",
                (0.02, y),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=SIZE,
                color=look.color,
            )
        return
    low, high = (100 * (row["estimate"] if row[end] is None else row[end]) for end in ("low", "high"))
    axes.plot([low, high], [y, y], color=look.color, linewidth=2.0, linestyle=look.dash, solid_capstyle="butt")
    axes.plot(100 * row["estimate"], y, look.marker, markersize=7, color=look.color, markerfacecolor=face)


def plot_heatmap(rows: pl.DataFrame) -> Figure:
    """Plot the zero-shot accuracy of samples as a heat map with numbers: a line a composition, a column a target.

    Args:
        rows: One measurement a row.

    Raises:
        ConfigError: A column is missing.
    """
    cells = [cell for cell in average_seeds(rows) if cell.method == "samples" and cell.epochs == 0]
    if not cells:
        return create_message("No samples were scored zero-shot.")
    sees = min((cell.sees for cell in cells), key=SEES.index)
    places = {(cell.composition, cell.target): cell for cell in cells if cell.sees == sees}
    compositions = [name for name in list_names(rows, "composition") if any(name == key[0] for key in places)]
    targets = [name for name in list_names(rows, "target") if any(name == key[1] for key in places)]
    figure = create_figure(
        max(9.0, 2.6 + 1.35 * len(targets)),
        2.0 + 0.3 * len(compositions),
        "Zero-shot accuracy of samples by composition and target",
        f"Mean over the samples of all seeds (sees {sees}). Framed and bold: in distribution. {MISSING}: not measured.",
    )
    axes = figure.subplots()
    values = np.full((len(compositions), len(targets)), np.nan)
    for (composition, target), cell in places.items():
        if cell.accuracy is not None:
            values[compositions.index(composition), targets.index(target)] = cell.accuracy
    image = axes.imshow(np.ma.masked_invalid(values), cmap=_HEAT, vmin=0, vmax=1, aspect="auto")
    for y, composition in enumerate(compositions):
        for x, target in enumerate(targets):
            _write_number(axes, x, y, places.get((composition, target)))
    axes.set_xticks(range(len(targets)), [quote(target, 18) for target in targets])
    axes.set_yticks(range(len(compositions)), [quote(name, 28) for name in compositions])
    axes.tick_params(labelsize=SIZE, colors=INK, length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, pad=0.02, fraction=0.04).set_label("accuracy (0 to 1)", fontsize=SIZE, color=INK)
    return figure


def _write_number(axes: Axes, x: int, y: int, cell: Cell | None) -> None:
    accuracy = math.nan if cell is None or cell.accuracy is None else cell.accuracy
    inside = cell is not None and cell.in_distribution
    axes.text(
        x,
        y,
        format_accuracy(accuracy) if math.isfinite(accuracy) else MISSING,
        ha="center",
        va="center",
        fontsize=SIZE,
        color="white" if accuracy >= _DARK else INK,
        fontweight="bold" if inside else "normal",
    )
    if inside:
        axes.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, fill=False, edgecolor=INK, linewidth=1.1))
