"""The figures of effects and of compositions by targets show what was estimated and measured."""

import polars as pl
import pytest

from mzsane.report.figures.change import chart_effects
from mzsane.report.figures.effects import plot_effects, plot_heatmap
from mzsane.report.statistics.effects import EFFECT_SCHEMA


@pytest.fixture
def effects():
    """Total and adjusted effects zero-shot, of which one cannot be estimated; a total one after three epochs."""
    known = {"units": 21, "over": "compositions", "reason": "", "label": "doubling the models", "factor": "models"}
    numbers = {"estimate": 0.02, "low": 0.01, "high": 0.03}
    nothing = {"estimate": None, "low": None, "high": None, "reason": "too few"}
    rows = [
        {**known, **numbers, "epochs": 0, "in_distribution": True, "kind": "total"},
        {**known, **numbers, "epochs": 0, "in_distribution": True, "kind": "adjusted", "high": 0.05},
        {**known, **nothing, "epochs": 0, "in_distribution": False, "kind": "total"},
        {**known, **numbers, "epochs": 3, "in_distribution": True, "kind": "total"},
    ]
    return pl.DataFrame(rows, schema=EFFECT_SCHEMA)


def test_effects_stand_at_their_estimates_with_bars_as_long_as_their_intervals(effects):
    figure = plot_effects(effects)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["zero-shot", "3 epochs"]
    bars = {tuple(round(x, 6) for x in line.get_xdata()): line for line in figure.axes[0].lines}
    assert bars[1.0, 3.0].get_linestyle() == "-"
    assert bars[1.0, 5.0].get_linestyle() == "--"
    assert bars[2.0,].get_markerfacecolor() == "white"  # the adjusted one is the last at its estimate
    assert [text.get_text() for text in figure.axes[0].texts] == ["cannot be estimated"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["doubling the models"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["total, in distribution", "total, out of distribution", "adjusted, in distribution"]


def test_without_a_factor_the_figure_says_so():
    figure = plot_effects(pl.DataFrame(schema=EFFECT_SCHEMA))
    assert "do not differ in size or diversity" in figure.texts[0].get_text()


def test_page_has_the_total_first_and_the_adjusted_labelled(effects):
    figure = chart_effects(effects)
    assert [panel.title for panel in figure.panels] == ["zero-shot", "3 epochs"]
    data = figure.panels[0].data
    assert data["line"].to_list() == ["total, in distribution", "adjusted, in distribution"]
    assert data["estimate"].to_list() == [2.0, 2.0]
    assert [entry.hollow for entry in figure.legend] == [False, True]
    assert chart_effects(effects.with_columns(estimate=None)) is None


def test_heatmap_has_the_mean_over_seeds_of_zero_shot_samples(rows):
    axes = plot_heatmap(rows).axes[0]
    targets = [label.get_text() for label in axes.get_xticklabels()]
    compositions = [label.get_text() for label in axes.get_yticklabels()]
    texts = {
        (compositions[round(text.get_position()[1])], targets[round(text.get_position()[0])]): text
        for text in axes.texts
    }
    assert {place: text.get_text() for place, text in texts.items()} == {
        ("digits", "digits"): "0.805",
        ("digits", "fonts"): "0.605",
        ("letters", "digits"): "0.605",
        ("letters", "fonts"): "0.405",
        ("both", "digits"): "0.855",
        ("both", "fonts"): "0.655",
    }
    bold = {place for place, text in texts.items() if text.get_fontweight() == "bold"}
    assert bold == {("digits", "digits"), ("both", "digits")}
    assert len(axes.patches) == 2


def test_heatmap_leaves_a_gap_where_nothing_was_measured(row):
    rows = pl.DataFrame([row("a", "t", "samples", 0.5), row("b", "u", "samples", 0.4)])
    assert sorted(text.get_text() for text in plot_heatmap(rows).axes[0].texts) == ["0.400", "0.500", "–", "–"]
    assert "No samples" in plot_heatmap(pl.DataFrame()).texts[0].get_text()
