"""What a zoo's models are and what they were trained on, as a file of the ZOO artifact.

The config of a zoo says how it was made, in the words of its origin and of the version that made it; it is not read
again. The subject says the same of every zoo: the network and the dataset, null where they are not known.
"""

import json
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from mzsane.config import AnyImagesConfig, AnyZooConfig, NetworkConfig
from mzsane.store.artifacts import Artifact

FILE = "subject.json"
_IMAGES = TypeAdapter[AnyImagesConfig](AnyImagesConfig)


def write_subject(config: AnyZooConfig) -> Mapping[str, bytes]:
    """Return the file that says what the models of a zoo are."""
    network = None if config.network is None else config.network.model_dump(mode="json")
    images = None if config.images is None else config.images.model_dump(mode="json")
    return {FILE: json.dumps({"network": network, "images": images}, sort_keys=True).encode()}


def read_subject(zoo: Artifact) -> tuple[NetworkConfig | None, AnyImagesConfig | None]:
    """Return the network and the images of a zoo's models; None for what is not known.

    A zoo of before there was such a file, and words that this version no longer knows, tell nothing.
    """
    if FILE not in zoo.manifest.files:
        return None, None
    subject = json.loads(zoo.read(FILE))
    try:
        network = None if subject["network"] is None else NetworkConfig.model_validate(subject["network"])
        images = None if subject["images"] is None else _IMAGES.validate_python(subject["images"])
    except ValidationError:
        return None, None
    return network, images
