"""The pipeline as its users run it, nothing mocked: as a library, as a command, and on a stack of its own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.presets import load_preset
from infra import stack
from infra.settings import StackSettings
from mzsane.artifacts import ArtifactStore
from mzsane.config import AblationConfig
from tests.pipeline.harness import MINI, REPOSITORY, Output, RunningStack, clean_environment, run_library, write_config


@pytest.fixture(scope="session")
def running_stack(tmp_path_factory) -> Iterator[RunningStack]:
    """The whole stack on free ports; its bucket remembers every version of every object."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    names = ("prefect_port", "mlflow_port", "s3_port")
    ports = {name: opened.getsockname()[1] for name, opened in zip(names, sockets, strict=True)}
    for opened in sockets:
        opened.close()
    home = tmp_path_factory.mktemp("stack")
    settings = StackSettings(project=REPOSITORY, home=home, **ports)
    environment = clean_environment() | {"MZSANE_CACHE": str(home / "cache")} | settings.environment()
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name not in environment:
                patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        stack.up(settings)
    running = RunningStack(settings, environment)
    try:
        running.open_bucket().put_bucket_versioning(
            Bucket=settings.bucket, VersioningConfiguration={"Status": "Enabled"}
        )
        yield running
    finally:
        stack.down(settings)


@pytest.fixture(scope="session")
def tiny() -> AblationConfig:
    """The preset `tiny`."""
    return load_preset("tiny")


@pytest.fixture(scope="session")
def reference_run(tiny, tmp_path_factory) -> ArtifactStore:
    """A local store in which `tiny` was run as a library, in this process. Read it; work in a copy."""
    store = ArtifactStore(str(tmp_path_factory.mktemp("reference") / "store"))
    run_library(tiny, store)
    return store


@pytest.fixture
def mini(tmp_path) -> Path:
    """A small ablation as a YAML file."""
    return write_config(AblationConfig.model_validate(MINI), tmp_path / "mini.yaml")


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """The environment of a user without servers; the store is `tmp_path/store`."""
    return clean_environment() | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MZSANE_ROOT": str(tmp_path / "store"),
        "MZSANE_CACHE": str(tmp_path / "cache"),
    }


@pytest.fixture
def served_environment(environment, running_stack) -> dict[str, str]:
    """The same, but Prefect's server runs already, which saves the start of a temporary one."""
    return environment | {"PREFECT_API_URL": f"{running_stack.settings.prefect_url}/api"}


_SESSION = """
import contextlib, io, json, os, sys
from flows.ablation import main
for line in sys.stdin:
    arguments, root = json.loads(line)
    os.environ["MZSANE_ROOT"] = root
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def command_session(tmp_path_factory) -> Iterator[Callable[[list[str], str], Output]]:
    """Runs commands that end before a flow starts, all in one process: most of their time would be imports."""
    home = tmp_path_factory.mktemp("session")
    process = subprocess.Popen(
        [sys.executable, "-c", _SESSION],
        cwd=REPOSITORY,
        env=clean_environment() | {"PREFECT_HOME": str(home), "DO_NOT_TRACK": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(arguments: list[str], root: str = str(home / "store")) -> Output:
        process.stdin.write(json.dumps([arguments, root]) + "\n")
        process.stdin.flush()
        return Output(*json.loads(process.stdout.readline()))

    yield run
    process.stdin.close()
    process.wait(30)
