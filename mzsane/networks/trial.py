"""A factory's networks are tried before any work, the way that they will be used: a line in place of a lost night.

Suffixes: N images, C channels, H height, W width, K classes.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from mzsane.config import NetworkConfig, RecipeConfig
from mzsane.errors import ConfigError
from mzsane.networks.build import build_network, start_network
from mzsane.networks.factories import list_state, say_error
from mzsane.networks.train_batched import BatchedModels
from mzsane.networks.train_loop import MEASURE_SEED
from mzsane.parallel import limit_threads
from mzsane.problems.images.dataset import ImageDataset, ImageSplit
from mzsane.randomness import seed_globally

_EVALUATED = (3, 1)  # images in the batches that are looked at in evaluation mode
_CPU = torch.device("cpu")
Result = TypeVar("Result")


def try_evaluation(config: NetworkConfig, images: ImageDataset) -> None:
    """Try networks in evaluation mode, as scoring uses them; those of a built-in architecture are only built.

    Raises:
        ConfigError: they cannot be built, copied or run, or do not return a number for each class.
    """
    network = _build(config, images)
    if not config.is_factory:
        return
    try:
        copy.deepcopy(network)
    except Exception as error:
        raise _refuse(config, "cannot be copied (copy.deepcopy)", error) from None
    with torch.no_grad(), limit_threads():
        for count in _EVALUATED:
            shown = images.splits["train"].images_NCHW[:count]
            output = _call(config, network.eval(), shown, "evaluation")
            _check(config, output, len(shown), images.classes, "evaluation")
        weights: dict[str, Tensor] = dict(network.named_parameters())
        _guard(config, "torch.func.functional_call", lambda: functional_call(network, weights, (shown,)))


def try_training(
    config: NetworkConfig,
    images: ImageDataset,
    recipes: Collection[RecipeConfig],
    device: str,
    count: int | None = None,
) -> None:
    """Try networks in both modes, forward and backward, by the engine of a device and in the batches of recipes.

    Args:
        config: the architecture.
        images: what it is trained on.
        recipes: how.
        device: where, `cpu` or `cuda`.
        count: how many of the training images are used, if not all.

    Raises:
        ConfigError: as `try_evaluation`; no weight can be trained, weights are not float32 or not known to an
            initialisation, or the same seed does not give the same network, output and gradient again.
    """
    count = min(count or len(images.splits["train"].labels_N), len(images.splits["train"].labels_N))
    sizes = sorted({size for recipe in recipes for size in _list_batches(recipe, count)})
    if not config.is_factory:
        if sizes[0] == 1:  # a norm of a batch has nothing to go by
            _rehearse(config, images, sizes[:1])
        return
    try_evaluation(config, images)
    network = _build(config, images)
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"architecture {config.architecture!r} cannot be trained: its {name} is {parameter.dtype}, and weights "
                "are trained and kept as torch.float32"
            )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(f"architecture {config.architecture!r} cannot be trained: it has no weight that may change")
    for start in {recipe.initialisation for recipe in recipes}:
        start_network(config, images.channels, images.classes, images.size, start, torch.Generator())
    with limit_threads():
        some = [sizes[0], sizes[-1]] if len(sizes) > 1 else sizes
        once, again = (_rehearse(config, images, some) for _ in range(2))
        other = _build(config, images, seed=2)
    if not (len(once) == len(again) and all(map(_is_same, once, again))):
        raise ConfigError(
            f"architecture {config.architecture!r} is not the same twice: with the same seed it starts or computes "
            "otherwise. Draw random numbers from torch's, numpy's or Python's global generator alone: they are seeded"
        )
    if _list_shapes(other) != _list_shapes(network):
        raise ConfigError(
            f"architecture {config.architecture!r} is another one with each seed: its names or shapes of weights change"
        )
    if device != "cpu":
        _try_batched(config, images, some)


def _list_batches(recipe: RecipeConfig, images: int) -> set[int]:
    """Return the sizes of an epoch's batches, the last one's too."""
    count = max(1, round(recipe.data_fraction * images))
    return {min(recipe.batch_size, count), count % recipe.batch_size or min(recipe.batch_size, count)}


def _rehearse(config: NetworkConfig, images: ImageDataset, sizes: Sequence[int]) -> list[Tensor]:
    """Train on a batch of each size without a step; return the start, what came out, gradients and buffers."""
    network = _build(config, images, seed=1)
    seen = [value.detach().clone() for _, value in list_state(network)]
    split = images.splits["train"]
    for count in sizes:
        shown = ImageSplit(split.images_NCHW[:count], split.labels_N[:count])
        output = _call(config, network.train(), shown.images_NCHW, "training")
        _check(config, output, count, images.classes, "training")
        loss = functional.cross_entropy(output, shown.labels_N)
        _guard(config, f"backward, after {count} images", loss.backward)
        seen.append(output.detach())
    seen += [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    with torch.no_grad():
        seen.append(_call(config, network.eval(), split.images_NCHW[: _EVALUATED[0]], "evaluation"))
    return [*seen, *network.buffers()]


def _try_batched(config: NetworkConfig, images: ImageDataset, sizes: Sequence[int]) -> None:
    """Try networks as one program."""
    split = images.splits["train"]

    def run() -> None:
        models = BatchedModels.stack([_build(config, images, seed) for seed in (1, 2)], _CPU)
        with seed_globally(MEASURE_SEED):
            for train in (True, False):
                models.network.train(train)
                for count in sizes:
                    logits_BSK = models.forward(split.images_NCHW[:count], shared=True)
            torch.autograd.grad(logits_BSK.sum(), models.flat_BP)
        models.read_state(1)

    try:
        run()
    except Exception as error:
        refused = _refuse(config, "cannot be trained many at once, as is done on a GPU", error)
        raise ConfigError(f"{refused}. Set execution.device to cpu") from None


def _build(config: NetworkConfig, images: ImageDataset, seed: int = 0) -> nn.Module:
    return build_network(config, images.channels, images.classes, images.size, seed)


def _call(config: NetworkConfig, network: nn.Module, images_NCHW: Tensor, mode: str) -> Tensor:
    shape = "x".join(map(str, images_NCHW.shape))
    with seed_globally(MEASURE_SEED):
        output: Tensor = _guard(config, f"{mode}, with images of {shape}", lambda: network(images_NCHW))
    return output


def _guard(config: NetworkConfig, what: str, run: Callable[[], Result]) -> Result:
    try:
        return run()
    except Exception as error:
        raise _refuse(config, f"fails in {what}", error) from None


def _refuse(config: NetworkConfig, what: str, error: Exception) -> ConfigError:
    return ConfigError(f"architecture {config.architecture!r} {what}: {say_error(error)}")


def _check(config: NetworkConfig, output: object, count: int, classes: int, mode: str) -> None:
    wanted = f"one tensor ({count}, {classes}) of a number for each class"
    if not isinstance(output, Tensor):
        said = f"a {type(output).__name__}"
        with suppress(TypeError):
            said += f" of {len(output)}"  # type: ignore[arg-type]
        raise ConfigError(f"architecture {config.architecture!r} returns {said} in {mode}, not {wanted}")
    if tuple(output.shape) != (count, classes) or not output.is_floating_point():
        found = f"{tuple(output.shape)} of {output.dtype}"
        raise ConfigError(f"architecture {config.architecture!r} returns {found} in {mode}, not {wanted}")


def _is_same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.nan_to_num(), other.nan_to_num()) if one.is_floating_point() else torch.equal(one, other)


def _list_shapes(network: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in list_state(network)]
