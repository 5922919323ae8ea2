"""The classes that networks put images in, by which their errors are compared (`mzsane.evaluation.novelty.functional`).

Suffixes: N models, I images, P weights of a model.
"""

import torch
from torch import Tensor

from mzsane.config import ExecutionConfig, ImagesConfig
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.build import build_network
from mzsane.networks.run import ModelSet, load_model, run_jobs
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
        execution: how many processes.
        sink: told of progress.
    """
    jobs = [models.cut(at, at + _CHUNK) for at in range(0, len(models.flat_NP), _CHUNK)]
    return torch.cat(run_jobs(_classify, jobs, "cpu", execution, sink, "model sets compared on validation images"))


def read_labels(images: ImagesConfig) -> Tensor:
    """Return the labels of the images that `classify_models` looks at, (I,)."""
    return load_images(images).splits["val"].labels_N[:_IMAGES]


@torch.no_grad()
def _classify(models: ModelSet) -> Tensor:
    images = load_images(models.images)
    shown_NCHW = images.splits["val"].images_NCHW[:_IMAGES]
    classes_NI = torch.empty(len(models.flat_NP), len(shown_NCHW), dtype=torch.int64)
    for config, places in models.group_networks().items():
        network = build_network(config, images.channels, images.classes, images.size).eval()
        for place in places:
            load_model(models, models.flat_NP[place], network, images)
            classes_NI[place] = network(shown_NCHW).argmax(dim=1)
    return classes_NI
