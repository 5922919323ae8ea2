"""Pixels of every depth and mode are brought to 0..1, or refused by the name of the file and its mode."""

import numpy as np
import pytest
import torch
from PIL import Image

from mzsane.config import FilesConfig
from mzsane.errors import ConfigError
from mzsane.problems.images.dataset import load_images
from tests.problems.images.test_stored import folders as folders

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (24, 9, 9), dtype=np.uint8)
WORDS = RANDOM.integers(0, 65536, (24, 9, 9)).astype(np.uint16)
COLOURS = RANDOM.integers(0, 256, (24, 9, 9, 3), dtype=np.uint8)


def write(root, pictures, suffix="png", **settings):
    for number, picture in enumerate(pictures):
        folder = root / "p" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number:02d}.{suffix}", **settings)


def load(channels, source="folder", train="p", **settings):
    scale = {"mean": (0.0,) * channels, "deviation": (1.0,) * channels}
    dataset = load_images(FilesConfig(source=source, train=train, classes=2, **scale, **settings))
    return np.concatenate([split.images_NCHW.numpy() for split in dataset.splits.values()])


def assert_same(found, expected, tolerance=1e-6):
    """Compare sets of images, (N, C, H, W) and values in 0..1."""
    expected = expected[:, None] if expected.ndim == 3 else expected.transpose(0, 3, 1, 2)
    assert found.shape == expected.shape
    pairs = [torch.from_numpy(images.reshape(len(images), -1).astype(np.float64)) for images in (found, expected)]
    distances = torch.cdist(*pairs, p=float("inf"))
    assert distances.min(dim=0).values.max() < tolerance
    assert distances.min(dim=1).values.max() < tolerance


@pytest.mark.parametrize(
    ("pictures", "suffix", "expected"),
    [
        (BYTES, "png", BYTES / 255),
        (BYTES, "pgm", BYTES / 255),
        (WORDS, "png", WORDS / 65535),
        (WORDS, "tif", WORDS / 65535),
        (WORDS.astype(np.int32), "tif", WORDS / 65535),
        ((BYTES / 255).astype(np.float32), "tif", BYTES / 255),
        (BYTES.astype(np.float32), "tif", BYTES / 255),
        (BYTES > 127, "png", (BYTES > 127).astype(float)),
        (BYTES > 127, "tif", (BYTES > 127).astype(float)),
        (COLOURS, "png", COLOURS / 255),
    ],
    ids=["png8", "pgm", "png16", "tif16", "tif32", "float", "float-255", "png1", "tif1", "colours"],
)
def test_depths_of_pictures(folders, pictures, suffix, expected):
    write(folders, map(Image.fromarray, pictures), suffix)
    assert_same(load(3 if expected.ndim == 4 else 1), expected)


def test_modes_that_mean_grey_or_colours(folders):
    grey, colours = Image.fromarray(BYTES[0]), Image.fromarray(COLOURS[0])
    cases = {
        "palette of greys": (grey.convert("P"), 1),
        "palette": (Image.fromarray(COLOURS[0] // 64 * 64).quantize(64), 3),
        "opaque": (colours.convert("RGBA"), 3),
        "opaque grey": (grey.convert("LA"), 1),
    }
    for name, (picture, channels) in cases.items():
        pictures = [picture.copy() for _ in range(24)]
        for number, copy in enumerate(pictures):  # all different
            copy.putpixel((0, 0), (number,) * len(copy.getbands()) if copy.mode != "P" else number)
            copy.putpixel((1, 0), (7 * number,) * len(copy.getbands()) if copy.mode != "P" else 2 * number)
            if "A" in copy.getbands():
                copy.putalpha(255)
        root = folders / name.replace(" ", "-")
        write(root, pictures)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)  # greys of a palette may be alike
            images = load(channels, train=f"{root.name}/p")
        assert images.shape[1] == channels, name
        assert images.max() > 0.5, name


def test_grey_beside_colours_becomes_colours(folders):
    write(folders, [Image.fromarray(BYTES[i] if i % 3 else COLOURS[i]) for i in range(24)])
    expected = np.stack([np.repeat(BYTES[i][..., None], 3, 2) if i % 3 else COLOURS[i] for i in range(24)])
    assert_same(load(3), expected / 255)


def test_grey_test_images_of_colour_training_images(folders):
    arrays = {"x_train": COLOURS, "y_train": np.arange(24) % 2, "x_test": BYTES, "y_test": np.arange(24) % 2}
    np.savez(folders / "a.npz", **arrays)
    assert load(3, "npz", "a.npz").shape == (48, 3, 9, 9)


def transparent(picture):
    picture.putalpha(128)
    return picture


@pytest.mark.parametrize(
    ("picture", "suffix", "message"),
    [
        (Image.fromarray(COLOURS[0]).convert("CMYK"), "tif", "colours of mode CMYK"),
        (Image.fromarray(COLOURS[0]).convert("CMYK"), "jpg", "colours of mode CMYK"),
        (Image.fromarray(COLOURS[0]).convert("LAB"), "tif", "colours of mode LAB"),
        (transparent(Image.fromarray(COLOURS[0])), "png", "transparent pixels .mode RGBA"),
        (transparent(Image.fromarray(BYTES[0])), "png", "transparent pixels .mode LA"),
        (Image.fromarray(WORDS[0] // 16), "png", r"mode I;16.* has pixels up to 4\d\d\d, .* set images\.white"),
        (Image.fromarray(WORDS[0] // 16), "tif", r"mode I;16.* set images\.white"),
        (Image.fromarray(WORDS[0].astype(np.float32) / 10), "tif", r"mode F.* has pixels up to"),
        (Image.fromarray(BYTES[0].astype(np.float32) - 9), "tif", r"mode F.* has pixels below 0"),
        (Image.fromarray(np.full((9, 9), np.nan, np.float32)), "tif", r"mode F.* not finite"),
    ],
)
def test_what_would_be_a_guess_is_refused_by_name(folders, picture, suffix, message):
    write(folders, [picture] * 24, suffix)
    with pytest.raises(ConfigError, match=rf"\d\d\.{suffix}.*{message}"):
        load(3)


def test_transparent_colours_and_frames_are_refused(folders):
    write(folders, [Image.fromarray(np.full((9, 9), 5, np.uint8))] * 24, transparency=5)
    with pytest.raises(ConfigError, match="transparent pixels"):
        load(1)
    moving = folders / "moving"
    write(moving, [Image.fromarray(BYTES[0])] * 24, "gif", save_all=True, append_images=[Image.fromarray(BYTES[1])])
    with pytest.raises(ConfigError, match="has 2 frames"):
        load(1, train="moving/p")


def test_white_says_what_the_depth_leaves_open(folders):
    write(folders, map(Image.fromarray, WORDS // 16))
    assert_same(load(1, white=4095), (WORDS // 16) / 4095)
    with pytest.raises(ConfigError, match=r"up to 40\d\d, above images\.white, which is 1023"):
        load(1, white=1023)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (BYTES.astype(np.int64), BYTES / 255),
        (BYTES.astype(np.float64), BYTES / 255),
        ((BYTES / 255).astype(np.float16), BYTES / 255),
        (WORDS, WORDS / 65535),
        (WORDS.astype(np.int32), WORDS / 65535),
        (BYTES > 127, (BYTES > 127).astype(float)),
        ((BYTES > 127).astype(np.int32), (BYTES > 127).astype(float)),
        (BYTES.astype(">i4"), BYTES / 255),
        (BYTES // 64, BYTES // 64 / 255),  # dark, but of 8 bits
    ],
    ids=lambda value: str(value.dtype),
)
def test_types_of_arrays(folders, stored, expected):
    np.savez(folders / "a.npz", images=stored, labels=np.arange(24) % 2)
    found = load(1, "npz", "a.npz")
    assert_same(found, expected, 1e-3 if stored.dtype == np.float16 else 1e-6)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (BYTES.astype(np.float32) / 127.5 - 1, "pixels below 0"),
        (BYTES.astype(np.int16) - 128, "pixels below 0"),
        (BYTES.astype(np.float32) / 16, "nothing says which value is full white"),
        (BYTES.astype(np.int64) // 16, "up to 15, and nothing says"),
        (WORDS // 16, "nothing says which value is full white"),
        (WORDS.astype(np.int64) * 2**20, "nothing says which value is full white"),
        (np.where(BYTES > 250, np.inf, 0.5), "not finite"),
        (BYTES.astype(complex), "complex128 are no pixels"),
        (BYTES.astype(str), "are no pixels"),
    ],
)
def test_arrays_of_unknown_scale_are_refused(folders, stored, message):
    np.savez(folders / "a.npz", images=stored, labels=np.arange(24) % 2)
    with pytest.raises(ConfigError, match=rf"a\.npz: images .*{message}"):
        load(1, "npz", "a.npz")


def test_parts_share_one_scale(folders):
    """Test images that happen to be dark are not made bright."""
    labels = np.arange(24) % 2
    dark = BYTES.astype(np.float64) / 255 / 4 * 255  # up to 64
    np.savez(folders / "a.npz", x_train=BYTES.astype(np.float64), y_train=labels, x_test=dark, y_test=labels)
    config = FilesConfig(source="npz", train="a.npz", classes=2, mean=(0.0,), deviation=(1.0,))
    assert load_images(config).splits["test"].images_NCHW.max() < 0.26


def test_damaged_pictures_are_named(folders):
    write(folders, map(Image.fromarray, BYTES))
    file = folders / "p" / "a" / "00.png"
    for damage in (b"", b"no image", file.read_bytes()[:40], file.read_bytes()[:-30], b"GIF89a" + bytes(20)):
        file.write_bytes(damage)
        with pytest.raises(ConfigError, match=r"00\.png cannot be read as an image"):
            load(1)
