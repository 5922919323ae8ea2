"""Flow `tokens`: tokenize a zoo, which is made first when it is not there."""

import sys

from prefect import flow

from mzsane.config import AnyZooConfig, ExecutionConfig, TokensConfig
from mzsane.store.artifacts import ArtifactRef
from tasks import stages
from tasks.logs import quiet_expected_errors
from tasks.terminal import refuse_command

quiet_expected_errors()


@flow(name="tokens", flow_run_name="tokens-{zoo.name}")
def tokens(
    zoo: AnyZooConfig,
    tokens: TokensConfig = TokensConfig(),
    execution: ExecutionConfig = ExecutionConfig(),
    tracking_parent: str | None = None,
) -> ArtifactRef:
    """Tokenize a zoo, or find its tokens.

    Args:
        zoo: The population; it is made first when it is not there.
        tokens: How the zoo becomes tokens.
        execution: How the work is done; what of it changes last bits is in the manifests.
        tracking_parent: The MLflow run that metrics go to; set by an ablation.
    """
    stages.make_zoo(zoo, execution, tracking_parent)
    return stages.build_tokens(zoo, tokens, execution, tracking_parent)


if __name__ == "__main__":
    sys.exit(refuse_command("tokens", "tokens/build"))
