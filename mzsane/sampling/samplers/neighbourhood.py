"""Sampling in the low-rank neighbourhood of an anchor: noise only in the directions in which its neighbours lie.

The idea of HR-gen (arXiv 2209.14733), which samples in a low-dimensional map of the latents; here the map is the linear
one that the nearest anchors span.

Suffixes: A anchors, N neighbours, S samples, T tokens, L latent width.
"""

import torch

from mzsane.errors import ConfigError
from mzsane.sampling.samplers.protocol import Anchors, Drawn, mark_used

_NEIGHBOURS = 5


def sample_neighbourhood(anchors: Anchors, bandwidth: float, count: int, generator: torch.Generator) -> Drawn:
    """Sample an anchor, and from it a Gaussian combination of the ways to its nearest neighbours.

    The bandwidth is the expected length of the step, in units of the root mean square distance to the neighbours, were
    the ways orthogonal.

    Raises:
        ConfigError: there are fewer than two anchors.
    """
    latents_ATL = anchors.latents_ATL
    number = len(latents_ATL)
    if number < 2:
        raise ConfigError(f"sampling.sampler neighbourhood needs at least 2 anchors, not {number}")
    flat_AX = latents_ATL.flatten(1)
    distances_AA = torch.cdist(flat_AX, flat_AX).fill_diagonal_(float("inf"))
    neighbours_AN = distances_AA.topk(min(_NEIGHBOURS, number - 1), largest=False).indices
    chosen_S = torch.randint(number, (count,), generator=generator)
    near_SN = neighbours_AN[chosen_S]
    step_SN = bandwidth * torch.randn(near_SN.shape, generator=generator) / near_SN.shape[1] ** 0.5
    ways_SNTL = latents_ATL[near_SN] - latents_ATL[chosen_S][:, None]
    drawn_STL = latents_ATL[chosen_S] + torch.einsum("sn,sntl->stl", step_SN, ways_SNTL)
    return Drawn(drawn_STL, mark_used(torch.cat([chosen_S[:, None], near_SN], dim=1), number))
