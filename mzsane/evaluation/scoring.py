"""Score and fine-tune many models of one architecture on one image dataset, a process a core.

Suffixes: N models, P weights of a model.
"""

from dataclasses import dataclass

from torch import Tensor

from mzsane.config import EvaluationConfig, ExecutionConfig, ImagesConfig, NetworkConfig, RecipeConfig
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.parallel import map_processes
from mzsane.randomness import make_generator
from mzsane.tokens.layout import TokenLayout
from mzsane.zoo.architectures import build_network
from mzsane.zoo.conditioning import CONDITIONING_IMAGES, condition_statistics
from mzsane.zoo.fit import fit_epochs, measure
from mzsane.zoo.images import load_images

_CHUNK = 25  # models scored together without fine-tuning


@dataclass(frozen=True)
class ModelSet:
    """Models of one architecture, and the images they are scored on."""

    network: NetworkConfig
    images: ImagesConfig
    layout: TokenLayout
    flat_NP: Tensor


@dataclass(frozen=True)
class Score:
    """One model's score: number in the set, epochs of fine-tuning, cross-entropy (nats), accuracy (0..1)."""

    model: int
    epochs: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class _Job:
    models: ModelSet
    first: int
    split: str
    config: EvaluationConfig | None = None
    seed: int = 0


def score_models(
    models: ModelSet, split: str, execution: ExecutionConfig | None = None, sink: MetricSink = NO_SINK
) -> list[Score]:
    """Score models as they are on the images of a split; returns one score a model, in order."""
    jobs = [_Job(_cut(models, first, first + _CHUNK), first, split) for first in range(0, len(models.flat_NP), _CHUNK)]
    return _run_jobs(jobs, execution, sink, f"model sets scored on {split} images")


def finetune_models(
    models: ModelSet,
    config: EvaluationConfig,
    seed: int,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> list[Score]:
    """Fine-tune each model on the training images and score it on the test images after the epochs of the config.

    The same seed gives the same order of images to every set of models, so that methods differ in their start alone.

    Returns:
        One score a model and epoch, the zero-shot one included, in order.
    """
    jobs = [_Job(_cut(models, i, i + 1), i, "test", config, seed) for i in range(len(models.flat_NP))]
    return _run_jobs(jobs, execution, sink, "models fine-tuned")


def _cut(models: ModelSet, first: int, last: int) -> ModelSet:
    # Cloned, because a slice would carry the whole set's storage to each worker.
    return ModelSet(models.network, models.images, models.layout, models.flat_NP[first:last].clone())


def _run_jobs(jobs: list[_Job], execution: ExecutionConfig | None, sink: MetricSink, unit: str) -> list[Score]:
    results: list[list[Score]] = [[] for _ in jobs]
    processes = (execution or ExecutionConfig()).processes
    for done, (position, scores) in enumerate(map_processes(_score_job, jobs, processes), start=1):
        results[position] = scores
        sink.progress(done, len(jobs), unit)
    return [score for scores in results for score in scores]


def _score_job(job: _Job) -> list[Score]:
    models = job.models
    images = load_images(models.images)
    split = images.splits[job.split]
    network = build_network(models.network, images.channels, images.classes, images.size)
    conditioned = models.layout.running_statistics == "conditioned"
    scores = []
    for number, flat_P in enumerate(models.flat_NP, start=job.first):
        network.load_state_dict(models.layout.unflatten(flat_P), strict=False)
        if conditioned:
            condition_statistics(network, images.splits["train"].images_NCHW[:CONDITIONING_IMAGES])
        scores.append(Score(number, 0, *measure(network, split)))
        if job.config is None:
            continue
        config = job.config
        generator = make_generator(job.seed, "finetune", number)
        recipe = RecipeConfig(learning_rate=config.learning_rate, batch_size=config.batch_size)
        training = fit_epochs(network, images.splits["train"], recipe, generator)
        for epoch in range(1, config.finetune_epochs[-1] + 1):
            next(training)
            if epoch in config.finetune_epochs:
                scores.append(Score(number, epoch, *measure(network, split)))
    return scores
