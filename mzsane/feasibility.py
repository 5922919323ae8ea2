"""Whether an ablation can be done at all, asked before any of it is: places, windows, widths, and code of users."""

from mzsane.config import (
    AblationConfig,
    AnyImagesConfig,
    AnyZooConfig,
    BackboneConfig,
    CompositionConfig,
    ExecutionConfig,
    FilesConfig,
    NetworkConfig,
    ReadConfig,
    RecipeConfig,
    SparseConfig,
)
from mzsane.device import choose_device
from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network
from mzsane.networks.shapes import find_shape
from mzsane.networks.trial import try_evaluation, try_training
from mzsane.problems.images.dataset import load_images
from mzsane.windows.windows import check_positions
from mzsane.zoo.sparse import check_sparse
from mzsane.zoo.train import plan_models


def check_layouts(config: AblationConfig, read_files: bool = False) -> None:
    """Check that every backbone has places and windows for the models of its slices and of every target.

    Args:
        config: the ablation, its token width known.
        read_files: look into image files of the user's for the size of images; else what is trained on them is left
            out, since a plan needs no data.

    Raises:
        ConfigError: one has not, or an architecture does not take its images.
    """

    def lay_out(network: NetworkConfig | None, images: AnyImagesConfig | None) -> TokenLayout | None:
        if network is None or images is None or (isinstance(images, FilesConfig) and not read_files):
            return None
        assert config.tokens.token_dim is not None
        built = build_network(network, *find_shape(images))
        return TokenLayout.from_network(built, config.tokens.token_dim, config.tokens.running_statistics)

    zoos = {zoo.name: lay_out(zoo.network, zoo.images) for zoo in config.all_zoos}
    targets = {target.name: lay_out(*config.resolve_target(target)) for target in config.targets}
    for composition in config.compositions:
        backbone = config.find_backbone(composition)
        for part in composition.slices:
            if (layout := zoos[part.zoo]) is not None:
                _check_places(composition, backbone, layout, f"zoo {part.zoo!r}")
                _check_behaviour(composition, backbone, layout, f"zoo {part.zoo!r}")
        for name, layout in targets.items():
            if layout is not None:
                _check_places(composition, backbone, layout, f"target {name!r}")


def try_networks(config: AblationConfig, execution: ExecutionConfig) -> None:
    """Load the images of every target, and try what users' factories make as zoos train it and targets tune it.

    Raises:
        ConfigError: a network cannot be used (see `mzsane.networks.trial`), or images cannot be had.
    """
    device = choose_device(execution.device).type
    for zoo in config.all_zoos:
        try_zoo(zoo, device)
    evaluation = config.evaluation
    for target in config.targets:
        network, images = config.resolve_target(target)
        try:
            dataset = load_images(images)
        except ConfigError as error:
            raise ConfigError(f"target {target.name!r}: {error}") from None
        if network.is_factory:
            try_evaluation(network, dataset)
            if evaluation.finetune_epochs[-1]:
                per_class = evaluation.images_per_class
                count = None if per_class is None else per_class * images.classes
                recipe = RecipeConfig(batch_size=evaluation.batch_size, initialisation="own")
                try_training(network, dataset, [recipe], device, count)


def try_zoo(zoo: AnyZooConfig, device: str) -> None:
    """Try the networks of a zoo whose architecture is a factory.

    Raises:
        ConfigError: as `try_networks`.
    """
    if zoo.network is None or zoo.images is None or not zoo.network.is_factory:
        return
    dataset = load_images(zoo.images)
    if isinstance(zoo, ReadConfig):
        try_evaluation(zoo.network, dataset)
        return
    trained = zoo.zoo if isinstance(zoo, SparseConfig) else zoo
    try_training(zoo.network, dataset, {plan.recipe for plan in plan_models(trained)}, device)
    if isinstance(zoo, SparseConfig):
        check_sparse(zoo, dataset)


def _check_places(composition: CompositionConfig, backbone: BackboneConfig, layout: TokenLayout, which: str) -> None:
    try:
        check_positions([layout], backbone.position_limits)
    except ConfigError as error:
        raise ConfigError(f"the backbone of composition {composition.name!r} cannot take {which}: {error}") from None


def _check_behaviour(composition: CompositionConfig, backbone: BackboneConfig, layout: TokenLayout, which: str) -> None:
    if backbone.behaviour and layout.length > backbone.window:
        raise ConfigError(
            f"backbone.behaviour ({backbone.behaviour}) of composition {composition.name!r} needs whole models in a "
            f"window of {backbone.window} tokens, but those of {which} have {layout.length}: raise backbone.window to "
            f"at least {layout.length}, or set backbone.behaviour to 0"
        )
