"""Flow `arm`: one composition with one seed, from tokens to scores."""

import sys

from prefect import flow, get_run_logger

from flows.chain import make_backbone, make_probes, make_scores
from flows.presets import DEMO
from mzsane.config import AblationConfig, ExecutionConfig
from mzsane.plan import find_arm
from mzsane.store.artifacts import ArtifactStore
from tasks.logs import quiet_expected_errors
from tasks.terminal import refuse_command
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


if __name__ == "__main__":
    sys.exit(refuse_command("arm", "arm/run"))
