"""Noise in the flat directions of a trained network: a baseline that takes no gradient step.

A network hardly changes along most directions of its weights. The Gauss-Newton matrix says which: to first order the
logits of an image move by its Jacobian times the noise, so that noise outside the span of the Jacobian's rows moves
none of them.

Suffixes: A anchors, S samples, P weights of a model, N images, K classes, R directions, C channels, H height, W width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vjp, vmap

from mzsane.layout.buffers import copy_network
from mzsane.layout.running import load_weights, name_weights, share_buffers
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.behaviour import NetworkBehaviour
from mzsane.networks.conditioning import condition_statistics

# The share of a small network's directions that noise is kept out of. Measured on 10 anchors of a zoo of CNN-s on MNIST
# (93.0 %), at 0.5 / 0.75 / 1.0 spacings: outside these 87.7 / 69.1 / 41.3 % with training images, 82.9 / 60.3 / 37.3
# with noise images; outside the top half of the eigenvectors of the softmax-weighted Gauss-Newton matrix of 300 images
# 87.2 / 69.1 / 42.2 and 83.5 / 60.7 / 36.5, for four times the seconds.
_SHARE = 0.73
_DIRECTIONS = 2000  # at most
_NUMBERS = 2**26  # of all directions' weights in memory
_FEW_IMAGES, _MANY_IMAGES = 30, 300
_CHUNK = 32  # images whose Jacobians are computed together


def flatten_noise(
    network: nn.Module,
    layout: TokenLayout,
    anchors_AP: Tensor,
    chosen_S: Tensor,
    distances_S: Tensor,
    images_NCHW: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Add to anchors noise that their logits on some images do not feel to first order, to a given distance.

    The Jacobians of the logits of `count_images` images span 73 % of the weights' directions, or, in networks of more
    than 2,740 weights, 2,000 of them, or as many as there is memory for; the noise is Gaussian outside this span. That
    is as good as noise in the flat half of the spectrum of the Gauss-Newton matrix of 300 images. If there is memory
    for the Jacobians of fewer than 30 images only, each direction is that of a random combination of the logits of
    several images, 300 in all: of ResNet-18 with 11 M weights 6 directions are left out, and most steep ones are not.

    Batch norms are in evaluation mode. Running statistics that the layout leaves out are computed on the images at the
    anchor.

    Args:
        network: a network of the architecture; its weights are not used.
        layout: where the weights sit.
        anchors_AP: flat weights of the anchors.
        chosen_S: for each sample, the anchor that it starts from.
        distances_S: for each sample, its Euclidean distance to that anchor, in weight units.
        images_NCHW: unlabelled images, or images of noise, on the device that networks run on; of more than are needed
            some are drawn for each anchor.
        generator: source of the noise and of the draw of images.

    Returns:
        Flat weights (S, P).
    """
    noise_SP = torch.randn(len(chosen_S), layout.weights, generator=generator)
    for anchor in chosen_S.unique().tolist():
        own_S = chosen_S == anchor
        anchor_P = anchors_AP[anchor].to(images_NCHW.device)
        run = _open_network(network, layout, anchor_P, images_NCHW)
        steep_RP = _find_steep(run, anchor_P, images_NCHW, generator)
        basis_PR = torch.linalg.qr(steep_RP.T)[0].to(noise_SP.device)
        for _ in range(2):  # the first time leaves the rounding errors of what it takes away
            noise_SP[own_S] -= noise_SP[own_S] @ basis_PR @ basis_PR.T
    flat_SP: Tensor = anchors_AP[chosen_S] + noise_SP * (distances_S / noise_SP.norm(dim=1))[:, None]
    return flat_SP


def count_images(weights: int, classes: int, available: int) -> int:
    """Return how many images an anchor's flat directions are computed from."""
    wanted = _count_directions(weights) // (classes - 1)
    return min(available, wanted if wanted >= _FEW_IMAGES or weights <= _DIRECTIONS else _MANY_IMAGES)


def _count_directions(weights: int) -> int:
    return max(1, min(round(_SHARE * weights), _DIRECTIONS, _NUMBERS // weights))


def _open_network(
    network: nn.Module, layout: TokenLayout, anchor_P: Tensor, images_NCHW: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the logits, (N, K), as a function of flat weights near an anchor and of images."""
    if layout.running_statistics == "in":
        behaviour = NetworkBehaviour(network, layout, images_NCHW, 1, "logits")
        return behaviour.move(images_NCHW.device).run_model
    network = copy_network(network, images_NCHW[:1].cpu()).eval()
    share_buffers(layout, network)
    network.to(images_NCHW.device)
    if layout.running_statistics == "conditioned":
        load_weights(layout, network, anchor_P)
        condition_statistics(network, images_NCHW)

    def run(flat_P: Tensor, images_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = functional_call(network, name_weights(layout, flat_P), (images_NCHW,), tie_weights=False)
        return logits_NK

    return run


@torch.no_grad()
def _find_steep(
    run: Callable[[Tensor, Tensor], Tensor], flat_P: Tensor, images_NCHW: Tensor, generator: torch.Generator
) -> Tensor:
    """Return directions that logits depend on, (R, P), not orthogonal ones."""
    classes = run(flat_P, images_NCHW[:1]).shape[1]
    count = count_images(len(flat_P), classes, len(images_NCHW))
    images_NCHW = images_NCHW[torch.randperm(len(images_NCHW), generator=generator)[:count]]
    directions = _count_directions(len(flat_P))
    if count * (classes - 1) <= directions:

        def contrast(flat_P: Tensor, image_CHW: Tensor) -> Tensor:  # what softmax sees of the logits
            logits_K = run(flat_P, image_CHW[None])[0]
            return logits_K[1:] - logits_K[0]

        rows_NKP: Tensor = vmap(jacrev(contrast), in_dims=(None, 0), randomness="same", chunk_size=_CHUNK)(
            flat_P, images_NCHW
        )
        return rows_NKP.flatten(0, 1)
    rows = []
    for some_NCHW in images_NCHW.tensor_split(min(directions, count)):
        logits_NK, pull = vjp(lambda flat_P, some_NCHW=some_NCHW: run(flat_P, some_NCHW), flat_P)[:2]
        combination_NK = torch.randn(logits_NK.shape, generator=generator).to(logits_NK.device)
        rows.append(pull(combination_NK - combination_NK.mean(dim=1, keepdim=True))[0])
    return torch.stack(rows)
