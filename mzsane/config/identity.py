"""Whether two things are the same dataset, or the same architecture: yes, no, or None where nothing tells.

How a dataset is cut, scaled, sized or seeded does not make it another one. How a network is trained does not make it of
another architecture: dropout, and the non-linearity, which is none of its tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mzsane.config.images import AnyImagesConfig, FilesConfig, GlyphsConfig
from mzsane.config.reading import ReadConfig
from mzsane.config.zoo import NetworkConfig
from mzsane.config.zoos import AnyZooConfig

_WIDTHS = {"mlp": 32, "resnet18": 64, "vit": 64}  # where none is given
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset.

    Attributes:
        name: What it is called: its source, or the label that a user gives.
        classes: How many classes it has.
        made: The settings that it is rendered by, if it is.
        content: A digest of its training images.
        place: Where they are.
    """

    name: str | None = None
    classes: int | None = None
    made: tuple[object, ...] | None = None
    content: str | None = None
    place: str | None = None


def describe_images(images: AnyImagesConfig | None, label: str | None = None) -> Dataset:
    """Return what is known of a dataset, by its config and by what its zoo calls it."""
    if images is None:
        return Dataset(_normalise(label))
    if isinstance(images, FilesConfig):
        content = images.content[0] if images.content else None
        return Dataset(
            _normalise(images.label or label), images.classes, None, content, f"{images.source} {images.train}"
        )
    made = None
    if isinstance(images, GlyphsConfig):
        made = (images.characters, images.shift, images.angle, images.noise)
    return Dataset(_normalise(images.source), images.classes, made)


def describe_dataset(zoo: AnyZooConfig) -> Dataset:
    """Return what is known of the dataset that a zoo's models were trained on."""
    return describe_images(zoo.images, zoo.dataset if isinstance(zoo, ReadConfig) else None)


def same_dataset(one: Dataset, other: Dataset) -> bool | None:
    """Tell whether two datasets are the same; None if that is not known."""
    if None not in (one.classes, other.classes) and one.classes != other.classes:
        return False
    if one.name is not None and other.name is not None:
        if one.name != other.name:
            return False
        if one.made is not None and other.made is not None:
            return one.made == other.made
        return True if one.made is None and other.made is None else None
    if one.content is not None and one.content == other.content:
        return True
    # Of one place the content may have changed in between, of two places it may be one dataset in two forms.
    return True if one.place is not None and one.place == other.place and not (one.content and other.content) else None


def same_architecture(one: NetworkConfig | None, other: NetworkConfig | None) -> bool | None:
    """Tell whether two networks are of the same architecture; None if that is not known."""
    if one is None or other is None:
        return None
    if _shape(one) == _shape(other):
        return True
    factory = ":" in one.architecture or ":" in other.architecture  # it may build anything
    return None if factory else False


def same_network(one: NetworkConfig | None, other: NetworkConfig | None) -> bool | None:
    """Tell whether weights of the one network give the same function in the other."""
    same = same_architecture(one, other)
    if not same or one is None or other is None:
        return same
    return one.activation == other.activation


def count_different(things: Sequence[Thing], same: Callable[[Thing, Thing], bool | None]) -> int | None:
    """Count the different things; None if it is not known how many there are."""
    groups: list[list[Thing]] = []
    for thing in things:
        alike = [group for group in groups if any(same(thing, other) for other in group)]
        groups = [group for group in groups if group not in alike] + [[thing, *(one for some in alike for one in some)]]
    for number, group in enumerate(groups):
        for rest in groups[:number]:
            if not any(same(one, other) is False for one in group for other in rest):
                return None
    return len(groups)


def _normalise(name: str | None) -> str | None:
    """Return a name as it is compared: `Fashion_MNIST` is `fashion-mnist`."""
    return None if name is None else "".join(filter(str.isalnum, name.casefold())) or name


def _shape(network: NetworkConfig) -> tuple[str, int | None]:
    return network.architecture, network.width or _WIDTHS.get(network.architecture)
