"""What commands print: a comparison, a zoo's card, progress."""

import shutil
import sys
from collections.abc import Mapping

import polars as pl
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mzsane.report.compare import read_answers
from mzsane.report.table import comparison_table
from mzsane.store.artifacts import Artifact

_WIDTH = 100  # of the table when the output is not a terminal


def refuse_command(flow: str, deployment: str) -> int:
    """Say that a flow is no command, and what is; returns the exit code."""
    print(
        f"error: flows.{flow} is a flow and no command: run the deployment {deployment} (make up, then Prefect's "
        "page), or the command mzsane (`mzsane --help`)",
        file=sys.stderr,
    )
    return 2


def print_comparison(comparison: Artifact) -> None:
    """Print the answers, one table, and, as the last line, the path of the page."""
    console = Console(width=max(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH), highlight=False)
    answers, _ = read_answers(comparison)
    for answer in answers:
        console.print(f"{answer.question} {answer.sentence}\n", soft_wrap=True, markup=False)
    rows, duels, leaders = (
        pl.read_parquet(comparison.path(f"{name}.parquet")) for name in ("comparison", "duels", "leaders")
    )
    console.print(comparison_table(rows, duels, leaders))
    for difference in comparison.manifest.counts.get("differences", ()):
        console.print(difference, soft_wrap=True, markup=False)
    console.print(f"\nartifact {comparison.address}", soft_wrap=True)
    print(comparison.path("report.html").resolve())


def print_card(name: str, zoo: Artifact) -> None:
    """Print a zoo's card and where it is."""
    console = Console(width=max(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH), highlight=False)
    console.print(Markdown(f"# zoo {name}\n\n{zoo.path('card.md').read_text()}"))
    console.print(f"\nartifact {zoo.address}", soft_wrap=True)
    for figure in zoo.manifest.files:
        if figure.startswith("card-"):
            print(zoo.path(figure).resolve())


class TerminalSink:
    """A `MetricSink` that draws a progress bar, for commands that are no flow runs."""

    def __init__(self) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns)
        self._task: TaskID | None = None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Drop the values."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Move the bar."""
        if self._task is None:
            self._task = self._bar.add_task(note, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, description=note)
        if done >= total:
            self._bar.stop()
