"""Flow `samples`: draw samples from one arm's backbone for one target; the command `mzsane samples` writes them."""

import sys

from prefect import flow

from flows.chain import find_target, make_backbone, make_samples
from flows.presets import DEMO
from mzsane.config import AblationConfig, ExecutionConfig
from mzsane.estimate import check_ablation, check_processes
from mzsane.plan import ArmPlan, find_arm
from mzsane.sampling.export import export_samples
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from tasks.logs import quiet_expected_errors
from tasks.terminal import TerminalSink

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


def run_command(
    config: AblationConfig,
    composition: str,
    target: str,
    seed: int,
    folder: str,
    all_samples: bool,
    execution: ExecutionConfig,
) -> int:
    """Write samples as state dicts, drawn first if they are not there; returns the exit code."""
    wanted = find_target(config, target)
    work = ArmPlan(config, find_arm(config, composition, seed)).samples(wanted).work
    store = ArtifactStore.from_environment()
    check_processes(execution.processes)
    check_ablation(config, store.files.local_path(""))
    found = store.find(work.ref)
    if found is None:
        store.check()
        samples(composition, target, seed, config, execution)
        found = store.open(work.ref)
    count = export_samples(found, folder, all_samples, TerminalSink())
    print(f"{count} samples written to {folder}")
    return 0


if __name__ == "__main__":
    from flows.commands.app import main

    sys.exit(main(["samples", *sys.argv[1:]]))
