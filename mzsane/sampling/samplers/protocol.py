"""What a sampler is: latents of anchors in, latents of new models out.

Suffixes: A anchors, S samples, T tokens, L latent width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Anchors:
    """What a sampler starts from. Equal to itself alone: a sampler may keep what it has learned from it.

    Attributes:
        latents_ATL: latents of the anchors, all of one layout.
        layers_T: number of the layer that a token is of, 0, 1, ...
        seed: of what a sampler learns from them.
    """

    latents_ATL: Tensor
    layers_T: Tensor
    seed: int = 0


@dataclass(frozen=True)
class Drawn:
    """Drawn latents.

    Attributes:
        latents_STL: the latents.
        used_SA: True where a sample was made of an anchor's own latents; nowhere, if only of what all have in common.
    """

    latents_STL: Tensor
    used_SA: Tensor


# Takes anchors, bandwidth, number of samples S and the source of all that is random, fresh in each call.
Sampler = Callable[[Anchors, float, int, torch.Generator], Drawn]


def mark_used(chosen_SX: Tensor, anchors: int) -> Tensor:
    """Return which anchors are among those chosen for each sample, (S, A)."""
    return torch.zeros(len(chosen_SX), anchors, dtype=torch.bool).scatter_(1, chosen_SX, True)
