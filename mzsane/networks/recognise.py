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
from mzsane.networks.build import build_network
from mzsane.networks.wrappers import Shape, propose_names, shorten_all

Signature = tuple[tuple[str, Shape], ...]
_COUNTER = "num_batches_tracked"  # files of before torch 0.4.1 have none
_CHANNELS = (1, 3)
_SIZES = (28, 32)
_PATCH = 4  # pixels, of a vit
_CLASSES = 10  # where nothing tells

# Published CNN-s with dropout have more modules in their list: their numbers, and those of the same layers without.
CNN_S_DROPOUT = {"0": "0", "4": "3", "8": "6", "11": "9", "14": "11"}
# Published MLPs have no flattening in their list; the second form is that with dropout.
_MLP_FORMS = ({"0": "1", "2": "3", "4": "5"}, {"0": "1", "3": "3", "6": "5"})


class UnknownWeightsError(ConfigError):
    """What the network of one file is cannot be told; other files of the zoo may be clear."""


@dataclass(frozen=True)
class Recognised:
    """A checkpoint's architecture.

    Attributes:
        network: the architecture and its sizes.
        channels: colour channels of an image.
        classes: number of outputs.
        size: height and width of an image, pixels; a default when the architecture takes any.
        names: our name and the checkpoint's of each tensor, in the network's order.
        left_out: the checkpoint's tensors that are no part of the network.
    """

    network: NetworkConfig
    channels: int
    classes: int
    size: int
    names: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...] = ()


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
        UnknownWeightsError: it fits several parts of the checkpoint.
    """
    shapes = dict(signature)
    found: dict[frozenset[str], tuple[str, Recognised]] = {}
    for prefix, renamed in _rename(shapes):
        if (one := _recognise(shapes, renamed, given, classes)) is not None:
            if not prefix:
                return one
            found.setdefault(frozenset(theirs for _, theirs in one.names), (prefix, one))
    if len(found) > 1:
        names = ", ".join(prefix.rstrip(".") for prefix, _ in found.values())[:160]
        raise UnknownWeightsError(f"several networks: the file has {names}: set key to the one that is wanted")
    for _, one in found.values():
        if given is not None or all(len(shapes[name]) < 2 for name in one.left_out):  # else part of a larger network
            return one
    return None


def _recognise(
    shapes: Mapping[str, Shape], renamed: Mapping[str, str], given: NetworkConfig | None, classes: int | None
) -> Recognised | None:
    """Find the architecture of some of a checkpoint's tensors, by the names that they can be called."""
    ours = {name: shapes[theirs] for name, theirs in renamed.items()}
    for network, channels, outputs, size in _propose(ours, given, classes):
        if network is None:
            continue
        names = _fit(ours, network, channels, outputs, size)
        if names is None:
            continue
        pairs = tuple((name, renamed[short]) for name, short in names)
        taken = {theirs for _, theirs in pairs}
        left_out = tuple(name for name in shapes if name not in taken)
        return Recognised(network, channels, outputs, size, pairs, left_out)
    return None


def explain_misfit(signature: Signature, given: NetworkConfig, classes: int | None = None) -> str:
    """Return the first difference of a checkpoint and the given architecture, under the names that come closest."""
    shapes = dict(signature)
    best: tuple[int, str] | None = None
    for _, renamed in _rename(shapes):
        ours = {name: shapes[theirs] for name, theirs in renamed.items()}
        default = (given, _CHANNELS[0], classes or _CLASSES, _SIZES[0])
        for network, channels, outputs, size in [*_propose(ours, given, classes), default]:
            needed = _describe(network, channels, outputs, size).shapes if network is not None else {}
            agreeing = sum(needed.get(name) == shape for name, shape in ours.items())
            if needed and (best is None or agreeing > best[0]):
                best = agreeing, compare_shapes(ours, needed, "the network") or "it is"
    return best[1] if best else "the network has no tensors"


def compare_shapes(shapes: Mapping[str, Shape], expected: Mapping[str, Shape], whose: str) -> str | None:
    """Return the first difference of named shapes; None when there is none but their order."""
    for name, shape in expected.items():
        if name not in shapes:
            if name.endswith(_COUNTER):
                continue
            return f"it has no {name[:80]}, which {whose} has"
        if shapes[name] != shape:
            return f"{name[:80]} is {_show(shapes[name])}, and {_show(shape)} in {whose}"
    extra = next((name for name in shapes if name not in expected), None)
    return f"it has {extra[:80]}, which {whose} has not" if extra is not None else None


def _show(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"


def _rename(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield a prefix, and our name -> the checkpoint's: without wrappers, and as the published networks have them."""
    for prefix, renamed in propose_names(shapes):
        yield prefix, renamed
        parts = [(theirs, name.split(".")) for name, theirs in renamed.items()]
        if not all(len(part) == 3 and part[0] == "module_list" for _, part in parts):
            continue
        for form in (CNN_S_DROPOUT, *_MLP_FORMS):
            if {part[1] for _, part in parts} <= form.keys():
                yield prefix, {f"module_list.{form[part[1]]}.{part[2]}": theirs for theirs, part in parts}


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
) -> list[tuple[str, str]] | None:
    """Return a network's names and those of a checkpoint, in the network's order, when both and the shapes agree.

    A name that is missing because the network ties it to another one is that of the other.
    """
    described = _describe(network, channels, classes, size)
    names = {name: name for name in shapes}
    if not shapes.keys() <= described.shapes.keys():  # the network's own names may be those with wrappers
        short = shorten_all(described.shapes) or {}
        if not shapes.keys() <= short.keys():
            return None
        names = {short[name]: name for name in shapes}
    for name in described.shapes:
        tied = next((other for other in described.tied.get(name, ()) if other in names), None)
        if name not in names and tied is not None:
            names[name] = names[tied]
        elif name not in names and not name.endswith(_COUNTER):
            return None
    pairs = [(name, names[name]) for name in described.shapes if name in names]
    return pairs if all(described.shapes[name] == shapes[theirs] for name, theirs in pairs) else None


@dataclass(frozen=True)
class _Described:
    """The shapes of a network's tensors, and for tied ones the other names of the same tensor."""

    shapes: dict[str, Shape]
    tied: dict[str, tuple[str, ...]]


@lru_cache(maxsize=256)
def _describe(network: NetworkConfig, channels: int, classes: int, size: int) -> _Described:
    try:
        built = build_network(network, channels, classes, size)
    except ConfigError:
        if ":" in network.architecture:
            raise
        return _Described({}, {})
    except RuntimeError:  # a hostile file's widths need more memory than there is
        return _Described({}, {})
    names: dict[int, list[str]] = {}
    for name, parameter in built.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {name: tuple(group) for group in names.values() if len(group) > 1 for name in group}
    return _Described({name: tuple(value.shape) for name, value in built.state_dict().items()}, tied)


def rename_tensors(tensors: Mapping[str, Tensor], found: Recognised) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under our names and in the network's order."""
    return {name: tensors[theirs] for name, theirs in found.names}
