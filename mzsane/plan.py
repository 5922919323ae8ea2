"""The stages of an ablation and what each reads: all of it known, and named, before any work is done.

A `Stage` is one piece of work with a name for people. `plan_ablation` lists them in an order in which each finds its
inputs made.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from mzsane.backbone.pretrain import plan_backbone, pretrain
from mzsane.composition import TokenSlice
from mzsane.config import (
    AblationConfig,
    AnyZooConfig,
    CompositionConfig,
    DownloadConfig,
    ExecutionConfig,
    TargetConfig,
    TokensConfig,
)
from mzsane.errors import ConfigError
from mzsane.estimate import check_ablation
from mzsane.evaluation.score import plan_baselines, plan_scores, score_baselines, score_samples
from mzsane.evaluation.selection import draw_samples, plan_samples
from mzsane.feasibility import check_layouts
from mzsane.fetch.download import download, plan_download
from mzsane.metrics import MetricSink
from mzsane.probing.stage import plan_probes, probe_backbone
from mzsane.problems.images.content import pin_images
from mzsane.report.compare import compare, plan_comparison
from mzsane.report.gather import ArmParts
from mzsane.sampling.target import Target
from mzsane.store.artifacts import Artifact, ArtifactRef, ArtifactStore, Work
from mzsane.store.making import record_making
from mzsane.tokens.build import build_tokens, fix_token_dim, plan_tokens
from mzsane.zoo.make import make_zoo, plan_zoo

Run = Callable[[ArtifactStore, ExecutionConfig, MetricSink], Artifact]


@dataclass(frozen=True)
class Stage:
    """One piece of work: its name for people, its name for machines, and how to do it."""

    name: str
    work: Work
    run: Run

    @property
    def label(self) -> str:
        """What logs call this stage: kind and name."""
        return f"{self.work.kind} {self.name}"

    def make(self, store: ArtifactStore, execution: ExecutionConfig, sink: MetricSink) -> Artifact:
        """Do the work, or open what was made before; the manifest keeps the name."""
        with record_making(self.name):
            return self.run(store, execution, sink)


@dataclass(frozen=True)
class Arm:
    """One composition with one seed."""

    composition: CompositionConfig
    seed: int

    @property
    def name(self) -> str:
        """What the comparison calls this arm."""
        return f"{self.composition.name}-s{self.seed}"


def list_arms(config: AblationConfig) -> list[Arm]:
    """Return all arms: every composition with every seed."""
    return [Arm(composition, seed) for composition in config.compositions for seed in config.seeds]


def find_arm(config: AblationConfig, composition: str, seed: int) -> Arm:
    """Return one arm.

    Raises:
        ConfigError: the ablation has no such composition or seed.
    """
    for arm in list_arms(config):
        if (arm.composition.name, arm.seed) == (composition, seed):
            return arm
    names = ", ".join(arm.name for arm in list_arms(config))
    raise ConfigError(f"no arm with composition {composition!r} and seed {seed}; the ablation has {names}")


def plan_zoo_stage(zoo: AnyZooConfig) -> Stage:
    """Return the stage that makes a zoo."""
    zoo = pin_images(zoo)
    return Stage(zoo.name, plan_zoo(zoo), lambda store, execution, sink: make_zoo(zoo, store, execution, sink))


def plan_download_stage(config: DownloadConfig) -> Stage:
    """Return the stage that downloads an archive."""
    return Stage(config.name, plan_download(config), lambda store, _, sink: download(config, store, sink))


def plan_tokens_stage(tokens: TokensConfig, zoo: AnyZooConfig) -> Stage:
    """Return the stage that tokenizes a zoo."""
    zoo = pin_images(zoo)
    return Stage(
        zoo.name,
        plan_tokens(tokens, zoo),
        lambda store, execution, sink: build_tokens(tokens, zoo, store, execution, sink),
    )


def resolve_ablation(config: AblationConfig) -> AblationConfig:
    """Return the ablation with the content of its images, and a token width that suits all zoos where it is open."""
    config = pin_images(config)
    return config.model_copy(update={"tokens": fix_token_dim(config.tokens, config.all_zoos)})


def plan_ablation(config: AblationConfig) -> list[Stage]:
    """Return every stage of an ablation once, each after those that it reads; the comparison is last.

    Raises:
        ConfigError: it cannot fit in memory, a stage cannot be planned, or a backbone has no places or windows for a
            model of a slice or target.
    """
    check_ablation(config)
    config = resolve_ablation(config)
    check_layouts(config)
    stages = [plan_zoo_stage(zoo) for zoo in config.all_zoos]
    stages += [plan_tokens_stage(config.tokens, zoo) for zoo in config.all_zoos]
    stages += [stage for arm in list_arms(config) for stage in ArmPlan(config, arm).stages()]
    stages.append(plan_comparison_stage(config))
    unique: dict[ArtifactRef, Stage] = {}
    for stage in stages:
        unique.setdefault(stage.work.ref, stage)
    return list(unique.values())


def plan_comparison_stage(config: AblationConfig, started: float | None = None, missing: Collection[str] = ()) -> Stage:
    """Return the stage that compares the arms.

    Args:
        config: the ablation.
        started: when it began, if its page is to say so.
        missing: the names of arms that failed and are left out.
    """
    config = resolve_ablation(config)
    parts = [ArmPlan(config, arm).parts() for arm in list_arms(config) if arm.name not in missing]
    left_out = [arm.name for arm in list_arms(config) if arm.name in missing]
    work = plan_comparison(config, parts, left_out)

    def run(store: ArtifactStore, execution: ExecutionConfig, sink: MetricSink) -> Artifact:
        return compare(config, parts, store, sink, started, left_out, execution)

    return Stage(config.name, work, run)


def list_missing(config: AblationConfig, store: ArtifactStore) -> list[str]:
    """Return the names of the arms of which an artifact is not there."""
    config = resolve_ablation(config)
    return [
        arm.name
        for arm in list_arms(config)
        if not all(store.exists(stage.work.ref) for stage in ArmPlan(config, arm).stages())
    ]


def _resolve(config: AblationConfig, target: TargetConfig) -> Target:
    network, images = config.resolve_target(target)
    tokens = plan_tokens(config.tokens, config.find_zoo(target.zoo)).ref if target.zoo is not None else None
    return Target(network, images, tokens)


class ArmPlan:
    """The stages of one arm: its backbone and its probes; for each target samples, their scores and the baselines."""

    def __init__(self, config: AblationConfig, arm: Arm) -> None:
        config = resolve_ablation(config)
        self.config, self.arm = config, arm
        self.slices = [
            TokenSlice(plan_tokens(config.tokens, config.find_zoo(part.zoo)).ref, part)
            for part in arm.composition.slices
        ]

    def stages(self) -> list[Stage]:
        """Return all stages of the arm in order."""
        by_target = [
            stage(target) for target in self.config.targets for stage in (self.baselines, self.samples, self.scores)
        ]
        return [self.backbone(), self.probes(), *by_target]

    def backbone(self) -> Stage:
        """Return the stage that pre-trains the backbone."""
        config = self.config.find_backbone(self.arm.composition)
        slices, seed = self.slices, self.arm.seed
        mixture = self.arm.composition.mixture
        return Stage(
            self.arm.name,
            plan_backbone(config, slices, seed, mixture),
            lambda store, execution, sink: pretrain(config, slices, seed, store, execution, sink, mixture),
        )

    def probes(self) -> Stage:
        """Return the stage that probes the backbone, on all zoos of the ablation."""
        others = [plan_tokens(self.config.tokens, zoo).ref for zoo in self.config.all_zoos]
        common = (self.backbone().work.ref, self.slices, others, self.arm.seed)
        return Stage(
            self.arm.name,
            plan_probes(*common),
            lambda store, execution, sink: probe_backbone(*common, store, execution, sink),
        )

    def baselines(self, target: TargetConfig) -> Stage:
        """Return the stage that scores a target's baselines, which all arms of a seed share."""
        config = self.config
        common = (config.evaluation, _resolve(config, target), config.tokens, self.arm.seed)
        refs = [plan_tokens(config.tokens, config.find_zoo(name)).ref for name in config.transfer_zoos(target)]
        others = sorted(refs, key=str)  # the order in which zoos are listed is nobody's choice
        return Stage(
            f"{target.name}-s{self.arm.seed}",
            plan_baselines(*common, others),
            lambda store, execution, sink: score_baselines(*common, store, execution, sink, others),
        )

    def samples(self, target: TargetConfig) -> Stage:
        """Return the stage that draws samples for a target."""
        slices = self.arm.composition.slices
        numbers = [slices.index(part) for part in self.config.anchor_slices(self.arm.composition, target)]
        resolved = _resolve(self.config, target)
        common = (self.config.sampling, resolved, self.backbone().work.ref, self.slices, numbers, self.arm.seed)
        return Stage(
            f"{self.arm.name}/{target.name}",
            plan_samples(*common),
            lambda store, execution, sink: draw_samples(*common, store, execution, sink),
        )

    def scores(self, target: TargetConfig) -> Stage:
        """Return the stage that scores the samples of a target."""
        samples, resolved = self.samples(target), _resolve(self.config, target)
        common = (self.config.evaluation, self.config.sampling, resolved, samples.work.ref, self.arm.seed)
        return Stage(
            samples.name,
            plan_scores(*common),
            lambda store, execution, sink: score_samples(*common, store, execution, sink),
        )

    def parts(self) -> ArmParts:
        """Return the names of the arm's artifacts, for the comparison."""
        targets = self.config.targets
        return ArmParts(
            name=self.arm.name,
            composition=self.arm.composition,
            seed=self.arm.seed,
            backbone=self.backbone().work.ref,
            probes=self.probes().work.ref,
            samples={target.name: self.samples(target).work.ref for target in targets},
            scores={target.name: self.scores(target).work.ref for target in targets},
            baselines={target.name: self.baselines(target).work.ref for target in targets},
        )
