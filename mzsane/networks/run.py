"""Score many models of one architecture on one image dataset, with two engines.

On a CPU one single-threaded process a core runs model by model, convolutions with channels last (measured faster than
all models as one program: pooling and small convolutions gain nothing from more models); on a GPU a chunk of models is
one program. What they compute is the same.

Suffixes: B models of a chunk, N models of a set and images, P weights of a model, C channels, H height, W width, K
classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mzsane.config import ExecutionConfig, ImagesConfig, NetworkConfig
from mzsane.device import choose_device
from mzsane.errors import ConfigError
from mzsane.layout.running import load_weights, name_weights, share_buffers
from mzsane.layout.token_layout import TokenLayout
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.build import build_network, choose_memory_format, choose_network
from mzsane.networks.conditioning import condition_statistics, has_statistics
from mzsane.networks.measures import join_predictions, measure_predictions
from mzsane.networks.train_batched import BatchedModels
from mzsane.networks.train_loop import MEASURE_SEED
from mzsane.parallel import map_processes
from mzsane.problems.images.dataset import ImageDataset, load_images
from mzsane.randomness import seed_globally

_CHUNK_MODELS = {"cpu": 10, "other": 256}
_BATCH = 512  # images
_CONDITIONING_IMAGES = 2000  # training images, without labels, that running statistics are computed on

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ModelSet:
    """Models of one architecture, and the images they are scored on.

    Attributes:
        network: the architecture.
        images: the images.
        layout: where each weight sits.
        flat_NP: the models.
        activations: of each what its recipe says, where it may be another than the network's; none if empty.
    """

    network: NetworkConfig
    images: ImagesConfig
    layout: TokenLayout
    flat_NP: Tensor
    activations: tuple[str | None, ...] = ()

    def cut(self, first: int, last: int) -> "ModelSet":
        """Return some of the models. Their weights stay where they are: worker processes share the memory."""
        return replace(self, flat_NP=self.flat_NP[first:last], activations=self.activations[first:last])

    def group_networks(self) -> dict[NetworkConfig, list[int]]:
        """Return the numbers of the models that are the same network.

        Raises:
            ConfigError: the activation of a model is none that is known.
        """
        groups: dict[NetworkConfig, list[int]] = {}
        for place, told in enumerate(self.activations or (None,) * len(self.flat_NP)):
            config = choose_network(self.network, told)
            if config is None:
                raise ConfigError(f"a model has the activation {told}, which is not known, so that it cannot be run")
            groups.setdefault(config, []).append(place)
        return groups


@dataclass(frozen=True)
class Score:
    """The score of a model, or of an ensemble.

    Attributes:
        model: its number in the set; for an ensemble its own number.
        epochs: epochs of fine-tuning.
        loss: cross-entropy, nats.
        accuracy: 0..1.
        calibration: expected calibration error, 0..1.
        ensemble: models whose probabilities are averaged.
        learning_rate: that it was fine-tuned with.
    """

    model: int
    epochs: int
    loss: float
    accuracy: float
    calibration: float
    ensemble: int = 1
    learning_rate: float | None = None


@dataclass(frozen=True)
class _Job:
    models: ModelSet
    first: int
    split: str
    ensembles: tuple[int, ...]
    device: str


def score_models(
    models: ModelSet,
    split: str,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
    ensembles: Sequence[int] = (),
) -> list[Score]:
    """Score models as they are on the images of a split.

    Args:
        models: the models.
        split: train, val or test.
        execution: how many processes, and the device.
        sink: told of every chunk.
        ensembles: sizes of the ensembles that are scored too: of so many models in a row, each model in one.

    Returns:
        One score a model, in order, then those of the ensembles by size.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    device = choose_device((execution or ExecutionConfig()).device).type
    sizes = tuple(size for size in ensembles if size <= len(models.flat_NP))
    together = math.lcm(*sizes)  # so that no ensemble is in two chunks
    chunk = together * max(1, _CHUNK_MODELS["cpu" if device == "cpu" else "other"] // together)
    jobs = [
        _Job(models.cut(first, first + chunk), first, split, sizes, device)
        for first in range(0, len(models.flat_NP), chunk)
    ]
    results = run_jobs(_score_job, jobs, device, execution, sink, f"model sets scored on {split} images")
    scores = [score for result in results for score in result]
    return sorted(scores, key=lambda score: (score.ensemble, score.model))


def run_jobs(
    run: Callable[[Job], Result],
    jobs: Sequence[Job],
    device: str,
    execution: ExecutionConfig | None,
    sink: MetricSink,
    unit: str,
) -> list[Result]:
    """Do jobs on a device, on a CPU a process a core; return their results in order."""
    results: dict[int, Result] = {}
    processes = (execution or ExecutionConfig()).processes if device == "cpu" else 1
    for done, (position, result) in enumerate(map_processes(run, jobs, processes), start=1):
        results[position] = result
        sink.progress(done, len(jobs), unit)
    return [results[position] for position in range(len(jobs))]


def load_model(models: ModelSet, flat_P: Tensor, network: nn.Module, images: ImageDataset) -> None:
    """Give a network a model's weights, and running statistics of its target's images where the layout says so.

    Raises:
        ConfigError: the weights are not all that such a model needs (see `share_buffers`).
    """
    load_weights(models.layout, network, flat_P)
    if models.layout.running_statistics == "conditioned":
        condition_statistics(network, images.splits["train"].images_NCHW[:_CONDITIONING_IMAGES])


def stack_models(models: ModelSet, images: ImageDataset, device: torch.device) -> BatchedModels:
    """Return models of one network as one program on a device.

    Raises:
        ConfigError: as `load_model`.
    """
    (config,) = models.group_networks() or [models.network]
    network = build_network(config, images.channels, images.classes, images.size).to(device)
    share_buffers(models.layout, network)
    flat_BP = models.flat_NP.to(device)
    named = name_weights(models.layout, flat_BP)
    parameters_BP = torch.cat([named[name].flatten(1) for name, _ in network.named_parameters()], dim=1)
    stacked = {
        name: named[name].clone() if name in named else value.expand(len(flat_BP), *value.shape).clone()
        for name, value in network.named_buffers()
    }
    if models.layout.running_statistics == "conditioned" and has_statistics(network):
        unlabelled_NCHW = images.splits["train"].images_NCHW[:_CONDITIONING_IMAGES].to(device)
        for place, flat_P in enumerate(flat_BP):
            load_weights(models.layout, network, flat_P)
            condition_statistics(network, unlabelled_NCHW)
            for name, value in network.named_buffers():
                stacked[name][place] = value
    return BatchedModels(network, parameters_BP.requires_grad_(), stacked)


@torch.no_grad()
def predict_one(network: nn.Module, images_NCHW: Tensor) -> Tensor:
    """Return the logarithms of a network's probabilities for images, (N, K), in evaluation mode."""
    network.eval()
    with seed_globally(MEASURE_SEED):
        logits_NK = torch.cat([network(batch) for batch in images_NCHW.split(_BATCH)])
    return functional.log_softmax(logits_NK, dim=1)


@torch.no_grad()
def predict_batched(models: BatchedModels, images_NCHW: Tensor) -> Tensor:
    """Return the logarithms of all models' probabilities for images, (B, N, K), in evaluation mode."""
    models.network.eval()
    with seed_globally(MEASURE_SEED, images_NCHW.device):
        logits_BNK = torch.cat([models.forward(batch, shared=True) for batch in images_NCHW.split(_BATCH)], dim=1)
    return functional.log_softmax(logits_BNK, dim=2)


def prepare_network(models: ModelSet, images: ImageDataset) -> nn.Module:
    """Return a network for `load_model`, of models of one network, laid out as is fast on a CPU."""
    (config,) = models.group_networks() or [models.network]
    network = build_network(config, images.channels, images.classes, images.size)
    layout = choose_memory_format(network)
    network.to(memory_format=layout)  # type: ignore[call-overload]  # missing in torch's overloads
    return network


def _predict_looping(models: ModelSet, images: ImageDataset, split: str) -> Tensor:
    network = prepare_network(models, images)
    images_NCHW = images.splits[split].images_NCHW.contiguous(memory_format=choose_memory_format(network))
    found = []
    for flat_P in models.flat_NP:
        load_model(models, flat_P, network, images)
        found.append(predict_one(network, images_NCHW))
    return torch.stack(found)


def _predict_stacked(models: ModelSet, images: ImageDataset, split: str, device: torch.device) -> Tensor:
    stacked = stack_models(models, images, device)
    return predict_batched(stacked, images.splits[split].images_NCHW.to(device))


def _score_job(job: _Job) -> list[Score]:
    images, device = load_images(job.models.images), torch.device(job.device)
    labels_N = images.splits[job.split].labels_N.to(device)
    groups = job.models.group_networks()
    predicted = []
    for network, places in groups.items():
        some = replace(job.models, network=network, flat_NP=job.models.flat_NP[places], activations=())
        if device.type == "cpu":
            predicted.append(_predict_looping(some, images, job.split))
        else:
            predicted.append(_predict_stacked(some, images, job.split, device))
    order = torch.tensor([place for places in groups.values() for place in places]).argsort()
    predicted_BNK = torch.cat(predicted)[order.to(device)]
    scores = []
    for size in (1, *job.ensembles):
        joined = predicted_BNK if size == 1 else join_predictions(predicted_BNK, size)
        for number, measured in enumerate(measure_predictions(joined, labels_N), start=job.first // size):
            scores.append(Score(number, 0, *measured, ensemble=size))
    return scores
