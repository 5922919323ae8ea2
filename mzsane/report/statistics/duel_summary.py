"""The duels with each opponent, pooled over compositions and targets, with intervals over what is independent.

The units are compositions, or seeds where there are fewer than three compositions. Where all arms of a seed share the
opponent, as a random initialisation, they are the pairs of a target and a seed too (two-way clustering, Cameron,
Gelbach and Miller 2011): twelve random networks are not forty-eight because four compositions were compared with them.

Suffix: N differences.
"""

import math
from typing import Any

import numpy as np
import polars as pl
from statsmodels.regression.linear_model import OLS

from mzsane.report.statistics.duels import describe_difference, list_pairs, name_duel
from mzsane.report.statistics.intervals import LEAST_UNITS, Interval, measure_interval, t_quantile

SUMMARY_SCHEMA = {
    "method": pl.String,
    "sees": pl.String,
    "opponent": pl.String,
    "opponent_sees": pl.String,
    "opponent_steps": pl.Int64,
    "finetune_epochs": pl.Int64,
    "in_distribution": pl.Boolean,
    "wins": pl.Int64,
    "ties": pl.Int64,
    "losses": pl.Int64,
    "untested": pl.Int64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "units": pl.Int64,
    "units_better": pl.Int64,
    "unit_kind": pl.String,
    "verdict": pl.String,
}
_COUNTS = {"wins": "win", "ties": "tie", "losses": "loss", "untested": "untested"}
_KEY = ("method", "sees", "opponent", "opponent_sees", "opponent_steps", "finetune_epochs", "in_distribution")


def summarise_duels(models: pl.DataFrame, duels: pl.DataFrame) -> pl.DataFrame:
    """Pool the duels with each opponent over compositions and targets, in and out of distribution apart.

    Args:
        models: A row a single model, as for `match_duels`.
        duels: What that returned.

    Returns:
        A row an opponent, method, number of epochs and distribution, with the columns of `SUMMARY_SCHEMA`. Wins, ties
        and losses count cells, a composition with a target; `units_better` of `units` counts independent units.
    """
    differences: dict[tuple, list[dict[str, Any]]] = {}
    for cell, one, other in list_pairs(models):
        key = tuple((cell | name_duel(one, other))[name] for name in _KEY)
        own, others = one.average_seeds(), other.average_seeds()
        for seed in own.keys() & others.keys():
            differences.setdefault(key, []).append(
                {
                    "composition": cell["composition"],
                    "place": f"{cell['target']}/{seed}",
                    "seed": seed,
                    "opponent": others[seed],
                    "difference": own[seed] - others[seed],
                }
            )
    rows = []
    for key, found in differences.items():
        named = dict(zip(_KEY, key, strict=True))
        same = [pl.col(name).eq_missing(value) for name, value in named.items()]
        verdicts = duels.filter(*same)["verdict"].to_list()
        counts = {name: verdicts.count(verdict) for name, verdict in _COUNTS.items()}
        rows.append(named | counts | _pool(pl.DataFrame(found)))
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMA)


def _pool(found: pl.DataFrame) -> dict[str, Any]:
    """Return the mean difference, with an interval over its independent units."""
    shared = (
        found.group_by("place").agg(pl.col("opponent").n_unique(), pl.len().alias("cells")).filter(pl.col("cells") > 1)
    )
    several = found["composition"].n_unique() >= LEAST_UNITS
    if several and len(shared) and (shared["opponent"] == 1).all():
        difference, kind, unit = _pool_shared(found), "targets x seeds", "place"
    else:
        unit = "composition" if several else "seed"
        difference, kind = measure_interval(found["difference"].to_list(), found[unit].to_list()), f"{unit}s"
    by_unit = found.group_by(unit).agg(pl.col("difference").mean())["difference"]
    return describe_difference(difference) | {"units_better": int((by_unit > 0).sum()), "unit_kind": kind}


def _pool_shared(found: pl.DataFrame) -> Interval:
    """Return the mean difference from opponents that arms share, clustered by composition and by target with seed."""
    values_N = found["difference"].to_numpy()
    codes = [found[name].rank("dense").to_numpy().astype(int) for name in ("composition", "place")]
    units = [len(np.unique(code_N)) for code_N in codes]
    if min(units) < LEAST_UNITS:
        return Interval(float(values_N.mean()), math.nan, units[1])
    fit = OLS(values_N, np.ones(len(values_N))).fit()
    # The intersection that two-way clustering takes off can leave less than one way alone, which is not to be trusted.
    ways = [codes[0], codes[1], np.stack(codes, axis=1)]
    errors = [fit.get_robustcov_results("cluster", groups=way).bse[0] for way in ways]
    return Interval(float(values_N.mean()), t_quantile(min(units)) * float(np.nanmax(errors)), units[1])
