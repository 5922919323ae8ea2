"""What samples are made for and scored on."""

from dataclasses import dataclass

from mzsane.config import ImagesConfig, NetworkConfig
from mzsane.store.artifacts import ArtifactRef


@dataclass(frozen=True)
class Target:
    """What samples are made for and scored on.

    Attributes:
        network: the architecture.
        images: the image dataset.
        tokens: the TOKENS artifact of a zoo that was trained on just this, if there is one.
    """

    network: NetworkConfig
    images: ImagesConfig
    tokens: ArtifactRef | None = None
