"""Flow `samples`: draw samples from one arm's backbone for one target."""

from prefect import flow

from flows.chain import find_target, make_backbone, make_samples
from flows.presets import DEMO
from mzsane.artifacts import ArtifactRef
from mzsane.config import AblationConfig, ExecutionConfig
from tasks.logs import quiet_expected_errors

quiet_expected_errors()


@flow(name="samples", flow_run_name="samples-{composition}-s{seed}-{target}")
def samples(
    composition: str,
    target: str,
    seed: int = 0,
    config: AblationConfig = DEMO,
    execution: ExecutionConfig = ExecutionConfig(),
) -> ArtifactRef:
    """Draw samples for one target; all that they need is made first when it is not there.

    Args:
        composition: Name of the composition that the backbone is trained on.
        target: Name of the target.
        seed: Seed of the arm, one of the ablation's.
        config: The ablation that the arm belongs to.
        execution: How the work is done; changes no result.
    """
    chosen = find_target(config, target)
    make_backbone(config, composition, seed, execution)
    return make_samples(config, composition, seed, chosen, execution)
