"""What the size and the diversity of a composition do to the accuracy of its samples: effects with intervals.

The *total* effect is what the change does in all, by whatever way: least squares on the mean accuracies of samples, one
for each arm and target, which are that of their block (a target with a seed) plus a number for each doubling of the
models, each added dataset and each added architecture. So an effect is at equal values of the other two. In and out of
distribution are estimated apart.

Beside it, where it can be estimated, stands the *adjusted* effect, with the samples' novelty as one more regressor. It
is a direct effect: novelty is a consequence of the composition (a backbone that reconstructs worse makes samples that
are farther away), and what the composition does through it is taken out. It answers another question than the total
effect, may have the other sign, and is never shown alone.

The measurements are not independent: an arm is measured on several targets, a composition with several seeds. So the
interval is a jackknife that leaves out one composition at a time (CV3), with Student's t (MacKinnon, Nielsen and Webb
2023, arXiv 2205.03285). In simulations of 6 to 21 compositions with luck of their own it held the truth in 94 to 96 %,
where CR2 did in 88 to 95 and CR1 in 78 to 93. It holds for other compositions of the same kind, of these zoos. With too
few compositions it leaves out one seed at a time, and holds for these compositions alone; below three units there is
none.

Suffixes: M measurements, F regressors, B blocks, G groups that are left out.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import polars as pl

from mzsane.report.cells import SEES, check_rows, join_names
from mzsane.report.statistics.intervals import LEAST_UNITS, t_quantile
from mzsane.report.words import PLACES

FACTORS = ("models", "datasets", "architectures")
CHANGES = {
    "models": "doubling the models",
    "datasets": "each added dataset",
    "architectures": "each added architecture",
}
TOTAL, ADJUSTED = "total", "adjusted"
EFFECT_SCHEMA = {
    "factor": pl.String,
    "epochs": pl.Int64,
    "in_distribution": pl.Boolean,
    "kind": pl.String,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "units": pl.Int64,
    "over": pl.String,
    "reason": pl.String,
    "label": pl.String,
}
_GROUPS = {"compositions": "composition", "seeds": "seed"}  # what an interval leaves out one at a time
_LEAST_SHARE = 1e-9  # of a factor's variance, that must be left when the blocks and the other factors are known


@dataclass(frozen=True)
class Effect:
    """What a change of a factor does to the accuracy of samples.

    Attributes:
        factor: One of `FACTORS`.
        epochs: Epochs of fine-tuning before the accuracy was measured.
        in_distribution: Whether it is about targets whose dataset is among the composition's.
        kind: `total`, or `adjusted` for the samples' novelty.
        estimate: Change of accuracy, 0 to 1; None when it cannot be estimated.
        low: Lower end of the 95 % interval; None when there is none.
        high: Upper end.
        units: How many units the interval leaves out, one at a time; 0 without one.
        over: What these units are: `compositions`, `seeds`, or nothing.
        reason: Why there is no estimate; empty when there is one.
    """

    factor: str
    epochs: int
    in_distribution: bool
    kind: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    units: int = 0
    over: str = ""
    reason: str = ""

    @property
    def label(self) -> str:
        """What the number is, in words that keep the two kinds apart."""
        if self.kind == ADJUSTED:
            return f"direct effect of {CHANGES[self.factor]}, given novelty"
        return f"total effect of {CHANGES[self.factor]}"

    @property
    def verdict(self) -> str:
        """What the interval says of the effect."""
        if self.low is None or self.high is None:
            return "no interval"
        return "it helps" if self.low > 0 else "it harms" if self.high < 0 else "no effect can be told from chance"


@dataclass(frozen=True)
class _Data:
    """Measurements as arrays: accuracies, regressors (the one that is asked about first), and codes of groups."""

    accuracy_M: np.ndarray
    regressors_MF: np.ndarray
    blocks_M: np.ndarray
    groups: dict[str, np.ndarray]  # for `compositions` and `seeds` the number of each measurement's group

    def keep(self, kept_M: np.ndarray) -> "_Data":
        return _Data(
            self.accuracy_M[kept_M],
            self.regressors_MF[kept_M],
            self.blocks_M[kept_M],
            {name: codes_M[kept_M] for name, codes_M in self.groups.items()},
        )


def estimate_effects(
    rows: pl.DataFrame,
    method: str = "samples",
    epochs: int | None = None,
    targets: Collection[str] = (),
    failed: Collection[str] = (),
) -> list[Effect]:
    """Estimate the effects of all factors that vary over the compositions.

    Args:
        rows: One measurement a row.
        method: Whose accuracy.
        epochs: After how many epochs of fine-tuning; zero-shot and after the most there are, if not given.
        targets: On which targets; on all if empty.
        failed: Arms that are left out.

    Returns:
        Effects by epochs, factor and distribution; after each total effect of samples as they are the adjusted one.

    Raises:
        ConfigError: A column is missing.
    """
    rows = check_rows(rows)
    factors = [factor for factor in FACTORS if rows[factor].drop_nulls().n_unique() > 1]
    # A factor that is known of no composition cannot be told from the rest; one that is known of some tells on these.
    known = [factor for factor in FACTORS if rows[factor].drop_nulls().len()]
    usable = pl.col("accuracy_mean").is_finite() & pl.all_horizontal(pl.col(*known).is_not_null())
    samples = rows.filter((pl.col("method") == method) & (pl.col("ensemble") == 1) & usable)
    samples = samples.filter(~pl.col("arm").is_in(list(failed)))
    if targets:
        samples = samples.filter(pl.col("target").is_in(list(targets)))
    stages = sorted({0, *samples["finetune_epochs"].top_k(1)} & set(samples["finetune_epochs"]))
    effects = []
    for stage in stages if epochs is None else [epochs]:
        scored = samples.filter(finetune_epochs=stage)
        seen = [sees for sees in SEES if sees in scored["sees"]][:1]
        for factor in factors:
            for inside in (True, False):
                part = scored.filter(pl.col("in_distribution") == inside, pl.col("sees").is_in(seen))
                effect = Effect(factor, stage, inside, TOTAL)
                effects.append(_estimate_total(part, effect, factors))
                if stage == 0 and effects[-1].estimate is not None:
                    effects.append(_estimate_adjusted(part, replace(effect, kind=ADJUSTED), factors))
    return effects


def to_frame(effects: Sequence[Effect]) -> pl.DataFrame:
    """Return effects as a frame with the columns of `EFFECT_SCHEMA`."""
    return pl.DataFrame([asdict(effect) | {"label": effect.label} for effect in effects], schema=EFFECT_SCHEMA)


def name_place(inside: bool | None) -> str:
    """Return whether targets are inside the composition's distribution, in words."""
    return PLACES[inside]


def _estimate_total(part: pl.DataFrame, effect: Effect, factors: Sequence[str]) -> Effect:
    found = _estimate(_gather(part, effect.factor, factors, adjusted=False), effect)
    return replace(effect, reason=_find_reason(part, effect.factor, factors)) if found is None else found


def _estimate_adjusted(part: pl.DataFrame, effect: Effect, factors: Sequence[str]) -> Effect:
    if not part["novelty_mean"].is_finite().all():
        return replace(effect, reason="the novelty of some samples is not known")
    found = _estimate(_gather(part, effect.factor, factors, adjusted=True), effect)
    if found is None:
        return replace(effect, reason=f"the samples' novelty varies only together with the number of {effect.factor}")
    # With as many unknowns as it takes, the fit goes through the points whatever novelty does.
    if found.over != "compositions":
        return replace(effect, reason="there are too few compositions to tell what novelty does")
    return found


def _gather(part: pl.DataFrame, factor: str, factors: Sequence[str], adjusted: bool) -> _Data:
    names = [factor, *(other for other in factors if other != factor), *["novelty_mean"] * adjusted]
    columns = [part[name].cast(pl.Float64).to_numpy() for name in names]
    columns = [np.log2(column) if name == "models" else column for name, column in zip(names, columns, strict=True)]
    blocks = part.select(pl.struct("target", "seed").rank("dense") - 1).to_series()
    groups = {over: part[column].rank("dense").to_numpy() for over, column in _GROUPS.items()}
    return _Data(part["accuracy_mean"].to_numpy(), np.stack(columns, axis=1), blocks.to_numpy(), groups)


def _estimate(data: _Data, effect: Effect) -> Effect | None:
    estimate = _fit(data)
    if estimate is None:
        return None
    for over, codes_M in data.groups.items():
        groups = np.unique(codes_M)
        found = [_fit(data.keep(codes_M != group)) for group in groups]
        left_G = np.array([value for value in found if value is not None])
        if len(groups) >= LEAST_UNITS and len(left_G) == len(groups):
            deviation = np.sqrt((len(groups) - 1) / len(groups) * ((left_G - left_G.mean()) ** 2).sum())
            half = t_quantile(len(groups)) * float(deviation)
            return replace(
                effect, estimate=estimate, low=estimate - half, high=estimate + half, units=len(groups), over=over
            )
    return replace(effect, estimate=estimate)


def _fit(data: _Data) -> float | None:
    """Return the least-squares coefficient of the first regressor; None if the others and the blocks hide it."""
    if not len(data.blocks_M):
        return None
    values = np.column_stack([data.accuracy_M, data.regressors_MF])
    member_MB = data.blocks_M[:, None] == np.unique(data.blocks_M)
    values = values - member_MB @ ((member_MB.T @ values) / member_MB.sum(axis=0)[:, None])
    accuracy_M, own_M, others_MF = values[:, 0], values[:, 1], values[:, 2:]
    # What is left of the factor when the others are known carries its coefficient (Frisch, Waugh and Lovell).
    alone_M = own_M - others_MF @ np.linalg.lstsq(others_MF, own_M, rcond=None)[0] if others_MF.size else own_M
    if alone_M @ alone_M <= _LEAST_SHARE * len(own_M):
        return None
    return float(alone_M @ accuracy_M / (alone_M @ alone_M))


def _find_reason(part: pl.DataFrame, factor: str, factors: Sequence[str]) -> str:
    if part.is_empty():
        return "no target is scored there"
    if (part.group_by("target", "seed").agg(pl.col(factor).n_unique())[factor] == 1).all():
        return f"no target has compositions there that differ in their number of {factor}"
    others = join_names([other for other in factors if other != factor])
    return f"the number of {factor} varies only together with that of {others}"
