"""What is certainly a number is read as one; nothing else is."""

import math
from decimal import Decimal

import pytest

from mzsane.zoo.formats.listing import has_diverged, pick_metrics
from mzsane.zoo.formats.tables import parse_number


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("0.91", 0.91),
        (" 0.91 ", 0.91),
        ("\t.5", 0.5),
        ("91%", 0.91),
        ("91.5 %", 0.915),
        ("0,91", 0.91),
        ("-12,5", -12.5),
        ("0,910", 0.91),
        ("1,5e-3", 0.0015),
        ("1,234,567", 1234567),
        ("1,234.5", 1234.5),
        ("1e-3", 0.001),
        ("+2", 2.0),
        (3, 3.0),
        (Decimal("0.5"), 0.5),
        (10**400, math.inf),
        (-(10**400), -math.inf),
        ("inf", math.inf),
        ("-Infinity", -math.inf),
    ],
)
def test_numbers_are_read(written, number):
    assert parse_number(written) == pytest.approx(number)


@pytest.mark.parametrize("written", [math.nan, "nan", "NaN", " nan "])
def test_nan_stays_nan(written):
    assert math.isnan(parse_number(written))
    metrics = pick_metrics({"train_loss": written, "train_acc": written, "test_acc": 0.5})
    assert math.isnan(metrics["train_loss"])
    assert math.isnan(metrics["generalisation_gap"])
    assert has_diverged(metrics)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "N/A",
        "n/a",
        "-",
        "null",
        "1,234",
        "12,345",
        "1.2.3",
        "1_000",
        "1,2,3",
        "0x10",
        "91%%",
        "%",
        "ok",
        True,
        False,
        None,
        [0.9],
        {"value": 0.9},
        b"0.9",
    ],
)
def test_what_is_no_number_or_can_be_two_is_none(written):
    assert parse_number(written) is None
