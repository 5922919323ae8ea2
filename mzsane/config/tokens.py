"""How zoos become tokens."""

from pydantic import Field, model_validator

from mzsane.config.base import Config, Fraction


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
