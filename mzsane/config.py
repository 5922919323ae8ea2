"""Every setting of mzsane, as frozen pydantic models. Unknown keys are errors; units are in the descriptions.

What changes a result is a setting of a stage and part of its fingerprint. What only changes how fast or where the
work is done is in `ExecutionConfig` and part of no fingerprint. Names are labels: they are part of no fingerprint
either, so that two ablations that call one zoo by different names share it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mzsane.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
IMAGE_SIZE = 28  # height and width of every image dataset, pixels


class Config(BaseModel):
    """Base of all configs: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def recipe(self) -> dict[str, Any]:
        """Return the settings that shape the result, as JSON data: all but the names that people give."""
        return self.model_dump(mode="json", exclude={"name"})


class DigitsConfig(Config):
    """The 1,797 real 8x8 digits that scikit-learn ships, enlarged."""

    source: Literal["digits"] = Field(description="scikit-learn's handwritten digits, 10 classes")
    split_seed: int = Field(0, ge=0, description="seed of the split into train, validation and test images")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return 10


class GlyphsConfig(Config):
    """Characters rendered from the fonts that matplotlib ships, with jitter and noise."""

    source: Literal["glyphs"] = Field(description="characters rendered from matplotlib's own fonts")
    characters: str = Field(
        "ABCDEFGHIJ", min_length=2, max_length=62, description="one class a character, in this order; no repeats"
    )
    images: int = Field(2400, ge=60, le=200_000, description="number of images rendered, all splits together")
    shift: float = Field(2.0, ge=0, le=8, description="largest random shift in each direction, pixels")
    angle: float = Field(15.0, ge=0, le=90, description="largest random rotation, degrees")
    noise: float = Field(0.1, ge=0, le=1, description="deviation of the Gaussian pixel noise, in units of full white")
    seed: int = Field(0, ge=0, description="seed of the rendering and of the split")

    @model_validator(mode="after")
    def _check_characters(self) -> "GlyphsConfig":
        if len(set(self.characters)) != len(self.characters) or not self.characters.isalnum():
            raise ValueError(f"characters must be distinct letters or figures, not {self.characters!r}")
        return self

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.characters)


def _show_as_any_of(schema: dict[str, Any]) -> None:
    """Describe the union in the way that Prefect's form can show; what is accepted stays the same."""
    schema["anyOf"] = schema.pop("oneOf")
    del schema["discriminator"]


ImagesConfig = Annotated[DigitsConfig | GlyphsConfig, Field(discriminator="source", json_schema_extra=_show_as_any_of)]


class NetworkConfig(Config):
    """The architecture that all models of a zoo share."""

    architecture: Literal["cnn-s"] = Field("cnn-s", description="cnn-s: the 2,464-weight CNN of the published zoos")
    activation: Literal["tanh", "relu", "leaky_relu", "gelu", "silu", "sigmoid"] = Field(
        "tanh", description="non-linearity after each hidden layer"
    )


class ZooConfig(Config):
    """A population of models trained by one recipe that differ in their seed."""

    name: Name = Field(description="what compositions and targets call this zoo")
    images: ImagesConfig = Field(description="the image dataset the models are trained on")
    network: NetworkConfig = Field(NetworkConfig(), description="the architecture of the models")
    initialisation: Literal["kaiming_uniform", "xavier_uniform", "kaiming_normal", "xavier_normal"] = Field(
        "kaiming_uniform", description="initial distribution of the weights; biases start at 0.01"
    )
    models: int = Field(64, ge=2, le=1_000_000, description="number of models; model i is trained with seed (seed, i)")
    epochs: int = Field(12, ge=1, le=10_000, description="training epochs of each model")
    keep_epochs: int = Field(4, ge=1, description="number of last epochs whose weights are kept")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Adam's learning rate")
    weight_decay: float = Field(0.0, ge=0, le=1, description="L2 penalty added to the gradient")
    batch_size: int = Field(16, ge=1, description="images in a training step")
    seed: int = Field(0, ge=0, description="root seed of the population")

    @model_validator(mode="after")
    def _check_epochs(self) -> "ZooConfig":
        if self.keep_epochs > self.epochs:
            raise ValueError(f"keep_epochs ({self.keep_epochs}) cannot be more than epochs ({self.epochs})")
        return self


class TokensConfig(Config):
    """How a zoo becomes tokens."""

    token_dim: int = Field(51, ge=1, description="width of a token, weights; longer rows are cut into several tokens")
    canonical: bool = Field(True, description="permute each model to match its zoo's reference model (weight matching)")
    train_fraction: Fraction = Field(0.7, gt=0, description="share of the models (not checkpoints) to train on")
    validation_fraction: Fraction = Field(0.15, description="share of the models to validate on; the rest is test")
    split_seed: int = Field(0, ge=0, description="seed of the split by model")
    max_rejected: Fraction = Field(0.5, description="largest share of checkpoints that may be set aside as unusable")

    @model_validator(mode="after")
    def _check_fractions(self) -> "TokensConfig":
        if self.train_fraction + self.validation_fraction > 1 + 1e-9:
            raise ValueError("train_fraction and validation_fraction must leave a share of at least 0 for test")
        return self

    def count_split(self, models: int) -> dict[str, int]:
        """Return how many of `models` models fall in each split (boundaries truncated, the rest is test)."""
        train = int(self.train_fraction * models + 1e-9)
        validation = int(self.validation_fraction * models + 1e-9)
        return {"train": train, "val": validation, "test": models - train - validation}


class SliceConfig(Config):
    """A part of a zoo: some of its training models, some of their epochs."""

    zoo: Name = Field(description="name of the zoo")
    models: int = Field(ge=1, description="number of training models drawn from the zoo's train split")
    last_epochs: int | None = Field(None, ge=1, description="only this many last kept epochs; all kept ones if not set")


class CompositionConfig(Config):
    """What a backbone is trained on: a list of zoo slices."""

    name: Name = Field(description="what the comparison calls this composition")
    slices: tuple[SliceConfig, ...] = Field(min_length=1, description="the zoo slices; each checkpoint weighs the same")


class BackboneConfig(Config):
    """The MZ-SANE sequence autoencoder and its pre-training."""

    window: int = Field(66, ge=1, description="tokens in a training window; a shorter model is padded to it")
    d_model: int = Field(96, ge=8, description="width of the transformer")
    heads: int = Field(4, ge=1, description="attention heads; must divide d_model")
    layers: int = Field(2, ge=1, description="transformer blocks in the encoder, and as many in the decoder")
    latent_dim: int = Field(32, ge=1, description="latent numbers a token")
    max_positions: tuple[int, int, int] = Field(
        (256, 32, 64), description="sizes of the position tables: token in network, layer, row in layer"
    )
    projection_dim: int = Field(30, ge=1, description="outputs of the projection head that the contrast sees")
    normalisation: Literal["token", "batch", "none"] = Field(
        "token",
        description="what the squared error is divided by: each target token's own variance (MZ-SANE), one variance "
        "over the batch (the published code), or nothing",
    )
    deviation_floor: float = Field(
        1e-4,
        gt=0,
        description="added to the deviation, in weight units, so that nearly constant tokens do not dominate",
    )
    target: Literal["clean", "augmented"] = Field(
        "augmented", description="reconstruct each view as it is, noise included (published), or without its noise"
    )
    noise: float = Field(0.1, ge=0, le=1, description="deviation of the multiplicative Gaussian noise on both views")
    gamma: float = Field(0.05, ge=0, le=1, description="weight of the contrast; the reconstruction has 1 - gamma")
    temperature: float = Field(0.1, gt=0, description="temperature of the NT-Xent contrast")
    steps: int = Field(1200, ge=1, description="training steps")
    batch_size: int = Field(32, ge=2, description="windows in a training step, each of another checkpoint draw")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="AdamW's peak learning rate")
    weight_decay: float = Field(3e-9, ge=0, le=1, description="AdamW's weight decay of matrices; vectors have none")
    warmup: Fraction = Field(0.1, description="share of the steps in which the learning rate rises; then cosine to 0")
    gradient_clip: float = Field(1.0, gt=0, description="largest gradient norm")

    @model_validator(mode="after")
    def _check_heads(self) -> "BackboneConfig":
        if self.d_model % (2 * self.heads):
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of twice the heads ({self.heads})")
        return self


class SamplingConfig(Config):
    """How new weights are drawn from a backbone."""

    sampler: Literal["joint"] = Field(
        "joint", description="joint: kernel density over whole models, one anchor and fresh noise for all tokens"
    )
    anchors: int = Field(10, ge=1, description="zoo models that the sampler starts from, drawn at random")
    bandwidth: float = Field(0.1, ge=0, le=10, description="kernel width, in deviations of the anchors' latents")
    samples: int = Field(100, ge=1, description="models drawn for each target")
    keep: int = Field(10, ge=1, description="samples selected by accuracy on the target's validation images")

    @model_validator(mode="after")
    def _check_keep(self) -> "SamplingConfig":
        if self.keep > self.samples:
            raise ValueError(f"keep ({self.keep}) cannot be more than samples ({self.samples})")
        return self


class EvaluationConfig(Config):
    """How models are scored and fine-tuned. Always selected on validation images and reported on test images."""

    finetune_epochs: tuple[int, ...] = Field(
        (0, 1, 3), min_length=1, description="epochs after which models are scored"
    )
    finetune_models: int = Field(5, ge=1, description="models of each method that are fine-tuned")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Adam's learning rate in fine-tuning")
    batch_size: int = Field(16, ge=1, description="images in a fine-tuning step")

    @model_validator(mode="after")
    def _check_epochs(self) -> "EvaluationConfig":
        epochs = self.finetune_epochs
        if list(epochs) != sorted(set(epochs)) or epochs[0] != 0:
            raise ValueError(f"finetune_epochs must start at 0 and rise, not {list(epochs)}")
        return self


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
    zoos: tuple[ZooConfig, ...] = Field(min_length=1, description="the zoos, each trained once and shared by all arms")
    tokens: TokensConfig = Field(TokensConfig(), description="how zoos become tokens")
    compositions: tuple[CompositionConfig, ...] = Field(min_length=1, description="the compositions to compare")
    backbone: BackboneConfig = Field(BackboneConfig(), description="the autoencoder and its pre-training")
    targets: tuple[TargetConfig, ...] = Field(min_length=1, description="what is sampled for and scored on")
    sampling: SamplingConfig = Field(SamplingConfig(), description="how weights are drawn")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="how models are scored")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="one arm a composition and seed")

    @model_validator(mode="after")
    def _check_references(self) -> "AblationConfig":
        for what in ("zoos", "compositions", "targets"):
            names = [item.name for item in getattr(self, what)]
            if len(set(names)) != len(names):
                raise ValueError(f"{what} have repeated names: {', '.join(names)}")
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be distinct and not negative, not {list(self.seeds)}")
        zoos = {zoo.name: zoo for zoo in self.zoos}
        uses = [(f"composition {c.name!r}", s.zoo) for c in self.compositions for s in c.slices]
        uses += [(f"target {t.name!r}", t.zoo) for t in self.targets if t.zoo]
        for where, zoo in uses:
            if zoo not in zoos:
                raise ValueError(f"{where} names zoo {zoo!r}, which is not among the zoos: {', '.join(zoos)}")
        for composition in self.compositions:
            self._check_slices(composition, zoos)
            self._check_anchors(composition)
        return self

    def _check_slices(self, composition: CompositionConfig, zoos: dict[str, ZooConfig]) -> None:
        names = [part.zoo for part in composition.slices]
        if len(set(names)) != len(names):
            raise ValueError(f"composition {composition.name!r} takes two slices of one zoo: {', '.join(names)}")
        for part in composition.slices:
            zoo = zoos[part.zoo]
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

    def _check_anchors(self, composition: CompositionConfig) -> None:
        for target in self.targets:
            _, images = self.resolve_target(target)
            anchors = sum(part.models for part in self.anchor_slices(composition, target))
            if anchors < self.sampling.anchors:
                raise ValueError(
                    f"sampling for target {target.name!r} asks for {self.sampling.anchors} anchors, but composition "
                    f"{composition.name!r} has {anchors} models of its network with {images.classes} classes"
                )

    def resolve_target(self, target: TargetConfig) -> tuple[NetworkConfig, DigitsConfig | GlyphsConfig]:
        """Return a target's network and images, its zoo's or its own."""
        if target.zoo is not None:
            zoo = self.find_zoo(target.zoo)
            return zoo.network, zoo.images
        assert target.network is not None
        assert target.images is not None
        return target.network, target.images

    def in_distribution(self, composition: CompositionConfig, target: TargetConfig) -> bool:
        """Tell whether the target's dataset is among the datasets of the composition."""
        _, images = self.resolve_target(target)
        return any(self.find_zoo(part.zoo).images == images for part in composition.slices)

    def anchor_slices(self, composition: CompositionConfig, target: TargetConfig) -> list[SliceConfig]:
        """Return the slices whose models can be anchors for a target.

        They have its network and number of classes, and its dataset too when the composition has that.
        """
        network, images = self.resolve_target(target)
        zoos = {part.zoo: self.find_zoo(part.zoo) for part in composition.slices}
        fitting = [
            part
            for part in composition.slices
            if zoos[part.zoo].network == network and zoos[part.zoo].images.classes == images.classes
        ]
        return [part for part in fitting if zoos[part.zoo].images == images] or fitting

    def find_zoo(self, name: str) -> ZooConfig:
        """Return the zoo called `name`; names were checked at construction."""
        return next(zoo for zoo in self.zoos if zoo.name == name)


class ExecutionConfig(Config):
    """How and where the work is done. Nothing here changes what is computed, only how fast."""

    processes: int | None = Field(
        None, ge=1, le=1024, description="worker processes for populations; all cores if unset"
    )
    checkpoint_steps: int = Field(100, ge=1, description="pre-training steps between checkpoints")
    chunk_models: int = Field(4, ge=1, description="models that are trained and saved together in a zoo")


T = TypeVar("T", bound=Config)


def validate_config(kind: type[T], data: Any, where: str) -> T:
    """Build a config from plain data.

    Args:
        kind: the config class.
        data: nested dicts and lists, as read from YAML.
        where: what the data is, for the error text: a file, a form.

    Raises:
        ConfigError: one line that names each wrong key, its value, and what is allowed.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain_validation(error)}") from None


def explain_validation(error: ValidationError) -> str:
    """Put a pydantic error in one line: each wrong key with its value and the reason."""
    reasons = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] not in ("value_error", "missing"):
            message += f", not {item['input']!r}"
        reasons.append(f"{key}: {message}" if key else message)
    return "; ".join(reasons)


def load_config(kind: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read a config from a YAML file and apply `path.to.key=value` overrides.

    Values are YAML; an item of a list is named by its index or its `name`.

    Raises:
        ConfigError: the file is missing or not YAML, an override does not fit, or a setting is wrong.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no such config file: {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    for override in overrides:
        _apply_override(data, override)
    return validate_config(kind, data, where=str(path) + (f" with {', '.join(overrides)}" if overrides else ""))


def _apply_override(data: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form path.to.key=value")
    *parents, last = key.split(".")
    node = data
    for part in parents:
        if isinstance(node, dict) and part not in node:
            node[part] = {}
        node = _step_into(node, part, override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not YAML") from None
    if isinstance(node, dict):
        node[last] = value
    elif isinstance(node, list) and last.isdecimal() and int(last) < len(node):
        node[int(last)] = value
    else:
        raise ConfigError(f"override {override!r}: there is no {last!r} to set")


def _step_into(node: Any, part: str, override: str) -> Any:
    if isinstance(node, dict):
        return node[part]
    if isinstance(node, list):
        if part.isdecimal() and int(part) < len(node):
            return node[int(part)]
        named = [item for item in node if isinstance(item, dict) and item.get("name") == part]
        if named:
            return named[0]
    raise ConfigError(f"override {override!r}: there is no {part!r}")
