"""Image datasets that need no download: scikit-learn's digits, and glyphs from the fonts that matplotlib ships.

Suffixes: N images, C channels, H height, W width.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from mzsane.config import IMAGE_SIZE, DigitsConfig, GlyphsConfig, ImagesConfig
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


@dataclass(frozen=True)
class ImageDataset:
    """An image dataset in memory: splits `train`, `val`, `test`, and its number of classes."""

    splits: dict[str, ImageSplit]
    classes: int

    @property
    def channels(self) -> int:
        """Colour channels of an image."""
        return self.splits["train"].images_NCHW.shape[1]


@lru_cache(maxsize=8)
def load_images(config: ImagesConfig) -> ImageDataset:
    """Load or render an image dataset, split it by its own seed, and standardise it by its training images.

    The result is kept in memory for the process, since many models are trained and scored on it.
    """
    if isinstance(config, DigitsConfig):
        pixels_NCHW, labels_N = _load_digits()
        generator = make_generator(config.split_seed, "digits", "split")
    else:
        pixels_NCHW, labels_N = _render_glyphs(config)
        generator = make_generator(config.seed, "glyphs", "split")
    order = torch.randperm(len(labels_N), generator=generator)
    bounds = [0, int(SPLITS["train"] * len(order)), int((SPLITS["train"] + SPLITS["val"]) * len(order)), len(order)]
    parts = {name: order[bounds[i] : bounds[i + 1]] for i, name in enumerate(SPLITS)}
    train_NCHW = pixels_NCHW[parts["train"]]
    scaled_NCHW = (pixels_NCHW - train_NCHW.mean()) / train_NCHW.std()
    splits = {name: ImageSplit(scaled_NCHW[part].contiguous(), labels_N[part]) for name, part in parts.items()}
    return ImageDataset(splits, classes=config.classes)


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
