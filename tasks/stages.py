"""One thin task a stage: open the store, do the stage unless its artifact is there, return the reference."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from prefect import get_run_logger, task

from mzsane.config import AblationConfig, AnyZooConfig, DownloadConfig, ExecutionConfig, TargetConfig, TokensConfig
from mzsane.plan import (
    ArmPlan,
    Stage,
    find_arm,
    plan_comparison_stage,
    plan_download_stage,
    plan_tokens_stage,
    plan_zoo_stage,
)
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from tasks.sink import StageSink
from tasks.tracking import Tracker, name_points

_LONG_KINDS = ("archive", "zoo", "backbone")  # stages that show a progress artifact


@task(task_run_name="zoo-{zoo.name}")
def make_zoo(zoo: AnyZooConfig, execution: ExecutionConfig, tracking_run: str | None = None) -> ArtifactRef:
    """Make a zoo: train it, read it, or make a trained one sparse."""
    return _run_stage(plan_zoo_stage(zoo), execution, tracking_run, partial(_name_zoo_points, zoo.name))


@task(task_run_name="download-{download.name}")
def download(download: DownloadConfig, execution: ExecutionConfig) -> ArtifactRef:
    """Download an archive, or some members of it."""
    return _run_stage(plan_download_stage(download), execution)


@task(task_run_name="tokens-{zoo.name}")
def build_tokens(
    zoo: AnyZooConfig, tokens: TokensConfig, execution: ExecutionConfig, tracking_run: str | None = None
) -> ArtifactRef:
    """Tokenize a zoo."""
    return _run_stage(plan_tokens_stage(tokens, zoo), execution, tracking_run, partial(_name_tokens_points, zoo.name))


@task(task_run_name="pretrain-{composition}-s{seed}")
def pretrain(
    config: AblationConfig, composition: str, seed: int, execution: ExecutionConfig, tracking_run: str | None = None
) -> ArtifactRef:
    """Pre-train the backbone of an arm."""
    plan = ArmPlan(config, find_arm(config, composition, seed))
    return _run_stage(plan.backbone(), execution, tracking_run, partial(name_points, plan.parts()))


@task(task_run_name="probes-{composition}-s{seed}")
def probe_backbone(config: AblationConfig, composition: str, seed: int, execution: ExecutionConfig) -> ArtifactRef:
    """Probe an arm's backbone."""
    return _run_stage(ArmPlan(config, find_arm(config, composition, seed)).probes(), execution)


@task(task_run_name="baselines-{target.name}-s{seed}")
def score_baselines(
    config: AblationConfig, composition: str, seed: int, target: TargetConfig, execution: ExecutionConfig
) -> ArtifactRef:
    """Score the baselines of a target."""
    return _run_stage(ArmPlan(config, find_arm(config, composition, seed)).baselines(target), execution)


@task(task_run_name="samples-{composition}-s{seed}-{target.name}")
def draw_samples(
    config: AblationConfig, composition: str, seed: int, target: TargetConfig, execution: ExecutionConfig
) -> ArtifactRef:
    """Draw samples from an arm's backbone for a target."""
    return _run_stage(ArmPlan(config, find_arm(config, composition, seed)).samples(target), execution)


@task(task_run_name="scores-{composition}-s{seed}-{target.name}")
def score_samples(
    config: AblationConfig, composition: str, seed: int, target: TargetConfig, execution: ExecutionConfig
) -> ArtifactRef:
    """Score an arm's samples on a target."""
    return _run_stage(ArmPlan(config, find_arm(config, composition, seed)).scores(target), execution)


@task(task_run_name="compare-{config.name}")
def compare(
    config: AblationConfig, execution: ExecutionConfig, started: float | None = None, missing: Sequence[str] = ()
) -> ArtifactRef:
    """Compare the arms but those that are missing; `started` is when it began, in seconds since the epoch."""
    return _run_stage(plan_comparison_stage(config, started, missing), execution)


def _run_stage(
    stage: Stage,
    execution: ExecutionConfig,
    tracking_run: str | None = None,
    name: Callable[[Mapping[str, float], int], list[tuple[str, float, int]]] = lambda values, step: [],
) -> ArtifactRef:
    logger = get_run_logger()
    store = ArtifactStore.from_environment()
    if store.exists(stage.work.ref):
        logger.info("%s: already there, %s", stage.label, store.address(stage.work.ref))
        return stage.work.ref
    tracker = Tracker.from_environment(logger)
    sink = StageSink(stage.label, logger, tracker, tracking_run, name, page=stage.work.kind in _LONG_KINDS)
    started = time.monotonic()
    artifact = stage.make(store, execution, sink)
    sink.flush()
    counts = ", ".join(f"{key} {value}" for key, value in artifact.manifest.counts.items())
    logger.info("%s: done in %.0f s (%s), %s", stage.label, time.monotonic() - started, counts, artifact.address)
    return artifact.ref


def _name_tokens_points(zoo: str, values: Mapping[str, float], step: int) -> list[tuple[str, float, int]]:
    return [(f"tokens/{zoo}/{key}", value, step) for key, value in values.items()]


def _name_zoo_points(zoo: str, values: Mapping[str, float], step: int) -> list[tuple[str, float, int]]:
    return [(f"zoo/{zoo}/{key.removeprefix('zoo/')}", value, step) for key, value in values.items()]
