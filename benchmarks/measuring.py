"""What benchmarks share: calls timed in turns, and rows of a value beside its baseline and its bar."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def make_row(
    name: str,
    value: float,
    unit: str,
    baseline: float | None = None,
    bar: float | None = None,
    at_most: bool = False,
) -> dict[str, Any]:
    """Make a row; the bar is the least value that is good enough, or the largest."""
    holds = None if bar is None else value <= bar if at_most else value >= bar
    return {"name": name, "value": value, "unit": unit, "baseline": baseline, "bar": bar, "holds": holds}


def time_in_turns(repeats: int, *runs: Callable[[], object]) -> list[float]:
    """Return the median wall time of each call, GPU work included.

    They take turns, because memory is shared and its speed changes from minute to minute; the first turn makes plans
    and index maps, and does not count.
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, found in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found.append(time.perf_counter() - started)
    return [statistics.median(found[1:]) for found in times]


def report_rows(rows: list[dict[str, Any]], file: Path | None) -> int:
    """Print the rows and write them to a file; returns 1 if a bar is missed."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(f"{device}, torch {torch.__version__}")
    for row in rows:
        baseline = "" if row["baseline"] is None else f"  baseline {row['baseline']:.4g}"
        bar = "" if row["bar"] is None else f"  bar {row['bar']:g}: {'holds' if row['holds'] else 'MISSED'}"
        print(f"{row['name']:<64}{row['value']:>12.3f}  {row['unit']}{baseline}{bar}")
    if file:
        file.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row["holds"] is False for row in rows) else 0
