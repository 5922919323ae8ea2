"""Image datasets."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mzsane.config.base import Config

IMAGE_SIZE = 28  # height and width of every image dataset, pixels


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


def _show_as_any_of(schema: dict[str, Any]) -> None:
    """Describe the union in the way that Prefect's form can show; what is accepted stays the same."""
    schema["anyOf"] = schema.pop("oneOf")
    del schema["discriminator"]


ImagesConfig = Annotated[DigitsConfig | GlyphsConfig, Field(discriminator="source", json_schema_extra=_show_as_any_of)]
