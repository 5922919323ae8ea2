"""The behavioural loss: how far the outputs of reconstructed networks are from those of the originals, without labels.

A reconstruction with small errors in its weights can be another function; this loss looks at the function. All models
of a zoo see the same few training images of their zoo, a new draw in each step, and run together: as one program,
vectorised over models (`torch.func.vmap`), on a GPU, in a loop on a CPU.

Suffixes: V versions of the same models, B windows, W tokens of a window, D token width, X places of a batch, M models,
T tokens of a model, P weights of a model, N images, S images in a step, C channels, H height, R width, K classes.
"""

import copy
import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, replace_all_batch_norm_modules_, vmap

from mzsane.config import BackboneConfig
from mzsane.errors import ConfigError
from mzsane.tokens.entries import STATISTICS
from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.origin import Origin, find_origin
from mzsane.tokens.store import TokenTable
from mzsane.zoo.architectures import build_network
from mzsane.zoo.images import load_images

Output = Literal["logits", "probabilities"]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_VARIANCE_FLOOR = 1e-4  # of a model's logits; those of trained models have variances of 1 to 100
# Numbers that the networks of one chunk of models keep for the backward pass: on a CPU what stays in the cache.
_CHUNK_NUMBERS = {"cpu": 2**22, "other": 2**29}


class NetworkBehaviour:
    """The networks of one architecture, and the images that they are compared on.

    Args:
        network: a network of the architecture; its weights are not used.
        layout: where the weights sit in the tokens. Without running statistics among them, batch norms use the
            statistics of the images of the step.
        images_NCHR: training images of the zoo.
        images: images in a step; all, if there are fewer.
        output: what is compared (see `compare_outputs`).
    """

    def __init__(
        self, network: nn.Module, layout: TokenLayout, images_NCHR: Tensor, images: int, output: Output
    ) -> None:
        self.layout, self.output = layout, output
        self._network = copy.deepcopy(network).eval()  # dropout is off
        if layout.running_statistics != "in":
            replace_all_batch_norm_modules_(self._network)
        modules = self._network.named_modules()
        self._norms = {name: part for name, part in modules if isinstance(part, _NORMS) and part.track_running_stats}
        self._images_NCHR, self._images = images_NCHR, images
        self._numbers = _count_kept_numbers(self._network, images_NCHR[:images])

    def look_at(self, images_NCHR: Tensor) -> "NetworkBehaviour":
        """Return the same for other images, of which a step sees as many."""
        other = copy.copy(self)
        other._images_NCHR = images_NCHR
        return other

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self._images_NCHR.shape[1:]
        return channels, height, width

    def draw_images(self, device: torch.device, generator: torch.Generator) -> Tensor:
        """Draw the images of a step, (S, C, H, R), without replacement; all images move to the device at first use."""
        self._images_NCHR = self._images_NCHR.to(device)
        chosen = torch.randperm(len(self._images_NCHR), generator=generator)[: self._images]
        return self._images_NCHR[chosen.to(device)]

    def run_models(self, flat_MP: Tensor, images_SCHR: Tensor) -> Tensor:
        """Return the logits of all models on the same images, (M, S, K)."""
        self._network.to(flat_MP.device)  # its buffers; costs nothing once they are there
        run = self.run_one_by_one if flat_MP.device.type == "cpu" else self.run_vectorised
        return run(flat_MP, images_SCHR)

    def run_vectorised(self, flat_MP: Tensor, images_SCHR: Tensor) -> Tensor:
        """Run models as one program: the engine on a GPU."""

        def run_model(flat_P: Tensor) -> Tensor:
            return self._call(self.layout.unflatten(flat_P), images_SCHR)

        logits_MSK: Tensor = vmap(run_model)(flat_MP)
        return logits_MSK

    def run_one_by_one(self, flat_MP: Tensor, images_SCHR: Tensor) -> Tensor:
        """Run models in a loop: the engine on a CPU, where channels last, which `vmap` does not know, pay more."""
        last = torch.channels_last
        images_SCHR = images_SCHR.to(memory_format=last)
        logits = []
        for flat_P in flat_MP:
            weights = self.layout.unflatten(flat_P)
            weights = {name: w.contiguous(memory_format=last) if w.ndim == 4 else w for name, w in weights.items()}
            logits.append(self._call(weights, images_SCHR))
        return torch.stack(logits)

    def _call(self, weights: dict[str, Tensor], images_SCHR: Tensor) -> Tensor:
        if self.layout.running_statistics == "in":
            weights = self._fold_statistics(weights)
        # The names of a tied weight are all given.
        logits_SK: Tensor = functional_call(self._network, weights, (images_SCHR,), tie_weights=False)
        return logits_SK

    def _fold_statistics(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move running statistics into scale and shift: PyTorch's batch norm hands no gradient to the statistics."""
        folded = dict(weights)
        for name, norm in self._norms.items():
            mean, variance = (weights[f"{name}.{statistic}"] for statistic in STATISTICS)
            if not norm.affine:  # nothing to move them into: they get no gradient
                folded.update({f"{name}.{STATISTICS[0]}": mean.detach(), f"{name}.{STATISTICS[1]}": variance.detach()})
                continue
            scale = (variance.clamp(min=0) + norm.eps).rsqrt()  # a reconstructed variance can be below zero
            folded[f"{name}.weight"] = weights[f"{name}.weight"] * scale
            folded[f"{name}.bias"] = weights[f"{name}.bias"] - mean * folded[f"{name}.weight"]
            neutral = (torch.zeros_like(mean), torch.full_like(variance, 1 - norm.eps))
            folded.update({f"{name}.{kind}": value for kind, value in zip(STATISTICS, neutral, strict=True)})
        return folded

    def measure(
        self, original_MP: Tensor, reconstructed_VMP: Tensor, images_SCHR: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the sum over models of their mean loss over versions, and its gradient, (V, M, P), zero if not wanted.

        The gradient is taken here, chunk by chunk, so that the memory is that of one chunk of models. The original's
        outputs are computed once, since its versions are one function.
        """
        budget = _CHUNK_NUMBERS["cpu" if original_MP.device.type == "cpu" else "other"]
        chunk = max(1, budget // self._numbers)
        total, versions = original_MP.new_zeros(()), len(reconstructed_VMP)
        gradient_VMP = torch.zeros_like(reconstructed_VMP)
        for first in range(0, len(original_MP), chunk):
            models = slice(first, first + chunk)
            with torch.no_grad():
                original_MSK = self.run_models(original_MP[models], images_SCHR)
            for version in range(versions):
                flat_MP = reconstructed_VMP[version, models].detach().requires_grad_(with_gradient)
                with torch.set_grad_enabled(with_gradient):
                    loss_M = compare_outputs(original_MSK, self.run_models(flat_MP, images_SCHR), self.output)
                    loss = loss_M.sum() / versions
                total += loss.detach()
                if with_gradient:
                    (gradient_VMP[version, models],) = torch.autograd.grad(loss, flat_MP)
        return total, gradient_VMP


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

        The loss is the sum over the count: every model counts the same, and so does each of its versions. Both are
        returned, so that the mean can be taken over the processes of a data-parallel run. With the same generator they
        see the same images, whatever models they have: images are drawn for each zoo, in order, in every call.

        Args:
            originals_BWD: tokens of whole models as stored, version 0 of the batch.
            reconstructed_VBWD: reconstructions of them and of versions of them that are the same function.
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


def compare_outputs(original_MSK: Tensor, reconstructed_MSK: Tensor, output: Output) -> Tensor:
    """Return for each model how far its outputs are from the original's, (M,).

    Args:
        original_MSK: logits of the originals.
        reconstructed_MSK: logits of the reconstructions, on the same images.
        output: `logits`: mean squared difference over the variance of the original's logits, both over images and
            classes, so that a constant at their mean has loss 1. `probabilities`: squared difference of the softmax
            outputs, summed over classes and averaged over images; at most 2.
    """
    if output == "probabilities":
        difference_MSK = reconstructed_MSK.softmax(dim=-1) - original_MSK.softmax(dim=-1)
        return difference_MSK.square().sum(dim=-1).mean(dim=-1)
    variance_M = original_MSK.flatten(1).var(dim=1, correction=0)
    return (reconstructed_MSK - original_MSK).square().mean(dim=(1, 2)) / variance_M.clamp(min=_VARIANCE_FLOOR)


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
    origin = find_origin(table.artifact)
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
    odd = _find_activations(table) - {origin.network.activation}
    if odd and ":" not in origin.network.architecture:  # a factory decides itself
        raise ConfigError(
            f"{wanted} needs models of one function, but {which} ({zoo}) has models with {', '.join(sorted(odd))} "
            f"beside its network's {origin.network.activation}: leave the slice out, or {otherwise}"
        )
    dataset = load_images(origin.images)
    network = build_network(origin.network, dataset.channels, dataset.classes, dataset.size)
    _check_layout(network, layout, origin, f"{which} ({zoo})", otherwise)
    images_NCHR = dataset.splits["train"].images_NCHW
    return NetworkBehaviour(network, layout, images_NCHR, config.behaviour_images, config.behaviour_output)


def _check_layout(network: nn.Module, layout: TokenLayout, origin: Origin, which: str, otherwise: str) -> None:
    expected = TokenLayout.from_network(network, layout.token_dim, layout.running_statistics)
    if expected.digest != layout.digest:
        raise ConfigError(
            f"backbone.behaviour cannot run the models of {which}: their tokens hold {layout.weights} weights in "
            f"{len(layout.tensors)} tensors, {origin.network.architecture} on these images has {expected.weights} in "
            f"{len(expected.tensors)}, or names and shapes differ: correct the zoo's network and images, or {otherwise}"
        )


def _find_activations(table: TokenTable) -> set[str]:
    """Return the activations of a zoo's models, as far as their recipes tell: a generating factor that tokens hide."""
    if "recipe" not in table.index.columns:
        return set()
    recipes = table.index["recipe"].drop_nulls().unique().to_list()
    return {recipe["activation"] for recipe in map(json.loads, recipes) if "activation" in recipe}


def _count_kept_numbers(network: nn.Module, images_SCHR: Tensor) -> int:
    """Return how many numbers a model keeps for the backward pass, weights included; nothing is computed."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        copy.deepcopy(network).to("meta")(images_SCHR.to("meta"))
    return max(1, kept)


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
