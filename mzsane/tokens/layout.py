"""Where every weight of an architecture sits in its token sequence.

A layout is a pair of index maps between a flat weight vector (all parameters in state-dict order) and a token sequence.
Tokens are a view: nothing padded is ever stored.

Suffixes: B models, P weights of a model, T tokens, D token width.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mzsane.errors import ConfigError


class TensorEntry(BaseModel):
    """One parameter tensor: its name and shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


class TokenLayout(BaseModel):
    """The layout of one architecture. Small data with a digest of its own; the index maps are made when first used.

    A tensor with rows (`weight` of two or more axes) is one layer; row `k` is output channel `k`, flattened, followed
    by the channel's bias where there is one. A `weight` of one axis (a norm) is a layer whose rows are (scale,
    shift). Any other tensor is a layer of one row. A row longer than `token_dim` is cut into several tokens, the last
    one padded (MZ-SANE, section 3; SANE, arXiv 2406.09997). Buffers, running statistics among them, are not tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))
    token_dim: int
    tensors: tuple[TensorEntry, ...]

    @classmethod
    def from_state_dict(cls, parameters: Mapping[str, Tensor], token_dim: int) -> "TokenLayout":
        """Lay out named parameters, in their order.

        Raises:
            ConfigError: `token_dim` is below 1 or there are no parameters.
        """
        if token_dim < 1:
            raise ConfigError(f"token_dim must be at least 1, not {token_dim}")
        if not parameters:
            raise ConfigError("a network without parameters has no token layout")
        entries = tuple(TensorEntry(name=name, shape=tuple(value.shape)) for name, value in parameters.items())
        return cls(token_dim=token_dim, tensors=entries)

    @cached_property
    def digest(self) -> str:
        """sha256 of the layout in canonical JSON."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @cached_property
    def weights(self) -> int:
        """Number of weights of a model."""
        return sum(entry.size for entry in self.tensors)

    @property
    def length(self) -> int:
        """Number of tokens of a model."""
        return len(self.gather_TD)

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Position of each tensor's first weight in the flat vector."""
        offsets, total = {}, 0
        for entry in self.tensors:
            offsets[entry.name] = total
            total += entry.size
        return offsets

    @cached_property
    def _maps(self) -> tuple[Tensor, Tensor]:
        gather, positions = [], []
        for layer, rows_RL in enumerate(self._layer_rows()):
            rows, length = rows_RL.shape
            parts = math.ceil(length / self.token_dim)
            padded = rows_RL.new_full((rows, parts * self.token_dim), -1)
            padded[:, :length] = rows_RL
            gather.append(padded.view(rows * parts, self.token_dim))
            row = torch.arange(rows).repeat_interleave(parts)
            positions.append(torch.stack([torch.full_like(row, layer), row], dim=1))
        gather_TD = torch.cat(gather)
        number = torch.arange(len(gather_TD))[:, None]
        return gather_TD, torch.cat([number, torch.cat(positions)], dim=1)

    def _layer_rows(self) -> list[Tensor]:
        """Return for each layer the flat index of every weight, (rows, row length)."""
        entries = {entry.name: entry for entry in self.tensors}
        biases = {}
        for entry in self.tensors:
            bias = entries.get(entry.name.removesuffix("weight") + "bias") if entry.name.endswith("weight") else None
            if bias is not None and bias.shape == entry.shape[:1]:
                biases[entry.name] = bias
        joined = {bias.name for bias in biases.values()}
        layers = []
        for entry in self.tensors:
            if entry.name in joined:
                continue
            rows = entry.shape[0] if entry.name.endswith("weight") and entry.shape else 1
            index = torch.arange(entry.size).view(rows, -1) + self.offsets[entry.name]
            if entry.name in biases:
                column = torch.arange(rows)[:, None] + self.offsets[biases[entry.name].name]
                index = torch.cat([index, column], dim=1)
            layers.append(index)
        return layers

    @property
    def gather_TD(self) -> Tensor:
        """Flat index of the weight at each place of the token sequence, int64; -1 where there is padding."""
        return self._maps[0]

    @cached_property
    def mask_TD(self) -> Tensor:
        """True where a token holds a weight."""
        return self.gather_TD >= 0

    @property
    def positions_T3(self) -> Tensor:
        """Position of each token: running number in the network, layer, row in the layer; int64."""
        return self._maps[1]

    @cached_property
    def scatter_P(self) -> Tensor:
        """Place in the flattened token sequence of each weight: the inverse of `gather_TD`."""
        places = torch.nonzero(self.mask_TD.flatten()).squeeze(1)
        scatter_P = torch.empty(self.weights, dtype=torch.int64)
        scatter_P[self.gather_TD.flatten()[places]] = places
        return scatter_P

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Put named parameters, single `(...)` or stacked `(B, ...)`, in one flat vector each, (P) or (B, P).

        Raises:
            ConfigError: names or shapes are not those of the layout.
        """
        if set(parameters) != set(self.offsets):
            odd = sorted(set(parameters) ^ set(self.offsets))
            raise ConfigError(f"the weights do not fit the layout: {', '.join(odd)} in one but not in the other")
        pieces = []
        for entry in self.tensors:
            value = parameters[entry.name]
            extra = value.ndim - len(entry.shape)
            if extra not in (0, 1) or tuple(value.shape[extra:]) != entry.shape:
                raise ConfigError(
                    f"the weights do not fit the layout: {entry.name} is {tuple(value.shape)}, not {entry.shape}"
                )
            pieces.append(value.reshape(*value.shape[:extra], -1))
        return torch.cat(pieces, dim=-1)

    def unflatten(self, flat_P: Tensor) -> dict[str, Tensor]:
        """Cut flat vectors, (P) or (B, P), into named parameters: views, the inverse of `flatten`."""
        sizes = [entry.size for entry in self.tensors]
        pieces = flat_P.split(sizes, dim=-1)
        return {e.name: piece.view(*flat_P.shape[:-1], *e.shape) for e, piece in zip(self.tensors, pieces, strict=True)}

    def tokenize(self, flat_BP: Tensor) -> Tensor:
        """Turn flat vectors, (..., P), into tokens, (..., T, D), with zeros in the padding."""
        tokens_BTD = flat_BP[..., self.gather_TD.clamp(min=0)]
        return tokens_BTD.masked_fill(~self.mask_TD, 0)

    def detokenize(self, tokens_BTD: Tensor) -> Tensor:
        """Turn tokens, (..., T, D), into flat vectors, (..., P): the exact inverse of `tokenize`.

        Raises:
            ConfigError: the tokens have another shape than the layout.
        """
        if tuple(tokens_BTD.shape[-2:]) != (self.length, self.token_dim):
            raise ConfigError(
                f"tokens of shape {tuple(tokens_BTD.shape[-2:])} do not fit a layout of {(self.length, self.token_dim)}"
            )
        return tokens_BTD.flatten(-2)[..., self.scatter_P]
