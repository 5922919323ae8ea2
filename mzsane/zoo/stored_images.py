"""Image datasets that lie in files: torchvision's, folders of images, npz files.

Suffixes: N images, C channels, H height, W width.
"""

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mzsane.cache import Cache
from mzsane.config import FilesConfig, TorchvisionConfig
from mzsane.errors import ConfigError
from mzsane.zoo.vision import open_torchvision

ImagePart = tuple[Tensor, Tensor]  # images_NCHW in 0..1, labels_N
_IDX_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
_IMAGE_KEYS = ("images", "x", "data")
_LABEL_KEYS = ("labels", "y", "targets")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")


def read_stored(config: TorchvisionConfig | FilesConfig) -> tuple[ImagePart | None, ImagePart | None]:
    """Read the official training and test images of a dataset, resized as the config says.

    Returns:
        (train, test), each (images_NCHW float32 in 0..1, labels_N int64); None for a part that there is not.

    Raises:
        ConfigError: the dataset is neither in the data folder nor to be downloaded, or its files are not as promised.
    """
    if isinstance(config, TorchvisionConfig):
        parts = [_read_torchvision(config.source, train) for train in (True, False)]
        if parts == [None, None]:
            raise ConfigError(
                f"image dataset {config.source} is not in the data folder and could not be downloaded: put a copy in "
                "the folder that MZSANE_DATA names, or connect to the internet"
            )
    else:
        read = _read_npz if config.source == "npz" else _read_folder
        train = read(find_data(config.train), "train")
        if train is None:
            raise ConfigError(f"{config.train} has no training images")
        parts = [train, read(find_data(config.test or config.train), "test")]
        for part in parts:
            _check_labels(config, part)
    first, second = (None if part is None else (_resize(part[0], config.size), part[1]) for part in parts)
    return first, second


def find_data(path: str) -> Path:
    """Return the place of a user's file or folder: absolute, or below the data folder `MZSANE_DATA`.

    Raises:
        ConfigError: there is nothing.
    """
    place = Path(os.environ.get("MZSANE_DATA") or ".") / path
    if not place.exists():
        raise ConfigError(f"no such image file or folder: {place} (relative paths start at MZSANE_DATA)")
    return place


def _cache_folder() -> Path:
    folder = Cache().folder / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
    cache, given = _cache_folder(), os.environ.get("MZSANE_DATA")
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
            return _to_images(np.asarray(dataset.data), name), torch.as_tensor(np.asarray(labels)).long()
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


def _read_npz(path: Path, part: str) -> ImagePart | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image_key = _find_key(arrays.files, _IMAGE_KEYS, part)
            label_key = _find_key(arrays.files, _LABEL_KEYS, part)
            if image_key is None or label_key is None:
                if part == "test":
                    return None
                raise ConfigError(
                    f"{path} has arrays {', '.join(arrays.files)}; images are looked for under images, x, data and "
                    "labels under labels, y, targets, alone or with _train and _test"
                )
            images, labels = arrays[image_key], arrays[label_key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} cannot be read as npz: {error}") from None
    if len(images) != len(labels):
        raise ConfigError(f"{path} has {len(images)} images and {len(labels)} labels")
    return _to_images(images, str(path)), torch.from_numpy(labels.astype(np.int64).reshape(-1))


def _find_key(keys: list[str], names: tuple[str, ...], part: str) -> str | None:
    for name in names:
        for key in (f"{name}_{part}", name):
            # Arrays without a part in their name are what the file is for: training images, or its test images alone.
            if key in keys and (key != name or part == "train" or not any(f"{other}_train" in keys for other in names)):
                return key
    return None


def _read_folder(path: Path, part: str) -> ImagePart | None:
    place = path / part if (path / part).is_dir() else path
    classes = sorted(folder for folder in place.iterdir() if folder.is_dir())
    images, labels = [], []
    for label, folder in enumerate(classes):
        for file in sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES):
            try:
                with Image.open(file) as image:
                    images.append(np.asarray(image if image.mode == "L" else image.convert("RGB")))
            except OSError as error:
                raise ConfigError(f"{file} cannot be read as an image: {error}") from None
            labels.append(label)
    if not images:
        return None
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ConfigError(f"the images in {place} have different shapes, such as {sorted(shapes, key=str)[:2]}")
    return _to_images(np.stack(images), str(place)), torch.tensor(labels)


def _to_images(images: np.ndarray, where: str) -> Tensor:
    """Bring (N, H, W), (N, H, W, C) or (N, C, H, W) to float32 (N, C, H, W) in 0..1."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(f"{where}: images of shape {images.shape[1:]} are not height x width, grey or with 3 colours")
    scaled = torch.from_numpy(np.ascontiguousarray(images)).float()
    return scaled / 255 if images.dtype == np.uint8 else scaled


def _check_labels(config: FilesConfig, part: ImagePart | None) -> None:
    if part is not None and not (int(part[1].min()) >= 0 and int(part[1].max()) < config.classes):
        raise ConfigError(
            f"{config.train} has labels {int(part[1].min())} to {int(part[1].max())}; classes is {config.classes}"
        )


def _resize(images_NCHW: Tensor, size: int | None) -> Tensor:
    if size is None or tuple(images_NCHW.shape[2:]) == (size, size):
        return images_NCHW
    return functional.interpolate(images_NCHW, size=(size, size), mode="bilinear", antialias=True)
