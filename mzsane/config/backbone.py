"""The autoencoder and its pre-training."""

import math
import warnings
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mzsane.config.base import Config, Fraction

# By name: settings that a config may start from (`preset`). Parameter counts are for the token widths in the comments.
PRESETS: dict[str, dict[str, Any]] = {
    # 0.3 M, 51: small CNNs on a laptop.
    "tiny": {"window": 66, "d_model": 64, "heads": 4, "layers": 2, "latent_dim": 48, "learning_rate": 4e-3},
    # 10 M, 51: CNN zoos on a workstation; four CNN-s share a window.
    "cnn": {
        "window": 264,
        "d_model": 256,
        "heads": 8,
        "layers": 6,
        "latent_dim": 48,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "steps": 5000,
    },
    # 202 M, 289: the CNN experiments of SANE, arXiv 2406.09997.
    "sane-cnn": {
        "window": 64,
        "d_model": 1024,
        "heads": 8,
        "layers": 8,
        "latent_dim": 128,
        "max_positions": (1000, 32, 256),
        "learning_rate": 1e-4,
        "schedule": "one-cycle",
        "steps": 50_000,
    },
    # 869 M, 288: the ResNet-18 experiments of MZ-SANE, arXiv 2504.10141.
    "paper-resnet18": {
        "window": 256,
        "d_model": 2048,
        "heads": 16,
        "layers": 8,
        "latent_dim": 128,
        "max_positions": (60_000, 150, 600),
        "learning_rate": 2e-5,
        "schedule": "one-cycle",
        "steps": 60_000,
        "recompute": True,
    },
}


Positions = Annotated[int, Field(ge=1, le=100_000_000)]


class BackboneConfig(Config):
    """The MZ-SANE sequence autoencoder and its pre-training.

    In place of settings, the name of a preset can be given, and `preset` among the settings is where the others start
    from; the config holds the values alone.
    """

    window: int = Field(
        66, ge=1, le=1_000_000, description="tokens in a training window; a shorter model is padded to it"
    )
    memory_gib: float = Field(
        4.0,
        gt=0,
        le=1_000_000,
        description="GiB of weights that are held in memory; a larger composition is streamed through a shuffle buffer "
        "of that size",
    )
    d_model: int = Field(96, ge=8, le=65536, description="width of the transformer")
    heads: int = Field(4, ge=1, le=8192, description="attention heads; must divide d_model")
    layers: int = Field(2, ge=1, le=1000, description="transformer blocks in the encoder, and as many in the decoder")
    latent_dim: int = Field(
        32, ge=1, le=65536, description="latent numbers a token; one with fewer weights has as many as weights"
    )
    positions: Literal["learned", "sinusoidal"] = Field(
        "learned", description="embedding of a token's place: learned tables, or sines and cosines without a limit"
    )
    max_positions: tuple[Positions, Positions, Positions] = Field(
        (256, 32, 64),
        description="sizes of the learned position tables: token in network, layer, row in layer; a shortcut has as "
        "many codes as layers",
    )
    shortcut: bool = Field(
        False,
        description="a linear code for each layer beside the transformer, which then need not learn what is linear: "
        "more is kept where latents are scarce",
    )
    projection_dim: int = Field(30, ge=1, le=65536, description="outputs of the projection head that the contrast sees")
    normalisation: Literal["token", "layer", "window", "batch", "none"] = Field(
        "token",
        description="what the squared error is divided by: the variance of each target token (MZ-SANE), of each layer "
        "of a model, of each model in a window, of the whole batch (the published code), or nothing",
    )
    deviation_floor: float = Field(
        1e-4,
        gt=0,
        description="added to the deviation, in weight units, so that nearly constant tokens do not dominate",
    )
    relative_floor: Fraction = Field(
        0.1,
        description="least deviation of a token or layer that counts, as a share of that of its model's weights in the "
        "window: a token of a single weight has none and would outweigh all others",
    )
    target: Literal["clean", "augmented"] = Field(
        "augmented", description="reconstruct each view as it is, noise included (published), or without its noise"
    )
    noise: float = Field(0.1, ge=0, le=1, description="deviation of the multiplicative Gaussian noise on both views")
    additive_noise: float = Field(0.0, ge=0, description="deviation of additive Gaussian noise, in weight units")
    erasing: Fraction = Field(0.0, description="share of each view that a random rectangle sets to zero")
    mix_up: Fraction = Field(0.0, description="largest share of another window of the same places that is mixed in")
    cut_mix: Fraction = Field(0.0, description="share of the tokens that is taken from another such window")
    contrast: Literal["simclr", "positive"] = Field(
        "simclr", description="views of one window attract and others repel (NT-Xent), or attraction alone"
    )
    gamma: float = Field(0.05, ge=0, le=1, description="weight of the contrast; the reconstruction has 1 - gamma")
    temperature: float = Field(0.1, gt=0, description="temperature of the NT-Xent contrast")
    latent_norm: float = Field(0.0, ge=0, description="weight of a penalty on the mean square of the latents")
    latent_variance: float = Field(
        0.0, ge=0, description="weight of a penalty on the variance of each latent dimension over the batch"
    )
    latent_noise: float = Field(
        0.0,
        ge=0,
        description="deviation of the noise on the latents in training; with latent_norm a variational autoencoder of "
        "fixed variance",
    )
    behaviour: float = Field(
        0.0,
        ge=0,
        description="weight of the behavioural loss: the difference of the outputs of original and reconstructed "
        "networks on training images, without labels; windows must hold whole models",
    )
    behaviour_images: int = Field(
        32, ge=2, le=1_000_000, description="images in a step of the behavioural loss, for each zoo"
    )
    behaviour_output: Literal["logits", "probabilities"] = Field(
        "logits", description="outputs that the behavioural loss compares; logits relative to their variance"
    )
    steps: int = Field(1200, ge=1, le=1_000_000_000, description="training steps")
    batch_size: int = Field(32, ge=2, le=1_000_000, description="windows in a training step, over all devices")
    accumulation: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="parts of a batch that are computed one after another, to save memory; each has a loss of its own "
        "(means over its weights and latents, a contrast of its windows), of which the gradients' mean is taken",
    )
    learning_rate: float = Field(1e-3, gt=0, le=10, description="AdamW's peak learning rate")
    weight_decay: float = Field(3e-9, ge=0, le=1, description="AdamW's weight decay of matrices; vectors have none")
    schedule: Literal["cosine", "one-cycle"] = Field(
        "cosine",
        description="linear warm-up and cosine to 0, or one-cycle: cosine from a 25th up to the peak and down, while "
        "AdamW's first momentum falls from 0.95 to 0.85 and rises again",
    )
    warmup: Fraction = Field(0.1, description="share of the steps in which the learning rate rises")
    gradient_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    averaging: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which then is validated and published; 0 for none",
    )
    publish: Literal["last", "best"] = Field(
        "last", description="which weights become the backbone: the last ones, or those that were best in validation"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="number format of the matrix products in training; auto takes bfloat16 where the processor or GPU "
        "has it, weights and loss stay float32",
    )
    recompute: bool = Field(
        False, description="compute activations again in the backward pass instead of keeping them: a third more work"
    )
    validations: int = Field(
        8,
        ge=1,
        le=100_000,
        description="times in a training that models which were not trained on are reconstructed and probed",
    )

    @property
    def part_windows(self) -> int:
        """Windows in a part of a step, over all devices."""
        return self.batch_size // self.accumulation

    @property
    def position_limits(self) -> tuple[float, float, float]:
        """Up to which token in network, layer and row there is a table; sines and cosines have no limit."""
        if self.positions == "learned":
            return self.max_positions
        return math.inf, self.max_positions[1] if self.shortcut else math.inf, math.inf

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"preset": data}
        if not (isinstance(data, dict) and "preset" in data):
            return data
        settings = {key: value for key, value in data.items() if key != "preset"}
        if not isinstance(data["preset"], str) or data["preset"] not in PRESETS:
            raise ValueError(f"there is no backbone preset {data['preset']!r}; there are {', '.join(PRESETS)}")
        return PRESETS[data["preset"]] | settings

    @model_validator(mode="after")
    def _check_sizes(self) -> "BackboneConfig":
        if self.d_model % (2 * self.heads):
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of twice the heads ({self.heads})")
        if self.batch_size % self.accumulation or self.part_windows < 2:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulation ({self.accumulation}), with at "
                "least 2 windows a part"
            )
        return self

    @model_validator(mode="after")
    def _warn_of_unused(self) -> "BackboneConfig":
        unused: dict[str, tuple[str, ...]] = {}
        if self.normalisation not in {"token", "layer"}:
            unused[f"normalisation {self.normalisation}"] = ("relative_floor",)
        if self.normalisation == "none":
            unused["normalisation none"] = ("relative_floor", "deviation_floor")
        if self.contrast == "positive":
            unused["contrast positive"] = ("temperature",)
        if not self.gamma:
            unused["gamma 0"] = ("contrast", "temperature", "projection_dim")
        if not self.behaviour:
            unused["behaviour 0"] = ("behaviour_images", "behaviour_output")
        for cause, names in unused.items():
            for name in names:
                if (value := getattr(self, name)) != type(self).model_fields[name].default:
                    warnings.warn(f"backbone.{name} {value} does nothing with {cause}", stacklevel=2)
        return self
