"""Settings of the local stack: ports, folders, object storage, and the environment that they imply."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mzsane.addresses import check_address, hide_secrets

LOCALHOST = "127.0.0.1"
POOL = "local"

# moto accepts any pair of keys; a fixed one keeps a user's real keys away from it.
MOTO_ACCESS_KEY = "mzsane"
MOTO_SECRET_KEY = "mzsane-local"

# Which environment variable sets which field.
VARIABLES = {
    "home": "MZSANE_STACK_HOME",
    "prefect_port": "MZSANE_PREFECT_PORT",
    "mlflow_port": "MZSANE_MLFLOW_PORT",
    "s3_port": "MZSANE_S3_PORT",
    "bucket": "MZSANE_S3_BUCKET",
    "root": "MZSANE_ROOT",
    "compute_slots": "MZSANE_COMPUTE_SLOTS",
    "region": "AWS_DEFAULT_REGION",
    "s3_endpoint": "MZSANE_S3_ENDPOINT",
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}
S3_FIELDS = ("s3_endpoint", "access_key", "secret_key", "session_token")

Port = Annotated[int, Field(ge=1, le=65535)]


class StackError(RuntimeError):
    """The stack cannot do what was asked; the message is written for its user."""


class StackSettings(BaseModel):
    """What to start, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    project: Path = Field(default_factory=Path.cwd, description="Folder of prefect.yaml; where flows run.")
    home: Path = Field(
        default_factory=lambda fields: fields["project"] / ".mzsane" / "stack",
        description="State folder: databases, logs, process records, the env file.",
    )
    prefect_port: Port = Field(default=4200, description="Port of the Prefect server and its UI.")
    mlflow_port: Port = Field(default=5000, description="Port of the MLflow server and its UI.")
    s3_port: Port = Field(default=9000, description="Port of moto, when no endpoint is given.")
    s3_endpoint: str | None = Field(default=None, description="URL of a real S3 endpoint; none starts moto.")
    access_key: str = Field(default="", repr=False, description="Access key id of the real endpoint.")
    secret_key: str = Field(default="", repr=False, description="Secret access key of the real endpoint.")
    session_token: str = Field(default="", repr=False, description="Session token, for temporary keys.")
    region: str = Field(default="us-east-1", description="Region that S3 requests are signed for.")
    bucket: str = Field(default="mzsane", description="Bucket of artifacts; created when missing.")
    root: str = Field(
        default_factory=lambda fields: f"s3://{fields['bucket']}/store",
        description="Root of the artifact store, any fsspec URL.",
    )
    compute_slots: int = Field(default=1, ge=1, description="Flow runs of the queue `compute` at one time.")
    start_timeout: float = Field(default=180.0, gt=0, description="Seconds a service or a job may take to be ready.")

    @field_validator("project", "home")
    @classmethod
    def _make_absolute(cls, path: Path) -> Path:
        return path.expanduser().resolve()

    @field_validator("s3_endpoint", "root")
    @classmethod
    def _refuse_passwords(cls, address: str | None) -> str | None:
        try:
            return address if address is None else check_address(address)
        except ValueError:
            raise ValueError(
                "an address with a user or password would be shown and stored: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            ) from None

    @model_validator(mode="after")
    def _require_keys(self) -> StackSettings:
        if self.s3_endpoint:
            missing = [VARIABLES[name] for name in ("access_key", "secret_key") if not getattr(self, name)]
            if missing:
                raise ValueError(f"the S3 endpoint {self.s3_endpoint} needs keys: set {' and '.join(missing)}")
        return self

    @classmethod
    def from_environment(cls, project: Path | None = None) -> StackSettings:
        """Read the settings from environment variables (`VARIABLES` names them).

        Args:
            project: folder of `prefect.yaml`; the current directory when not given.

        Raises:
            StackError: a variable holds a value that is not allowed, or a real endpoint comes without keys.
        """
        values = {field: os.environ[name] for field, name in VARIABLES.items() if os.environ.get(name)}
        # The env file of a stack with moto exports moto's own address: that is no real endpoint.
        if values.get("s3_endpoint") in (None, os.environ.get("MZSANE_STACK_MOTO")):
            values = {field: value for field, value in values.items() if field not in S3_FIELDS}
        try:
            return cls(project=project or Path.cwd(), **values)
        except ValidationError as error:
            # A default that hangs on a wrong value is no error of its own.
            problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
            raise StackError("; ".join(_describe(problem) for problem in problems)) from None

    @property
    def prefect_url(self) -> str:
        """Address of the Prefect server's UI; the API is at `/api` below it."""
        return f"http://{LOCALHOST}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        """Address of the MLflow server."""
        return f"http://{LOCALHOST}:{self.mlflow_port}"

    @property
    def s3_url(self) -> str:
        """Address of the S3 endpoint, moto's or the real one."""
        return self.s3_endpoint or f"http://{LOCALHOST}:{self.s3_port}"

    @property
    def uses_moto(self) -> bool:
        """Whether the stack starts its own S3 endpoint, whose objects live in memory."""
        return self.s3_endpoint is None

    @property
    def env_file(self) -> Path:
        """File of `export NAME=value` lines that `up` writes."""
        return self.home / "env"

    def environment(self) -> dict[str, str]:
        """Return the variables that make a shell, a flow or a notebook use this stack, keys included."""
        variables = {
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_S3_ENDPOINT_URL": self.s3_url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MZSANE_ROOT": self.root,
            "MZSANE_S3_ENDPOINT": self.s3_url,
            "MZSANE_S3_BUCKET": self.bucket,
            "MZSANE_STACK_HOME": str(self.home),
            "MZSANE_PREFECT_PORT": str(self.prefect_port),
            "MZSANE_MLFLOW_PORT": str(self.mlflow_port),
            "MZSANE_S3_PORT": str(self.s3_port),
            "AWS_ACCESS_KEY_ID": self.access_key or MOTO_ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": self.secret_key or MOTO_SECRET_KEY,
            "AWS_DEFAULT_REGION": self.region,
            # S3 servers that are not Amazon's reject the trailing checksums that newer clients send by default.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }
        if self.session_token:
            variables["AWS_SESSION_TOKEN"] = self.session_token
        if self.uses_moto:
            variables["MZSANE_STACK_MOTO"] = self.s3_url
        return variables


def _describe(problem: dict) -> str:
    """Return one line for one pydantic error: the variable, its value, what is allowed."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    field = problem["loc"][0]
    return hide_secrets(f"{VARIABLES.get(field, field)}={problem['input']!r}: {message}")
