"""Work in processes: the same results whatever their number, and a clear word when one dies."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mzsane.errors import ConfigError, WorkerError
from mzsane.parallel import count_cores, map_processes, read_cpu_quota

REPOSITORY = Path(__file__).resolve().parents[1]
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the children through /proc")


def describe(number: int) -> tuple[int, int, int]:
    return number * number, torch.get_num_threads(), os.getpid()


def sleep_then_tell(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def tell_slowly(_: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def leave_mark(path: str) -> None:
    Path(path).touch()


def die(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    if number == 2:
        raise ZeroDivisionError("two")
    return number


def list_children(parent: int) -> list[int]:
    """Return the processes of a parent, from /proc."""
    children = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                children.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return children


def count_workers() -> int:
    """Return the number of worker processes of this one."""
    count = 0
    for child in list_children(os.getpid()):
        with suppress(FileNotFoundError, ProcessLookupError):
            count += "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    return count


def test_all_cores_are_ours_unless_the_environment_says_how_many(monkeypatch):
    monkeypatch.delenv("MZSANE_CORES", raising=False)
    assert 1 <= count_cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("MZSANE_CORES", "1")
    assert {pid for _, (_, _, pid) in map_processes(describe, range(4), None)} == {os.getpid()}
    for wrong in ("0", "-1", "two"):
        monkeypatch.setenv("MZSANE_CORES", wrong)
        with pytest.raises(ConfigError, match=f"MZSANE_CORES='{wrong}'"):
            count_cores()


def test_cores_that_the_process_may_not_run_on_are_not_counted(monkeypatch):
    monkeypatch.delenv("MZSANE_CORES", raising=False)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),  # a limit further up
        ("0::/a/b", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "200000 100000\n"}, 0.5),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3.0),
        ("4:cpu,cpuacct:/of-the-host", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2.0),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("3:memory:/", {"memory/cpu.max": "100000 100000"}, math.inf),
        ("0::/", {"cpu.max": "not a number"}, math.inf),
        ("0::/gone", {}, math.inf),
    ],
)
def test_limits_of_control_groups_are_read(tmp_path, membership, files, expected):
    (tmp_path / "membership").write_text(f"{membership}\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_cpu_quota(tmp_path / "membership", tmp_path) == expected
    assert read_cpu_quota(tmp_path / "no such file", tmp_path) == math.inf


def test_one_process_works_here_in_order_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results = list(map_processes(describe, [3, 1, 2], 1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert results == [(0, (9, 1, os.getpid())), (1, (1, 1, os.getpid())), (2, (4, 1, os.getpid()))]


def test_one_process_passes_errors_through_after_the_results_before():
    results = map_processes(fail, [0, 1, 2, 3], 1)
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(ZeroDivisionError, match="two"):
        next(results)


def test_nothing_to_do_starts_nothing():
    assert list(map_processes(describe, [], 2)) == []


def test_a_single_item_starts_no_process():
    assert list(map_processes(describe, [5], 8)) == [(0, (25, 1, os.getpid()))]


class TestSeveralProcesses:
    """Two processes, then three: the tests share the pools, since starting a process imports torch."""

    def test_every_item_once_on_one_thread_elsewhere(self):
        results = dict(map_processes(describe, list(range(20)), 2))
        assert {position: result[0] for position, result in results.items()} == {i: i * i for i in range(20)}
        assert {result[1] for result in results.values()} == {1}
        pids = {result[2] for result in results.values()}
        assert os.getpid() not in pids
        assert 1 <= len(pids) <= 2

    def test_results_come_when_they_are_ready(self):
        workers = set()
        while len(workers) < 2:  # the second process may still be starting; the test's own time limit ends this
            workers |= {pid for _, pid in map_processes(tell_slowly, [0, 1, 2, 3], 2)}
        first, second = map_processes(sleep_then_tell, [1.0, 0.0], 2)
        assert (first, second) == ((1, 0.0), (0, 1.0))

    def test_pool_is_used_again(self):
        pids = {result[2] for _, result in map_processes(describe, list(range(20)), 2)}
        again = {result[2] for _, result in map_processes(describe, list(range(20)), 2)}
        assert len(pids | again) <= 2

    def test_errors_of_the_function_pass_through_and_the_pool_lives(self):
        with pytest.raises(ZeroDivisionError, match="two"):
            list(map_processes(fail, [0, 1, 2, 3, 4, 5], 2))
        assert len(list(map_processes(describe, [1, 2, 3], 2))) == 3

    def test_leaving_early_leaves_the_pool_usable(self):
        for _ in map_processes(sleep_then_tell, [0.0] * 20, 2):
            break
        assert len(list(map_processes(describe, [1, 2, 3], 2))) == 3

    def test_results_that_nobody_takes_do_not_pile_up(self, tmp_path):
        """While the caller is busy with one result, no more than two items a process are begun beside it."""
        items = [str(tmp_path / str(number)) for number in range(40)]
        for taken, _ in enumerate(map_processes(leave_mark, items, 2), start=1):
            time.sleep(0.3 if taken < 4 else 0)
            assert len(list(tmp_path.iterdir())) <= taken + 4 + 2  # and a process may begin one as this looks
        assert len(list(tmp_path.iterdir())) == 40

    def test_two_threads_with_other_numbers_of_processes_leave_each_other_alone(self):
        with ThreadPoolExecutor(2) as threads:
            two = threads.submit(lambda: sorted(dict(map_processes(sleep_then_tell, [0.1] * 30, 2))))
            time.sleep(0.3)
            three = threads.submit(lambda: sorted(dict(map_processes(sleep_then_tell, [0.1] * 30, 3))))
            assert two.result() == three.result() == list(range(30))

    def test_two_threads_with_one_pool_leave_it_usable(self):
        with ThreadPoolExecutor(2) as threads:
            calls = [threads.submit(lambda: len(list(map_processes(describe, range(20), 2)))) for _ in range(2)]
            assert [call.result() for call in calls] == [20, 20]
        assert len(list(map_processes(describe, [1, 2, 3], 2))) == 3

    @needs_proc
    def test_other_numbers_of_processes_do_not_add_up(self):
        """A stage with two chunks and then one with three must not end with five idle processes."""
        list(map_processes(describe, [1, 2], 2))
        list(map_processes(describe, [1, 2, 3], 3))
        deadline = time.monotonic() + 10
        while count_workers() > 3:
            assert time.monotonic() < deadline, f"{count_workers()} workers"
            time.sleep(0.1)

    def test_killed_worker_is_told(self):
        with pytest.raises(WorkerError, match=r"a worker process was killed.*rerun to continue") as caught:
            list(map_processes(die, [0, 1, 2, 3, 4, 5], 3))
        assert "\n" not in str(caught.value)

    def test_next_call_works_and_a_worker_killed_while_idle_does_no_lasting_harm(self):
        pids = [result[2] for _, result in map_processes(describe, list(range(20)), 3)]
        os.kill(pids[0], signal.SIGKILL)
        time.sleep(0.5)
        try:
            results = list(map_processes(describe, [1, 2, 3], 3))
        except WorkerError:
            results = list(map_processes(describe, [1, 2, 3], 3))
        assert sorted(result[0] for _, result in results) == [1, 4, 9]


PARENT = """
    import sys, time
    from mzsane.parallel import map_processes

    for _, started in map_processes(time.sleep, [0.0, 0.0, 60.0, 60.0], 2):
        print("working", flush=True)
"""


@needs_proc
def test_workers_end_when_their_parent_is_killed():
    command = [sys.executable, "-c", textwrap.dedent(PARENT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as parent:
        assert parent.stdout.readline() == b"working\n"
        children = list_children(parent.pid)
        parent.kill()
    assert len(children) >= 2
    deadline = time.monotonic() + 10
    while alive := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"left behind: {alive}"
        time.sleep(0.1)
