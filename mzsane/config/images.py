"""Image datasets: two that need no download, torchvision's, folders of images and npz files."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mzsane.config.base import Address, Config, ShownAsAnyOf, is_unset

IMAGE_SIZE = 28  # height and width of digits and glyphs, pixels

# Number of classes of torchvision's datasets.
_CLASSES = {
    "mnist": 10,
    "fashion-mnist": 10,
    "kmnist": 10,
    "usps": 10,
    "emnist": 47,
    "cifar10": 10,
    "cifar100": 100,
    "svhn": 10,
    "stl10": 10,
}


class DigitsConfig(Config):
    """The 1,797 real 8x8 digits that scikit-learn ships, enlarged."""

    source: Literal["digits"] = Field(description="scikit-learn's handwritten digits, 10 classes")
    split_seed: int = Field(0, ge=0, description="seed of the split into train, validation and test images")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return 10


class GlyphsConfig(Config):
    """Characters rendered from the fonts that matplotlib ships, with jitter and noise."""

    source: Literal["glyphs"] = Field(description="characters rendered from matplotlib's own fonts")
    characters: str = Field(
        "ABCDEFGHIJ", min_length=2, max_length=62, description="one class a character, in this order; no repeats"
    )
    images: int = Field(2400, ge=60, le=200_000, description="number of images rendered, all splits together")
    shift: float = Field(2.0, ge=0, le=8, description="largest random shift in each direction, pixels")
    angle: float = Field(15.0, ge=0, le=90, description="largest random rotation, degrees")
    noise: float = Field(0.1, ge=0, le=1, description="deviation of the Gaussian pixel noise, in units of full white")
    seed: int = Field(0, ge=0, description="seed of the rendering and of the split")

    @model_validator(mode="after")
    def _check_characters(self) -> "GlyphsConfig":
        if len(set(self.characters)) != len(self.characters) or not self.characters.isalnum():
            raise ValueError(f"characters must be distinct letters or figures, not {self.characters!r}")
        return self

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.characters)


class _StoredImagesConfig(Config):
    size: int | None = Field(
        None, ge=8, le=512, description="height and width to resize to, pixels; if unset, as stored"
    )
    train_images: int | None = Field(
        None,
        ge=10,
        le=100_000_000,
        description="only this many training images, validation images among them, drawn by the split's seed; all if "
        "unset",
    )
    test_images: int | None = Field(None, ge=10, le=100_000_000, description="only this many test images; all if unset")
    validation_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the training images that becomes the validation split, where the images have no part "
        "of their own for it and one for test",
    )
    mean: tuple[float, ...] | None = Field(
        None, description="subtracted from each channel, in units of full white; the training images' own if unset"
    )
    deviation: tuple[float, ...] | None = Field(
        None, description="each channel is divided by this, in units of full white; the training images' own if unset"
    )
    split_seed: int = Field(0, ge=0, description="seed of the splits")

    @model_validator(mode="after")
    def _check_scale(self) -> "_StoredImagesConfig":
        if (self.mean is None) != (self.deviation is None) or len(self.mean or ()) != len(self.deviation or ()):
            raise ValueError("mean and deviation are given together, one number a channel, or not at all")
        if self.deviation and min(self.deviation) <= 0:
            raise ValueError(f"deviation must be above 0, not {list(self.deviation)}")
        return self


class TorchvisionConfig(_StoredImagesConfig):
    """A dataset of torchvision: a copy in the data folder first (MZSANE_DATA), downloaded if there is a network."""

    source: Literal["mnist", "fashion-mnist", "kmnist", "usps", "emnist", "cifar10", "cifar100", "svhn", "stl10"] = (
        Field(description="name of the dataset; emnist is its balanced split of 47 classes")
    )
    part: Literal["train", "test"] | None = Field(
        None,
        exclude_if=is_unset,
        description="use this official part alone, and cut all splits from it, where the other part is not at hand",
    )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return _CLASSES[self.source]


class FilesConfig(_StoredImagesConfig):
    """Images of one's own: a folder with one sub-folder a class, or npz files with images and labels.

    Either may have its parts (train, test, val) as sub-folders or as arrays of such names.
    """

    source: Literal["folder", "npz"] = Field(
        description="folder: one sub-folder a class; npz: arrays of images and of labels"
    )
    train: Address = Field(
        description="folder or npz file of the training images, relative to the data folder (MZSANE_DATA) or absolute"
    )
    test: Address | None = Field(
        None,
        description="the same of the test images; if unset, those that train has in a part of that name, or else a "
        "test split that is cut from the training images",
    )
    classes: int = Field(ge=2, le=100_000, description="number of classes; labels are 0 to classes - 1, or names")
    white: float | None = Field(
        None,
        gt=0,
        exclude_if=is_unset,
        description="value of a full white pixel, such as 4095; if unset, 255 for 8 bits, 65535 for 16 bits and 1 for "
        "floats, and images where that cannot be are refused",
    )
    label: str | None = Field(
        None,
        min_length=1,
        exclude_if=is_unset,
        description="which dataset this is, such as usps: of one label they are the same, of two labels two. It "
        "decides what is in distribution, and changes nothing that is computed",
    )
    content: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=2,
        exclude_if=is_unset,
        description="digest of what is in train, and in test if that is given: filled in before any work, so that "
        "other images under the same name are another dataset; give it to be sure of them",
    )


AnyImagesConfig = DigitsConfig | GlyphsConfig | TorchvisionConfig | FilesConfig
ImagesConfig = Annotated[AnyImagesConfig, Field(discriminator="source"), ShownAsAnyOf()]
