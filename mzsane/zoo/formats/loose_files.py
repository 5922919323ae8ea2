"""Checkpoint files in any folders: models and epochs are told by the paths."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from mzsane.errors import ConfigError
from mzsane.zoo.formats.listing import Candidate, Listing, find_common_folder, is_litter, sort_key
from mzsane.zoo.formats.names import NameParts, find_doubtful, read_name

SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors", ".npz", ".pth.tar", ".pt.tar")


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
        entries = _guess([name for name in named if name.lower().endswith(SUFFIXES)])
    doubt = (
        find_doubtful(sorted({entry.model for entry in entries if entry.epoch is None})) if pattern is None else None
    )
    return Listing(entries=sort_entries(entries), notes=[doubt] if doubt else [])


def sort_entries(entries: list[Candidate]) -> list[Candidate]:
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


def _match(name: str, pattern: str) -> Candidate | None:
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
    return Candidate(model, None if epoch is None else int(epoch), name)


def _guess(files: list[str]) -> list[Candidate]:
    """Return checkpoints with what their paths tell; models are named below the folder that they all lie in."""
    told = {file: read_name(_without_suffix(file)) for file in files}
    common = find_common_folder(parts.model for parts in told.values())
    by_step = _find_stepwise(told.values())
    return [
        Candidate(
            parts.model.removeprefix(common),
            parts.step if parts.model in by_step else parts.epoch,
            file,
            lineage=parts.lineage.removeprefix(common),
        )
        for file, parts in told.items()
    ]


def _find_stepwise(told: Iterable[NameParts]) -> set[str]:
    """Return the models that have several checkpoints an epoch, and tell the step of each."""
    models: dict[str, list[NameParts]] = defaultdict(list)
    for parts in told:
        models[parts.model].append(parts)
    return {
        model
        for model, found in models.items()
        if len({parts.epoch for parts in found}) < len(found) == len({parts.step for parts in found} - {None})
    }


def _without_suffix(name: str) -> str:
    suffix = max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return str(PurePosixPath(name[: len(name) - len(suffix)] if suffix else name))
