"""What commands print: a comparison, a zoo's card, progress."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import NoReturn

import polars as pl
from prefect.settings import get_current_settings
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mzsane.parallel import end_workers
from mzsane.report.compare import read_answers
from mzsane.report.table import comparison_table
from mzsane.store.artifacts import Artifact
from tasks.failures import explain_failure, print_without_secrets

_WIDTH = 100  # of the table when the output is not a terminal


def report_errors(command: Callable[[], int]) -> int:
    """Run a command; what fails by no fault of the program becomes one line, with exit code 2 for a wrong setting or 1.

    Asked to terminate it ends in order, with 143, as it does at Ctrl-C, and its workers with it. By default it would be
    gone at once, and the temporary server that Prefect has started for it would stay.
    """
    ended_by: list[int] = []

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        ended_by.append(number)
        # What ends a group of processes, as Ctrl-C does, ends the temporary server too: it is not asked again.
        get_current_settings().client.max_retries = 0
        raise _ending(number)

    # Polars handles SIGINT so that waiting goes on after it: Ctrl-C would be heard when what was waited for has ended.
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return command()
    except (KeyboardInterrupt, SystemExit):
        end_workers()
        raise
    except BrokenPipeError:  # who reads has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if ended_by:
            end_workers()
            raise _ending(ended_by[0]) from None  # the server was gone when the flow run was to be ended
        explained = explain_failure(error)
        if explained is None:
            sys.excepthook = print_without_secrets
            raise
        print(f"error: {explained[0]}", file=sys.stderr)
        return explained[1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def refuse_command(flow: str, deployment: str) -> int:
    """Say that a flow is no command, and what is; returns the exit code."""
    print(
        f"error: flows.{flow} is a flow and no command: run the deployment {deployment} (make up, then Prefect's "
        "page), or one of the commands flows.ablation, flows.zoo, flows.samples",
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
