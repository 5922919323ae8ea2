"""One single-threaded process a core for work on many small networks; the pool lives as long as its parent."""

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

import torch

from mzsane.errors import ConfigError, WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")

_GRACE_SECONDS = 5.0  # from the request to end until the end
_UNGUARDED = 97  # exit code of a worker that would run the user's script instead of working


def map_processes(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int | None
) -> Iterator[tuple[int, Result]]:
    """Apply a picklable function to every item in worker processes.

    Every call runs with one torch thread, wherever it runs, so that results do not depend on the number of processes.

    Args:
        function: a module-level function.
        items: its arguments.
        processes: how many processes; one a core when None. With one, everything runs here.

    Yields:
        (position of the item, result), in the order in which they are ready.

    Raises:
        WorkerError: a worker process was killed. Errors of the function itself pass through.
        ConfigError: the user's script starts itself again in the workers.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as `spawn` says it: not working yet
        os._exit(_UNGUARDED)
    count = processes or count_cores()
    if min(count, len(items)) <= 1:
        for position, item in enumerate(items):
            with limit_threads():
                result = function(item)
            yield position, result
        return
    pool = _open_pool(count)
    waiting: dict[Future[Result], int] = {}
    # Not `concurrent.futures.wait`: interrupted at the wrong moment it keeps locks that the pool then waits for.
    ended: SimpleQueue[Future[Result]] = SimpleQueue()
    workers = multiprocessing.active_children()
    try:
        for position, item in enumerate(items):
            future = pool.submit(function, item)
            waiting[future] = position
            future.add_done_callback(ended.put)
        workers = multiprocessing.active_children()
        while waiting:
            future = ended.get()
            yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        _close_pool()
        for worker in workers:
            worker.join(_GRACE_SECONDS)
        if any(worker.exitcode == _UNGUARDED for worker in workers):
            raise ConfigError(
                "worker processes load the script that starts them, and so would run it again: put what it does under "
                'if __name__ == "__main__":, or set processes of ExecutionConfig to 1'
            ) from None
        raise WorkerError(
            "a worker process was killed, perhaps for lack of memory; rerun to continue, with fewer processes "
            "if it recurs"
        ) from None
    finally:
        for future in waiting:
            future.cancel()


def map_apart(
    function: Callable[[Item], Result], items: Sequence[Item], together: int
) -> Iterator[tuple[int, Result | WorkerError]]:
    """Apply a picklable function to every item, each in a process of its own, so that none that dies takes another.

    Args:
        function: a module-level function.
        items: its arguments.
        together: how many run at the same time.

    Yields:
        (position of the item, result), in the order in which they are ready; an error for a process that was killed.
        Errors of the function itself pass through.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(enumerate(items))[::-1]
    running: dict[Future[Result], tuple[int, ProcessPoolExecutor]] = {}
    ended: SimpleQueue[Future[Result]] = SimpleQueue()
    try:
        while waiting or running:
            while waiting and len(running) < together:
                position, item = waiting.pop()
                pool = ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
                future = pool.submit(function, item)
                running[future] = position, pool
                future.add_done_callback(ended.put)
            future = ended.get()
            position, pool = running.pop(future)
            pool.shutdown(wait=False)
            try:
                result: Result | WorkerError = future.result()
            except BrokenProcessPool:
                result = WorkerError("its process was killed, perhaps for lack of memory; run it again to continue")
            yield position, result
    finally:
        for _, pool in running.values():
            pool.shutdown(wait=False, cancel_futures=True)


def count_cores() -> int:
    """Return how many cores are for this process and its children: `MZSANE_CORES`, or all.

    Raises:
        ConfigError: the variable is not a whole number above 0.
    """
    given = os.environ.get("MZSANE_CORES", "")
    if not given:
        return os.cpu_count() or 1
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"MZSANE_CORES={given!r}: must be a whole number of cores above 0")
    return int(given)


@contextmanager
def limit_threads(count: int = 1) -> Iterator[None]:
    """Run torch on so many threads inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_pools: dict[int, ProcessPoolExecutor] = {}  # at most one, by its number of processes


def _open_pool(count: int) -> ProcessPoolExecutor:
    if count in _pools:
        return _pools[count]
    _close_pool()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
    _pools[count] = pool
    return pool


@atexit.register
def _close_pool() -> None:
    while _pools:
        _, pool = _pools.popitem()
        pool.shutdown(wait=False, cancel_futures=True)


def end_workers() -> None:
    """End the worker processes, whatever they compute: what they have written stays, and a rerun goes on from there."""
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        child.kill()


def _start_worker(parent: int) -> None:
    """Limit the worker to one thread, and end it at Ctrl-C, or when its parent is gone, even by SIGKILL."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
