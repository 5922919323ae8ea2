"""The comparison of compositions as a table, for a terminal and in Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import polars as pl
from rich import box
from rich.table import Table
from rich.text import Text

from mzsane.report.cells import Cell, average_seeds, check_rows, explain_interval, format_accuracy, list_names

BEST, INSIDE, MISSING = "★", "•", "–"


@dataclass(frozen=True)
class Line:
    """One line of the comparison: a method on a target, with one cell (or None) for each composition."""

    ensemble: int
    epochs: int
    target: str
    method: str
    sees: str
    cells: list[Cell | None]


def arrange_lines(rows: pl.DataFrame) -> list[Line]:
    """Turn measurements into the lines of the comparison; a line never mixes two values of `sees`.

    Args:
        rows: One measurement a row.

    Raises:
        ConfigError: A column is missing.
    """
    compositions = list_names(rows, "composition")
    lines = []
    for size in sorted(check_rows(rows)["ensemble"].unique()):
        cells = average_seeds(rows, size)
        for key, group in groupby(cells, lambda cell: (cell.epochs, cell.target, cell.method, cell.sees)):
            by_composition = {cell.composition: cell for cell in group}
            lines.append(Line(size, *key, [by_composition.get(name) for name in compositions]))
    return lines


def name_block(line: Line) -> str:
    """Return the heading of a line's block: `zero-shot`, `1 epoch`, `3 epochs`, `ensemble of 5`."""
    return f"ensemble of {line.ensemble}" if line.ensemble > 1 else name_epochs(line.epochs)


def name_epochs(epochs: int) -> str:
    """Return `zero-shot`, `1 epoch`, `3 epochs`."""
    return "zero-shot" if epochs == 0 else f"{epochs} epoch{'s' * (epochs > 1)}"


def name_method(line: Line) -> str:
    """Return the method, and of how many models the line's were selected: `samples`, `selected (10 of 100)`."""
    chosen = next((cell for cell in line.cells if cell is not None and cell.chosen_of is not None), None)
    return line.method if chosen is None else f"{line.method} ({chosen.models} of {chosen.chosen_of})"


def format_marks(cell: Cell) -> str:
    """Return the marks of a cell: in distribution, best of its target."""
    return INSIDE * cell.in_distribution + BEST * cell.best


def format_cell(cell: Cell | None) -> str:
    """Return the text of a cell: accuracy, interval, marks."""
    return f"{format_accuracy(cell.accuracy, cell.interval)} {format_marks(cell)}".rstrip() if cell else MISSING


def align_cell(cell: Cell | None) -> Text:
    """Return the text of a cell padded to the width of both marks, so that numbers stand below each other."""
    if cell is None:
        return Text(f"{MISSING}  ")
    style = "bold" if cell.in_distribution else ""
    return Text(f"{format_accuracy(cell.accuracy, cell.interval)} {format_marks(cell):<2}", style=style)


def write_caption(lines: Sequence[Line]) -> str:
    """Return what the numbers and marks of the comparison mean."""
    interval = explain_interval([cell for line in lines for cell in line.cells if cell])
    return (
        f"Accuracy, mean over seeds. {interval} Bold and {INSIDE}: in distribution. "
        f"{BEST}: best of its target besides the zoo, whatever it sees. {MISSING}: not measured."
    )


def comparison_table(rows: pl.DataFrame) -> Table:
    """Lay the comparison out for a terminal of 120 columns.

    Args:
        rows: One measurement a row.

    Returns:
        A table with one block for each number of fine-tuning epochs, and for each size of ensembles, a line for each
        target, method and `sees`, and a column for each composition.

    Raises:
        ConfigError: A column is missing.
    """
    lines = arrange_lines(rows)
    table = _open_table(write_caption(lines))
    for heading in ("fine-tuned", "target", "method", "sees"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "target")
    for name in list_names(rows, "composition"):
        table.add_column(Text(name), justify="right", overflow="fold")
    shown: tuple[str, str] | None = None
    for line in lines:
        block = name_block(line)
        if shown and shown != (block, line.target):
            table.add_section()
        same_block, same_target = shown and shown[0] == block, shown == (block, line.target)
        shown = (block, line.target)
        table.add_row(
            "" if same_block else block,
            "" if same_target else Text(line.target),
            Text(name_method(line)),
            Text(line.sees),
            *map(align_cell, line.cells),
        )
    return table


def samples_table(rows: pl.DataFrame) -> Table:
    """Lay out what samples reach, for comparisons of more compositions than there is room for side by side.

    Args:
        rows: One measurement a row.

    Returns:
        A table with one block for each number of fine-tuning epochs and value of `sees`, a line for each composition,
        and a column for each target.

    Raises:
        ConfigError: A column is missing.
    """
    lines = [line for line in arrange_lines(rows) if (line.method, line.ensemble) == ("samples", 1)]
    targets = list(dict.fromkeys(line.target for line in lines))
    table = _open_table(f"Samples alone; the other methods are in the report. {write_caption(lines)}")
    for heading in ("fine-tuned", "sees", "composition"):
        table.add_column(heading, overflow="fold", no_wrap=True)
    for target in targets:
        table.add_column(Text(target), justify="right", overflow="fold")
    blocks: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines:
        blocks.setdefault((name_block(line), line.sees), {})[line.target] = line
    for (heading, sees), by_target in blocks.items():
        table.add_section()
        for place, name in enumerate(list_names(rows, "composition")):
            cells = [by_target[target].cells[place] if target in by_target else None for target in targets]
            if any(cells):
                table.add_row(heading, sees, Text(name), *map(align_cell, cells))
                heading = sees = ""
    return table


def _open_table(caption: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=Text(caption), caption_justify="left"
    )


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, also inside a table."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def comparison_markdown(rows: pl.DataFrame) -> str:
    """Write the comparison as GitHub Markdown: the content of `comparison_table`, one table a block.

    Args:
        rows: One measurement a row.

    Raises:
        ConfigError: A column is missing.
    """
    lines = arrange_lines(rows)
    headings = ["target", "method", "sees", *map(escape_markdown, list_names(rows, "composition"))]
    parts = []
    for heading, block in groupby(lines, name_block):
        table = [headings, ["---"] * 3 + ["---:"] * (len(headings) - 3)]
        for line in block:
            texts = [
                f"**{format_cell(cell)}**" if cell and cell.in_distribution else format_cell(cell)
                for cell in line.cells
            ]
            table.append([*map(escape_markdown, (line.target, name_method(line), line.sees)), *texts])
        parts.append(f"### {heading}\n\n" + "\n".join(f"| {' | '.join(texts)} |" for texts in table))
    return "\n\n".join([*parts, f"_{write_caption(lines)}_"]) + "\n"
