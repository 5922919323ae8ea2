"""How a stage reports while it runs: the `MetricSink` protocol and a sink that ignores everything."""

from collections.abc import Mapping
from typing import Protocol


class MetricSink(Protocol):
    """Receives a stage's metrics and progress. Implementations must not raise: reporting never stops science."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Take metric values of one training step."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Take the progress of the running stage: `done` of `total` units, and a short note on its state."""


class NoSink:
    """A sink that drops everything: the default when mzsane is used as a library."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Drop the values."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Drop the progress."""


NO_SINK = NoSink()
