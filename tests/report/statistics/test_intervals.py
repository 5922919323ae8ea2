"""Intervals count independent units: what an anchor's samples share is not counted as often as there are samples."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS

from mzsane.report.statistics.intervals import compare_means, compare_pairs, measure_interval, t_quantile


def test_values_that_stand_for_themselves_have_students_interval():
    found = measure_interval([0.1, 0.4, 0.3, 0.5], [None] * 4)
    low, high = stats.t.interval(0.95, 3, np.mean([0.1, 0.4, 0.3, 0.5]), stats.sem([0.1, 0.4, 0.3, 0.5]))
    assert (found.estimate - found.half, found.estimate + found.half) == (pytest.approx(low), pytest.approx(high))
    assert found.units == 4


def test_clusters_of_one_size_are_as_in_statsmodels():
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(6), 5)
    values = random.normal(size=6)[clusters] + random.normal(size=30)
    error = OLS(values, np.ones(30)).fit(cov_type="cluster", cov_kwds={"groups": clusters}).bse[0]
    found = measure_interval(values.tolist(), clusters.tolist())
    assert found.half == pytest.approx(t_quantile(6) * error)
    assert found.units == 6


def test_copies_of_a_value_tell_nothing_more():
    once = measure_interval([0.1, 0.4, 0.3], ["x", "y", "z"])
    often = measure_interval([0.1, 0.4, 0.3] * 20, ["x", "y", "z"] * 20)
    assert often.half == pytest.approx(once.half)


def test_clusters_of_different_sizes_do_not_bias_the_variance():
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(5), [1, 2, 4, 8, 15])
    draws = random.normal(size=(4000, 30))
    squares = [(measure_interval(draw.tolist(), clusters.tolist()).half / t_quantile(5)) ** 2 for draw in draws]
    assert np.mean(squares) == pytest.approx(1 / 30, rel=0.05)


@pytest.mark.parametrize("clusters", [["x", "x", "y", "y"], [1, 1, 1, 1]])
def test_below_three_units_there_is_no_interval(clusters):
    found = measure_interval([0.1, 0.2, 0.3, 0.4], clusters)
    assert found.estimate == pytest.approx(0.25)
    assert math.isnan(found.half)
    assert math.isnan(compare_pairs([0.1, 0.2]).half)
    side = [(0, cluster, 0.5) for cluster in clusters]
    assert math.isnan(compare_means(side, [(0, number, 0.1 * number) for number in range(9)]).half)


def test_cells_count_alike_however_many_models_they_have():
    first = [("s0", n, 0.5) for n in range(3)] + [("s1", n, 0.9) for n in range(30)]
    second = [(cell, n, 0.1) for cell in ("s0", "s1") for n in range(3)]
    assert compare_means(first, second).estimate == pytest.approx(0.6)
