"""Tensors and frames as the bytes of files: safetensors that keep their order, and parquet."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

_NOTES = "mzsane"  # the one metadata key, so that equal content gives equal bytes


def save_tensors(tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> bytes:
    """Return named tensors and JSON notes as the bytes of a safetensors file.

    safetensors files have no order of their own; the names' order travels in the metadata.
    """
    return save({name: value.contiguous() for name, value in tensors.items()}, metadata=_note(tensors, notes))


def save_tensor_file(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> None:
    """Write the bytes of `save_tensors` to a file, without a copy of them in memory."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=_note(tensors, notes))


def load_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of `save_tensors`, in their order, and the notes."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_NOTES])
    tensors = load(data)
    return {name: tensors[name] for name in metadata["order"]}, metadata["notes"]


def load_tensor_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `load_tensors` returns; bytes are read from the file when they are used, and can be given back."""
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()[_NOTES])
    tensors = load_file(path)
    return {name: tensors[name] for name in metadata["order"]}, metadata["notes"]


def to_parquet(frame: pl.DataFrame) -> bytes:
    """Return a frame as the bytes of a zstd-compressed parquet file."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def load_torch(data: bytes | Path) -> Any:
    """Read what `torch.save` wrote. The only place that calls `torch.load`, and never with code execution."""
    return torch.load(io.BytesIO(data) if isinstance(data, bytes) else data, map_location="cpu", weights_only=True)


def _note(tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None) -> dict[str, str]:
    return {_NOTES: json.dumps({"order": list(tensors), "notes": dict(notes or {})}, sort_keys=True)}
