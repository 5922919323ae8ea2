"""Where the zoos of an ablation come from: trained here, read from others' checkpoints, or made sparse."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mzsane.config.base import Config, Name, ShownAsAnyOf, refuse_unused
from mzsane.config.images import AnyImagesConfig
from mzsane.config.reading import ReadConfig
from mzsane.config.zoo import NetworkConfig, ZooConfig


class SparseConfig(Config):
    """A twin of every model of a zoo that is made sparse, with the trajectory on the way there."""

    name: Name = Field(description="what compositions and targets call this zoo")
    zoo: ZooConfig = Field(description="the zoo whose models' last epochs are made sparse")
    method: Literal["magnitude", "variational"] = Field(
        "magnitude",
        description="magnitude: the smallest weights are removed in steps; variational: sparse variational dropout, "
        "which finds out itself how many",
    )
    scope: Literal["global", "layer"] = Field(
        "global", description="magnitude only: smallest of the whole network, or the same share of each layer"
    )
    sparsity: tuple[float, ...] = Field(
        (0.2, 0.4, 0.6, 0.8, 0.9),
        min_length=1,
        description="magnitude only: shares of weights removed, one step after the other; biases stay",
    )
    epochs: int = Field(
        2, ge=1, le=10_000, description="training epochs after each step of magnitude; all epochs of variational"
    )
    threshold: float = Field(
        3.0, description="variational only: weights whose log of noise over signal is above this are removed"
    )
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Adam's learning rate")
    batch_size: int = Field(16, ge=1, le=1_000_000, description="images in a training step")
    seed: int = Field(0, ge=0, description="root seed of the twins")

    @property
    def network(self) -> NetworkConfig:
        """The architecture, the original zoo's."""
        return self.zoo.network

    @property
    def images(self) -> AnyImagesConfig:
        """The image dataset, the original zoo's."""
        return self.zoo.images

    @property
    def models(self) -> int:
        """Number of models."""
        return self.zoo.models

    @property
    def keep_epochs(self) -> int:
        """Number of steps that are kept of each model."""
        return len(self.sparsity) if self.method == "magnitude" else self.epochs

    @model_validator(mode="after")
    def _check_sparsity(self) -> "SparseConfig":
        shares = self.sparsity
        if list(shares) != sorted(set(shares)) or not (shares[0] > 0 and shares[-1] < 1):
            raise ValueError(f"sparsity must rise between 0 and 1, not {list(shares)}")
        return self

    @model_validator(mode="after")
    def _check_use(self) -> "SparseConfig":
        unused = ("threshold",) if self.method == "magnitude" else ("scope", "sparsity")
        refuse_unused(self, unused, f"for method {self.method}: leave it out")
        if self.zoo.factors.width:
            raise ValueError("twins are made of a zoo of one width: leave zoo.factors.width out, set zoo.network.width")
        return self


def _find_origin(value: Any) -> str:
    """Tell the kinds of zoos apart by the setting that only one of them needs."""
    if isinstance(value, ReadConfig | SparseConfig | ZooConfig):
        return {ReadConfig: "read", SparseConfig: "twins", ZooConfig: "train"}[type(value)]
    if isinstance(value, dict) and ("source" in value or "download" in value):
        return "read"
    return "twins" if isinstance(value, dict) and "zoo" in value else "train"


AnyZooConfig = Annotated[
    Annotated[ZooConfig, Tag("train")] | Annotated[ReadConfig, Tag("read")] | Annotated[SparseConfig, Tag("twins")],
    Discriminator(_find_origin),
    ShownAsAnyOf(),
]
