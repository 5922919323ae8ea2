"""Image datasets in npz files: an array of images and one of labels, in one part or in several.

Suffixes: N images.
"""

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mzsane.errors import ConfigError
from mzsane.problems.images.parts import PARTS, StoredPart, join_some
from mzsane.problems.images.pixels import show_path

_IMAGE_KEYS = ("images", "x", "data", "image")
_LABEL_KEYS = ("labels", "y", "targets", "label", "target")
_KEYS = "|".join((*_IMAGE_KEYS, *_LABEL_KEYS))
_NAMED = re.compile(
    rf"(?P<name>{_KEYS})[_.-]?(?P<part>{'|'.join(PARTS)})|(?P<before>{'|'.join(PARTS)})[_.-]?(?P<after>{_KEYS})"
)


def read_npz(place: Path, alone: str) -> dict[str, StoredPart]:
    """Read an npz file; arrays without a part in their name are the part `alone`.

    Raises:
        ConfigError: it is damaged, or its arrays are not images and labels.
    """
    shown = show_path(place)
    try:
        with zipfile.ZipFile(place) as archive:
            _check_memory(sum(member.file_size for member in archive.infolist()))
        with np.load(place, allow_pickle=False) as arrays:
            keys = _find_keys(arrays.files, alone, shown)
            stored = {part: (arrays[images], arrays[labels]) for part, (images, labels) in keys.items()}
    except ConfigError:
        raise
    except Exception as error:  # damaged archives fail in many ways
        raise ConfigError(f"{shown} cannot be read as npz: {error}") from None
    parts = {}
    for name, (images, labels) in stored.items():
        image_key, label_key = keys[name]
        labels_N = _read_labels(labels, f"{shown}: {label_key}")
        if images.ndim == 0 or len(images) != len(labels_N):
            raise ConfigError(f"{shown} has {len(images) if images.ndim else 0} images and {len(labels_N)} labels")
        if not len(images):
            raise ConfigError(f"{shown} has no images in {image_key}")
        parts[name] = StoredPart(place, [images], [f"{shown}: {image_key} ({images.dtype})"], labels_N)
    return parts


def _check_memory(size: int) -> None:
    """Refuse what unpacks to more than the machine's memory, before it is unpacked."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(f"its arrays take {size / 2**30:.0f} GiB, and the machine has {memory / 2**30:.0f}")


def _find_keys(keys: Sequence[str], alone: str, shown: str) -> dict[str, tuple[str, str]]:
    """Return the names of the images' and of the labels' array, by part."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        match = _NAMED.fullmatch(key.lower())
        name = (match["name"] or match["after"]) if match else key.lower()
        if name in _IMAGE_KEYS or name in _LABEL_KEYS:
            part = PARTS[match["part"] or match["before"]] if match else ""
            if found.setdefault(part, {}).setdefault(name, key) != key:
                raise ConfigError(f"{shown} has two arrays of one meaning, {found[part][name]} and {key}")
    pairs = {}
    for part, names in found.items():
        images, labels = ([names[name] for name in wanted if name in names] for wanted in (_IMAGE_KEYS, _LABEL_KEYS))
        if part and not (images and labels):
            there, lacks = (images, "labels") if images else (labels, "images")
            raise ConfigError(f"{shown} has {there[0]}, but no array with the {lacks} of it")
        if images and labels:
            pairs[part] = (images[0], labels[0])
    if "" in pairs:
        own = pairs.pop("")
        if alone in pairs:
            raise ConfigError(f"{shown} has images for {alone} twice, as {own[0]} and as {pairs[alone][0]}")
        pairs[alone] = own
    if not pairs:
        raise ConfigError(
            f"{shown} has arrays {join_some(keys)}; images are looked for under images, x, data and labels under "
            "labels, y, targets, alone or with _train, _val and _test"
        )
    return pairs


def _read_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Return labels of any usual form as numbers of classes, int64, or as names: (N,), (N, 1), one-hot (N, classes)."""
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "buif":
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise ConfigError(f"{where} has shape {labels.shape}, but is not one 1 and else 0 in each row")
        labels = labels.argmax(axis=1)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ConfigError(f"{where} has shape {labels.shape}; labels are one for each image")
    if labels.dtype.kind in "SU":
        try:
            texts = np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels
        except UnicodeDecodeError:
            raise ConfigError(f"{where} has names that are not UTF-8") from None
        return texts.astype(np.int64) if len(texts) and np.char.isdecimal(texts).all() else texts.astype(str)
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        wrong = labels[~np.isfinite(labels) | (labels != np.round(labels))][0]
        raise ConfigError(f"{where} has {wrong:g}, which is no number of a class")
    if labels.dtype.kind not in "buif":
        raise ConfigError(f"{where} has {labels.dtype}, which are no labels")
    return labels.astype(np.int64)
