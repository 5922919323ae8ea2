"""Which checkpoints of a source are read: what is there, what of it is asked for, and what is said when nothing is."""

import math
from collections import Counter
from collections.abc import Sequence

from mzsane.config.reading import MetricFilter, ReadConfig
from mzsane.errors import ConfigError
from mzsane.zoo.readers.files import list_files
from mzsane.zoo.readers.listing import Entry, Listing
from mzsane.zoo.readers.metadata import apply_metadata
from mzsane.zoo.readers.ray_tune import is_ray_tune, list_ray_tune
from mzsane.zoo.readers.sharded import Shards, find_shards
from mzsane.zoo.readers.sources import Source

_REASONS = 3  # most frequent ones that an error names


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
    if not listing.entries:
        seen = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        reasons = f"; {count_reasons([row['reason'] for row in listing.rejected])}" if listing.rejected else ""
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
    kept = Listing(history=listing.history, rejected=list(listing.rejected), without_metrics=listing.without_metrics)
    if config.epochs is not None:
        _reject_missing(config.epochs, listing.entries, kept)
    for entry in listing.entries:
        if entry.epoch is not None and not config.takes(entry.epoch):
            continue
        missing = [part.metric for part in config.where if part.metric not in entry.metrics]
        if missing:
            kept.reject(f"no {missing[0]}: it is filtered by, and not known", entry.model, entry.epoch, entry.file)
        elif all(_passes(part, entry.metrics[part.metric]) for part in config.where):
            kept.entries.append(entry)
    if not kept.entries:
        raise ConfigError(_explain_none(config, listing.entries))
    return kept


def count_reasons(reasons: Sequence[str]) -> str:
    """Return the most frequent kinds of reasons, each with an example."""
    kinds = Counter(reason.partition(":")[0] for reason in reasons)
    examples = {reason.partition(":")[0]: reason for reason in reversed(reasons)}
    return "; ".join(f"{count} times {examples[kind]}" for kind, count in kinds.most_common(_REASONS))


def _reject_missing(epochs: Sequence[int], entries: Sequence[Entry], kept: Listing) -> None:
    found: dict[str, set[int | None]] = {}
    for entry in entries:
        found.setdefault(entry.model, set()).add(entry.epoch)
    for model, there in found.items():
        if None not in there:  # what is in a file whose epoch is not told is seen when it is read
            for epoch in sorted(set(epochs) - there):
                kept.reject("no such epoch: the model has no checkpoint of it", model, epoch)


def _passes(part: MetricFilter, value: float) -> bool:
    """Tell whether a metric is in the range; one that is not a number is in none."""
    above = part.minimum is None or value >= part.minimum
    return above and (part.maximum is None or value <= part.maximum) and not math.isnan(value)


def _explain_none(config: ReadConfig, entries: Sequence[Entry]) -> str:
    epochs = sorted({entry.epoch for entry in entries if entry.epoch is not None})
    told = [f"epochs {epochs[0]} to {epochs[-1]}"] if epochs else ["no epochs in the paths"]
    for name in dict.fromkeys(part.metric for part in config.where):
        values = [entry.metrics[name] for entry in entries if math.isfinite(entry.metrics.get(name, math.nan))]
        told.append(f"{name} from {min(values):.4g} to {max(values):.4g}" if values else f"no {name}")
    return (
        f"no checkpoint of {config.origin} is left: none of its {len(entries)} passes epochs, epoch_range and where; "
        f"it has {', '.join(told)}"
    )
