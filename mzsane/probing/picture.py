"""What probes found, as a picture: dots by property and kind of features, a panel a zoo."""

import math
from collections.abc import Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mzsane.appearance import BAND, COLORS, MUTED, create_figure, create_message, quote, style_axes
from mzsane.probing.features import FEATURES

ALL = "all"  # stands for all zoos together
_LOWEST = -0.5
_METRICS = {"r2": "R²", "tau": "τ", "accuracy": "accuracy"}
_LOOKS = dict(zip(FEATURES, zip(COLORS, ("o", "o", "s", "D", "P"), strict=False), strict=False))
_FIRST = ("test_accuracy", "generalisation_gap", "epoch")  # what people look for first


def name_property(name: str) -> str:
    """Return the name for people of a property, without `factor_`."""
    return name.removeprefix("factor_").replace("_", " ")


def name_features(name: str) -> str:
    """Return the name for people of a kind of features."""
    return name.replace("statistics_latents", "statistics and latents").replace("_", " ")


def pick_shown(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the scores that are shown, of one metric a property.

    Of numbers that is R2 where the probe knows the zoo, and Kendall's tau elsewhere: an offset of all predictions,
    which is to be expected there, leaves their order as it is.
    """
    hidden = pl.when(pl.col("in_distribution")).then(pl.lit("tau")).otherwise(pl.lit("r2"))
    several = pl.col("metric").n_unique().over("zoo", "in_distribution", "property") > 1
    scored = rows.filter(pl.col("value").is_finite())
    return scored.filter(~(several & (pl.col("metric") == hidden)))


def plot_probes(rows: pl.DataFrame) -> Figure:
    """Plot scores by property: a panel a zoo, in and out of distribution apart; colours are kinds of features.

    Where several backbones were probed each has a small dot, and their mean a large one; of one backbone the interval
    over the scored models is drawn.

    Args:
        rows: probes of one or of several arms, with the columns of `PROBE_SCHEMA`.
    """
    shown = pick_shown(rows)
    if shown.is_empty():
        return create_message("Nothing could be probed: the table says why.")
    keys = (
        shown.select("zoo", "in_distribution")
        .unique(maintain_order=True)
        .sort(pl.col("in_distribution").not_(), pl.col("zoo") == ALL, maintain_order=True)
    )
    panels = keys.rows()
    properties = {panel: _sort_properties(_of(shown, panel)["property"].unique().to_list()) for panel in panels}
    features = [name for name in FEATURES if name in shown["features"]]
    handles = [
        Line2D([], [], linestyle="", marker=_LOOKS[name][1], color=_LOOKS[name][0], label=name_features(name))
        for name in features
    ]
    across = min(3, len(panels))
    blocks = [panels[first : first + across] for first in range(0, len(panels), across)]
    tallest = [max(len(properties[panel]) for panel in block) for block in blocks]
    heights = [1.3 + count for count in tallest]
    figure = create_figure(
        max(7.0, 1.5 + 3.9 * across),
        1.5 + 0.62 * sum(heights),
        "What the latents tell of a model, beside weights and their statistics",
        "Linear probes fitted on training models, scored on test models. 1 is perfect, 0 what a constant guess has; of "
        "an accuracy the tick is the share of the most frequent class. Lines: 95 % intervals over models, of one "
        f"backbone; small dots: backbones, where there are several. What is below {_LOWEST} is drawn at the edge.",
        handles,
    )
    grid = figure.subplots(len(blocks), across, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.remove()
            continue
        _draw_panel(axes, _of(shown, panels[place]), properties[panels[place]], features)
        axes.set_ylim(tallest[place // across] - 0.5, -0.5)
        zoo, inside = panels[place]
        style_axes(axes, f"{quote(zoo, 22) if zoo != ALL else 'all zoos'}, {'in' if inside else 'out of'} distribution")
        axes.grid(axis="y", visible=False)
        axes.tick_params(labelbottom=True, axis="x")
    return figure


def _of(rows: pl.DataFrame, panel: tuple[str, bool]) -> pl.DataFrame:
    return rows.filter(pl.col("zoo") == panel[0], pl.col("in_distribution") == panel[1])


def _sort_properties(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))


def _draw_panel(axes: Axes, rows: pl.DataFrame, properties: Sequence[str], features: Sequence[str]) -> None:
    labels = []
    for y, name in enumerate(properties):
        own = rows.filter(pl.col("property") == name)
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color=BAND, zorder=0, linewidth=0)
        labels.append(f"{quote(name_property(name), 20)} ({_METRICS[own['metric'][0]]})")
        chance = float(own["chance"].cast(pl.Float64).mean() or 0.0)  # type: ignore[arg-type]
        axes.plot([chance, chance], [y - 0.45, y + 0.45], color=MUTED, linewidth=1.2, zorder=1)
        for place, kind in enumerate(features):
            found = own.filter(pl.col("features") == kind)
            if found.is_empty():
                continue
            color, marker = _LOOKS[kind]
            at = y + (place - (len(features) - 1) / 2) * 0.8 / len(features)
            values = found["value"].clip(_LOWEST, 1.0).to_list()
            if len(values) == 1 and math.isfinite(found["low"][0]):
                ends = [min(1.0, max(_LOWEST, found[end][0])) for end in ("low", "high")]
                axes.plot(ends, [at, at], color=color, linewidth=1.3, alpha=0.6)
            elif len(values) > 1:
                axes.plot(values, [at] * len(values), ".", color=color, markersize=4, alpha=0.45)
            mean = sum(values) / len(values)
            face = color if mean > _LOWEST else "white"
            axes.plot(mean, at, marker, color=color, markerfacecolor=face, markersize=6.5, clip_on=False, zorder=3)
    axes.set_yticks(range(len(properties)), labels)
    axes.set_xlim(_LOWEST - 0.03, 1.03)
