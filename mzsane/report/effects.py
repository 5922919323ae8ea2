"""What the size and the diversity of a composition do to its samples: effects with intervals, and in words.

Least squares on the mean accuracies of samples, one for each arm and target: the accuracy is that of its block, a
target with a seed, plus a number for each doubling of the models, each added dataset and each added architecture. So
an effect is at equal values of the other two: of more datasets at an equal number of models. Zero-shot it is at equal
novelty too, where there are measurements enough to tell: bandwidths come in steps, so that the samples of one
composition are nearer to its models than those of another, and nearer ones are more accurate. In and out of
distribution are estimated apart. The measurements are not independent, since an arm is measured on several targets and
a composition with several seeds.
So the interval is a jackknife that leaves out one composition at a time, with Student's t (MacKinnon, Nielsen and Webb
2023, arXiv 2205.03285): it holds for other compositions of the same kind. With too few compositions for that it leaves
out one seed at a time, and holds for these compositions alone.

Suffixes: M measurements, F factors, G groups that are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from mzsane.report.cells import SEES, check_rows, join_names
from mzsane.report.intervals import t_quantile

FACTORS = ("models", "datasets", "architectures")
CHANGES = {
    "models": "doubling the models",
    "datasets": "each added dataset",
    "architectures": "each added architecture",
}
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
_LEAST_MEASUREMENTS = 10  # beyond one a block, for each number that is estimated, where novelty is one of them
_LEAST_SHARE = 1e-9  # of a factor's variance, that must be left when the blocks and the other factors are known


@dataclass(frozen=True)
class Effect:
    """What a change of a factor does to the accuracy of samples.

    Attributes:
        factor: One of `FACTORS`.
        epochs: Epochs of fine-tuning before the accuracy was measured.
        in_distribution: Whether it is about targets whose dataset is among the composition's.
        estimate: Change of accuracy, 0 to 1; None when it cannot be estimated.
        low: Lower end of the 95 % interval; None when there is none.
        high: Upper end.
        over: What the interval leaves out one at a time: `compositions`, `seeds`, or nothing.
        reason: Why there is no estimate; empty when there is one.
        at_equal_novelty: Whether a difference in the novelty of the samples is taken out.
    """

    factor: str
    epochs: int
    in_distribution: bool
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    over: str = ""
    reason: str = ""
    at_equal_novelty: bool = False

    @property
    def verdict(self) -> str:
        """What the interval says of the effect."""
        if self.low is None or self.high is None:
            return "no interval"
        return "it helps" if self.low > 0 else "it harms" if self.high < 0 else "no effect can be told from chance"


def estimate_effects(rows: pl.DataFrame) -> list[Effect]:
    """Estimate the effects on samples, zero-shot and after the most epochs of fine-tuning.

    Args:
        rows: One measurement a row.

    Returns:
        Effects by epochs, factor and distribution, of those factors that vary over the compositions.

    Raises:
        ConfigError: A column is missing.
    """
    rows = check_rows(rows)
    factors = [factor for factor in FACTORS if rows[factor].drop_nulls().n_unique() > 1]
    usable = pl.col("accuracy_mean").is_finite() & pl.all_horizontal(pl.col(*FACTORS).is_not_null())
    samples = rows.filter((pl.col("method") == "samples") & (pl.col("ensemble") == 1) & usable)
    effects = []
    for epochs in sorted({0, *samples["finetune_epochs"].top_k(1)} & set(samples["finetune_epochs"])):
        scored = samples.filter(finetune_epochs=epochs)
        seen = [sees for sees in SEES if sees in scored["sees"]][:1]
        for factor in factors:
            for inside in (True, False):
                part = scored.filter(pl.col("in_distribution") == inside, pl.col("sees").is_in(seen))
                effects.append(_estimate(part, factor, factors, epochs, inside))
    return effects


def _estimate(part: pl.DataFrame, factor: str, factors: Sequence[str], epochs: int, inside: bool) -> Effect:
    known = _tells_novelty(part, factors)
    others = [other for other in factors if other != factor] + ["novelty_mean"] * known
    effect = partial(Effect, factor, epochs, inside, at_equal_novelty=known)
    estimate = _fit(part, factor, others)
    if estimate is None:
        return effect(reason=_find_reason(part, factor, factors))
    for over, column in (("compositions", "composition"), ("seeds", "seed")):
        groups = part[column].unique(maintain_order=True)
        left = [_fit(part.filter(pl.col(column) != group), factor, others) for group in groups]
        found_G = np.array([value for value in left if value is not None])
        if len(groups) > 1 and len(found_G) == len(groups):
            spread = np.sqrt((len(groups) - 1) / len(groups) * ((found_G - found_G.mean()) ** 2).sum())
            half = t_quantile(len(groups)) * float(spread)
            return effect(estimate, estimate - half, estimate + half, over)
    return effect(estimate)


def _tells_novelty(part: pl.DataFrame, factors: Sequence[str]) -> bool:
    """Tell whether the novelty of all samples is known, and its share in their accuracy can be estimated."""
    spare = len(part) - part.select("target", "seed").n_unique()
    enough = spare >= _LEAST_MEASUREMENTS * (len(factors) + 1)
    return enough and bool(part["novelty_mean"].is_finite().fill_null(False).all())


def _fit(part: pl.DataFrame, factor: str, others: Sequence[str]) -> float | None:
    """Return the least-squares coefficient of a factor at equal others; None if these do not determine it."""
    accuracy_M, own_M, *others_FM = _center(part, ["accuracy_mean", factor, *others])
    others_MF = np.stack(others_FM, axis=1) if others_FM else np.empty((len(own_M), 0))
    # What is left of the factor when the others are known carries its coefficient (Frisch, Waugh and Lovell).
    alone_M = own_M - others_MF @ np.linalg.lstsq(others_MF, own_M, rcond=None)[0] if others_MF.size else own_M
    if alone_M @ alone_M <= _LEAST_SHARE * max(len(part), 1):
        return None
    return float(alone_M @ accuracy_M / (alone_M @ alone_M))


def _center(part: pl.DataFrame, columns: Sequence[str]) -> list[np.ndarray]:
    """Return columns, models as their logarithm to base 2, less their means over the block."""
    values = part.select("target", "seed", *columns).with_columns(pl.col(*columns).cast(pl.Float64))
    if "models" in columns:
        values = values.with_columns(pl.col("models").log(2))
    centred = values.select((pl.col(name) - pl.col(name).mean().over("target", "seed")).alias(name) for name in columns)
    return [centred[name].to_numpy() for name in columns]


def _find_reason(part: pl.DataFrame, factor: str, factors: Sequence[str]) -> str:
    if part.is_empty():
        return "no target is scored there"
    if (part.group_by("target", "seed").agg(pl.col(factor).n_unique())[factor] == 1).all():
        return f"no target has compositions there that differ in their number of {factor}"
    others = join_names([other for other in factors if other != factor])
    return f"the number of {factor} varies only together with that of {others}"


def describe_effects(rows: pl.DataFrame) -> str:
    """Say in one paragraph what size and diversity do.

    Args:
        rows: One measurement a row.

    Raises:
        ConfigError: A column is missing.
    """
    rows = check_rows(rows)
    effects = estimate_effects(rows)
    same = [_describe_constant(rows, factor) for factor in FACTORS if rows[factor].drop_nulls().n_unique() == 1]
    if not effects:
        why = f"all compositions have {join_names(same)}" if len(same) == len(FACTORS) else "no samples were scored"
        return f"Size and diversity of the composition: {why}, so that no effect can be estimated."
    sentences = [_describe_factor(effects, factor) for factor in dict.fromkeys(effect.factor for effect in effects)]
    if same:
        sentences.append(f"All compositions have {join_names(same)}.")
    over = {effect.over for effect in effects}
    if "compositions" in over:
        sentences.append("An interval is 95 %, over compositions: one that includes 0 tells no effect from chance.")
    if "seeds" in over:
        sentences.append("Where it is over seeds, it says nothing of other compositions of the same size and number.")
    if any(effect.verdict == "no interval" for effect in effects if not effect.reason):
        sentences.append("No interval: there are too few compositions and seeds to tell an effect from chance.")
    return f"Size and diversity of the composition: {' '.join(sentences)}"


def name_stage(effects: Sequence[Effect]) -> str:
    """Return when effects of the same epochs were estimated: `zero-shot, at equal novelty`, `after 1 epoch of ...`."""
    epochs = effects[0].epochs
    stage = f"after {epochs} epoch{'s' * (epochs > 1)} of fine-tuning" if epochs else "zero-shot"
    return stage + ", at equal novelty" * all(effect.at_equal_novelty for effect in effects)


def _describe_constant(rows: pl.DataFrame, factor: str) -> str:
    count = rows[factor].drop_nulls()[0]
    return f"{count} {factor if count != 1 else factor.removesuffix('s')}"


def _describe_factor(effects: Sequence[Effect], factor: str) -> str:
    of_factor = [effect for effect in effects if effect.factor == factor]
    found = [effect for effect in of_factor if effect.estimate is not None]
    text = f"{CHANGES[factor].capitalize()} changes the accuracy of samples"
    stages = []
    for epochs in dict.fromkeys(effect.epochs for effect in found):
        estimates = [effect for effect in found if effect.epochs == epochs]
        stage = name_stage(estimates)
        found_there = join_names([_describe_estimate(effect) for effect in estimates])
        stages.append(f"{stage}{',' * (',' in stage)} {found_there}")
    sentences = [f"{text} {'; '.join(stages)}."] if stages else []
    for reason in dict.fromkeys(effect.reason for effect in of_factor if effect.reason):
        places = {effect.in_distribution for effect in of_factor if effect.reason == reason}
        where = f" {name_place(places.pop())}" if len(places) == 1 else ""
        sentences.append(f"What {CHANGES[factor]} does{where} cannot be estimated: {reason}.")
    return " ".join(sentences)


def _describe_estimate(effect: Effect) -> str:
    assert effect.estimate is not None
    text = f"by {_format_points(effect.estimate)} points {name_place(effect.in_distribution)}"
    if effect.low is None or effect.high is None:
        return f"{text} ({effect.verdict})"
    where = " over seeds" * (effect.over == "seeds")
    return f"{text} ({_format_points(effect.low)} to {_format_points(effect.high)}{where}: {effect.verdict})"


def name_place(inside: bool) -> str:
    """Return whether targets are inside the composition's distribution, in words."""
    return "in distribution" if inside else "out of distribution"


def _format_points(change: float) -> str:
    """Return a change of accuracy in percentage points, such as `+1.2`."""
    points = 100 * change
    return f"{points:+.1f}" if abs(points) >= 0.095 else f"{points:+.2f}".replace("-0.00", "+0.00")
