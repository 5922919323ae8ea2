"""Interpolation between anchors.

Suffixes: A anchors, S samples, T tokens, L latent width.
"""

import torch

from mzsane.errors import ConfigError
from mzsane.sampling.samplers.protocol import Anchors, Drawn, mark_used


def sample_interpolation(anchors: Anchors, bandwidth: float, count: int, generator: torch.Generator) -> Drawn:
    """Sample a place on the line between two anchors, uniformly from the first up to a share of the way.

    The bandwidth is that share: 1 is the whole line, 0 the first anchor.

    Raises:
        ConfigError: there are fewer than two anchors.
    """
    number = len(anchors.latents_ATL)
    if number < 2:
        raise ConfigError(f"sampling.sampler interpolation needs at least 2 anchors, not {number}")
    first_S = torch.randint(number, (count,), generator=generator)
    second_S = (first_S + torch.randint(1, number, (count,), generator=generator)) % number
    share_S = bandwidth * torch.rand(count, generator=generator)
    drawn_STL = torch.lerp(anchors.latents_ATL[first_S], anchors.latents_ATL[second_S], share_S[:, None, None])
    return Drawn(drawn_STL, mark_used(torch.stack([first_S, second_S], dim=1), number))
