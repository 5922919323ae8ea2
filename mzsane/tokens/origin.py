"""What the models of a TOKENS artifact were trained for, as far as it is known."""

from dataclasses import dataclass

from pydantic import TypeAdapter

from mzsane.artifacts import Artifact, ArtifactRef
from mzsane.config import AnyImagesConfig, AnyZooConfig, NetworkConfig
from mzsane.errors import StoreError


@dataclass(frozen=True)
class Origin:
    """The architecture of a zoo's models and the images that they were trained on."""

    network: NetworkConfig
    images: AnyImagesConfig


def find_origin(tokens: Artifact) -> Origin | None:
    """Find what the models of a TOKENS artifact are; None if the zoo is not there or its config does not tell."""
    if "zoo" not in tokens.manifest.inputs:
        return None
    try:
        zoo = tokens.store.find(ArtifactRef.parse(tokens.manifest.inputs["zoo"]))
    except StoreError:
        return None
    if zoo is None:
        return None
    config = TypeAdapter[AnyZooConfig](AnyZooConfig).validate_python({"name": "zoo"} | zoo.manifest.config)
    if config.network is None or config.images is None:
        return None
    return Origin(config.network, config.images)
