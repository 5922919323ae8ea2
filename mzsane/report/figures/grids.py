"""The page's grids of compositions and targets: accuracies, and duels with what sees and costs as much."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from mzsane.report.answers import format_interval, format_points
from mzsane.report.statistics.duels import find_strongest
from mzsane.report.statistics.effects import name_place
from mzsane.report.words import name_epochs, name_method, name_sees

SYMBOLS = {"win": "▲", "tie": "=", "loss": "▼", "untested": "?"}
_STRONG = 0.15  # a difference of accuracies from which on a duel's colour is as strong as it gets
_LEADER = ("method", "finetune_epochs", "seen", "target", "composition")
_UNIT_KINDS = {"anchors": "anchors", "seeds": "seeds of the backbone"}


@dataclass(frozen=True)
class AccuracyCell:
    """An accuracy in the grid: its text, places in percent of the cell's width, and a hint."""

    text: str
    half: str
    value: float
    low: float
    high: float
    mark: float | None
    best: bool
    inside: bool
    hint: str


@dataclass(frozen=True)
class AccuracyView:
    """One method's accuracies: a row a composition, a cell (or None) a target."""

    label: str
    rows: list[tuple[str, list[AccuracyCell | None]]]


@dataclass(frozen=True)
class DuelCell:
    """A duel in the grid: its verdict, its text, how strong its colour is (0 to 1), and a hint."""

    verdict: str
    text: str
    strength: float
    inside: bool
    hint: str

    @property
    def symbol(self) -> str:
        """The verdict for those who cannot see colours."""
        return SYMBOLS[self.verdict]


@dataclass(frozen=True)
class DuelCard:
    """All duels with one opponent: a row a composition, a cell (or None) a target.

    Attributes:
        opponent: Its name with its gradient steps.
        saw: What the opponent saw of the target, in words.
        counts: Cells by verdict.
        pooled: What all cells say together, in and out of distribution.
        targets: The columns.
        rows: Compositions with their cells.
    """

    opponent: str
    saw: str
    counts: dict[str, int]
    pooled: list[str]
    targets: list[str]
    rows: list[tuple[str, list[DuelCell | None]]]


@dataclass(frozen=True)
class DuelGroup:
    """The duels of one generated method at one number of epochs: a card an opponent."""

    title: str
    cards: list[DuelCard]


def list_views(cells: pl.DataFrame, leaders: pl.DataFrame) -> list[AccuracyView]:
    """Return the accuracies of every method, zero-shot samples that have seen the least first.

    Args:
        cells: As of `pooling.pool_seeds`.
        leaders: `leaders.LEADER_SCHEMA`, or empty: the best compositions, of which those are marked that a test tells
            from the next.
    """
    compositions, targets = list_compositions(cells), cells["target"].unique(maintain_order=True).to_list()
    marks = dict(
        cells.filter(method="zoo", finetune_epochs=0, ensemble=1)
        .group_by("target")
        .agg(pl.col("accuracy").mean())
        .rows()
    )
    first = (pl.col("method") != "samples") | (pl.col("ensemble") > 1)
    keys = ("ensemble", "finetune_epochs", "name", "sees", "images_per_class")
    told = set()
    if not leaders.is_empty():
        won = leaders.filter(verdict="win").select("method", "finetune_epochs", "sees", "target", "best")
        told = set(won.rows())
    views = []
    for _, group in cells.sort(first, maintain_order=True).group_by(keys, maintain_order=True):
        found = {(row["composition"], row["target"]): row for row in group.iter_rows(named=True)}
        top = next(iter(found.values()))
        label = f"{top['name']}, {top['stage']}, {name_sees(top['sees'])}"
        label += f", ensemble of {top['ensemble']}" * (top["ensemble"] > 1)
        label += f", {top['images_per_class']} images a class" * (top["images_per_class"] is not None)
        rows = [
            (name, [_make_accuracy(found.get((name, target)), marks.get(target), told) for target in targets])
            for name in compositions
        ]
        views.append(AccuracyView(label, rows))
    return views


def list_compositions(frame: pl.DataFrame) -> list[str]:
    """Return a frame's compositions in the order in which they first appear."""
    return frame["composition"].unique(maintain_order=True).to_list()


def _make_accuracy(row: dict | None, mark: float | None, told: set) -> AccuracyCell | None:
    if row is None:
        return None
    accuracy, half = row["accuracy"], row["interval"]
    low, high = (max(0.0, min(1.0, accuracy + sign * (half or 0.0))) for sign in (-1, 1))
    lines = [f"{row['composition']} on {row['target']}, {name_place(row['in_distribution'])}"]
    text = f"{row['name']}: {accuracy:.3f}"
    if half is None:
        lines += [text, "no interval: fewer than three independent networks or seeds"]
    else:
        lines += [f"{text}, 95 % {low:.3f} to {high:.3f}", f"over {row['units']} {row['unit_kind']}"]
    if mark is not None:
        lines.append(f"trained models: {mark:.3f}")
    best = row["ensemble"] == 1 and tuple(row[name] for name in _LEADER) in told
    if best:
        lines.append("best of its target: a test tells it from the next composition that has seen as much")
    if row["novelty"] is not None:
        lines.append(f"novelty {row['novelty']:.2f}")
    return AccuracyCell(
        f"{accuracy:.3f}",
        "" if half is None else f"±{half:.3f}".replace("±0", "±"),
        100 * accuracy,
        100 * low,
        100 * high,
        None if mark is None else 100 * mark,
        best,
        row["in_distribution"] is True,
        "\n".join(lines),
    )


def list_duels(
    duels: pl.DataFrame, summary: pl.DataFrame, compositions: Sequence[str], targets: Sequence[str]
) -> list[DuelGroup]:
    """Return the duels by method and number of epochs, a card an opponent.

    Args:
        duels: `duels.DUEL_SCHEMA`.
        summary: `duels.SUMMARY_SCHEMA`, or empty.
        compositions: The rows of a card, as far as they have a duel.
        targets: The columns of a card, as far as they have a duel.
    """
    if duels.is_empty():
        return []
    steps = pl.col("opponent_steps").fill_null(0)
    groups = []
    keys = ("method", "finetune_epochs", "sees")
    for (method, epochs, sees), group in duels.with_columns(opponent_steps=steps).group_by(keys, maintain_order=True):
        cards = []
        strongest = find_strongest(group, str(method), int(epochs))
        if len(strongest) and group["opponent"].n_unique() > 1:
            name = "the strongest" if epochs else "the strongest that is as new"  # fine-tuning makes anything new
            cards.append(_make_card(name, "", [], strongest, compositions, targets))
        for key, own in group.group_by("opponent", "opponent_sees", "opponent_steps", maintain_order=True):
            pooled = _describe_pooled(summary, method, epochs, sees, *key)
            name = name_method(str(key[0]), key[2])
            cards.append(_make_card(name, name_sees(str(key[1])), pooled, own, compositions, targets))
        groups.append(DuelGroup(f"{method}, {name_epochs(epochs)}, {name_sees(str(sees))}", cards))
    return groups


def _make_card(
    opponent: str,
    saw: str,
    pooled: list[str],
    duels: pl.DataFrame,
    compositions: Sequence[str],
    targets: Sequence[str],
) -> DuelCard:
    found = {(row["composition"], row["target"]): row for row in duels.iter_rows(named=True)}
    shown = [name for name in targets if name in duels["target"]]
    rows = [
        (name, [_make_duel(found.get((name, target))) for target in shown])
        for name in compositions
        if name in duels["composition"]
    ]
    counts = {name: duels.filter(verdict=name).height for name in SYMBOLS}
    return DuelCard(opponent, saw, counts, pooled, shown, rows)


def _describe_pooled(summary: pl.DataFrame, *key: Any) -> list[str]:
    """Return lines such as `▲ in distribution +4.1 points (95 %: +2.0 to +6.2, 21 compositions)`."""
    if summary.is_empty():
        return []
    names = ("method", "finetune_epochs", "sees", "opponent", "opponent_sees")
    same = [pl.col(name) == value for name, value in zip(names, key, strict=False)]
    found = summary.filter(*same, pl.col("opponent_steps").fill_null(0) == key[-1])
    return [
        f"{SYMBOLS[row['verdict']]} {name_place(row['in_distribution'])}: {format_points(row['difference'])} points "
        + format_interval(row["low"], row["high"], row["units"], row["unit_kind"])
        for row in found.iter_rows(named=True)
    ]


def _make_duel(row: dict | None) -> DuelCell | None:
    if row is None or row["difference"] is None or not math.isfinite(row["difference"]):
        return None
    opponent = name_method(row["opponent"], row["opponent_steps"])
    lines = [
        f"{row['composition']} on {row['target']}, {name_place(row['in_distribution'])}",
        f"{row['method']} less {opponent}: {format_points(row['difference'])} points",
    ]
    units = f"{row['units']} {_UNIT_KINDS.get(row['unit_kind'], row['unit_kind'])}"
    if row["verdict"] == "untested":
        lines.append(f"not tested: {units}, and a test needs three")
    else:
        interval = f"95 % {format_points(row['low'])} to {format_points(row['high'])}"
        lines.append(f"{row['verdict']}: {interval}, over {units}")
    if row.get("novelty") is not None and row.get("opponent_novelty") is not None:
        lines.append(f"novelty {row['novelty']:.2f} against {row['opponent_novelty']:.2f}")
    strength = min(1.0, abs(row["difference"]) / _STRONG)
    return DuelCell(
        row["verdict"], format_points(row["difference"]), strength, row["in_distribution"] is True, "\n".join(lines)
    )
