"""Flow `zoo`: make a zoo; also the command `mzsane zoo`."""

import logging
import sys
from collections.abc import Sequence

from prefect import flow, get_run_logger

from mzsane.config import AnyZooConfig, DownloadConfig, ExecutionConfig, ReadConfig, validate_config
from mzsane.errors import ConfigError
from mzsane.estimate import check_processes, check_zoo
from mzsane.fetch.download import download
from mzsane.plan import plan_zoo_stage
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from mzsane.zoo.contents import check_content
from mzsane.zoo.export import export_zoo
from tasks import stages
from tasks.logs import quiet_expected_errors
from tasks.publish import show_card
from tasks.terminal import TerminalSink, print_card
from tasks.tracking import Tracker

quiet_expected_errors()


@flow(name="zoo", flow_run_name="zoo-{zoo.name}")
def zoo(zoo: AnyZooConfig, execution: ExecutionConfig = ExecutionConfig()) -> ArtifactRef:
    """Make a zoo, or find it made.

    Args:
        zoo: The population: trained here, read from others' checkpoints, or a trained one made sparse.
        execution: How the work is done; what of it changes last bits is in the manifests.
    """
    store = ArtifactStore.from_environment()
    check_processes(execution.processes)
    check_zoo(zoo, store.files.local_path(""))
    tracker = Tracker.from_environment(get_run_logger())
    run = tracker.open_zoo(zoo.name, plan_zoo_stage(zoo).work.ref.fingerprint)
    with tracker.watch(run):
        ref = stages.make_zoo(zoo, execution, run)
    made = store.open(ref)
    tracker.finish_zoo(run, zoo.name, made)
    show_card(zoo.name, made)
    return ref


def make_command(config: AnyZooConfig, execution: ExecutionConfig) -> int:
    """Make a zoo unless it is there, and print its card; returns the exit code."""
    store = ArtifactStore.from_environment()
    check_zoo(config, store.files.local_path(""))
    found = store.find(plan_zoo_stage(config).work.ref)
    if found is None:
        check_processes(execution.processes)
        store.check()
        zoo(zoo=config, execution=execution)
        logging.getLogger("prefect").setLevel(logging.WARNING)
        found = store.open(plan_zoo_stage(config).work.ref)
    else:
        if isinstance(config, ReadConfig):
            check_content(config, found)
        again = "; set revision to read its source again" if isinstance(config, ReadConfig) else ""
        print(f"zoo {config.name} was made before{again}")
    print_card(config.name, found)
    return 0


def export_command(config: AnyZooConfig, target: str) -> int:
    """Write a zoo in the published layout; returns the exit code."""
    store = ArtifactStore.from_environment()
    found = store.find(plan_zoo_stage(config).work.ref)
    if found is None:
        raise ConfigError(f"zoo {config.name} is not in {store.root}: make it first")
    count = export_zoo(found, target, TerminalSink())
    print(f"{count} checkpoints written to {target}")
    return 0


def download_command(source: str, epochs: Sequence[int] | None, members: Sequence[str]) -> int:
    """Fetch a published zoo; returns the exit code."""
    settings = {"name": "download", "source": source, "epochs": epochs, "members": members}
    config = validate_config(DownloadConfig, settings, "the command line")
    archive = download(config, ArtifactStore.from_environment(), TerminalSink())
    print(f"{sum(entry.bytes for entry in archive.manifest.files.values()):,} bytes in {archive.address}")
    return 0


if __name__ == "__main__":
    from flows.commands.app import main

    sys.exit(main(["zoo", *sys.argv[1:]]))
