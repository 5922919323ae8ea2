"""Flow `samples`: draw samples from one arm's backbone for one target. As a command: write them as state dicts."""

import argparse
import sys

from prefect import flow

from flows.chain import find_target, make_backbone, make_samples
from flows.presets import DEMO, list_presets, load_preset
from mzsane.config import AblationConfig, ExecutionConfig, validate_config
from mzsane.estimate import check_ablation, check_processes
from mzsane.plan import ArmPlan, find_arm
from mzsane.sampling.export import export_samples
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from tasks.logs import quiet_expected_errors
from tasks.terminal import TerminalSink, report_errors

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
        execution: How the work is done; what of it changes last bits is in the manifests.
    """
    chosen = find_target(config, target)
    make_backbone(config, composition, seed, execution)
    return make_samples(config, composition, seed, chosen, execution)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.samples",
        description="Write samples of an arm for one target as state dicts; drawn first if they are not there.",
    )
    parser.add_argument(
        "preset", help=f"an ablation: a preset ({', '.join(list_presets())}) or the path of a YAML file"
    )
    parser.add_argument("composition", help="name of the composition")
    parser.add_argument("target", help="name of the target")
    parser.add_argument("--to", required=True, metavar="DIR", help="folder to write to; it must be new or empty")
    parser.add_argument("--seed", type=int, default=0, help="seed of the arm; 0 if not given")
    parser.add_argument("--all", action="store_true", help="all samples, not only those that are selected")
    parser.add_argument("--processes", type=int, help="worker processes; all cores if not given")
    parser.add_argument("--set", action="append", default=[], metavar="PATH.TO.KEY=VALUE", help="change a setting")
    options = parser.parse_args(arguments)
    return report_errors(lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    config = load_preset(options.preset, options.set)
    target = find_target(config, options.target)
    work = ArmPlan(config, find_arm(config, options.composition, options.seed)).samples(target).work
    execution = validate_config(ExecutionConfig, {"processes": options.processes}, "the command line")
    store = ArtifactStore.from_environment()
    check_processes(options.processes)
    check_ablation(config, store.files.local_path(""))
    found = store.find(work.ref)
    if found is None:
        store.check()
        samples(options.composition, options.target, options.seed, config, execution)
        found = store.open(work.ref)
    count = export_samples(found, options.to, options.all, TerminalSink())
    print(f"{count} samples written to {options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
