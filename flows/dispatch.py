"""Run the parts of an ablation here, or as flow runs of their own when the ablation is a deployment's run."""

import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import cloudpickle
from prefect import Flow, get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun
from prefect.context import hydrated_context, serialize_context
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from pydantic import BaseModel

from mzsane.errors import MzsaneError, WorkerError
from mzsane.parallel import map_apart

_POLL_SECONDS = 2.0
_ENDED = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(TERMINAL_STATES)))


def run_parts(flow: Flow[..., Any], deployment: str, parts: Sequence[dict[str, Any]], together: int = 1) -> None:
    """Run a flow once for each set of parameters, and wait for all of them.

    Args:
        flow: the flow, called here when this ablation was started by hand.
        deployment: `flow/deployment`, whose runs the work pool schedules when this ablation is a deployment's run
            itself.
        parts: the parameters of each run.
        together: how many run here at the same time, each in a process of its own; the work pool has its own limit.

    Raises:
        MzsaneError: some failed, and all others have ended: of the kind of all that failed here.
        WorkerError: they failed for several reasons, for none that is known, or as flow runs of the work pool.
    """
    if runtime.deployment.id is None:
        _run_here(flow, parts, together)
        return
    runs = [
        run_deployment(deployment, parameters=_to_json(parameters), timeout=0, flow_run_name=None)
        for parameters in parts
    ]
    wait_for_runs(runs)


def _run_here(flow: Flow[..., Any], parts: Sequence[dict[str, Any]], together: int) -> None:
    if len(parts) == 1:
        flow(**parts[0])
        return
    errors: dict[int, MzsaneError] = {}
    if together == 1:
        for position, parameters in enumerate(parts):
            if error := _try_part(flow, parameters):
                errors[position] = error
    else:
        with get_client(sync_client=True) as client:
            server = str(client.api_url)
        # A temporary server is in no setting, and has no pages.
        with temporary_settings({PREFECT_API_URL: server, PREFECT_UI_URL: PREFECT_UI_URL.value() or ""}):
            context = serialize_context()
        jobs = [cloudpickle.dumps((flow, parameters, context)) for parameters in parts]
        for position, found in map_apart(_run_part, jobs, together):
            if found is not None:
                errors[position] = found
    if errors:
        raise _join_errors(errors, parts)


def _run_part(pickled: bytes) -> MzsaneError | None:
    """Run a flow in this process, as a part of the flow run that another process is in; return why it failed."""
    flow, parameters, context = cloudpickle.loads(pickled)
    with hydrated_context(context):
        return _try_part(flow, parameters)


def _try_part(flow: Flow[..., Any], parameters: dict[str, Any]) -> MzsaneError | None:
    """Run a flow; return why it failed, whatever that is, so that others go on. Its trace is in the flow run's log."""
    try:
        flow(**parameters)
    except MzsaneError as error:
        return error
    except Exception as error:
        return WorkerError(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return None


def _join_errors(errors: Mapping[int, MzsaneError], parts: Sequence[dict[str, Any]]) -> MzsaneError:
    """Return one error for all that failed, which names them; the others are done."""
    said: dict[str, list[str]] = {}  # a wrong setting is often that of all
    for position, error in sorted(errors.items()):
        said.setdefault(str(error), []).append(_name_part(parts[position]))
    texts = "; ".join(f"{', '.join(names)}: {text}" for text, names in said.items())
    kinds = {type(error) for error in errors.values()}
    kind = kinds.pop() if len(kinds) == 1 else WorkerError
    return kind(f"{len(errors)} of {len(parts)} runs failed, the others are done. {texts}")


def _name_part(parameters: dict[str, Any]) -> str:
    if "composition" in parameters:
        return f"arm {parameters['composition']}-s{parameters['seed']}"
    return f"zoo {parameters['zoo'].name}"


def wait_for_runs(runs: Sequence[FlowRun]) -> None:
    """Wait until flow runs have ended, and tell of each.

    Raises:
        WorkerError: some did not complete, or were deleted while they were waited for; all have ended.
    """
    logger = get_run_logger()
    waiting = {run.id: run.name for run in runs}
    failed = []
    with get_client(sync_client=True) as client:
        while waiting:
            # One question about all of them: asking for each keeps the server busy while a long queue waits.
            ids = FlowRunFilterId(any_=list(waiting))
            for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids, state=_ENDED)):
                del waiting[run.id]
                assert run.state is not None  # the filter has looked at it
                logger.info("%s: %s; %d of %d ended", run.name, run.state.name, len(runs) - len(waiting), len(runs))
                if not run.state.is_completed():
                    failed.append(f"{run.name} {run.state.name.lower()} ({run.state.message})")
            ids = FlowRunFilterId(any_=list(waiting))
            if waiting and client.count_flow_runs(flow_run_filter=FlowRunFilter(id=ids)) < len(waiting):
                failed += [f"{waiting.pop(run_id)} was deleted" for run_id in _find_deleted(client, list(waiting))]
            time.sleep(_POLL_SECONDS if waiting else 0)
    if failed:
        raise WorkerError(f"{'; '.join(failed)}. Run the same ablation again: it continues where these stopped")


def _find_deleted(client: SyncPrefectClient, run_ids: Sequence[UUID]) -> list[UUID]:
    deleted = []
    for run_id in run_ids:
        try:
            client.read_flow_run(run_id)
        except ObjectNotFound:
            deleted.append(run_id)
    return deleted


def _to_json(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for key, value in parameters.items()
    }
