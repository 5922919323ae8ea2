"""A winner is named only where a test tells it from the next, among what sees as much."""

import polars as pl
import pytest
from scipy import stats

from mzsane.report.statistics.leaders import LEADER_SCHEMA, find_contrast, find_leaders
from tests.report.made_models import make_models


def gather(*groups):
    return pl.DataFrame([row for group in groups for row in group], infer_schema_length=None)


def test_a_clear_lead_is_a_win_and_a_small_one_a_tie():
    means = {"a": (0.80, 0.82, 0.81), "b": (0.70, 0.73, 0.71), "c": (0.795, 0.83, 0.80)}
    models = gather(
        *(
            make_models(method, [mean] * 2, name, seed=seed)
            for method, names in (("samples", "abc"), ("selected", "ab"))
            for name in names
            for seed, mean in enumerate(means[name])
        )
    )
    leaders = find_leaders(models)
    assert dict(leaders.schema) == LEADER_SCHEMA
    close, clear = leaders.to_dicts()
    assert (close["best"], close["next"], close["verdict"]) == ("a", "c", "tie")
    assert (clear["best"], clear["next"], clear["verdict"], clear["units"]) == ("a", "b", "win", 3)
    paired = stats.ttest_rel(means["a"], means["b"]).confidence_interval()
    assert clear["low"] == pytest.approx(paired.low)


def test_what_saw_more_is_another_race():
    models = gather(
        make_models("samples", (0.5, 0.6, 0.7), "a"),
        make_models("samples", (0.9, 0.9, 0.8), "b", generator_sees="images"),
    )
    assert find_leaders(models).select("sees", "best", "next", "verdict").rows() == [
        ("none", "a", None, "untested"),
        ("images", "b", None, "untested"),
    ]


def test_anchors_of_two_compositions_are_never_paired():
    """Anchors of one name, alike in all but a constant: paired, the difference would be certain."""
    clusters = ["0/1", "0/2", "0/3", "0/4"]
    models = gather(
        make_models("samples", (0.5, 0.6, 0.7, 0.8), "a", clusters=clusters),
        make_models("samples", (0.4, 0.5, 0.6, 0.7), "b", clusters=clusters),
    )
    found, kind = find_contrast(models, ("a", "b"))
    welch = stats.ttest_ind((0.5, 0.6, 0.7, 0.8), (0.4, 0.5, 0.6, 0.7), equal_var=False).confidence_interval()
    assert kind == "anchors"
    assert found.estimate - found.half == pytest.approx(welch.low)


def test_a_contrast_is_over_the_targets_that_both_have():
    models = gather(
        *(make_models("samples", (0.5, 0.6, 0.7), "a", target) for target in ("t", "u", "v")),
        *(make_models("samples", (0.4, 0.5, 0.6), "b", target) for target in ("t", "u")),
        make_models("samples", (0.9, 0.9, 0.9), "b", "w"),
    )
    assert find_contrast(models, ("a", "b"))[0].estimate == pytest.approx(0.1)
    assert find_contrast(models, ("a", "b"), targets=["v"]) is None
    assert find_contrast(models, ("a", "b"), in_distribution=False) is None
    assert find_contrast(models, ("a", "c")) is None
