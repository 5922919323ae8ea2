"""The parts of an image dataset as they are stored, and what they have in common whatever stores them.

Suffixes: N images.
"""

import multiprocessing
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mzsane.problems.images.pixels import show_path

PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)


@dataclass(frozen=True)
class StoredPart:
    """A part as it is stored.

    Attributes:
        place: the folder or the file that it lies in.
        arrays: pixels, one array of all images or one an image.
        names: what each array is called in errors.
        labels_N: numbers of classes, int64, or their names.
    """

    place: Path
    arrays: list[np.ndarray]
    names: list[str]
    labels_N: np.ndarray


def join_some(names: Sequence[object] | np.ndarray) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(show_path(str(name)) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def warn(text: str) -> None:
    """Warn once: of what every worker sees, only the process that started them speaks."""
    if multiprocessing.parent_process() is None:
        warnings.warn(text, stacklevel=2)
