"""Flow `backbone`: pre-train the backbone of one arm."""

import sys

from prefect import flow

from flows.chain import make_backbone
from flows.presets import DEMO
from mzsane.config import AblationConfig, ExecutionConfig
from mzsane.store.artifacts import ArtifactRef
from tasks.logs import quiet_expected_errors
from tasks.terminal import refuse_command

quiet_expected_errors()


@flow(name="backbone", flow_run_name="backbone-{composition}-s{seed}")
def backbone(
    composition: str,
    seed: int = 0,
    config: AblationConfig = DEMO,
    execution: ExecutionConfig = ExecutionConfig(),
) -> ArtifactRef:
    """Pre-train the backbone of one arm; its zoos and tokens are made first when they are not there.

    Args:
        composition: Name of the composition to train on.
        seed: Seed of the arm, one of the ablation's.
        config: The ablation that the arm belongs to.
        execution: How the work is done; what of it changes last bits is in the manifests.
    """
    return make_backbone(config, composition, seed, execution)


if __name__ == "__main__":
    sys.exit(refuse_command("backbone", "backbone/pretrain"))
