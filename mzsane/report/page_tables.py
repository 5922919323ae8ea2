"""The tables of the report's page, as HTML: the comparison, every measurement, every artifact."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

import polars as pl

from mzsane.appearance import Look
from mzsane.report.cells import Cell, check_rows, format_accuracy, list_names
from mzsane.report.provenance import merge_artifacts
from mzsane.report.table import MISSING, arrange_lines, format_marks, name_block, name_method, write_caption

CHOOSE = ("composition", "target", "method", "sees", "finetune_epochs")


def render_cell(content: str, css: str = "", tag: str = "td") -> str:
    """Render one table cell.

    Args:
        content: HTML, names already escaped.
        css: Its class.
        tag: `td`, or `th` for a heading.
    """
    return f'<{tag} class="{css}">{content}</{tag}>' if css else f"<{tag}>{content}</{tag}>"


def render_table(
    heads: Iterable[str], rows: Iterable[str], caption: str = "", css: str = "scroll", name: str = ""
) -> str:
    """Render a table in a box of its own that scrolls.

    Args:
        heads: Rendered cells.
        rows: Rendered rows.
        caption: HTML above the table.
        css: The classes of the box.
        name: The table's identifier.
    """
    title = f"<caption>{caption}</caption>" if caption else ""
    start = f'<table id="{name}">' if name else "<table>"
    head = f"<thead><tr>{''.join(heads)}</tr></thead>"
    return f'<div class="{css}">{start}{title}{head}<tbody>{"".join(rows)}</tbody></table></div>'


def render_accuracy(cell: Cell | None) -> str:
    """Render a cell of the comparison: accuracy and interval, bold when in distribution, then its marks."""
    if cell is None:
        return render_cell(f'{MISSING}<span class="marks"></span>', "number")
    text = format_accuracy(cell.accuracy, cell.interval)
    text = f"<b>{text}</b>" if cell.in_distribution else text
    return render_cell(
        f'{text}<span class="marks">{format_marks(cell)}</span>', "number best" if cell.best else "number"
    )


def render_comparison(rows: pl.DataFrame, looks: Mapping[str, Look]) -> str:
    """Render the comparison: a table for each number of fine-tuning epochs and size of ensembles.

    It has a column for each composition.

    Args:
        rows: One measurement a row.
        looks: The look of each composition, whose colour marks its column.

    Raises:
        ConfigError: A column is missing.
    """
    lines = arrange_lines(rows)
    heads = [render_cell(name, tag="th") for name in ("target", "method", "sees")]
    for name in list_names(rows, "composition"):
        swatch = f'<span class="swatch" style="background:{looks[name].color}"></span>'
        heads.append(render_cell(swatch + escape(name), "number", "th"))
    tables = []
    for heading, block in groupby(lines, name_block):
        body, above = [], None
        for line in block:
            cells = [render_cell(escape(line.target if line.target != above else ""))]
            cells += [render_cell(escape(name_method(line))), render_cell(escape(line.sees))]
            for cell in line.cells:
                cells.append(render_accuracy(cell))
            body.append(('<tr class="first">' if line.target != above else "<tr>") + "".join(cells) + "</tr>")
            above = line.target
        tables.append(render_table(heads, body, heading))
    return f'<p class="note">{escape(write_caption(lines))}</p>{"".join(tables)}'


def format_value(value: Any) -> str:
    """Return a measurement's value as text: three decimals, `n/a` where there is none, `yes` or `no`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "n/a"
    return str(value)


def render_measurements(rows: pl.DataFrame) -> str:
    """Render every measurement as one table; where scripts run it can be sorted and filtered.

    Args:
        rows: One measurement a row.

    Raises:
        ConfigError: A column is missing.
    """
    rows = check_rows(rows)
    css = {name: "number" if kind.is_numeric() else "" for name, kind in rows.schema.items()}
    heads = [
        render_cell(name.replace("_", " "), f"{css[name]} choose".strip() if name in CHOOSE else css[name], "th")
        for name in rows.columns
    ]
    body = [
        f"<tr>{''.join(render_cell(escape(format_value(row[name])), css[name]) for name in rows.columns)}</tr>"
        for row in rows.iter_rows(named=True)
    ]
    filters = (
        '<div class="filters" id="filters" hidden><input type="search" placeholder="words to find" '
        'aria-label="words to find"><output></output></div>'
    )
    return filters + render_table(heads, body, css="scroll tall", name="measurements")


def render_addresses(provenance: Sequence[Mapping[str, Any]]) -> str:
    """Render every artifact with its address, fingerprint, inputs and arms.

    Args:
        provenance: Entries with arm, stage, name, fingerprint, address, reads.
    """
    body = []
    for artifact in merge_artifacts(provenance):
        reads = ", ".join(read[:8] for read in artifact.reads)
        cells = [escape(artifact.stage), escape(artifact.name), f"<code>{escape(artifact.fingerprint[:8])}</code>"]
        cells += [f"<code>{escape(reads)}</code>" if reads else "–", escape(", ".join(artifact.arms))]
        address = render_cell(f"<code>{escape(artifact.address)}</code>", "address")
        body.append(f"<tr>{''.join(render_cell(cell, 'wrap') for cell in cells)}{address}</tr>")
    heads = [render_cell(name, tag="th") for name in ("stage", "name", "fingerprint", "reads", "arms", "address")]
    return render_table(heads, body, css="scroll tall")
