"""What a plan needs to know of images and networks before there is any data."""

from mzsane.config import AnyImagesConfig, FilesConfig, NetworkConfig, TorchvisionConfig
from mzsane.config.images import IMAGE_SIZE
from mzsane.networks.factories import digest_factory
from mzsane.problems.images.dataset import load_images

_GREY, _COLOUR = 1, 3
_STORED = {  # channels, and height and width in pixels
    "mnist": (_GREY, 28),
    "fashion-mnist": (_GREY, 28),
    "kmnist": (_GREY, 28),
    "usps": (_GREY, 16),
    "emnist": (_GREY, 28),
    "cifar10": (_COLOUR, 32),
    "cifar100": (_COLOUR, 32),
    "svhn": (_COLOUR, 32),
    "stl10": (_COLOUR, 96),
}


def find_shape(images: AnyImagesConfig) -> tuple[int, int, int]:
    """Return channels, classes and size of a dataset; only files of one's own are looked at for it.

    Raises:
        ConfigError: the files are not there, or are not as the config says.
    """
    if isinstance(images, FilesConfig):
        loaded = load_images(images)
        return loaded.channels, loaded.classes, loaded.size
    if isinstance(images, TorchvisionConfig):
        channels, size = _STORED[images.source]
        return channels, images.classes, images.size or size
    return _GREY, images.classes, IMAGE_SIZE


def name_code(network: NetworkConfig | None, images: AnyImagesConfig | None) -> dict[str, str]:
    """Return what stands for a factory's code in the name of work; nothing for an architecture of ours.

    Raises:
        ConfigError: the factory cannot be found or fails.
    """
    if network is None or images is None or not network.is_factory:
        return {}
    return {"factory": digest_factory(network.architecture, *find_shape(images))}
