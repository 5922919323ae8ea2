"""How commands end: with a line for what went wrong, and in order when they are asked to."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from tasks.failures import explain_failure, print_without_secrets


def report_errors(command: Callable[[], int]) -> int:
    """Run a command; what fails by no fault of the program becomes one line, with exit code 2 for a wrong setting or 1.

    Asked to terminate it ends in order, with 143, as it does at Ctrl-C, and its workers with it. By default it would be
    gone at once, and the temporary server that Prefect has started for it would stay.
    """
    ended_by: list[int] = []

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        ended_by.append(number)
        if "prefect" in sys.modules:
            from prefect.settings import get_current_settings

            # What ends a group of processes, as Ctrl-C does, ends the temporary server too: it is not asked again.
            get_current_settings().client.max_retries = 0
        raise _ending(number)

    # Polars handles SIGINT so that waiting goes on after it: Ctrl-C would be heard when what was waited for has ended.
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return command()
    except (KeyboardInterrupt, SystemExit):
        _end_workers()
        raise
    except BrokenPipeError:  # who reads has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if ended_by:
            _end_workers()
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


def _end_workers() -> None:
    if "mzsane.parallel" in sys.modules:
        sys.modules["mzsane.parallel"].end_workers()


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
