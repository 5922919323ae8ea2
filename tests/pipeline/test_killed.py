"""Killed at any point and run again, an ablation ends with the numbers of one left alone, and repeats no work."""

import os
import signal
import threading
from pathlib import Path
from uuid import UUID

import pytest

from mzsane.config import AblationConfig, ExecutionConfig
from mzsane.plan import ArmPlan, list_arms, plan_ablation, plan_zoo_stage
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from tests.pipeline.harness import (
    RunningStack,
    have_equal_rows,
    read_comparison,
    run_library,
    start_deployed,
    wait_until,
)

# Every stage that is to be killed takes seconds, and writes its first chunk or checkpoint in a fraction of them.
CONFIG = AblationConfig.model_validate(
    {
        "name": "killed",
        "zoos": [
            {
                "name": "letters",
                "images": {"source": "glyphs", "characters": "ABCD", "images": 300},
                "models": 6,
                "epochs": 14,
                "keep_epochs": 1,
                "batch_size": 16,
            }
        ],
        "tokens": {"train_fraction": 0.7, "validation_fraction": 0.15},
        "compositions": [
            {"name": "few", "slices": [{"zoo": "letters", "models": 2}]},
            {"name": "many", "slices": [{"zoo": "letters", "models": 4}]},
        ],
        "backbone": {"d_model": 32, "heads": 2, "layers": 1, "latent_dim": 16, "steps": 160, "batch_size": 8},
        "targets": [{"name": "letters", "zoo": "letters"}],
        "sampling": {"anchors": 2, "bandwidth": 0.1, "samples": 6, "keep": 2},
        "evaluation": {"finetune_epochs": [0, 6], "finetune_models": 2, "learning_rates": [0.001]},
    }
)


class StoreWatch(threading.Thread):
    """Opens and verifies everything that gets published in the bucket, over and over, while others work on it."""

    def __init__(self, running: RunningStack, store: ArtifactStore) -> None:
        super().__init__(daemon=True)
        self.running, self.store = running, store
        self.before = self._list_published()
        self.seen: set[ArtifactRef] = set()
        self.failures: list[str] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(1.0):
            try:
                self._look()
            except Exception as error:
                self.failures.append(repr(error))

    def finish(self) -> None:
        """Stop, and look a last time."""
        self.stopped.set()
        self.join()
        self._look()

    def _look(self) -> None:
        for ref in self._list_published() - self.before:
            artifact = self.store.open(ref)
            for name in artifact.manifest.files:
                artifact.path(name)
            self.seen.add(ref)

    def _list_published(self) -> set[ArtifactRef]:
        folders = [Path(key).parts[-3:-1] for key in list_keys(self.running) if key.endswith("/manifest.json")]
        return {ArtifactRef(kind=kind, fingerprint=fingerprint) for kind, fingerprint in folders}


def list_keys(running: RunningStack, below: str = "") -> dict[str, tuple]:
    """Return the bucket's present keys with ETag and time of writing."""
    pages = (
        running.open_bucket()
        .get_paginator("list_objects_v2")
        .paginate(Bucket=running.settings.bucket, Prefix=f"store/{below}")
    )
    return {item["Key"]: (item["ETag"], item["LastModified"]) for page in pages for item in page.get("Contents", [])}


def find_processes(run_id: UUID) -> dict[int, int]:
    """Return the processes that work for a flow run: pid and parent's pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if f"PREFECT__FLOW_RUN_ID={run_id}".encode() in variables and state != "Z":
            found[int(folder.name)] = int(parent)
    return found


def find_children(client, parent: UUID) -> dict:
    """Return the flow runs that a flow run has started, by id."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId

    chosen = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent]))
    return {run.id: run for run in client.read_flow_runs(flow_run_filter=chosen)}


def find_part(client, parent: UUID, name: str) -> UUID | None:
    """Return the flow run `name` that a flow run has started, as soon as it runs."""
    state = client.read_flow_run(parent).state
    assert not state.is_final(), f"{name} was to be killed, but the ablation has ended: {state}"
    return next((run.id for run in find_children(client, parent).values() if run.name == name), None)


def kill_when(running: RunningStack, client, run_id: UUID, condition) -> None:
    """Wait for a condition, then kill the process that executes a flow run, and see all of it end."""

    def find_engine() -> int | None:
        return next((pid for pid, parent in find_processes(run_id).items() if parent == worker), None)

    def is_due() -> bool:
        if condition():
            return True
        state = client.read_flow_run(run_id).state
        assert not state.is_final(), f"the run ended before the moment to kill it: {state}"
        return False

    worker = running.worker_pid
    engine = wait_until(find_engine, "the process of the flow run")
    wait_until(is_due, "the moment to kill", pause=0.02)
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: not find_processes(run_id), "the end of what the flow run had started")
    assert await_end(client, run_id).type.value == "CRASHED"


def await_end(client, run_id: UUID):
    """Wait until a flow run has ended; return its last state."""
    return wait_until(lambda: (state := client.read_flow_run(run_id).state).is_final() and state, "the run's end")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_ablation_continues_to_the_same_numbers(running_stack, tmp_path):
    store = running_stack.open_store(tmp_path / "cache")
    zoo = plan_zoo_stage(CONFIG.zoos[0]).work
    few, many = (ArmPlan(CONFIG, arm) for arm in list_arms(CONFIG))
    target = CONFIG.targets[0]
    serial = ExecutionConfig(processes=1, chunk_models=1, checkpoint_steps=20)
    watch = StoreWatch(running_stack, running_stack.open_store(tmp_path / "watch"))
    watch.start()
    with running_stack.open_prefect() as client:
        # During zoo training.
        first = start_deployed(
            running_stack, "tokens/build", zoo=CONFIG.zoos[0], tokens=CONFIG.tokens, execution=serial
        )
        kill_when(
            running_stack, client, first, lambda: any(name.endswith(".json") for name in store.partial(zoo).names())
        )
        assert not store.exists(zoo.ref)
        # A chunk is done when its note is there, which is written after its weights.
        keys = list_keys(running_stack, f"partial/{zoo.ref}/")
        chunks = {key for key in keys if f"{key.rpartition('.')[0]}.json" in keys}
        assert 0 < len(chunks) < 2 * CONFIG.zoos[0].models

        # During pre-training of one arm, and during scoring of the other, which goes on when the first is dead.
        second = start_deployed(running_stack, "ablation/zoo-composition", config=CONFIG, execution=serial)
        backbone = few.backbone().work
        run = wait_until(lambda: find_part(client, second, "arm-few-s0"), "the first arm")
        kill_when(running_stack, client, run, lambda: store.partial(backbone).names())
        assert not store.exists(backbone.ref)
        made = [many.backbone().work.ref, many.samples(target).work.ref, many.baselines(target).work.ref]
        run = wait_until(lambda: find_part(client, second, "arm-many-s0"), "the second arm")
        kill_when(running_stack, client, run, lambda: all(map(store.exists, made)))
        assert not store.exists(many.scores(target).work.ref)
        state = await_end(client, second)
        assert state.is_failed()
        assert "arm-few-s0 crashed" in state.message
        assert "arm-many-s0 crashed" in state.message
        assert "Run the same ablation again: it continues" in state.message

        third = start_deployed(running_stack, "ablation/zoo-composition", config=CONFIG, execution=serial)
        undisturbed = ArtifactStore(str(tmp_path / "undisturbed"))
        run_library(CONFIG, undisturbed)
        state = await_end(client, third)
        assert state.is_completed(), state.message

    watch.finish()
    assert watch.failures == []
    assert {stage.work.ref for stage in plan_ablation(CONFIG)} <= watch.seen
    assert have_equal_rows(read_comparison(CONFIG, store), read_comparison(CONFIG, undisturbed))
    assert store.open(backbone.ref).manifest.counts["resumed_from_step"] > 0
    assert store.open(many.backbone().work.ref).manifest.counts["resumed_from_step"] == 0
    for stage in plan_ablation(CONFIG):
        assert list_keys(running_stack, f"partial/{stage.work.ref}/") == {}
    writes = running_stack.list_writes()
    assert {key: writes[key] for key in chunks} == dict.fromkeys(chunks, 1)
    published = {key: count for key, count in writes.items() if key.startswith("store/") and "/partial/" not in key}
    assert set(published.values()) == {1}

    # MLflow: one parent and one run an arm in spite of three attempts; no step twice in a resumed curve.
    mlflow = running_stack.open_mlflow()
    experiment = mlflow.get_experiment_by_name(CONFIG.name).experiment_id
    runs = {run.info.run_name: run for run in mlflow.search_runs([experiment])}
    assert sorted(runs) == ["few-s0", "killed", "many-s0"]
    assert len(mlflow.search_runs([experiment])) == 3
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    steps = [point.step for point in mlflow.get_metric_history(runs["few-s0"].info.run_id, "pretrain/loss")]
    assert sorted(steps) == list(range(20, CONFIG.backbone.steps + 1, 20))
