"""Pictures of a pre-training: the scales of tokens that its loss divides by, and its curves.

Suffixes: B models, P weights of a model, T tokens, X deviations.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from mzsane.appearance import (
    COLORS,
    DASHES,
    INK,
    MUTED,
    create_figure,
    create_message,
    quote,
    style_axes,
    to_png,
)
from mzsane.backbone.loss import measure_scales
from mzsane.composition import ChosenSlice
from mzsane.config import BackboneConfig
from mzsane.layout.token_layout import TokenLayout

_WIDTH = 12.0
_BINS_A_DECADE = 12
_MEASURED_MODELS = 64  # of a slice, spread over it, and
_MEASURED_BYTES = 64 * 2**20  # as many as fit


@dataclass(frozen=True)
class TokenScales:
    """How much the weights of some models' tokens vary.

    Attributes:
        by_kind_X: deviations of tokens, in weight units, by kind of layer.
        model: deviation of all weights of a model, the median over models.
    """

    by_kind_X: Mapping[str, Tensor]
    model: float


def collect_scales(layout: TokenLayout, flat_BP: Tensor) -> TokenScales:
    """Measure all tokens of some models of one layout, in float64, so that equal weights have a deviation of 0."""
    deviations_BT = measure_scales(layout.tokenize(flat_BP.double()), layout.mask_TD)
    by_kind_X: dict[str, Tensor] = {}
    for kind in sorted({layer.kind for layer in layout.layers}):
        spans = [slice(layer.first, layer.first + layer.tokens) for layer in layout.layers if layer.kind == kind]
        by_kind_X[kind] = torch.cat([deviations_BT[:, span].flatten() for span in spans])
    return TokenScales(by_kind_X, float(flat_BP.std(dim=1, correction=0).median()))


def plot_scales(chosen: Sequence[ChosenSlice], config: BackboneConfig) -> bytes:
    """Draw how much the tokens of each slice of a composition vary, with the floors of the loss, as a PNG."""
    scales = {}
    for number, part in enumerate(chosen):
        layout = part.table.layout
        models = max(1, min(_MEASURED_MODELS, _MEASURED_BYTES // (4 * layout.weights), len(part.rows_N)))
        spread = torch.linspace(0, len(part.rows_N) - 1, models).round().long()
        scales[f"slice {number}"] = collect_scales(layout, part.table.load(part.rows_N[spread]))
    return plot_histograms(scales, config.deviation_floor, config.relative_floor)


def plot_histograms(scales: Mapping[str, TokenScales], floor: float, relative_floor: float) -> bytes:
    """Draw histograms of the tokens' deviations, one panel a zoo, as a PNG.

    Args:
        scales: the scales of each zoo's tokens, by its name.
        floor: what the loss adds to a deviation, in weight units.
        relative_floor: least deviation that counts, as a share of the model's; 0 for none.
    """
    kinds = sorted({kind for zoo in scales.values() for kind in zoo.by_kind_X})
    colors = {kind: COLORS[number % len(COLORS)] for number, kind in enumerate(kinds)}
    joined_X = torch.cat([of_kind_X.double() for zoo in scales.values() for of_kind_X in zoo.by_kind_X.values()])
    ends_X = torch.cat([joined_X[joined_X > 0], joined_X.new_tensor([floor])]).log10()
    # Whole half decades. What is 0 has no logarithm: it gets a place of its own, to the left.
    lowest, highest = math.floor(float(ends_X.min()) * 2) / 2, math.ceil(float(ends_X.max()) * 2) / 2
    edges = np.linspace(lowest, highest, round((highest - lowest) * _BINS_A_DECADE) + 1)
    zero = lowest - 0.4

    handles = [Line2D([], [], color=colors[kind], marker="s", linestyle="", label=kind) for kind in kinds]
    handles.append(Line2D([], [], color=MUTED, linestyle=":", label="all weights of a model"))
    handles.append(Line2D([], [], color=INK, linestyle="--", label=f"floor, added: {floor:g}"))
    if relative_floor:
        label = f"least that counts: {relative_floor:g} of a model's"
        handles.append(Line2D([], [], color=INK, linestyle="-", label=label))
    figure = create_figure(
        _WIDTH,
        1.7 + 1.9 * len(scales),
        "How much the weights of a token vary",
        "Deviation of the weights of each token from their mean, without padding. The normalisation by token divides "
        "the squared error by its square, so that a token counts the more, the further to the left it is. At 0: tokens "
        "whose weights are all equal, such as a single one.",
        handles,
    )
    panels = figure.subplots(len(scales), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, zoo) in zip(panels, scales.items(), strict=True):
        style_axes(axes, quote(name))
        _draw_shares(axes, zoo, colors, edges, zero)
        axes.axvline(math.log10(floor), color=INK, linestyle="--", linewidth=1.4)
        if zoo.model:
            axes.axvline(math.log10(zoo.model), color=MUTED, linestyle=":", linewidth=1.8)
        if zoo.model and relative_floor:
            axes.axvline(math.log10(relative_floor * zoo.model), color=INK, linewidth=1.4)
        axes.set_ylabel("% of tokens", fontsize=10)
    decades = range(math.ceil(lowest), math.floor(highest) + 1)
    panels[-1].set_xticks([zero, *decades], ["0", *(f"{10.0**decade:g}" for decade in decades)])
    panels[-1].set_xlabel("deviation of a token's weights (log scale)", fontsize=10)
    return to_png(figure)


def _draw_shares(axes: Axes, zoo: TokenScales, colors: Mapping[str, str], edges: np.ndarray, zero: float) -> None:
    """Draw the shares of tokens, in per cent, over the logarithm of their deviation, the kinds upon one another."""
    tokens = sum(len(of_kind_X) for of_kind_X in zoo.by_kind_X.values())
    places = np.concatenate([[zero], (edges[:-1] + edges[1:]) / 2])
    below = np.zeros(len(places))
    for kind, of_kind_X in zoo.by_kind_X.items():
        deviations = of_kind_X.double().numpy()
        positive = deviations[deviations > 0]
        counts, _ = np.histogram(np.log10(positive), bins=edges)
        shares = 100 / tokens * np.concatenate([[len(deviations) - len(positive)], counts])
        axes.bar(places, shares, 1 / _BINS_A_DECADE, below, color=colors[kind], edgecolor="white", linewidth=0.4)
        below += shares
    if below[0]:
        # In words, too: a few such tokens can make up most of a loss, and be too few to be seen.
        axes.text(zero, below[0], f"{below[0]:.2g} %", ha="center", va="bottom", fontsize=9.5, color=INK)


@dataclass(frozen=True)
class _Panel:
    """What is drawn together: the metrics whose whole name the pattern matches; its group names the line."""

    title: str
    pattern: str
    label: str = ""
    scale: Literal["log", "r2", "zero", "free"] = "zero"


_R2 = "R² (1 is perfect)"
_PANELS = (
    _Panel("Loss and its terms, unweighted", r"loss(_.+|)", "loss (log scale)", "log"),
    _Panel("R² in training", r"r2(/.+|)", _R2, "r2"),
    _Panel("R² in training, by layer", r"r2(_.+)", _R2, "r2"),
    _Panel("R² in validation", r"val_r2(/.+)", _R2, "r2"),
    _Panel("R² in validation, by layer", r"val_r2(_.+)", _R2, "r2"),
    _Panel("Networks in validation", r"val(_(?:accuracy|agreement|sample_accuracy)/.+)", "share of images"),
    _Panel("Accuracy lost", r"val_accuracy_gap(/.+)", "original - decoded", "free"),
    _Panel("Probes of the latents", r"probe_r2(_.+)", _R2, "r2"),
    _Panel("Gradient norm, before clipping", r"gradient_norm()", "norm (log scale)", "log"),
    _Panel("Learning rate", r"learning_rate()", "rate"),
    _Panel("Waiting for data", r"waiting_share()", "share of the time"),
)


def plot_curves(curves: pl.DataFrame) -> bytes:
    """Draw how one backbone was trained, as a PNG: losses, R2, validation, gradient norm, learning rate, speed.

    Of a metric with parts, as `val_r2_conv/0` or `loss_contrast`, the parts name the line. A metric that no panel is
    made for has a panel of its own.

    Args:
        curves: the columns step, metric, value.
    """
    curves = curves.filter(pl.col("value").is_finite()).sort("metric", "step")
    curves = curves.filter(pl.len().over("metric") > 1)  # one point is no curve
    if curves.is_empty():
        return to_png(create_message("The training was too short for curves."))
    metrics = curves["metric"].unique(maintain_order=True).to_list()
    known = [metric for metric in metrics if any(re.fullmatch(panel.pattern, metric) for panel in _PANELS)]
    own = [
        _Panel(name.replace("_", " "), f"{re.escape(name)}()", scale="free") for name in metrics if name not in known
    ]
    lines = {panel: _name_lines(panel, metrics) for panel in (*_PANELS, *own)}
    lines = {panel: names for panel, names in lines.items() if names}

    down = math.ceil(len(lines) / 3)
    figure = create_figure(_WIDTH, 0.9 + 2.7 * down, "How the backbone was trained")
    panels = figure.subplots(down, 3, sharex=True, squeeze=False).flatten()
    for axes in panels[len(lines) :]:
        axes.remove()
    for axes, (panel, names) in zip(panels, lines.items(), strict=False):
        style_axes(axes, quote(panel.title))
        # By name within the panel, so that a slice has one colour in all panels that show slices; the whole is black.
        places = {name: place for place, name in enumerate(sorted(name for name in names.values() if name))}
        for metric, name in names.items():
            line = curves.filter(pl.col("metric") == metric)
            axes.plot(
                line["step"],
                line["value"],
                color=COLORS[places[name] % len(COLORS)] if name else INK,
                linestyle=DASHES[places[name] // len(COLORS) % len(DASHES)] if name else "-",
                linewidth=1.4,
                marker="o" if len(line) < 20 else "",  # a validation is a point
                markersize=3,
                label=quote(name or "all", 28),
            )
        _scale_axis(axes, panel, curves.filter(pl.col("metric").is_in(list(names)))["value"].to_list())
        axes.set_ylabel(panel.label, fontsize=10)
        axes.set_xlabel("training (steps)", fontsize=10)
        axes.tick_params(labelbottom=True)
        if any(names.values()):
            axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, handlelength=1.6, ncols=1 + (len(names) > 6))
    return to_png(figure)


def _name_lines(panel: _Panel, metrics: Sequence[str]) -> dict[str, str]:
    """Return for each metric of a panel the name of its line, empty for the whole: `_conv/0` is `conv, slice 0`."""
    names = {}
    for metric in metrics:
        if match := re.fullmatch(panel.pattern, metric):
            part, _, zoo = match.group(1).partition("/")
            named = [part.strip("_").replace("_", " "), f"slice {zoo}" if zoo.isdigit() else zoo]
            names[metric] = ", ".join(piece for piece in named if piece)
    return names


def _scale_axis(axes: Axes, panel: _Panel, values: Sequence[float]) -> None:
    if panel.scale == "r2":
        # The first steps can be far below zero; what matters is the way from 0 to 1.
        axes.set_ylim(max(-0.25, min(0.0, *values) - 0.05), 1.03)
    elif panel.scale == "log" and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    elif panel.scale == "zero":
        axes.set_ylim(0, 1.1 * max(0.0, *values) or 1)
