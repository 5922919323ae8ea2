"""What a stage computes depends on neither what its process did before nor how many threads there are to be had."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from mzsane.config import ExecutionConfig
from mzsane.parallel import limit_threads
from mzsane.randomness import seed_globally
from mzsane.store.making import record_making

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_SEED = 0  # of what networks draw where no stage has a seed of its own for it


def steady(stage: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Run a stage with the threads of its argument `execution`, one by default, and with seeded global generators.

    The number of threads changes the order of sums, and so the last bits of matrix products: it is the same however
    many arms run at a time, on the command line and on the stack.
    """
    signature = inspect.signature(stage)

    @wraps(stage)
    def run(*values: Parameters.args, **named: Parameters.kwargs) -> Result:
        execution = signature.bind(*values, **named).arguments.get("execution") or ExecutionConfig()
        with limit_threads(execution.threads), seed_globally(_SEED), record_making(threads=execution.threads):
            return stage(*values, **named)

    return run
