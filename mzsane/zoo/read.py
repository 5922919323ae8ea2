"""Read the checkpoints that others trained into a ZOO artifact; the artifact is described in `zoo.shards`.

The index has the columns of a trained zoo and `scorable`: whether the whole network, activation included, is known. The
first usable checkpoint settles the architecture of the zoo, unless it is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import torch

from mzsane.config import ExecutionConfig
from mzsane.config.reading import ReadConfig
from mzsane.errors import ConfigError
from mzsane.fetch.download import download, open_archive, plan_download
from mzsane.fetch.sources import Source, open_source
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.recognise import Signature, UnknownWeightsError
from mzsane.networks.shapes import name_code
from mzsane.networks.trial import try_evaluation
from mzsane.problems.images.content import pin_images
from mzsane.problems.images.dataset import load_images
from mzsane.steady import steady
from mzsane.store.artifacts import Artifact, ArtifactStore, FileEntry, Work
from mzsane.store.serialisation import to_parquet
from mzsane.zoo.card import plot_card
from mzsane.zoo.chunks import (
    FILTERED,
    ReadChunk,
    list_networks,
    make_reader,
    read_ahead,
    read_chunk,
)
from mzsane.zoo.contents import CONTENT, check_content, find_content
from mzsane.zoo.formats.listing import GAP, METRICS, Candidate, Listing
from mzsane.zoo.pattern import Pattern, check_images, explain_other, make_pattern
from mzsane.zoo.selection import check_measure, count_reasons, list_checkpoints, select_checkpoints
from mzsane.zoo.shards import SHARD_BYTES, ZooParts, write_shards
from mzsane.zoo.subject import write_subject

VERSION = 2
_SMALL_CHUNK = 256  # checkpoints
_LARGE_CHUNK = 4096
_FIRST_PATTERNS = 16  # different ones that are looked at before the first one is taken
_SHOWN_NAMES = 4
_ENOUGH_CHUNKS = 4  # to keep the cores busy, and to resume from
_INDEX_SCHEMA = {
    "model": pl.String,
    "checkpoint": pl.String,
    "epoch": pl.Int64,
    "architecture": pl.String,
    "dataset": pl.String,
    "split": pl.String,
    "lineage": pl.String,
    **dict.fromkeys((*METRICS, GAP), pl.Float64),
    "diverged": pl.Boolean,
    "recipe": pl.String,
    "sha256": pl.String,
    "source": pl.String,
    "scorable": pl.Boolean,
    "shard": pl.String,
    "row": pl.Int64,
}
_HISTORY_SCHEMA = {"model": pl.String, "epoch": pl.Int64, **dict.fromkeys((*METRICS, GAP), pl.Float64)}


def plan_read(config: ReadConfig) -> Work:
    """Name the work of reading a zoo."""
    inputs = {"archive": plan_download(config.download).ref} if config.download else {}
    return Work("zoo", VERSION, pin_images(config).recipe() | name_code(config.network, config.images), inputs)


@steady
def read_zoo(
    config: ReadConfig,
    store: ArtifactStore,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
    source: Source | None = None,
) -> Artifact:
    """Read a zoo, or open it when it was read before.

    Killed at any point, the next call continues after the last finished chunk.

    Args:
        config: what to read.
        store: where the zoo goes.
        execution: how many processes.
        sink: told of every chunk.
        source: the files, if they are not opened by their address, `config.source`.

    Raises:
        ConfigError: there is no such source, nothing to read, or too much that cannot be used.
        StoreError: the source or the store cannot be reached.
        WorkerError: a worker process was killed.
    """
    config = pin_images(config)
    work = plan_read(config)
    if found := store.find(work.ref):
        if source is None:
            check_content(config, found)
        return found
    if source is not None:
        return _read(config, work, source, store, execution or ExecutionConfig(), sink)
    if config.download is not None:
        opening = open_archive(download(config.download, store, sink), config.max_file_bytes)
    else:
        opening = open_source(config.source or "", config.max_file_bytes)
    with opening as opened:
        return _read(config, work, opened, store, execution or ExecutionConfig(), sink)


def _read(
    config: ReadConfig, work: Work, source: Source, store: ArtifactStore, execution: ExecutionConfig, sink: MetricSink
) -> Artifact:
    if config.network is not None and config.images is not None:
        try_evaluation(config.network, load_images(config.images))
    content = find_content(config)
    listing = select_checkpoints(config, list_checkpoints(config, source))
    check_measure(config, listing)
    chunks = _cut(config, source, listing.entries, _find_pattern(config, source, listing))
    if listing.notes:
        sink.progress(0, len(listing.entries), "; ".join(["checkpoints", *listing.notes]))
    parts = _write(work, chunks, store, execution, sink)
    index = parts.index
    if repeated := _find_repeated(index):
        first, parts = parts, _write(work, [_leave_out(chunk, repeated) for chunk in chunks], store, execution, sink)
        _remove_unused(work, store, first, parts)
        index = parts.index
    found = [{**row, "source": row["source"] and f"{source.address}/{row['source']}"} for row in listing.rejected]
    rejected = pl.concat([pl.DataFrame(found, schema=parts.rejected.schema), parts.rejected])
    filtered = rejected.filter(pl.col("reason").str.starts_with(FILTERED))
    rejected = rejected.filter(~pl.col("reason").str.starts_with(FILTERED))
    try:
        _check_share(config, len(index), rejected["reason"].to_list(), filtered["reason"].to_list())
    except ConfigError:  # another try has other settings, and thus another name
        _remove_unused(work, store, parts)
        store.partial(work).clear()
        raise
    images = load_images(config.images) if config.images is not None else None
    facts = {
        "read from": config.origin,
        "architecture": _tell(index, "architecture"),
        "dataset": _tell(index, "dataset"),
        **({"note": "; ".join(listing.notes)} if listing.notes else {}),
        **_tell_left_out(chunks),
    }
    files: dict[str, bytes | FileEntry] = {
        **parts.files(),
        **write_subject(config),
        **plot_card(parts, facts, images),
        "index.parquet": to_parquet(_shape(index, _INDEX_SCHEMA)),
        "history.parquet": to_parquet(pl.DataFrame(listing.history, schema=_HISTORY_SCHEMA, orient="row")),
        "rejected.parquet": to_parquet(rejected),
    }
    counts: dict[str, Any] = {
        **parts.counts(),
        "rejected": len(rejected),
        "models_without_metrics": listing.without_metrics,
    }
    if listing.notes:
        counts["notes"] = "; ".join(listing.notes)
    if content is not None:
        if find_content(config) != content:
            raise ConfigError(f"the source {config.origin} changed while it was read: run again when it is complete")
        files[CONTENT] = content.model_dump_json().encode()
    return store.publish(work, files, counts)


def _tell(index: pl.DataFrame, column: str) -> str:
    values = index[column].drop_nulls().unique().to_list() if column in index.columns else []
    return ", ".join(values) or "not known"


def _tell_left_out(chunks: Sequence[ReadChunk]) -> dict[str, str]:
    found = chunks[0].pattern.found if chunks else None
    if found is None or not found.left_out:
        return {}
    names = ", ".join(found.left_out[:_SHOWN_NAMES]) + (", ..." if len(found.left_out) > _SHOWN_NAMES else "")
    return {"left out of the files": f"{len(found.left_out)} tensors that are no part of the network: {names}"}


def _find_pattern(config: ReadConfig, source: Source, listing: Listing) -> Pattern:
    """Return what all checkpoints are like: the first two that are alike, so that one odd file decides nothing.

    Raises:
        ConfigError: none is usable, the given architecture cannot be built, or it does not fit the images.
    """
    reader = make_reader(config)
    reasons = [row["reason"] for row in listing.rejected]
    first: dict[tuple[Signature, tuple[torch.dtype, ...]], Pattern] = {}
    for entry, data in read_ahead(source, listing.entries, config.max_file_bytes):
        try:
            networks = list_networks(entry, data(reader), config)
        except ConfigError as error:
            reasons.append(str(error))
            continue
        for network in networks:
            if not config.takes(network.epoch):
                reasons.append("no such epoch: another one is asked for")
                continue
            try:
                pattern = make_pattern(network.tensors, config)
            except UnknownWeightsError as error:
                reasons.append(str(error))
                continue
            if pattern is None:
                reasons.append(explain_other(network.tensors, config))
            elif config.network is not None or (pattern.signature, pattern.dtypes) in first:
                check_images(config, pattern)
                return pattern
            else:
                first[pattern.signature, pattern.dtypes] = pattern
        if len(first) >= _FIRST_PATTERNS:
            break
    if first:  # no two are alike
        pattern = next(iter(first.values()))
        check_images(config, pattern)
        return pattern
    raise ConfigError(f"no checkpoint of {config.origin} can be used: {count_reasons(reasons)}")


def _cut(config: ReadConfig, source: Source, entries: Sequence[Candidate], pattern: Pattern) -> list[ReadChunk]:
    # A chunk of half a shard is stored at once and needs no joining; but few of them would leave cores idle.
    full = min(_LARGE_CHUNK, SHARD_BYTES // 2 // pattern.bytes + 1)
    size = full if len(entries) >= _ENOUGH_CHUNKS * full else min(_SMALL_CHUNK, full)
    return [
        ReadChunk(source, config, tuple(entries[first : first + size]), pattern)
        for first in range(0, len(entries), size)
    ]


def _write(
    work: Work, chunks: Sequence[ReadChunk], store: ArtifactStore, execution: ExecutionConfig, sink: MetricSink
) -> ZooParts:
    sizes = [len(chunk.entries) for chunk in chunks]
    names = [chunk.name for chunk in chunks]
    return write_shards(work, chunks, sizes, read_chunk, store, execution, sink, "checkpoints", names=names)


def _find_repeated(index: pl.DataFrame) -> dict[tuple[str, int], str]:
    """Return the checkpoints that come a second time, by address and place in the file, and what to say of them."""
    repeated: dict[tuple[str, int], str] = {}
    weights: dict[str, str] = {}
    names: dict[str, str] = {}
    if index.is_empty():
        return repeated
    for model, epoch, sha256, source, place in index.select("model", "epoch", "sha256", "source", "place").iter_rows():
        name = f"{model}/{epoch}"
        if name in names:
            repeated[source, place] = f"a second {name}: the first is in {names[name]}"
        elif sha256 in weights:
            repeated[source, place] = f"duplicate: the same weights as {weights[sha256]}"
        else:
            names[name], weights[sha256] = source, name
    return repeated


def _leave_out(chunk: ReadChunk, repeated: Mapping[tuple[str, int], str]) -> ReadChunk:
    files = {chunk.locate(entry) for entry in chunk.entries}
    return replace(chunk, repeated={key: reason for key, reason in repeated.items() if key[0] in files})


def _remove_unused(work: Work, store: ArtifactStore, parts: ZooParts, kept: ZooParts | None = None) -> None:
    """Remove the uploaded shards that no manifest will name."""
    used = _find_shards(kept) if kept else set()
    for path in _find_shards(parts) - used:
        store.files.remove(f"{work.ref}/{path}")


def _find_shards(parts: ZooParts) -> set[str]:
    return {content.path for content in parts.files().values() if isinstance(content, FileEntry)}


def _check_share(config: ReadConfig, usable: int, reasons: Sequence[str], filtered: Sequence[str]) -> None:
    if filtered and not usable:
        raise ConfigError(
            f"no checkpoint of {config.origin} is left: {len(filtered)} were measured and none passes where; the first "
            f"has {filtered[0].removeprefix(FILTERED)}"
        )
    share = len(reasons) / max(1, usable + len(reasons))
    if share > config.max_rejected or not usable:
        raise ConfigError(
            f"{len(reasons)} of {usable + len(reasons)} checkpoints of {config.origin} cannot be used ({share:.0%}, "
            f"max_rejected is {config.max_rejected:.0%}): {count_reasons(reasons)}"
        )


def _shape(frame: pl.DataFrame, schema: Mapping[str, Any]) -> pl.DataFrame:
    """Return the index with the columns and types of a schema; what no row has is null."""
    named = frame.with_columns(pl.format("{}/{}", "model", "epoch").alias("checkpoint"))
    missing = [pl.lit(None).alias(name) for name in schema if name not in named.columns]
    return named.with_columns(missing).select(pl.col(name).cast(kind) for name, kind in schema.items())
