"""Train a zoo: many small networks by one recipe, one single-threaded process a core; resumes at the chunk.

The ZOO artifact holds `index.parquet` (a row a checkpoint), `weights.safetensors` (each parameter stacked over the
rows of the index) and `history.parquet` (a row a model and epoch).
"""

import json
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from mzsane.artifacts import Artifact, ArtifactStore, Partial, Work
from mzsane.config import ExecutionConfig, ZooConfig
from mzsane.errors import CorruptArtifactError
from mzsane.files import load_tensors, save_tensors, to_parquet
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.parallel import map_processes
from mzsane.randomness import make_generator
from mzsane.zoo.architectures import build_network, initialise_network
from mzsane.zoo.fit import fit_epochs, measure
from mzsane.zoo.images import load_images

VERSION = 1


@dataclass(frozen=True)
class _Chunk:
    config: ZooConfig
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"models-{self.first:06d}-{self.last:06d}.safetensors"


def plan_zoo(config: ZooConfig) -> Work:
    """Name the work of training a zoo."""
    return Work("zoo", VERSION, config.recipe(), seed=config.seed)


def train_zoo(
    config: ZooConfig,
    store: ArtifactStore,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> Artifact:
    """Train a population, or open it when it was trained before.

    Killed at any point, the next call continues after the last finished chunk; two calls at once share their chunks.

    Raises:
        WorkerError: a worker process was killed.
    """
    work = plan_zoo(config)
    if found := store.find(work.ref):
        return found
    execution = execution or ExecutionConfig()
    partial = store.partial(work)
    size = execution.chunk_models
    chunks = [_Chunk(config, i, min(i + size, config.models)) for i in range(0, config.models, size)]
    _train_chunks(chunks, partial, execution, sink)
    try:
        weights, rows, history = _gather_chunks(chunks, partial)
    except FileNotFoundError:
        if found := store.find(work.ref):  # another run was first, and has tidied up
            partial.clear()
            return found
        raise
    index = pl.DataFrame(rows)
    return store.publish(
        work,
        {
            "index.parquet": to_parquet(index),
            "weights.safetensors": save_tensors(weights),
            "history.parquet": to_parquet(pl.DataFrame(history)),
        },
        counts={"models": config.models, "checkpoints": len(index)},
    )


def load_weights(zoo: Artifact) -> tuple[pl.DataFrame, dict[str, Tensor]]:
    """Read a zoo's index and its weights, stacked by parameter name over the rows of the index."""
    index = pl.read_parquet(zoo.path("index.parquet"))
    weights, _ = load_tensors(zoo.path("weights.safetensors").read_bytes())
    return index, weights


def _train_chunks(chunks: list[_Chunk], partial: Partial, execution: ExecutionConfig, sink: MetricSink) -> None:
    there = partial.names()
    missing = [chunk for chunk in chunks if chunk.name not in there]
    total = chunks[-1].last
    done = total - sum(chunk.last - chunk.first for chunk in missing)
    sink.progress(done, total, "models")
    for position, (data, accuracy) in map_processes(_train_chunk, missing, execution.processes):
        partial.write(missing[position].name, data)
        done += missing[position].last - missing[position].first
        sink.progress(done, total, f"models, test accuracy {accuracy:.3f}")
        sink.metrics({"zoo/test_accuracy": accuracy}, step=done)


def _train_chunk(chunk: _Chunk) -> tuple[bytes, float]:
    """Train the models of a chunk; return its file and the mean test accuracy after the last epoch."""
    config = chunk.config
    images = load_images(config.images)
    kept: list[Tensor] = []
    history = []
    for model in range(chunk.first, chunk.last):
        generator = make_generator(config.seed, "zoo", model)
        network = build_network(config.network, images.channels, images.classes)
        initialise_network(network, config.initialisation, generator)
        names = [name for name, _ in network.named_parameters()]
        training = fit_epochs(
            network,
            images.splits["train"],
            config.learning_rate,
            config.batch_size,
            generator,
            weight_decay=config.weight_decay,
        )
        for epoch in range(1, config.epochs + 1):
            next(training)
            row: dict[str, float | int] = {"model": model, "epoch": epoch}
            for split, data in images.splits.items():
                row[f"{split}_loss"], row[f"{split}_accuracy"] = measure(network, data)
            history.append(row)
            if epoch > config.epochs - config.keep_epochs:
                kept.extend(parameter.detach().clone().contiguous() for parameter in network.parameters())
    tensors = {name: torch.stack(kept[i :: len(names)]) for i, name in enumerate(names)}
    final = [row["test_accuracy"] for row in history if row["epoch"] == config.epochs]
    return save_tensors(tensors, {"history": history}), sum(final) / len(final)


def _read_chunk(chunk: _Chunk, partial: Partial) -> bytes:
    try:
        return partial.read(chunk.name)
    except CorruptArtifactError:
        return _train_chunk(chunk)[0]


def _gather_chunks(chunks: list[_Chunk], partial: Partial) -> tuple[dict[str, Tensor], list[dict], list[dict]]:
    config = chunks[0].config
    pieces: list[dict[str, Tensor]] = []
    history: list[dict] = []
    for chunk in chunks:
        tensors, notes = load_tensors(_read_chunk(chunk, partial))
        pieces.append(tensors)
        history.extend(notes["history"])
    weights = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    recipe = json.dumps(config.recipe(), sort_keys=True)
    for row in history:
        row["model"] = f"{row['model']:06d}"
        row["generalisation_gap"] = row["train_accuracy"] - row["test_accuracy"]
    kept = [row for row in history if row["epoch"] > config.epochs - config.keep_epochs]
    rows = [
        {**row, "architecture": config.network.architecture, "dataset": config.images.source, "recipe": recipe}
        for row in kept
    ]
    return weights, rows, history
