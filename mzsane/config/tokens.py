"""How zoos become tokens."""

from typing import Literal

from pydantic import Field, model_validator

from mzsane.config.base import Config, Fraction
from mzsane.splits import Shares, count_splits, find_shares


class TokensConfig(Config):
    """How a zoo becomes tokens."""

    token_dim: int | None = Field(
        51,
        ge=1,
        le=65536,
        description="width of a token, weights; longer rows are cut into several tokens. If unset, the width from 32 "
        "to 512 at which the architectures of all zoos have the least padding",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="type of the stored weights")
    running_statistics: Literal["in", "out", "conditioned"] = Field(
        "conditioned",
        description="running means and variances of batch norms: among the tokens; left at 0 and 1; or not among the "
        "tokens and computed on unlabelled training images of the target before a model is scored",
    )
    canonical: bool = Field(True, description="permute each model to match its zoo's reference model (weight matching)")
    signs: bool = Field(False, description="canonical form also flips hidden units of odd activations (tanh) to match")
    scales: bool = Field(
        False, description="canonical form also scales hidden units of ReLU-like activations: rows and columns alike"
    )
    barrier_pairs: int = Field(
        3,
        ge=0,
        le=100_000,
        description="pairs of reference and model whose loss barrier is measured before and after alignment",
    )
    train_fraction: Fraction = Field(0.7, gt=0, description="share of the models (not checkpoints) to train on")
    validation_fraction: Fraction = Field(0.15, description="share of the models to validate on; the rest is test")
    split_seed: int = Field(0, ge=0, description="seed of the split by the names of models")
    max_rejected: Fraction = Field(0.5, description="largest share of checkpoints that may be set aside as unusable")

    @model_validator(mode="after")
    def _check_fractions(self) -> "TokensConfig":
        if self.train_fraction + self.validation_fraction > 1 + 1e-9:
            raise ValueError("train_fraction and validation_fraction must leave a share of at least 0 for test")
        if (self.signs or self.scales) and not self.canonical:
            raise ValueError("signs and scales are parts of the canonical form: set canonical, or leave them out")
        return self

    @property
    def shares(self) -> Shares:
        """Shares of the models that are in train, val and test."""
        return find_shares(self.train_fraction, self.validation_fraction)

    def count_split(self, models: int) -> dict[str, int]:
        """Return how many of a trained zoo's models fall in each split."""
        return count_splits(models, self.shares, self.split_seed)
