"""Flow `zoo`: make a zoo. As a command: make, list, download, export."""

import argparse
import logging
import sys

from prefect import flow, get_run_logger

from flows.presets import list_presets, load_zoo_preset
from mzsane.config import AnyZooConfig, DownloadConfig, ExecutionConfig, ReadConfig, validate_config
from mzsane.errors import ConfigError
from mzsane.estimate import check_processes, check_zoo
from mzsane.fetch.catalog import catalog_table
from mzsane.fetch.download import download
from mzsane.plan import plan_zoo_stage
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from mzsane.zoo.contents import check_content
from mzsane.zoo.export import export_zoo
from tasks import stages
from tasks.logs import quiet_expected_errors
from tasks.publish import show_card
from tasks.terminal import TerminalSink, print_card, report_errors
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.zoo", description="Zoos of trained networks.")
    commands = parser.add_subparsers(dest="command", required=True)
    preset = f"a preset ({', '.join(list_presets('zoos'))}) or the path of a YAML file"
    make = commands.add_parser("make", help="train or read a zoo, or make one sparse, and print its card")
    make.add_argument("preset", help=preset)
    make.add_argument("--processes", type=int, help="worker processes; all cores if not given")
    export = commands.add_parser("export", help="write a trained zoo in the layout of the published zoos")
    export.add_argument("preset", help=preset)
    export.add_argument("target", help="folder or URL to write to")
    commands.add_parser("list", help="list the published zoos that can be downloaded")
    fetch = commands.add_parser("download", help="fetch a published zoo, or some epochs of it, into the store")
    fetch.add_argument("source", help="name in the list, or the address of a file")
    fetch.add_argument("--epochs", type=int, nargs="+", help="only these epochs; all if not given")
    fetch.add_argument("--members", nargs="+", default=[], metavar="PATTERN", help="only members that fit a pattern")
    for command in (make, export):
        command.add_argument("--set", action="append", default=[], metavar="PATH.TO.KEY=VALUE", help="change a setting")
    options = parser.parse_args(arguments)
    return report_errors(lambda: _run_command(options))


def _run_command(options: argparse.Namespace) -> int:
    if options.command == "list":
        print(catalog_table())
        return 0
    if options.command == "download":
        return _download(options)
    config = load_zoo_preset(options.preset, options.set)
    store = ArtifactStore.from_environment()
    check_zoo(config, store.files.local_path(""))
    found = store.find(plan_zoo_stage(config).work.ref)
    if options.command == "export":
        if found is None:
            raise ConfigError(f"zoo {config.name} is not in {store.root}: make it first")
        count = export_zoo(found, options.target, TerminalSink())
        print(f"{count} checkpoints written to {options.target}")
        return 0
    if found is None:
        execution = validate_config(ExecutionConfig, {"processes": options.processes}, "the command line")
        check_processes(options.processes)
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


def _download(options: argparse.Namespace) -> int:
    settings = {"name": "download", "source": options.source, "epochs": options.epochs, "members": options.members}
    config = validate_config(DownloadConfig, settings, "the command line")
    archive = download(config, ArtifactStore.from_environment(), TerminalSink())
    print(f"{sum(entry.bytes for entry in archive.manifest.files.values()):,} bytes in {archive.address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
