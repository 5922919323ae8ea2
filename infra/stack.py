"""The local stack on 127.0.0.1: `python -m infra.stack up|down|status|env`, from the repository root.

`up` starts object storage (moto, or the real endpoint of `MZSANE_S3_ENDPOINT`), a Prefect server, an MLflow server and
one Prefect worker, and deploys the flows of `prefect.yaml`. `infra.settings` names the variables that change it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from infra import processes, state
from infra.services import Step, list_jobs, list_services
from infra.settings import LOCALHOST, StackError, StackSettings
from infra.state import Record

TICK = 0.2  # seconds between two looks at what is starting
LOG_TAIL = 15  # lines of a log that an error message shows

# Variables of the calling shell that would lead the services to another server, database or account.
FOREIGN_VARIABLES = {
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_API_KEY",
    "PREFECT_PROFILE",
}


@dataclass(frozen=True)
class ServiceStatus:
    """One line of the table.

    Attributes:
        name: the service.
        state: `healthy`, `running` (the process lives but does not answer), `dead`, or `stopped` (never started).
        address: where it answers.
        pid: its process; None for a service that somebody else runs or that does not run.
        log: its log file.
    """

    name: str
    state: str
    address: str
    pid: int | None
    log: Path


def up(settings: StackSettings, report: Callable[[str], None] = print) -> list[ServiceStatus]:
    """Start what does not run yet, and wait until everything is healthy and deployed.

    Args:
        settings: what to start, and where.
        report: takes the lines about progress.

    Raises:
        StackError: a port is taken, a service does not get healthy, a job fails, or the running stack has other
            settings. What this call had started is stopped again.
    """
    if not (settings.project / "prefect.yaml").is_file():
        raise StackError(f"no prefect.yaml in {settings.project}: run this from the repository root")
    if not processes.PROC.joinpath("self", "stat").exists():
        raise StackError("the local stack needs Linux: it follows its processes through /proc")
    with state.lock(settings.home):
        services = list_services(settings)
        dead = [service for service in services if not _is_running(settings, service)]
        for service in dead:
            _stop(settings, service.name, grace=2.0)
        for service in dead:
            _check_port(service)
        jobs = list_jobs(settings, {service.name for service in dead})
        try:
            _start_all(settings, services + jobs, {step.name for step in dead + jobs}, report)
        except BaseException:
            report("stopping what was started")
            for step in reversed(dead + jobs):
                _stop(settings, step.name)
            raise
        state.write_private(settings.env_file, _format_exports(settings.environment()))
    return status(settings)


def down(settings: StackSettings, report: Callable[[str], None] = print) -> None:
    """Stop everything, flows that are running included; databases and logs stay, the keys in the env file do not.

    Args:
        settings: only the state folder matters.
        report: takes the lines about progress.

    Raises:
        StackError: a process does not end.
    """
    if not settings.home.is_dir():
        return
    with state.lock(settings.home):
        for service in reversed(list_services(settings)):
            if state.read_record(settings.home, service.name):
                report(f"stopping {service.name}")
            _stop(settings, service.name)
        processes.terminate(str(settings.home))
        settings.env_file.unlink(missing_ok=True)


def status(settings: StackSettings) -> list[ServiceStatus]:
    """Look at every service: its process, and whether it answers where it was started."""
    rows = []
    for service in list_services(settings):
        record = state.read_record(settings.home, service.name)
        if record is None:
            word, address, pid = "stopped", service.address, None
        elif record.is_alive:
            word = "healthy" if service.check(record.probe, record.launched) else "running"
            address, pid = record.address, record.pid
        else:
            word, address, pid = "dead", record.address, None
        rows.append(ServiceStatus(service.name, word, address, pid, state.locate_log(settings.home, service.name)))
    return rows


def _start_all(settings: StackSettings, steps: list[Step], to_start: set[str], report: Callable[[str], None]) -> None:
    """Start every step as soon as what it needs is ready, and wait for all of them.

    Steps that are not to be started run already; they only have to be healthy.
    """
    began = time.monotonic()
    deadlines: dict[str, float] = {}
    children: dict[str, Popen] = {}
    ready: set[str] = set()
    while len(ready) < len(steps):
        for step in steps:
            if step.name in ready or (step.name in to_start and not ready.issuperset(step.needs)):
                continue
            if step.name not in deadlines:
                deadlines[step.name] = time.monotonic() + settings.start_timeout
                if step.name in to_start:
                    children[step.name] = _launch(settings, step)
            elif _is_ready(settings, step, children.get(step.name)):
                ready.add(step.name)
                word = ("healthy" if step.check else "done") if step.name in to_start else "was running"
                report(f"{step.title:<16} {word:<12} {time.monotonic() - began:5.1f} s  {step.address}".rstrip())
            elif time.monotonic() > deadlines[step.name]:
                raise StackError(_explain(settings, step, f"is not ready after {settings.start_timeout:.0f} s"))
        time.sleep(TICK)


def _launch(settings: StackSettings, step: Step) -> Popen | None:
    """Start the process of a step, and write the record of a service."""
    child, identity, launched = None, None, time.time()
    if step.command:
        inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
        environment = {**inherited, **step.environment}
        log = state.locate_log(settings.home, step.name)
        child = processes.launch(step.command, f"{settings.home}:{step.name}", environment, step.folder, log)
        identity = processes.identify(child.pid)
    if step.check:
        pid, start = identity or (child.pid if child else None, None)
        record = Record(pid, start, launched, step.address, step.probe, step.fingerprint)
        state.write_record(settings.home, step.name, record)
    return child


def _is_ready(settings: StackSettings, step: Step, child: Popen | None) -> bool:
    """Tell whether a service is healthy, or a job has ended well.

    Raises:
        StackError: the process has ended in another way.
    """
    exit_status = child.poll() if child else None
    if step.check is None:
        if exit_status:
            raise StackError(_explain(settings, step, f"failed with exit status {exit_status}"))
        return exit_status == 0
    if exit_status is not None:
        raise StackError(_explain(settings, step, f"stopped with exit status {exit_status}"))
    return step.check(step.probe, state.read_record(settings.home, step.name).launched)


def _is_running(settings: StackSettings, service: Step) -> bool:
    """Tell whether the process of a service lives, with the settings of now.

    Raises:
        StackError: it lives with other settings.
    """
    record = state.read_record(settings.home, service.name)
    if record is None or record.pid is None or not record.is_alive:
        return False
    if record.fingerprint != service.fingerprint:
        raise StackError(
            f"a stack with other settings runs here ({service.title} at {record.address}): "
            "stop it first, with `make down`"
        )
    return True


def _stop(settings: StackSettings, name: str, grace: float = 10.0) -> None:
    record = state.read_record(settings.home, name)
    known = [record.identity] if record and record.identity and record.is_alive else []
    processes.terminate(f"{settings.home}:{name}", known, grace)
    state.remove_record(settings.home, name)


def _check_port(service: Step) -> None:
    if service.port is None:
        return
    with socket.socket() as probe:
        # As the servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, service.port))
        except OSError as error:
            raise StackError(
                f"port {service.port} for {service.title} is not free ({error.strerror}): "
                f"set {service.port_variable} to another one"
            ) from None


def _format_exports(variables: dict[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def _explain(settings: StackSettings, step: Step, what: str) -> str:
    log = state.locate_log(settings.home, step.name)
    tail = log.read_text(errors="replace").splitlines()[-LOG_TAIL:] if log.exists() else []
    return "\n  ".join([f"{step.title} {what}; the end of {log}:", *tail])


def _format_table(rows: list[ServiceStatus]) -> str:
    lines = [("service", "state", "address", "pid", "log")]
    lines += [(row.name, row.state, row.address, str(row.pid or "-"), _shorten(row.log)) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _shorten(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _describe_next(settings: StackSettings) -> str:
    lines = [
        "next:",
        f"  source {shlex.quote(_shorten(settings.env_file))}",
        "  prefect deployment run ablation/zoo-composition --watch",
        f"  {settings.prefect_url}   Prefect: runs and deployments",
        f"  {settings.mlflow_url}   MLflow: metrics and comparisons",
        "  make status",
        "  make down",
    ]
    if settings.uses_moto:
        lines.append("S3 is moto: its objects live in memory until `make down`.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0, 1 for an error, 3 from `status` when not all is healthy."""
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description="The local stack on 127.0.0.1.")
    parser.add_argument("command", choices=["up", "down", "status", "env"])
    command = parser.parse_args(arguments).command
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = StackSettings.from_environment()
        if command == "env":
            print(settings.env_file)
        elif command == "down":
            down(settings)
        else:
            rows = up(settings) if command == "up" else status(settings)
            print(_format_table(rows))
            if command == "up":
                print(_describe_next(settings))
            return 0 if all(row.state == "healthy" for row in rows) else 3
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        print(
            f"error: {error.strerror or error}:{place}; MZSANE_STACK_HOME says where the stack writes", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
