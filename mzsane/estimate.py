"""What settings need at least, by arithmetic, against what the machine has: before any work, and in the plan.

All figures are lower bounds, so that nothing is refused that would work. What is not known (factories, zoos that are
still to be read) is left out.
"""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from mzsane.config import AblationConfig, AnyImagesConfig, AnyZooConfig, BackboneConfig, NetworkConfig, ZooConfig
from mzsane.config.images import DigitsConfig, GlyphsConfig, TorchvisionConfig
from mzsane.config.zoos import SparseConfig
from mzsane.errors import ConfigError
from mzsane.networks.build import build_network

_FLOAT = 4  # bytes
_TRAINED = 4 * _FLOAT  # a weight in training: itself, its gradient, and two moments
_PROCESS = 100 * 2**20  # bytes of a worker process with torch in it, at least
_COLOUR = ("cifar10", "cifar100", "svhn", "stl10")
_STORED_SIZE = {"usps": 16, "cifar10": 32, "cifar100": 32, "svhn": 32, "stl10": 96}
_IMAGES = {
    **dict.fromkeys(("mnist", "fashion-mnist", "kmnist"), 70_000),
    **dict.fromkeys(("cifar10", "cifar100"), 60_000),
    **{"usps": 9_298, "emnist": 131_600, "svhn": 99_289, "stl10": 13_000},
}
_Need = tuple[str, float]  # settings with their values, and bytes


def check_ablation(config: AblationConfig, store: Path | None = None) -> None:
    """Refuse an ablation that cannot fit.

    Args:
        config: the ablation.
        store: the store's folder, if it is on this machine.

    Raises:
        ConfigError: it needs more memory or disk than there is.
    """
    for zoo in config.all_zoos:
        check_zoo(zoo, store)
    memory = list(_list_backbones(config))
    for target in config.targets:
        try:
            network, images = config.resolve_target(target)
        except ValueError:
            continue  # the plan says more of it
        if weights := count_weights(network, images):
            name = f"sampling.samples {config.sampling.samples:,} for target {target.name!r}"
            memory.append((f"{name} of {weights:,} weights", config.sampling.samples * weights * _FLOAT))
            for setting in ("random_models", "distilled_models"):
                models = getattr(config.evaluation, setting)
                memory.append((f"evaluation.{setting} {models:,} of {weights:,} weights", models * weights * _FLOAT))
        memory.append(_measure_images(images))
    _check_memory(memory)


def check_zoo(zoo: AnyZooConfig, store: Path | None = None) -> None:
    """Refuse a zoo that cannot fit.

    Raises:
        ConfigError: it needs more memory or disk than there is.
    """
    trained = zoo.zoo if isinstance(zoo, SparseConfig) else zoo
    if trained.images is not None:
        _check_memory([_measure_images(trained.images)])
    if not isinstance(trained, ZooConfig):
        return
    weights = count_weights(trained.network, trained.images) or 1
    models, epochs = zoo.models or 0, min(zoo.keep_epochs or 1, trained.epochs)
    name = f"zoo {zoo.name!r}: models {models:,}, {epochs:,} epochs kept, {weights:,} weights"
    _check_memory([(f"a model of zoo {zoo.name!r} of {weights:,} weights", weights * _TRAINED)])
    if store is not None:
        _check_disk((name, models * epochs * weights * _FLOAT), store)


def check_processes(processes: int | None) -> None:
    """Refuse worker processes that cannot fit.

    Raises:
        ConfigError: they need more memory than there is.
    """
    if processes is not None:
        _check_memory([(f"processes {processes:,}", processes * _PROCESS)])


def count_weights(network: NetworkConfig, images: AnyImagesConfig) -> int | None:
    """Return how many weights a network for such images has; None where that is not known without making it.

    Raises:
        ConfigError: it has more than can be made at all.
    """
    if ":" in network.architecture:
        return None
    channels, size = _shape_images(images)
    sizes = {"cnn-s": 28, "cnn-l": 32}
    try:
        made = build_network(network, channels, images.classes, sizes.get(network.architecture, size))
    except ConfigError:
        return None
    except (MemoryError, RuntimeError):  # torch's word for memory that cannot be had
        name = f"network {network.architecture} of width {network.width}"
        raise ConfigError(f"{name}: it does not fit in the memory of this machine: choose less") from None
    return sum(value.numel() for value in made.parameters())


def count_memory() -> int:
    """Return the bytes of memory that this process may use at most, all of the machine's or its container's."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return memory
    return min(memory, int(limit)) if limit.isdecimal() else memory


def _list_backbones(config: AblationConfig) -> Iterator[_Need]:
    for composition in config.compositions:
        backbone = config.find_backbone(composition)
        yield _measure_backbone(backbone)
        tokens = backbone.part_windows * backbone.window
        kept = 2 * tokens * backbone.d_model * 2 * backbone.layers * _FLOAT  # two views, one number a block and width
        sizes = f"{backbone.part_windows:,} windows of {backbone.window:,} tokens, d_model {backbone.d_model:,}"
        yield f"backbone: {sizes}, layers {backbone.layers:,}", kept


def _measure_backbone(backbone: BackboneConfig) -> _Need:
    blocks = 2 * backbone.layers * 12 * backbone.d_model**2
    tables = sum(backbone.max_positions) * backbone.d_model if backbone.positions == "learned" else 0
    weights = blocks + tables + 2 * backbone.d_model * backbone.latent_dim
    sizes = ("d_model", "layers", "latent_dim", "max_positions")
    named = ", ".join(f"{name} {getattr(backbone, name)}" for name in sizes)
    return f"backbone: {named}, {weights / 1e6:,.0f} million weights", weights * _TRAINED


def _measure_images(images: AnyImagesConfig) -> _Need:
    channels, size = _shape_images(images)
    if isinstance(images, GlyphsConfig):
        count = images.images
    elif isinstance(images, TorchvisionConfig):
        count = _IMAGES[images.source]
        if images.train_images is not None:
            count = min(count, images.train_images + (images.test_images or 0))
    else:
        count = 0
    return f"images {images.source} of {size}x{size} pixels", count * channels * size**2 * _FLOAT


def _shape_images(images: AnyImagesConfig) -> tuple[int, int]:
    """Return channels and size of images, the least that they can be where only their files tell."""
    if isinstance(images, DigitsConfig | GlyphsConfig):
        return 1, 28
    return 3 if images.source in _COLOUR else 1, images.size or _STORED_SIZE.get(images.source, 28)


def _check_memory(needs: list[_Need]) -> None:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    there = max(count_memory(), sum(torch.cuda.get_device_properties(number).total_memory for number in devices))
    for name, needed in needs:
        if needed > there:
            raise ConfigError(
                f"{name}: needs at least {_show(needed)} of memory, and this machine has {_show(there)}: choose less"
            )


def _check_disk(need: _Need, store: Path) -> None:
    while not store.exists() and store != store.parent:
        store = store.parent
    there = shutil.disk_usage(store).total
    if 0 < there < need[1]:  # file systems of the kernel's own have no size; the store's check says more
        raise ConfigError(
            f"{need[0]}: needs at least {_show(need[1])} of disk, and that of the store has {_show(there)}: choose less"
        )


def _show(amount: float) -> str:
    power = min(int(math.log(max(amount, 1), 1000)), 6)
    return f"{amount / 1000**power:,.1f} {('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[power]}"
