"""The behavioural loss: how far the outputs of reconstructed networks are from those of the originals, without labels.

A reconstruction with small errors in its weights can be another function; this loss looks at the function. All models
of a zoo see the same few training images of their zoo, a new draw in each step, and run together.

Suffixes: V views of the same models, B windows, W tokens of a window, D token width, X places of a batch, M models,
T tokens of a model, P weights of a model, S images in a step, C channels, H height, R width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mzsane.config import BackboneConfig
from mzsane.errors import ConfigError
from mzsane.layout.running import fits_network, share_buffers
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.behaviour import NetworkBehaviour
from mzsane.networks.build import build_network, choose_network
from mzsane.problems.images.dataset import load_images
from mzsane.tokens.store import TokenTable
from mzsane.tokens.subject import Origin, find_subject, read_activations


class Behaviour:
    """The behavioural loss of a composition.

    Args:
        zoos: what is known of the zoos of the composition, each once.
        zoo_of_source: for each source of the windows its place in `zoos`.
    """

    def __init__(self, zoos: Sequence[NetworkBehaviour], zoo_of_source: Sequence[int]) -> None:
        self._zoos = tuple(zoos)
        self._zoo_of_source = torch.tensor([*zoo_of_source, -1])  # the last one is the padding's, source -1

    def loss_sum_and_count(
        self,
        originals_BWD: Tensor,
        reconstructed_VBWD: Tensor,
        segments_BW: Tensor,
        source_BW: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, int]:
        """Compare the outputs of reconstructed models with those of the originals on random training images.

        The loss is the sum over the count: every model counts the same, and so does each of its views. Both are
        returned, so that the mean can be taken over the processes of a data-parallel run. With the same generator they
        see the same images, whatever models they have: images are drawn for each zoo, in order, in every call.

        Args:
            originals_BWD: tokens of whole models as stored, view 0 of the batch.
            reconstructed_VBWD: reconstructions of them and of views of them that are the same function.
            segments_BW: which model of its window a token is of; 0 in the padding.
            source_BW: index of the source that a token is of; -1 in the padding.
            generator: for the images, on the CPU.

        Returns:
            The sum of the losses of all models, and the number of models. Its gradient can be taken once, not twice.
        """
        device = originals_BWD.device
        originals_XD, reconstructed_VXD = originals_BWD.flatten(0, 1), reconstructed_VBWD.flatten(1, 2)
        # A model starts where the segment changes, also at the start of a window; padding has no zoo.
        before_BW = nn.functional.pad(segments_BW[:, :-1], (1, 0))
        starts_X = (segments_BW != before_BW).flatten()
        self._zoo_of_source = self._zoo_of_source.to(device)
        zoo_X = self._zoo_of_source[source_BW.flatten()]
        with_gradient = torch.is_grad_enabled() and reconstructed_VBWD.requires_grad
        gradient_VXD = torch.zeros_like(reconstructed_VXD)
        total, count = originals_BWD.new_zeros(()), 0
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for number, zoo in enumerate(self._zoos):
                images_SCHR = zoo.draw_images(device, generator).to(originals_BWD.dtype)
                first_M = (starts_X & (zoo_X == number)).nonzero().squeeze(1)
                if not len(first_M):
                    continue
                place_MT = first_M[:, None] + torch.arange(zoo.layout.length, device=device)
                original_MP = zoo.layout.detokenize(originals_XD[place_MT])
                reconstructed_VMP = zoo.layout.detokenize(reconstructed_VXD[:, place_MT].to(original_MP.dtype))
                loss, gradient_VMP = zoo.measure(original_MP, reconstructed_VMP, images_SCHR, with_gradient)
                gradient_VXD[:, place_MT] = zoo.layout.tokenize(gradient_VMP).to(gradient_VXD.dtype)
                total, count = total + loss, count + len(first_M)
        if with_gradient:
            gradient_VBWD = gradient_VXD.unflatten(1, segments_BW.shape)
            total = _KnownGradient.apply(reconstructed_VBWD, total, gradient_VBWD)  # type: ignore[no-untyped-call]
        return total, count


def open_behaviour(config: BackboneConfig, tables: Sequence[TokenTable]) -> Behaviour:
    """Prepare the behavioural loss for the slices of a composition: networks and training images of their zoos.

    Args:
        config: the backbone's settings.
        tables: the tokens of each source of the windows; slices of one zoo share what is prepared.

    Raises:
        ConfigError: a zoo's architecture or images are not known, its models are not of one function or do not fit a
            window, its tokens are not those of the architecture, or windows of several models are mixed.
    """
    if config.mix_up or config.cut_mix:
        raise ConfigError(
            f"backbone.behaviour ({config.behaviour}) compares reconstructions with the models themselves, so windows "
            "cannot be mixed: set backbone.mix_up and backbone.cut_mix to 0, or backbone.behaviour to 0"
        )
    zoos: dict[str, NetworkBehaviour] = {}
    for number, table in enumerate(tables):
        if (name := str(table.artifact.ref)) not in zoos:
            zoos[name] = open_network_behaviour(config, table, f"slice {number} of the composition")
    names = list(zoos)
    return Behaviour(list(zoos.values()), [names.index(str(table.artifact.ref)) for table in tables])


def open_network_behaviour(config: BackboneConfig, table: TokenTable, which: str) -> NetworkBehaviour:
    """Prepare to run one zoo's models on its training images.

    Args:
        config: the backbone's settings.
        table: the zoo's tokens.
        which: what messages call them.

    Raises:
        ConfigError: as `open_behaviour`.
    """
    wanted, otherwise = f"backbone.behaviour ({config.behaviour})", "set backbone.behaviour to 0"
    zoo = table.artifact.manifest.inputs["zoo"]
    origin = find_subject(table.artifact)
    if origin is None:
        raise ConfigError(
            f"{wanted} compares outputs, but the network and images of {which} ({zoo}) are not known: give the zoo's "
            f"network and images and keep the zoo in the store, or {otherwise}"
        )
    layout = table.layout
    if layout.length > config.window:
        raise ConfigError(
            f"{wanted} needs whole models in a window of {config.window} tokens, but those of {which} have "
            f"{layout.length}: raise backbone.window to at least {layout.length}, or {otherwise}"
        )
    told = list(dict.fromkeys(read_activations(table.index)))
    configs = {choose_network(origin.network, activation) for activation in told}
    config_of_all = configs.pop()
    if configs or config_of_all is None:
        raise ConfigError(
            f"{wanted} needs models of one function that is known, but {which} ({zoo}) has models with the activations "
            f"{', '.join(sorted(str(activation) for activation in told))}: leave the slice out, or {otherwise}"
        )
    dataset = load_images(origin.images)
    network = build_network(config_of_all, dataset.channels, dataset.classes, dataset.size)
    try:
        share_buffers(layout, network)
    except ConfigError as error:
        raise ConfigError(f"{wanted}: {which} ({zoo}): {error}; or {otherwise}") from None
    _check_layout(network, layout, origin, f"{which} ({zoo})", otherwise)
    images_NCHR = dataset.splits["train"].images_NCHW
    return NetworkBehaviour(network, layout, images_NCHR, config.behaviour_images, config.behaviour_output)


def _check_layout(network: nn.Module, layout: TokenLayout, origin: Origin, which: str, otherwise: str) -> None:
    if not fits_network(layout, network):
        expected = TokenLayout.from_network(network, layout.token_dim, layout.running_statistics)
        raise ConfigError(
            f"backbone.behaviour cannot run the models of {which}: their tokens hold {layout.weights} weights in "
            f"{len(layout.tensors)} tensors, {origin.network.architecture} on these images has {expected.weights} in "
            f"{len(expected.tensors)}, or names and shapes differ: correct the zoo's network and images, or {otherwise}"
        )


class _KnownGradient(torch.autograd.Function):
    """A number whose gradient was computed along with it."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return factor.to(gradient.dtype) * gradient, None, None
