"""Flow `arm`: one composition with one seed, from tokens to scores."""

import sys

from prefect import flow, get_run_logger

from flows.chain import make_backbone, make_probes, make_scores
from flows.presets import DEMO
from mzsane.config import AblationConfig, ExecutionConfig
from mzsane.estimate import check_ablation, check_processes
from mzsane.plan import ArmPlan, find_arm, plan_ablation
from mzsane.store.artifacts import ArtifactStore
from tasks.logs import quiet_expected_errors
from tasks.terminal import TerminalSink
from tasks.tracking import Tracker

quiet_expected_errors()


@flow(name="arm", flow_run_name="arm-{composition}-s{seed}")
def arm(
    composition: str,
    seed: int = 0,
    config: AblationConfig = DEMO,
    execution: ExecutionConfig = ExecutionConfig(),
    tracking_parent: str | None = None,
) -> None:
    """Run one arm: pre-train, probe the latents, then sample and score for every target.

    Args:
        composition: Name of the composition to train on.
        seed: Seed of the arm, one of the ablation's.
        config: The ablation that the arm belongs to.
        execution: How the work is done; what of it changes last bits is in the manifests.
        tracking_parent: The MLflow run of the ablation, under which this arm is a child run; set by an ablation.
    """
    tracker = Tracker.from_environment(get_run_logger())
    chosen = find_arm(config, composition, seed)
    run = tracker.open_arm(config, chosen, tracking_parent)
    with tracker.watch(run):
        make_backbone(config, composition, seed, execution, run)
        make_probes(config, composition, seed, execution)
        for target in config.targets:
            make_scores(config, composition, seed, target, execution)
    tracker.finish_arm(config, chosen, run, ArtifactStore.from_environment())


def run_command(config: AblationConfig, composition: str, seed: int, execution: ExecutionConfig) -> int:
    """Run one arm, its zoos and tokens first; returns the exit code."""
    store = ArtifactStore.from_environment()
    check_processes(execution.processes)
    check_ablation(config, store.files.local_path(""))
    plan = ArmPlan(config, find_arm(config, composition, seed))
    store.check()
    for stage in plan_ablation(config):
        if stage.work.kind in ("zoo", "tokens") and not store.exists(stage.work.ref):
            stage.make(store, execution, TerminalSink())
    arm(composition, seed, config, execution)
    for stage in plan.stages():
        print(f"{stage.label}: {store.address(stage.work.ref)}")
    return 0


if __name__ == "__main__":
    from flows.commands.app import main

    sys.exit(main(["arm", *sys.argv[1:]]))
