"""What a running stage reports, passed on: progress to the run's log and to Prefect's page, metrics to MLflow."""

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from logging import Logger, LoggerAdapter
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.tracking import Tracker

LOG_SECONDS = 5.0
_NamePoints = Callable[[Mapping[str, float], int], list[tuple[str, float, int]]]


class StageSink:
    """The `MetricSink` of one stage that is running as a Prefect task.

    Args:
        label: the stage, for the log.
        logger: the run's logger.
        tracker: where metrics go.
        run: the MLflow run that they belong to, if any.
        name_points: turns metric values and their step into points of that run.
        page: whether to show a progress artifact on Prefect's page.
    """

    def __init__(
        self,
        label: str,
        logger: "Logger | LoggerAdapter[Logger]",
        tracker: Tracker,
        run: str | None,
        name_points: _NamePoints,
        page: bool,
    ) -> None:
        self.label, self.logger, self.tracker, self.run = label, logger, tracker, run
        self.name_points, self.page = name_points, page
        self.started: tuple[float, int] | None = None
        self.last_said = 0.0
        self.points: list[tuple[str, float, int]] = []
        self.artifact: UUID | None = None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Collect metric points; they are sent with the next progress that is said."""
        self.points.extend(self.name_points(values, step))

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Say how far the stage is and how long it will take, every few seconds."""
        if total <= 1:
            return
        now = time.monotonic()
        if self.started is None:
            self.started = (now, done)
        elif now - self.last_said < LOG_SECONDS and done < total:
            return
        self.last_said = now
        self.logger.info("%s: %d of %d %s%s", self.label, done, total, note, self._time_left(now, done, total))
        self.flush()
        if self.page:
            self._show(100 * done / max(total, 1))

    def flush(self) -> None:
        """Send the metric points collected so far."""
        self.tracker.log_points(self.run, self.points)
        self.points = []

    def _time_left(self, now: float, done: int, total: int) -> str:
        assert self.started is not None
        began, at = self.started
        if done <= at or done >= total:
            return ""
        seconds = round((now - began) / (done - at) * (total - done))
        return f", {seconds // 60}:{seconds % 60:02d} left"

    def _show(self, percent: float) -> None:
        # A page that cannot be updated must not stop the work.
        with suppress(Exception):
            if self.artifact is None:
                key = re.sub(r"[^a-z0-9]+", "-", self.label)
                self.artifact = create_progress_artifact(percent, key=key, description=self.label)
            else:
                update_progress_artifact(self.artifact, progress=percent)
