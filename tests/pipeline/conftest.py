"""The pipeline as its users run it, nothing mocked: as a library, as a command, and on a stack of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows.presets import load_preset
from infra import stack
from mzsane.config import AblationConfig
from mzsane.store.artifacts import ArtifactStore
from tests.pipeline.harness import (
    MINI,
    REPOSITORY,
    Output,
    RunningStack,
    clean_environment,
    run_library,
    start_stack,
    write_config,
)

HERE = Path(__file__).parent
WATCHED = "watched-by-the-tests"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of this folder that need no stack first: it starts meanwhile (`head_start`)."""
    places = [place for place, item in enumerate(items) if item.path.parent == HERE]
    ordered = sorted((items[place] for place in places), key=lambda item: "running_stack" in item.fixturenames)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


@dataclass
class HeadStart:
    """What runs in the background from the folder's first test on."""

    home: Path
    running: Future[RunningStack] | None = None
    watched: Future[None] | None = None
    commands: list[subprocess.Popen] = field(default_factory=list)

    def watch_run(self) -> None:
        """Run `prefect deployment run ablation/zoo-composition --watch` with the preset `tiny`."""
        running = self.running.result()
        command = ["deployment", "run", "ablation/zoo-composition", "--watch", "--tag", WATCHED]
        parameters = ["--param", 'preset="tiny"', "--param", 'execution={"processes": 1}']
        parameters += ["--param", 'settings=["seeds=[0]"]']  # what it is anyway: the numbers are those of the library
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command, *parameters],
            cwd=REPOSITORY,
            env=running.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.commands.append(process)
        output, _ = process.communicate()
        assert process.returncode == 0, output


@pytest.fixture(scope="session", autouse=True)
def head_start(request, tmp_path_factory) -> Iterator[HeadStart]:
    """Starts what takes long and needs nobody: the stack, and a run on it."""
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    started = HeadStart(tmp_path_factory.mktemp("stack"))
    with ThreadPoolExecutor(2) as executor:
        if "running_stack" in wanted:
            started.running = executor.submit(start_stack, started.home)
        if "watched" in wanted:
            started.watched = executor.submit(started.watch_run)
        yield started
        for command in started.commands:
            command.kill()
        if started.running is not None and started.running.exception() is None:
            stack.down(started.running.result().settings)


@pytest.fixture(scope="session")
def running_stack(head_start) -> RunningStack:
    """The whole stack, with every flow deployed."""
    return head_start.running.result()


@pytest.fixture(scope="session")
def watched(head_start, running_stack):
    """The flow run of `prefect deployment run ablation/zoo-composition --watch` with the preset `tiny`."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

    head_start.watched.result()
    with running_stack.open_prefect() as client:
        (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[WATCHED])))
    return run


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
from flows.commands.app import main
for line in sys.stdin:
    arguments, variables = json.loads(line)
    os.environ.update(variables)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["ablate", *arguments])
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture(scope="session")
def command_session(tmp_path_factory) -> Iterator[Callable[..., Output]]:
    """Runs commands that start no flow, all in one process: most of the time of each would be imports."""
    home = tmp_path_factory.mktemp("session")
    process = subprocess.Popen(
        [sys.executable, "-c", _SESSION],
        cwd=REPOSITORY,
        env=clean_environment() | {"PREFECT_HOME": str(home), "DO_NOT_TRACK": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(arguments: list[str], root: str | None = None, tracking: str = "") -> Output:
        variables = {"MZSANE_ROOT": root or str(home / "store"), "MLFLOW_TRACKING_URI": tracking}
        process.stdin.write(json.dumps([arguments, variables]) + "\n")
        process.stdin.flush()
        return Output(*json.loads(process.stdout.readline()))

    yield run
    process.stdin.close()
    process.wait()
