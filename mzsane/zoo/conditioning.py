"""Batch-norm conditioning: running statistics computed on images, without labels.

Suffixes: N images, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn

CONDITIONING_IMAGES = 2000  # training images, without labels, that running statistics are computed on
_BATCH = 500  # images
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def has_statistics(network: nn.Module) -> bool:
    """Tell whether a network has running statistics."""
    return bool(_list_norms(network))


@torch.no_grad()
def condition_statistics(network: nn.Module, images_NCHW: Tensor) -> None:
    """Replace a network's running statistics by the average over batches of images, in place.

    They are reset and averaged, all batches alike; a moving average would keep 35 % of its start after ten batches.
    A network without batch norm is left as it is.
    """
    norms = _list_norms(network)
    if not norms:
        return
    momenta, training = [norm.momentum for norm in norms], network.training
    network.eval()  # dropout stays off
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for a plain average
        norm.train()
    for batch_NCHW in images_NCHW.split(_BATCH):
        network(batch_NCHW)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(training)


def _list_norms(network: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    return [module for module in network.modules() if isinstance(module, _NORMS) and module.track_running_stats]
