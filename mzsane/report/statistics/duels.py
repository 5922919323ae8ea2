"""Generated models against every other method, paired: who wins by how much, and what is a tie.

A duel is of samples, or selected ones, and an opponent, for one composition, target and number of fine-tuning epochs.
With three seeds or more the pairs are the means of a seed; with fewer the units are anchors: samples and noise of one
anchor are paired, what has other anchors is not. A difference whose interval holds 0 is a tie; below three units
nothing is tested.

Zero-shot an opponent must not have seen or paid more: neither its `sees` nor its `generator_sees` is beyond what the
generated models saw in all, and it took no more gradient steps. It may have seen or paid less, since whoever loses all
the same has lost. Fine-tuned models have all seen labels and are compared at equal epochs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from mzsane.report.cells import METHODS, SEES, rank_method
from mzsane.report.statistics.intervals import Interval, compare_means, compare_pairs

COPIES = ("anchors", "best_anchor", "best_model", "transfer")  # networks that somebody trained, as they are
_AS_NOVEL = 0.9  # of a sample's novelty, from which on an opponent is as new
GENERATED = ("samples", "selected")
OPPONENTS = tuple(name for name in METHODS if name not in ("zoo", "reconstruction", *GENERATED))
DUEL_SCHEMA = {
    "composition": pl.String,
    "target": pl.String,
    "in_distribution": pl.Boolean,
    "method": pl.String,
    "sees": pl.String,
    "opponent": pl.String,
    "opponent_sees": pl.String,
    "opponent_steps": pl.Int64,
    "finetune_epochs": pl.Int64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "units": pl.Int64,
    "unit_kind": pl.String,
    "verdict": pl.String,
    "novelty": pl.Float64,
    "opponent_novelty": pl.Float64,
}
LEAST_SEEDS = 3  # from which on pairs are of seeds
_SIDE = ("method", "sees", "generator_sees", "gradient_steps")


@dataclass(frozen=True)
class Side:
    """The models of one method for a composition, a target and a number of epochs, of all seeds.

    Attributes:
        method: Where the weights come from.
        sees: What sampling used of the target.
        generator_sees: What the making of the generator used of it.
        steps: Gradient steps a model; 0 for what nobody has counted: training models, which both sides start from.
        novelty: Mean over the models; None where it is not known.
        models: Seed, cluster and accuracy of each.
    """

    method: str
    sees: str
    generator_sees: str
    steps: int
    novelty: float | None
    models: list[tuple[int, object, float]]

    @property
    def sight(self) -> int:
        """What it saw in all, as a place in `SEES`."""
        return max(SEES.index(self.sees), SEES.index(self.generator_sees))

    @property
    def seeds(self) -> set[int]:
        """The seeds that it has models of."""
        return {seed for seed, _, _ in self.models}

    def average_seeds(self) -> dict[int, float]:
        """Return the mean accuracy of each seed."""
        by_seed: dict[int, list[float]] = {}
        for seed, _, accuracy in self.models:
            by_seed.setdefault(seed, []).append(accuracy)
        return {seed: sum(values) / len(values) for seed, values in by_seed.items()}


def match_duels(models: pl.DataFrame) -> pl.DataFrame:
    """Pair samples and selected ones with every opponent that has not seen or paid more.

    Args:
        models: A row a single model: arm, composition, seed, target, in_distribution and the columns of a score.

    Returns:
        A row a duel, with the columns of `DUEL_SCHEMA`. The difference is of accuracies (0 to 1), generated less
        opponent; low and high are null where nothing is tested.
    """
    rows = []
    for cell, one, other in list_pairs(models):
        found, kind = compare_sides(one, other)
        rows.append(
            cell
            | name_duel(one, other)
            | describe_difference(found)
            | {"unit_kind": kind, "novelty": one.novelty, "opponent_novelty": other.novelty}
        )
    return pl.DataFrame(rows, schema=DUEL_SCHEMA)


def compare_sides(one: Side, other: Side) -> tuple[Interval, str]:
    """Return the difference of the accuracies of two sides, and what its units are: `seeds` or `anchors`."""
    own, others = one.average_seeds(), other.average_seeds()
    seeds = sorted(own.keys() & others.keys())
    if len(seeds) >= LEAST_SEEDS:
        return compare_pairs([own[seed] - others[seed] for seed in seeds]), "seeds"
    sides = ([model for model in side.models if model[0] in seeds] for side in (one, other))
    return compare_means(*sides), "anchors"


def classify_difference(low: float | None, high: float | None) -> str:
    """Return `win`, `tie`, `loss`, or `untested` where there is no interval."""
    if low is None or high is None:
        return "untested"
    return "win" if low > 0 else "loss" if high < 0 else "tie"


def describe_difference(found: Interval) -> dict[str, Any]:
    """Return a difference as columns: difference, low, high (null without an interval), units, verdict."""
    known = math.isfinite(found.half)
    low, high = (found.estimate - found.half, found.estimate + found.half) if known else (None, None)
    verdict = classify_difference(low, high)
    return {"difference": found.estimate, "low": low, "high": high, "units": found.units, "verdict": verdict}


def list_pairs(models: pl.DataFrame) -> Iterator[tuple[dict[str, Any], Side, Side]]:
    """Yield what names a cell, a generated side of it and an opponent, in the order of the report."""
    used = models.filter(
        pl.col("accuracy").is_finite(), pl.col("ensemble") == 1, pl.col("method").is_in([*GENERATED, *OPPONENTS])
    )
    names = ("composition", "target", "in_distribution", "finetune_epochs")
    for key, cell in used.group_by(names, maintain_order=True):
        sides = list_sides(cell)
        for one in sides:
            for other in sides:
                named = dict(zip(names, key, strict=True))
                if _may_fight(one, other, named["finetune_epochs"]):
                    yield named, one, other


def list_sides(cell: pl.DataFrame) -> list[Side]:
    """Return the sides of a cell: its models by method, by what these saw and by what they cost."""
    itself = pl.concat_str("seed", "method", "model", separator=" ")
    sides = []
    for _, group in cell.group_by(_SIDE, maintain_order=True):
        first = group.row(0, named=True)
        novelty = group["novelty"].drop_nulls().drop_nans().mean() if "novelty" in group.columns else None
        sides.append(
            Side(
                first["method"],
                first["sees"],
                first["generator_sees"],
                first["gradient_steps"] or 0,
                None if novelty is None else float(novelty),  # type: ignore[arg-type]
                group.select("seed", pl.coalesce("cluster", itself), "accuracy").rows(),
            )
        )
    return sorted(sides, key=lambda side: (rank_method(side.method, side.sees), side.steps))


def _may_fight(one: Side, other: Side, epochs: int) -> bool:
    if one.method not in GENERATED or other.method not in OPPONENTS or not one.seeds & other.seeds:
        return False
    return epochs > 0 or (other.sight <= one.sight and other.steps <= one.steps)


def name_duel(one: Side, other: Side) -> dict[str, Any]:
    """Return the columns that name two sides."""
    return {
        "method": one.method,
        "sees": one.sees,
        "opponent": other.method,
        "opponent_sees": other.sees,
        "opponent_steps": other.steps,
    }


def find_strongest(duels: pl.DataFrame, method: str = "samples", epochs: int = 0) -> pl.DataFrame:
    """Return for each composition and target the duel with the strongest opponent that is as new as the generated ones.

    A copy is as accurate as its original, so that an opponent counts if its novelty is at least 0.9 of theirs; where
    novelty is not known, if it is no trained network as it is.

    Args:
        duels: What `match_duels` returned.
        method: The generated ones.
        epochs: Epochs of fine-tuning; fine-tuned opponents count whatever their novelty.
    """
    known = pl.col("novelty").is_not_null() & pl.col("opponent_novelty").is_not_null()
    as_new = pl.when(known).then(pl.col("opponent_novelty") >= _AS_NOVEL * pl.col("novelty"))
    equal = as_new.otherwise(~pl.col("opponent").is_in(COPIES)) if epochs == 0 else pl.lit(True)
    some = duels.filter(equal, pl.col("method") == method, pl.col("finetune_epochs") == epochs)
    return some.sort("difference", maintain_order=True).unique(
        ["composition", "target"], keep="first", maintain_order=True
    )
