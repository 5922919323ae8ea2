"""How weights are drawn, and how models are scored."""

from typing import Literal

from pydantic import Field, model_validator

from mzsane.config.base import Config


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
