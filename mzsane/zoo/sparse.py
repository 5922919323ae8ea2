"""Sparsified twins of a zoo ("Sparsified Model Zoo Twins", arXiv 2304.13718).

Magnitude pruning in steps with training after each, or sparse variational dropout.

The result is a ZOO artifact whose epochs are the steps of the trajectory, with the column `sparsity` (share of the
weights of linear and convolution layers that are zero).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from mzsane.config import ExecutionConfig, NetworkConfig, RecipeConfig
from mzsane.config.zoos import SparseConfig
from mzsane.errors import ConfigError
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.build import build_network
from mzsane.networks.factories import say_error
from mzsane.networks.train_loop import fit_epochs, measure_splits
from mzsane.problems.images.dataset import ImageDataset, ImageSplit, load_images
from mzsane.randomness import make_generator, peek_seed, seed_globally
from mzsane.steady import steady
from mzsane.store.artifacts import Artifact, ArtifactStore, Work
from mzsane.zoo.card import plot_card
from mzsane.zoo.shards import ShardContent, hash_weights, read_index, read_shard, write_shards
from mzsane.zoo.subject import write_subject
from mzsane.zoo.train import plan_models, plan_zoo

VERSION = 2
_CHUNK_MODELS = 4
# The approximation of the divergence from the log-uniform prior: Molchanov, Ashukha, Vetrov 2017, equation 14.
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695
_INITIAL_LOG_VARIANCE = -10.0


@dataclass(frozen=True)
class _Chunk:
    config: SparseConfig
    source: Artifact
    models: tuple[tuple[int, NetworkConfig, str, int], ...]  # number, network, shard and row of the weights


def plan_sparse(config: SparseConfig) -> Work:
    """Name the work of sparsifying a zoo."""
    settings = config.model_dump(mode="json", exclude={"name", "zoo"})
    return Work("zoo", VERSION, {"twins": settings}, {"zoo": plan_zoo(config.zoo).ref}, seed=config.seed)


@steady
def sparsify_zoo(
    config: SparseConfig,
    store: ArtifactStore,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> Artifact:
    """Make the sparse twins of a trained zoo, or open them when that was done before; resumes at the chunk.

    Raises:
        ConfigError: the networks cannot be made sparse.
        WorkerError: a worker process was killed.
    """
    work = plan_sparse(config)
    if found := store.find(work.ref):
        return found
    images = load_images(config.zoo.images)
    check_sparse(config, images)
    networks = {f"{plan.number:06d}": (plan.number, plan.network) for plan in plan_models(config.zoo)}
    source = store.open(work.inputs["zoo"])
    last = read_index(source).filter(pl.col("epoch") == config.zoo.epochs).sort("model")
    models = [(*networks[label], shard, row) for label, shard, row in last.select("model", "shard", "row").iter_rows()]
    chunks = [
        _Chunk(config, source, tuple(models[first : first + _CHUNK_MODELS]))
        for first in range(0, len(models), _CHUNK_MODELS)
    ]
    sizes = [len(chunk.models) for chunk in chunks]
    execution = execution or ExecutionConfig()
    parts = write_shards(work, chunks, sizes, _sparsify_chunk, store, execution, sink, "models")
    facts = {"twins of": str(work.inputs["zoo"]), "method": config.method, "epochs after each step": config.epochs}
    card = plot_card(parts, facts, load_images(config.zoo.images))
    return store.publish(
        work, {**parts.files(), **write_subject(config), **card}, parts.counts() | {"engine": "loop", "device": "cpu"}
    )


def check_sparse(config: SparseConfig, images: ImageDataset) -> None:
    """Check that networks can be made sparse, before any is trained.

    Raises:
        ConfigError: they have no linear or convolution layers whose weights are their own, or variational dropout
            cannot take the place of these.
    """
    network = build_network(config.network, images.channels, images.classes, images.size)
    which = f"{config.network.architecture} cannot be made sparse"
    layers = [item for item in network.named_modules() if isinstance(item[1], nn.Linear | nn.Conv2d)]
    if not layers:
        raise ConfigError(f"{which}: it has no linear or convolution layer (torch.nn.Linear, torch.nn.Conv2d)")
    for name, layer in layers:
        if "weight" not in dict(layer.named_parameters(recurse=False)):
            raise ConfigError(
                f"{which}: the weight of {name} is computed from other parameters, as by a weight or spectral norm"
            )
    if config.method == "variational":
        train = images.splits["train"]
        some = ImageSplit(train.images_NCHW[:4], train.labels_N[:4])
        short = config.model_copy(update={"epochs": 1, "batch_size": 4})
        try:
            next(drop_epochs(network, some, short, torch.Generator()))
        except Exception as error:
            raise ConfigError(f"{which} by variational dropout: {say_error(error)}") from None


def measure_sparsity(network: nn.Module) -> float:
    """Return the share of the weights of linear and convolution layers that are exactly zero."""
    weights = [weight for _, weight in _list_weights(network)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def _list_weights(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    layers = [item for item in network.named_modules() if isinstance(item[1], nn.Linear | nn.Conv2d)]
    return [(f"{name}.weight", layer.weight) for name, layer in layers]


def _sparsify_chunk(chunk: _Chunk) -> ShardContent:
    config = chunk.config
    images = load_images(config.zoo.images)
    sparsify = prune_steps if config.method == "magnitude" else drop_epochs
    content = ShardContent()
    states = []
    for number, network_config, shard, place in chunk.models:
        weights = {name: value[place].clone() for name, value in read_shard(chunk.source, shard).items()}
        network = build_network(network_config, images.channels, images.classes, images.size)
        network.load_state_dict(weights)
        generator = make_generator(config.seed, "twins", number)
        for step, sparse in enumerate(sparsify(network, images.splits["train"], config, generator), start=1):
            row: dict[str, Any] = {"model": f"{number:06d}", "epoch": step, "sparsity": measure_sparsity(sparse)}
            row |= measure_splits(sparse, images.splits)
            row["generalisation_gap"] = row["train_accuracy"] - row["test_accuracy"]
            content.history.append(row)
            state = {name: value.detach().clone().contiguous() for name, value in sparse.state_dict().items()}
            states.append(state)
            content.rows.append(
                {
                    **row,
                    "checkpoint": f"{row['model']}/{step}",
                    "architecture": network_config.architecture,
                    "dataset": config.zoo.images.source,
                    "split": None,
                    "diverged": not math.isfinite(row["train_loss"]),
                    "recipe": json.dumps(
                        network_config.model_dump(mode="json")
                        | config.model_dump(mode="json", exclude={"name", "zoo"}),
                        sort_keys=True,
                    ),
                    "sha256": hash_weights(state),
                    "source": "sparsified",
                }
            )
    content.weights = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    final = content.history[-1]
    content.metrics = {"test_accuracy": final["test_accuracy"], "sparsity": final["sparsity"]}
    return content


def prune_steps(
    network: nn.Module, split: ImageSplit, config: SparseConfig, generator: torch.Generator
) -> Iterator[nn.Module]:
    """Remove the smallest weights step by step; yield the network after the training that follows each step."""
    recipe = RecipeConfig(learning_rate=config.learning_rate, batch_size=config.batch_size)
    for share in config.sparsity:
        masks = _choose_weights(network, share, config.scope)
        handles = [
            weight.register_hook(lambda gradient, mask=masks[name]: gradient * mask)
            for name, weight in _list_weights(network)
            if weight.requires_grad
        ]
        _apply_masks(network, masks)
        training = fit_epochs(network, split, recipe, generator)
        for _ in range(config.epochs):
            next(training)
        for handle in handles:
            handle.remove()
        _apply_masks(network, masks)
        yield network


def _choose_weights(network: nn.Module, share: float, scope: str) -> dict[str, Tensor]:
    """Return masks that leave out the smallest `share` of the weights."""
    sizes = {name: weight.detach().abs() for name, weight in _list_weights(network)}
    groups = [list(sizes)] if scope == "global" else [[name] for name in sizes]
    masks: dict[str, Tensor] = {}
    for group in groups:
        pooled = torch.cat([sizes[name].flatten() for name in group])
        kept = torch.ones_like(pooled)
        kept[pooled.argsort()[: round(share * len(pooled))]] = 0
        pieces = kept.split([sizes[name].numel() for name in group])
        masks |= {name: piece.view_as(sizes[name]) for name, piece in zip(group, pieces, strict=True)}
    return masks


@torch.no_grad()
def _apply_masks(network: nn.Module, masks: dict[str, Tensor]) -> None:
    for name, weight in _list_weights(network):
        weight.mul_(masks[name])


class _NoisyLayer(nn.Module):
    """A linear or convolution layer whose weights have Gaussian noise of a learned size (local reparametrisation)."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.log_variance = nn.Parameter(torch.full_like(layer.weight, _INITIAL_LOG_VARIANCE))
        self.noise: torch.Generator | None = None

    def log_alpha(self) -> Tensor:
        """Return the log of noise variance over squared weight."""
        return (self.log_variance - (self.layer.weight.square() + 1e-16).log()).clamp(-10, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return a noisy output."""
        mean = self.layer(x)
        variance = self._transform(x.square(), self.log_variance.exp())
        noise = torch.randn(mean.shape, generator=self.noise)
        out: Tensor = mean + (variance + 1e-16).sqrt() * noise
        return out

    def _transform(self, x: Tensor, weight: Tensor) -> Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return functional.linear(x, weight)
        return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def drop_epochs(
    network: nn.Module, split: ImageSplit, config: SparseConfig, generator: torch.Generator
) -> Iterator[nn.Module]:
    """Train with sparse variational dropout; yield after each epoch the network without its noisy weights.

    The divergence's weight rises linearly from 0 to 1 over the first half of the epochs.
    """
    noisy: dict[str, _NoisyLayer] = {}
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            noisy[name] = _NoisyLayer(module)
            noisy[name].noise = generator
    bare = {name: layer.layer for name, layer in noisy.items()}
    parameters = [*network.parameters(), *(layer.log_variance for layer in noisy.values())]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    count, step = len(split.labels_N), 0
    ramp = max(1, config.epochs * math.ceil(count / config.batch_size) // 2)
    for _ in range(config.epochs):
        for name, layer in noisy.items():
            network.set_submodule(name, layer)
        network.train()
        # The noise is drawn from the generator itself, what the network draws besides from seeded global ones.
        with seed_globally(peek_seed(generator)):
            for batch in torch.randperm(count, generator=generator).split(config.batch_size):
                loss = functional.cross_entropy(network(split.images_NCHW[batch]), split.labels_N[batch])
                divergence = torch.stack([_divergence(layer.log_alpha()) for layer in noisy.values()]).sum()
                optimizer.zero_grad(set_to_none=True)
                (loss + min(1.0, step / ramp) * divergence / count).backward()
                optimizer.step()
                step += 1
        masks = {
            f"{name}.weight": (layer.log_alpha() < config.threshold).float().detach() for name, layer in noisy.items()
        }
        for name, module in bare.items():
            network.set_submodule(name, module)
        full = {name: weight.detach().clone() for name, weight in _list_weights(network)}
        _apply_masks(network, masks)
        yield network
        with torch.no_grad():
            for name, weight in _list_weights(network):
                weight.copy_(full[name])


def _divergence(log_alpha: Tensor) -> Tensor:
    return (_K1 - _K1 * torch.sigmoid(_K2 + _K3 * log_alpha) + 0.5 * functional.softplus(-log_alpha)).sum()
