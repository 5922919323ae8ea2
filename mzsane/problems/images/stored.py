"""Image datasets that lie in files, in the parts that they come in: torchvision's, and images of one's own.

Suffixes: N images, C channels, H height, W width.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from mzsane.config import FilesConfig, TorchvisionConfig
from mzsane.errors import ConfigError
from mzsane.problems.images.content import cache_folder, check_content, locate_data
from mzsane.problems.images.files import ImagePart, order_axes, read_files
from mzsane.problems.images.vision import open_torchvision

_IDX_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}


def read_stored(config: TorchvisionConfig | FilesConfig) -> dict[str, ImagePart]:
    """Read the parts that a dataset comes in, resized as the config says.

    Returns:
        `train`, and `val` and `test` if the dataset has such parts of its own, each (images_NCHW float32 in 0..1,
        labels_N int64).

    Raises:
        ConfigError: the dataset is neither in the data folder nor to be downloaded, a part is missing, or its files
            are not as promised.
    """
    if isinstance(config, FilesConfig):
        check_content(config)
        parts = read_files(config, find_data(config.train), find_data(config.test) if config.test else None)
    else:
        parts = _read_official(config)
    return {name: (_resize(images_NCHW, config.size), labels_N) for name, (images_NCHW, labels_N) in parts.items()}


def _read_official(config: TorchvisionConfig) -> dict[str, ImagePart]:
    wanted = ("train", "test") if config.part is None else (config.part,)
    found = {name: _read_torchvision(config.source, name == "train") for name in wanted}
    missing = [name for name, part in found.items() if part is None]
    if len(missing) == 1 and config.part is None:
        (there,) = set(wanted) - set(missing)
        raise ConfigError(
            f"image dataset {config.source} has no {missing[0]} images in the data folder, and they could not be "
            f"downloaded: put them beside its {there} images, or set images.part to {there}, and all splits are cut "
            "from these"
        )
    if missing:
        raise ConfigError(
            f"image dataset {config.source} is not in the data folder and could not be downloaded: put a copy in "
            "the folder that MZSANE_DATA names, or connect to the internet"
        )
    if config.part is not None:
        found = {"train": found[config.part]}
    return {name: part for name, part in found.items() if part is not None}


def find_data(path: str) -> Path:
    """Return the place of a user's file or folder: absolute, or below the data folder `MZSANE_DATA`.

    Raises:
        ConfigError: there is nothing.
    """
    place = locate_data(path)
    if not place.exists():
        raise ConfigError(f"no such image file or folder: {place} (relative paths start at MZSANE_DATA)")
    return place


def _read_torchvision(name: str, train: bool) -> ImagePart | None:
    datasets = open_torchvision().datasets
    split = "train" if train else "test"
    makers: dict[str, Callable[..., Any]] = {
        "mnist": lambda root, download: datasets.MNIST(root, train, download=download),
        "fashion-mnist": lambda root, download: datasets.FashionMNIST(root, train, download=download),
        "kmnist": lambda root, download: datasets.KMNIST(root, train, download=download),
        "usps": lambda root, download: datasets.USPS(root, train, download=download),
        "emnist": lambda root, download: datasets.EMNIST(root, "balanced", train=train, download=download),
        "cifar10": lambda root, download: datasets.CIFAR10(root, train, download=download),
        "cifar100": lambda root, download: datasets.CIFAR100(root, train, download=download),
        "svhn": lambda root, download: datasets.SVHN(root, split, download=download),
        "stl10": lambda root, download: datasets.STL10(root, split, download=download),
    }
    cache, given = cache_folder(), os.environ.get("MZSANE_DATA")
    with FileLock(cache / "lock"):  # two runs must not unpack the same files at once
        if name in _IDX_FOLDERS:
            if given:
                _copy_idx(Path(given) / _IDX_FOLDERS[name] / "raw", cache / _IDX_FOLDERS[name] / "raw")
            found = _read_idx(cache / _IDX_FOLDERS[name] / "raw", train)
            if found is not None:
                return found
        attempts = [(Path(given), False)] if given else []
        for root, download in [*attempts, (cache, False), (cache, True)]:
            try:
                dataset = makers[name](str(root), download)
            except (RuntimeError, OSError):  # not there, damaged, or no network
                continue
            labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
            images_NCHW = order_axes(np.ascontiguousarray(dataset.data), name)
            return torch.from_numpy(images_NCHW).float() / 255, torch.as_tensor(np.asarray(labels)).long()
    return None


def _copy_idx(source: Path, target: Path) -> None:
    """Copy the files of a read-only data folder to where torchvision may unpack them."""
    for file in sorted(source.glob("*-ubyte.gz")):
        if not (target / file.name).exists():
            target.mkdir(parents=True, exist_ok=True)
            fresh = target / f".{file.name}"
            shutil.copyfile(file, fresh)
            fresh.replace(target / file.name)


def _read_idx(folder: Path, train: bool) -> ImagePart | None:
    """Read one part of an MNIST-like dataset whose other part may be missing."""
    torchvision = open_torchvision()
    files = [folder / f"{'train' if train else 't10k'}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    for file in files:
        packed = file.with_name(f"{file.name}.gz")
        if not file.exists() and packed.exists():
            try:
                torchvision.datasets.utils.extract_archive(str(packed), str(folder))
            except (OSError, EOFError) as error:
                file.unlink(missing_ok=True)
                raise ConfigError(f"{packed} is damaged: {error}; remove it") from None
    if not all(file.exists() for file in files):
        return None
    images_NHW = torchvision.datasets.mnist.read_image_file(str(files[0]))
    labels_N = torchvision.datasets.mnist.read_label_file(str(files[1]))
    return images_NHW[:, None].float() / 255, labels_N


def _resize(images_NCHW: Tensor, size: int | None) -> Tensor:
    if size is None or tuple(images_NCHW.shape[2:]) == (size, size):
        return images_NCHW
    return functional.interpolate(images_NCHW, size=(size, size), mode="bilinear", antialias=True)
