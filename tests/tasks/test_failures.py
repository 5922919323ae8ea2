"""What a command says of failures that are no fault of the program, and what logs and traces leave out."""

import errno
import io
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mzsane.errors import ConfigError, StoreError
from tasks.command import report_errors
from tasks.failures import explain_failure, print_without_secrets
from tasks.logs import quiet_expected_errors
from tasks.terminal import refuse_command
from tasks.tracking import Tracker, _make_client

C = "CANARYxyz9"
URL = f"http://alice:{C}@127.0.0.1:1/mlflow"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("wrong"), 2, "wrong"),
        (StoreError(f"no {URL}"), 1, "no http://127.0.0.1:1/mlflow"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "/x/y: free some space"),
        (OSError(errno.EFBIG, "File too large"), 1, "MZSANE_ROOT"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "/x: give the right to it"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 1, "another port"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "ulimit"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/y"), 1, "is it what you meant"),
        (MemoryError(), 1, "out of memory"),
        (ExceptionGroup("many", [ExceptionGroup("one", [MemoryError()])]), 1, "out of memory"),
        (RuntimeError("Failed to reach API at http://127.0.0.1:9/api/"), 1, "PREFECT_API_URL"),
    ],
)
def test_what_the_program_has_not_done_is_one_line(error, code, said, capsys) -> None:
    def fail() -> int:
        raise error

    assert report_errors(fail) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert C not in err


def test_faults_of_the_program_are_left_to_python() -> None:
    for error in (ZeroDivisionError(), KeyError("x"), OSError("without a number"), RuntimeError("x")):
        assert explain_failure(error) is None


def test_a_trace_holds_no_secret(capsys) -> None:
    text = f"{URL} failed"
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        print_without_secrets(type(error), error, error.__traceback__)
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "RuntimeError: http://127.0.0.1:1/mlflow failed" in err
    assert C not in err


def test_a_closed_pipe_is_no_error() -> None:
    script = "import sys\nfrom tasks.command import report_errors\n"
    script += "sys.exit(report_errors(lambda: [print('x' * 1000) for _ in range(10000)] and 0))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    err = process.stderr.read().decode()
    process.wait(60)
    assert "Traceback" not in err
    process.stderr.close()


def test_a_limit_of_files_is_one_line(tmp_path: Path) -> None:
    limited = tmp_path / "zoo.yaml"
    limited.write_text("name: z\nimages: {source: digits}\nmodels: 2\nepochs: 1\nkeep_epochs: 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "flows.zoo", "make", str(limited)],
        env=os.environ | {"MZSANE_ROOT": str(tmp_path / "store"), "PREFECT_HOME": str(tmp_path / "prefect")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4, 4)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


class TestLogs:
    @pytest.fixture(autouse=True)
    def factory(self):
        before = logging.getLogRecordFactory()
        quiet_expected_errors()
        yield
        logging.setLogRecordFactory(before)

    def log(self, name: str = "urllib3") -> tuple[logging.Logger, io.StringIO]:
        logger, text = logging.getLogger(f"{name}.test"), io.StringIO()
        logger.handlers = [logging.StreamHandler(text)]
        logger.propagate = False
        return logger, text

    def test_no_library_logs_a_secret(self):
        logger, text = self.log()
        logger.warning("retrying %s after %d: %s", URL, 3, {"url": f"/x?token={C}"})
        logger.warning("%s of %s", 1, 2)
        assert C not in text.getvalue()
        assert "retrying http://127.0.0.1:1/mlflow after 3" in text.getvalue()
        assert "1 of 2" in text.getvalue()

    def test_traces_are_cleaned(self):
        logger, text = self.log()
        address = URL  # not in the line of code that the trace shows
        try:
            raise RuntimeError(address)
        except RuntimeError:
            logger.exception("failed")
        assert C not in text.getvalue()
        assert "RuntimeError: http://127.0.0.1:1/mlflow" in text.getvalue()

    def test_it_is_installed_once(self):
        factory = logging.getLogRecordFactory()
        quiet_expected_errors()
        assert logging.getLogRecordFactory() is factory


def test_tracking_says_no_password_and_uses_it(monkeypatch, caplog) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    _make_client.cache_clear()
    tracker = Tracker(URL.replace(C, f"{C}%2F"), logging.getLogger("test"))
    assert tracker.open_zoo("z", "key") is None
    assert tracker.address == "http://127.0.0.1:1/mlflow"
    assert "TRACKING IS LOST: MLflow at http://127.0.0.1:1/mlflow failed" in caplog.text
    assert C not in caplog.text
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "alice"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == f"{C}/"


def test_flows_that_are_no_commands_say_so(capsys) -> None:
    assert refuse_command("tokens", "tokens/build") == 2
    assert "no command" in capsys.readouterr().err
