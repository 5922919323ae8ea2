"""Zoos: populations of models and the recipe that they are trained by."""

from typing import Literal

from pydantic import Field, model_validator

from mzsane.config.base import Config, Name
from mzsane.config.images import ImagesConfig


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
