import logging

import pytest

from mzsane.errors import ConfigError
from tasks.logs import quiet_expected_errors
from tasks.sink import StageSink


class Points:
    """A tracker that remembers."""

    def __init__(self):
        self.sent = []

    def log_points(self, run, points):
        self.sent.extend(points)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tasks.sink.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def points():
    return Points()


@pytest.fixture
def sink(points):
    def name(values, step):
        return [(f"a/{key}", value, step) for key, value in values.items()]

    return StageSink("zoo digits", logging.getLogger("test"), points, "run", name, page=False)


def test_progress_tells_the_time_left_at_the_pace_of_this_run(sink, clock, caplog):
    caplog.set_level(logging.INFO)
    sink.progress(100, 400, "steps, resumed from 100")
    clock[0] += 20
    sink.progress(200, 400, "steps")
    assert caplog.messages == [
        "zoo digits: 100 of 400 steps, resumed from 100",
        "zoo digits: 200 of 400 steps, 0:40 left",
    ]


def test_progress_is_said_every_few_seconds_and_at_the_end(sink, clock, caplog):
    caplog.set_level(logging.INFO)
    for done in range(101):
        sink.progress(done, 100, "steps")
        clock[0] += 0.5
    assert len(caplog.messages) == 11
    assert caplog.messages[-1] == "zoo digits: 100 of 100 steps"


def test_metrics_are_sent_in_batches_with_the_progress(sink, clock, points):
    sink.progress(0, 10)
    sink.metrics({"loss": 1.0}, 1)
    assert points.sent == []
    clock[0] += 60
    sink.progress(5, 10)
    sink.metrics({"loss": 0.5}, 10)
    sink.flush()
    assert points.sent == [("a/loss", 1.0, 1), ("a/loss", 0.5, 10)]


def test_expected_errors_have_no_trace_and_bugs_have_one():
    quiet_expected_errors()
    logger = logging.getLogger("prefect.flow_runs")
    written = []
    handler = logging.StreamHandler()
    handler.emit = lambda record: written.append(handler.format(record))
    logger.addHandler(handler)
    try:
        for error in (ConfigError("wrong"), KeyError("bug")):
            try:
                raise error
            except Exception:
                logger.exception("failed with %r", error)
    finally:
        logger.removeHandler(handler)
    expected, bug = written
    assert expected == "failed with ConfigError('wrong')"
    assert "Traceback" in bug
