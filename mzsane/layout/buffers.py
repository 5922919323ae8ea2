"""Buffers of networks: what of a model's state is neither a parameter nor a running statistic of a norm.

Moving averages, constants by which an input is normalised, vectors of a spectral norm, masks: a model is not itself
without them. Running means and variances of PyTorch's norms are apart, since they can be computed from images
(`networks.conditioning`).
"""

import base64
import copy
import zlib
from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mzsane.errors import ConfigError


class StoredBuffer(BaseModel):
    """A buffer as data: its values are base64 of zlib of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    dtype: str
    shape: tuple[int, ...]
    values: str

    @classmethod
    def from_tensor(cls, name: str, value: Tensor) -> "StoredBuffer":
        """Store a tensor of any type."""
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        values = base64.b64encode(zlib.compress(flat.numpy().tobytes())).decode()
        return cls(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=tuple(value.shape), values=values)

    def to_tensor(self) -> Tensor:
        """Return the tensor."""
        data = bytearray(zlib.decompress(base64.b64decode(self.values)))
        dtype: torch.dtype = getattr(torch, self.dtype)
        return torch.frombuffer(data, dtype=dtype).view(self.shape) if data else torch.empty(self.shape, dtype=dtype)


def list_norms(network: nn.Module) -> list[_NormBase]:
    """Return the norms that have running statistics: batch norms, and instance norms that are told to."""
    return [module for module in network.modules() if isinstance(module, _NormBase) and module.track_running_stats]


def list_statistics(network: nn.Module) -> set[str]:
    """Return the names of the running means and variances of a network's norms."""
    norms = {id(value) for norm in list_norms(network) for value in norm.buffers(recurse=False) if value.ndim}
    return {name for name, value in network.named_buffers(remove_duplicate=False) if id(value) in norms}


def list_buffers(network: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of a network by name, running statistics and counters of norms left out."""
    norms = {id(value) for norm in list_norms(network) for value in norm.buffers(recurse=False)}
    return {
        name: value
        for name, value in network.named_buffers(remove_duplicate=False)
        if id(value) not in norms and value.numel()
    }


def same_values(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are alike to the bit of every value; numbers that are none are alike."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def check_saved(network: nn.Module, again: nn.Module, images_NCHW: Tensor, name: str) -> None:
    """Check that the state dict of a new network has what training changes, and what chance made.

    Args:
        network: a new network; it is changed.
        again: another one, made in the same way.
        images_NCHW: some images that it takes.
        name: what messages call it.

    Raises:
        ConfigError: a buffer that no state dict has is another one in `again`, or after a step of training.
    """
    hidden = {n: b.clone() for n, b in network.named_buffers() if n not in network.state_dict()}
    if not hidden:
        return
    others = dict(again.named_buffers())
    drawn = [n for n, value in hidden.items() if not same_values(value, others[n])]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        network.train()(images_NCHW)
    moved = [n for n, value in network.named_buffers() if n in hidden and not same_values(value, hidden[n])]
    for names, why in ((drawn, "draws at random"), (moved, "changes while it is trained")):
        if names:
            raise ConfigError(
                f"{name} {why} what its state dict does not keep ({', '.join(names)}), so that its models would be "
                "others when they are loaded: register these buffers as persistent"
            )


def copy_network(network: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of a network.

    A weight that a hook computes (`torch.nn.utils.weight_norm`) carries a graph that cannot be copied, until it is
    computed without one: then the network has to look at an example.
    """
    try:
        return copy.deepcopy(network)
    except RuntimeError:
        training = network.training
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network.eval()(example)
        network.train(training)
        return copy.deepcopy(network)


def copy_buffers(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give buffers of a network their values in place."""
    with torch.no_grad():
        for name, value in values.items():
            network.get_buffer(name).copy_(value)
