"""Models of one architecture at work: what many of them say of the same images, and how far two of them are apart.

Models run together: as one program, vectorised over models (`torch.func.vmap`), on a GPU, in a loop on a CPU.

Suffixes: V views of the same models, M models, P weights of a model, N images, S images in a step, C channels, H
height, R width, K classes.
"""

import copy
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase

from mzsane.layout.buffers import copy_network, list_norms
from mzsane.layout.entries import STATISTICS
from mzsane.layout.running import name_weights, share_buffers
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import choose_memory_format
from mzsane.networks.memory import count_fitting, count_kept_numbers

Output = Literal["logits", "probabilities"]
_VARIANCE_FLOOR = 1e-4  # of a model's logits; those of trained models have variances of 1 to 100
# Numbers that the networks of one chunk of models keep for the backward pass on a CPU: what stays in the cache.
_CHUNK_NUMBERS = 2**22


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
        self._network = copy_network(network, images_NCHR[:1].cpu()).eval()  # dropout is off
        share_buffers(layout, self._network)
        if layout.running_statistics != "in":
            _forget_statistics(self._network)
        modules = self._network.named_modules()
        self._norms = {name: part for name, part in modules if isinstance(part, _NormBase) and part.track_running_stats}
        self._images_NCHR, self._images = images_NCHR, images
        self._numbers = count_kept_numbers(self._network, images_NCHR[:images])

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

    def move(self, device: torch.device) -> "NetworkBehaviour":
        """Move the networks' buffers to a device, in place; return this."""
        self._network.to(device)
        return self

    def run_models(self, flat_MP: Tensor, images_SCHR: Tensor) -> Tensor:
        """Return the logits of all models on the same images, (M, S, K)."""
        self.move(flat_MP.device)  # costs nothing once they are there
        run = self.run_one_by_one if flat_MP.device.type == "cpu" else self.run_vectorised
        return run(flat_MP, images_SCHR)

    def run_vectorised(self, flat_MP: Tensor, images_SCHR: Tensor) -> Tensor:
        """Run models as one program: the engine on a GPU, so many at a time as it has room for."""
        together = self._fit_models(flat_MP.device, len(images_SCHR))
        run = vmap(self.run_model, in_dims=(0, None), randomness="same")
        return torch.cat([run(some_MP, images_SCHR) for some_MP in flat_MP.split(together)])

    def run_model(self, flat_P: Tensor, images_SCHR: Tensor) -> Tensor:
        """Return the logits of one model, (S, K); `torch.func` can transform it."""
        return self._call(name_weights(self.layout, flat_P), images_SCHR)

    def run_one_by_one(self, flat_MP: Tensor, images_SCHR: Tensor) -> Tensor:
        """Run models in a loop: the engine on a CPU, where channels last, which `vmap` does not know, pay more."""
        last = choose_memory_format(self._network)
        images_SCHR = images_SCHR.to(memory_format=last)
        logits = []
        for flat_P in flat_MP:
            weights = name_weights(self.layout, flat_P)
            weights = {name: w.contiguous(memory_format=last) if w.ndim == 4 else w for name, w in weights.items()}
            logits.append(self._call(weights, images_SCHR))
        return torch.stack(logits)

    def _fit_models(self, device: torch.device, images: int) -> int:
        """Return how many models run on so many images together."""
        if device.type == "cpu":
            return max(1, _CHUNK_NUMBERS // self._numbers)
        shown = max(1, min(self._images, len(self._images_NCHR)))
        return count_fitting(math.ceil(self._numbers * images / shown), device)

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
        """Return the sum over models of their mean loss over views, and its gradient, (V, M, P), zero if not wanted.

        The gradient is taken here, chunk by chunk, so that the memory is that of one chunk of models. The original's
        outputs are computed once, since its views are one function.
        """
        chunk = self._fit_models(original_MP.device, len(images_SCHR))
        total, views = original_MP.new_zeros(()), len(reconstructed_VMP)
        gradient_VMP = torch.zeros_like(reconstructed_VMP)
        for first in range(0, len(original_MP), chunk):
            models = slice(first, first + chunk)
            with torch.no_grad():
                original_MSK = self.run_models(original_MP[models], images_SCHR)
            for view in range(views):
                flat_MP = reconstructed_VMP[view, models].detach().requires_grad_(with_gradient)
                with torch.set_grad_enabled(with_gradient):
                    loss_M = compare_outputs(original_MSK, self.run_models(flat_MP, images_SCHR), self.output)
                    loss = loss_M.sum() / views
                total += loss.detach()
                if with_gradient:
                    (gradient_VMP[view, models],) = torch.autograd.grad(loss, flat_MP)
        return total, gradient_VMP


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


def _forget_statistics(network: nn.Module) -> None:
    """Let norms use the statistics of the images of the step, and keep none."""
    for norm in list_norms(network):
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        norm.track_running_stats = False
