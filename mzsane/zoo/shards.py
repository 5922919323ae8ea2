"""The ZOO artifact: an index in parquet over shards of weights in safetensors; written and resumed chunk by chunk.

Files: `index.parquet` (a row a checkpoint: model, epoch, where its weights are, metrics, recipe), `history.parquet` (a
row a model and epoch, also of epochs whose weights are not kept), `rejected.parquet` (what could not be used, and
why), `subject.json` (what the models are: network and images) and `weights-NNNNN.safetensors`, in which every tensor is
stacked over the shard's rows. Buffers such as running statistics are among the tensors. All checkpoints of a shard have
the same tensor names and shapes.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import polars as pl
import torch
from torch import Tensor

from mzsane.config import ExecutionConfig
from mzsane.errors import ConfigError, CorruptArtifactError
from mzsane.metrics import MetricSink
from mzsane.parallel import map_processes
from mzsane.store.artifacts import Artifact, ArtifactStore, FileEntry, Work
from mzsane.store.partial import Partial
from mzsane.store.serialisation import load_tensor_file, load_tensors, save_tensor_file, save_tensors, to_parquet
from mzsane.zoo.index import Rows

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
    """A chunk of work for a process, the function that does it, and where its results go."""

    work: Work
    store: ArtifactStore
    name: str
    make: Callable[[Chunk], ShardContent]
    chunk: Chunk

    def run(self) -> bytes:
        """Make the chunk and put it into the store, from this process; return its note, packed (see `_unpack`)."""
        content = self.make(self.chunk)
        note = {
            "rows": content.rows,
            "history": content.history,
            "rejected": content.rejected,
            "metrics": content.metrics,
            "entry": self._store_weights(content),
        }
        text = json.dumps(note).encode()
        self.store.partial(self.work).write(f"{self.name}.json", text)
        return zlib.compress(text)

    def make_weights(self) -> bytes:
        """Make the chunk again and return its weights as the bytes of a file; nothing is stored."""
        return save_tensors(self.make(self.chunk).weights)

    def _store_weights(self, content: ShardContent) -> dict[str, Any] | None:
        """Upload the weights as a shard when they are large enough for one by themselves, or keep them as a part."""
        name = f"weights-{self.name}.safetensors"
        if not content.rows:
            return None
        data = b""
        if 2 * sum(value.nbytes for value in content.weights.values()) <= SHARD_BYTES:
            data = save_tensors(content.weights)
        if data and 2 * len(data) <= SHARD_BYTES:
            self.store.partial(self.work).write(_data_name(self.name), data)
            return None
        entry = self.store.upload(self.work, name, partial(save_tensor_file, tensors=content.weights))
        return entry.model_dump()


class ZooParts:
    """The finished shards of a zoo that is not published yet, and the rows of its tables."""

    def __init__(self, work: Work, store: ArtifactStore) -> None:
        self._work, self._store = work, store
        self._rows, self._history, self._rejected = Rows(), Rows(), Rows(_REJECTED_SCHEMA)
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
        self._rows.add([{**row, "shard": shard, "row": first + i} for i, row in enumerate(note["rows"])])
        self._history.add(note["history"])
        self._rejected.add(note["rejected"])
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
            self._shards.append(self._store.upload(self._work, name, partial(save_tensor_file, tensors=joined)))
            self._open, self._open_bytes = [], 0

    @property
    def index(self) -> pl.DataFrame:
        """The index."""
        return self._rows.frame().with_columns(pl.col(pl.Null).cast(pl.String))  # parquet knows no untyped column

    @property
    def rejected(self) -> pl.DataFrame:
        """What was set aside, and why."""
        return self._rejected.frame()

    @property
    def history(self) -> pl.DataFrame:
        """Metrics of every model and epoch."""
        return self._history.frame()

    def read_shard(self, shard: str) -> dict[str, Tensor]:
        """Return the stacked weights of a finished shard."""
        name = f"{self._work.ref}/{self._shards[int(shard)].path}"
        if path := self._store.files.local_path(name):
            return load_tensor_file(path)[0]
        return load_tensors(self._store.files.read(name))[0]

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
        index = self._rows.frame()
        models = index["model"].n_unique() if len(index) else 0
        return {"models": models, "checkpoints": len(index), "rejected": len(self.rejected)}


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

    Killed at any point, the next call continues after the last finished chunk. A call uses the chunks that are there
    when it begins; two calls at once both make the rest, with the same bits, and the first to publish wins.

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
    notes = {name: note for name in names if (note := _find_note(name, work, store)) is not None}
    missing = [number for number, name in enumerate(names) if name not in notes]
    done = sum(sizes) - sum(sizes[number] for number in missing)
    sink.progress(done, sum(sizes), unit)
    jobs = [ShardJob(work, store, name, make, chunk) for name, chunk in zip(names, chunks, strict=True)]
    for position, packed in map_processes(ShardJob.run, [jobs[number] for number in missing], execution.processes):
        notes[names[missing[position]]] = packed
        metrics = _unpack(packed)["metrics"]
        done += sizes[missing[position]]
        said = "".join(f", {key.replace('_', ' ')} {value:.3f}" for key, value in metrics.items())
        sink.progress(done, sum(sizes), unit + said)
        if metrics:
            sink.metrics({f"zoo/{key}": value for key, value in metrics.items()}, step=done)
    parts = ZooParts(work, store)
    for job in jobs:
        content = _unpack(notes.pop(job.name))
        parts.add(content, _read_data(content, job))
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
    return load_tensor_file(zoo.path(f"weights-{shard}.safetensors"))[0]


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


def _find_note(name: str, work: Work, store: ArtifactStore) -> bytes | None:
    """Return the packed note of a finished chunk whose weights are where they should be."""
    unfinished = store.partial(work)
    try:
        text = unfinished.read(f"{name}.json")
        note: dict[str, Any] = json.loads(text)
        if note["entry"] is None and note["rows"]:
            unfinished.read(_data_name(name))
    except (CorruptArtifactError, FileNotFoundError):
        return None
    entry = note["entry"]
    if entry is not None and store.files.size(f"{work.ref}/{entry['path']}") != entry["bytes"]:
        return None
    return zlib.compress(text)


def _unpack(packed: bytes) -> dict[str, Any]:
    """Return a note. Packed it takes a tenth of the memory of its text, and its rows as dicts ten times that."""
    note: dict[str, Any] = json.loads(zlib.decompress(packed))
    return note


def _read_data(note: Mapping[str, Any], job: ShardJob) -> bytes:
    if note["entry"] is not None or not note["rows"]:
        return b""
    unfinished: Partial = job.store.partial(job.work)
    try:
        return unfinished.read(_data_name(job.name))
    except (CorruptArtifactError, FileNotFoundError):  # damaged since, or cleared by a run that was first
        return job.make_weights()


def _data_name(name: str) -> str:
    return f"{name}.safetensors"


def _alike(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return list(first) == list(second) and all(first[name].shape[1:] == second[name].shape[1:] for name in first)
