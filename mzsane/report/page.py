"""The report of an ablation: one HTML page that holds everything and loads nothing."""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import polars as pl
from matplotlib.figure import Figure

from mzsane.appearance import Look, assign_looks, to_png, to_svg
from mzsane.evaluation.probes_picture import plot_probes
from mzsane.report.cells import check_rows, list_names
from mzsane.report.effect_plots import plot_effects, plot_heatmap
from mzsane.report.effects import estimate_effects
from mzsane.report.findings import find_findings
from mzsane.report.latents import plot_latents
from mzsane.report.novelty import plot_novelty
from mzsane.report.page_style import SCRIPT, STYLE
from mzsane.report.page_tables import render_addresses, render_comparison, render_measurements
from mzsane.report.plots import plot_accuracy, plot_curves, plot_finetuning
from mzsane.report.probes import describe_probes, render_probes
from mzsane.report.provenance import plot_provenance
from mzsane.report.shares import plot_shares

METHOD_MEANINGS = {
    "zoo": "Held-out models, trained the ordinary way, of the target's own zoo; for a target without one, of the "
    "composition's zoos. The mark to reach.",
    "transfer": "Held-out models of zoos of other images, of the same architecture and number of classes: what a "
    "network at hand gives, as it is or as a start.",
    "reconstruction": "Zoo models encoded and decoded by the backbone: what the autoencoder alone loses.",
    "samples": "Generated networks, good and bad: their mean, not their best.",
    "selected": "The best of the generated networks, chosen on labelled validation data.",
    "anchors": "The zoo models that the sampler starts from, encoded and decoded without noise: what copying gives.",
    "anchor_noise": "For each sample its nearest anchor, not decoded, plus random noise on the weights, as far from it "
    "as the sample is: generating without a backbone. Zero-shot where it sees labels: the best of these, chosen "
    "on validation images, as many as samples are selected.",
    "best_anchor": "The anchor that is best on validation images, as it is in the zoo.",
    "interpolation": "Places between two aligned anchors, in their weights: generating without a backbone.",
    "average": "The weight-by-weight average of the aligned anchors: generating without a backbone.",
    "statistics": "Each weight drawn by itself, with the mean and deviation of its layer in the anchors.",
    "random_init": "Newly initialised networks. Fine-tuned as long, they tell whether a generated start helps.",
}
SEES_MEANINGS = {
    "none": "The score used nothing of the target.",
    "images": "It used images of the target without labels, for example to recompute batch-norm statistics.",
    "labels": "It used labelled data of the target, for example to select samples or to fine-tune.",
}
OTHER_MEANINGS = {
    "composition": "What the backbone was trained on: the list of zoo slices.",
    "target": "What the networks are scored on: an architecture and an image dataset.",
    "size and diversity": "Of a composition: its number of models, and its numbers of datasets and of architectures.",
    "in distribution": "The target's dataset is among those of the composition.",
    "zero-shot": "Scored as generated, without fine-tuning.",
    "3 epochs": "Fine-tuned so long with each of several learning rates; the one with the best mean accuracy of the "
    "method on validation images counts.",
    "ensemble of 5": "The mean of the probabilities of so many networks, not fine-tuned.",
    "10 of 100": "So many were selected on validation images, of so many.",
    "calibration": "Expected calibration error: how far the probability of the predicted class is from the accuracy, "
    "in 15 bins.",
    "novelty": "Distance of a network to the nearest one that the backbone was trained on, hidden units in the best "
    "order, over the mean such distance between the training networks themselves. 0 is a copy.",
}


def render_picture(name: str, figure: Figure, label: str) -> str:
    """Render a figure as SVG or as PNG, whichever is smaller.

    Args:
        name: Put before the identifiers inside the SVG, which would meet those of the page's other figures.
        figure: The figure.
        label: Plain text for readers who cannot see it.
    """
    svg = to_svg(figure)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    opening, rest = svg.split(">", 1)
    # Without a size of its own the picture is as wide as its frame; the view box keeps its proportions.
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    svg = f'{opening} role="img" aria-label="{escape(label)}">{rest}'
    image = f'<img alt="{escape(label)}" src="data:image/png;base64,{base64.b64encode(to_png(figure)).decode()}">'
    return min(svg, image, key=len)


def render_figure(name: str, figure: Figure, caption: str) -> str:
    """Render a figure with its caption."""
    picture = render_picture(name, figure, caption)
    return f'<figure><div class="picture">{picture}</div><figcaption>{escape(caption)}</figcaption></figure>'


def render_figures(
    rows: pl.DataFrame, curves: pl.DataFrame, shares: pl.DataFrame, latents: pl.DataFrame, looks: Mapping[str, Look]
) -> str:
    """Render the figures for which there are data."""
    figures = []
    if estimate_effects(rows):
        figures.append(
            render_figure(
                "effects",
                plot_effects(rows),
                "Effects of size and diversity on the mean accuracy of samples, in percentage points, with 95 % "
                "intervals. A bar that crosses 0 tells no effect from chance.",
            )
        )
    if ((rows["method"] == "samples") & (rows["finetune_epochs"] == 0)).any():
        figures.append(
            render_figure(
                "heatmap",
                plot_heatmap(rows),
                "Zero-shot accuracy of samples, a line a composition and a column a target. Framed and bold numbers "
                "are in distribution; the others say how far a composition reaches.",
            )
        )
    if 0 in rows["finetune_epochs"]:
        figures.append(
            render_figure(
                "accuracy",
                plot_accuracy(rows, looks),
                "Zero-shot accuracy. One panel a target, one marker a composition. Generated networks (samples, "
                "selected) are worth a backbone where they are above the baselines at their right that see as much.",
            )
        )
    if rows["novelty_mean"].is_finite().any():
        figures.append(
            render_figure(
                "novelty",
                plot_novelty(rows, looks),
                "Zero-shot accuracy against novelty. Generation is worth something at the upper right: as accurate as "
                "the zoo, and as far from every training model as these are from each other. Methods at the left copy.",
            )
        )
    if not shares.is_empty():
        figures.append(
            render_figure(
                "shares",
                plot_shares(shares),
                "Share of models that are novel and as accurate as the zoo, over what counts as novel. A backbone "
                "generates where the line of samples is above those of all baselines away from the left edge.",
            )
        )
    if rows["finetune_epochs"].n_unique() > 1:
        figures.append(
            render_figure(
                "finetuning",
                plot_finetuning(rows, looks),
                "Accuracy over epochs of fine-tuning on the target. Dashed: networks trained from scratch as long. "
                "A generated start helps where its line stays above the dashed one.",
            )
        )
    if not latents.is_empty():
        figures.append(
            render_figure(
                "latents",
                plot_latents(latents),
                "Latents of checkpoints that the backbones were not trained on, in two dimensions: by zoo at the left, "
                "by accuracy at the right. One backbone for each diversity, of the largest composition.",
            )
        )
    if not curves.is_empty():
        figures.append(
            render_figure(
                "curves",
                plot_curves(curves, looks),
                "How the backbones were trained: parts of the loss, and R² of the reconstructed weights. A composition "
                "whose backbone has not converged is not judged fairly by its samples.",
            )
        )
    return "".join(figures) or "<p>There is nothing to plot.</p>"


def render_summary(rows: pl.DataFrame) -> str:
    """Render what the measurements say: on all targets together, then a card for each target."""
    findings = find_findings(rows)
    cards = "".join(
        f'<div class="card"><h3>Target: {escape(target)}</h3><ul>{render_items(sentences)}</ul></div>'
        for target, sentences in findings.by_target.items()
    )
    return f'<ul class="answers">{render_items(findings.overall)}</ul><div class="cards">{cards}</div>'


def render_latents(probes: pl.DataFrame) -> str:
    """Render what the latents tell: sentences, a figure, a table."""
    caption = (
        "Linear probes from features of checkpoints to what is known of them, scored on models that neither probe nor "
        "backbone has seen. Latents are worth something where they are to the right of the statistics of the weights."
    )
    figure = render_figure("probes", plot_probes(probes), caption)
    return f'<ul class="answers">{render_items(describe_probes(probes))}</ul>{figure}{render_probes(probes)}'


def render_items(sentences: Iterable[str]) -> str:
    """Render sentences as the items of a list, what stands before a colon in bold."""
    items = []
    for sentence in sentences:
        lead, colon, rest = sentence.partition(": ")
        items.append(f"<li><b>{escape(lead)}:</b> {escape(rest)}</li>" if colon else f"<li>{escape(sentence)}</li>")
    return "".join(items)


def render_meanings(title: str, meanings: Mapping[str, str]) -> str:
    """Render words and what they mean."""
    entries = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in meanings.items())
    return f'<div class="card"><h3>{escape(title)}</h3><dl>{entries}</dl></div>'


def count_things(rows: pl.DataFrame) -> str:
    """Return how much was measured, e.g. `4 compositions · 2 seeds · 3 targets · 222 measurements`."""
    counts = {name: rows[name].n_unique() for name in ("composition", "seed", "target")}
    counts["measurement"] = rows.height
    return " · ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())


def render_report(
    title: str,
    rows: pl.DataFrame,
    curves: pl.DataFrame,
    provenance: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    shares: pl.DataFrame = pl.DataFrame(),
    latents: pl.DataFrame = pl.DataFrame(),
    probes: pl.DataFrame | None = None,
) -> str:
    """Render an ablation as one HTML page, which loads nothing and can be read without scripts.

    Args:
        title: The name of the ablation.
        rows: One measurement a row, with the columns of `cells.ROW_SCHEMA`; accuracies from 0 to 1, NaN where failed.
        curves: Training curves in long form: arm, composition, seed, step, metric, value. May be empty.
        provenance: Where everything came from: arm, stage, name, fingerprint, address, reads. May be empty.
        config: The ablation's whole config, JSON-like.
        shares: Shares of novel and accurate models, with the columns of `shares.SHARE_SCHEMA`. May be empty.
        latents: Maps of latents, with the columns of `latents.LATENT_SCHEMA`. May be empty.
        probes: What the latents tell of models, of all arms (`evaluation.probes.PROBE_SCHEMA`); left out if None.

    Returns:
        The page.

    Raises:
        ConfigError: A column of `rows` is missing.
    """
    rows = check_rows(rows)
    compositions = set(list_names(rows, "composition"))
    if not curves.is_empty():
        compositions.update(curves["composition"])
    looks = assign_looks(compositions)
    sources = "<p>No provenance was recorded.</p>"
    if provenance:
        caption = "From zoos at the left to scores at the right. What several arms share was made once."
        sources = render_figure("provenance", plot_provenance(provenance), caption) + render_addresses(provenance)
    meanings = [
        render_meanings("Methods: where the weights come from", METHOD_MEANINGS),
        render_meanings("Sees: what the score used of the target", SEES_MEANINGS),
        render_meanings("Words", OTHER_MEANINGS),
    ]
    sections = {
        "What the measurements say": render_summary(rows),
        "Figures": render_figures(rows, curves, shares, latents, looks),
        **({} if probes is None else {"What the latents tell": render_latents(probes)}),
        "How to read this": f'<p>Compare only what sees the same.</p><div class="columns">{"".join(meanings)}</div>',
        "Comparison": "<p>Nothing was measured.</p>" if rows.is_empty() else render_comparison(rows, looks),
        "Every measurement": "<p>Nothing was measured.</p>" if rows.is_empty() else render_measurements(rows),
        "What came from where": sources,
        "Config": "<details><summary>The whole config of this ablation</summary>"
        f"<pre>{escape(json.dumps(config, indent=2, default=str, ensure_ascii=False))}</pre></details>",
    }
    body = "".join(f"<section><h2>{heading}</h2>{content}</section>\n" for heading, content in sections.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(title)} · mzsane</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<p class="kicker">mzsane · {escape(title)}</p>
<h1>What should the zoo be made of?</h1>
<p class="facts">{escape(count_things(rows))}</p>
</header>
{body}</main>
<script>{SCRIPT}</script>
</body>
</html>
"""
