"""The chain of stages that leads to an arm's backbone, samples and scores; what is there already is only looked up."""

from mzsane.config import AblationConfig, ExecutionConfig, TargetConfig
from mzsane.errors import ConfigError
from mzsane.plan import find_arm, resolve_ablation
from mzsane.store.artifacts import ArtifactRef
from tasks import stages


def make_tokens(config: AblationConfig, zoo_names: list[str], execution: ExecutionConfig, run: str | None) -> None:
    """Make and tokenize zoos."""
    tokens = resolve_ablation(config).tokens
    for name in zoo_names:
        zoo = config.find_zoo(name)
        stages.make_zoo(zoo, execution, run)
        stages.build_tokens(zoo, tokens, execution, run)


def make_backbone(
    config: AblationConfig, composition: str, seed: int, execution: ExecutionConfig, run: str | None = None
) -> ArtifactRef:
    """Make an arm's backbone and what it reads."""
    arm = find_arm(config, composition, seed)
    make_tokens(config, [part.zoo for part in arm.composition.slices], execution, run)
    return stages.pretrain(config, composition, seed, execution, run)


def make_probes(config: AblationConfig, composition: str, seed: int, execution: ExecutionConfig) -> ArtifactRef:
    """Probe an arm's backbone, which must be there, on all zoos of the ablation."""
    make_tokens(config, [zoo.name for zoo in config.all_zoos], execution, None)
    return stages.probe_backbone(config, composition, seed, execution)


def make_samples(
    config: AblationConfig, composition: str, seed: int, target: TargetConfig, execution: ExecutionConfig
) -> ArtifactRef:
    """Make an arm's samples for one target; its backbone must be there."""
    make_tokens(config, [target.zoo] if target.zoo is not None else [], execution, None)
    return stages.draw_samples(config, composition, seed, target, execution)


def make_scores(
    config: AblationConfig, composition: str, seed: int, target: TargetConfig, execution: ExecutionConfig
) -> ArtifactRef:
    """Make an arm's samples for one target, their scores, and the baselines beside them; its backbone must be there."""
    make_samples(config, composition, seed, target, execution)
    make_tokens(config, config.transfer_zoos(target), execution, None)
    stages.score_baselines(config, composition, seed, target, execution)
    return stages.score_samples(config, composition, seed, target, execution)


def find_target(config: AblationConfig, name: str) -> TargetConfig:
    """Return a target by name.

    Raises:
        ConfigError: the ablation has no such target.
    """
    for target in config.targets:
        if target.name == name:
            return target
    raise ConfigError(f"no target {name!r}; the ablation has {', '.join(target.name for target in config.targets)}")
