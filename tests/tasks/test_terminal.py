"""How a command ends: with an exit code, one line for an expected error, and nothing left of what it has started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mzsane.errors import ConfigError, MzsaneError, WorkerError
from tasks.command import report_errors

WAITING = """
import os, sys, time
from pathlib import Path

import polars  # which changes how an interrupt is heard

from mzsane.parallel import map_processes
from tasks.command import report_errors

def wait(folder):
    (folder / str(os.getpid())).touch()
    time.sleep(300)

if __name__ == "__main__":
    sys.exit(report_errors(lambda: len(list(map_processes(wait, 2 * [Path(sys.argv[1])], 2)))))
"""


@pytest.mark.parametrize(("error", "code"), [(ConfigError, 2), (WorkerError, 1)])
def test_an_expected_error_is_one_line(error: type[MzsaneError], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error("this\nand that")

    assert report_errors(fail) == code
    assert capsys.readouterr().err == "error: this and that\n"


def test_other_errors_pass_and_the_handler_of_before_is_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError):
        report_errors(lambda: 1 // 0)
    assert report_errors(lambda: 3) == 3
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_stopped_command_ends_at_once_and_its_workers_with_it(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    script, started = tmp_path / "waiting.py", tmp_path / "started"
    script.write_text(WAITING)
    started.mkdir()
    command = subprocess.Popen(
        [sys.executable, str(script), str(started)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
    )
    try:
        while len(workers := [int(path.name) for path in started.iterdir()]) < 2:
            assert command.poll() is None, command.communicate()[1].decode()
            time.sleep(0.1)
        command.send_signal(number)
        command.communicate(timeout=30)
        assert command.returncode == code
        assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    finally:
        command.kill()
