"""Kernel density samplers over the latents of anchors (SANE, arXiv 2406.09997; HR-gen, 2209.14733).

Suffixes: A anchors, S samples, T tokens, L latent width.
"""

import torch
from torch import Tensor


def sample_joint(
    anchors_ATL: Tensor, bandwidth: float, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sample whole models: one anchor for all tokens of a sample, and fresh Gaussian noise for each latent number.

    Args:
        anchors_ATL: latents of the anchors.
        bandwidth: kernel width in deviations of each latent number over the anchors; 0 returns anchors.
        count: S.
        generator: source of the anchor choice and of the noise.

    Returns:
        Latents (S, T, L), and for each sample the number of its anchor (S).
    """
    chosen_S = torch.randint(len(anchors_ATL), (count,), generator=generator)
    deviation_TL = anchors_ATL.std(dim=0, correction=0)
    centres_STL = anchors_ATL[chosen_S]
    noise_STL = torch.randn(centres_STL.shape, generator=generator)
    return centres_STL + bandwidth * deviation_TL * noise_STL, chosen_S
