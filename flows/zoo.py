"""Flow `zoo`: train a zoo."""

from prefect import flow

from mzsane.artifacts import ArtifactRef
from mzsane.config import ExecutionConfig, ZooConfig
from tasks import stages
from tasks.logs import quiet_expected_errors

quiet_expected_errors()


@flow(name="zoo", flow_run_name="zoo-{zoo.name}")
def zoo(
    zoo: ZooConfig, execution: ExecutionConfig = ExecutionConfig(), tracking_parent: str | None = None
) -> ArtifactRef:
    """Train a zoo, or find it trained.

    Args:
        zoo: The population to train.
        execution: How the work is done; changes no result.
        tracking_parent: The MLflow run that metrics go to; set by an ablation.
    """
    return stages.train_zoo(zoo, execution, tracking_parent)
