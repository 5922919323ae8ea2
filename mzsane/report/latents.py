"""A map of what a backbone makes of models that it was not trained on: their latents, in two dimensions.

Suffixes: B checkpoints, P weights of a model, F features.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mzsane.appearance import COLORS, MARKERS, MUTED, SIZE, create_figure, create_message, quote, style_axes
from mzsane.backbone.inference import encode_models, load_backbone
from mzsane.backbone.validation.linear_probes import pool_latents
from mzsane.randomness import make_generator
from mzsane.store.artifacts import Artifact, ArtifactRef, ArtifactStore
from mzsane.tokens.store import read_tokens

LATENT_SCHEMA = {
    "arm": pl.String,
    "composition": pl.String,
    "zoo": pl.String,
    "trained_on": pl.Boolean,
    "model": pl.String,
    "epoch": pl.Int64,
    "accuracy": pl.Float64,
    "x": pl.Float64,
    "y": pl.Float64,
}
_MOST_CHECKPOINTS = 200  # of a zoo
_MOST_TOKENS = 200_000  # of a zoo: a map must not take long
_CHUNK = 25  # checkpoints encoded together
_ACCURACIES = "viridis"
_ARM = ("arm", "composition")


def map_latents(
    backbone: Artifact,
    zoos: Mapping[str, ArtifactRef],
    trained_on: set[str],
    seed: int,
    store: ArtifactStore,
    device: torch.device = torch.device("cpu"),
) -> pl.DataFrame:
    """Encode held-out checkpoints and lay the latents out in a plane, by their first two principal components.

    A checkpoint's features are the mean and the deviation of its latents over the tokens, standardised, so that models
    of any architecture are on one map.

    Args:
        backbone: The BACKBONE artifact.
        zoos: TOKENS by the name of the zoo; test models are taken, of all kept epochs, at most 200 checkpoints.
        trained_on: The zoos in the backbone's composition.
        seed: Seed of the choice when there are more checkpoints.
        store: Where the tokens are.
        device: Where the backbone computes.

    Returns:
        zoo, trained_on, model, epoch, accuracy (on test images; null when unknown), x, y.
    """
    model, config = load_backbone(backbone, device)
    parts, frames = [], []
    for name, tokens in zoos.items():
        table = read_tokens(store.open(tokens))
        rows_B = table.pick_rows("test")
        most = max(1, min(_MOST_CHECKPOINTS, _MOST_TOKENS // table.layout.length))
        order = torch.randperm(len(rows_B), generator=make_generator(seed, "latents", name))
        rows_B = rows_B[order[:most].sort().values]
        if not len(rows_B):
            continue
        for some_B in rows_B.split(_CHUNK):
            parts.append(pool_latents(encode_models(model, table.layout, table.load(some_B), config.window)))
        index = table.index[rows_B.tolist()]
        accuracy = pl.col("test_accuracy") if "test_accuracy" in index.columns else pl.lit(None)
        frames.append(
            index.select(
                pl.lit(name).alias("zoo"),
                pl.lit(name in trained_on).alias("trained_on"),
                pl.col("model").cast(pl.String),
                pl.col("epoch").cast(pl.Int64),
                accuracy.cast(pl.Float64).alias("accuracy"),
            )
        )
    if not frames:
        return pl.DataFrame(schema={name: kind for name, kind in LATENT_SCHEMA.items() if name not in _ARM})
    places_B2 = _find_components(np.concatenate(parts))
    return pl.concat(frames).with_columns(x=pl.Series(places_B2[:, 0]), y=pl.Series(places_B2[:, 1]))


def _find_components(features_BF: np.ndarray) -> np.ndarray:
    """Return the first two principal components of standardised features; their signs are those of the largest load."""
    centred_BF = features_BF - features_BF.mean(axis=0)
    deviation_F = centred_BF.std(axis=0)
    scaled_BF = centred_BF / np.where(deviation_F > 0, deviation_F, 1)
    _, _, loads = np.linalg.svd(np.pad(scaled_BF, ((0, 2), (0, 0))), full_matrices=False)
    loads_2F = loads[:2]
    largest = np.take_along_axis(loads_2F, np.abs(loads_2F).argmax(axis=1)[:, None], axis=1)
    places_B2: np.ndarray = scaled_BF @ (loads_2F * np.sign(largest)).T
    return places_B2


def plot_latents(latents: pl.DataFrame) -> Figure:
    """Plot the map of latents: a row a backbone, coloured by zoo at the left and by accuracy at the right.

    Args:
        latents: With the columns of `LATENT_SCHEMA`.
    """
    if latents.is_empty():
        return create_message("No held-out checkpoint was encoded.")
    arms = latents["arm"].unique(maintain_order=True).to_list()
    zoos = sorted(latents["zoo"].unique())
    looks = {name: (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(zoos)}
    figure = create_figure(
        11.0,
        1.7 + 3.6 * len(arms),
        "What backbones make of models that they were not trained on",
        "Latents of held-out checkpoints, mean and deviation over the tokens, first two principal components. Hollow: "
        "of a zoo that is not in the composition. At the right, darker is less accurate on the zoo's own test images.",
        [
            Line2D([], [], linestyle="", color=look[0], marker=look[1], label=quote(name))
            for name, look in looks.items()
        ],
    )
    panels = figure.subplots(len(arms), 2, squeeze=False)
    for row, arm in zip(panels, arms, strict=True):
        for axes in row:
            style_axes(axes, quote(arm, 36))
            axes.grid(visible=False)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel("first component", fontsize=SIZE)
            axes.set_ylabel("second component", fontsize=SIZE)
        of_arm = latents.filter(arm=arm)
        known = of_arm.filter(pl.col("accuracy").is_finite())["accuracy"].to_numpy()
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        for name in zoos:
            points = of_arm.filter(zoo=name)
            if points.is_empty():
                continue
            color, marker = looks[name]
            face = color if points["trained_on"][0] else "none"
            x, y = points["x"].to_numpy(), points["y"].to_numpy()
            row[0].scatter(x, y, s=26, marker=marker, facecolors=face, edgecolors=color, linewidths=0.9, alpha=0.8)
            shades = points["accuracy"].cast(pl.Float64).fill_null(np.nan).to_numpy()
            shown = row[1].scatter(
                x,
                y,
                c=shades,
                s=26,
                marker=marker,
                cmap=_ACCURACIES,
                vmin=low,
                vmax=high,
                alpha=0.9,
                plotnonfinite=False,
            )
        if len(known):
            figure.colorbar(shown, ax=row[1], pad=0.02).set_label("test accuracy (0 to 1)", fontsize=SIZE, color=MUTED)
    return figure
