"""The share of models that are novel and as accurate as the zoo, over what counts as novel: what generation is worth.

A copy is accurate and noise is novel; only a model that is both is generated. As accurate as the zoo: not less accurate
than the lower quartile of the held-out models of the target's own zoo; a target without one is left out. Everything is
scored zero-shot, samples and baselines alike, and none was selected. A model whose norm is outside the zoo's range in
some layer counts in no share: distance can be bought by enlarging weights.
"""

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mzsane.appearance import COLORS, MUTED, SIZE, Dash, create_figure, create_message, quote, style_axes
from mzsane.report.words import PLACES

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(31))  # novelty, in zoo spacings
SHARE_SCHEMA = {
    "arm": pl.String,
    "composition": pl.String,
    "seed": pl.Int64,
    "target": pl.String,
    "in_distribution": pl.Boolean,
    "method": pl.String,
    "threshold": pl.Float64,
    "share": pl.Float64,
}
_QUANTILE = 0.25  # of the zoo's held-out models, from which on a model is as accurate as the zoo
_LINES: dict[str, tuple[str, Dash]] = {
    "samples": (COLORS[0], "-"),
    "anchors": (COLORS[6], ":"),
    "decoded_noise": (COLORS[1], "-"),
    "layer_noise": (COLORS[1], "--"),
    "flat_noise": (COLORS[4], "--"),
    "interpolation": (COLORS[2], "--"),
    "average": (COLORS[3], "-."),
    "statistics": (COLORS[5], "-."),
}


def measure_shares(scores: pl.DataFrame, zoo: pl.DataFrame) -> pl.DataFrame:
    """Return for each method the share of its models that are novel and as accurate as the zoo, by threshold.

    Args:
        scores: A row a model, with the columns of `mzsane.evaluation.scorer`.
        zoo: The same of the held-out models of the target's own zoo.

    Returns:
        method, threshold, share; of methods whose novelty is known.
    """
    enough = (
        zoo.filter(method="zoo", finetune_epochs=0, ensemble=1)["accuracy"].drop_nans().quantile(_QUANTILE, "linear")
    )
    known = pl.col("novelty").is_not_null() & (pl.col("finetune_epochs") == 0) & pl.col("chosen_of").is_null()
    models = scores.filter(known & pl.col("method").is_in(list(_LINES)))
    finite = pl.col("accuracy").is_finite() & pl.col("novelty").is_finite()  # not a number is above any, to polars
    worth = finite & (pl.col("accuracy") >= enough) & ~pl.col("outside_norms").fill_null(False)
    parts = [
        models.group_by("method", maintain_order=True).agg(
            pl.lit(threshold).alias("threshold"), (worth & (pl.col("novelty") >= threshold)).mean().alias("share")
        )
        for threshold in THRESHOLDS
    ]
    return pl.concat(parts)


def plot_shares(shares: pl.DataFrame) -> Figure:
    """Plot the share of models that are novel and as accurate as the zoo: a column a target, a line a method.

    A line is the mean over compositions and seeds, in distribution above and out of distribution below; the thin lines
    are the samples of each composition.

    Args:
        shares: With the columns of `SHARE_SCHEMA`.
    """
    if shares.is_empty():
        return create_message("No target has a zoo of its own, or no novelty was measured.")
    targets = shares["target"].unique(maintain_order=True).to_list()
    places = [inside for inside in PLACES if inside in shares["in_distribution"].to_list()]
    methods = [method for method in _LINES if method in shares["method"]]
    figure = create_figure(
        max(7.5, 1.2 + 3.6 * len(targets)),
        1.9 + 2.5 * len(places),
        "Share of models that are novel and as accurate as the zoo",
        "Novel: at least as far from every training model as the threshold says; 0 counts copies, 1 is as far as the "
        "training models are from each other. As accurate: at least the lower quartile of the zoo's held-out models. "
        "Networks outside the zoo's range of norms count in no share. Mean over compositions and seeds; thin: samples "
        "of each composition. None was selected.",
        [
            Line2D([], [], color=_LINES[name][0], linestyle=_LINES[name][1], linewidth=2.2, label=name)
            for name in methods
        ],
    )
    panels = figure.subplots(len(places), len(targets), sharex=True, sharey=True, squeeze=False)
    for row, inside in zip(panels, places, strict=True):
        for axes, target in zip(row, targets, strict=True):
            style_axes(axes, f"{quote(target, 18)}, {PLACES[inside]}")
            here = shares.filter(pl.col("in_distribution").eq_missing(pl.lit(inside, pl.Boolean)), target=target)
            if here.is_empty():
                axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, fontsize=SIZE, color=MUTED)
            for _, line in here.filter(method="samples").group_by("composition", maintain_order=True):
                mean = line.group_by("threshold").agg(pl.col("share").mean()).sort("threshold")
                axes.plot(mean["threshold"], mean["share"], color=_LINES["samples"][0], linewidth=0.7, alpha=0.45)
            for name in reversed(methods):
                mean = here.filter(method=name).group_by("threshold").agg(pl.col("share").mean()).sort("threshold")
                color, dash = _LINES[name]
                axes.plot(mean["threshold"], mean["share"], color=color, linestyle=dash, linewidth=2.2)
        row[0].set_ylabel("share of models", fontsize=SIZE)
    for axes in panels[-1]:
        axes.set_xlabel("least novelty (zoo spacings)", fontsize=SIZE)
    panels[0][0].set_ylim(-0.02, 1.02)
    panels[0][0].set_xlim(0, THRESHOLDS[-1])
    return figure
