"""Run the parts of an ablation here, or as flow runs of their own when the ablation is a deployment's run."""

import time
from collections.abc import Sequence
from typing import Any

from prefect import Flow, get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from pydantic import BaseModel

from mzsane.errors import WorkerError

_POLL_SECONDS = 2.0


def run_parts(flow: Flow[..., Any], deployment: str, parts: Sequence[dict[str, Any]]) -> None:
    """Run a flow once for each set of parameters, and wait for all of them.

    Args:
        flow: the flow, called here one part after the other when this ablation was started by hand.
        deployment: `flow/deployment`, whose runs the work pool schedules when this ablation is a deployment's run
            itself.
        parts: the parameters of each run.

    Raises:
        WorkerError: a flow run did not complete; the others have ended too.
    """
    if runtime.deployment.id is None:
        for parameters in parts:
            flow(**parameters)
        return
    runs = [
        run_deployment(deployment, parameters=_to_json(parameters), timeout=0, flow_run_name=None)
        for parameters in parts
    ]
    _wait_for(runs)


def _wait_for(runs: list[FlowRun]) -> None:
    logger = get_run_logger()
    waiting = {run.id: run.name for run in runs}
    failed = []
    with get_client(sync_client=True) as client:
        while waiting:
            for run_id in list(waiting):
                run = client.read_flow_run(run_id)
                if run.state is None or not run.state.is_final():
                    continue
                del waiting[run_id]
                logger.info("%s: %s; %d of %d ended", run.name, run.state.name, len(runs) - len(waiting), len(runs))
                if not run.state.is_completed():
                    failed.append(f"{run.name} {run.state.name.lower()} ({run.state.message})")
            time.sleep(_POLL_SECONDS if waiting else 0)
    if failed:
        raise WorkerError(f"{'; '.join(failed)}. Run the same ablation again: it continues where these stopped")


def _to_json(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for key, value in parameters.items()
    }
