"""The loss of MZ-SANE: masked, normalised reconstruction and a contrast between two views.

Suffixes: B windows, W tokens of a window, D token width, F projection width.
"""

import torch
from torch import Tensor
from torch.nn import functional


def reconstruction_loss(
    output_BWD: Tensor, target_BWD: Tensor, mask_BWD: Tensor, normalisation: str, floor: float
) -> Tensor:
    """Squared error over the target's variance, averaged over real weights; padding never counts.

    With `token`, for each token t with mask m: mu = sum(m t) / sum(m), s = sqrt(sum(m (t - mu)^2) / sum(m)) + floor,
    and the loss is the sum of (t - t')^2 / s^2 over all weights, divided by their number (MZ-SANE). With `batch`, one
    mu and s over the whole batch (the released code). With `none`, s = 1.
    """
    target_BWD = target_BWD * mask_BWD
    error_BWD = (output_BWD - target_BWD).square() * mask_BWD
    if normalisation == "none":
        return error_BWD.sum() / mask_BWD.sum()
    axes = (-1,) if normalisation == "token" else (0, 1, 2)
    count = mask_BWD.sum(dim=axes, keepdim=True).clamp(min=1)
    mean = target_BWD.sum(dim=axes, keepdim=True) / count
    variance = ((target_BWD - mean).square() * mask_BWD).sum(dim=axes, keepdim=True) / count
    return (error_BWD / (variance.sqrt() + floor).square()).sum() / mask_BWD.sum()


def contrast_loss(first_BF: Tensor, second_BF: Tensor, temperature: float) -> Tensor:
    """NT-Xent (SimCLR): each view against all others of the batch, its own other view being the right one."""
    batch = len(first_BF)
    z = functional.normalize(torch.cat([first_BF, second_BF]), dim=1)
    similarity = z @ z.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * batch, dtype=torch.bool, device=z.device), float("-inf"))
    partner = torch.arange(2 * batch, device=z.device).roll(batch)
    return functional.cross_entropy(similarity, partner)


def explained_variance(output_BWD: Tensor, target_BWD: Tensor, mask_BWD: Tensor) -> float:
    """R2 over real weights: 1 - squared error / squared deviation from their overall mean."""
    target = target_BWD[mask_BWD]
    error = (output_BWD[mask_BWD] - target).square().sum()
    return float(1 - error / (target - target.mean()).square().sum())
