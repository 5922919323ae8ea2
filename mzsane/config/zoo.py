"""Zoos: populations of models and the recipe that they are trained by."""

from functools import partial
from itertools import product
from math import prod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from mzsane.config.base import Config, Fraction, Name
from mzsane.config.images import ImagesConfig
from mzsane.plugins import describe_names, resolve_name

Activation = Literal["tanh", "relu", "leaky_relu", "gelu", "silu", "sigmoid"]
OWN = "own"  # the initialisation that keeps what a factory made
Initialisation = Literal[
    "kaiming_uniform", "xavier_uniform", "kaiming_normal", "xavier_normal", "uniform", "normal", "own"
]
Optimizer = Literal["adam", "adamw", "sgd", "rmsprop"]


class NetworkConfig(Config):
    """An architecture and its sizes."""

    architecture: Annotated[str, AfterValidator(partial(resolve_name, "architectures"))] = Field(
        "cnn-s",
        description="cnn-s (28x28 images) or cnn-l (32x32) of the published zoos, mlp, resnet18 (CIFAR stem), vit; or "
        "package.module:factory, called with channels and classes; or what an installed package offers",
        json_schema_extra=describe_names("architectures"),
    )
    activation: Activation = Field(
        "tanh", description="non-linearity after each hidden layer; a factory decides itself"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of hidden units that are dropped in training")
    width: int | None = Field(
        None,
        ge=4,
        le=65536,
        description="hidden units of mlp (32), base channels of resnet18 (64), model width of vit (64)",
    )

    @model_validator(mode="after")
    def _check_use(self) -> "NetworkConfig":
        if self.width is not None and self.architecture not in ("mlp", "resnet18", "vit"):
            raise ValueError(f"width has no meaning for {self.architecture}: leave it out")
        if self.width is not None and self.architecture == "vit" and self.width % 4:
            raise ValueError(f"width of a vit must be a multiple of its 4 heads, not {self.width}")
        if self.dropout and (self.architecture == "resnet18" or self.is_factory):
            raise ValueError(f"dropout has no meaning for {self.architecture}: leave it out")
        if self.is_factory and self.activation != type(self).model_fields["activation"].default:
            raise ValueError(f"activation has no meaning for {self.architecture}, which decides itself: leave it out")
        return self

    @property
    def is_factory(self) -> bool:
        """Whether the architecture is a factory of the user's."""
        return ":" in self.architecture


class RecipeConfig(Config):
    """How one model is trained."""

    initialisation: Initialisation = Field(
        "kaiming_uniform",
        description="initial distribution of the weights (uniform: 0..1, normal: deviation 1); biases start at 0.01. A "
        "factory's networks start as it made them (own) if nothing else is said",
    )
    optimizer: Optimizer = Field("adam", description="sgd has momentum 0.9")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="step size, the peak of it under one-cycle")
    schedule: Literal["constant", "one-cycle"] = Field("constant", description="course of the learning rate")
    weight_decay: float = Field(0.0, ge=0, le=1, description="L2 penalty added to the gradient; decoupled with adamw")
    batch_size: int = Field(16, ge=1, le=1_000_000, description="images in a training step")
    label_noise: Fraction = Field(0.0, description="share of the training images with a random wrong label")
    data_fraction: float = Field(1.0, gt=0, le=1, description="share of the training images that the model sees")


class FactorsConfig(Config):
    """Generating factors: what varies over the models of a zoo besides the seed."""

    design: Literal["grid", "random"] = Field(
        "grid", description="grid: every combination equally often; random: each model draws each factor"
    )
    activation: tuple[Activation, ...] = Field((), description="activations; none: all models have the network's")
    dropout: tuple[float, ...] = Field((), description="dropout shares")
    width: tuple[int, ...] = Field((), description="widths; a zoo of several widths has as many architectures")
    initialisation: tuple[Initialisation, ...] = Field((), description="initial distributions")
    optimizer: tuple[Optimizer, ...] = Field((), description="optimizers")
    learning_rate: tuple[float, ...] = Field((), description="learning rates")
    weight_decay: tuple[float, ...] = Field((), description="weight decays")
    batch_size: tuple[int, ...] = Field((), description="batch sizes, images")
    label_noise: tuple[float, ...] = Field((), description="shares of wrong labels")
    data_fraction: tuple[float, ...] = Field((), description="shares of the training images")

    def levels(self) -> dict[str, tuple[Any, ...]]:
        """Return the factors that vary, with their levels."""
        return {name: value for name, value in self if name != "design" and value}

    def combinations(self) -> list[dict[str, Any]]:
        """Return every combination of levels, the last factor changing fastest."""
        levels = self.levels()
        return [dict(zip(levels, values, strict=True)) for values in product(*levels.values())]


class _PopulationConfig(Config):
    # A base of its own, because forms show the fields of bases first.
    name: Name = Field(description="what compositions and targets call this zoo")
    images: ImagesConfig = Field(description="the image dataset the models are trained on")
    network: NetworkConfig = Field(NetworkConfig(), description="the architecture of the models")
    models: int = Field(64, ge=2, le=1_000_000, description="number of models; model i is trained with seed (seed, i)")
    epochs: int = Field(12, ge=1, le=10_000, description="training epochs of each model")
    keep_epochs: int = Field(4, ge=1, le=10_000, description="number of last epochs whose weights are kept")


class ZooConfig(RecipeConfig, _PopulationConfig):
    """A population of models trained by one recipe; they differ in their seed, and in generating factors if any."""

    factors: FactorsConfig = Field(FactorsConfig(), description="what varies over the models besides the seed")
    initial_weights: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="initial weights that the models take in turn, 1: all the same; none: each its own",
    )
    seed: int = Field(0, ge=0, description="root seed of the population")

    @model_validator(mode="before")
    @classmethod
    def _keep_own_start(cls, data: Any) -> Any:
        """Let a factory's networks start as it made them, unless another start is asked for."""
        network = data.get("network") if isinstance(data, dict) else None
        name = network.get("architecture") if isinstance(network, dict) else getattr(network, "architecture", None)
        if isinstance(name, str) and ":" in name:
            return {"initialisation": OWN} | data
        return data

    @model_validator(mode="after")
    def _check_epochs(self) -> "ZooConfig":
        if self.keep_epochs > self.epochs:
            raise ValueError(f"keep_epochs ({self.keep_epochs}) cannot be more than epochs ({self.epochs})")
        if self.initial_weights is not None and self.initial_weights > self.models:
            raise ValueError(
                f"initial_weights ({self.initial_weights}) cannot be more than models ({self.models}): leave it out, "
                "and each has a start of its own"
            )
        return self

    @model_validator(mode="after")
    def _check_factors(self) -> "ZooConfig":
        levels = self.factors.levels()
        for name in ("activation", "dropout", "width") if self.network.is_factory else ():
            if name in levels:
                raise ValueError(
                    f"factors.{name} has no meaning for {self.network.architecture}, which decides itself: leave it out"
                )
        for name, values in levels.items():
            if len(set(values)) != len(values):
                raise ValueError(f"factors.{name} has a level twice: {list(values)}")
        if self.factors.design == "random" and not levels:
            raise ValueError("factors.design random needs factors that vary: give some, or leave design out")
        if not self.network.is_factory and OWN in (self.initialisation, *levels.get("initialisation", ())):
            raise ValueError(
                f"initialisation {OWN} is for factories, {self.network.architecture} has none: choose another"
            )
        combinations = prod(map(len, levels.values()))
        if self.factors.design == "grid" and self.models % combinations:
            raise ValueError(
                f"models ({self.models}) must be a multiple of the {combinations} combinations of the factors"
            )
        for name, values in levels.items():
            for value in values:
                self.vary({**{other: first[0] for other, first in levels.items()}, name: value})
        return self

    def vary(self, factors: dict[str, Any]) -> tuple[NetworkConfig, RecipeConfig]:
        """Return the network and the recipe of a model with the given levels of the factors.

        Raises:
            ValueError: a level is out of its range.
        """
        of_network = {key: value for key, value in factors.items() if key in NetworkConfig.model_fields}
        of_recipe = {key: value for key, value in factors.items() if key in RecipeConfig.model_fields}
        network = NetworkConfig.model_validate(self.network.model_dump(exclude_unset=True) | of_network)
        common = {key: getattr(self, key) for key in RecipeConfig.model_fields}
        return network, RecipeConfig.model_validate(common | of_recipe)
