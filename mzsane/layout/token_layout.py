"""Where every weight of an architecture sits in its token sequence.

A layout is a pair of index maps between a flat weight vector (all parameters in state-dict order) and a token sequence.
Tokens are a view: nothing padded is ever stored.

Suffixes: B models, P weights of a model, T tokens, D token width, R rows of a layer.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mzsane.errors import ConfigError
from mzsane.layout.buffers import StoredBuffer, same_values
from mzsane.layout.entries import STATISTICS, WeightTensor, describe_by_module, is_statistic, is_weight, list_entries
from mzsane.layout.layers import Layer, join_vectors

Statistics = Literal["in", "out", "conditioned"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TokenLayout(BaseModel):
    """The layout of one architecture. Small data with a digest of its own; the index maps are made when first used.

    A tensor with rows is one layer: row `k` of a `weight` is output channel `k`, flattened, followed by the channel's
    bias, and for a norm by its running mean and variance where these are tokens. A parameter of another name (a class
    token, positions) has a row for each index of its first axis longer than one, or is a single row when it is a
    vector. A row longer than `token_dim` is cut into several tokens, the last one padded (MZ-SANE, section 3; SANE,
    arXiv 2406.09997). Integers (counters, indices) are never tokens. Buffers of real numbers are tokens where a zoo's
    models differ in them: weights that no gradient trained.

    Attributes:
        token_dim: width of a token, weights.
        tensors: the tensors, in the order of the flat vector.
        running_statistics: whether running means and variances are among the tokens (`in`), are left out (`out`), or
            are left out and computed on unlabelled images before a model is used (`conditioned`).
        shared: buffers that all models of the zoo have in common, where a new network has others.
        lost: buffers that models differ in and that are no real numbers (masks, indices): without them a model cannot
            be used.
        ranges: the least and the largest value that each buffer among the weights has in the zoo; a variance that a
            decoder makes negative is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))
    token_dim: int
    tensors: tuple[WeightTensor, ...]
    running_statistics: Statistics = "conditioned"
    shared: tuple[StoredBuffer, ...] = ()
    lost: tuple[str, ...] = ()
    ranges: dict[str, tuple[float, float]] = {}

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        token_dim: int,
        running_statistics: Statistics = "conditioned",
        buffers: Collection[str] = (),
    ) -> "TokenLayout":
        """Lay out the tensors of a state dict, in their order; which layer a tensor is of is told by name and shape.

        Args:
            state: a state dict, with its buffers or without. Names of one tensor (tied weights) are laid out once.
            token_dim: width of a token, weights.
            running_statistics: what becomes of running means and variances.
            buffers: names that are weights though they are those of running statistics.

        Raises:
            ConfigError: `token_dim` is below 1, there are no weights, or a tensor is not a plain one of real numbers.
        """
        if token_dim < 1:
            raise ConfigError(f"token_dim must be at least 1, not {token_dim}")
        entries = tuple(entry for entry in list_entries(state, running_statistics == "in", buffers) if entry.size)
        if not entries:
            raise ConfigError("a network without weights has no token layout")
        return cls(token_dim=token_dim, tensors=entries, running_statistics=running_statistics)

    @classmethod
    def from_network(
        cls,
        network: nn.Module,
        token_dim: int,
        running_statistics: Statistics = "conditioned",
        buffers: Collection[str] = (),
    ) -> "TokenLayout":
        """Lay out a network's parameters, and buffers that are named; its modules tell what each tensor is.

        Raises:
            ConfigError: as `from_state_dict`.
        """
        names = {name for name, _ in network.named_parameters(remove_duplicate=False)} | set(buffers)
        state = {
            name: value
            for name, value in network.state_dict(keep_vars=True).items()
            if name in names or name.endswith(STATISTICS)
        }
        layout = cls.from_state_dict(state, token_dim, running_statistics, buffers)
        modules = dict(network.named_modules())
        return layout.model_copy(
            update={"tensors": tuple(describe_by_module(entry, modules) for entry in layout.tensors)}
        )

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the index maps out of what goes to another process: they are many times the rest, and made anew."""
        state = super().__getstate__()
        given = {name: value for name, value in state["__dict__"].items() if name in TokenLayout.model_fields}
        return state | {"__dict__": given}

    def __eq__(self, other: object) -> bool:
        """Compare what was given; the cached maps are left out."""
        if not isinstance(other, TokenLayout):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in TokenLayout.model_fields)

    def __hash__(self) -> int:
        """Hash what places weights."""
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """sha256 of what places weights, in canonical JSON; what only explains (`kind`) is not in it."""
        tensors = [[entry.name, entry.shape, entry.transposed] for entry in self.tensors]
        return hashlib.sha256(json.dumps([self.token_dim, tensors], sort_keys=True).encode()).hexdigest()

    @cached_property
    def weights(self) -> int:
        """Number of weights of a model."""
        return sum(entry.size for entry in self.tensors)

    @property
    def length(self) -> int:
        """Number of tokens of a model."""
        return self.layers[-1].first + self.layers[-1].tokens

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Position of each tensor's first weight in the flat vector."""
        offsets, total = {}, 0
        for entry in self.tensors:
            offsets[entry.name] = total
            total += entry.size
        return offsets

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in the order of their tokens."""
        joined = join_vectors(self.tensors)
        layers: list[Layer] = []
        first = 0
        for entry in self.tensors:
            if entry.name not in joined:
                continue
            members = (entry, *joined[entry.name])
            parts = math.ceil(sum(member.size for member in members) / entry.rows / self.token_dim)
            module = entry.name.removesuffix("weight").removesuffix(STATISTICS[0]).rstrip("._")
            layers.append(Layer(module or entry.name, entry.kind, members, first, entry.rows, parts))
            first += layers[-1].tokens
        return tuple(layers)

    @property
    def filled(self) -> float:
        """Share of the places of the token sequence that hold a weight."""
        return self.weights / (self.length * self.token_dim)

    @cached_property
    def gather_TD(self) -> Tensor:
        """Flat index of the weight at each place of the token sequence, int64; -1 where there is padding."""
        gather_TD = torch.full((self.length, self.token_dim), -1)
        self.write_tokens(torch.arange(self.weights), gather_TD)
        return gather_TD

    @cached_property
    def mask_TD(self) -> Tensor:
        """True where a token holds a weight."""
        return self.gather_TD >= 0

    @cached_property
    def weights_T(self) -> Tensor:
        """Number of weights in each token."""
        return self.mask_TD.sum(dim=1)

    @cached_property
    def positions_T3(self) -> Tensor:
        """Position of each token: running number in the network, layer, row in the layer; int64."""
        pieces = []
        for number, layer in enumerate(self.layers):
            row = torch.arange(layer.rows).repeat_interleave(layer.parts)
            pieces.append(torch.stack([torch.full_like(row, number), row], dim=1))
        return torch.cat([torch.arange(self.length)[:, None], torch.cat(pieces)], dim=1)

    @cached_property
    def scatter_P(self) -> Tensor:
        """Place in the flattened token sequence of each weight: the inverse of `gather_TD`."""
        return self._copy_out(torch.arange(self.length * self.token_dim))

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Put named weights, single `(...)` or stacked `(B, ...)`, in one flat vector each, (P) or (B, P).

        What the layout leaves out on purpose (running statistics, integers) may be among them.

        Raises:
            ConfigError: names or shapes are not those of the layout, or names of one tensor have different weights.
        """
        given = {n: v for n, v in parameters.items() if n in self.names or (is_weight(v) and not is_statistic(n))}
        if set(given) != self.names:
            odd = sorted(self.names ^ set(given))
            raise ConfigError(f"the weights do not fit the layout: {', '.join(odd)} in one but not in the other")
        pieces = []
        for entry in self.tensors:
            value = given[entry.name]
            extra = value.ndim - len(entry.shape)
            if extra not in (0, 1) or tuple(value.shape[extra:]) != entry.shape:
                raise ConfigError(
                    f"the weights do not fit the layout: {entry.name} is {tuple(value.shape)}, not {entry.shape}"
                )
            for other in entry.tied:
                if not same_values(given[other], value):
                    raise ConfigError(f"the weights do not fit the layout: {other} is tied to {entry.name} but differs")
            pieces.append(value.reshape(*value.shape[:extra], -1))
        return torch.cat(pieces, dim=-1)

    def unflatten(self, flat_P: Tensor) -> dict[str, Tensor]:
        """Cut flat vectors, (P) or (B, P), into named weights: views, the inverse of `flatten`.

        Raises:
            ConfigError: the vectors have another length than the layout.
        """
        self._check_width(flat_P)
        pieces = flat_P.split([entry.size for entry in self.tensors], dim=-1)
        named = {}
        for entry, piece in zip(self.tensors, pieces, strict=True):
            value = piece.view((*flat_P.shape[:-1], *entry.shape))
            named.update(dict.fromkeys((entry.name, *entry.tied), value))
        return named

    def tokenize(self, flat_BP: Tensor) -> Tensor:
        """Turn flat vectors, (..., P), into tokens, (..., T, D), of the same dtype, with zeros in the padding.

        A gather over `gather_TD`, which runs as such on a GPU; on a CPU it is done in copies of whole layers, because
        gathering by element costs many times a copy.

        Raises:
            ConfigError: the vectors have another length than the layout.
        """
        self._check_width(flat_BP)
        if flat_BP.device.type == "cpu":
            tokens_BTD = flat_BP.new_zeros(*flat_BP.shape[:-1], self.length, self.token_dim)
            self.write_tokens(flat_BP, tokens_BTD)
            return tokens_BTD
        index = self.gather_TD.clamp(min=0).to(flat_BP.device)
        return flat_BP[..., index].masked_fill(~self.mask_TD.to(flat_BP.device), 0)

    def detokenize(self, tokens_BTD: Tensor) -> Tensor:
        """Turn tokens, (..., T, D), into flat vectors, (..., P): the exact inverse of `tokenize`.

        Raises:
            ConfigError: the tokens have another shape than the layout.
        """
        if tuple(tokens_BTD.shape[-2:]) != (self.length, self.token_dim):
            raise ConfigError(
                f"tokens of shape {tuple(tokens_BTD.shape[-2:])} do not fit a layout of {(self.length, self.token_dim)}"
            )
        if tokens_BTD.device.type == "cpu":
            return self._copy_out(tokens_BTD.flatten(-2))
        return tokens_BTD.flatten(-2)[..., self.scatter_P.to(tokens_BTD.device)]

    @cached_property
    def names(self) -> frozenset[str]:
        """All names of the tensors, those of tied ones too."""
        return frozenset(name for entry in self.tensors for name in (entry.name, *entry.tied))

    def _check_width(self, flat_BP: Tensor) -> None:
        if flat_BP.shape[-1] != self.weights:
            raise ConfigError(
                f"the weights do not fit the layout: {flat_BP.shape[-1]} a model, where it has {self.weights}"
            )

    def write_tokens(self, flat_BP: Tensor, tokens_BTD: Tensor) -> None:
        """Copy flat vectors, (..., P), to their places in tokens, (..., T, D), whose padding is left as it is."""
        places_BX = tokens_BTD.flatten(-2)
        for layer in self.layers:
            rows_RD = self._view_layer(places_BX, layer)
            column = 0
            for entry in layer.entries:
                offset = self.offsets[entry.name]
                piece = entry.view_rows(flat_BP[..., offset : offset + entry.size], layer.rows)
                rows_RD[..., column : column + piece.shape[-1]].copy_(piece)
                column += piece.shape[-1]

    def _copy_out(self, places_BX: Tensor) -> Tensor:
        flat_BP = places_BX.new_empty(*places_BX.shape[:-1], self.weights)
        for layer in self.layers:
            rows_RD = self._view_layer(places_BX, layer)
            column = 0
            for entry in layer.entries:
                offset = self.offsets[entry.name]
                width = entry.size // layer.rows
                piece = rows_RD[..., column : column + width]
                if entry.transposed:
                    inputs = entry.shape[0] // entry.transposed
                    piece = piece.unflatten(-1, (inputs, -1)).unflatten(-3, (entry.transposed, -1)).transpose(-3, -2)
                target = flat_BP[..., offset : offset + entry.size]
                target.view(*target.shape[:-1], *piece.shape[target.ndim - 1 :]).copy_(piece)
                column += width
        return flat_BP

    def _view_layer(self, places_BX: Tensor, layer: Layer) -> Tensor:
        first, width = layer.first * self.token_dim, layer.parts * self.token_dim
        rows: Tensor = places_BX[..., first : first + layer.rows * width].unflatten(-1, (layer.rows, width))
        return rows
