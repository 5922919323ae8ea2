"""What the report says of the probes."""

import polars as pl
import pytest

from mzsane.evaluation.probes import PROBE_SCHEMA
from mzsane.evaluation.probes_picture import pick_shown, plot_probes
from mzsane.report.page import render_report
from mzsane.report.probes import describe_probes, render_probes
from tests.report.test_page import Reader


def make_probe(features, value, gain=(0.0, 0.0), zoo="digits", inside=True, metric="r2", name="test_accuracy", arm="a"):
    """One score as a dict."""
    return {
        "arm": arm,
        "zoo": zoo,
        "in_distribution": inside,
        "fitted_on": ["digits"],
        "sees": "labels" if inside else "none",
        "property": name,
        "features": features,
        "metric": metric,
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "chance": 0.0,
        "gain": sum(gain) / 2,
        "gain_low": gain[0],
        "gain_high": gain[1],
        "models": 12,
        "note": None,
    }


@pytest.fixture
def probes():
    """Latents ahead of the statistics in distribution, behind out of it; a constant property."""
    rows = [
        make_probe("latents", 0.8, (0.1, 0.3)),
        make_probe("weights", 0.1, (-0.6, -0.4)),
        make_probe("statistics", 0.6),
        make_probe("statistics_latents", 0.65, (-0.1, 0.2)),
        make_probe("latents", 0.7, metric="tau"),
        make_probe("latents", -4.0, (-9.0, 1.0), zoo="letters", inside=False),
        make_probe("latents", 0.2, (-0.4, -0.1), zoo="letters", inside=False, metric="tau"),
        make_probe("statistics", 0.5, zoo="letters", inside=False, metric="tau"),
        make_probe("pooled_latents", 0.3, (float("nan"), float("nan")), zoo="mlp", inside=False, metric="tau"),
        {"zoo": "digits", "in_distribution": True, "property": "factor_dropout", "note": "it is the <same>"},
    ]
    return pl.DataFrame(rows, schema={"arm": pl.String, **PROBE_SCHEMA})


def test_sentences_say_which_features_win_by_zoo(probes):
    inside, letters, mlp = describe_probes(probes)
    assert inside == (
        "Test accuracy on digits, in distribution: best are latents with R² 0.80. Against the statistics (0.60) "
        "latents are ahead (0.80), weights are behind (0.10), statistics and latents are level (0.65)."
    )
    assert letters.startswith(
        "Test accuracy on letters, out of distribution: best are statistics with Kendall's tau 0.50."
    )
    assert "latents are behind (0.20)" in letters
    assert "pooled latents 0.30 (Kendall's tau); the composition has no such architecture" in mlp


def test_several_arms_are_averaged(probes):
    worse = probes.with_columns(arm=pl.lit("b"), value=pl.col("value") - 0.4, gain_low=pl.col("gain_low") - 0.4)
    (inside, *_) = describe_probes(pl.concat([probes, worse]))
    assert "latents are level (0.60)" in inside


def test_the_shown_metric_is_r2_where_the_zoo_is_known_and_tau_elsewhere(probes):
    shown = pick_shown(probes)
    assert set(shown.filter(pl.col("in_distribution"))["metric"]) == {"r2"}
    assert set(shown.filter(~pl.col("in_distribution"))["metric"]) == {"tau"}


def test_page_has_a_section_with_figure_table_and_reasons(probes):
    page = render_report("probes", pl.DataFrame(), pl.DataFrame(), [], {}, probes=probes)
    assert "<h2>What the latents tell</h2>" in page
    reader = Reader(page)
    assert reader.open == []
    assert reader.tags.count("figure") == 1
    assert "0.80 [0.70, 0.90]" in page
    assert "<li>digits, dropout: it is the &lt;same&gt;</li>" in page
    assert '<td class="number best">0.80' in page
    assert "What the latents tell" not in render_report("none", pl.DataFrame(), pl.DataFrame(), [], {})


def test_nothing_probed_says_so(probes):
    empty = probes.filter(pl.col("features").is_null())
    assert describe_probes(empty) == ["Test accuracy: it could not be probed in any zoo; the table says why."]
    assert "it is the &lt;same&gt;" in render_probes(empty)
    assert len(plot_probes(empty).axes) == 0


def test_figure_has_a_panel_for_each_zoo(probes):
    figure = plot_probes(probes)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "digits, in distribution",
        "letters, out of distribution",
        "mlp, out of distribution",
    ]
