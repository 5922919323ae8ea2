"""How weights are drawn, and how models are scored."""

from typing import Literal

from pydantic import Field, model_validator

from mzsane.config.base import Config

SamplerName = Literal["joint", "shared", "token", "individual", "neighbourhood", "interpolation", "gaussian", "flow"]


class SamplingConfig(Config):
    """How new weights are drawn from a backbone."""

    sampler: SamplerName = Field(
        "joint",
        description="joint: an anchor for all tokens of a sample, and fresh noise for each latent number; shared: the "
        "same with one noise vector for all tokens; token: an anchor and noise for each token; individual: for each "
        "latent number; neighbourhood: an anchor and noise towards its nearest anchors; interpolation: between two "
        "anchors; gaussian: mean and deviation of each layer, near no anchor; flow: anchors mixed with noise and "
        "brought back by flow matching that was trained on them",
    )
    anchors: int = Field(10, ge=1, description="zoo models that the sampler starts from, drawn at random")
    bandwidth: float = Field(
        0.1,
        ge=0,
        le=10,
        description="how far from the anchors: noise in deviations of their latents; for interpolation the share of "
        "the way; for neighbourhood the step in distances to the nearest anchors; for flow the share of noise",
    )
    guidance_steps: int = Field(
        0,
        ge=0,
        description="steps in which samples are moved until they do on unlabelled training images of the target what "
        "their anchors do; with any, samples have seen images, and so have the baselines that are guided alike",
    )
    guidance_rate: float = Field(
        0.03, gt=0, le=10, description="learning rate of these steps, in deviations of the latents over the anchors"
    )
    guidance_images: int = Field(64, ge=1, description="images in each of these steps")
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
        (0, 1, 2, 5, 10, 25), min_length=1, description="epochs after which models are scored"
    )
    finetune_models: int = Field(5, ge=1, description="models of each method that are fine-tuned")
    learning_rates: tuple[float, ...] = Field(
        (3e-4, 1e-3, 3e-3),
        min_length=1,
        description="Adam's learning rates in fine-tuning; for each method and number of epochs the one with the best "
        "mean accuracy on validation images counts",
    )
    images_per_class: int | None = Field(
        None,
        ge=1,
        description="only so many labelled training images of each class in fine-tuning, drawn by the seed, the same "
        "for all methods; all if unset. Validation images are not thinned",
    )
    batch_size: int = Field(16, ge=1, description="images in a fine-tuning step")
    ensembles: tuple[int, ...] = Field(
        (5, 10),
        description="sizes of ensembles that are scored without fine-tuning: of so many models of a method their "
        "probabilities are averaged; sizes beyond a method's number of models are left out",
    )

    @model_validator(mode="after")
    def _check_lists(self) -> "EvaluationConfig":
        epochs = self.finetune_epochs
        if list(epochs) != sorted(set(epochs)) or epochs[0] != 0:
            raise ValueError(f"finetune_epochs must start at 0 and rise, not {list(epochs)}")
        rates = self.learning_rates
        if len(set(rates)) != len(rates) or not all(0 < rate <= 10 for rate in rates):
            raise ValueError(f"learning_rates must be different, above 0 and at most 10, not {list(rates)}")
        sizes = self.ensembles
        if list(sizes) != sorted(set(sizes)) or (sizes and sizes[0] < 2):
            raise ValueError(f"ensembles must rise from at least 2 models, not {list(sizes)}")
        return self
