"""Augmentations of windows: noise, erasing, and mixing of samples that show the same places.

All take and return tokens of any number of views, leave the padding zero, draw from an explicit generator and write
to nothing that they are given. A strength of 0 changes nothing.

Suffixes: V views (or no such axis), B windows, W tokens of a window, D token width, S samples (all views of all
windows).
"""

import torch
from torch import Tensor

from mzsane.errors import ConfigError


def add_noise(tokens_VBWD: Tensor, mask_BWD: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of a standard deviation, in the unit of the weights.

    Raises:
        ConfigError: the deviation is negative.
    """
    _check_least("deviation of the additive noise", deviation)
    noise_VBWD = _draw_normal(tokens_VBWD, generator)
    return tokens_VBWD + deviation * noise_VBWD * mask_BWD


def scale_noise(tokens_VBWD: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Multiply every weight by 1 plus Gaussian noise of a standard deviation.

    Raises:
        ConfigError: the deviation is negative.
    """
    _check_least("deviation of the multiplicative noise", deviation)
    return _draw_normal(tokens_VBWD, generator).mul_(deviation).add_(1).mul_(tokens_VBWD)


def erase(
    tokens_VBWD: Tensor, share: float, generator: torch.Generator, probability: float = 1.0, rectangles: int = 1
) -> Tensor:
    """Set rectangles of the plane of tokens and their width to zero, each sample's own (arXiv 1708.04896).

    Args:
        tokens_VBWD: tokens.
        share: area of a rectangle, as a share of the plane, up to rounding of its sides; of any shape.
        generator: for places and shapes.
        probability: that a sample is erased at all.
        rectangles: of a sample; they may overlap.

    Raises:
        ConfigError: the share or the probability is not from 0 to 1.
    """
    _check_share("share that is erased", share)
    _check_share("probability of erasing", probability)
    window, width = tokens_VBWD.shape[-2:]
    samples = tokens_VBWD[..., 0, 0].numel()
    kept_SWD = torch.ones(samples, window, width, dtype=torch.bool)
    erased_S1 = torch.rand(samples, 1, generator=generator) < probability
    for _ in range(rectangles if share > 0 else 0):
        # The side along the tokens is between the share and 1 of the window, evenly in the logarithm.
        side_S1 = share ** torch.rand(samples, 1, generator=generator)
        rows_SW = _draw_run(side_S1, window, generator)
        columns_SD = _draw_run(share / side_S1, width, generator)
        kept_SWD &= ~((rows_SW & erased_S1)[:, :, None] & columns_SD[:, None, :])
    return tokens_VBWD * kept_SWD.view(tokens_VBWD.shape).to(tokens_VBWD.device)


def mix_up(
    tokens_VBWD: Tensor, mask_BWD: Tensor, positions_BW3: Tensor, strength: float, generator: torch.Generator
) -> Tensor:
    """Mix each window with another of the same places: (1 - s) of its own and s of the other's (arXiv 1710.09412).

    The share s is drawn evenly from 0 to `strength`, for each window one, the same in all its views. A window whose
    places no other shows stays as it is.

    Raises:
        ConfigError: the strength is not from 0 to 1.
    """
    _check_share("strength of mix-up", strength)
    partner_B = draw_partners(mask_BWD, positions_BW3, generator).to(tokens_VBWD.device)
    share_B11 = strength * torch.rand(len(mask_BWD), 1, 1, generator=generator).to(tokens_VBWD)
    return torch.lerp(tokens_VBWD, tokens_VBWD.index_select(-3, partner_B), share_B11)


def cut_mix(
    tokens_VBWD: Tensor, mask_BWD: Tensor, positions_BW3: Tensor, share: float, generator: torch.Generator
) -> Tensor:
    """Replace a run of tokens of each window by another window's of the same places (arXiv 1905.04899).

    The run is a share of the window at a random place, for each window one, the same in all its views. A window
    whose places no other shows stays as it is.

    Raises:
        ConfigError: the share is not from 0 to 1.
    """
    _check_share("share of cut-mix", share)
    partner_B = draw_partners(mask_BWD, positions_BW3, generator).to(tokens_VBWD.device)
    batch, window = mask_BWD.shape[:2]
    run_BW = _draw_run(torch.full((batch, 1), share), window, generator).to(tokens_VBWD.device)
    return torch.where(run_BW[:, :, None], tokens_VBWD.index_select(-3, partner_B), tokens_VBWD)


def draw_partners(mask_BWD: Tensor, positions_BW3: Tensor, generator: torch.Generator) -> Tensor:
    """Draw for each window another that shows the same places, itself if there is none; (B,) int64 on the CPU.

    Windows of the same places are put in a random circle; the partner is the next one.
    """
    places_BX = torch.cat([positions_BW3.flatten(1), mask_BWD.flatten(1).long()], dim=1)
    _, kind_B = torch.unique(places_BX, dim=0, return_inverse=True)
    kind_B = kind_B.cpu()
    partner_B = torch.empty_like(kind_B)
    for kind in range(int(kind_B.max()) + 1):
        alike = torch.nonzero(kind_B == kind).squeeze(1)
        circle = alike[torch.randperm(len(alike), generator=generator)]
        partner_B[circle] = circle.roll(1)
    return partner_B


def _draw_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _draw_run(share_S1: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Draw for each sample a run of consecutive places, (S, length) bool, as long as its share of the length."""
    size_S1 = (share_S1 * length).round()
    draws_S1 = torch.rand(share_S1.shape, dtype=torch.float64, generator=generator)
    first_S1 = (draws_S1 * (length - size_S1 + 1)).floor()
    place_L = torch.arange(length)
    return (place_L >= first_S1) & (place_L < first_S1 + size_S1)


def _check_least(name: str, value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"the {name} must be at least 0, not {value}")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"the {name} must be from 0 to 1, not {value}")
