"""What Prefect's logs say: one line for an expected failure, and no secret, whichever library writes the line."""

import logging
import traceback
from collections.abc import Callable
from functools import wraps

from mzsane.addresses import hide_secrets
from mzsane.errors import MzsaneError

_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


class _WithoutTrace(logging.Filter):
    """Drops the stack trace of errors whose text already says all."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record; cut the trace of expected errors."""
        if record.exc_info and isinstance(record.exc_info[1], MzsaneError):
            record.exc_info = None
            record.exc_text = None
        return True


def quiet_expected_errors() -> None:
    """Install the filters, once a process: on Prefect's run loggers against traces, on all loggers against secrets."""
    for name in _RUN_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(item, _WithoutTrace) for item in logger.filters):
            logger.addFilter(_WithoutTrace())
    make = logging.getLogRecordFactory()
    if not hasattr(make, "hides_secrets"):
        logging.setLogRecordFactory(_hide_in_records(make))


def _hide_in_records(make: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    @wraps(make, updated=())
    def hide(*arguments: object, **options: object) -> logging.LogRecord:
        record = make(*arguments, **options)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # its arguments do not fit: the handlers say so
            return record
        if (hidden := hide_secrets(text)) != text:
            record.msg, record.args = hidden, ()
        if record.exc_info and record.exc_info[1] is not None:
            # Formatters take this text in place of their own.
            record.exc_text = hide_secrets("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return record

    hide.hides_secrets = True  # type: ignore[attr-defined]
    return hide
