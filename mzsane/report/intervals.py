"""Confidence intervals of means (Student's t)."""

import math

import polars as pl
from scipy.special import stdtrit

LEVEL = 0.95


def t_quantile(count: int) -> float:
    """Return half of the confidence interval of what so many values (two or more) estimate, in standard errors."""
    return float(stdtrit(count - 1, (1 + LEVEL) / 2))


def t_factors(counts: pl.Series) -> pl.Series:
    """Return half of the confidence interval of a mean of so many values, in units of their deviation.

    NaN for less than two values.
    """
    factors = [t_quantile(count) / math.sqrt(count) if count > 1 else math.nan for count in counts]
    return pl.Series(factors, dtype=pl.Float64)
