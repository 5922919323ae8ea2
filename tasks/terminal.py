"""Show a comparison in the terminal; the last line is the path of its page."""

import shutil

import polars as pl
from rich.console import Console

from mzsane.artifacts import Artifact
from mzsane.report.findings import find_findings
from mzsane.report.table import comparison_table

_WIDTH = 120  # of the table when the output is not a terminal


def print_comparison(comparison: Artifact) -> None:
    """Print the table, what was found, and the path of the page."""
    rows = pl.read_parquet(comparison.path("comparison.parquet"))
    console = Console(width=max(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH), highlight=False)
    console.print(comparison_table(rows))
    for sentence in find_findings(rows).overall:
        console.print(f"- {sentence}", soft_wrap=True)
    console.print(f"\nartifact {comparison.address}", soft_wrap=True)
    print(comparison.path("report.html").resolve())
