"""Image datasets in memory, split and standardised. Rendered here: scikit-learn's digits and glyphs from fonts.

Suffixes: N images, C channels, H height, W width.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from mzsane.config import IMAGE_SIZE, DigitsConfig, FilesConfig, GlyphsConfig, ImagesConfig, TorchvisionConfig
from mzsane.errors import ConfigError
from mzsane.problems.images.files import ImagePart
from mzsane.problems.images.parts import warn
from mzsane.problems.images.stored import read_stored
from mzsane.randomness import derive_seed, make_generator

SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}  # shares of the images
_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
)
_FONT_SIZES = (18, 25)  # smallest and largest, pixels


@dataclass(frozen=True)
class ImageSplit:
    """Images and their classes: `images_NCHW` float32, standardised by the training split; `labels_N` int64."""

    images_NCHW: Tensor
    labels_N: Tensor

    def to(self, device: torch.device) -> "ImageSplit":
        """Return a copy on a device."""
        return ImageSplit(self.images_NCHW.to(device), self.labels_N.to(device))


@dataclass(frozen=True)
class ImageDataset:
    """An image dataset in memory: splits `train`, `val`, `test`, and its number of classes."""

    splits: dict[str, ImageSplit]
    classes: int

    @property
    def channels(self) -> int:
        """Colour channels of an image."""
        return self.splits["train"].images_NCHW.shape[1]

    @property
    def size(self) -> int:
        """Height and width of an image, pixels."""
        return self.splits["train"].images_NCHW.shape[2]


@lru_cache(maxsize=2)  # each worker holds its own: a stage needs one dataset at a time, or two in turn
def load_images(config: ImagesConfig) -> ImageDataset:
    """Load or render an image dataset, split it by its own seed, and standardise it by its training images.

    Parts that a dataset comes in stay what they are. Without a test part one is cut from the training images: one part
    alone is cut 60/20/20. No image is in two splits: copies stay in test, or else in validation.

    Raises:
        ConfigError: the dataset is not there and cannot be downloaded, or its files are not as the config says.
    """
    parts = _part_copies(_read_parts(config), getattr(config, "train", f"images {config.source}"))
    train_NCHW, _ = parts["train"]
    channels = train_NCHW.shape[1]
    if isinstance(config, TorchvisionConfig | FilesConfig) and config.mean and config.deviation:
        if len(config.mean) != channels:
            raise ConfigError(f"images.mean has {len(config.mean)} numbers, the images have {channels} channels")
        mean_C, deviation_C = torch.tensor(config.mean), torch.tensor(config.deviation)
    else:
        mean_C, deviation_C = train_NCHW.mean(dim=(0, 2, 3)), train_NCHW.std(dim=(0, 2, 3))
    splits = {
        name: ImageSplit(((images - mean_C[:, None, None]) / deviation_C[:, None, None]).contiguous(), labels)
        for name, (images, labels) in parts.items()
    }
    return ImageDataset(splits, classes=config.classes)


def _read_parts(config: ImagesConfig) -> dict[str, ImagePart]:
    """Return images in 0..1 and labels by split."""
    if isinstance(config, DigitsConfig):
        return _cut(*_load_digits(), SPLITS, make_generator(config.split_seed, "digits", "split"))
    if isinstance(config, GlyphsConfig):
        return _cut(*_render_glyphs(config), SPLITS, make_generator(config.seed, "glyphs", "split"))
    parts = read_stored(config)
    generator = make_generator(config.split_seed, "images", "split")
    limit, share = config.train_images, config.validation_fraction
    if set(parts) == {"train"}:
        parts = _limit(_cut(*parts["train"], SPLITS, generator), limit)
    elif "test" not in parts:
        shares = {"train": 1 - SPLITS["test"], "test": SPLITS["test"]}
        parts = _limit(parts | _cut(*parts["train"], shares, generator), limit)
    elif "val" not in parts:
        cut = _cut(*parts["train"], {"train": 1 - share, "val": share}, generator, limit)
        parts = cut | _cut(*parts["test"], {"test": 1.0}, generator)
    else:
        parts = _limit({name: _cut(*part, {name: 1.0}, generator)[name] for name, part in parts.items()}, limit)
    if config.test_images is not None:
        parts["test"] = (parts["test"][0][: config.test_images], parts["test"][1][: config.test_images])
    return {name: parts[name] for name in SPLITS}


def _part_copies(parts: dict[str, ImagePart], where: str) -> dict[str, ImagePart]:
    """Leave out training images that are validation or test images too, and validation images that are test images.

    Raises:
        ConfigError: a split has no images, or none but such.
    """
    taken: set[bytes] = set()
    kept: dict[str, ImagePart] = {}
    for name in reversed(SPLITS):
        images_NCHW, labels_N = parts[name]
        digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images_NCHW.numpy()]
        fresh = [number for number, digest in enumerate(digests) if digest not in taken]
        copies = len(digests) - len(fresh)
        if not fresh:
            cause = (
                f"all its {copies} {name} images are among those of another split" if copies else "there are too few"
            )
            raise ConfigError(f"{where}: {cause}: give more images, and none in two parts")
        if copies:
            warn(f"{where}: {copies} {name} images are left out, since they are among those of another split too")
            images_NCHW, labels_N = images_NCHW[fresh], labels_N[fresh]
        taken.update(digests)
        kept[name] = (images_NCHW, labels_N)
    return {name: kept[name] for name in SPLITS}


def _cut(
    images_NCHW: Tensor,
    labels_N: Tensor,
    shares: dict[str, float],
    generator: torch.Generator,
    limit: int | None = None,
) -> dict[str, ImagePart]:
    """Shuffle images and cut them in splits; the last one takes the rest."""
    order = torch.randperm(len(labels_N), generator=generator)[:limit]
    parts, first, total = {}, 0, 0.0
    for name, share in shares.items():
        total += share
        last = len(order) if abs(total - 1) < 1e-9 else int(total * len(order))
        chosen = order[first:last]
        parts[name] = (images_NCHW[chosen], labels_N[chosen])
        first = last
    return parts


def _limit(parts: dict[str, ImagePart], limit: int | None) -> dict[str, ImagePart]:
    """Keep only so many training and validation images together, in the shares of the splits."""
    if limit is None:
        return parts
    train_count, val_count = (len(parts[name][1]) for name in ("train", "val"))
    if limit >= train_count + val_count:
        return parts
    train = round(limit * train_count / (train_count + val_count))
    counts = {"train": train, "val": limit - train, "test": None}
    return {name: (images[: counts[name]], labels[: counts[name]]) for name, (images, labels) in parts.items()}


def _load_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # imported here: slow, and not needed for glyphs

    digits = load_digits()
    small_NCHW = torch.from_numpy(digits.images).float()[:, None] / 16
    pixels_NCHW = functional.interpolate(small_NCHW, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    return pixels_NCHW, torch.from_numpy(digits.target).long()


def _render_glyphs(config: GlyphsConfig) -> tuple[Tensor, Tensor]:
    """Draw each class equally often, in a random font and size, turned, shifted and noisy; values in 0..1."""
    random = np.random.default_rng(derive_seed(config.seed, "glyphs", config.characters))
    labels = np.arange(config.images) % len(config.characters)
    images = np.empty((config.images, 1, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for i, label in enumerate(labels):
        size = int(random.integers(_FONT_SIZES[0], _FONT_SIZES[1] + 1))
        font = _open_font(_FONTS[random.integers(len(_FONTS))], size)
        canvas = Image.new("L", (2 * IMAGE_SIZE, 2 * IMAGE_SIZE))
        ImageDraw.Draw(canvas).text(
            (IMAGE_SIZE, IMAGE_SIZE), config.characters[label], fill=255, font=font, anchor="mm"
        )
        shift_x, shift_y = random.uniform(-config.shift, config.shift, size=2)
        turned = canvas.rotate(
            random.uniform(-config.angle, config.angle),
            resample=Image.Resampling.BILINEAR,
            translate=(shift_x, shift_y),
        )
        half = IMAGE_SIZE // 2
        images[i, 0] = (
            np.asarray(turned.crop((half, half, half + IMAGE_SIZE, half + IMAGE_SIZE)), dtype=np.float32) / 255
        )
    images += config.noise * random.standard_normal(images.shape, dtype=np.float32)
    return torch.from_numpy(images.clip(0, 1)), torch.from_numpy(labels).long()


@lru_cache(maxsize=256)
def _open_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)
