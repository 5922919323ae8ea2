"""What a source has: its checkpoints with all that is told of them, and what cannot be read."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from mzsane.zoo.formats.tables import parse_number

METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
GAP = "generalisation_gap"
_GAPS = (GAP, "ggap")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
_KINDS = {"acc": "accuracy", "accuracy": "accuracy", "loss": "loss"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint file and what is known of it before it is read.

    Attributes:
        model: name of the model.
        epoch: None when nothing outside the file tells it.
        file: name in the source.
        metrics: by our names.
        recipe: how it was trained, as far as it is known.
        dataset: label of the image dataset.
        split: train, val or test, when something says so.
        lineage: what the model shares with others that are of the same run, such as its best and its last checkpoint;
            models of one lineage are in one split. None: it shares its name with none.
        shards: names of the files that the tensors are in, when `file` is only their index.
    """

    model: str
    epoch: int | None
    file: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    split: str | None = None
    lineage: str | None = None
    shards: tuple[str, ...] = ()


@dataclass
class Listing:
    """All checkpoints of a source, in the order of models and epochs.

    Attributes:
        entries: what can be read.
        rejected: rows of `rejected.parquet`: model, epoch, source (a file's name, or null) and reason.
        history: rows of `history.parquet`, also of epochs without weights.
        without_metrics: number of models of which no metrics are known, though the format has a place for them.
        notes: what people should know about how the source was understood, a sentence each.
    """

    entries: list[Candidate] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    without_metrics: int = 0
    notes: list[str] = field(default_factory=list)

    def reject(self, reason: str, model: str | None = None, epoch: int | None = None, file: str | None = None) -> None:
        """Set something aside."""
        self.rejected.append({"model": model, "epoch": epoch, "source": file, "reason": reason})


def sort_key(name: str) -> tuple[str | int, ...]:
    """Return a key that sorts numbers inside names as numbers."""
    return tuple(int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]{1,18})", name)))


def pick_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics among named values, by our names, with the generalisation gap.

    `train_acc`, `test_accuracy`, `val_loss` and the like are known, `acc_train` too. What is not a number is left out;
    NaN and infinities, those of runs that have diverged, stay what they are.
    """
    metrics = {}
    for name, value in values.items():
        ours = find_metric(name)
        number = parse_number(value) if ours else None
        if ours and number is not None:
            metrics[ours] = number
        if name in _GAPS and (gap := parse_number(value)) is not None:
            metrics[GAP] = gap
    if "train_accuracy" in metrics and "test_accuracy" in metrics:
        metrics[GAP] = metrics["train_accuracy"] - metrics["test_accuracy"]
    return metrics


def is_metric(name: str) -> bool:
    """Tell whether a name is one of a metric's."""
    return find_metric(name) is not None or name in _GAPS


def has_diverged(metrics: Mapping[str, float]) -> bool:
    """Tell whether a loss is not finite."""
    return any(not math.isfinite(value) for name, value in metrics.items() if name.endswith("_loss"))


def find_split(value: Any) -> str | None:
    """Return our name of a split; None when it is none."""
    return _SPLITS.get(str(value).strip().lower())


def is_litter(name: str) -> bool:
    """Tell whether a file is one that systems leave behind, such as `__MACOSX/._model.pt`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def find_common_folder(names: Iterable[str]) -> str:
    """Return the folder that all paths lie in, with `/` at its end; empty when there is none."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    if not folders:
        return ""
    first, last = min(folders), max(folders)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return "".join(f"{part}/" for part in first[:shared])


@lru_cache(maxsize=1024)  # a few names, millions of times
def find_metric(name: str) -> str | None:
    """Return our name of a metric; None when it is none."""
    first, _, second = name.strip().lower().partition("_")
    if first in _KINDS:
        first, second = second, first
    split, kind = _SPLITS.get(first), _KINDS.get(second)
    return f"{split}_{kind}" if split and kind else None
