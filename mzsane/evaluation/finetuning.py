"""Fine-tune many models on their target: several learning rates, the best chosen on validation images.

Every set of models has the same grid, so that methods differ in their start alone. The engines are those of
`networks.run`.

Suffixes: N models of a set, B models of a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import log_softmax

from mzsane.config import EvaluationConfig, ExecutionConfig, RecipeConfig
from mzsane.device import count_memory, find_device
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.build import build_network
from mzsane.networks.measures import measure_predictions
from mzsane.networks.run import (
    ModelSet,
    Score,
    load_model,
    prepare_network,
    run_batched,
    run_jobs,
    run_one,
    stack_models,
)
from mzsane.networks.train_batched import count_models, explain_unbatchable, fit_epochs_batched
from mzsane.networks.train_loop import fit_epochs
from mzsane.problems.images.dataset import ImageDataset, ImageSplit, load_images
from mzsane.randomness import make_generator

_MOST_MODELS = 128  # of a chunk on a GPU
_TRIED = 8  # images that it is tried on whether models can be one program


@dataclass(frozen=True)
class _Job:
    models: ModelSet
    first: int
    rates: tuple[float, ...]
    config: EvaluationConfig
    seed: int
    device: torch.device


@dataclass(frozen=True)
class _Trial:
    """A model fine-tuned at one rate for some epochs: its test score, and its accuracy on validation images."""

    score: Score
    validation_accuracy: float


def finetune_models(
    models: ModelSet,
    config: EvaluationConfig,
    seed: int,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> list[Score]:
    """Fine-tune each model on training images at every learning rate, and score it on test images.

    For each number of epochs the rate is chosen for all models of the set together, by their mean accuracy on
    validation images; so a point of a fine-tuning curve is what can be had with so many epochs. The same seed gives the
    same images in the same order to every set of models and every rate.

    Returns:
        One score a model and number of epochs above 0, at the rate that was chosen for that number, in order.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    device, together = find_device(execution), 1
    if device.type != "cpu":
        images = load_images(models.images)
        network = build_network(models.network, images.channels, images.classes, images.size)
        shown_NCHW = images.splits["train"].images_NCHW
        if explain_unbatchable(network, shown_NCHW[:_TRIED]):
            device = torch.device("cpu")  # where models are trained one by one
        else:
            room = count_models(network, shown_NCHW[: config.batch_size], count_memory(device))
            together = max(1, min(_MOST_MODELS, room // len(config.learning_rates)))
    grids = [(rate,) for rate in config.learning_rates] if device.type == "cpu" else [config.learning_rates]
    jobs = [
        _Job(models.cut(first, last), first, rates, config, seed, device)
        for first, last in _cut_chunks(models, together)
        for rates in grids
    ]
    results = run_jobs(_finetune_job, jobs, device, execution, sink, "models fine-tuned")
    trials = [trial for result in results for trial in result]
    scores = [score for epochs in config.finetune_epochs if epochs for score in _choose_rate(trials, epochs)]
    return sorted(scores, key=lambda score: (score.model, score.epochs))


def _cut_chunks(models: ModelSet, size: int) -> list[tuple[int, int]]:
    """Return where chunks begin and end: models in a row that are one network, and so many at most."""
    number_of = {place: number for number, places in enumerate(models.group_networks().values()) for place in places}
    starts: list[int] = []
    for place, number in sorted(number_of.items()):
        if not starts or place - starts[-1] >= size or number != number_of[place - 1]:
            starts.append(place)
    return list(zip(starts, [*starts[1:], len(number_of)], strict=True))


def _choose_rate(trials: list[_Trial], epochs: int) -> list[Score]:
    """Return the test scores after some epochs at the rate with the best mean accuracy on validation images."""
    by_rate: dict[float | None, list[_Trial]] = {}
    for trial in trials:
        if trial.score.epochs == epochs:
            by_rate.setdefault(trial.score.learning_rate, []).append(trial)
    best = max(by_rate.values(), key=lambda group: sum(trial.validation_accuracy for trial in group))
    return [trial.score for trial in best]


def draw_labelled(split: ImageSplit, per_class: int | None, seed: int) -> ImageSplit:
    """Return the images that fine-tuning sees: all, or so many of each class, drawn by the seed."""
    if per_class is None:
        return split
    order_N = torch.randperm(len(split.labels_N), generator=make_generator(seed, "finetune", "images"))
    labels_N = split.labels_N[order_N]
    chosen = torch.cat([order_N[labels_N == label][:per_class] for label in labels_N.unique()])
    return ImageSplit(split.images_NCHW[chosen], split.labels_N[chosen])


def _finetune_job(job: _Job) -> list[_Trial]:
    images = load_images(job.models.images)
    seen = draw_labelled(images.splits["train"], job.config.images_per_class, job.seed)
    run = _finetune_looping if job.device.type == "cpu" else _finetune_batched
    return list(run(job, images, seen))


def _finetune_looping(job: _Job, images: ImageDataset, seen: ImageSplit) -> Iterator[_Trial]:
    for number, flat_P in enumerate(job.models.flat_NP, start=job.first):
        for rate in job.rates:
            network = prepare_network(job.models, images)
            load_model(job.models, flat_P, network, images)
            training = fit_epochs(network, seen, _make_recipe(job, rate), make_generator(job.seed, "finetune", number))
            for epoch in range(1, job.config.finetune_epochs[-1] + 1):
                next(training)
                if epoch in job.config.finetune_epochs:
                    measured = {}
                    for name in ("val", "test"):
                        split = images.splits[name]
                        predicted_1NK = log_softmax(run_one(network, split.images_NCHW), dim=1)[None]
                        (measured[name],) = measure_predictions(predicted_1NK, split.labels_N)
                    score = Score(number, epoch, *measured["test"], learning_rate=rate)
                    yield _Trial(score, measured["val"][1])


def _finetune_batched(job: _Job, images: ImageDataset, seen: ImageSplit) -> Iterator[_Trial]:
    count, rates = len(job.models.flat_NP), job.rates
    places = [(job.first + place, rate) for rate in rates for place in range(count)]
    repeated = replace(
        job.models, flat_NP=job.models.flat_NP.repeat(len(rates), 1), activations=job.models.activations * len(rates)
    )
    models = stack_models(repeated, images, job.device)
    seen = seen.to(job.device)
    measured_on = {name: images.splits[name].to(job.device) for name in ("val", "test")}
    training = fit_epochs_batched(
        models,
        [seen] * len(places),
        [_make_recipe(job, rate) for _, rate in places],
        [make_generator(job.seed, "finetune", number) for number, _ in places],
        job.config.finetune_epochs[-1],
    )
    for epoch in range(1, job.config.finetune_epochs[-1] + 1):
        next(training)
        if epoch in job.config.finetune_epochs:
            measured = {
                name: measure_predictions(log_softmax(run_batched(models, split.images_NCHW), dim=2), split.labels_N)
                for name, split in measured_on.items()
            }
            for (number, rate), test, validation in zip(places, measured["test"], measured["val"], strict=True):
                yield _Trial(Score(number, epoch, *test, learning_rate=rate), validation[1])


def _make_recipe(job: _Job, rate: float) -> RecipeConfig:
    return RecipeConfig(learning_rate=rate, batch_size=job.config.batch_size)
