"""Images of one's own, in folders or npz files: all their parts on one list of classes and one scale of pixels.

Suffixes: N images, C channels, H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mzsane.config import FilesConfig
from mzsane.errors import ConfigError
from mzsane.problems.images.arrays import read_npz
from mzsane.problems.images.folders import read_folder
from mzsane.problems.images.parts import StoredPart, join_some, warn
from mzsane.problems.images.pixels import scale_pixels, show_path

ImagePart = tuple[Tensor, Tensor]  # images_NCHW in 0..1, labels_N


def read_files(config: FilesConfig, train: Path, test: Path | None) -> dict[str, ImagePart]:
    """Read the parts of a dataset that are there: `train`, and `val` and `test` where they are given.

    Args:
        config: says what the files are and how many classes they have.
        train: the place of the training images.
        test: the place of the test images, if they have one of their own.

    Raises:
        ConfigError: the files are not as the config says.
    """
    read = read_npz if config.source == "npz" else read_folder
    parts = read(train, "train")
    if "train" not in parts:
        raise ConfigError(f"{show_path(train)} has no training images, only {' and '.join(parts)}")
    if test is not None and test.resolve() != train.resolve():
        found = read(test, "test")
        if "test" not in found:
            raise ConfigError(f"images.test, {show_path(test)}, has no test images, only {' and '.join(found)}")
        if "test" in parts and parts["test"].place.resolve() != found["test"].place.resolve():
            warn(f"{show_path(train)} has test images of its own, which are left out for those of {show_path(test)}")
        parts["test"] = found["test"]
        if config.source == "folder":
            _check_apart(parts)
    elif test is not None and "test" not in parts:
        raise ConfigError(
            f"images.train and images.test are both {show_path(test)}, which has no part of its own for test: leave "
            "test out, and a test split is cut from the training images"
        )
    labels = _number_classes(config, parts)
    arrays = [array for part in parts.values() for array in part.arrays]
    pixels = iter(scale_pixels(arrays, [name for part in parts.values() for name in part.names], config.white))
    images = {
        name: _stack([next(pixels) for _ in part.arrays], part, whole=config.source == "npz")
        for name, part in parts.items()
    }
    if len({len(images_NCHW[0]) for images_NCHW in images.values()}) > 1:  # grey beside colours
        images = {name: np.broadcast_to(some, (len(some), 3, *some.shape[2:])) for name, some in images.items()}
    if config.size is None and len({some.shape[2:] for some in images.values()}) > 1:
        sizes = ", ".join(f"{name} {some.shape[2]} x {some.shape[3]}" for name, some in images.items())
        raise ConfigError(f"{show_path(train)}: the parts have images of different sizes ({sizes}): set images.size")
    return {
        name: (torch.from_numpy(np.ascontiguousarray(some)), torch.from_numpy(labels[name]))
        for name, some in images.items()
    }


def _check_apart(parts: dict[str, StoredPart]) -> None:
    """Check that no folder of a part is inside that of another."""
    places = {name: part.place.resolve() for name, part in parts.items()}
    for name in ("train", "val"):
        if name in places and (
            places["test"].is_relative_to(places[name]) or places[name].is_relative_to(places["test"])
        ):
            raise ConfigError(
                f"the test images in {show_path(places['test'])} and the {name} images in {show_path(places[name])} "
                "are in one another: give folders that are apart"
            )


def _number_classes(config: FilesConfig, parts: dict[str, StoredPart]) -> dict[str, np.ndarray]:
    """Return the labels of all parts as numbers by one list of classes, that of the training images."""
    named = {part.labels_N.dtype.kind == "U" for part in parts.values()}
    if len(named) > 1:
        raise ConfigError(f"{show_path(config.train)}: some parts have names as labels, others numbers")
    place, own = show_path(parts["train"].place), np.unique(parts["train"].labels_N)
    if named == {False}:
        low, high = int(own[0]), int(own[-1])
        if low < 0 or high >= config.classes:
            hint = "; labels start at 0: subtract 1" if low == 1 and high == config.classes else ""
            raise ConfigError(f"{place} has labels {low} to {high}; classes is {config.classes}{hint}")
    elif len(own) != config.classes:
        raise ConfigError(f"{place} has {len(own)} classes, {join_some(own)}; images.classes is {config.classes}")
    classes = own if named == {True} else np.arange(config.classes)
    for name, part in parts.items():
        found = np.unique(part.labels_N)
        where = f"the {name} images in {show_path(part.place)}"
        if len(unknown := np.setdiff1d(found, classes)):
            raise ConfigError(f"{where} have classes that the training images have not: {join_some(unknown)}")
        if len(missing := np.setdiff1d(classes, found)):
            raise ConfigError(f"{where} have no image of class {join_some(missing)}")
    return {name: np.searchsorted(classes, part.labels_N).astype(np.int64) for name, part in parts.items()}


def _stack(pixels: Sequence[np.ndarray], part: StoredPart, whole: bool) -> np.ndarray:
    """Bring the pixels of a part to (N, C, H, W)."""
    if whole:
        return order_axes(pixels[0], part.names[0])
    if len({image.ndim for image in pixels}) > 1:  # grey beside colours
        pixels = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1) for image in pixels]
    shapes = {image.shape for image in pixels}
    if len(shapes) > 1:
        some = " and ".join(f"{shape[0]} x {shape[1]}" for shape in sorted(shapes)[:2])
        raise ConfigError(f"the images in {show_path(part.place)} have different shapes, such as {some}")
    images = np.stack(pixels)
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def order_axes(images: np.ndarray, where: str) -> np.ndarray:
    """Bring (N, H, W), (N, H, W, C) or (N, C, H, W) to (N, C, H, W)."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(f"{where}: images of shape {images.shape[1:]} are not height x width, grey or with 3 colours")
    return images
