"""One single-threaded process a core for work on many small networks; the pool lives as long as its parent."""

import atexit
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import torch

from mzsane.errors import WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_processes(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int | None
) -> Iterator[tuple[int, Result]]:
    """Apply a picklable function to every item in worker processes.

    Every call runs with one torch thread, wherever it runs, so that results do not depend on the number of processes.

    Args:
        function: a module-level function.
        items: its arguments.
        processes: how many processes; all cores when None. With one, everything runs here.

    Yields:
        (position of the item, result), in the order in which they are ready.

    Raises:
        WorkerError: a worker process was killed. Errors of the function itself pass through.
    """
    count = min(processes or os.cpu_count() or 1, len(items))
    if count <= 1:
        for position, item in enumerate(items):
            with single_thread():
                result = function(item)
            yield position, result
        return
    pool = _open_pool(count)
    waiting = {pool.submit(function, item): position for position, item in enumerate(items)}
    try:
        while waiting:
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        _open_pool.cache_clear()
        raise WorkerError(
            "a worker process was killed, perhaps for lack of memory; rerun to continue, with fewer processes "
            "if it recurs"
        ) from None
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _open_pool(count: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
    atexit.register(pool.shutdown, wait=False, cancel_futures=True)
    return pool


def _start_worker(parent: int) -> None:
    """Limit the worker to one thread, and end it when its parent is gone, even by SIGKILL."""
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
