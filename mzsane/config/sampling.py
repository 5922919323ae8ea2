"""How weights are drawn, and how models are scored."""

from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from mzsane.config.base import Config, ShownAsAnyOf, refuse_unused
from mzsane.plugins import describe_names, resolve_name

_Bandwidth = Annotated[float, Field(ge=0, le=10)]
Bandwidths = Annotated[
    Annotated[_Bandwidth, Tag("number")] | Annotated[tuple[_Bandwidth, ...], Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "number"),
    ShownAsAnyOf(),
]


class SamplingConfig(Config):
    """How new weights are drawn from a backbone."""

    sampler: Annotated[str, AfterValidator(partial(resolve_name, "samplers"))] = Field(
        "joint",
        description="joint: an anchor for all tokens of a sample, and fresh noise for each latent number; shared: the "
        "same with one noise vector for all tokens; token: an anchor and noise for each token; individual: for each "
        "latent number; neighbourhood: an anchor and noise towards its nearest anchors; interpolation: between two "
        "anchors; gaussian: mean and deviation of each layer, near no anchor; flow: anchors mixed with noise and "
        "brought back by flow matching that was trained on them; package.module:function, or what an installed package "
        "offers: a sampler of one's own",
        json_schema_extra=describe_names("samplers"),
    )
    anchors: int = Field(
        10,
        ge=0,
        le=1_000_000,
        description="zoo models that the sampler starts from; 0 for none: gaussian then draws from the latents of "
        "up to 100 training models",
    )
    anchor_choice: Literal["random", "best", "given"] = Field(
        "random",
        description="random: any training models of the composition; best: those with the highest accuracy on the "
        "validation images of their zoo; given: those in anchor_models",
    )
    anchor_models: tuple[Annotated[str, Field(pattern="^[^/]+/.+$")], ...] = Field(
        (), description="the anchors when they are given, by zoo/model; as many as anchors says"
    )
    refine_anchors: bool = Field(
        False,
        description="move the anchors' latents until they decode to networks that are nearer to the anchors, in their "
        "weights and in what they do on noise: no data is seen. It takes 60 passes forward and backward through "
        "decoder and networks, and is not done for anchors of another architecture or with other classes",
    )
    bandwidth: Bandwidths = Field(
        (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
        description="how far from the anchors: noise in deviations of their latents; for interpolation the share of "
        "the way; for neighbourhood the step in distances to the nearest anchors; for flow the share of noise. Of a "
        "list the one whose samples have the best mean accuracy on validation images is taken, of those that reach "
        "least_novelty; where the narrower ones do not, some between them are tried too",
    )
    bandwidth_samples: int = Field(
        10, ge=1, le=100_000, description="models drawn at each bandwidth of a list to choose one"
    )
    least_novelty: float = Field(
        0.5,
        ge=0,
        le=10,
        description="least mean sampling novelty of a bandwidth that is chosen from a list, in spacings of the zoo: "
        "the distance from the anchors as the backbone decodes them, so that what the autoencoder loses counts for "
        "nothing. Without it copies of the anchors would always win. If none reaches it, the most novel one is taken",
    )
    guidance_steps: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="steps in which samples are moved until they do on unlabelled training images of the target what "
        "their anchors do; with any, samples have seen images, and so have the baselines that are guided alike",
    )
    guidance_rate: float = Field(
        0.03, gt=0, le=10, description="learning rate of these steps, in deviations of the latents over the anchors"
    )
    guidance_images: int = Field(64, ge=1, le=1_000_000, description="images in each of these steps")
    samples: int = Field(100, ge=1, le=1_000_000, description="models drawn for each target")
    keep: int = Field(
        10, ge=1, le=1_000_000, description="samples selected by accuracy on the target's validation images"
    )
    rounds: int = Field(
        1,
        ge=1,
        le=100,
        description="how often samples are drawn; from the second on, the selected ones are the anchors",
    )

    @model_validator(mode="after")
    def _check_keep(self) -> "SamplingConfig":
        if self.keep > self.samples:
            raise ValueError(f"keep ({self.keep}) cannot be more than samples ({self.samples})")
        if self.rounds > 1 and self.keep < 2:
            raise ValueError(f"rounds ({self.rounds}) need at least 2 samples to go on from, but keep is {self.keep}")
        return self

    @model_validator(mode="after")
    def _check_anchors(self) -> "SamplingConfig":
        if self.anchor_choice == "given" and not 0 < len(set(self.anchor_models)) == self.anchors:
            raise ValueError(
                f"anchor_choice given needs as many different anchor_models as anchors ({self.anchors}), not "
                f"{list(self.anchor_models)}"
            )
        if self.anchor_choice != "given" and self.anchor_models:
            raise ValueError("anchor_models are not used: set anchor_choice to given, or leave them out")
        if self.anchors == 1 and self.sampler in ("interpolation", "neighbourhood"):
            raise ValueError(f"sampler {self.sampler} needs at least 2 anchors, not 1")
        if not self.anchors and (self.sampler != "gaussian" or self.anchor_choice != "random"):
            raise ValueError("anchors 0 needs sampler gaussian and anchor_choice random: all others start from anchors")
        return self

    @model_validator(mode="after")
    def _check_bandwidth(self) -> "SamplingConfig":
        if not self.guidance_steps:
            refuse_unused(
                self, ("guidance_rate", "guidance_images"), "without guidance_steps: leave it out, or set them"
            )
        if isinstance(self.bandwidth, float):
            unused = ("bandwidth_samples", "least_novelty")
            refuse_unused(self, unused, "for one bandwidth: leave it out, or give a list of them")
        elif len(set(self.bandwidth)) != len(self.bandwidth) or len(self.bandwidth) < 2:
            raise ValueError(f"bandwidth must be one number or a list of different ones, not {list(self.bandwidth)}")
        return self


class EvaluationConfig(Config):
    """How models are scored and fine-tuned. Always selected on validation images and reported on test images."""

    finetune_epochs: tuple[Annotated[int, Field(le=100_000)], ...] = Field(
        (0, 1, 2, 5, 10, 25), min_length=1, description="epochs after which models are scored"
    )
    finetune_models: int = Field(5, ge=1, le=1_000_000, description="models of each method that are fine-tuned")
    learning_rates: tuple[float, ...] = Field(
        (3e-4, 1e-3, 3e-3),
        min_length=1,
        description="Adam's learning rates in fine-tuning; for each method and number of epochs the one with the best "
        "mean accuracy on validation images counts",
    )
    images_per_class: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="only so many labelled training images of each class in fine-tuning, drawn by the seed, the same "
        "for all methods; all if unset. Validation images are not thinned",
    )
    batch_size: int = Field(16, ge=1, le=1_000_000, description="images in a fine-tuning step")
    random_models: int = Field(
        5,
        ge=1,
        le=1_000_000,
        description="random initialisations that are scored and fine-tuned, or finetune_models if those are more",
    )
    distillation_steps: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        (30, 100, 300, 1000),
        description="gradient steps of random initialisations that are trained towards the mean output of the "
        "target's zoo, on its unlabelled images, on pseudo-images of their statistics, and on noise: what a generator "
        "has to beat at equal sight and cost; empty for none",
    )
    distilled_models: int = Field(
        5, ge=1, le=1_000_000, description="models that are distilled for each number of steps"
    )
    ensembles: tuple[Annotated[int, Field(le=1_000_000)], ...] = Field(
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
        steps = self.distillation_steps
        if list(steps) != sorted(set(steps)):
            raise ValueError(f"distillation_steps must rise, not {list(steps)}")
        if not steps:
            refuse_unused(self, ("distilled_models",), "without distillation_steps: leave it out, or set them")
        sizes = self.ensembles
        if list(sizes) != sorted(set(sizes)) or (sizes and sizes[0] < 2):
            raise ValueError(f"ensembles must rise from at least 2 models, not {list(sizes)}")
        return self
