"""Training and measuring one small network: the loop that zoo training and fine-tuning share.

Suffixes: N images, C channels, H height, W width, K classes.
"""

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from mzsane.zoo.images import ImageSplit

_MEASURE_BATCH = 512  # images


def fit_epochs(
    network: nn.Module,
    split: ImageSplit,
    learning_rate: float,
    batch_size: int,
    generator: torch.Generator,
    weight_decay: float = 0.0,
) -> Iterator[None]:
    """Train a network in place with Adam and cross-entropy, for as many epochs as the caller asks for.

    Yields:
        None after each epoch. The last, smaller batch of an epoch is used.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's overloads
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    images_NCHW = split.images_NCHW.contiguous(memory_format=torch.channels_last)
    while True:
        network.train()
        for batch in torch.randperm(len(images_NCHW), generator=generator).split(batch_size):
            loss = functional.cross_entropy(network(images_NCHW[batch]), split.labels_N[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        yield


@torch.no_grad()
def measure(network: nn.Module, split: ImageSplit) -> tuple[float, float]:
    """Return the mean cross-entropy (nats; infinite if not a number) and accuracy (0..1) in evaluation mode."""
    network.eval()
    loss, correct = 0.0, 0
    for images_NCHW, labels_N in zip(
        split.images_NCHW.split(_MEASURE_BATCH), split.labels_N.split(_MEASURE_BATCH), strict=True
    ):
        logits_NK = network(images_NCHW)
        loss += functional.cross_entropy(logits_NK, labels_N, reduction="sum").item()
        correct += int((logits_NK.argmax(dim=1) == labels_N).sum())
    mean = loss / len(split.labels_N)
    return mean if math.isfinite(mean) else math.inf, correct / len(split.labels_N)
