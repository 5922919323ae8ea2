"""Flow `scores`: score one arm's samples on one target."""

import sys

from prefect import flow

from flows.chain import find_target, make_backbone, make_scores
from flows.presets import DEMO
from mzsane.config import AblationConfig, ExecutionConfig
from mzsane.store.artifacts import ArtifactRef
from tasks.logs import quiet_expected_errors
from tasks.terminal import refuse_command

quiet_expected_errors()


@flow(name="scores", flow_run_name="scores-{composition}-s{seed}-{target}")
def scores(
    composition: str,
    target: str,
    seed: int = 0,
    config: AblationConfig = DEMO,
    execution: ExecutionConfig = ExecutionConfig(),
) -> ArtifactRef:
    """Score samples and baselines on one target; all that they need is made first when it is not there.

    Args:
        composition: Name of the composition that the backbone is trained on.
        target: Name of the target.
        seed: Seed of the arm, one of the ablation's.
        config: The ablation that the arm belongs to.
        execution: How the work is done; what of it changes last bits is in the manifests.
    """
    chosen = find_target(config, target)
    make_backbone(config, composition, seed, execution)
    return make_scores(config, composition, seed, chosen, execution)


if __name__ == "__main__":
    sys.exit(refuse_command("scores", "scores/evaluate"))
