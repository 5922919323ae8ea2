"""A picture of tokens by layer, before and after the canonical form.

Suffixes: B models, P weights of a model, C shown weights of a layer.
"""

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from mzsane.appearance import COLORS, INK, MUTED, create_figure, quote, style_axes, to_png
from mzsane.layout.layers import Layer
from mzsane.layout.token_layout import TokenLayout

SHOWN_MODELS = 20
_SHOWN_LAYERS = 5
_SHOWN_WEIGHTS = 240


def plot_alignment(layout: TokenLayout, raw_BP: Tensor, aligned_BP: Tensor) -> bytes:
    """Draw some models' tokens by layer, as they were and in canonical form, as a PNG.

    A line of a heat map is a model, the reference first, and a column one weight: what models share shows as vertical
    stripes. Beside it, each layer's correlation with the reference.

    Args:
        layout: the layout of the models.
        raw_BP: the models as they were, the reference first.
        aligned_BP: the same in canonical form.
    """
    layers = _choose_layers(layout)
    figure = create_figure(
        12.0,
        1.2 + 1.35 * len(layers),
        f"Tokens of {len(raw_BP)} models by layer, before and after the canonical form",
        "Each line is a model, the first one the reference; each column is one weight, tokens side by side without "
        "their padding; blue is negative, red positive, by the layer's own scale. The bars are the mean correlation of "
        "the other models' weights with the reference's.",
    )
    grid = figure.subplots(len(layers), 3, width_ratios=(4, 4, 1.1), squeeze=False)
    for line, layer in enumerate(layers):
        views = [_cut_layer(layout, layer, flat_BP) for flat_BP in (raw_BP, aligned_BP)]
        limit = float(np.quantile(np.abs(views[0]), 0.98)) or 1.0
        for column, (view_BC, when) in enumerate(zip(views, ("before", "after"), strict=True)):
            axes = grid[line, column]
            axes.imshow(
                view_BC[:, :_SHOWN_WEIGHTS],
                cmap="RdBu_r",
                vmin=-limit,
                vmax=limit,
                aspect="auto",
                interpolation="nearest",
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            shown = min(view_BC.shape[1], _SHOWN_WEIGHTS)
            title = f"{quote(layer.name)} ({layer.kind}), {shown} of {view_BC.shape[1]} weights, {when}"
            axes.set_title(title, loc="left", fontsize=9.5, color=INK)
        _draw_correlations(grid[line, 2], views, line == len(layers) - 1)
    return to_png(figure)


def _draw_correlations(axes: Axes, views: list[np.ndarray], last: bool) -> None:
    values = [_correlate(view_BC) for view_BC in views]
    axes.barh([1, 0], values, color=[MUTED, COLORS[0]], height=0.7)
    for place, value in zip((1, 0), values, strict=True):
        axes.text(max(value, 0) + 0.03, place, f"{value:.2f}", va="center", fontsize=9.5, color=INK)
    style_axes(axes)
    axes.grid(visible=False)
    axes.set_yticks([1, 0], ["before", "after"])
    axes.set_xlim(min(0.0, *values), 1.25)
    axes.set_xticks([0, 1] if last else [])


def _choose_layers(layout: TokenLayout) -> list[Layer]:
    """Return layers spread over the network, those with the most weights of their neighbourhood."""
    parts = np.array_split(np.arange(len(layout.layers)), min(_SHOWN_LAYERS, len(layout.layers)))
    return [max((layout.layers[i] for i in part), key=lambda layer: layer.rows * layer.row_length) for part in parts]


def _cut_layer(layout: TokenLayout, layer: Layer, flat_BP: Tensor) -> np.ndarray:
    index_TD = layout.gather_TD[layer.first : layer.first + layer.tokens]
    index_C = index_TD[index_TD >= 0]
    weights: np.ndarray = flat_BP[:, index_C].float().numpy()
    return weights


def _correlate(view_BC: np.ndarray) -> float:
    """Return the mean correlation of all rows but the first with the first."""
    if len(view_BC) < 2 or view_BC.shape[1] < 2:
        return 1.0
    correlations = torch.corrcoef(torch.from_numpy(view_BC))[0, 1:]
    return float(correlations.nan_to_num().mean())
