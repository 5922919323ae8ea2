"""What the tests of whole runs share: a small ablation, a stack of its own, and ways to run the pipeline."""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from pydantic import BaseModel

from infra import stack
from infra.settings import StackSettings
from mzsane.config import AblationConfig, ExecutionConfig
from mzsane.metrics import NO_SINK
from mzsane.plan import plan_ablation, plan_comparison_stage
from mzsane.store.artifacts import Artifact, ArtifactStore

REPOSITORY = Path(__file__).resolve().parents[2]
SERIAL = ExecutionConfig(processes=1)

# One zoo, one arm, one target: for commands whose way matters and not their numbers.
MINI: dict[str, Any] = {
    "name": "mini",
    "zoos": [
        {
            "name": "letters",
            "images": {"source": "glyphs", "characters": "ABCD", "images": 120},
            "models": 6,
            "epochs": 1,
            "keep_epochs": 1,
            "batch_size": 64,
        }
    ],
    "tokens": {"train_fraction": 0.5, "validation_fraction": 0.17},
    "compositions": [{"name": "letters", "slices": [{"zoo": "letters", "models": 3}]}],
    "backbone": {
        "d_model": 16,
        "heads": 1,
        "layers": 1,
        "latent_dim": 8,
        "steps": 60,
        "batch_size": 4,
        "validations": 1,
    },
    "targets": [{"name": "letters", "zoo": "letters"}],
    "sampling": {"anchors": 2, "bandwidth": 0.1, "samples": 4, "keep": 2},
    "evaluation": {
        "finetune_epochs": [0, 1],
        "finetune_models": 1,
        "learning_rates": [0.001],
        "batch_size": 64,
        "distillation_steps": [3],
        "distilled_models": 2,
    },
}


def run_library(config: AblationConfig, store: ArtifactStore, execution: ExecutionConfig = SERIAL) -> Artifact:
    """Run an ablation without any orchestrator; return its comparison."""
    for stage in plan_ablation(config):
        comparison = stage.make(store, execution, NO_SINK)
    return comparison


def read_comparison(config: AblationConfig, store: ArtifactStore) -> pl.DataFrame:
    """Return the rows of a finished ablation."""
    return pl.read_parquet(store.open(plan_comparison_stage(config).work.ref).path("comparison.parquet"))


def have_equal_rows(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Tell whether two comparisons say the same, but for the seconds that it took."""
    return one.drop("seconds").equals(other.drop("seconds"))


def wait_until(condition: Callable[[], Any], what: str, pause: float = 0.5, seconds: float = 300.0) -> Any:
    """Wait until a condition, which is asked every `pause` seconds, gives something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(pause)
    return value


def clean_environment() -> dict[str, str]:
    """Return this process's environment without anything that leads to a server or a store."""
    foreign = ("PREFECT_", "MLFLOW_", "MZSANE_", "AWS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return environment | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def write_config(config: AblationConfig, path: Path) -> Path:
    """Write a config as a user would: a YAML file."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


@dataclass(frozen=True)
class Output:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that tell a user what went wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    def assert_refused(self, *parts: str) -> None:
        """Assert that the command failed with one line that names all parts, and without a trace."""
        assert self.code != 0, self.out
        assert len(self.errors) == 1, self.err
        assert [part for part in parts if part not in self.errors[0]] == [], self.errors[0]
        assert "Traceback" not in self.out + self.err, self.err


def start_command(
    arguments: list[str], environment: dict[str, str], module: str = "flows.ablation"
) -> subprocess.Popen:
    """Start `python -m flows.ablation`, as a shell does in a group of processes of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_command(arguments: list[str], environment: dict[str, str]) -> Output:
    """Run `python -m flows.ablation`."""
    return finish_command(start_command(arguments, environment))


def finish_command(process: subprocess.Popen) -> Output:
    """Wait for a command."""
    out, err = process.communicate()
    return Output(process.returncode, out, err)


@dataclass(frozen=True)
class RunningStack:
    """A Prefect server, an MLflow server, object storage and a worker, with every flow deployed."""

    settings: StackSettings
    environment: dict[str, str]

    @property
    def worker_pid(self) -> int:
        """The worker, the parent of all processes that execute deployed runs."""
        return next(row.pid for row in stack.status(self.settings) if row.name == "worker")

    def open_store(self, cache: Path) -> ArtifactStore:
        """Return the store that the worker's flows use, seen from here with a cache of its own."""
        options = {
            "endpoint_url": self.settings.s3_url,
            "key": self.environment["AWS_ACCESS_KEY_ID"],
            "secret": self.environment["AWS_SECRET_ACCESS_KEY"],
            "client_kwargs": {"region_name": self.settings.region},
            "use_listings_cache": False,
        }
        return ArtifactStore(self.settings.root, cache=cache, options=options)

    def open_bucket(self):
        """Return an S3 client, for what the store does not tell."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.settings.s3_url,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.settings.region,
        )

    def open_prefect(self):
        """Return a client of the Prefect server, to be used as a context manager."""
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(api=f"{self.settings.prefect_url}/api")

    def open_mlflow(self):
        """Return a client of the MLflow server."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.settings.mlflow_url)

    def list_writes(self) -> dict[str, int]:
        """Return how often each key of the bucket was written so far, the removed ones too."""
        pages = self.open_bucket().get_paginator("list_object_versions").paginate(Bucket=self.settings.bucket)
        writes: dict[str, int] = {}
        for version in (version for page in pages for version in page.get("Versions", [])):
            writes[version["Key"]] = writes.get(version["Key"], 0) + 1
        return writes


def start_stack(home: Path) -> RunningStack:
    """Start the whole stack as a user does; its bucket remembers every version of every object."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    names = ("prefect_port", "mlflow_port", "s3_port")
    ports = {name: opened.getsockname()[1] for name, opened in zip(names, sockets, strict=True)}
    for opened in sockets:
        opened.close()
    settings = StackSettings(project=REPOSITORY, home=home, **ports)
    environment = clean_environment() | {"MZSANE_CACHE": str(home / "cache")} | settings.environment()
    command = [sys.executable, "-m", "infra.stack", "up"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    running = RunningStack(settings, environment)
    running.open_bucket().put_bucket_versioning(Bucket=settings.bucket, VersioningConfiguration={"Status": "Enabled"})
    return running


def start_deployed(running: RunningStack, name: str, **parameters: BaseModel) -> uuid.UUID:
    """Submit a run to the work pool, as the Prefect form does; return the flow run."""
    data = {key: value.model_dump(mode="json") for key, value in parameters.items()}
    with running.open_prefect() as client:
        deployment = client.read_deployment_by_name(name)
        return client.create_flow_run_from_deployment(deployment.id, parameters=data).id


def list_files(folder: str) -> list[Path]:
    """Return all files below a folder."""
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())
