"""How many networks of one architecture a GPU has room for at a time.

Suffixes: S images of a step, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn

from mzsane.device import count_memory
from mzsane.layout.buffers import copy_network

_USED = 0.6  # share of a GPU's memory that is counted on
_BYTES = 4  # of a number


def count_kept_numbers(network: nn.Module, images_SCHW: Tensor) -> int:
    """Return how many numbers a model, which is on the CPU, keeps for the backward pass, weights included.

    Nothing is computed.
    """
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        copy_network(network, images_SCHW[:1].cpu()).to("meta")(images_SCHW.to("meta"))
    return max(1, kept)


def count_fitting(numbers: int, device: torch.device) -> int:
    """Return how many models of so many numbers have room on a GPU together, at least one."""
    return max(1, int(_USED * count_memory(device) / _BYTES) // numbers)
