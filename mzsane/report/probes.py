"""What probes of the latents say, for the report: sentences, a figure and a table."""

import math
from collections.abc import Mapping
from html import escape
from itertools import groupby
from typing import Any

import polars as pl

from mzsane.evaluation.features import BASELINE, FEATURES
from mzsane.evaluation.probes_picture import ALL, name_features, name_property, pick_shown
from mzsane.report.cells import join_names
from mzsane.report.page_tables import render_cell, render_table

_JUDGED = ("latents", "pooled_latents", "weights", "statistics_latents")  # against the statistics
_METRICS = {"r2": "R²", "tau": "Kendall's tau", "accuracy": "accuracy"}


def describe_probes(probes: pl.DataFrame) -> list[str]:
    """Say which features tell the test accuracy of models best, by zoo.

    Of several arms means are compared. One is ahead or behind if the interval of its gain, the mean of those of the
    arms, does not hold 0; the arms' zoos are the same, so more arms do not make it narrower.

    Args:
        probes: probes of all arms, with the columns of `PROBE_SCHEMA`.
    """
    shown = pick_shown(probes).filter(pl.col("property") == "test_accuracy")
    if shown.is_empty():
        return ["Test accuracy: it could not be probed in any zoo; the table says why."]
    sentences = []
    for inside, place in ((True, "in distribution"), (False, "out of distribution")):
        means = _average(shown.filter(in_distribution=inside))
        for zoo in means["zoo"].unique(maintain_order=True):
            own = {row["features"]: row for row in means.filter(zoo=zoo).to_dicts()}
            metric = _METRICS[next(iter(own.values()))["metric"]]
            if BASELINE not in own:
                values = join_names([f"{name_features(name)} {row['value']:.2f}" for name, row in own.items()])
                sentences.append(
                    f"Test accuracy on {zoo}, {place}: {values} ({metric}); the composition has no such architecture, "
                    "so that weights and statistics cannot be compared."
                )
                continue
            best = max(own, key=lambda name: own[name]["value"])
            verdicts = [_judge(name, own[name]) for name in _JUDGED if name in own]
            against = f"Against the statistics ({own[BASELINE]['value']:.2f}) {', '.join(verdicts)}."
            sentences.append(
                f"Test accuracy on {zoo}, {place}: best are {name_features(best)} with {metric} "
                f"{own[best]['value']:.2f}. {against}"
            )
    return sentences


def render_probes(probes: pl.DataFrame) -> str:
    """Render the scores as a table, a line a zoo, property and metric, and what was left out, with reasons."""
    scored = probes.filter(pl.col("value").is_finite())
    heads = [render_cell(name, tag="th") for name in ("zoo", "sees", "fitted on", "property", "metric")]
    heads += [render_cell(name, "number", "th") for name in ("models", "chance", *map(name_features, FEATURES))]
    body = []
    means = _average(scored).to_dicts() if not scored.is_empty() else []
    places = ("zoo", "in_distribution", "sees", "fitted_on", "property", "metric")
    for key, group in groupby(means, lambda row: [row[name] for name in places]):
        own = {row["features"]: row for row in group}
        zoo, inside, sees, fitted_on, name, metric = key
        first = next(iter(own.values()))
        words = [zoo if inside else f"{zoo} (out)", sees, fitted_on, name_property(name), _METRICS[metric]]
        cells = [render_cell(escape(word), "wrap") for word in words]
        cells += [render_cell(str(first["models"]), "number"), render_cell(f"{first['chance']:.2f}", "number")]
        best = max(row["value"] for row in own.values())
        for features in FEATURES:
            if features not in own:
                cells.append(render_cell("–", "number"))
                continue
            row = own[features]
            text = f"{row['value']:.2f}"
            if math.isfinite(row["low"]):
                text += f" [{row['low']:.2f}, {row['high']:.2f}]"
            cells.append(render_cell(text, "number best" if row["value"] == best else "number"))
        body.append(f"<tr>{''.join(cells)}</tr>")
    table = render_table(heads, body, css="scroll tall") if body else ""
    notes = (
        probes.filter(pl.col("note").is_not_null())
        .select("zoo", "property", "features", "note")
        .unique(maintain_order=True)
    )
    if notes.is_empty():
        return table
    items = "".join(
        f"<li>{escape(zoo)}, {escape(name_property(name))}"
        f"{f' from {escape(name_features(features))}' if features else ''}: {escape(note)}</li>"
        for zoo, name, features, note in notes.rows()
    )
    return f"{table}<details><summary>What was not probed, and why</summary><ul>{items}</ul></details>"


def _average(scores: pl.DataFrame) -> pl.DataFrame:
    """Return the means over arms of values and intervals, by zoo, property, metric and features."""
    order = pl.col("features").replace_strict(
        {name: place for place, name in enumerate(FEATURES)}, default=len(FEATURES)
    )
    names = pl.col("fitted_on").list.join(", ")
    return (
        scores.with_columns(fitted_on=names, order=order)
        .group_by(
            *("zoo", "in_distribution", "sees", "fitted_on", "property", "metric", "features", "order"),
            maintain_order=True,
        )
        .agg(
            pl.col("value", "low", "high", "chance", "gain", "gain_low", "gain_high").mean(),
            pl.col("models").max(),
        )
        .sort(
            pl.col("in_distribution").not_(),
            pl.col("zoo") == ALL,
            "zoo",
            "fitted_on",
            "property",
            "metric",
            "order",
            maintain_order=True,
        )
    )


def _judge(name: str, row: Mapping[str, Any]) -> str:
    if not math.isfinite(row["gain_low"]):
        verdict = "are not judged, with so few models"
    elif row["gain_low"] > 0:
        verdict = "are ahead"
    elif row["gain_high"] < 0:
        verdict = "are behind"
    else:
        verdict = "are level"
    return f"{name_features(name)} {verdict} ({row['value']:.2f})"
