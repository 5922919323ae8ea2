"""Checkpoint files in any folders: models and epochs are told by the paths."""

import re
from pathlib import PurePosixPath

from mzsane.errors import ConfigError
from mzsane.zoo.readers.listing import Entry, Listing, find_common_folder, is_litter, sort_key

SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors", ".npz", ".pth.tar", ".pt.tar")
_EPOCH = re.compile(r"^(?P<model>.*?)[-_./ ]*(?<![a-z])(?:epoch|ep)[-_=. ]*(?P<epoch>\d{1,9})$", re.IGNORECASE)


def list_files(names: list[str], pattern: str | None) -> Listing:
    """List the checkpoint files among the files of a source.

    Args:
        names: all files.
        pattern: regular expression with the groups `model` and `epoch`; without it, files are taken by their suffix.

    Raises:
        ConfigError: the pattern's epoch is no number.
    """
    named = [name for name in names if not is_litter(name)]
    if pattern is not None:
        entries = [entry for name in named if (entry := _match(name, pattern))]
    else:
        files = [name for name in named if name.lower().endswith(SUFFIXES)]
        common = find_common_folder(files)
        entries = [_guess(name, common) for name in files]
    return Listing(entries=sort_entries(entries))


def sort_entries(entries: list[Entry]) -> list[Entry]:
    """Return checkpoints in the order of models, epochs and files."""
    unknown = -1
    return sorted(
        entries,
        key=lambda entry: (
            sort_key(entry.model),
            unknown if entry.epoch is None else entry.epoch,
            sort_key(entry.file),
        ),
    )


def _match(name: str, pattern: str) -> Entry | None:
    match = re.search(pattern, name)
    if match is None:
        return None
    groups = match.groupdict()
    epoch = groups.get("epoch")
    if epoch is not None and not re.fullmatch(r"\d{1,9}", epoch):
        raise ConfigError(f"pattern {pattern!r} takes {epoch!r} for the epoch of {name}: it must match a number")
    model = groups.get("model") or _without_suffix(name)
    if "model" not in groups and epoch is not None:
        start, end = match.span("epoch")
        model = _without_suffix(name[:start].rstrip("-_=. ") + name[end:]).strip("/") or "model"
    return Entry(model, None if epoch is None else int(epoch), name)


def _guess(name: str, common: str) -> Entry:
    stem = _without_suffix(name.removeprefix(common))
    match = _EPOCH.match(stem)
    if match is None:
        return Entry(stem, None, name)
    return Entry(match["model"] or "model", int(match["epoch"]), name)


def _without_suffix(name: str) -> str:
    suffix = max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return str(PurePosixPath(name[: len(name) - len(suffix)] if suffix else name))
