"""A zoo's card: what is in it, in words and figures, for people who choose zoos.

Suffixes: M models, N images.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mzsane.appearance import COLORS, INK, MUTED, create_figure, plot_png, quote, style_axes
from mzsane.config import NetworkConfig
from mzsane.networks.build import build_network
from mzsane.problems.images.dataset import ImageDataset
from mzsane.zoo.shards import ZooParts, select_parameters

_SHOWN_MODELS = 48  # models whose weights and predictions are shown
_SHOWN_SHARDS = 8
_SHOWN_LAYERS = 12
_AGREEMENT_IMAGES = 1000
_NOTES = {
    "card-epochs.png": "accuracy by epoch",
    "card-factors.png": "test accuracy by generating factor",
    "card-weights.png": "weights by layer",
    "card-agreement.png": "pairwise agreement of predictions",
}


@dataclass(frozen=True)
class _Shown:
    """A model's last checkpoint."""

    row: dict[str, Any]
    weights: dict[str, Tensor]


def plot_card(parts: ZooParts, facts: Mapping[str, Any], images: ImageDataset | None) -> dict[str, bytes]:
    """Draw the card of a zoo that is about to be published.

    Args:
        parts: the zoo.
        facts: what else to say about it, such as its recipe, in the order of the table.
        images: what its models are scored on; without, nothing is said about agreement.

    Returns:
        Files by name: `card.md` and the figures that there is something to show in.
    """
    index, history = parts.index, parts.history
    shown = _choose_shown(parts)
    files: dict[str, bytes] = {}
    if len(history) and "test_accuracy" in history.columns and history["epoch"].n_unique() > 1:
        files["card-epochs.png"] = plot_png(lambda: _plot_epochs(history))
    factors = [name for name in index.columns if name.startswith("factor_")]
    if factors and "test_accuracy" in index.columns:
        files["card-factors.png"] = plot_png(lambda: _plot_factors(_take_last(index), factors))
    if shown:
        files["card-weights.png"] = plot_png(lambda: _plot_weights(shown))
    agreement = _measure_agreement(shown, images) if images is not None else None
    if agreement is not None:
        files["card-agreement.png"] = plot_png(lambda: _plot_agreement(agreement))
    files["card.md"] = _write_text(parts, shown, facts, factors, agreement, list(files)).encode()
    return files


def _take_last(index: pl.DataFrame) -> pl.DataFrame:
    """Return the last checkpoint of every model."""
    return index.filter(pl.col("epoch") == pl.col("epoch").max().over("model")).unique("model", maintain_order=True)


def _choose_shown(parts: ZooParts) -> list[_Shown]:
    """Return the last checkpoints of models spread over the zoo, read from few shards."""
    last = _take_last(parts.index).sort("model")
    shards = last["shard"].unique(maintain_order=True).to_list()
    shards = [shards[i] for i in np.linspace(0, len(shards) - 1, min(len(shards), _SHOWN_SHARDS)).round().astype(int)]
    rows = last.filter(pl.col("shard").is_in(shards))
    picked = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _SHOWN_MODELS)).round().astype(int))
    chosen = rows[picked.tolist()].to_dicts()
    shown = []
    for shard in shards:
        weights = parts.read_shard(shard)
        shown += [
            _Shown(row, {name: value[row["row"]].clone() for name, value in weights.items()})
            for row in chosen
            if row["shard"] == shard
        ]
    return shown


def _measure_agreement(shown: list[_Shown], images: ImageDataset) -> Tensor | None:
    """Return the share of test images that two models put in the same class, (M, M), models by rising accuracy.

    None when there are no two, or when they do not take the images: the card then says nothing about it.
    """
    test_NCHW = images.splits["test"].images_NCHW[:_AGREEMENT_IMAGES]
    labels = []
    for model in sorted(shown, key=lambda model: model.row.get("test_accuracy") or 0.0):
        recipe = json.loads(model.row["recipe"]) if model.row["recipe"] else {}
        settings = {key: recipe[key] for key in NetworkConfig.model_fields if recipe.get(key) is not None}
        if model.row["architecture"] is None or model.row["diverged"] or model.row.get("scorable") is False:
            continue
        settings["architecture"] = model.row["architecture"]
        network = build_network(NetworkConfig(**settings), images.channels, images.classes, images.size)
        network.load_state_dict(model.weights, strict=False)  # old files lack batch norm's counters
        try:
            with torch.no_grad():
                labels.append(torch.cat([network.eval()(batch).argmax(dim=1) for batch in test_NCHW.split(250)]))
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return None
    if len(labels) < 2:
        return None
    labels_MN = torch.stack(labels)
    return torch.stack([(row == labels_MN).float().mean(dim=1) for row in labels_MN])


def _plot_epochs(history: pl.DataFrame) -> Figure:
    figure = create_figure(
        8, 3.6, "Accuracy by epoch", "Line: median over the models. Bands: the middle half, and from worst to best."
    )
    splits = [name for name in ("train", "test") if f"{name}_accuracy" in history.columns]
    for axes, split in zip(np.atleast_1d(figure.subplots(1, len(splits), sharey=True)), splits, strict=True):
        column = pl.col(f"{split}_accuracy")
        by_epoch = (
            history.group_by("epoch")
            .agg(*(column.quantile(q, "linear").alias(str(q)) for q in (0.0, 0.25, 0.5, 0.75, 1.0)))
            .sort("epoch")
        )
        x = by_epoch["epoch"]
        axes.fill_between(x, by_epoch["0.0"], by_epoch["1.0"], color=COLORS[0], alpha=0.15, linewidth=0)
        axes.fill_between(x, by_epoch["0.25"], by_epoch["0.75"], color=COLORS[0], alpha=0.3, linewidth=0)
        axes.plot(x, by_epoch["0.5"], color=COLORS[0], linewidth=1.8)
        style_axes(axes, f"{split} images")
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _plot_factors(last: pl.DataFrame, factors: list[str]) -> Figure:
    note = "A dot is a model at its last epoch, the bar the mean of its level."
    figure = create_figure(max(4.0, 2.6 * len(factors)), 3.6, "Test accuracy by generating factor", note)
    for axes, factor in zip(np.atleast_1d(figure.subplots(1, len(factors), sharey=True)), factors, strict=True):
        groups = last.sort(factor).group_by(factor, maintain_order=True).agg(pl.col("test_accuracy"))
        for place, (_, values) in enumerate(groups.iter_rows()):
            spread = (np.arange(len(values)) / max(len(values) - 1, 1) - 0.5) * 0.6
            axes.plot(place + spread, values, "o", color=COLORS[0], markersize=3, alpha=0.5)
            axes.plot([place - 0.35, place + 0.35], [np.mean(values)] * 2, color=COLORS[1], linewidth=2)
        axes.set_xticks(range(len(groups)), [quote(str(level), 14) for level in groups[factor]], rotation=30)
        style_axes(axes, quote(factor.removeprefix("factor_").replace("_", " "), 24))
    return figure


def _plot_weights(shown: list[_Shown]) -> Figure:
    parameters = select_parameters(shown[0].weights)
    names = [name for name in parameters if name.endswith("weight")] or _pick_largest(parameters)
    names = names[:_SHOWN_LAYERS]
    columns = min(4, len(names)) or 1
    rows = -(-len(names) // columns)
    note = f"Histograms over {len(shown)} models at their last epoch; middle 99 % of the values."
    figure = create_figure(2.4 * columns + 0.6, 1.8 * rows + 1.0, "Weights by layer", note)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        values = torch.cat([model.weights[name].flatten() for model in shown if name in model.weights]).numpy()
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [0.005, 0.995]) if len(values) else (0.0, 1.0)
        axes.hist(values, bins=60, range=(low, max(high, low + 1e-6)), color=COLORS[0])
        style_axes(axes, quote(name, 24))
        axes.set_yticks([])
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return figure


def _pick_largest(parameters: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the largest tensors in their order, where none is called a weight."""
    largest = set(sorted(parameters, key=lambda name: -parameters[name].numel())[:_SHOWN_LAYERS])
    return [name for name in parameters if name in largest]


def _plot_agreement(agreement_MM: Tensor) -> Figure:
    figure = create_figure(
        5, 4.6, "Pairwise agreement", "Share of test images that two models put in the same class; best models last."
    )
    axes = figure.subplots()
    shown = axes.imshow(agreement_MM.numpy(), cmap="viridis", vmax=1.0)
    bar = figure.colorbar(shown, ax=axes)
    bar.ax.tick_params(labelsize=10, colors=MUTED)
    axes.set_xlabel("model", color=INK)
    axes.set_ylabel("model", color=INK)
    return figure


def _write_text(
    parts: ZooParts,
    shown: list[_Shown],
    facts: Mapping[str, Any],
    factors: list[str],
    agreement: Tensor | None,
    figures: list[str],
) -> str:
    index, counts = parts.index, parts.counts()
    last = _take_last(index)
    weights = sum(value.numel() for value in select_parameters(shown[0].weights).values())
    epochs = sorted(index["epoch"].unique().to_list())
    more = ", …" if len(epochs) > 12 else ""
    lines = {
        "models": counts["models"],
        "checkpoints": f"{counts['checkpoints']} (epochs {', '.join(map(str, epochs[:12]))}{more})",
        "weights a model": f"{weights:,}",
        **facts,
    }
    for split in ("train", "val", "test"):
        if f"{split}_accuracy" in last.columns and last[f"{split}_accuracy"].null_count() < len(last):
            lines[f"{split} accuracy, last epoch"] = _describe(last[f"{split}_accuracy"])
    if "sparsity" in last.columns:
        lines["sparsity, last epoch"] = _describe(last["sparsity"])
    if agreement is not None:
        off = agreement[~torch.eye(len(agreement), dtype=torch.bool)]
        lines["agreement of two models"] = f"{off.mean():.3f} of test images ({off.min():.3f} to {off.max():.3f})"
    if "diverged" in index.columns:
        lines["diverged checkpoints"] = int(index["diverged"].sum())
    if len(parts.rejected):
        reasons = parts.rejected["reason"].value_counts(sort=True).head(5).iter_rows()
        lines["set aside"] = f"{len(parts.rejected)}: " + "; ".join(f"{count} × {reason}" for reason, count in reasons)
    text = "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in lines.items())
    for factor in factors:
        levels = last.group_by(factor).agg(pl.len(), pl.col("test_accuracy").mean()).sort(factor).to_dicts()
        text += f"\n| {factor.removeprefix('factor_').replace('_', ' ')} | models | test accuracy |\n|---|---:|---:|\n"
        text += "".join(f"| {row[factor]} | {row['len']} | {row['test_accuracy']:.3f} |\n" for row in levels)
    return text + "\nFigures: " + ", ".join(f"`{name}` ({_NOTES[name]})" for name in figures) + ".\n"


def _describe(values: pl.Series) -> str:
    x = values.drop_nulls().to_numpy()
    return f"{x.mean():.3f} ± {x.std(ddof=1) if len(x) > 1 else 0.0:.3f} ({x.min():.3f} to {x.max():.3f})"
