"""Commands that run ablations, arms, and the drawing of samples."""

from typing import Annotated

from cyclopts import Parameter

from flows.commands.options import Processes, Settings, split_execution


def ablate(
    preset: str,
    /,
    *,
    settings: Settings = [],  # noqa: B006  (cyclopts makes a new one)
    plan: bool = False,
    resend: bool = False,
    processes: Processes = None,
    arms: int | None = None,
    threads: int | None = None,
) -> int:
    """Compare zoo compositions: train, sample, score, and write the page.

    Parameters
    ----------
    preset
        a preset (`mzsane presets` lists them) or the path of a YAML file
    plan
        print what is there, what would run, and what it takes; do no work
    resend
        send a finished ablation to MLflow again; do no work
    arms
        arms at a time; if not given one a core (and 4 GiB), or one on a GPU
    threads
        threads of each arm, 1 if not given; others change the last bits of results
    """
    from flows.presets import load_preset

    own, execution = split_execution(settings, processes=processes, arms=arms, threads=threads)
    config = load_preset(preset, own)
    from flows.ablation import run_command  # what is wrong with settings is said before this takes its seconds

    return run_command(config, execution, plan, resend)


def arm(
    preset: str,
    composition: str,
    seed: int = 0,
    /,
    *,
    settings: Settings = [],  # noqa: B006
    processes: Processes = None,
    threads: int | None = None,
) -> int:
    """Run one arm of an ablation: one composition with one seed, from zoos to scores.

    Parameters
    ----------
    preset
        a preset or the path of a YAML file
    composition
        name of the composition
    seed
        one of the ablation's seeds
    threads
        threads, 1 if not given; others change the last bits of results
    """
    from flows.presets import load_preset

    own, execution = split_execution(settings, processes=processes, threads=threads)
    config = load_preset(preset, own)
    from flows.arm import run_command

    return run_command(config, composition, seed, execution)


def samples(
    preset: str,
    composition: str,
    target: str,
    /,
    *,
    to: str,
    seed: int = 0,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    settings: Settings = [],  # noqa: B006
    processes: Processes = None,
) -> int:
    """Write samples of an arm for one target as state dicts; drawn first if they are not there.

    Parameters
    ----------
    preset
        an ablation: a preset or the path of a YAML file
    composition
        name of the composition
    target
        name of the target
    to
        folder to write to; it must be new or empty
    seed
        seed of the arm
    all_
        all samples, not only those that are selected
    """
    from flows.presets import load_preset

    own, execution = split_execution(settings, processes=processes)
    config = load_preset(preset, own)
    from flows.samples import run_command

    return run_command(config, composition, target, seed, to, all_, execution)
