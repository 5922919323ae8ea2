"""One single-threaded process a core for work on many small networks; the pool lives as long as its parent."""

import atexit
import itertools
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import torch

from mzsane.errors import ConfigError, WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")

_GRACE_SECONDS = 5.0  # from the request to end until the end
_UNGUARDED = 97  # exit code of a worker that would run the user's script instead of working
_AHEAD = 2  # items a process that are given out and not yet taken back: one that it does, one that waits for it


def map_processes(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int | None
) -> Iterator[tuple[int, Result]]:
    """Apply a picklable function to every item in worker processes.

    Every call runs with one torch thread, wherever it runs, so that results do not depend on the number of processes.
    No more items are given out than a few a process, so that results that nobody has taken yet do not pile up. Threads
    may call this at the same time, each with a number of processes of its own.

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
    pool = _take_pool(count)
    waiting: dict[Future[Result], int] = {}
    # Not `concurrent.futures.wait`: interrupted at the wrong moment it keeps locks that the pool then waits for.
    ended: SimpleQueue[Future[Result]] = SimpleQueue()
    workers = multiprocessing.active_children()
    rest = iter(enumerate(items))

    def submit() -> None:
        for position, item in itertools.islice(rest, 1):
            future = pool.executor.submit(function, item)
            waiting[future] = position
            future.add_done_callback(ended.put)

    try:
        for _ in range(_AHEAD * count):
            submit()
        workers = multiprocessing.active_children()
        while waiting:
            future = ended.get()
            position = waiting.pop(future)
            result = future.result()
            del future  # it holds the result, which may be large
            yield position, result
            del result
            submit()
    except BrokenProcessPool:
        pool.broken = True
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
        _give_back(pool)


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
    """Return how many cores are for this process and its children.

    `MZSANE_CORES`, or those that the process may run on, or what its control group lets it use of them.

    Raises:
        ConfigError: the variable is not a whole number above 0.
    """
    given = os.environ.get("MZSANE_CORES", "")
    if not given:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        quota = read_cpu_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
        return max(1, math.ceil(min(cores, quota)))
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


def read_cpu_quota(membership: Path, mounted: Path) -> float:
    """Return how many cores' time the control group of a process and those above it allow; infinity without a limit.

    Args:
        membership: the groups of the process, such as `/proc/self/cgroup`.
        mounted: where the groups are mounted, of version 2 or 1 (kernel documentation, cgroup-v2 and sched-bwc).
    """
    quota = math.inf
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            own = mounted / (controllers and "cpu") / group.lstrip("/")
            for folder in (own, *own.parents):
                quota = min(quota, _read_limit(folder))
                if folder == mounted:
                    break
    return quota


def _read_limit(folder: Path) -> float:
    """Return the limit of one control group: `cpu.max` holds quota and period, in version 1 each has a file."""
    with suppress(OSError, ValueError):
        files = ["cpu.max"] if (folder / "cpu.max").exists() else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        quota, period = " ".join((folder / file).read_text() for file in files).split()
        if quota != "max" and int(quota) > 0:  # version 1 writes -1 where there is no limit
            return int(quota) / int(period)
    return math.inf


@dataclass
class _Pool:
    """Processes, and how many calls use them now."""

    executor: ProcessPoolExecutor
    count: int
    users: int = 0
    broken: bool = False


_pools: list[_Pool] = []  # those in use, and the newest
_pools_lock = threading.RLock()  # a call that is left early may end while another takes a pool


def _take_pool(count: int) -> _Pool:
    """Return a pool of so many processes; others that nobody uses are closed, so that numbers do not add up."""
    with _pools_lock:
        pool = next((pool for pool in _pools if pool.count == count and not pool.broken), None)
        if pool is None:
            context = multiprocessing.get_context("spawn")
            executor = ProcessPoolExecutor(
                count, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
            )
            pool = _Pool(executor, count)
        else:
            _pools.remove(pool)
        _pools.append(pool)
        pool.users += 1
        _close_idle()
        return pool


def _give_back(pool: _Pool) -> None:
    with _pools_lock:
        pool.users -= 1
        _close_idle()


def _close_idle() -> None:
    """Close the pools that nobody uses, but for the newest: the next call may want it."""
    for pool in [pool for pool in _pools if pool.users == 0 and (pool.broken or pool is not _pools[-1])]:
        _pools.remove(pool)
        pool.executor.shutdown(wait=False, cancel_futures=True)


@atexit.register
def _close_pools() -> None:
    while _pools:
        _pools.pop().executor.shutdown(wait=False, cancel_futures=True)


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
