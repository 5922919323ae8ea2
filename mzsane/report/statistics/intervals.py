"""95 % confidence intervals of means and differences whose numbers come in clusters.

Samples of ten anchors are ten independent units, not a hundred numbers: what the samples of an anchor share must not be
counted as often as there are samples. The variance is the cluster-robust one with the small-sample correction CR2 (Bell
and McCaffrey 2002; Pustejovsky and Tipton 2018, arXiv 1601.01981), which has no bias when clusters differ in size; the
quantile is Student's with the clusters less one. Below three units there is no interval: with two the quantile
alone is 12.7 standard errors.

Suffix: N values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.special import stdtrit

LEVEL = 0.95
LEAST_UNITS = 3


@dataclass(frozen=True)
class Interval:
    """A mean, or a difference of two, and how well it is known.

    Attributes:
        estimate: The mean or difference.
        half: Half of its 95 % interval; NaN below three units.
        units: Independent units behind it; of a difference those of the side that has fewer.
    """

    estimate: float
    half: float
    units: int


def t_quantile(count: float) -> float:
    """Return half of the confidence interval of what so many units estimate, in standard errors; NaN below three."""
    return float(stdtrit(count - 1, (1 + LEVEL) / 2)) if count >= LEAST_UNITS else math.nan


def t_factors(counts: pl.Series) -> pl.Series:
    """Return half of the confidence interval of a mean of so many independent values, in units of their deviation.

    NaN for less than three values.
    """
    return pl.Series([t_quantile(count) / math.sqrt(count or 1) for count in counts], dtype=pl.Float64)


def measure_interval(values: Sequence[float], clusters: Sequence[object]) -> Interval:
    """Return the mean of values, with its clustered interval.

    Args:
        values: Finite numbers.
        clusters: What independent unit each goes back to; None for a value that stands for itself.
    """
    units = (place if cluster is None else (cluster,) for place, cluster in enumerate(clusters))
    mean, deviation = _spread_over_clusters([(None, *pair) for pair in zip(units, values, strict=True)])
    half = t_quantile(len(deviation)) * math.sqrt(sum(value**2 for value in deviation.values()))
    return Interval(mean, half, len(deviation))


def compare_means(
    first: Sequence[tuple[object, object, float]], second: Sequence[tuple[object, object, float]]
) -> Interval:
    """Return the difference of two means over cells, with its clustered interval.

    Each side is the mean of its cells' means. Values of both sides in one cluster are paired: what they share cancels
    in the difference of the cluster. Where the clusters are the same on both sides the degrees of freedom are the
    clusters less one, else Welch's and Satterthwaite's.

    Args:
        first: Cell (a seed, a target), cluster and value of each of the first side's models.
        second: The same of the second's.
    """
    deviations: list[dict[object, float]] = []
    means = []
    for side in (first, second):
        mean, deviation = _spread_over_clusters(side)
        means.append(mean)
        deviations.append(deviation)
    units = min(map(len, deviations))
    estimate = means[0] - means[1]
    if units < LEAST_UNITS:
        return Interval(estimate, math.nan, units)
    one, other = deviations
    variance = sum((one.get(cluster, 0.0) - other.get(cluster, 0.0)) ** 2 for cluster in one.keys() | other.keys())
    if one.keys() == other.keys():
        freedom = float(units - 1)
    else:
        parts = [sum(value**2 for value in side.values()) for side in deviations]
        spread = sum(part**2 / (len(side) - 1) for part, side in zip(parts, deviations, strict=True))
        freedom = sum(parts) ** 2 / spread if spread > 0 else float(units - 1)
    return Interval(estimate, t_quantile(freedom + 1) * math.sqrt(variance), units)


def compare_pairs(differences: Sequence[float]) -> Interval:
    """Return the mean of the differences of independent pairs, with Student's interval."""
    values_N = np.asarray(differences, dtype=float)
    count = len(values_N)
    half = t_quantile(count) * float(values_N.std(ddof=1)) / math.sqrt(count) if count >= LEAST_UNITS else math.nan
    return Interval(float(values_N.mean()) if count else math.nan, half, count)


def _spread_over_clusters(side: Sequence[tuple[object, object, float]]) -> tuple[float, dict[object, float]]:
    """Return the mean of the cells' means, and each cluster's part in its deviation, corrected by CR2.

    With a mean for each cell the hat matrix of a cluster is block-diagonal over cells, so that the correction of a
    cluster in a cell is one number, its share of the cell's values.
    """
    cells: dict[object, dict[object, list[float]]] = {}
    for cell, cluster, value in side:
        cells.setdefault(cell, {}).setdefault(cluster, []).append(value)
    mean = 0.0
    deviations: dict[object, float] = {}
    for clusters in cells.values():
        count = sum(map(len, clusters.values()))
        level = sum(map(sum, clusters.values())) / count
        mean += level / len(cells)
        for cluster, values in clusters.items():
            left = 1 - len(values) / count
            own = (sum(values) - len(values) * level) / count / math.sqrt(left) if left > 0 else math.nan
            deviations[cluster] = deviations.get(cluster, 0.0) + own / len(cells)
    return mean, deviations
