"""The classes that networks put images in, by which their errors are compared (`mzsane.evaluation.novelty.functional`).

Suffixes: N models, I images, P weights of a model.
"""

from functools import partial

import torch
from torch import Tensor

from mzsane.config import ExecutionConfig, ImagesConfig
from mzsane.device import find_device
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.run import ModelSet, run_jobs, run_models
from mzsane.problems.images.dataset import load_images

_CHUNK = 25  # models that one process classifies with
_IMAGES = 1000  # validation images, the first ones, that models are compared on


def classify_models(
    models: ModelSet,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> Tensor:
    """Return the classes that models predict for the first validation images, (N, I).

    Args:
        models: the models and the images.
        execution: how many processes, and the device.
        sink: told of progress.
    """
    device = find_device(execution)
    jobs = [models.cut(at, at + _CHUNK) for at in range(0, len(models.flat_NP), _CHUNK)]
    classify = partial(_classify, device=device)
    return torch.cat(run_jobs(classify, jobs, device, execution, sink, "model sets compared on validation images"))


def read_labels(images: ImagesConfig) -> Tensor:
    """Return the labels of the images that `classify_models` looks at, (I,)."""
    return load_images(images).splits["val"].labels_N[:_IMAGES]


def _classify(models: ModelSet, device: torch.device) -> Tensor:
    images = load_images(models.images)
    return run_models(models, images, images.splits["val"].images_NCHW[:_IMAGES], device).argmax(dim=2).cpu()
