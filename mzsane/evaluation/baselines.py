"""Trivial ways to get a model, which every sampler must beat.

Suffixes: A anchors, S samples, P weights of a model.
"""

import torch
from torch import Tensor

from mzsane.config import ImagesConfig, NetworkConfig
from mzsane.layout.running import read_weights
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import start_network
from mzsane.problems.images.dataset import load_images
from mzsane.sampling.decoding import choose_initialisation
from mzsane.sampling.samplers.interpolation import sample_interpolation
from mzsane.sampling.samplers.protocol import Anchors


def add_layer_noise(
    anchors_AP: Tensor, chosen_S: Tensor, distances_S: Tensor, layout: TokenLayout, generator: torch.Generator
) -> Tensor:
    """Add Gaussian noise to anchors, for each sample to one of them, to a given distance from it.

    The noise of each tensor is proportional to that tensor's deviation over the anchors, as a sampler's would be.

    Args:
        anchors_AP: flat weights of the anchors.
        chosen_S: for each sample, the anchor that it starts from.
        distances_S: for each sample, its Euclidean distance to that anchor, in weight units.
        layout: where the tensors are.
        generator: source of the noise.

    Returns:
        Flat weights (S, P).
    """
    return add_decoded_noise(anchors_AP, anchors_AP, chosen_S, distances_S, layout, generator)


def add_decoded_noise(
    anchors_AP: Tensor,
    decoded_AP: Tensor,
    chosen_S: Tensor,
    distances_S: Tensor,
    layout: TokenLayout,
    generator: torch.Generator,
) -> Tensor:
    """Add Gaussian noise to decoded anchors, to a given distance from the anchors as they are.

    What an autoencoder loses is itself a displacement, and hardly a harmful one. Noise that starts from the anchor as
    it is has to make up for it; this noise has it for nothing, as the autoencoder's samples do. The noise is that of
    `add_layer_noise`.

    Args:
        anchors_AP: flat weights of the anchors.
        decoded_AP: flat weights of the same anchors after encoder and decoder.
        chosen_S: for each sample, the anchor that it starts from.
        distances_S: for each sample, its Euclidean distance to that anchor, not decoded, in weight units.
        layout: where the tensors are.
        generator: source of the noise.

    Returns:
        Flat weights (S, P). Where the decoded anchor is farther away than the sample, it is returned as it is.
    """
    scale_P = torch.cat([part.std().expand(part.shape[-1]) for part in _tensors(anchors_AP, layout)])
    noise_SP = torch.randn(len(chosen_S), anchors_AP.shape[1], generator=generator) * scale_P
    noise_SP = noise_SP / noise_SP.norm(dim=1, keepdim=True).clamp(min=torch.finfo(noise_SP.dtype).tiny)
    lost_SP = (decoded_AP - anchors_AP)[chosen_S]
    # The length a of the noise n solves |e + a n| = d for the decoded anchor's error e; |n| is 1.
    along_S = (lost_SP * noise_SP).double().sum(dim=1)
    room_S = (distances_S.double().square() - lost_SP.double().square().sum(dim=1)).clamp(min=0)
    length_S = (along_S.square() + room_S).sqrt() - along_S
    length_S = length_S.where(room_S > 0, 0.0).to(noise_SP.dtype)
    noisy_SP: Tensor = decoded_AP[chosen_S] + noise_SP * length_S[:, None]
    return noisy_SP


def average_anchors(anchors_AP: Tensor) -> Tensor:
    """Average aligned anchors weight by weight: one model, (1, P)."""
    return anchors_AP.mean(dim=0, keepdim=True)


def interpolate_anchors(anchors_AP: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw places on the lines between pairs of aligned anchors, uniformly: (count, P). Needs two anchors."""
    as_latents = Anchors(anchors_AP[:, None], torch.zeros(1, dtype=torch.int64))
    return sample_interpolation(as_latents, 1.0, count, generator).latents_STL[:, 0]


def draw_from_statistics(anchors_AP: Tensor, layout: TokenLayout, count: int, generator: torch.Generator) -> Tensor:
    """Draw each weight by itself, from a Gaussian with its tensor's mean and deviation over the anchors: (count, P)."""
    drawn_SP = torch.randn(count, anchors_AP.shape[1], generator=generator)
    parts = [
        part * known.std(correction=0) + known.mean()
        for part, known in zip(_tensors(drawn_SP, layout), _tensors(anchors_AP, layout), strict=True)
    ]
    return torch.cat(parts, dim=1)


def draw_random_models(
    network: NetworkConfig, images: ImagesConfig, layout: TokenLayout, count: int, generator: torch.Generator
) -> Tensor:
    """Draw new models (Kaiming uniform, biases 0.01; or as their factory starts them): flat weights (count, P)."""
    dataset = load_images(images)
    sizes = (dataset.channels, dataset.classes, dataset.size)
    models = []
    for _ in range(count):
        model = start_network(network, *sizes, choose_initialisation(network), generator)
        models.append(read_weights(layout, model))
    return torch.stack(models)


def _tensors(flat_AP: Tensor, layout: TokenLayout) -> list[Tensor]:
    return list(flat_AP.split([entry.size for entry in layout.tensors], dim=-1))
