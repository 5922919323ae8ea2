"""The ZOO artifact: an index in parquet over shards of weights in safetensors; written and resumed chunk by chunk.

Files: `index.parquet` (a row a checkpoint: model, epoch, where its weights are, metrics, recipe), `history.parquet` (a
row a model and epoch, also of epochs whose weights are not kept), `rejected.parquet` (what could not be used, and
why), `subject.json` (what the models are: network and images) and `weights-NNNNN.safetensors`, in which every tensor is
stacked over the shard's rows. Buffers such as running statistics are among the tensors. All checkpoints of a shard have
the same tensor names and shapes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import polars as pl
import torch
from torch import Tensor

from mzsane.artifacts import Artifact, ArtifactStore, FileEntry, Partial, Work
from mzsane.config import ExecutionConfig
from mzsane.errors import ConfigError, CorruptArtifactError
from mzsane.files import load_tensors, save_tensors, to_parquet
from mzsane.metrics import MetricSink
from mzsane.parallel import map_processes

Chunk = TypeVar("Chunk")
SHARD_BYTES = 32 * 2**20  # small chunks in a row are joined up to this; a chunk of half of it is a shard by itself
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_REJECTED_SCHEMA = {"model": pl.String, "epoch": pl.Int64, "source": pl.String, "reason": pl.String}


@dataclass
class ShardContent:
    """What one chunk of work makes: checkpoints with their rows of the index, and what was set aside.

    Attributes:
        weights: every tensor stacked over `rows`; empty when there are none.
        rows: rows of the index, without `shard` and `row`.
        history: rows of the history.
        rejected: rows of `rejected.parquet`.
        metrics: what to report when the chunk is done.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardJob(Generic[Chunk]):
    """A chunk of work for a process, and the function that does it."""

    make: Callable[[Chunk], ShardContent]
    chunk: Chunk

    def run(self) -> tuple[bytes, dict[str, Any]]:
        """Return the chunk's weights as the bytes of a file, and a note of the rest for `Partial`."""
        content = self.make(self.chunk)
        note = {
            "rows": content.rows,
            "history": content.history,
            "rejected": content.rejected,
            "metrics": content.metrics,
            "entry": None,
        }
        return save_tensors(content.weights) if content.rows else b"", note


class ZooParts:
    """The finished shards of a zoo that is not published yet, and the rows of its tables."""

    def __init__(self, work: Work, store: ArtifactStore) -> None:
        self._work, self._store = work, store
        self._rows: list[dict[str, Any]] = []
        self._index: pl.DataFrame | None = None
        self._history: list[dict[str, Any]] = []
        self._rejected: list[dict[str, Any]] = []
        self._shards: list[FileEntry] = []
        self._open: list[dict[str, Tensor]] = []
        self._open_bytes = 0

    def add(self, note: Mapping[str, Any], data: bytes) -> None:
        """Add a chunk: a shard by itself when its note names an uploaded file, a part of the open shard otherwise."""
        weights = load_tensors(data)[0] if data else {}
        full = self._open_bytes + len(data) > SHARD_BYTES
        if note["entry"] is not None or (self._open and data and (full or not _alike(self._open[0], weights))):
            self.close()
        first = sum(len(next(iter(part.values()))) for part in self._open)
        shard = f"{len(self._shards):05d}"
        self._index = None
        self._rows += [{**row, "shard": shard, "row": first + i} for i, row in enumerate(note["rows"])]
        self._history += note["history"]
        self._rejected += note["rejected"]
        if note["entry"] is not None:
            self._shards.append(FileEntry(**note["entry"]))
        elif data:
            self._open.append(weights)
            self._open_bytes += len(data)

    def close(self) -> None:
        """Write the open shard."""
        if self._open:
            # Taken out one by one, so that the parts and the whole are not both in memory.
            joined = {name: torch.cat([part.pop(name) for part in self._open]) for name in list(self._open[0])}
            name = f"weights-{len(self._shards):05d}.safetensors"
            self._shards.append(self._store.upload(self._work, name, save_tensors(joined)))
            self._open, self._open_bytes = [], 0

    @property
    def index(self) -> pl.DataFrame:
        """The index."""
        if self._index is None:
            frame = pl.DataFrame(self._rows, infer_schema_length=None)
            self._index = frame.with_columns(pl.col(pl.Null).cast(pl.String))  # parquet knows no column without a type
        return self._index

    @property
    def rejected(self) -> pl.DataFrame:
        """What was set aside, and why."""
        return pl.DataFrame(self._rejected, schema=_REJECTED_SCHEMA, orient="row")

    @property
    def history(self) -> pl.DataFrame:
        """Metrics of every model and epoch."""
        return pl.DataFrame(self._history, infer_schema_length=None)

    def read_shard(self, shard: str) -> dict[str, Tensor]:
        """Return the stacked weights of a finished shard."""
        weights, _ = load_tensors(self._store.files.read(f"{self._work.ref}/{self._shards[int(shard)].path}"))
        return weights

    def files(self) -> dict[str, bytes | FileEntry]:
        """Return the files of the artifact."""
        return {
            "index.parquet": to_parquet(self.index),
            "history.parquet": to_parquet(self.history),
            "rejected.parquet": to_parquet(self.rejected),
            **{f"weights-{number:05d}.safetensors": entry for number, entry in enumerate(self._shards)},
        }

    def counts(self) -> dict[str, int]:
        """Return the counts for the manifest."""
        models = {row["model"] for row in self._rows}
        return {"models": len(models), "checkpoints": len(self._rows), "rejected": len(self._rejected)}


def write_shards(
    work: Work,
    chunks: Sequence[Chunk],
    sizes: Sequence[int],
    make: Callable[[Chunk], ShardContent],
    store: ArtifactStore,
    execution: ExecutionConfig,
    sink: MetricSink,
    unit: str,
    names: Sequence[str] | None = None,
) -> ZooParts:
    """Make all chunks of a zoo that are not there yet, a process a core, and join them to shards.

    Killed at any point, the next call continues after the last finished chunk. Two calls
    at once each do all the work that is not done when they begin; the first one to end publishes.

    Args:
        work: the work of making the zoo.
        chunks: picklable descriptions of the chunks.
        sizes: how many units of work each chunk is, for the progress.
        make: a module-level function that does one chunk.
        store: where the zoo goes.
        execution: how many processes.
        sink: told of every chunk.
        unit: what is counted: models, checkpoints.
        names: what tells the chunks of this work apart; their numbers, if those are always the same.

    Raises:
        WorkerError: a worker process was killed.
    """
    names = names or [f"{number:05d}" for number in range(len(chunks))]
    partial = store.partial(work)
    notes = {name: note for name in names if (note := _find_note(name, work, store)) is not None}
    missing = [number for number, name in enumerate(names) if name not in notes]
    done = sum(sizes) - sum(sizes[number] for number in missing)
    sink.progress(done, sum(sizes), unit)
    jobs = [ShardJob(make, chunks[number]) for number in missing]
    for position, (data, note) in map_processes(ShardJob.run, jobs, execution.processes):
        name = names[missing[position]]
        if 2 * len(data) > SHARD_BYTES:
            note["entry"] = store.upload(work, f"weights-{name}.safetensors", data).model_dump()
        elif data:
            partial.write(_data_name(name), data)
        partial.write(f"{name}.json", json.dumps(note).encode())
        notes[name] = note
        done += sizes[missing[position]]
        said = "".join(f", {key.replace('_', ' ')} {value:.3f}" for key, value in note["metrics"].items())
        sink.progress(done, sum(sizes), unit + said)
        if note["metrics"]:
            sink.metrics({f"zoo/{key}": value for key, value in note["metrics"].items()}, step=done)
    parts = ZooParts(work, store)
    for name, chunk in zip(names, chunks, strict=True):
        parts.add(notes[name], _read_data(name, notes[name], ShardJob(make, chunk), partial))
    parts.close()
    return parts


def read_index(zoo: Artifact) -> pl.DataFrame:
    """Read a zoo's index."""
    return pl.read_parquet(zoo.path("index.parquet"))


def iterate_weights(zoo: Artifact) -> Iterator[tuple[pl.DataFrame, dict[str, Tensor]]]:
    """Yield the rows of the index and the stacked weights of each shard, in order."""
    index = read_index(zoo)
    for shard in index["shard"].unique(maintain_order=True):
        yield index.filter(pl.col("shard") == shard).sort("row"), read_shard(zoo, shard)


def read_shard(zoo: Artifact, shard: str) -> dict[str, Tensor]:
    """Return the stacked weights of a shard, by its name in the index."""
    weights, _ = load_tensors(zoo.path(f"weights-{shard}.safetensors").read_bytes())
    return weights


def load_weights(zoo: Artifact) -> tuple[pl.DataFrame, dict[str, Tensor]]:
    """Read a zoo's index and its tensors, stacked by name over the rows of the index.

    Raises:
        ConfigError: the zoo is empty, or its models have different architectures.
    """
    pieces = list(iterate_weights(zoo))
    if not pieces:
        raise ConfigError(f"{zoo.address} has no checkpoints; its rejected.parquet says why")
    if not all(_alike(pieces[0][1], weights) for _, weights in pieces):
        raise ConfigError(f"{zoo.address} has models of different architectures where one is needed")
    index = pl.concat([rows for rows, _ in pieces])
    return index, {name: torch.cat([weights[name] for _, weights in pieces]) for name in pieces[0][1]}


def select_parameters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that are parameters: all but running statistics and counters."""
    return {name: value for name, value in weights.items() if not name.endswith(_BUFFERS)}


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a checkpoint's tensors: names, shapes, types and bytes, in order."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _find_note(name: str, work: Work, store: ArtifactStore) -> dict[str, Any] | None:
    """Return the note of a finished chunk whose weights are where they should be."""
    partial = store.partial(work)
    try:
        note: dict[str, Any] = json.loads(partial.read(f"{name}.json"))
        if note["entry"] is None and note["rows"]:
            partial.read(_data_name(name))
    except (CorruptArtifactError, FileNotFoundError):
        return None
    entry = note["entry"]
    if entry is not None and store.files.size(f"{work.ref}/{entry['path']}") != entry["bytes"]:
        return None
    return note


def _read_data(name: str, note: Mapping[str, Any], job: ShardJob, partial: Partial) -> bytes:
    if note["entry"] is not None or not note["rows"]:
        return b""
    try:
        return partial.read(_data_name(name))
    except (CorruptArtifactError, FileNotFoundError):  # damaged since, or cleared by a run that was first
        return job.run()[0]


def _data_name(name: str) -> str:
    return f"{name}.safetensors"


def _alike(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return list(first) == list(second) and all(first[name].shape[1:] == second[name].shape[1:] for name in first)
