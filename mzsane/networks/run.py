"""Run many models of one architecture on images, with two engines, and score them.

On a CPU one single-threaded process a core runs model by model, convolutions with channels last (measured faster than
all models as one program: pooling and small convolutions gain nothing from more models); on a GPU so many models as it
has room for are one program, unless the architecture cannot be one. What they compute is the same.

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
from mzsane.device import find_device
from mzsane.errors import ConfigError
from mzsane.layout.running import load_weights, name_weights, share_buffers
from mzsane.layout.token_layout import TokenLayout
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.build import build_network, choose_memory_format, choose_network
from mzsane.networks.conditioning import CONDITIONING_IMAGES, condition_statistics, has_statistics
from mzsane.networks.measures import join_predictions, measure_predictions
from mzsane.networks.memory import count_fitting, count_kept_numbers
from mzsane.networks.train_batched import BatchedModels, explain_unbatchable
from mzsane.networks.train_loop import MEASURE_SEED
from mzsane.parallel import map_processes
from mzsane.problems.images.dataset import ImageDataset, load_images
from mzsane.randomness import seed_globally

_CHUNK_MODELS = {"cpu": 10, "other": 256}
_BATCH = 512  # images
_TRIED = 8  # images that it is tried on whether models can be one program

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
    device: torch.device


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
    device = find_device(execution)
    sizes = tuple(size for size in ensembles if size <= len(models.flat_NP))
    together = math.lcm(*sizes)  # so that no ensemble is in two chunks
    chunk = together * max(1, _CHUNK_MODELS["cpu" if device.type == "cpu" else "other"] // together)
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
    device: torch.device,
    execution: ExecutionConfig | None,
    sink: MetricSink,
    unit: str,
) -> list[Result]:
    """Do jobs on a device, on a CPU a process a core; return their results in order."""
    results: dict[int, Result] = {}
    processes = (execution or ExecutionConfig()).processes if device.type == "cpu" else 1
    for done, (position, result) in enumerate(map_processes(run, jobs, processes), start=1):
        results[position] = result
        sink.progress(done, len(jobs), unit)
    return [results[position] for position in range(len(jobs))]


def run_models(
    models: ModelSet,
    images: ImageDataset,
    shown_NCHW: Tensor,
    device: torch.device,
    unlabelled_NCHW: Tensor | None = None,
) -> Tensor:
    """Return the logits of models for images, (B, N, K), on the device and in evaluation mode.

    Args:
        models: the models.
        images: what they were trained for.
        shown_NCHW: what they look at.
        device: where they run; it chooses the engine.
        unlabelled_NCHW: what running statistics are computed on where the layout says so, the first training images if
            None.

    Raises:
        ConfigError: an activation is not known, or as `load_model`.
    """
    groups = models.group_networks()
    if not groups:
        return torch.empty(0, len(shown_NCHW), images.classes, device=device)
    if unlabelled_NCHW is None:
        unlabelled_NCHW = images.splits["train"].images_NCHW[:CONDITIONING_IMAGES]
    shown_NCHW, unlabelled_NCHW = shown_NCHW.to(device), unlabelled_NCHW.to(device)
    found = []
    for network, places in groups.items():
        some = replace(models, network=network, flat_NP=models.flat_NP[places], activations=())
        together = None if device.type == "cpu" else _fit_models(network, images, len(shown_NCHW), device)
        if together is None:
            found.append(_run_looping(some, images, shown_NCHW, unlabelled_NCHW))
        else:
            parts = [some.cut(first, first + together) for first in range(0, len(places), together)]
            stacks = (stack_models(part, images, device, unlabelled_NCHW) for part in parts)
            found += [run_batched(stack, shown_NCHW) for stack in stacks]
    order = torch.tensor([place for places in groups.values() for place in places]).argsort()
    return torch.cat(found)[order.to(device)]


def load_model(
    models: ModelSet, flat_P: Tensor, network: nn.Module, images: ImageDataset, unlabelled_NCHW: Tensor | None = None
) -> None:
    """Give a network a model's weights, and running statistics of its target's images where the layout says so.

    The images are the unlabelled ones, the first training images if None.

    Raises:
        ConfigError: the weights are not all that such a model needs (see `share_buffers`).
    """
    load_weights(models.layout, network, flat_P)
    if models.layout.running_statistics == "conditioned":
        if unlabelled_NCHW is None:
            unlabelled_NCHW = images.splits["train"].images_NCHW[:CONDITIONING_IMAGES]
        condition_statistics(network, unlabelled_NCHW)


def stack_models(
    models: ModelSet, images: ImageDataset, device: torch.device, unlabelled_NCHW: Tensor | None = None
) -> BatchedModels:
    """Return models of one network as one program on a device; its statistics are those of `load_model`.

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
        if unlabelled_NCHW is None:
            unlabelled_NCHW = images.splits["train"].images_NCHW[:CONDITIONING_IMAGES].to(device)
        for place, flat_P in enumerate(flat_BP):
            load_model(models, flat_P, network, images, unlabelled_NCHW)
            for name, value in network.named_buffers():
                stacked[name][place] = value
    return BatchedModels(network, parameters_BP.requires_grad_(), stacked)


@torch.no_grad()
def run_one(network: nn.Module, images_NCHW: Tensor) -> Tensor:
    """Return a network's logits for images, (N, K), in evaluation mode."""
    network.eval()
    with seed_globally(MEASURE_SEED, images_NCHW.device):
        return torch.cat([network(batch) for batch in images_NCHW.split(_BATCH)])


@torch.no_grad()
def run_batched(models: BatchedModels, images_NCHW: Tensor) -> Tensor:
    """Return all models' logits for images, (B, N, K), in evaluation mode."""
    models.network.eval()
    with seed_globally(MEASURE_SEED, images_NCHW.device):
        return torch.cat([models.forward(batch, shared=True) for batch in images_NCHW.split(_BATCH)], dim=1)


def prepare_network(models: ModelSet, images: ImageDataset) -> nn.Module:
    """Return a network for `load_model`, of models of one network, laid out as is fast on a CPU."""
    (config,) = models.group_networks() or [models.network]
    network = build_network(config, images.channels, images.classes, images.size)
    layout = choose_memory_format(network)
    network.to(memory_format=layout)  # type: ignore[call-overload]  # missing in torch's overloads
    return network


def _fit_models(config: NetworkConfig, images: ImageDataset, shown: int, device: torch.device) -> int | None:
    """Return how many models of a network a GPU runs on so many images as one program; None where they cannot be."""
    network = build_network(config, images.channels, images.classes, images.size)
    tried_NCHW = images.splits["train"].images_NCHW[:_TRIED]
    if config.is_factory and explain_unbatchable(network, tried_NCHW):
        return None
    return count_fitting(count_kept_numbers(network, tried_NCHW[:1].expand(min(shown, _BATCH), -1, -1, -1)), device)


def _run_looping(models: ModelSet, images: ImageDataset, shown_NCHW: Tensor, unlabelled_NCHW: Tensor) -> Tensor:
    network = prepare_network(models, images).to(shown_NCHW.device)
    shown_NCHW = shown_NCHW.contiguous(memory_format=choose_memory_format(network))
    found = []
    for flat_P in models.flat_NP:
        load_model(models, flat_P, network, images, unlabelled_NCHW)
        found.append(run_one(network, shown_NCHW))
    return torch.stack(found)


def _score_job(job: _Job) -> list[Score]:
    images = load_images(job.models.images)
    split = images.splits[job.split].to(job.device)
    predicted_BNK = functional.log_softmax(run_models(job.models, images, split.images_NCHW, job.device), dim=2)
    scores = []
    for size in (1, *job.ensembles):
        joined = predicted_BNK if size == 1 else join_predictions(predicted_BNK, size)
        for number, measured in enumerate(measure_predictions(joined, split.labels_N), start=job.first // size):
            scores.append(Score(number, 0, *measured, ensemble=size))
    return scores
