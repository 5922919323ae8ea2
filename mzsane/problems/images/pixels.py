"""Pixels of stored images as numbers from 0, black, to 1, full white, whatever depth they are stored in.

Suffixes: N images, C channels, H height, W width.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mzsane.errors import ConfigError

_DEEP = (2**14, 2**16)  # largest values that only 16 bits hold; 10 to 14 bits in 16 are below
_BYTE = (128, 255)  # largest values of bytes that were stored in a wider type
_ABOVE = 1e-3  # what rounding may put above full white


def read_picture(file: Path) -> tuple[np.ndarray, str]:
    """Read a picture: (H, W) if it is grey, (H, W, 3) if it has colours; with the mode that it is stored in.

    Raises:
        ConfigError: it is damaged, or its mode cannot be brought to grey or red, green and blue without a guess.
    """
    shown = show_path(file)
    try:
        with Image.open(file) as image:
            mode, frames = image.mode, getattr(image, "n_frames", 1)
            # Pillow keeps the upper 8 of 16 bits a colour, which are next to nothing where 12 are used.
            deep = not mode.startswith("I") and any(";16" in str(tile[3]) for tile in image.tile)
            opaque = not image.has_transparency_data or image.convert("RGBA").getchannel("A").getextrema()[0] == 255
            pixels = None if frames > 1 or deep or not opaque else _take_pixels(image)
    except Exception as error:  # a decoder may raise anything at bytes that were not made for it
        raise ConfigError(f"{shown} cannot be read as an image: {type(error).__name__}: {error}") from None
    if frames > 1:
        raise ConfigError(f"{shown} has {frames} frames: store one image in a file")
    if deep:
        raise ConfigError(f"{shown} has 16 bits a colour (mode {mode}): store 8 bits, or 16 bits of grey")
    if not opaque:
        raise ConfigError(f"{shown} has transparent pixels (mode {mode}): lay it on a background and store it without")
    if pixels is None:
        raise ConfigError(f"{shown} has colours of mode {mode}: convert it to grey or RGB")
    return pixels, mode


def _take_pixels(image: Image.Image) -> np.ndarray | None:
    """Return the pixels of an opaque image; None if there is no plain way to grey or RGB."""
    mode = image.mode
    if mode == "1":
        return np.asarray(image)
    if mode in ("L", "LA"):
        return np.asarray(image.convert("L"))
    if mode in ("I", "F") or mode.startswith("I;16"):
        pixels = np.asarray(image)
        return pixels.astype(pixels.dtype.newbyteorder("="))
    if mode in ("P", "PA"):
        pixels = np.asarray(image.convert("RGB"))
        return pixels[..., 0] if (pixels == pixels[..., :1]).all() else pixels
    return np.asarray(image.convert("RGB")) if mode in ("RGB", "RGBA", "YCbCr") else None


def scale_pixels(arrays: Sequence[np.ndarray], names: Sequence[str], white: float | None) -> list[np.ndarray]:
    """Bring pixels to float32 in 0..1; arrays of one type share one scale, so that all parts of a dataset do.

    Args:
        arrays: pixels, of any shape and type.
        names: what each array is called in errors, with its mode or type.
        white: the value of full white; if None it follows from the type, and for types that leave it open from the
            values.

    Raises:
        ConfigError: the values are no pixels, or it is not known which of them is full white.
    """
    types = {array.dtype for array in arrays}
    if white is not None and len(types) > 1:
        raise ConfigError(
            f"images.white is {white:g}, but the images are of several types: {', '.join(map(str, types))}"
        )
    whites = {kind: _find_white(kind, arrays, names, white) for kind in types}
    return [_scale(array, whites[array.dtype]) for array in arrays]


def _scale(array: np.ndarray, white: float) -> np.ndarray:
    scaled = array.astype(np.float32)
    if white != 1:
        scaled /= np.float32(white)
    return scaled.clip(0, 1) if array.dtype.kind == "f" else scaled


def _find_white(kind: np.dtype, arrays: Sequence[np.ndarray], names: Sequence[str], white: float | None) -> float:
    """Return the value of full white of the arrays of one type."""
    if kind.kind not in "buif":
        first = next(name for array, name in zip(arrays, names, strict=True) if array.dtype == kind)
        raise ConfigError(f"{first}: {kind} are no pixels")
    if kind == np.bool_ or (kind == np.uint8 and white is None):
        return 1 if kind == np.bool_ else 255
    found = [
        (float(array.min()), float(array.max()), name)
        for array, name in zip(arrays, names, strict=True)
        if array.dtype == kind
    ]
    for low, high, name in found:
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ConfigError(f"{name} has pixels that are not finite numbers")
    low, lowest = min((low, name) for low, _, name in found)
    high, highest = max((high, name) for _, high, name in found)
    if low < 0:
        raise ConfigError(f"{lowest} has pixels below 0 ({low:g}): store them from 0, black, to full white")
    if white is not None:
        if high > white * (1 + _ABOVE):
            raise ConfigError(f"{highest} has pixels up to {high:g}, above images.white, which is {white:g}")
        return white
    if high <= 1 + (_ABOVE if kind.kind == "f" else 0):
        return 1
    if _DEEP[0] <= high < _DEEP[1]:
        return 65535
    if _BYTE[0] <= high <= _BYTE[1] and kind != np.uint16:
        return 255
    raise ConfigError(
        f"{highest} has pixels up to {high:g}, and nothing says which value is full white: set images.white, to 1, "
        "255, 4095 (12 bits), 65535 or whatever it is"
    )


def show_path(path: Path | str) -> str:
    """Return a path for people: bytes in it that are no text as question marks."""
    return str(path).encode(errors="replace").decode()
