"""Training and measuring one small network: the loop that zoo training on a CPU and fine-tuning share.

Suffixes: N images, C channels, H height, W width, K classes.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from mzsane.config import RecipeConfig
from mzsane.networks.build import choose_memory_format
from mzsane.problems.images.dataset import ImageSplit
from mzsane.randomness import draw_seed, peek_seed, seed_globally

MOMENTUM = 0.9
MEASURE_SEED = 0  # of networks that draw random numbers when they are measured too
_MEASURE_BATCH = 512  # images
_WARMUP = 0.3  # share of the steps in which the one-cycle rate rises
_LOWEST = 0.04  # where the one-cycle rate starts and ends, of its peak


def fit_epochs(
    network: nn.Module,
    split: ImageSplit,
    recipe: RecipeConfig,
    generator: torch.Generator,
    epochs: int | None = None,
) -> Iterator[None]:
    """Train a network in place with cross-entropy, for as many epochs as the caller asks for.

    Whatever the network draws at random in an epoch, it draws from global generators that are seeded for that epoch.

    Args:
        network: the network.
        split: its training images.
        recipe: optimizer, learning rate, its schedule, weight decay and batch size.
        generator: for the order of the images, and the seeds of what the network draws.
        epochs: length of the one-cycle schedule.

    Yields:
        None after each epoch. The last, smaller batch of an epoch is used.
    """
    memory_format = choose_memory_format(network)
    network.to(memory_format=memory_format)  # type: ignore[call-overload]  # missing in torch's overloads
    optimizer = _build_optimizer(network, recipe)
    images_NCHW = split.images_NCHW.contiguous(memory_format=memory_format)
    # Only nn.Dropout takes its seed out of the stream: that of networks without it stays as it was.
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules())
    steps = (epochs or 1) * math.ceil(len(images_NCHW) / recipe.batch_size)
    step = 0
    while True:
        network.train()
        order = torch.randperm(len(images_NCHW), generator=generator)
        with seed_globally(draw_seed(generator) if drops else peek_seed(generator)):
            for batch in order.split(recipe.batch_size):
                if recipe.schedule == "one-cycle":
                    for group in optimizer.param_groups:
                        group["lr"] = recipe.learning_rate * one_cycle(step, steps)
                loss = functional.cross_entropy(network(images_NCHW[batch]), split.labels_N[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                step += 1
        yield


def one_cycle(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step: up and down along cosines (OneCycleLR)."""
    rise = _WARMUP * steps
    place = step / rise if step < rise else 1 - (step - rise) / max(steps - rise, 1)
    return _LOWEST + (1 - _LOWEST) * 0.5 * (1 - math.cos(math.pi * max(place, 0.0)))


def thin_split(split: ImageSplit, recipe: RecipeConfig, classes: int, generator: torch.Generator) -> ImageSplit:
    """Return the training images that a model sees: a random share of them, some with a random wrong label."""
    images_NCHW, labels_N = split.images_NCHW, split.labels_N
    if recipe.data_fraction < 1:
        count = max(1, round(recipe.data_fraction * len(labels_N)))
        chosen = torch.randperm(len(labels_N), generator=generator)[:count]
        images_NCHW, labels_N = images_NCHW[chosen], labels_N[chosen]
    if recipe.label_noise > 0:
        wrong = torch.randperm(len(labels_N), generator=generator)[: round(recipe.label_noise * len(labels_N))]
        shift = torch.randint(1, classes, (len(wrong),), generator=generator)
        labels_N = labels_N.clone()
        labels_N[wrong] = (labels_N[wrong] + shift) % classes
    return ImageSplit(images_NCHW, labels_N)


@torch.no_grad()
def measure(network: nn.Module, split: ImageSplit) -> tuple[float, float]:
    """Return the mean cross-entropy (nats; infinite if not a number) and accuracy (0..1) in evaluation mode."""
    network.eval()
    loss, correct = 0.0, 0
    batches = zip(split.images_NCHW.split(_MEASURE_BATCH), split.labels_N.split(_MEASURE_BATCH), strict=True)
    with seed_globally(MEASURE_SEED):
        for images_NCHW, labels_N in batches:
            logits_NK = network(images_NCHW)
            loss += functional.cross_entropy(logits_NK, labels_N, reduction="sum").item()
            correct += int((logits_NK.argmax(dim=1) == labels_N).sum())
    mean = loss / len(split.labels_N)
    return mean if math.isfinite(mean) else math.inf, correct / len(split.labels_N)


def measure_splits(network: nn.Module, splits: Mapping[str, ImageSplit]) -> dict[str, float]:
    """Return `measure` of every split, as `SPLIT_loss` and `SPLIT_accuracy`."""
    metrics = {}
    for name, split in splits.items():
        metrics[f"{name}_loss"], metrics[f"{name}_accuracy"] = measure(network, split)
    return metrics


def _build_optimizer(network: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    parameters: list[Tensor] = list(network.parameters())
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM, weight_decay=decay, fused=True)
    return torch.optim.RMSprop(parameters, lr=rate, weight_decay=decay)
