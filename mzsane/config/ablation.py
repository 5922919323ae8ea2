"""An ablation: compositions, targets, and everything else by reference."""

from typing import Literal

from pydantic import Field, model_validator

from mzsane.config.backbone import BackboneConfig
from mzsane.config.base import Config, Name
from mzsane.config.identity import (
    Dataset,
    count_different,
    describe_dataset,
    describe_images,
    same_architecture,
    same_dataset,
    same_network,
)
from mzsane.config.images import AnyImagesConfig, ImagesConfig
from mzsane.config.questions import QuestionConfig
from mzsane.config.reading import MetricFilter, ReadConfig
from mzsane.config.sampling import EvaluationConfig, SamplingConfig
from mzsane.config.tokens import TokensConfig
from mzsane.config.zoo import NetworkConfig, ZooConfig
from mzsane.config.zoos import AnyZooConfig, SparseConfig


class SliceConfig(Config):
    """A part of a zoo: some of its training models, some of their checkpoints, and how often they are drawn."""

    zoo: Name = Field(description="name of the zoo")
    models: int = Field(ge=1, le=1_000_000, description="number of training models drawn from the zoo's train split")
    last_epochs: int | None = Field(
        None, ge=1, le=10_000, description="only this many last kept epochs; all kept ones if not set"
    )
    epochs: tuple[int, ...] | None = Field(None, description="only these epochs; all kept ones if not set")
    where: tuple[MetricFilter, ...] = Field((), description="only checkpoints that pass all these filters")
    weight: float = Field(1.0, gt=0, description="how often the slice is drawn, in relation to the others")

    @model_validator(mode="after")
    def _check_epochs(self) -> "SliceConfig":
        if self.epochs is not None and (self.last_epochs is not None or not self.epochs or min(self.epochs) < 0):
            raise ValueError(
                f"slice of zoo {self.zoo!r}: give either last_epochs or epochs, a list of epochs from 0 that is not "
                "empty"
            )
        return self


class CompositionConfig(Config):
    """What a backbone is trained on: a list of zoo slices."""

    name: Name = Field(description="what the comparison calls this composition")
    slices: tuple[SliceConfig, ...] = Field(min_length=1, description="the zoo slices")
    mixture: Literal["checkpoints", "equal"] = Field(
        "checkpoints",
        description="how training windows are shared between the slices, times their weights: by their numbers of "
        "checkpoints, or equally, whatever their sizes, so that size and mixture are varied apart",
    )
    backbone: BackboneConfig | None = Field(
        None, description="the backbone of this composition, when it is another one than the ablation's"
    )


class TargetConfig(Config):
    """What samples are made for and scored on: a zoo's own architecture and images, or other images."""

    name: Name = Field(description="what the comparison calls this target")
    zoo: Name | None = Field(None, description="a zoo of the ablation whose network and images are the target")
    images: ImagesConfig | None = Field(None, description="the target's images, when no zoo was trained on them")
    network: NetworkConfig | None = Field(None, description="the target's architecture, given together with images")

    @model_validator(mode="after")
    def _check_source(self) -> "TargetConfig":
        given = (self.zoo is not None, self.images is not None, self.network is not None)
        if given not in ((True, False, False), (False, True, True)):
            raise ValueError(f"target {self.name!r} needs either zoo, or both images and network")
        return self


class AblationConfig(Config):
    """Several compositions, each with several seeds, scored on the same targets with the same baselines."""

    name: Name = Field(description="what people call this ablation; runs in MLflow are grouped under it")
    # A list for each origin, because Prefect's form shows a list of alternatives as JSON.
    zoos: tuple[ZooConfig, ...] = Field((), description="zoos that are trained here, each once and shared by all arms")
    read_zoos: tuple[ReadConfig, ...] = Field((), description="zoos of checkpoints that others trained")
    sparse_zoos: tuple[SparseConfig, ...] = Field(
        (), description="zoos of sparse twins of models that are trained here"
    )
    tokens: TokensConfig = Field(TokensConfig(), description="how zoos become tokens")
    compositions: tuple[CompositionConfig, ...] = Field(min_length=1, description="the compositions to compare")
    backbone: BackboneConfig = Field(BackboneConfig(), description="the autoencoder and its pre-training")
    steps_per_model: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="steps of pre-training for each model of a composition, in place of backbone.steps: one of twice "
        "the models is trained twice as long, and sees each as often; a composition's own backbone keeps its steps",
    )
    targets: tuple[TargetConfig, ...] = Field(min_length=1, description="what is sampled for and scored on")
    sampling: SamplingConfig = Field(SamplingConfig(), description="how weights are drawn")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="how models are scored")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="one arm a composition and seed")
    questions: tuple[QuestionConfig, ...] = Field(
        (), description="what is asked of it, before it runs; what is found beyond these is called exploratory"
    )

    @property
    def all_zoos(self) -> tuple[AnyZooConfig, ...]:
        """The zoos of every origin."""
        return (*self.zoos, *self.read_zoos, *self.sparse_zoos)

    @model_validator(mode="after")
    def _check_references(self) -> "AblationConfig":
        for what, items in (("zoos", self.all_zoos), ("compositions", self.compositions), ("targets", self.targets)):
            names = [item.name for item in items]
            if len(set(names)) != len(names):
                raise ValueError(f"{what} have repeated names: {', '.join(names)}")
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be distinct and not negative, not {list(self.seeds)}")
        zoos = {zoo.name: zoo for zoo in self.all_zoos}
        if not zoos:
            raise ValueError("there is no zoo: give zoos, read_zoos or sparse_zoos")
        if varied := [zoo.name for zoo in self.zoos if zoo.factors.width]:
            raise ValueError(
                f"zoo {varied[0]!r} varies its width, and tokens are of one architecture: leave factors.width out, set "
                "network.width, and give a zoo for each width"
            )
        uses = [(f"composition {c.name!r}", s.zoo) for c in self.compositions for s in c.slices]
        uses += [(f"target {t.name!r}", t.zoo) for t in self.targets if t.zoo]
        for where, zoo in uses:
            if zoo not in zoos:
                raise ValueError(f"{where} names zoo {zoo!r}, which is not among the zoos: {', '.join(zoos)}")
        for composition in self.compositions:
            self._check_slices(composition, zoos)
            self._check_anchors(composition)
        counts = [self.count_parts(composition) for composition in self.compositions]
        for question in self.questions:
            question.check(
                [c.name for c in self.compositions],
                [t.name for t in self.targets],
                self.evaluation.finetune_epochs,
                {factor: {count[factor] for count in counts} for factor in counts[0]},
            )
        return self

    def _check_slices(self, composition: CompositionConfig, zoos: dict[str, AnyZooConfig]) -> None:
        names = [part.zoo for part in composition.slices]
        if len(set(names)) != len(names):
            raise ValueError(f"composition {composition.name!r} takes two slices of one zoo: {', '.join(names)}")
        for part in composition.slices:
            zoo = zoos[part.zoo]
            if zoo.models is None or zoo.keep_epochs is None:
                continue  # known when it has been read; the backbone checks it again
            available = self.tokens.count_split(zoo.models)["train"]
            if part.models > available:
                raise ValueError(
                    f"composition {composition.name!r} asks for {part.models} training models of zoo {part.zoo!r}, "
                    f"which has {available} ({zoo.models} models, train_fraction {self.tokens.train_fraction})"
                )
            if part.last_epochs and part.last_epochs > zoo.keep_epochs:
                raise ValueError(
                    f"composition {composition.name!r} asks for {part.last_epochs} epochs of zoo {part.zoo!r}, which "
                    f"keeps {zoo.keep_epochs}"
                )
            if isinstance(zoo, ZooConfig):
                kept = range(zoo.epochs - zoo.keep_epochs + 1, zoo.epochs + 1)
                if missing := sorted(set(part.epochs or ()) - set(kept)):
                    raise ValueError(
                        f"composition {composition.name!r} asks for epochs {missing} of zoo {part.zoo!r}, which keeps "
                        f"{list(kept)}"
                    )

    def _check_anchors(self, composition: CompositionConfig) -> None:
        names = [part.zoo for part in composition.slices]
        for anchor in self.sampling.anchor_models:
            if anchor.partition("/")[0] not in names:
                raise ValueError(
                    f"sampling.anchor_models has {anchor!r}, but composition {composition.name!r} has the zoos "
                    f"{', '.join(names)}"
                )
        for target in self.targets:
            slices = self.anchor_slices(composition, target)
            anchors = sum(part.models for part in slices)
            if anchors < self.sampling.anchors:
                raise ValueError(
                    f"sampling for target {target.name!r} asks for {self.sampling.anchors} anchors, but composition "
                    f"{composition.name!r} has {anchors} models that are most like it, of "
                    f"{', '.join(part.zoo for part in slices)}"
                )

    def resolve_target(self, target: TargetConfig) -> tuple[NetworkConfig, AnyImagesConfig]:
        """Return a target's network and images, its zoo's or its own."""
        if target.zoo is not None:
            zoo = self.find_zoo(target.zoo)
            if zoo.network is None or zoo.images is None:
                raise ValueError(
                    f"target {target.name!r} names zoo {zoo.name!r}, whose network and images are not given: give both "
                    "to the zoo"
                )
            return zoo.network, zoo.images
        assert target.network is not None
        assert target.images is not None
        return target.network, target.images

    def find_backbone(self, composition: CompositionConfig) -> BackboneConfig:
        """Return the backbone of a composition: its own, or the ablation's with its share of steps."""
        if composition.backbone is not None or self.steps_per_model is None:
            return composition.backbone or self.backbone
        steps = self.steps_per_model * sum(part.models for part in composition.slices)
        return self.backbone.model_copy(update={"steps": steps})

    def describe_target(self, target: TargetConfig) -> Dataset:
        """Return what is known of a target's dataset."""
        return describe_images(target.images) if target.zoo is None else describe_dataset(self.find_zoo(target.zoo))

    def in_distribution(self, composition: CompositionConfig, target: TargetConfig) -> bool | None:
        """Tell whether the target's dataset is among the datasets of the composition; None if that is not known."""
        if target.zoo in {part.zoo for part in composition.slices}:
            return True
        wanted = self.describe_target(target)
        found = {same_dataset(describe_dataset(self.find_zoo(part.zoo)), wanted) for part in composition.slices}
        return True if True in found else None if None in found else False

    def count_parts(self, composition: CompositionConfig) -> dict[str, int | None]:
        """Return a composition's size and diversity: its numbers of models, datasets and architectures if known."""
        zoos = [self.find_zoo(part.zoo) for part in composition.slices]
        return {
            "models": sum(part.models for part in composition.slices),
            "datasets": count_different([describe_dataset(zoo) for zoo in zoos], same_dataset),
            "architectures": count_different([zoo.network for zoo in zoos], same_architecture),
        }

    def anchor_slices(self, composition: CompositionConfig, target: TargetConfig) -> list[SliceConfig]:
        """Return the slices whose models are anchors for a target: those that are most like it.

        Models of its network and number of classes come first, then those of its network, then of its architecture in
        another size, then any; among equals those of its dataset. Anchors that are given come from where they are.
        """
        if self.sampling.anchor_choice == "given":
            named = {name.partition("/")[0] for name in self.sampling.anchor_models}
            return [part for part in composition.slices if part.zoo in named]
        network, images = self.resolve_target(target)
        wanted = self.describe_target(target)
        zoos = {part.zoo: self.find_zoo(part.zoo) for part in composition.slices}

        def compare(part: SliceConfig) -> tuple[bool, bool, bool, bool]:
            zoo = zoos[part.zoo]
            same = same_network(zoo.network, network) is True
            alike = zoo.network is not None and zoo.network.architecture == network.architecture
            own = part.zoo == target.zoo or same_dataset(describe_dataset(zoo), wanted) is True
            return same and _count_classes(zoo) == images.classes, same, alike, own

        best = max(map(compare, composition.slices))
        return [part for part in composition.slices if compare(part) == best]

    def transfer_zoos(self, target: TargetConfig) -> list[str]:
        """Return the zoos whose models a target can start from: its network and classes, on other images."""
        network, images = self.resolve_target(target)
        wanted = self.describe_target(target)
        return [
            zoo.name
            for zoo in self.all_zoos
            if zoo.name != target.zoo
            and same_network(zoo.network, network)
            and _count_classes(zoo) == images.classes
            and same_dataset(describe_dataset(zoo), wanted) is False
        ]

    def find_zoo(self, name: str) -> AnyZooConfig:
        """Return the zoo called `name`; names were checked at construction."""
        return next(zoo for zoo in self.all_zoos if zoo.name == name)


def _count_classes(zoo: AnyZooConfig) -> int | None:
    return None if zoo.images is None else zoo.images.classes
