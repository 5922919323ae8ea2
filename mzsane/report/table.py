"""The one table that a terminal and Prefect's page show: the accuracy of samples by composition and target."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from rich import box
from rich.table import Table
from rich.text import Text

from mzsane.report.answers import Answer
from mzsane.report.cells import SEES, Cell, average_seeds, check_rows, explain_interval, format_accuracy, list_names
from mzsane.report.statistics.duels import find_strongest
from mzsane.report.words import PLACES

BEST, INSIDE, UNKNOWN, MISSING = "★", "•", "~", "–"
_WIDTH = 100
_CELL = len("0.876 ±.021 •★ loss")


@dataclass(frozen=True)
class TableEntry:
    """What samples of a composition reach on a target.

    Attributes:
        cell: Their accuracy.
        best: Whether a test tells the composition from the next one on the target.
        verdict: Of the duel with the strongest opponent: `win`, `tie`, `loss`, `?` if untested; empty without one.
        opponent: Which one that is; empty without one.
    """

    cell: Cell
    best: bool
    verdict: str
    opponent: str

    @property
    def text(self) -> str:
        """Accuracy, interval, marks and verdict, padded so that numbers stand below each other."""
        marks = {True: INSIDE, False: "", None: UNKNOWN}[self.cell.in_distribution] + BEST * self.best
        accuracy = format_accuracy(self.cell.accuracy, self.cell.interval)
        return f"{accuracy:>11} {marks:<2} {self.verdict:<4}"


def arrange_entries(
    rows: pl.DataFrame, duels: pl.DataFrame, leaders: pl.DataFrame
) -> dict[str, dict[str, TableEntry | None]]:
    """Gather the zero-shot accuracies of samples, of those that saw least where they differ in that.

    Args:
        rows: One measurement a row.
        duels: The duels (`mzsane.report.statistics.duels`).
        leaders: The best compositions (`mzsane.report.statistics.leaders`).

    Returns:
        By composition and target, None where nothing was measured.

    Raises:
        ConfigError: A column is missing.
    """
    cells = [cell for cell in average_seeds(rows) if cell.method == "samples" and cell.epochs == 0]
    seen = min((cell.sees for cell in cells), key=SEES.index, default="none")
    found = {(cell.composition, cell.target): cell for cell in cells if cell.sees == seen}
    strongest = {
        (duel["composition"], duel["target"]): duel for duel in find_strongest(duels.filter(sees=seen)).to_dicts()
    }
    told = leaders.filter(method="samples", finetune_epochs=0, verdict="win")
    winners = set(told.select("best", "target").rows())

    def make_entry(place: tuple[str, str]) -> TableEntry | None:
        if place not in found:
            return None
        duel = strongest.get(place)
        verdict = "" if duel is None else "?" if duel["verdict"] == "untested" else duel["verdict"]
        return TableEntry(found[place], place in winners, verdict, duel["opponent"] if duel else "")

    targets = [name for name in list_names(rows, "target") if any(name == place[1] for place in found)]
    compositions = [name for name in list_names(rows, "composition") if any(name == place[0] for place in found)]
    return {name: {target: make_entry((name, target)) for target in targets} for name in compositions}


def write_caption(entries: dict[str, dict[str, TableEntry | None]]) -> str:
    """Return what the numbers, marks and verdicts mean."""
    known = [entry for line in entries.values() for entry in line.values() if entry]
    text = (
        f"Zero-shot accuracy of samples. {explain_interval([entry.cell for entry in known])} {INSIDE}: in distribution."
    )
    if any(entry.cell.in_distribution is None for entry in known):
        text += f" {UNKNOWN}: {PLACES[None]}."
    if any(entry.best for entry in known):
        text += f" {BEST}: best of its target, told from the next composition by a test."
    fought: dict[str, int] = {}
    for entry in known:
        if entry.opponent:
            fought[entry.opponent] = fought.get(entry.opponent, 0) + 1
    if fought:
        most = sorted(fought, key=lambda name: -fought[name])[:3]
        text += " win, tie, loss: against the strongest baseline that saw and paid no more and is as new, mostly "
        text += f"{', '.join(most)}."
    if any(entry.verdict == "?" for entry in known):
        text += " ?: too few independent units for a test."
    return text


def comparison_table(rows: pl.DataFrame, duels: pl.DataFrame, leaders: pl.DataFrame) -> Table:
    """Lay the table out for a terminal of 100 columns: targets side by side where they fit, else below each other.

    Args:
        rows: One measurement a row.
        duels: The duels.
        leaders: The best compositions.

    Raises:
        ConfigError: A column is missing.
    """
    entries = arrange_entries(rows, duels, leaders)
    targets = list(next(iter(entries.values()), {}))
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        caption=Text(write_caption(entries)) if entries else None,
        caption_justify="left",
    )
    wide = max(map(len, ("composition", *entries))) + 1 + sum(max(_CELL, len(name)) + 1 for name in targets)
    if wide <= _WIDTH:
        table.add_column("composition", no_wrap=True)
        for target in targets:
            table.add_column(Text(target), no_wrap=True)
        for name, line in entries.items():
            table.add_row(Text(name), *(_style(entry) for entry in line.values()))
        return table
    for heading in ("target", "composition"):
        table.add_column(heading, overflow="fold", max_width=34)
    table.add_column("samples", no_wrap=True)
    table.add_column("against", no_wrap=True)
    for target in targets:
        heading = target
        for name, line in entries.items():
            entry = line[target]
            if entry is not None:
                table.add_row(Text(heading), Text(name), _style(entry), Text(entry.opponent))
                heading = ""
        table.add_section()
    return table


def _style(entry: TableEntry | None) -> Text:
    if entry is None:
        return Text(f"{MISSING:>5}")
    return Text(entry.text, style="bold" if entry.cell.in_distribution else "")


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, also inside a table."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def comparison_markdown(
    answers: Sequence[Answer], rows: pl.DataFrame, duels: pl.DataFrame, leaders: pl.DataFrame
) -> str:
    """Write the answers and the table as GitHub Markdown.

    Args:
        answers: What stands before the table.
        rows: One measurement a row.
        duels: The duels.
        leaders: The best compositions.

    Raises:
        ConfigError: A column is missing.
    """
    entries = arrange_entries(check_rows(rows), duels, leaders)
    parts = [f"**{escape_markdown(answer.question)}** {escape_markdown(answer.text)}" for answer in answers]
    if entries:
        targets = list(next(iter(entries.values())))
        lines = [["composition", *map(escape_markdown, targets)], ["---", *["---:"] * len(targets)]]
        for name, line in entries.items():
            texts = [" ".join(entry.text.split()) if entry else MISSING for entry in line.values()]
            bold = [entry is not None and entry.cell.in_distribution is True for entry in line.values()]
            lines.append(
                [escape_markdown(name), *(f"**{text}**" if b else text for text, b in zip(texts, bold, strict=True))]
            )
        parts += ["\n".join(f"| {' | '.join(line)} |" for line in lines), f"_{write_caption(entries)}_"]
    return "\n\n".join(parts) + "\n"
