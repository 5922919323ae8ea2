"""Checkpoint files to named tensors, by content and not by name: torch zips and pickles, safetensors, npz.

Numbers become float32 whatever they were stored in (float16, bfloat16, float64): that is what mzsane trains, tokenizes
and scores in. Whole numbers and booleans, as in the counters of batch norm, stay as they are. Nothing in a file is ever
executed.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.zoo.readers.listing import sort_key
from mzsane.zoo.readers.states import State, find_states
from mzsane.zoo.readers.torch_files import TorchFiles
from mzsane.zoo.readers.zip_members import ZIP_START, ZipMember, list_members

_PICKLE_START = b"\x80"
_LAST = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")  # order within a layer
_FLOAT_BYTES = 4


class CheckpointReader:
    """Reads checkpoint files.

    Args:
        max_bytes: limit on what a file unpacks to, and on its tensors as float32.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._torch_files = TorchFiles()

    def read(self, data: bytes) -> list[State]:
        """Return the networks in a file, float32 and finite; more than one when it holds a list of state dicts.

        Raises:
            ConfigError: why it cannot be used, as "kind of reason: details".
        """
        return [State(self._clean(state.tensors), state.epoch) for state in self._parse(data)]

    def _parse(self, data: bytes) -> list[State]:
        if not data:
            raise ConfigError("empty file")
        if data.startswith(ZIP_START):
            members = list(list_members(io.BytesIO(data)))
            if all(member.name.endswith(".npy") for member in members):
                return self._parse_npz(data, members)
            return self._torch_files.read(data, members)
        if data.startswith(_PICKLE_START):
            return self._torch_files.read(data)
        if data[8:9] == b"{":
            return _parse_safetensors(data)
        raise ConfigError(f"no checkpoint: it starts with {data[:8]!r}")

    def _parse_npz(self, data: bytes, members: Sequence[ZipMember]) -> list[State]:
        if sum(member.size for member in members) > self._max_bytes:
            raise ConfigError(f"too large: the arrays unpack to more than max_file_bytes, which is {self._max_bytes}")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                loaded = {name: _to_tensor(name, arrays[name]) for name in arrays.files}
        except ConfigError:
            raise
        except Exception as error:  # numpy, zipfile and zlib each have their own
            raise ConfigError(f"truncated or damaged: {' '.join(str(error).split())[:160]}") from None
        return find_states(loaded)

    def _clean(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        numbers = 0
        for name, value in tensors.items():
            numbers += value.numel()
            if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
                raise ConfigError(f"no plain numbers: {name[:80]} is {value.layout}, {value.dtype}, {value.device}")
        if numbers * _FLOAT_BYTES > self._max_bytes:
            raise ConfigError(f"too large: {numbers} weights, max_file_bytes is {self._max_bytes}")
        cleaned = {
            name: value.detach().to(torch.float32) if value.is_floating_point() else value.detach()
            for name, value in tensors.items()
        }
        floats = [value.reshape(-1) for value in cleaned.values() if value.dtype == torch.float32]
        if not sum(len(value) for value in floats):
            raise ConfigError("no tensors: there is no weight in the file")
        # The sum is finite if all are, unless they are huge: then the slow way tells.
        if not torch.isfinite(torch.cat(floats).sum()):
            _check_finite(cleaned)
        return cleaned


def _to_tensor(name: str, array: Any) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise ConfigError(f"no plain numbers: {name[:80]} is {array.dtype}")
    try:
        return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
    except TypeError:  # long doubles
        raise ConfigError(f"no plain numbers: {name[:80]} is {array.dtype}") from None


def _parse_safetensors(data: bytes) -> list[State]:
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ConfigError(f"truncated or damaged: {' '.join(str(error).split())[:160]}") from None
    return find_states({name: tensors[name] for name in sorted(tensors, key=_order)})


def _order(name: str) -> tuple[Any, ...]:
    """Sort layers by their names, numbers as numbers, and a layer's tensors as modules have them.

    A safetensors file has no order of its own.
    """
    layer, _, last = name.rpartition(".")
    rank = _LAST.index(last) if last in _LAST else len(_LAST)
    return (sort_key(layer), rank, last)


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            broken = "NaN" if torch.isnan(value).any() else "infinite numbers"
            raise ConfigError(f"weights that are not finite: {broken} in {name[:80]}")
