"""The tensors of an architecture as data: which are weights, what they are, and by what rows they are read.

Suffixes: B models, P weights, G groups of a convolution, I inputs of a group, O outputs of a group, K kernel weights.
"""

import math
from collections.abc import Collection, Mapping

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mzsane.errors import ConfigError

STATISTICS = ("running_mean", "running_var")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class WeightTensor(BaseModel):
    """One tensor of weights.

    Attributes:
        name: its name in the state dict.
        shape: its shape.
        kind: what its layer is: conv, linear, norm, embedding, attention or parameter. Explains, places nothing.
        transposed: groups of a transposed convolution, whose weight is (inputs, outputs / groups, ...); 0 for others.
        tied: other names in the state dict of the same tensor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    shape: tuple[int, ...]
    kind: str = "parameter"
    transposed: int = 0
    tied: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Number of rows: output channels, entries of an embedding, positions; one of any other vector."""
        if self.transposed:
            return self.shape[1] * self.transposed
        if not self.shape:
            return 1
        if self.name.endswith("weight") or self.name.endswith(STATISTICS):
            return self.shape[0]
        inner = self.shape[next((i for i, size in enumerate(self.shape) if size > 1), 0) :]
        return inner[0] if math.prod(inner[1:]) > 1 else 1

    def view_rows(self, flat_BP: Tensor, rows: int) -> Tensor:
        """View this tensor's weights, (..., size), as so many rows, (..., rows, row length)."""
        rows_BRX: Tensor = flat_BP.unflatten(-1, (rows, -1))
        if self.transposed:
            inputs = self.shape[0] // self.transposed
            groups_BGIOK: Tensor = flat_BP.unflatten(-1, (self.transposed, inputs, self.shape[1], -1))
            rows_BRX = groups_BGIOK.transpose(-3, -2).flatten(-2).flatten(-3, -2)
        return rows_BRX


def list_entries(
    state: Mapping[str, Tensor], running_statistics: bool = False, buffers: Collection[str] = ()
) -> list[WeightTensor]:
    """Describe the weights of a state dict, in their order; what they are is told by name and shape.

    Raises:
        ConfigError: a tensor is not a plain one of real numbers.
    """
    chosen = select_weights(state, running_statistics, buffers)
    tied = _find_tied(chosen)
    entries = []
    for name, value in chosen.items():
        if name in tied:
            continue
        aliases = tuple(other for other, first in tied.items() if first == name)
        bias = chosen.get(_partner(name, "bias"))
        transposed = _guess_transposed(tuple(value.shape), None if bias is None else tuple(bias.shape))
        entries.append(
            WeightTensor(
                name=name,
                shape=tuple(value.shape),
                kind=_guess_kind(name, value.ndim),
                transposed=transposed if name.endswith("weight") else 0,
                tied=aliases,
            )
        )
    return entries


def select_weights(
    state: Mapping[str, Tensor], running_statistics: bool = False, buffers: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return the tensors of a state dict that are weights: no integers, and running statistics only when asked for.

    Buffers that are named are weights whatever they are called.

    Raises:
        ConfigError: one is neither a plain tensor of real numbers nor of integers.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.is_complex() or value.layout != torch.strided or value.is_quantized:
            raise ConfigError(f"{name} cannot become tokens: it is not a plain tensor of real numbers")
    return {
        name: value
        for name, value in state.items()
        if is_weight(value) and (running_statistics or name in buffers or not is_statistic(name))
    }


def is_statistic(name: str) -> bool:
    """Tell by its name whether a tensor is a running mean or variance."""
    return name.endswith(STATISTICS)


def is_weight(value: Tensor) -> bool:
    """Tell whether a tensor is of real numbers."""
    return value.is_floating_point()


def _partner(name: str, other: str) -> str:
    return name.removesuffix("weight") + other if name.endswith("weight") else ""


def _find_tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for every later name of a tensor its first name: same memory, same shape."""
    first: dict[tuple[object, ...], str] = {}
    tied = {}
    for name, value in state.items():
        if value.device.type == "meta" or not value.numel():
            key: tuple[object, ...] = (id(value),)
        else:
            key = (value.data_ptr(), value.device, value.dtype, value.shape, value.stride())
        if key in first:
            tied[name] = first[key]
        else:
            first[key] = name
    return tied


def _guess_transposed(weight: tuple[int, ...], bias: tuple[int, ...] | None) -> int:
    """Return the groups of a transposed convolution whose bias fits its second axis alone, else 0."""
    if bias is None or len(weight) < 3 or len(bias) != 1 or bias[0] == weight[0] or bias[0] % weight[1]:
        return 0
    groups = bias[0] // weight[1]
    return groups if weight[0] % groups == 0 else 0


def _guess_kind(name: str, axes: int) -> str:
    if name.endswith(("in_proj_weight", "in_proj_bias")):
        return "attention"
    if name.endswith(STATISTICS):
        return "norm"
    if not name.endswith(("weight", "bias")):
        return "parameter"
    return {0: "parameter", 1: "norm", 2: "linear"}.get(axes, "conv")


def describe_by_module(entry: WeightTensor, modules: Mapping[str, nn.Module]) -> WeightTensor:
    """Say what a tensor is by the module that holds it."""
    module = modules[entry.name.rpartition(".")[0]]
    transposed = 0
    if isinstance(module, _TRANSPOSED) and entry.name.endswith("weight"):
        transposed = module.groups
    name = type(module).__name__.lower()
    kind = next((kind for kind in ("conv", "linear", "norm", "embedding", "attention") if kind in name), "parameter")
    return entry.model_copy(update={"kind": kind, "transposed": transposed})
