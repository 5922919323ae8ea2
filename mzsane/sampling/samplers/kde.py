"""Kernel density samplers: latents of anchors plus Gaussian noise (HR-gen, arXiv 2209.14733; SANE, 2406.09997).

They differ in what shares an anchor and what shares its noise. The kernel's width is the bandwidth, in deviations of
each latent number over the anchors; with a bandwidth of 0 there is no noise.

Suffixes: A anchors, S samples, T tokens, L latent width.
"""

import torch

from mzsane.sampling.samplers.protocol import Anchors, Drawn, mark_used


def sample_joint(anchors: Anchors, bandwidth: float, count: int, generator: torch.Generator) -> Drawn:
    """Sample whole models: one anchor for all tokens of a sample, and fresh noise for each latent number."""
    _, tokens, width = anchors.latents_ATL.shape
    return _sample(anchors, bandwidth, count, generator, (1, 1), (tokens, width))


def sample_shared(anchors: Anchors, bandwidth: float, count: int, generator: torch.Generator) -> Drawn:
    """Sample one anchor and one noise vector for all tokens of a sample: what the published code of SANE does.

    It calls this `token`: its generator starts anew at each token, so that all draw the same.
    """
    width = anchors.latents_ATL.shape[2]
    return _sample(anchors, bandwidth, count, generator, (1, 1), (1, width))


def sample_token(anchors: Anchors, bandwidth: float, count: int, generator: torch.Generator) -> Drawn:
    """Sample each token by itself: an anchor and noise of its own."""
    _, tokens, width = anchors.latents_ATL.shape
    return _sample(anchors, bandwidth, count, generator, (tokens, 1), (tokens, width))


def sample_individual(anchors: Anchors, bandwidth: float, count: int, generator: torch.Generator) -> Drawn:
    """Sample each latent number by itself: an anchor and noise of its own."""
    _, tokens, width = anchors.latents_ATL.shape
    return _sample(anchors, bandwidth, count, generator, (tokens, width), (tokens, width))


def _sample(
    anchors: Anchors,
    bandwidth: float,
    count: int,
    generator: torch.Generator,
    chosen_shape: tuple[int, int],
    noise_shape: tuple[int, int],
) -> Drawn:
    latents_ATL = anchors.latents_ATL
    number, tokens, width = latents_ATL.shape
    chosen = torch.randint(number, (count, *chosen_shape), generator=generator)
    centres_STL = latents_ATL.gather(0, chosen.expand(count, tokens, width))
    noise = torch.randn(count, *noise_shape, generator=generator)
    drawn_STL = centres_STL + bandwidth * latents_ATL.std(dim=0, correction=0) * noise
    return Drawn(drawn_STL, mark_used(chosen.flatten(1), number))
