"""What the measurements say, in plain sentences computed from them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import polars as pl

from mzsane.report.cells import Cell, average_seeds, check_rows, format_accuracy, join_names, list_names, rank_method
from mzsane.report.effects import describe_effects, name_place

TRIVIAL = ("transfer", "anchors", "best_anchor", "anchor_noise", "interpolation", "average", "statistics")
GENERATED = ("samples", "selected")


@dataclass(frozen=True)
class Findings:
    """The summary of an ablation.

    Attributes:
        overall: Sentences on all targets together.
        by_target: Sentences on each target.
    """

    overall: list[str]
    by_target: dict[str, list[str]]


@dataclass(frozen=True)
class ScoredCell(Cell):
    """A cell with an accuracy."""

    accuracy: float


@dataclass(frozen=True)
class Duel:
    """A generated cell against another method on the same target, composition and epochs of fine-tuning."""

    cell: ScoredCell
    opponent: ScoredCell

    @property
    def verdict(self) -> str:
        """How the generated cell compares."""
        difference = self.cell.accuracy - self.opponent.accuracy
        return "equal to" if difference == 0 else "better than" if difference > 0 else "worse than"


def match_duels(cells: Sequence[ScoredCell], opponents: Sequence[str], equal_sees: bool) -> list[Duel]:
    """Pair every generated cell with every opponent that was scored under the same conditions.

    Args:
        cells: Cells of any methods.
        opponents: Methods to compare with.
        equal_sees: Whether the opponent must have seen the same of the target (fine-tuned networks all saw labels).
    """
    return [
        Duel(cell, other)
        for cell in cells
        for other in cells
        if cell.method in GENERATED
        and other.method in opponents
        and (cell.target, cell.composition, cell.epochs) == (other.target, other.composition, other.epochs)
        and (cell.sees == other.sees or not equal_sees)
    ]


def count_compositions(names: Sequence[str], total: int) -> str:
    """Return `with digits`, `with all 4 compositions`, or `with digits and letters (2 of 4)`."""
    if total == 1:
        return f"with {names[0]}"
    if len(names) == total:
        return f"with all {total} compositions"
    return f"with {join_names(names)} ({len(names)} of {total})"


def describe_duels(duels: Sequence[Duel]) -> str:
    """Return e.g. `better than average with all 4 compositions; worse than anchors with digits (1 of 4)`."""

    def key(duel: Duel) -> tuple:
        return rank_method(duel.opponent.method, duel.opponent.sees), duel.verdict

    parts = []
    totals = {name: sum(d.opponent.method == name for d in duels) for name in {d.opponent.method for d in duels}}
    for (_, verdict), matched in groupby(sorted(duels, key=key), key):
        group = list(matched)
        method = group[0].opponent.method
        names = [duel.cell.composition for duel in group]
        parts.append(f"{verdict} {method} {count_compositions(names, totals[method])}")
    return "; ".join(parts)


def is_tied(best: ScoredCell, second: ScoredCell) -> bool:
    """Tell whether the lead of the best composition is within the spread over seeds, where that is known."""
    if min(best.seeds, second.seeds) < 2 or best.spread is None or second.spread is None:
        return False
    return best.accuracy - second.accuracy <= max(best.spread, second.spread)


def describe_best(cells: Sequence[ScoredCell]) -> str:
    """Return which of the compositions is best, by how much, and how the best of the other distribution compares."""
    ranked = sorted(cells, key=lambda cell: -cell.accuracy)
    best = ranked[0]
    text = f"{best.composition}, {format_accuracy(best.accuracy, best.interval)} ({name_place(best.in_distribution)})"
    if len(ranked) > 1:
        second = ranked[1]
        text += f", {best.accuracy - second.accuracy:.3f} ahead of {second.composition}"
        text += ", which is within the spread over seeds" * is_tied(best, second)
    other = [cell for cell in ranked if cell.in_distribution != best.in_distribution]
    if other:
        text += f"; best {name_place(other[0].in_distribution)}: {other[0].composition}, "
        text += format_accuracy(other[0].accuracy, other[0].interval)
    return text + "."


def describe_target(cells: Sequence[ScoredCell]) -> list[str]:
    """Return the sentences on one target.

    Args:
        cells: The target's cells, in the report's order.
    """
    zero_shot = [cell for cell in cells if cell.epochs == 0]
    sentences = []
    for method in ("selected", "reconstruction"):
        for sees in dict.fromkeys(cell.sees for cell in zero_shot if cell.method == method):
            group = [cell for cell in zero_shot if (cell.method, cell.sees) == (method, sees)]
            sentences.append(f"Best composition by {method} (sees {sees}): {describe_best(group)}")
    duels = match_duels(zero_shot, TRIVIAL, equal_sees=True)
    for (method, sees), matched in groupby(duels, lambda duel: (duel.cell.method, duel.cell.sees)):
        sentences.append(f"Zero-shot {method} against trivial baselines that see as much ({sees}): ")
        sentences[-1] += f"{describe_duels(list(matched))}."
    tuned = match_duels([cell for cell in cells if cell.epochs > 0], ("random_init",), equal_sees=False)
    for method, sees in dict.fromkeys((duel.cell.method, duel.cell.sees) for duel in tuned):
        parts = []
        for epochs, matched in groupby(tuned, lambda duel: duel.cell.epochs):
            same = [duel for duel in matched if (duel.cell.method, duel.cell.sees) == (method, sees)]
            if same:
                parts.append(f"after {epochs} epoch{'s' * (epochs > 1)} {describe_duels(same)}")
        sentences.append(f"Fine-tuned {method} (sees {sees}): {'; '.join(parts)}.")
    return sentences


def count_best(cells: Iterable[ScoredCell]) -> str:
    """Return where each composition is best: `both on digits and fonts (level with digits); letters on letters`."""
    targets: dict[str, list[str]] = {}
    for target, group in groupby(cells, lambda cell: cell.target):
        best, *others = sorted(group, key=lambda cell: -cell.accuracy)
        level = [other.composition for other in others if is_tied(best, other)]
        text = f"{target} (level with {join_names(level)})" if level else target
        targets.setdefault(best.composition, []).append(text)
    return "; ".join(f"{name} on {join_names(found)}" for name, found in targets.items())


def describe_all(cells: Sequence[ScoredCell]) -> list[str]:
    """Return the sentences on all targets together.

    Args:
        cells: Cells of all targets, in the report's order.
    """
    zero_shot = [cell for cell in cells if cell.epochs == 0]
    tuned = match_duels([cell for cell in cells if cell.epochs > 0], ("random_init",), equal_sees=False)
    sentences = []
    for method in ("selected", "reconstruction"):
        for sees in dict.fromkeys(cell.sees for cell in zero_shot if cell.method == method):
            group = [cell for cell in zero_shot if (cell.method, cell.sees) == (method, sees)]
            sentences.append(f"Best composition by {method} (sees {sees}): {count_best(group)}.")
    for method in GENERATED:
        found = [cell for cell in zero_shot if cell.method == method]
        duels = match_duels(found + [cell for cell in zero_shot if cell.method in TRIVIAL], TRIVIAL, equal_sees=True)
        pairs = [list(group) for _, group in groupby(duels, lambda duel: duel.cell)]
        if pairs:
            won = sum(all(duel.verdict == "better than" for duel in pair) for pair in pairs)
            each = []
            for name in TRIVIAL:
                verdicts = [duel.verdict for duel in duels if duel.opponent.method == name]
                if verdicts:
                    each.append(f"{name} in {verdicts.count('better than')} of {len(verdicts)}")
            sentences.append(
                f"Zero-shot {method} against trivial baselines: {method} beat every one that sees as much in {won} of "
                f"{len(pairs)} pairs of a composition and a target ({', '.join(each)})."
            )
        elif found:
            sentences.append(f"Zero-shot {method} against trivial baselines: none sees as much, so none is compared.")
        wins = []
        for inside in (True, False):
            fought = [duel for duel in tuned if (duel.cell.method, duel.cell.in_distribution) == (method, inside)]
            if fought:
                better = sum(duel.verdict == "better than" for duel in fought)
                wins.append(f"{better} of {len(fought)} {name_place(inside)}")
        if wins:
            sentences.append(
                f"Fine-tuned {method} against random_init: {method} beat random_init trained as long in "
                f"{' and '.join(wins)} (compared by composition, target and epochs)."
            )
    return sentences


def find_findings(rows: pl.DataFrame) -> Findings:
    """Say in sentences what the measurements show.

    Args:
        rows: One measurement a row.

    Raises:
        ConfigError: A column is missing.
    """
    rows = check_rows(rows)
    cells = [ScoredCell(**vars(cell)) for cell in average_seeds(rows) if cell.accuracy is not None]
    if not cells:
        return Findings(["There is no finite accuracy to compare."], {})
    overall = [describe_effects(rows), *describe_all(cells)]
    if any(cell.seeds > 1 for cell in cells):
        overall.append("Level means: the difference is within the spread over seeds.")
    if all(cell.seeds == 1 for cell in cells):
        overall.append("One seed for each composition: a small lead may be chance.")
    elif any(cell.seeds == 1 for cell in cells):
        overall.append("Some numbers come from one seed: a small lead may be chance.")
    by_target = {
        target: describe_target([cell for cell in cells if cell.target == target])
        for target in list_names(rows, "target")
    }
    return Findings(overall, {target: sentences for target, sentences in by_target.items() if sentences})
