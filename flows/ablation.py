"""Flow `ablation`: compare zoo compositions; also the command `mzsane ablate`."""

import logging
import os
import sys
import time
from collections import Counter
from typing import Literal

from prefect import flow, get_run_logger, runtime
from rich.console import Console
from rich.table import Table

from flows.arm import arm
from flows.dispatch import run_parts
from flows.presets import DEMO, change_config, list_presets, load_preset
from flows.tokens import tokens
from mzsane.config import AblationConfig, ExecutionConfig
from mzsane.device import choose_device
from mzsane.errors import ConfigError, MzsaneError
from mzsane.estimate import check_ablation, check_processes
from mzsane.feasibility import check_layouts, try_networks
from mzsane.forecast import Forecast, forecast
from mzsane.parallel import count_cores
from mzsane.plan import (
    Stage,
    list_arms,
    list_missing,
    plan_ablation,
    plan_comparison_stage,
    plan_zoo_stage,
    resolve_ablation,
)
from mzsane.store.artifacts import Artifact, ArtifactRef, ArtifactStore
from mzsane.zoo.contents import check_content
from tasks import stages
from tasks.logs import quiet_expected_errors
from tasks.publish import show_comparison
from tasks.terminal import print_comparison
from tasks.tracking import Tracker, resend

quiet_expected_errors()
_ARM_MEMORY = 4 * 2**30  # bytes that there are for each arm of several; a small one takes 1 GiB
PresetName = Literal[tuple(list_presets())]  # type: ignore[valid-type]


def _name_run() -> str:
    """Return the name of a flow run: that of the preset or config that it runs."""
    parameters = runtime.flow_run.parameters
    config = parameters.get("config", DEMO)
    name = config.name if isinstance(config, AblationConfig) else config["name"]
    return f"ablation-{parameters.get('preset') or name}"


@flow(name="ablation", flow_run_name=_name_run)
def ablation(
    preset: PresetName | None = None,
    settings: tuple[str, ...] = (),
    config: AblationConfig = DEMO,
    execution: ExecutionConfig = ExecutionConfig(),
) -> ArtifactRef:
    """Train a backbone on every composition, sample from it, and compare the scores on all targets.

    What was done before is not done again, by this ablation or any other on the same store.

    Args:
        preset: A shipped preset to run in place of the config below, which must then be left as it is.
        settings: What is changed in it, one `path.to.key=value` a line, as with `--set` on the command line.
        config: The whole ablation. The form is filled with the demo's settings.
        execution: How the work is done; what of it changes last bits is in the manifests.
    """
    if preset is not None:
        if config != DEMO:
            raise ConfigError(
                f"both preset {preset!r} and a config of your own are given: give one of them (and deploy again if "
                "presets/demo.yaml has changed since the form was made)"
            )
        config = load_preset(preset, settings)
    elif settings:
        config = change_config(config, settings)
    config = resolve_ablation(config)  # here, so that all arms, on whatever machine, know the same images
    started = time.time()
    logger = get_run_logger()
    store = ArtifactStore.from_environment()
    check_processes(execution.processes)
    check_ablation(config, store.files.local_path(""))
    store.check()
    planned = plan_comparison_stage(config).work.ref
    if not store.exists(planned):
        check_layouts(resolve_ablation(config), read_files=True)
        try_networks(config, execution)
    tracker = Tracker.from_environment(logger)
    run = tracker.open_ablation(config, planned.fingerprint)
    logger.info("store %s; tracking %s", store.root, tracker.address or "off (set MLFLOW_TRACKING_URI)")
    with tracker.watch(run):
        zoos = [
            {"zoo": zoo, "tokens": resolve_ablation(config).tokens, "execution": execution, "tracking_parent": run}
            for zoo in config.all_zoos
        ]
        run_parts(tokens, "tokens/build", zoos)
        chosen = list_arms(config)
        together, shared = _share_cores(execution, len(chosen))
        arms = [
            {
                "composition": item.composition.name,
                "seed": item.seed,
                "config": config,
                "execution": shared,
                "tracking_parent": run,
            }
            for item in chosen
        ]
        failure: MzsaneError | None = None
        try:
            run_parts(arm, "arm/run", arms, together)
        except MzsaneError as error:
            failure = error
        missing = list_missing(config, store) if failure else []
        if failure and len(missing) == len(chosen):
            raise failure
        made = stages.compare(config, execution, started, missing)
        comparison = store.open(made)
        tracker.finish_ablation(config, run, comparison, store)
        show_comparison(config.name, comparison, run)
        if failure:
            raise type(failure)(
                f"{failure}. What there is ({len(chosen) - len(missing)} of {len(chosen)} arms) is compared in "
                f"{comparison.address}; run again, the ablation makes only what is missing"
            ) from failure
    return made


def _share_cores(execution: ExecutionConfig, arms: int) -> tuple[int, ExecutionConfig]:
    """Return how many of so many arms run at the same time in this process's children, and how each is executed."""
    if runtime.deployment.id is not None:
        return 1, execution  # the work pool decides
    processes = execution.processes or count_cores()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usual = 1 if choose_device(execution.device).type == "cuda" else min(processes, max(1, memory // _ARM_MEMORY))
    together = min(execution.arms or usual, arms)
    return together, execution.model_copy(update={"processes": max(1, processes // together)})


def run_command(config: AblationConfig, execution: ExecutionConfig, plan: bool, resend_only: bool) -> int:
    """Run an ablation, print what it takes, or send it again; returns the exit code."""
    store = ArtifactStore.from_environment()
    check_processes(execution.processes)
    check_ablation(config, store.files.local_path(""))
    if plan:
        _print_plan(config, store)
        return 0
    comparison = store.find(plan_comparison_stage(config).work.ref)
    for zoo in config.read_zoos:
        if found := store.find(plan_zoo_stage(zoo).work.ref):
            check_content(zoo, found)
    if resend_only:
        return _resend(config, comparison, store)
    if comparison is None:
        store.check()
        try:
            ablation(config=config, execution=execution)
        except MzsaneError:
            missing = list_missing(config, store)
            if found := store.find(plan_comparison_stage(config, missing=missing).work.ref) if missing else None:
                print_comparison(found)
            raise
        # Prefect's last words come at exit; without this the page's path would not be the last line.
        logging.getLogger("prefect").setLevel(logging.WARNING)
        comparison = store.open(plan_comparison_stage(config).work.ref)
    else:
        print(f"ablation {config.name}: all of it is there already, nothing to do")
    print_comparison(comparison)
    return 0


def _resend(config: AblationConfig, comparison: Artifact | None, store: ArtifactStore) -> int:
    if comparison is None:
        raise ConfigError(f"ablation {config.name} is not finished, so there is nothing to send: run it first")
    logging.basicConfig(level=logging.ERROR)
    tracker = Tracker.from_environment(logging.getLogger("mzsane"))
    if not tracker.uri:
        raise ConfigError("MLFLOW_TRACKING_URI is not set: there is no place to send to")
    sent = resend(config, comparison, store, logging.getLogger("mzsane"))
    print(f"ablation {config.name}: {'sent to' if sent else 'NOT sent to'} {tracker.address}")
    return 0 if sent else 1


def _print_plan(config: AblationConfig, store: ArtifactStore) -> None:
    table = Table("stage", "artifact", "state")
    to_do, states = list[Stage](), Counter[str]()
    for stage in plan_ablation(config):
        ref = stage.work.ref
        if store.exists(ref):
            state = "there"
        elif store.partial(stage.work).names():
            state = "continues"
        else:
            state = "to do"
        if state != "there":
            to_do.append(stage)
        states[state] += 1
        table.add_row(stage.label, f"{ref.kind}/{ref.fingerprint[:12]}", state)
    console = Console(highlight=False)
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    console.print(f"ablation {config.name} in {store.root}: {counted}", soft_wrap=True, markup=False)
    if to_do:
        console.print(_describe_forecast(forecast(to_do, store)), soft_wrap=True, markup=False)
    console.print(table)


def _describe_forecast(told: Forecast) -> str:
    if not told.known:
        return "how long it takes is not known: nothing like it was done in this store yet"
    hours, minutes = divmod(round(told.seconds / 60), 60)
    time_ = f"{hours} h {minutes} min" if hours else f"{minutes} min"
    size, hosts = f"{told.bytes / 1e6:,.0f} MB", ", ".join(told.hosts)
    text = f"about {time_} one after the other, and {size}, as measured in this store on {hosts}"
    return text + (f"; of {told.unknown} stages nothing like them was done yet" if told.unknown else "")


if __name__ == "__main__":
    from flows.commands.app import main

    sys.exit(main(["ablate", *sys.argv[1:]]))
