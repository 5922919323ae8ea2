"""The pattern of a zoo: what all of its checkpoints have in common, and how one is brought to it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mzsane.config.reading import ReadConfig
from mzsane.errors import ConfigError
from mzsane.networks.build import build_network
from mzsane.networks.recognise import (
    Recognised,
    Signature,
    UnknownWeightsError,
    compare_shapes,
    explain_misfit,
    read_signature,
    recognise,
    rename_tensors,
)
from mzsane.networks.wrappers import match_names
from mzsane.problems.images.dataset import load_images
from mzsane.zoo.formats.effective import compute_weights, is_derived


@dataclass(frozen=True)
class Pattern:
    """What all checkpoints of a zoo share: names, shapes and types of tensors, and the architecture if known."""

    signature: Signature
    dtypes: tuple[torch.dtype, ...]
    found: Recognised | None

    @property
    def bytes(self) -> int:
        """Bytes of a checkpoint's tensors."""
        sizes = [math.prod(shape) for _, shape in self.signature]
        return sum(size * kind.itemsize for size, kind in zip(sizes, self.dtypes, strict=True))


def make_pattern(tensors: Mapping[str, Tensor], config: ReadConfig) -> Pattern | None:
    """Return the pattern of the zoo that a checkpoint begins; None when it is not of the given architecture.

    Raises:
        ConfigError: the given architecture cannot be built.
        UnknownWeightsError: which network it is, or what its weights are made of, cannot be told.
    """
    tensors, found = _resolve(tensors, config)
    if found is None and config.network is not None:
        return None
    ours = rename_tensors(tensors, found) if found else tensors
    return Pattern(read_signature(ours), tuple(value.dtype for value in ours.values()), found)


def explain_other(tensors: Mapping[str, Tensor], config: ReadConfig) -> str:
    """Return why a checkpoint is not of the given architecture."""
    assert config.network is not None
    classes = config.images.classes if config.images else None
    difference = explain_misfit(read_signature(tensors), config.network, classes)
    return f"another architecture: not the given network, {config.network.architecture}: {difference}"


def fit_pattern(tensors: dict[str, Tensor], pattern: Pattern, config: ReadConfig) -> dict[str, Tensor]:
    """Return a checkpoint's tensors with the names and in the order of the zoo's.

    Raises:
        ConfigError: it is of another architecture, or what its weights are made of is not known.
    """
    if read_signature(tensors) != pattern.signature:
        tensors, found = _resolve(tensors, config)
        if found is not None:
            tensors = rename_tensors(tensors, found)
        names = [name for name, _ in pattern.signature]
        if tensors.keys() != set(names) and (matched := match_names(tensors, names)):
            tensors = {name: tensors[theirs] for name, theirs in matched.items()}
        if tensors.keys() == set(names):
            tensors = {name: tensors[name] for name in names}
        signature = read_signature(tensors)
        if signature != pattern.signature:
            difference = compare_shapes(dict(signature), dict(pattern.signature), "the first checkpoint")
            raise ConfigError(
                f"another architecture: {difference or 'it has fewer counters than the first checkpoint'}"
            )
    if tuple(value.dtype for value in tensors.values()) != pattern.dtypes:
        raise ConfigError("another architecture: whole numbers where the others have fractions, or the reverse")
    return tensors


def check_images(config: ReadConfig, pattern: Pattern) -> None:
    """Check that the networks take the given images, before any of them is read."""
    found = pattern.found
    if config.measure and found is None:
        raise ConfigError(
            f"measure needs the network of the checkpoints of {config.origin}, which is none that is recognised: set "
            "network, or leave measure out"
        )
    if config.images is None or found is None:
        return
    if found.classes != config.images.classes:
        raise ConfigError(
            f"the checkpoints of {config.origin} have {found.classes} outputs, and images {config.images.source} have "
            f"{config.images.classes} classes: set images to what they were trained on, or leave it out"
        )
    images = load_images(config.images)
    network = build_network(found.network, images.channels, images.classes, images.size)
    needed = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    size = f"{images.channels} channels and {images.size}x{images.size} pixels"
    for name, shape in pattern.signature:
        if needed.get(name) != shape:
            raise ConfigError(
                f"{name} of the checkpoints of {config.origin} is {list(shape)}; images of {size} need "
                f"{list(needed.get(name, ()))}: set images to what the models were trained on, or leave it out"
            )
    try:
        with torch.no_grad():
            network.eval()(images.splits["test"].images_NCHW[:1])
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"{found.network.architecture} does not take images of {size}: {error}") from None


def _resolve(tensors: Mapping[str, Tensor], config: ReadConfig) -> tuple[dict[str, Tensor], Recognised | None]:
    """Recognise a checkpoint as it is, else by the weights that its layers compute with."""
    classes = config.images.classes if config.images else None
    found = recognise(read_signature(tensors), config.network, classes)
    if found is None and is_derived(tensors):
        try:
            tensors = compute_weights(tensors)
        except ConfigError as error:
            raise UnknownWeightsError(str(error)) from None
        found = recognise(read_signature(tensors), config.network, classes)
    return dict(tensors), found
