"""What is said of a backbone's training is what its curves hold, and a backbone that has failed is found."""

import math

import polars as pl
import pytest

from mzsane.report.statistics.convergence import (
    CONVERGENCE_SCHEMA,
    describe_convergence,
    describe_failed,
    list_failed,
    measure_convergence,
)


def make_curves(arm="a-s0", composition="a", **metrics):
    """Curves of validations at the steps 100, 200, 300 and 400; a metric is called by its zoo's name after `__`."""
    return pl.DataFrame(
        [
            {"arm": arm, "composition": composition, "seed": 0, "step": 100 * (n + 1), "metric": name, "value": value}
            for name, values in ({"loss": [9.0, 8.0, 7.0, 6.0]} | metrics).items()
            for n, value in enumerate(values)
        ]
    ).with_columns(pl.col("metric").str.replace("__", "/"))


def test_convergence_is_read_from_the_curves():
    curves = make_curves(
        val_r2__x=[0.1, 0.3, 0.4, 0.44],
        val_r2__y=[0.2, 0.4, 0.5, 0.52],
        val_accuracy__x=[0.1, 0.5, 0.7, 0.8],
        val_accuracy_gap__x=[0.8, 0.4, 0.2, 0.1],
    )
    frame = measure_convergence(curves, {"a-s0": 12.5})
    assert dict(frame.schema) == CONVERGENCE_SCHEMA
    (row,) = frame.to_dicts()
    assert (row["steps"], row["passes"], row["failed"]) == (400, 12.5, False)
    assert row["val_r2"] == pytest.approx(0.48)
    assert row["gain_last_quarter"] == pytest.approx(0.03)
    assert row["reconstruction_loss_of_accuracy"] == pytest.approx(0.1)
    assert describe_convergence(frame, ["a"]) == (
        "saw each checkpoint 12 times, reached a validation R2 of 0.48, gained +0.030 of it in the last quarter of "
        "training"
    )


def test_what_was_not_measured_is_not_known():
    (row,) = measure_convergence(make_curves()).to_dicts()
    assert [row[name] for name in ("passes", "val_r2", "gain_last_quarter")] == [None] * 3
    assert not row["failed"]
    once = make_curves(val_r2__x=[0.4]).with_columns(step=pl.lit(400))
    assert measure_convergence(once)["gain_last_quarter"][0] is None


@pytest.mark.parametrize(
    ("metrics", "failed"),
    [
        ({"val_r2__x": [0.4], "val_accuracy__x": [0.3], "val_accuracy_gap__x": [0.5]}, True),
        ({"val_r2__x": [-0.4], "val_accuracy__x": [0.7], "val_accuracy_gap__x": [0.1]}, False),  # it is what it does
        ({"val_r2__x": [-0.1]}, True),
        ({"val_r2__x": [math.nan]}, True),
        ({"val_r2__x": [0.4], "val_r2__y": [-0.2]}, True),  # one zoo is enough
    ],
)
def test_a_failed_backbone_is_found(metrics, failed):
    assert measure_convergence(make_curves(**metrics))["failed"].to_list() == [failed]


def test_failed_backbones_are_named():
    ends = dict.fromkeys("abcde", -1.0) | {"f": 0.5}
    parts = [make_curves(f"{name}-s0", name, val_r2__x=[end]) for name, end in ends.items()]
    frame = measure_convergence(pl.concat(parts))
    assert list_failed(frame) == ["a-s0", "b-s0", "c-s0", "d-s0", "e-s0"]
    assert describe_failed(frame).startswith("The backbones of a-s0, b-s0, c-s0 and 2 more have failed; their numbers")
    assert describe_failed(frame.filter(~pl.col("failed"))) == ""
