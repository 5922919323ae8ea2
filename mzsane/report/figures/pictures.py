"""The figures of an ablation as PNG, for the pages of Prefect and MLflow and for documents."""

from collections.abc import Callable, Mapping
from functools import partial

import polars as pl
from matplotlib.figure import Figure

from mzsane.appearance import Style, plot_png
from mzsane.probing.picture import pick_shown, plot_probes
from mzsane.report.figures.effects import plot_effects, plot_heatmap
from mzsane.report.figures.plots import plot_accuracy, plot_curves, plot_finetuning
from mzsane.report.figures.shares import plot_shares
from mzsane.report.latents import plot_latents
from mzsane.report.novelty import plot_novelty


def plot_pictures(
    rows: pl.DataFrame,
    effects: pl.DataFrame,
    shares: pl.DataFrame,
    latents: pl.DataFrame,
    curves: pl.DataFrame,
    probes: pl.DataFrame,
    looks: Mapping[str, Style],
) -> dict[str, bytes]:
    """Draw those figures that have something to say.

    Args:
        rows: One measurement a row, with the columns of `cells.ROW_SCHEMA`.
        effects: `effects.EFFECT_SCHEMA`.
        shares: `shares.SHARE_SCHEMA`.
        latents: `latents.LATENT_SCHEMA`.
        curves: Training curves in long form.
        probes: `probing.stage.PROBE_SCHEMA` of all arms.
        looks: The look of each composition.

    Returns:
        PNG by file name.
    """
    zero_shot = rows.filter(pl.col("finetune_epochs") == 0, pl.col("accuracy_mean").is_finite())
    figures: dict[str, Callable[[], Figure]] = {}
    if not zero_shot.is_empty():
        figures["accuracy.png"] = partial(plot_accuracy, rows, looks)
    if "samples" in zero_shot["method"]:
        figures["heatmap.png"] = partial(plot_heatmap, rows)
    if zero_shot["novelty_mean"].is_finite().any():
        figures["novelty.png"] = partial(plot_novelty, rows, looks)
    if effects["estimate"].is_not_null().any():
        figures["effects.png"] = partial(plot_effects, effects)
    if not shares.is_empty() and (shares["share"] > 0).any():
        figures["shares.png"] = partial(plot_shares, shares)
    if rows["finetune_epochs"].n_unique() > 1:
        figures["finetuning.png"] = partial(plot_finetuning, rows, looks)
    if not latents.is_empty():
        figures["latents.png"] = partial(plot_latents, latents)
    if not curves.is_empty():
        figures["curves.png"] = partial(plot_curves, curves, looks)
    if not pick_shown(probes).is_empty():
        figures["probes.png"] = partial(plot_probes, probes)
    return {name: plot_png(draw) for name, draw in figures.items()}
