"""The classes that networks put images in, by which their errors are compared (`mzsane.evaluation.functional`).

Suffixes: N models, I images, P weights of a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mzsane.config import ExecutionConfig, ImagesConfig
from mzsane.evaluation.scoring import ModelSet, load_model, run_jobs
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.zoo.architectures import build_network
from mzsane.zoo.images import load_images

_CHUNK = 25  # models that one process classifies with
_IMAGES = 1000  # validation images, the first ones, that models are compared on


@dataclass(frozen=True)
class _Job:
    models: ModelSet
    activations: tuple[str | None, ...]


def classify_models(
    models: ModelSet,
    activations: Sequence[str | None] = (),
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> Tensor:
    """Return the classes that models predict for the first validation images, (N, I).

    Args:
        models: the models and the images.
        activations: of each the activation where it is another than the network's; none are if left out.
        execution: how many processes.
        sink: told of progress.
    """
    known = tuple(activations) or (None,) * len(models.flat_NP)
    jobs = [_Job(models.cut(at, at + _CHUNK), known[at : at + _CHUNK]) for at in range(0, len(models.flat_NP), _CHUNK)]
    return torch.cat(run_jobs(_classify, jobs, "cpu", execution, sink, "model sets compared on validation images"))


def read_labels(images: ImagesConfig) -> Tensor:
    """Return the labels of the images that `classify_models` looks at, (I,)."""
    return load_images(images).splits["val"].labels_N[:_IMAGES]


@torch.no_grad()
def _classify(job: _Job) -> Tensor:
    models = job.models
    images = load_images(models.images)
    shown_NCHW = images.splits["val"].images_NCHW[:_IMAGES]
    predicted = []
    for flat_P, activation in zip(models.flat_NP, job.activations, strict=True):
        config = models.network if activation is None else models.network.model_copy(update={"activation": activation})
        network = build_network(config, images.channels, images.classes, images.size).eval()
        load_model(models, flat_P, network, images)
        predicted.append(network(shown_NCHW).argmax(dim=1))
    return torch.stack(predicted)
