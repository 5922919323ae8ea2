"""What the page shows of the probes."""

import polars as pl
import pytest

from mzsane.probing.picture import pick_shown, plot_probes
from mzsane.probing.stage import PROBE_SCHEMA
from mzsane.report.figures.latents import chart_probes
from mzsane.report.page.tables import list_probes


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
        make_probe("latents", 0.7, metric="tau"),
        make_probe("latents", -4.0, (-9.0, 1.0), zoo="letters", inside=False),
        make_probe("latents", 0.2, (-0.4, -0.1), zoo="letters", inside=False, metric="tau"),
        make_probe("statistics", 0.5, zoo="letters", inside=False, metric="tau"),
        make_probe("pooled_latents", 0.3, (float("nan"), float("nan")), zoo="mlp", inside=False, metric="tau"),
        {"zoo": "digits", "in_distribution": True, "property": "factor_dropout", "note": "it is the same"},
    ]
    return pl.DataFrame(rows, schema={"arm": pl.String, **PROBE_SCHEMA})


def test_the_shown_metric_is_r2_where_the_zoo_is_known_and_tau_elsewhere(probes):
    shown = pick_shown(probes)
    assert set(shown.filter(pl.col("in_distribution"))["metric"]) == {"r2"}
    assert set(shown.filter(~pl.col("in_distribution"))["metric"]) == {"tau"}


def test_page_has_a_panel_for_each_zoo_with_the_shown_metric(probes):
    figure = chart_probes(probes)
    data = {panel.title: panel.data for panel in figure.panels}
    assert list(data) == ["digits, in distribution", "letters, out of distribution", "mlp, out of distribution"]
    digits = data["digits, in distribution"]
    assert dict(digits.select("features", "value").rows()) == {"latents": 0.8, "weights": 0.1, "statistics": 0.6}
    assert set(digits["property"]) == {"test accuracy (r2)"}
    assert digits["low"][0] == pytest.approx(0.7)


def test_several_backbones_are_averaged_and_have_no_interval_of_one(probes):
    worse = probes.with_columns(arm=pl.lit("b"), value=pl.col("value") - 0.4)
    digits = chart_probes(pl.concat([probes, worse])).panels[0].data.filter(features="latents").row(0, named=True)
    assert (digits["value"], digits["low"], digits["backbones"]) == (pytest.approx(0.6), None, 2)


def test_table_has_every_score_and_the_reasons(probes):
    table, notes = list_probes(probes)
    assert len(table.rows) == 8
    assert table.rows[0][:4] == ["digits", "test accuracy", "latents", "r2"]
    assert table.rows[0][6:10] == ["0.80", "0.70", "0.90", "0.00"]
    assert notes == ["digits, dropout: it is the same"]


def test_nothing_probed_draws_nothing(probes):
    empty = probes.filter(pl.col("features").is_null())
    assert chart_probes(empty) is None
    assert list_probes(empty)[0].rows == []
    assert len(plot_probes(empty).axes) == 0


def test_figure_has_a_panel_for_each_zoo(probes):
    titles = [axes.get_title(loc="left") for axes in plot_probes(probes).axes]
    assert titles == [
        "digits, in distribution",
        "letters, out of distribution",
        "mlp, out of distribution",
    ]
