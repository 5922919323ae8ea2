"""Chunks of a listing: what one process reads, checks and stacks at a time."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mzsane.config.reading import ReadConfig
from mzsane.config.zoo import NetworkConfig
from mzsane.errors import ConfigError
from mzsane.fetch.sources import Source
from mzsane.networks.build import build_network, choose_network
from mzsane.networks.train_loop import measure_splits
from mzsane.problems.images.dataset import load_images
from mzsane.zoo.formats.checkpoint import CheckpointReader
from mzsane.zoo.formats.listing import Candidate, has_diverged
from mzsane.zoo.formats.sharded import join_shards, read_files
from mzsane.zoo.formats.states import Choice, State
from mzsane.zoo.pattern import Pattern, fit_pattern
from mzsane.zoo.selection import find_missing, passes_all
from mzsane.zoo.shards import ShardContent, hash_weights

FILTERED = "filtered: "  # begins the reason of what was measured and is not asked for


@dataclass(frozen=True)
class ReadChunk:
    """Some checkpoints of a source.

    Attributes:
        source: where they lie.
        config: what is asked of them.
        entries: the checkpoints.
        pattern: what they must look like.
        repeated: why a checkpoint, by address and place in its file, is to be left out although it can be read.
    """

    source: Source
    config: ReadConfig
    entries: tuple[Candidate, ...]
    pattern: Pattern
    repeated: Mapping[tuple[str, int], str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tells this chunk from all others of the work, and from those of a source that looks another since."""
        text = repr((self.entries, self.pattern.signature, sorted(self.repeated.items())))
        return f"read-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def locate(self, entry: Candidate) -> str:
        """Return the address of a checkpoint's file."""
        return f"{self.source.address}/{entry.file}"


class _Stack:
    """Checkpoints copied one by one into stacked tensors: small buffers kept for long would break up the memory."""

    def __init__(self, pattern: Pattern, capacity: int) -> None:
        self._names = [name for name, _ in pattern.signature]
        self._stacked = [
            torch.empty((capacity, *shape), dtype=dtype)
            for (_, shape), dtype in zip(pattern.signature, pattern.dtypes, strict=True)
        ]
        self._capacity, self._count = capacity, 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Append a checkpoint."""
        if self._count == self._capacity:  # files with several networks
            self._stacked = [torch.cat([value, torch.empty_like(value)]) for value in self._stacked]
            self._capacity *= 2
        for stacked, value in zip(self._stacked, tensors.values(), strict=True):
            stacked[self._count] = value
        self._count += 1

    def take(self) -> dict[str, Tensor]:
        """Return the tensors by name, stacked over the checkpoints; nothing when there are none."""
        if not self._count:
            return {}
        return {name: value[: self._count] for name, value in zip(self._names, self._stacked, strict=True)}


@dataclass(frozen=True)
class Network:
    """One network of a checkpoint file: its place in the file, its name and epoch, and its tensors."""

    place: int
    model: str
    epoch: int
    tensors: dict[str, Tensor]


def read_chunk(chunk: ReadChunk) -> ShardContent:
    """Read the checkpoints of a chunk; what cannot be used is set aside with its reason."""
    content = ShardContent()
    reader = make_reader(chunk.config)
    stack = _Stack(chunk.pattern, len(chunk.entries))
    recipes: dict[int, str] = {}  # the checkpoints of a model share one
    for entry, data in read_ahead(chunk.source, chunk.entries, chunk.config.max_file_bytes):
        try:
            networks = list_networks(entry, data(reader), chunk.config)
        except ConfigError as error:
            content.rejected.append(_reject(chunk, entry, entry.model, entry.epoch, str(error)))
            continue
        for network in networks:
            if not chunk.config.takes(network.epoch):
                continue
            try:
                if reason := chunk.repeated.get((chunk.locate(entry), network.place)):
                    raise ConfigError(reason)
                tensors = fit_pattern(network.tensors, chunk.pattern, chunk.config)
            except ConfigError as error:
                content.rejected.append(_reject(chunk, entry, network.model, network.epoch, str(error)))
            else:
                if id(entry.recipe) not in recipes:
                    recipes[id(entry.recipe)] = json.dumps(_complete(chunk, entry.recipe), sort_keys=True, default=str)
                row = _describe(chunk, entry, network, recipes[id(entry.recipe)], hash_weights(tensors))
                if chunk.config.measure and row["scorable"]:
                    row |= _measure(json.loads(row["recipe"]), tensors, chunk.config)
                if reason := _filter_measured(chunk.config, row):
                    content.rejected.append(_reject(chunk, entry, network.model, network.epoch, reason))
                    continue
                stack.add(tensors)
                content.rows.append(row)
    content.weights = stack.take()
    return content


def make_reader(config: ReadConfig) -> CheckpointReader:
    """Return the reader of a zoo's files."""
    return CheckpointReader(config.max_file_bytes, Choice(config.key, config.lists is not None))


def list_networks(entry: Candidate, states: Sequence[State], config: ReadConfig) -> list[Network]:
    """Name the networks of a file. A list of them are the epochs of a model, or models, as the config says."""
    if len(states) == 1:
        epoch = entry.epoch if entry.epoch is not None else states[0].epoch
        return [Network(0, entry.model, epoch or 0, states[0].tensors)]
    networks = []
    for place, state in enumerate(states):
        if config.lists == "models":
            epoch = entry.epoch if entry.epoch is not None else state.epoch
            networks.append(Network(place, f"{entry.model}-{place}", epoch or 0, state.tensors))
        else:
            networks.append(Network(place, entry.model, place if state.epoch is None else state.epoch, state.tensors))
    return networks


def read_ahead(
    source: Source, entries: Sequence[Candidate], max_bytes: int
) -> Iterator[tuple[Candidate, Callable[[CheckpointReader], list[State]]]]:
    """Yield each checkpoint and how to get its networks, or the error of reading it; slow sources are read ahead."""
    if source.parallel_reads == 1:
        for entry in entries:
            yield entry, partial(_read_entry, entry, partial(read_files, source, entry, max_bytes))
        return
    with ThreadPoolExecutor(source.parallel_reads) as threads:
        waiting: deque[tuple[Candidate, Future[dict[str, bytes]]]] = deque()
        try:
            for entry in entries:
                waiting.append((entry, threads.submit(read_files, source, entry, max_bytes)))
                if len(waiting) >= source.parallel_reads:
                    first, future = waiting.popleft()
                    yield first, partial(_read_entry, first, future.result)
            while waiting:
                first, future = waiting.popleft()
                yield first, partial(_read_entry, first, future.result)
        finally:
            for _, future in waiting:
                future.cancel()


def _read_entry(entry: Candidate, fetch: Callable[[], dict[str, bytes]], reader: CheckpointReader) -> list[State]:
    files = fetch()
    if not entry.shards:
        return reader.read(files[entry.file])
    return join_shards(reader, entry, files)


def _measure(recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], config: ReadConfig) -> dict[str, Any]:
    """Return loss and accuracy of a checkpoint on the splits of the images."""
    assert config.images is not None
    images = load_images(config.images)
    if config.network is None:
        settings = NetworkConfig(**{k: recipe[k] for k in NetworkConfig.model_fields if k in recipe})
    else:
        settings = choose_network(config.network, recipe.get("activation")) or config.network
    network = build_network(settings, images.channels, images.classes, images.size)
    network.load_state_dict(tensors, strict=False)  # names were compared; old files lack batch norm's counters
    metrics = measure_splits(network, images.splits)
    metrics["generalisation_gap"] = metrics["train_accuracy"] - metrics["test_accuracy"]
    return {**metrics, "diverged": has_diverged(metrics)}


def _filter_measured(config: ReadConfig, row: Mapping[str, Any]) -> str | None:
    """Return why a checkpoint is left out after it was measured."""
    if not (config.measure and config.where):
        return None
    if missing := find_missing(config.where, row):
        return missing
    if passes_all(config.where, row):
        return None
    return FILTERED + ", ".join(f"{part.metric} {row[part.metric]:.4g}" for part in config.where)


def _reject(chunk: ReadChunk, entry: Candidate, model: str, epoch: int | None, reason: str) -> dict[str, Any]:
    return {"model": model, "epoch": epoch, "source": chunk.locate(entry), "reason": reason}


def _complete(chunk: ReadChunk, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with what is known of the network."""
    if chunk.pattern.found is None:
        return dict(recipe)
    network = chunk.pattern.found.network.model_dump(mode="json", exclude_none=True)
    if chunk.config.network is None:  # recognised, and the rest of the config is only its defaults
        network = {key: network[key] for key in ("architecture", "width") if key in network}
    told = recipe.get("activation")
    if told is not None:  # what the source says of a model counts, in our word for it if there is one
        own = choose_network(chunk.pattern.found.network, told)
        network["activation"] = told if own is None else own.activation
    return {**recipe, **network}


def _describe(chunk: ReadChunk, entry: Candidate, network: Network, recipe: str, sha256: str) -> dict[str, Any]:
    """Return a checkpoint's row of the index, without what is null."""
    found = chunk.pattern.found
    told = entry.recipe.get("activation")
    known = found is not None and choose_network(found.network, told) is not None
    if chunk.config.network is None:
        known = known and told is not None
    return {
        "model": network.model,
        "epoch": network.epoch,
        "architecture": found.network.architecture if found else None,
        "dataset": entry.dataset or chunk.config.dataset_label,
        "split": entry.split,
        "lineage": entry.lineage or entry.model,
        **entry.metrics,
        "diverged": has_diverged(entry.metrics),
        "recipe": recipe,
        "sha256": sha256,
        "source": chunk.locate(entry),
        "scorable": known,
        "place": network.place,
    }
