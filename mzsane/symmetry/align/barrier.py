"""The loss barrier between two models: the honest measure of how well they are aligned.

Suffixes: P weights of a model.
"""

import torch
from torch import Tensor, nn

from mzsane.layout.running import load_weights
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.conditioning import condition_statistics
from mzsane.networks.train_loop import measure
from mzsane.problems.images.dataset import ImageSplit

_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_IMAGES = 2000  # that a network's statistics are computed on, and at most that its loss is measured on


def measure_barrier(
    network: nn.Module, layout: TokenLayout, first_P: Tensor, second_P: Tensor, split: ImageSplit
) -> float:
    """Return the loss barrier on the way from one model to another, nats.

    The largest excess of the cross-entropy of an interpolated model, at a quarter, a half and three quarters of the
    way, over the interpolated cross-entropy of its ends (Git Re-Basin, arXiv 2209.04836, definition 2.1). Running
    statistics of batch norms are computed anew for every model (REPAIR, arXiv 2211.08403).

    Args:
        network: a network of the architecture; its weights are overwritten.
        layout: its layout.
        first_P: flat weights of one model.
        second_P: those of the other.
        split: images to measure on.
    """
    some = ImageSplit(split.images_NCHW[:_IMAGES], split.labels_N[:_IMAGES])
    losses = []
    for step in _STEPS:
        mixed_P = torch.lerp(first_P, second_P, step)
        load_weights(layout, network, mixed_P)
        condition_statistics(network, some.images_NCHW)
        losses.append(measure(network, some)[0])
    excess = [loss - ((1 - step) * losses[0] + step * losses[-1]) for step, loss in zip(_STEPS, losses, strict=True)]
    return max(0.0, *excess)
