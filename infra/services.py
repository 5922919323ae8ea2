"""What the stack consists of: services that keep running, jobs that prepare them, and what waits for what."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from infra.settings import LOCALHOST, POOL, StackSettings

WORKER = "stack"
CHECK_TIMEOUT = 3.0  # seconds one health check may take
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Step:
    """One process of the stack.

    Attributes:
        name: name of its log and record, and what other steps call it.
        title: what a person calls it.
        command: program and arguments; empty for a service that somebody else runs.
        folder: working directory.
        environment: variables on top of those of the calling shell.
        needs: names of the steps that must be ready before this one starts.
        address: where a service can be reached, for the table.
        probe: address that the health check asks.
        check: health check `(probe, launched) -> healthy`; None marks a job, which is ready when it exits with 0.
        port: port that a service listens on.
        port_variable: environment variable that changes the port.
    """

    name: str
    title: str
    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    needs: tuple[str, ...] = ()
    address: str = ""
    probe: str = ""
    check: Callable[[str, float], bool] | None = field(default=None, compare=False)
    port: int | None = None
    port_variable: str = ""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that was decided for this process, to notice changed settings."""
        decided = [self.command, str(self.folder), dict(self.environment), self.address]
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def list_services(settings: StackSettings) -> list[Step]:
    """Return the services, in the order in which they may be started one by one."""
    environment = _build_environment(settings)
    return [
        _describe_s3(settings, environment),
        Step(
            name="prefect",
            title="Prefect server",
            command=_run_module(
                *("prefect", "--no-prompt", "server", "start"),
                *("--host", LOCALHOST, "--port", str(settings.prefect_port)),
            ),
            folder=settings.home,
            environment=environment
            | {
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{settings.home}/prefect/prefect.db",
                # Parts of an ablation wait for their turn, which is not late; and marking many at once locks the
                # database for those that run.
                "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
                "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            },
            address=settings.prefect_url,
            probe=f"{settings.prefect_url}/api/health",
            check=_answers,
            port=settings.prefect_port,
            port_variable="MZSANE_PREFECT_PORT",
        ),
        Step(
            name="mlflow",
            title="MLflow server",
            command=_run_module(
                *("mlflow", "server", "--host", LOCALHOST, "--port", str(settings.mlflow_port), "--workers", "1"),
                *("--backend-store-uri", _locate_mlflow_database(settings)),
                *("--serve-artifacts", "--artifacts-destination", f"s3://{settings.bucket}/mlflow"),
            ),
            folder=settings.home,
            # Without jobs (evaluations that run on the server) it is two processes; with them nine, 1.3 GB more.
            environment=environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            needs=("mlflow-migration",),
            address=settings.mlflow_url,
            probe=f"{settings.mlflow_url}/health",
            check=_answers,
            port=settings.mlflow_port,
            port_variable="MZSANE_MLFLOW_PORT",
        ),
        Step(
            name="worker",
            title="Prefect worker",
            command=_run_module(
                *("prefect", "--no-prompt", "worker", "start"),
                *("--pool", POOL, "--type", "process", "--name", WORKER),
            ),
            folder=settings.project,
            environment=environment | _share_cores(settings.compute_slots),
            # Runs that wait in the queues start at once, and they use everything.
            needs=("bucket", "mlflow", "pool"),
            address=f"work pool {POOL}",
            probe=f"{settings.prefect_url}/api/work_pools/{POOL}/workers/filter",
            check=_is_polling,
        ),
    ]


def _share_cores(slots: int) -> dict[str, str]:
    """Return what tells each of several flow runs at a time how many cores are its own, in processes and in threads."""
    if slots == 1:
        return {}
    each = str(max(1, (os.cpu_count() or 1) // slots))
    return {"MZSANE_CORES": each, "OMP_NUM_THREADS": each}


def list_jobs(settings: StackSettings, dead: set[str]) -> list[Step]:
    """Return the jobs: every one can be repeated without harm.

    Args:
        settings: the stack's settings.
        dead: names of the services that do not run and will be started.
    """
    environment = _build_environment(settings)
    slots = ("--compute-slots", str(settings.compute_slots))
    orphans = ("--crash-orphans",) if "worker" in dead else ()
    migration = Step(
        name="mlflow-migration",
        title="MLflow database",
        command=_run_module("mlflow", "db", "upgrade", _locate_mlflow_database(settings)),
        folder=settings.home,
        environment=environment,
    )
    return [
        *([migration] if "mlflow" in dead else []),
        Step(
            name="bucket",
            title=f"bucket {settings.bucket}",
            command=_run_module("infra.bucket", settings.bucket),
            folder=REPOSITORY,
            environment=environment,
            needs=("s3",),
        ),
        Step(
            name="pool",
            title=f"work pool {POOL}",
            command=_run_module("infra.pool", *slots, *orphans),
            folder=REPOSITORY,
            environment=environment,
            needs=("prefect",),
        ),
        Step(
            name="deployments",
            title="deployments",
            command=_run_module("prefect", "--no-prompt", "deploy", "--all"),
            folder=settings.project,
            environment=environment,
            needs=("pool",),
        ),
    ]


def _describe_s3(settings: StackSettings, environment: dict[str, str]) -> Step:
    if not settings.uses_moto:
        return Step(
            name="s3",
            title="S3 endpoint",
            command=(),
            folder=settings.home,
            environment=environment,
            address=settings.s3_url,
            probe=settings.s3_url,
            check=_answers,
        )
    return Step(
        name="s3",
        title="S3 (moto)",
        command=_run_module("moto.server", "--host", LOCALHOST, "--port", str(settings.s3_port)),
        folder=settings.home,
        environment=environment,
        address=settings.s3_url,
        probe=f"{settings.s3_url}/moto-api/",
        check=_answers,
        port=settings.s3_port,
        port_variable="MZSANE_S3_PORT",
    )


def _build_environment(settings: StackSettings) -> dict[str, str]:
    return settings.environment() | {
        "PYTHONPATH": str(settings.project),
        "PYTHONUNBUFFERED": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }


def _run_module(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def _locate_mlflow_database(settings: StackSettings) -> str:
    return f"sqlite:///{settings.home}/mlflow.db"


def _answers(probe: str, launched: float) -> bool:
    """Tell whether anything but a server error comes back; `launched` does not matter here."""
    try:
        with urllib.request.urlopen(probe, timeout=CHECK_TIMEOUT):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


def _is_polling(probe: str, launched: float) -> bool:
    """Tell whether the stack's worker has reported to the Prefect server since it was launched."""
    request = urllib.request.Request(probe, data=b"{}", headers={"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=CHECK_TIMEOUT) as response:
            workers = json.load(response)
    except (OSError, ValueError):
        return False
    return any(
        worker["name"] == WORKER
        and worker["status"] == "ONLINE"
        and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() >= launched
        for worker in workers
    )
