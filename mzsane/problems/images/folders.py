"""Image datasets in folders: one sub-folder a class, in folders of parts or in one part."""

import os
import unicodedata
from pathlib import Path

import numpy as np

from mzsane.errors import ConfigError
from mzsane.problems.images.parts import PARTS, StoredPart, join_some, warn
from mzsane.problems.images.pixels import read_picture, show_path

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)
_LITTER = ("__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found")


def is_litter(name: str) -> bool:
    """Tell whether a file or folder is hidden, or left behind by a program and no data."""
    return name.startswith(".") or name.lower() in _LITTER


def read_folder(place: Path, alone: str) -> dict[str, StoredPart]:
    """Read a folder of parts, or of classes, which is then the part `alone`.

    Raises:
        ConfigError: it is not a folder of classes, or a picture cannot be read.
    """
    return {name: _read_classes(root) for name, root in _find_roots(place, alone).items()}


def _find_roots(place: Path, alone: str) -> dict[str, Path]:
    """Return the folders whose sub-folders are classes, by part."""
    if not place.is_dir():
        raise ConfigError(f"{show_path(place)} is not a folder")
    folders = _list_folders(place)
    roots: dict[str, Path] = {}
    for folder in folders:
        part = PARTS.get(folder.name.lower())
        if part is None or not _list_folders(folder):  # one without sub-folders is a class of that name
            continue
        if part in roots:
            raise ConfigError(f"{show_path(place)} has two folders for {part}, {roots[part].name} and {folder.name}")
        roots[part] = folder
    if not roots and folders and all(folder.name.lower() in PARTS for folder in folders):
        raise ConfigError(
            f"{show_path(place)} has {' and '.join(folder.name for folder in folders)}, but no folder a class in them"
        )
    others = [folder.name for folder in folders if folder not in roots.values()]
    if roots and others:
        raise ConfigError(
            f"{show_path(place)} has {join_some(others)} beside the parts "
            f"{' and '.join(root.name for root in roots.values())}: put every class into a part"
        )
    return roots or {alone: place}


def list_images(place: Path) -> list[Path]:
    """Return all images in a folder and its sub-folders, in the order of their names."""
    return _list_files(place)[0]


def _list_folders(place: Path) -> list[Path]:
    return sorted(entry for entry in place.iterdir() if entry.is_dir() and not is_litter(entry.name))


def _read_classes(root: Path) -> StoredPart:
    """Read the images of a folder of classes, those in sub-folders of a class too."""
    if loose := _list_files(root, deep=False)[0]:
        raise ConfigError(f"{show_path(loose[0])} is in no folder of a class: put each image into that of its class")
    files, labels, others = [], [], []
    for folder in _list_folders(root):
        own, left_out = _list_files(folder)
        if not own:
            raise ConfigError(f"{show_path(folder)} has no images; those that are read end in {', '.join(SUFFIXES)}")
        files += own
        others += left_out
        labels += [unicodedata.normalize("NFC", folder.name)] * len(own)  # not every system stores an accent alike
    if not files:
        raise ConfigError(f"{show_path(root)} has no folders of classes with images in them")
    if others:
        warn(f"{show_path(root)}: {len(others)} files are no images and are left out, such as {show_path(others[0])}")
    pictures = [read_picture(file) for file in files]
    names = [f"{show_path(file)} (mode {mode})" for file, (_, mode) in zip(files, pictures, strict=True)]
    return StoredPart(root, [pixels for pixels, _ in pictures], names, np.array(labels, dtype=str))


def _list_files(folder: Path, deep: bool = True) -> tuple[list[Path], list[Path]]:
    """Return the images in a folder and its sub-folders, and the other files; links are followed, each place once."""
    images: list[Path] = []
    others: list[Path] = []
    seen: set[str] = set()
    for where, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        inner[:] = [] if not deep or real in seen else [name for name in inner if not is_litter(name)]
        if real in seen:
            continue
        seen.add(real)
        for name in names:
            if not is_litter(name):
                (images if name.lower().endswith(SUFFIXES) else others).append(Path(where) / name)
    return sorted(images), sorted(others)
