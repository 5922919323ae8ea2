"""The figures of effects and of compositions by targets show what was estimated and measured."""

import polars as pl
import pytest

from mzsane.report.effect_plots import plot_effects, plot_heatmap
from mzsane.report.effects import estimate_effects


@pytest.fixture
def sized(row):
    """Two sizes, two seeds, zero-shot and fine-tuned; scored in distribution alone."""
    return pl.DataFrame(
        [
            row(f"n{models}", "t", "samples", 0.5 + 0.1 * (models == 40) + 0.01 * seed * (models == 40), seed, **tuned)
            | {"models": models}
            for models in (20, 40)
            for seed in (0, 1)
            for tuned in ({}, {"sees": "labels", "epochs": 3})
        ]
    )


def test_effects_stand_at_their_estimates_with_bars_as_long_as_their_intervals(sized):
    figure = plot_effects(sized)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["zero-shot", "after 3 epochs of fine-tuning"]
    effect = next(effect for effect in estimate_effects(sized) if effect.in_distribution and effect.epochs == 0)
    lines = {tuple(line.get_xdata()): line for line in figure.axes[0].lines}
    assert (100 * effect.estimate,) in lines
    assert lines[100 * effect.low, 100 * effect.high].get_linestyle() == ":"  # over seeds, as the note says
    assert "over seeds alone" in figure.get_supxlabel()
    assert [text.get_text() for text in figure.axes[0].texts] == ["cannot be estimated"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["doubling the models"]


def test_without_a_factor_the_figure_says_so(row):
    figure = plot_effects(pl.DataFrame([row("a", "t", "samples", 0.5)]))
    assert "do not differ in size or diversity" in figure.texts[0].get_text()


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
