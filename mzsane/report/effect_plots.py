"""The figures of what compositions do: effects of size and diversity, and every composition on every target."""

import math

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mzsane.appearance import COLORS, INK, MUTED, create_figure, create_message, quote, style_axes
from mzsane.report.cells import SEES, Cell, average_seeds, format_accuracy, list_names
from mzsane.report.effects import CHANGES, Effect, estimate_effects, name_stage
from mzsane.report.table import MISSING

_HEAT = "YlGnBu"
_DARK = 0.55  # accuracy from which text on the heat map is white


def plot_effects(rows: pl.DataFrame) -> Figure:
    """Plot the effects of size and diversity with their intervals: a panel zero-shot, one after fine-tuning.

    Args:
        rows: One measurement a row.

    Raises:
        ConfigError: A column is missing.
    """
    effects = estimate_effects(rows)
    if not effects:
        return create_message("Compositions do not differ in size or diversity: there is no effect to estimate.")
    factors = list(dict.fromkeys(effect.factor for effect in effects))
    stages = list(dict.fromkeys(effect.epochs for effect in effects))
    note = "Change of the samples' mean accuracy in percentage points, at equal values of the other factors. Bar: 95 % "
    note += "interval; where it crosses 0, the effect may be chance."
    if any(effect.over == "" and effect.estimate is not None for effect in effects):
        note += " Without a bar: too few compositions and seeds for an interval."
    if any(effect.over == "seeds" for effect in effects):
        note += " Dotted bar: over seeds alone, so for these compositions only."
    figure = create_figure(
        max(7.5, 2.3 + 4.2 * len(stages)),
        1.9 + 0.95 * len(factors),
        "What size and diversity of the composition do to samples",
        note,
        [
            Line2D([], [], linestyle="", marker="o", color=COLORS[0], label="in distribution"),
            Line2D(
                [], [], linestyle="", marker="s", color=COLORS[1], markerfacecolor="white", label="out of distribution"
            ),
        ],
    )
    panels = figure.subplots(1, len(stages), sharex=True, sharey=True, squeeze=False)[0]
    for axes, epochs in zip(panels, stages, strict=True):
        shown = [effect for effect in effects if effect.epochs == epochs]
        style_axes(axes, name_stage(shown))
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=MUTED, linewidth=1.2, zorder=1)
        for effect in shown:
            _draw_effect(axes, effect, factors.index(effect.factor))
        axes.set_xlabel("change of accuracy (percentage points)", fontsize=10)
    panels[0].set_yticks(range(len(factors)), [CHANGES[factor] for factor in factors])
    panels[0].set_ylim(len(factors) - 0.5, -0.5)
    return figure


def _draw_effect(axes: Axes, effect: Effect, place: float) -> None:
    color, marker = (COLORS[0], "o") if effect.in_distribution else (COLORS[1], "s")
    y = place + (-0.16 if effect.in_distribution else 0.16)
    if effect.estimate is None:
        axes.annotate(
            "cannot be estimated", (0.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=color
        )
        return
    low, high = (effect.estimate if end is None else end for end in (effect.low, effect.high))
    dash = ":" if effect.over == "seeds" else "-"
    axes.plot([100 * low, 100 * high], [y, y], color=color, linewidth=2.4, linestyle=dash, solid_capstyle="butt")
    face = color if effect.in_distribution else "white"
    axes.plot(100 * effect.estimate, y, marker, markersize=8, color=color, markerfacecolor=face, markeredgewidth=1.8)


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
    axes.tick_params(labelsize=10, colors=INK, length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, pad=0.02, fraction=0.04).set_label("accuracy (0 to 1)", fontsize=10, color=INK)
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
        fontsize=10,
        color="white" if accuracy >= _DARK else INK,
        fontweight="bold" if inside else "normal",
    )
    if inside:
        axes.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, fill=False, edgecolor=INK, linewidth=1.1))
