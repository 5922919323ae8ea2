"""Which checkpoints of a source are read: what is there, what of it is asked for, and what is said when nothing is."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import get_args

from mzsane.config.reading import MetricFilter, ReadConfig
from mzsane.config.zoo import Activation
from mzsane.errors import ConfigError
from mzsane.fetch.sources import ARCHIVES, Source
from mzsane.zoo.formats.listing import Candidate, Listing, is_litter
from mzsane.zoo.formats.loose_files import list_files
from mzsane.zoo.formats.metadata import apply_metadata
from mzsane.zoo.formats.ray_tune import KNOWN, is_ray_tune, list_ray_tune
from mzsane.zoo.formats.sharded import Shards, find_shards

_REASONS = 3  # most frequent ones that an error names
_KINDS = 6  # most frequent kinds of files that a note names
_PACKED = (".zip", ".tar", ".tgz", ".gz", ".xz", ".bz2", ".7z", ".rar", ".zst", ".001")


def list_checkpoints(config: ReadConfig, source: Source) -> Listing:
    """List what a source has, before any filter.

    Raises:
        ConfigError: there is no such source, or no checkpoint in it.
    """
    names, unreadable = _check_names(source.names())
    shards = Shards(names)
    if config.format == "ray-tune" or (config.format == "auto" and config.pattern is None and is_ray_tune(names)):
        listing = list_ray_tune(source, names)
    else:
        shards = find_shards(names, source)
        listing = list_files(shards.names, config.pattern)
    if config.metadata is not None:
        listing = apply_metadata(listing, source, names, config.metadata)
    listing.entries = [shards.complete(entry) for entry in listing.entries]
    for name, reason in sorted({**source.refused(), **unreadable, **shards.rejected}.items()):
        listing.reject(reason, file=name)
    if unread := _describe_unread(names, listing, config.metadata):
        listing.notes.append(unread)
    if not listing.entries:
        seen = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        reasons = f"; {count_reasons([row['reason'] for row in listing.rejected])}" if listing.rejected else ""
        if any(Path(name).suffix.lower() in _PACKED for name in names):
            reasons += f"; of archives, those named {', '.join(ARCHIVES)} are read, each as a source of its own"
        raise ConfigError(
            f"source {config.origin} has no checkpoints of format {config.format}: it has {len(names)} files"
            f"{f', {seen}' if names else ''}{reasons}"
        )
    return listing


def _check_names(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names that can be written down, and the others, readably, with the reason to leave them out."""
    good, bad = [], {}
    for name in names:
        shown = name.encode("utf-8", "backslashreplace").decode()
        if shown == name:
            good.append(name)
        else:
            bad[shown] = "refused: a name that is not UTF-8: rename the file"
    return good, bad


def select_checkpoints(config: ReadConfig, listing: Listing) -> Listing:
    """Keep the checkpoints that are asked for, and reject those asked for that are not there.

    Raises:
        ConfigError: none is left.
    """
    kept = replace(listing, entries=[], rejected=list(listing.rejected))
    if config.epochs is not None:
        _reject_missing(config.epochs, listing.entries, kept)
    for entry in listing.entries:
        if entry.epoch is not None and not config.takes(entry.epoch):
            continue
        if config.measure:  # filtered by what is measured, which is not known yet
            kept.entries.append(entry)
        elif missing := find_missing(config.where, entry.metrics):
            kept.reject(missing, entry.model, entry.epoch, entry.file)
        elif passes_all(config.where, entry.metrics):
            kept.entries.append(entry)
    if not kept.entries:
        raise ConfigError(_explain_none(config, listing.entries))
    return kept


def count_reasons(reasons: Sequence[str]) -> str:
    """Return the most frequent kinds of reasons, each with an example."""
    kinds = Counter(reason.partition(":")[0] for reason in reasons)
    examples = {reason.partition(":")[0]: reason for reason in reversed(reasons)}
    return "; ".join(f"{count} times {examples[kind]}" for kind, count in kinds.most_common(_REASONS))


def _describe_unread(names: Sequence[str], listing: Listing, metadata: str | None) -> str | None:
    """Return how many files of each kind are not read: what is not listed is told."""
    read = {entry.file for entry in listing.entries} | {row["source"] for row in listing.rejected} | {metadata}
    kinds: Counter[str] = Counter()
    for name in names:
        path = PurePosixPath(name)
        if name not in read and path.name not in KNOWN:
            kinds["hidden" if is_litter(name) else path.suffix.lower() or f"named {path.name}"] += 1
    if not kinds:
        return None
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_KINDS))
    return f"files that are not read: {told}" + (", and others" if len(kinds) > _KINDS else "")


def _reject_missing(epochs: Sequence[int], entries: Sequence[Candidate], kept: Listing) -> None:
    found: dict[str, set[int | None]] = {}
    for entry in entries:
        found.setdefault(entry.model, set()).add(entry.epoch)
    for model, there in found.items():
        if None not in there:  # what is in a file whose epoch is not told is seen when it is read
            for epoch in sorted(set(epochs) - there):
                kept.reject("no such epoch: the model has no checkpoint of it", model, epoch)


def check_measure(config: ReadConfig, listing: Listing) -> None:
    """Check that checkpoints can be measured, as far as that is known before any is read.

    Raises:
        ConfigError: nothing says what activation their network has.
    """
    known = config.network is not None or any(
        e.recipe.get("activation") in get_args(Activation) for e in listing.entries
    )
    if config.measure and not known:
        raise ConfigError(
            f"measure needs the network of the checkpoints of {config.origin}, and nothing says its activation, which "
            "leaves no trace in the weights: set network, or leave measure out"
        )


def find_missing(filters: Sequence[MetricFilter], metrics: Mapping[str, float | None]) -> str | None:
    """Return why a checkpoint cannot be filtered, if it lacks a metric."""
    missing = next((part.metric for part in filters if metrics.get(part.metric) is None), None)
    return missing and f"no {missing}: it is filtered by, and not known"


def passes_all(filters: Sequence[MetricFilter], metrics: Mapping[str, float]) -> bool:
    """Tell whether metrics are in all ranges; one that is not a finite number is in none."""
    return all(_passes(part, metrics[part.metric]) for part in filters)


def _passes(part: MetricFilter, value: float) -> bool:
    above = part.minimum is None or value >= part.minimum
    return math.isfinite(value) and above and (part.maximum is None or value <= part.maximum)


def _explain_none(config: ReadConfig, entries: Sequence[Candidate]) -> str:
    epochs = sorted({entry.epoch for entry in entries if entry.epoch is not None})
    told = [f"epochs {epochs[0]} to {epochs[-1]}"] if epochs else ["no epochs in the paths"]
    for name in dict.fromkeys(part.metric for part in config.where):
        values = [entry.metrics[name] for entry in entries if math.isfinite(entry.metrics.get(name, math.nan))]
        told.append(f"{name} from {min(values):.4g} to {max(values):.4g}" if values else f"no {name}")
    return (
        f"no checkpoint of {config.origin} is left: none of its {len(entries)} passes epochs, epoch_range and where; "
        f"it has {', '.join(told)}"
    )
