"""Train a zoo: many small networks by one recipe and its generating factors; resumes at the chunk.

On a CPU one single-threaded process a core trains a network at a time; on a GPU a chunk of networks is one program. The
artifact is described in `zoo.shards`.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mzsane.config import ExecutionConfig, NetworkConfig, RecipeConfig, ZooConfig
from mzsane.device import choose_device, count_memory
from mzsane.layout.buffers import check_saved
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.build import build_network, start_network
from mzsane.networks.shapes import name_code
from mzsane.networks.train_batched import BatchedModels, count_models, fit_epochs_batched, measure_batched
from mzsane.networks.train_loop import fit_epochs, measure_splits, thin_split
from mzsane.networks.trial import try_training
from mzsane.problems.images.content import pin_images
from mzsane.problems.images.dataset import ImageDataset, ImageSplit, load_images
from mzsane.randomness import make_generator
from mzsane.steady import steady
from mzsane.store.artifacts import Artifact, ArtifactStore, Work
from mzsane.zoo.card import plot_card
from mzsane.zoo.shards import ShardContent, hash_weights, write_shards
from mzsane.zoo.subject import write_subject

VERSION = 3
_CHUNK_MODELS = 4  # on a CPU
_HELD = 0.25  # share of the machine's memory that the kept epochs of a chunk may take
_TRIED = 8  # images that a network is tried on before the work


@dataclass(frozen=True)
class ModelPlan:
    """What one model of a zoo is: its number, its levels of the factors, its network and recipe."""

    number: int
    factors: dict[str, Any]
    network: NetworkConfig
    recipe: RecipeConfig


@dataclass(frozen=True)
class _Chunk:
    config: ZooConfig
    models: tuple[ModelPlan, ...]
    device: str

    @property
    def name(self) -> str:
        numbers = [model.number for model in self.models]
        return f"models-{numbers[0]:06d}-{hashlib.sha256(repr(numbers).encode()).hexdigest()[:8]}"


def plan_zoo(config: ZooConfig) -> Work:
    """Name the work of training a zoo.

    Raises:
        ConfigError: its architecture is a factory that cannot be found or fails.
    """
    code = name_code(config.network, config.images)
    return Work("zoo", VERSION, pin_images(config).recipe() | code, seed=config.seed)


def plan_models(config: ZooConfig) -> list[ModelPlan]:
    """Return what each model of a zoo is. The models of a grid take its combinations in turn."""
    grid = config.factors.combinations() if config.factors.design == "grid" else []
    plans = []
    for number in range(config.models):
        if grid:
            factors = grid[number % len(grid)]
        else:
            generator = make_generator(config.seed, "factors", number)
            factors = {
                name: levels[int(torch.randint(len(levels), (1,), generator=generator))]
                for name, levels in config.factors.levels().items()
            }
        plans.append(ModelPlan(number, factors, *config.vary(factors)))
    return plans


@steady
def train_zoo(
    config: ZooConfig,
    store: ArtifactStore,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> Artifact:
    """Train a population, or open it when it was trained before.

    Killed at any point, the next call continues after the last finished chunk; of two calls at once the first to
    publish wins, with the same bits.

    Raises:
        ConfigError: the images or the architecture cannot be had, or do not fit each other, or the architecture has
            what its state dict does not keep, or what the engine of a GPU cannot do.
        WorkerError: a worker process was killed.
    """
    config = pin_images(config)
    work = plan_zoo(config)
    if found := store.find(work.ref):
        return found
    execution = execution or ExecutionConfig()
    device = choose_device(execution.device).type
    images = load_images(config.images)  # here first: what is wrong with them is said before any work
    plans = plan_models(config)
    for network in {plan.network for plan in plans}:
        try_training(network, images, {plan.recipe for plan in plans if plan.network == network}, device)
        built, again = (build_network(network, images.channels, images.classes, images.size, seed) for seed in range(2))
        check_saved(built, again, images.splits["train"].images_NCHW[:_TRIED], network.architecture)

    def choose_size(plan: ModelPlan) -> int:
        return execution.chunk_models or (
            _CHUNK_MODELS if device == "cpu" else _fit_memory(config, plan, images, device)
        )

    chunks = _plan_chunks(config, plans, choose_size, device)
    parts = write_shards(
        work,
        chunks,
        [len(chunk.models) for chunk in chunks],
        _train_chunk,
        store,
        execution if device == "cpu" else ExecutionConfig(processes=1),
        sink,
        "models",
        names=[chunk.name for chunk in chunks],
    )
    card = plot_card(parts, _describe_zoo(config), images)
    # What is computed depends on these in its last bits, and with dropout in more.
    made_by: dict[str, int | float | str] = {"engine": "loop", "device": device}
    if device != "cpu":
        made_by |= {"engine": "batched", "chunk_models": max(len(chunk.models) for chunk in chunks)}
    return store.publish(work, {**parts.files(), **write_subject(config), **card}, parts.counts() | made_by)


def _plan_chunks(
    config: ZooConfig, plans: list[ModelPlan], choose_size: Callable[[ModelPlan], int], device: str
) -> list[_Chunk]:
    """Group models that can be trained together, at most as many in a chunk as is chosen for models like them."""

    def find_group(plan: ModelPlan) -> Hashable:
        if device == "cpu":
            return plan.network.width  # the weights of a shard have one shape
        recipe = plan.recipe
        return (plan.network, recipe.optimizer, recipe.schedule, recipe.batch_size, recipe.data_fraction)

    groups: dict[Hashable, list[ModelPlan]] = {}
    for plan in plans:
        groups.setdefault(find_group(plan), []).append(plan)
    chunks = []
    for group in groups.values():
        together = choose_size(group[0])
        chunks += [
            _Chunk(config, tuple(group[first : first + together]), device) for first in range(0, len(group), together)
        ]
    return chunks


def _fit_memory(config: ZooConfig, plan: ModelPlan, images: ImageDataset, device: str) -> int:
    """Return how many models like one can be trained together on this GPU, and their kept epochs held beside it."""
    network = build_network(plan.network, images.channels, images.classes, images.size)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    held = _HELD * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (config.keep_epochs * weights)
    shown_SCHW = images.splits["train"].images_NCHW[: plan.recipe.batch_size]
    memory = count_memory(torch.device(device))
    return max(1, min(count_models(network, shown_SCHW, memory), int(held)))


def _train_chunk(chunk: _Chunk) -> ShardContent:
    """Train the models of a chunk and measure every epoch; keep the weights of the last epochs."""
    config = chunk.config
    images = load_images(config.images)
    train = _train_looping if chunk.device == "cpu" else _train_batched
    rows: dict[int, list[dict[str, Any]]] = {model.number: [] for model in chunk.models}
    history: dict[int, list[dict[str, Any]]] = {model.number: [] for model in chunk.models}
    kept: dict[int, list[dict[str, Tensor]]] = {model.number: [] for model in chunk.models}
    for model, epoch, metrics, read_state in train(chunk, images):
        label = f"{model.number:06d}"
        row = {"model": label, "epoch": epoch, **metrics}
        row["generalisation_gap"] = metrics["train_accuracy"] - metrics["test_accuracy"]
        history[model.number].append(row)
        if epoch > config.epochs - config.keep_epochs:
            state = read_state()
            kept[model.number].append(state)
            rows[model.number].append(
                {
                    **row,
                    "checkpoint": f"{label}/{epoch}",
                    "architecture": config.network.architecture,
                    "dataset": config.images.source,
                    "split": None,
                    "diverged": not math.isfinite(metrics["train_loss"]),
                    **{f"factor_{name}": value for name, value in model.factors.items()},
                    "recipe": json.dumps(_describe(model), sort_keys=True),
                    "sha256": hash_weights(state),
                    "source": "trained",
                }
            )
    states = [state for model in chunk.models for state in kept[model.number]]
    final = [history[model.number][-1]["test_accuracy"] for model in chunk.models]
    return ShardContent(
        weights={name: torch.stack([state[name] for state in states]) for name in states[0]},
        rows=[row for model in chunk.models for row in rows[model.number]],
        history=[row for model in chunk.models for row in history[model.number]],
        metrics={"test_accuracy": sum(final) / len(final)},
    )


def _describe(model: ModelPlan) -> dict[str, Any]:
    return {**model.network.model_dump(mode="json"), **model.recipe.model_dump(mode="json"), "seed": model.number}


def _describe_zoo(config: ZooConfig) -> dict[str, Any]:
    """Return what the card says besides what is measured."""
    fixed = {
        "activation": config.network.activation,
        **{key: getattr(config, key) for key in RecipeConfig.model_fields},
    }
    if config.initial_weights:
        fixed["initial_weights"] = config.initial_weights
    recipe = {key: value for key, value in fixed.items() if key not in config.factors.levels()}
    varied = ", ".join(f"{name} {list(levels)}" for name, levels in config.factors.levels().items())
    return {
        "architecture": config.network.architecture,
        "dataset": json.dumps(config.images.model_dump(mode="json", exclude_defaults=True)),
        "recipe": ", ".join(f"{key} {value}" for key, value in recipe.items()),
        "epochs": config.epochs,
        "generating factors": varied or "the seed alone",
        "seed": config.seed,
    }


_Epoch = tuple[ModelPlan, int, dict[str, float], Callable[[], dict[str, Tensor]]]


def _prepare(chunk: _Chunk, model: ModelPlan, images: ImageDataset) -> tuple[nn.Module, ImageSplit, torch.Generator]:
    """Return a model's initial network, the training images that it sees, and its generator."""
    seed = chunk.config.seed
    generator = make_generator(seed, "zoo", model.number)
    shared = chunk.config.initial_weights
    first = make_generator(seed, "zoo-initial", model.number % shared) if shared else generator
    sizes = (images.channels, images.classes, images.size)
    network = start_network(model.network, *sizes, model.recipe.initialisation, first)
    seen = thin_split(
        images.splits["train"], model.recipe, images.classes, make_generator(seed, "zoo-images", model.number)
    )
    return network, seen, generator


def _train_looping(chunk: _Chunk, images: ImageDataset) -> Iterator[_Epoch]:
    for model in chunk.models:
        network, seen, generator = _prepare(chunk, model, images)
        training = fit_epochs(network, seen, model.recipe, generator, chunk.config.epochs)
        for epoch in range(1, chunk.config.epochs + 1):
            next(training)
            yield model, epoch, measure_splits(network, images.splits), partial(_read_state, network)


def _read_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in network.state_dict().items()}


def _train_batched(chunk: _Chunk, images: ImageDataset) -> Iterator[_Epoch]:
    device = torch.device(chunk.device)
    prepared = [_prepare(chunk, model, images) for model in chunk.models]
    models = BatchedModels.stack([network for network, _, _ in prepared], device)
    moved = {name: split.to(device) for name, split in images.splits.items()}
    whole = images.splits["train"].images_NCHW
    seen = [  # models that see all images share one copy of them
        ImageSplit(
            moved["train"].images_NCHW if split.images_NCHW is whole else split.images_NCHW.to(device),
            split.labels_N.to(device),
        )
        for _, split, _ in prepared
    ]
    training = fit_epochs_batched(
        models,
        seen,
        [model.recipe for model in chunk.models],
        [generator for _, _, generator in prepared],
        chunk.config.epochs,
    )
    for epoch in range(1, chunk.config.epochs + 1):
        next(training)
        scores = {split: measure_batched(models, data) for split, data in moved.items()}
        for position, model in enumerate(chunk.models):
            metrics = {}
            for split in moved:
                metrics[f"{split}_loss"], metrics[f"{split}_accuracy"] = scores[split][position]
            yield model, epoch, metrics, partial(models.read_state, position)
