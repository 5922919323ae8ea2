"""The work pool of the stack and its queues: `python -m infra.pool`, with the stack's environment, creates them."""

from __future__ import annotations

import argparse
from contextlib import suppress

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from infra.settings import POOL

CONTROL_QUEUE = "control"  # ablations: they only wait for their arms, so any number may run
COMPUTE_QUEUE = "compute"  # arms and stages: they use the machine


def create_pool(client: SyncPrefectClient, compute_slots: int) -> None:
    """Create the work pool and its queues, or bring the queues' limits up to date.

    Args:
        client: client of the stack's Prefect server.
        compute_slots: flow runs of the compute queue at one time.
    """
    template = ProcessWorker.get_default_base_job_template()
    with suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    existing = {queue.name: queue for queue in client.read_work_queues(work_pool_name=POOL)}
    for name, limit in ((CONTROL_QUEUE, None), (COMPUTE_QUEUE, compute_slots)):
        if name not in existing:
            client.create_work_queue(name, concurrency_limit=limit, work_pool_name=POOL)
        elif existing[name].concurrency_limit != limit:
            client.update_work_queue(existing[name].id, concurrency_limit=limit)


def crash_orphans(client: SyncPrefectClient) -> None:
    """Mark the pool's unfinished runs as crashed.

    To be called while no worker runs: such runs have no process any more, and would hold their queue's slots for ever.
    """
    held = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    orphans = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=held)),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
    )
    for run in orphans:
        client.set_flow_run_state(run.id, Crashed(message="Its worker stopped before it ended."), force=True)


def main() -> None:
    """Bring the pool into the shape that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compute-slots", type=int, required=True, help="flow runs of the compute queue at one time")
    parser.add_argument("--crash-orphans", action="store_true", help="no worker runs: mark unfinished runs as crashed")
    arguments = parser.parse_args()
    with get_client(sync_client=True) as client:
        create_pool(client, arguments.compute_slots)
        if arguments.crash_orphans:
            crash_orphans(client)


if __name__ == "__main__":
    main()
