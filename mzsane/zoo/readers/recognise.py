"""Which architecture a checkpoint is of, by its signature: the names and shapes of its tensors.

What leaves no trace in the weights, the activation and the share of dropout, cannot be recognised.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from pydantic import ValidationError
from torch import Tensor

from mzsane.config import NetworkConfig
from mzsane.errors import ConfigError
from mzsane.zoo.architectures import build_network

Shape = tuple[int, ...]
Signature = tuple[tuple[str, Shape], ...]
_COUNTER = "num_batches_tracked"  # files of before torch 0.4.1 have none
_CHANNELS = (1, 3)
_SIZES = (28, 32)
_PATCH = 4  # pixels, of a vit

# Published CNN-s with dropout have more modules in their list: their numbers, and those of the same layers without.
CNN_S_DROPOUT = {"0": "0", "4": "3", "8": "6", "11": "9", "14": "11"}
# Published MLPs have no flattening in their list; the second form is that with dropout.
_MLP_FORMS = ({"0": "1", "2": "3", "4": "5"}, {"0": "1", "3": "3", "6": "5"})


@dataclass(frozen=True)
class Recognised:
    """A checkpoint's architecture.

    Attributes:
        network: the architecture and its sizes.
        channels: colour channels of an image.
        classes: number of outputs.
        size: height and width of an image, pixels; a default when the architecture takes any.
        names: our name and the checkpoint's of each tensor, in the network's order.
    """

    network: NetworkConfig
    channels: int
    classes: int
    size: int
    names: tuple[tuple[str, str], ...]


def read_signature(tensors: Mapping[str, Tensor]) -> Signature:
    """Return the names and shapes of tensors."""
    return tuple((name, tuple(value.shape)) for name, value in tensors.items())


@lru_cache(maxsize=64)
def recognise(signature: Signature, given: NetworkConfig | None, classes: int | None = None) -> Recognised | None:
    """Find the architecture with a signature.

    Args:
        signature: names and shapes, in any order.
        given: the architecture that it must be; any of ours if None.
        classes: number of outputs that a factory is called with; guessed from the shapes if None.

    Returns:
        The architecture; None when it is none of ours, or not the given one.

    Raises:
        ConfigError: the given architecture cannot be built.
    """
    shapes = dict(signature)
    for renamed in _rename(shapes):
        ours = {name: shapes[theirs] for name, theirs in renamed.items()}
        for network, channels, outputs, size in _propose(ours, given, classes):
            if network is None:
                continue
            names = _fit(ours, network, channels, outputs, size)
            if names is not None:
                return Recognised(network, channels, outputs, size, tuple((name, renamed[name]) for name in names))
    return None


def _rename(shapes: Mapping[str, Shape]) -> Iterator[dict[str, str]]:
    """Yield our name -> the checkpoint's, as they are and as the published networks have them."""
    yield {name: name for name in shapes}
    parts = [(name, name.split(".")) for name in shapes]
    if not all(len(part) == 3 and part[0] == "module_list" for _, part in parts):
        return
    for form in (CNN_S_DROPOUT, *_MLP_FORMS):
        if {part[1] for _, part in parts} <= form.keys():
            yield {f"module_list.{form[part[1]]}.{part[2]}": name for name, part in parts}


_Proposal = tuple[NetworkConfig | None, int, int, int]


def _propose(shapes: Mapping[str, Shape], given: NetworkConfig | None, classes: int | None) -> Iterator[_Proposal]:
    """Yield the architectures that a signature can be of: network, channels, classes, image size."""
    if given is not None and ":" in given.architecture:
        yield from _propose_factory(shapes, given, classes)
        return

    def find(name: str, dimensions: int) -> Shape | None:
        shape = shapes.get(name)
        return shape if shape is not None and len(shape) == dimensions and min(shape) > 0 else None

    for architecture, size, head in (("cnn-s", 28, 11), ("cnn-l", 32, 16)):
        first, last = find("module_list.0.weight", 4), find(f"module_list.{head}.weight", 2)
        if first and last:
            yield _configure(architecture, given, None), first[1], last[0], size
    if (first := find("module_list.1.weight", 2)) and (last := find("module_list.5.weight", 2)):
        for channels in _CHANNELS:
            size = math.isqrt(first[1] // channels)
            if channels * size**2 == first[1]:
                yield _configure("mlp", given, first[0]), channels, last[0], size
    if (first := find("conv1.weight", 4)) and (last := find("fc.weight", 2)):
        yield _configure("resnet18", given, first[0]), first[1], last[0], _SIZES[-1]
    places = find("pos_embed", 3)
    if places and (first := find("patch_embed.weight", 4)) and (last := find("head.weight", 2)):
        yield _configure("vit", given, first[0]), first[1], last[0], _PATCH * math.isqrt(places[1])


def _configure(architecture: str, given: NetworkConfig | None, width: int | None) -> NetworkConfig | None:
    """Return a network of an architecture; None when it is not the given one, or its width is none."""
    if given is not None:
        return given if given.architecture == architecture else None
    try:
        return NetworkConfig(architecture=architecture, width=width)
    except ValidationError:
        return None


def _propose_factory(shapes: Mapping[str, Shape], given: NetworkConfig, classes: int | None) -> Iterator[_Proposal]:
    """Yield channels and classes that a factory can be called with, the likely ones first."""
    images = [shape[1] for shape in shapes.values() if len(shape) == 4]
    outputs = [shape[0] for shape in reversed(list(shapes.values())) if len(shape) == 2]
    for channels in dict.fromkeys((*images[:1], *_CHANNELS)):
        for count in dict.fromkeys([classes] if classes is not None else outputs):
            yield given, channels, count, _SIZES[0]


def _fit(
    shapes: Mapping[str, Shape], network: NetworkConfig, channels: int, classes: int, size: int
) -> list[str] | None:
    """Return the names of a network's tensors in its order, when they and their shapes are those of a checkpoint."""
    needed = _describe(network, channels, classes, size)
    if not shapes.keys() <= needed.keys():
        return None
    if any(name not in shapes and not name.endswith(_COUNTER) for name in needed):
        return None
    return [name for name in needed if name in shapes] if all(needed[n] == s for n, s in shapes.items()) else None


@lru_cache(maxsize=64)
def _describe(network: NetworkConfig, channels: int, classes: int, size: int) -> dict[str, Shape]:
    try:
        built = build_network(network, channels, classes, size)
    except ConfigError:
        if ":" in network.architecture:
            raise
        return {}
    except RuntimeError:  # a hostile file's widths need more memory than there is
        return {}
    return {name: tuple(value.shape) for name, value in built.state_dict().items()}


def rename_tensors(tensors: Mapping[str, Tensor], found: Recognised) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under our names and in the network's order."""
    return {name: tensors[theirs] for name, theirs in found.names}
