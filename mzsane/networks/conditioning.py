"""Conditioning: running statistics of norms computed on images, without labels.

Suffixes: N images, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn

from mzsane.layout.buffers import list_norms

CONDITIONING_IMAGES = 2000  # training images, without labels, that running statistics are computed on
_BATCH = 500  # images


def has_statistics(network: nn.Module) -> bool:
    """Tell whether a network has running statistics."""
    return bool(list_norms(network))


@torch.no_grad()
def condition_statistics(network: nn.Module, images_NCHW: Tensor) -> None:
    """Replace a network's running statistics by the average over batches of images, in place.

    They are reset and averaged, all batches alike; a moving average would keep 35 % of its start after ten batches.
    A network without such norms is left as it is.
    """
    norms = list_norms(network)
    if not norms:
        return
    momenta, training = [norm.momentum for norm in norms], network.training
    network.eval()  # dropout stays off
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    for number, batch_NCHW in enumerate(images_NCHW.split(_BATCH), start=1):
        for norm in norms:
            norm.momentum = 1 / number  # a plain average; PyTorch has a word for it, which instance norms do not know
        network(batch_NCHW)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(training)
