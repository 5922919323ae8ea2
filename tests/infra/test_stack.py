"""The local stack, started for real on free ports, with a small project of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import boto3
import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient

from infra import processes, stack
from infra.services import list_services
from infra.settings import VARIABLES, StackError, StackSettings

REPOSITORY = Path(__file__).resolve().parents[2]

FLOW = """
import os, subprocess, sys, time
from pathlib import Path
from prefect import flow

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

@flow(name="greeting")
def greet(path: str, seconds: float = 0.0):
    # A child that hides: its own session, nothing in its environment.
    child = subprocess.Popen(SLEEP, start_new_session=True, env={}) if seconds else None
    draft = Path(path + ".new")
    draft.write_text(f"{os.getpid()} {child.pid if child else 0} {os.environ['MZSANE_ROOT']}")
    draft.rename(path)
    time.sleep(seconds)
"""

DEPLOYMENTS = """
name: scratch
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: {project}
deployments:
  - name: control
    entrypoint: hello.py:greet
    work_pool: {{name: local, work_queue_name: control}}
  - name: compute
    entrypoint: hello.py:greet
    work_pool: {{name: local, work_queue_name: compute}}
"""


def find_free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def make_settings(folder: Path, **changes) -> StackSettings:
    (folder / "hello.py").write_text(FLOW)
    (folder / "prefect.yaml").write_text(DEPLOYMENTS.format(project=folder))
    ports = dict(zip(("prefect_port", "mlflow_port", "s3_port"), find_free_ports(3), strict=True))
    return StackSettings(project=folder, **{**ports, **changes})


def await_true(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def open_prefect(settings: StackSettings) -> SyncPrefectClient:
    # Asks again where the server's database is busy (503).
    return SyncPrefectClient(api=f"{settings.prefect_url}/api")


def start_run(settings: StackSettings, queue: str, path: Path, seconds: float = 0.0) -> UUID:
    with open_prefect(settings) as client:
        deployment = client.read_deployment_by_name(f"greeting/{queue}")
        parameters = {"path": str(path), "seconds": seconds}
        return client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id


def read_state(settings: StackSettings, run: UUID) -> str | None:
    with open_prefect(settings) as client:
        return client.read_flow_run(run).state_type


def start_command(settings: StackSettings, command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "infra.stack", command],
        cwd=settings.project,
        env={**os.environ, **settings.environment(), "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_command(settings: StackSettings, command: str) -> tuple[int, str]:
    process = start_command(settings, command)
    output, _ = process.communicate()
    return process.returncode, output


def collect_pids(settings: StackSettings) -> dict[str, int | None]:
    return {row.name: row.pid for row in stack.status(settings)}


def assert_nothing_left(settings: StackSettings) -> None:
    assert processes.find_members(str(settings.home)) == set()
    for port in (settings.prefect_port, settings.mlflow_port, settings.s3_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert not list(settings.home.glob("*.json"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackSettings]:
    settings = make_settings(tmp_path_factory.mktemp("project"))
    stack.up(settings)
    yield settings
    stack.down(settings)


def test_up_makes_everything_healthy(settings: StackSettings) -> None:
    assert {row.name: row.state for row in stack.status(settings)} == dict.fromkeys(
        ("s3", "prefect", "mlflow", "worker"), "healthy"
    )
    exit_status, output = run_command(settings, "status")
    assert exit_status == 0, output
    assert output.count("healthy") == 4
    assert "<div id=" in httpx.get(settings.prefect_url, follow_redirects=True).text


def test_queues_have_their_limits(settings: StackSettings) -> None:
    queues = httpx.post(f"{settings.prefect_url}/api/work_pools/local/queues/filter", json={}).json()
    limits = {queue["name"]: queue["concurrency_limit"] for queue in queues}
    assert limits["compute"] == 1
    assert limits["control"] is None


@pytest.mark.parametrize("slots", [1, 2])
def test_flow_runs_at_the_same_time_share_the_cores(tmp_path: Path, slots: int) -> None:
    services = {step.name: step for step in list_services(make_settings(tmp_path, compute_slots=slots))}
    names, given = ("MZSANE_CORES", "OMP_NUM_THREADS"), services["worker"].environment
    share = str(max(1, os.cpu_count() // slots))
    assert [given.get(name) for name in names] == ([None, None] if slots == 1 else [share, share])


def test_env_file_is_private_and_reaches_the_stack(settings: StackSettings) -> None:
    assert settings.env_file.stat().st_mode & 0o777 == 0o600
    command = f". {settings.env_file} && echo $PREFECT_API_URL $MLFLOW_TRACKING_URI $MZSANE_ROOT $AWS_SECRET_ACCESS_KEY"
    output = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    assert output.split() == [f"{settings.prefect_url}/api", settings.mlflow_url, "s3://mzsane/store", "mzsane-local"]


def test_mlflow_artifacts_go_to_the_bucket(settings: StackSettings) -> None:
    address = f"{settings.mlflow_url}/api/2.0/mlflow-artifacts/artifacts/probe.txt"
    httpx.put(address, content=b"hello", timeout=60).raise_for_status()
    keys = {"aws_access_key_id": "mzsane", "aws_secret_access_key": "mzsane-local", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=settings.s3_url, **keys)
    assert client.get_object(Bucket="mzsane", Key="mlflow/probe.txt")["Body"].read() == b"hello"


def test_worker_runs_a_deployed_flow(settings: StackSettings, tmp_path: Path) -> None:
    run = start_run(settings, "control", tmp_path / "out")
    await_true(lambda: read_state(settings, run) == "COMPLETED")
    assert (tmp_path / "out").read_text().split()[2] == "s3://mzsane/store"


def test_killed_worker_is_restarted_and_its_run_crashes(settings: StackSettings, tmp_path: Path) -> None:
    run = start_run(settings, "compute", tmp_path / "out", seconds=600)
    await_true((tmp_path / "out").exists)
    flow = processes.identify(int((tmp_path / "out").read_text().split()[0]))
    before = collect_pids(settings)
    os.kill(before["worker"], signal.SIGKILL)
    await_true(lambda: {row.name: row.state for row in stack.status(settings)}["worker"] == "dead")
    assert run_command(settings, "status")[0] == 3

    stack.up(settings)

    after = collect_pids(settings)
    assert after["worker"] not in (None, before["worker"])
    assert {**after, "worker": 0} == {**before, "worker": 0}
    assert not processes.is_alive(flow)
    assert read_state(settings, run) == "CRASHED"


def test_running_stack_refuses_other_settings(settings: StackSettings) -> None:
    before = collect_pids(settings)
    with pytest.raises(StackError, match="other settings"):
        stack.up(settings.model_copy(update={"bucket": "another"}))
    assert collect_pids(settings) == before


def test_down_leaves_nothing(settings: StackSettings, tmp_path: Path) -> None:
    # The queue's only slot is free again after the crash above, or this run would not start.
    start_run(settings, "compute", tmp_path / "out", seconds=600)
    await_true((tmp_path / "out").exists)
    family = [processes.identify(int(pid)) for pid in (tmp_path / "out").read_text().split()[:2]]
    assert None not in family
    stack.down(settings)
    assert not any(processes.is_alive(member) for member in family)
    assert_nothing_left(settings)
    assert not settings.env_file.exists()
    assert (settings.home / "prefect" / "prefect.db").exists()
    assert {row.state for row in stack.status(settings)} == {"stopped"}
    assert run_command(settings, "down") == (0, "")


def test_up_names_the_variable_of_a_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = make_settings(tmp_path, mlflow_port=port)
        with pytest.raises(StackError, match=rf"port {port} for MLflow server.*MZSANE_MLFLOW_PORT"):
            stack.up(settings)
    assert processes.find_members(str(settings.home)) == set()


def test_up_stops_everything_when_a_service_fails(tmp_path: Path) -> None:
    dead_port = find_free_ports(1)[0]
    keys = {"access_key": "visible", "secret_key": "hidden"}
    settings = make_settings(tmp_path, s3_endpoint=f"http://127.0.0.1:{dead_port}", start_timeout=2.0, **keys)
    with pytest.raises(StackError, match="S3 endpoint is not ready after 2 s"):
        stack.up(settings)
    assert_nothing_left(settings)


def test_interrupted_up_stops_what_it_started(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    process = start_command(settings, "up")
    await_true((settings.home / "prefect.json").exists)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert_nothing_left(settings)


def test_recycled_pid_is_left_alone(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    settings.home.mkdir(parents=True)
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        record = {"pid": bystander.pid, "start": processes.identify(bystander.pid).start - 1, "launched": 0.0}
        record |= {"address": "", "probe": "", "fingerprint": ""}
        (settings.home / "mlflow.json").write_text(json.dumps(record))
        assert {row.name: row.state for row in stack.status(settings)}["mlflow"] == "dead"
        stack.down(settings)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*VARIABLES.values(), "MZSANE_STACK_MOTO"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_real_endpoint_needs_keys(bare_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare_environment.setenv("MZSANE_S3_ENDPOINT", "https://s3.example.org")
    bare_environment.setenv("AWS_ACCESS_KEY_ID", "visible")
    with pytest.raises(StackError, match=r"needs keys: set AWS_SECRET_ACCESS_KEY$") as error:
        StackSettings.from_environment(tmp_path)
    assert "visible" not in str(error.value)


def test_wrong_value_names_its_variable(bare_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare_environment.setenv("MZSANE_PREFECT_PORT", "many")
    with pytest.raises(StackError, match=r"^MZSANE_PREFECT_PORT='many': [^;]*$"):
        StackSettings.from_environment(tmp_path)


def test_sourced_env_file_does_not_turn_moto_into_a_real_endpoint(
    bare_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = StackSettings.from_environment(tmp_path)
    for name, value in first.environment().items():
        bare_environment.setenv(name, value)
    assert StackSettings.from_environment(tmp_path) == first
    bare_environment.setenv("MZSANE_S3_ENDPOINT", "https://s3.example.org")
    assert not StackSettings.from_environment(tmp_path).uses_moto


def test_keys_do_not_show(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, s3_endpoint="https://s3.example.org", access_key="visible", secret_key="hidden")
    assert "visible" not in repr(settings)
    assert "hidden" not in repr(settings)
