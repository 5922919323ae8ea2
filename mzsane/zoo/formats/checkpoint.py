"""Checkpoint files to named tensors, by content and not by name: torch zips and pickles, safetensors, npz.

Numbers become float32 whatever they were stored in (float16, bfloat16, float64): that is what mzsane trains, tokenizes
and scores in. Whole numbers and booleans, as in the counters of batch norm, stay as they are. Nothing in a file is ever
executed.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.fetch.zip_members import HEADER_BYTES, ZIP_START, ZipMember, list_checkpoint
from mzsane.zoo.formats.listing import sort_key
from mzsane.zoo.formats.states import Choice, State, find_states, is_plain
from mzsane.zoo.formats.torch_files import TorchFiles

_PICKLE_START = b"\x80"
_PROTOCOLS = range(1, 6)  # of pickles, in their second byte
_LAST = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")  # order within a layer
_FLOAT_BYTES = 4
_NPY_HEADER_BYTES = 10_000
_HEADER_BYTES = 2**24  # of a safetensors file: more than 100,000 tensors
_OTHER_FORMATS = {
    b"\x89HDF": "an HDF5 file, as Keras writes it",
    b"GGUF": "a GGUF file, whose weights are mostly quantised",
    b"\x1f\x8b": "a gzip file: unpack it",
    b"PK\x05\x06": "an empty zip",
    b"<htm": "a web page: was a login or a licence in the way of the download?",
    b"<!DO": "a web page: was a login or a licence in the way of the download?",
    b"vers": "a pointer of Git LFS, not the file: run git lfs pull",
}


class CheckpointReader:
    """Reads checkpoint files.

    Args:
        max_bytes: limit on what a file unpacks to, and on its tensors as float32.
        choice: which networks of a file are wanted.
    """

    def __init__(self, max_bytes: int, choice: Choice | None = None) -> None:
        self._max_bytes = max_bytes
        self._choice = choice or Choice()
        self._torch_files = TorchFiles(self._choice)

    def read(self, data: bytes) -> list[State]:
        """Return the networks in a file, float32 and finite; more than one when it holds a list of state dicts.

        Raises:
            ConfigError: why it cannot be used, as "kind of reason: details".
        """
        return _guard(lambda: [State(self._clean(state.tensors), state.epoch) for state in self._parse(data)])

    def join(self, shards: Mapping[str, bytes], places: Mapping[str, str]) -> list[State]:
        """Return the network whose tensors lie in several files.

        Args:
            shards: the files by name.
            places: the file of each tensor.

        Raises:
            ConfigError: why it cannot be used; a tensor is not where it should be.
        """
        return _guard(lambda: self._join(shards, places))

    def _join(self, shards: Mapping[str, bytes], places: Mapping[str, str]) -> list[State]:
        tensors: dict[str, Tensor] = {}
        for name, data in shards.items():
            try:
                (state,) = self._parse(data)
            except ConfigError as error:
                raise ConfigError(f"{error} (in the shard {name[-80:]})") from None
            if missing := next((n for n, place in places.items() if place == name and n not in state.tensors), None):
                raise ConfigError(f"incomplete: the index says that {missing[:80]} is in {name[-80:]}, and it is not")
            tensors.update({n: value for n, value in state.tensors.items() if places.get(n, name) == name})
        return [State(self._clean({name: tensors[name] for name in sorted(tensors, key=_order)}))]

    def _parse(self, data: bytes) -> list[State]:
        if not data:
            raise ConfigError("empty file")
        if data.startswith(ZIP_START):
            members = list_checkpoint(data, self._max_bytes)
            if members and all(member.name.endswith(".npy") for member in members):
                return find_states(_parse_npz(data, members), self._choice)
            return self._torch_files.read(data, members)
        length = int.from_bytes(data[:8], "little")
        if data[8:9] == b"{" and (length <= len(data) - 8 or data[1] not in _PROTOCOLS):
            return self._parse_safetensors(data, length)
        if data.startswith(_PICKLE_START) and len(data) > 1 and data[1] in _PROTOCOLS:
            return self._torch_files.read(data)
        told = next((text for start, text in _OTHER_FORMATS.items() if data.startswith(start)), None)
        raise ConfigError(f"no checkpoint: {told or f'it starts with {data[:8]!r}'}")

    def _parse_safetensors(self, data: bytes, length: int) -> list[State]:
        if length > min(_HEADER_BYTES, len(data) - 8):
            raise ConfigError(f"truncated or damaged: a header of {length} bytes in a file of {len(data)}")
        try:
            tensors = safetensors.torch.load(data)
            notes = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise ConfigError(f"truncated or damaged: {' '.join(str(error).split())[:160]}") from None
        for name, kept in notes.items():  # tensors that share memory are stored once, and the other names noted
            if name not in tensors and kept in tensors:
                tensors[name] = tensors[kept]
        return find_states({name: tensors[name] for name in sorted(tensors, key=_order)}, self._choice)

    def _clean(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        numbers = 0
        for name, value in tensors.items():
            numbers += value.numel()
            if not is_plain(value):
                kind = f"{str(value.layout).removeprefix('torch.')}, {str(value.dtype).removeprefix('torch.')}"
                raise ConfigError(f"no plain numbers: {name[:80]} is {kind}, on {value.device}")
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


def _guard(read: Callable[[], list[State]]) -> list[State]:
    """Call a function and turn whatever one odd file makes it raise into the reason to set the file aside."""
    try:
        return read()
    except ConfigError:
        raise
    except MemoryError:
        raise ConfigError("too large: there is not enough memory for it") from None
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        raise ConfigError(f"cannot be read: {type(error).__name__}: {text}") from None


def _parse_npz(data: bytes, members: Sequence[ZipMember]) -> dict[str, Tensor]:
    tensors = {}
    for member in members:
        name = member.name.removesuffix(".npy")
        start = member.locate(data[member.header : member.header + HEADER_BYTES])
        unpacked = member.unpack(data[start : start + member.packed])
        try:
            array = np.load(io.BytesIO(unpacked), allow_pickle=False, max_header_size=_NPY_HEADER_BYTES)
        except Exception as error:
            raise ConfigError(f"truncated or damaged: {' '.join(str(error).split())[:160]}") from None
        tensors[name] = _to_tensor(name, array)
    return tensors


def _to_tensor(name: str, array: Any) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise ConfigError(f"no plain numbers: {name[:80]} is {array.dtype}")
    try:
        return torch.from_numpy(np.array(array.astype(array.dtype.newbyteorder("=")), order="C"))
    except TypeError:  # long doubles
        raise ConfigError(f"no plain numbers: {name[:80]} is {array.dtype}") from None


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
