"""The autoencoder and its pre-training."""

from typing import Literal

from pydantic import Field, model_validator

from mzsane.config.base import Config, Fraction


class BackboneConfig(Config):
    """The MZ-SANE sequence autoencoder and its pre-training."""

    window: int = Field(66, ge=1, description="tokens in a training window; a shorter model is padded to it")
    memory_gib: float = Field(
        4.0,
        gt=0,
        description="GiB of weights that are held in memory; a larger composition is streamed through a shuffle buffer "
        "of that size",
    )
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
    additive_noise: float = Field(0.0, ge=0, description="deviation of additive Gaussian noise, in weight units")
    erasing: Fraction = Field(0.0, description="share of each view that a random rectangle sets to zero")
    mix_up: Fraction = Field(0.0, description="largest share of another window of the same places that is mixed in")
    cut_mix: Fraction = Field(0.0, description="share of the tokens that is taken from another such window")
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
