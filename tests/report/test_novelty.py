"""The figure of accuracy against novelty."""

import polars as pl

from mzsane.report.cells import check_rows
from mzsane.report.figures.accuracy import chart_novelty
from mzsane.report.novelty import plot_novelty
from mzsane.report.statistics.pooling import pool_seeds


def test_each_method_stands_at_its_mean_novelty_and_accuracy(row):
    rows = pl.DataFrame(
        [
            row("one", "t", "samples", 0.6, seed=0, novelty=0.4),
            row("one", "t", "samples", 0.8, seed=1, novelty=0.6),
            row("one", "t", "selected", 0.9, sees="labels", novelty=0.3),
            row("one", "t", "samples", 0.95, sees="labels", epochs=1),
            row("one", "t", "zoo", 0.97),
            row("two", "u", "samples", 0.5, novelty=1.2),
        ]
    )
    figure = plot_novelty(rows)
    first, second = figure.axes
    points = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])): line
        for line in first.lines
        if line.get_marker() not in ("None", "")
    }
    assert {(round(x, 3), round(y, 3)) for x, y in points} == {(0.5, 0.7), (0.3, 0.9)}
    hollow = {line.get_marker() for line in points.values() if line.get_markerfacecolor() == "white"}
    assert hollow == {"*"}
    assert any(set(line.get_ydata()) == {0.97} for line in first.lines)
    assert [round(float(line.get_xdata()[0]), 3) for line in second.lines if line.get_marker() == "o"] == [1.2]


def test_without_novelty_there_is_no_figure(row):
    rows = pl.DataFrame([row("one", "t", "samples", 0.6)], schema_overrides={"novelty_mean": pl.Float64})
    assert plot_novelty(rows).texts[0].get_text() == "No novelty was measured."
    assert chart_novelty(pool_seeds(check_rows(rows))) is None


def test_with_more_compositions_than_colours_the_colour_is_the_distribution(row):
    few, many = (
        pl.DataFrame([row(f"c{i}", "t", "samples", 0.5, novelty=0.4, inside=i % 2 == 0) for i in range(count)])
        for count in (7, 8)
    )
    colors = [
        {line.get_color() for line in plot_novelty(rows).axes[0].lines if line.get_marker() == "o"}
        for rows in (few, many)
    ]
    assert [len(found) for found in colors] == [7, 2]
