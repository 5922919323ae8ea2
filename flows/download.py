"""Flow `zoo`, deployment `download`: fetch a published zoo, or the epochs of it that are needed, into the store."""

import sys

from prefect import flow

from mzsane.config import DownloadConfig, ExecutionConfig
from mzsane.store.artifacts import ArtifactRef
from tasks import stages
from tasks.logs import quiet_expected_errors
from tasks.terminal import refuse_command

quiet_expected_errors()


@flow(name="zoo", flow_run_name="download-{download.name}")
def download(download: DownloadConfig, execution: ExecutionConfig = ExecutionConfig()) -> ArtifactRef:
    """Download a file or some members of it, or find it downloaded.

    Args:
        download: What to fetch, and from where.
        execution: How the work is done; what of it changes last bits is in the manifests.
    """
    return stages.download(download, execution)


if __name__ == "__main__":
    sys.exit(refuse_command("download", "zoo/download"))
