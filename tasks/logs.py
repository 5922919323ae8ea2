"""One line for an expected failure: Prefect's run loggers print no stack trace for a `MzsaneError`."""

import logging

from mzsane.errors import MzsaneError

_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


class _WithoutTrace(logging.Filter):
    """Drops the stack trace of errors whose text already says all."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record; cut the trace of expected errors."""
        if record.exc_info and isinstance(record.exc_info[1], MzsaneError):
            record.exc_info = None
        return True


def quiet_expected_errors() -> None:
    """Install the filter on Prefect's run loggers, once a process."""
    for name in _RUN_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(item, _WithoutTrace) for item in logger.filters):
            logger.addFilter(_WithoutTrace())
