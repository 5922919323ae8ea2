"""The loss of MZ-SANE: masked, normalised reconstruction, a contrast between two views, penalties on the latents.

MZ-SANE, arXiv 2504.10141; the contrast is that of SimCLR, arXiv 2002.05709. All is computed in the precision of what is
given, float32 or float64; call it outside of autocast.

Padding is taken out by selection, not by multiplication: whatever stands there, NaN included, changes neither a value
nor a gradient.

Suffixes: B windows, W tokens of a window, D token width, L latent width, F projection width, G groups, N views.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mzsane.errors import ConfigError

_LAYER_BASE = 2**32  # above any number of layers: makes one key of a segment and a layer


def weigh_errors(
    output_BWD: Tensor,
    target_BWD: Tensor,
    mask_BWD: Tensor,
    segments_BW: Tensor,
    layers_BW: Tensor,
    normalisation: str,
    floor: float,
    relative_floor: float = 0.0,
    sum_ranks: Callable[[Tensor], Tensor] = lambda total: total,
) -> Tensor:
    """Divide the squared error of each weight by the squared deviation of the target weights that it belongs to.

    With `token` (MZ-SANE), for target token t, reconstruction t' and mask m: mu = sum(m t) / sum(m),
    s = sqrt(sum(m (t - mu)^2) / sum(m)), and the error of a weight is (t - t')^2 / (s + floor)^2. The other modes take
    mu and s over more tokens: `layer` over those of one layer of one model of one window, `window` over all of one
    model of one window (models that share a window count each for itself), `batch` over all (the published code).
    `none` divides by nothing.

    A nearly constant token, as a bias alone in its token, has almost no deviation and would outweigh all others. With a
    relative floor s is at least that share of the deviation of its model's weights in the window, so that no weight
    counts more than 1 / relative_floor^2 times what it does under `window`. Unlike the absolute floor it follows the
    model's scale. It applies to `token` and `layer`; of the groups of the other modes none is smaller than the model.

    The loss is the sum of the result over the number of weights. The deviations are taken as numbers that are given: no
    gradient flows through them.

    Args:
        output_BWD: reconstructed tokens.
        target_BWD: what they should be.
        mask_BWD: True where there is a weight.
        segments_BW: which model of its window a token is of; 0 in the padding (see `WindowBatch`).
        layers_BW: number of the layer that a token is of.
        normalisation: token, layer, window, batch or none.
        floor: added to the deviation, in weight units; above 0.
        relative_floor: least deviation that counts, as a share of the model's.
        sum_ranks: sums a tensor of a few numbers over the processes of a data-parallel run, for `batch`.

    Returns:
        (B, W, D), zero in the padding.

    Raises:
        ConfigError: there is no such normalisation.
    """
    deviations_BW = _measure_deviations(
        target_BWD, mask_BWD, segments_BW, layers_BW, normalisation, floor, relative_floor, sum_ranks
    )
    error_BWD = torch.where(mask_BWD, output_BWD - target_BWD, 0.0)
    return (error_BWD / deviations_BW[:, :, None]).square()


@torch.no_grad()
def measure_scales(tokens_BTD: Tensor, mask_TD: Tensor) -> Tensor:
    """Return the deviation of each token's weights from their mean, (B, T): what `token` divides by, without floors."""
    count, _, squares = _measure_tokens(tokens_BTD, mask_TD.expand(tokens_BTD.shape))
    return (squares / count.clamp(min=1)).sqrt()


@torch.no_grad()
def _measure_deviations(
    target_BWD: Tensor,
    mask_BWD: Tensor,
    segments_BW: Tensor,
    layers_BW: Tensor,
    normalisation: str,
    floor: float,
    relative_floor: float,
    sum_ranks: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return what each token's errors are divided by, floors included: (B, W), or (1, 1) if it is one number."""
    if normalisation == "none":
        return target_BWD.new_ones(1, 1)
    count_BW, mean_BW, squares_BW = _measure_tokens(target_BWD, mask_BWD)
    if normalisation == "batch":
        sums_2 = sum_ranks(torch.stack([count_BW.sum(), (count_BW * mean_BW).sum()]))
        count = sums_2[0].clamp(min=1)
        squares = sum_ranks((squares_BW + count_BW * (mean_BW - sums_2[1] / count).square()).sum())
        deviation: Tensor = (squares / count).sqrt() + floor
        return deviation.view(1, 1)
    if normalisation == "token":
        deviations_BW = (squares_BW / count_BW.clamp(min=1)).sqrt()
    elif normalisation == "layer":
        deviations_BW = _pool_deviations(count_BW, mean_BW, squares_BW, segments_BW * _LAYER_BASE + layers_BW)
    elif normalisation == "window":
        deviations_BW = _pool_deviations(count_BW, mean_BW, squares_BW, segments_BW)
    else:
        raise ConfigError(
            f"backbone.normalisation is {normalisation!r}, but must be one of token, layer, window, batch, none"
        )
    if relative_floor and normalisation != "window":
        of_model_BW = _pool_deviations(count_BW, mean_BW, squares_BW, segments_BW)
        deviations_BW = torch.maximum(deviations_BW, relative_floor * of_model_BW)
    return deviations_BW + floor


def _measure_tokens(tokens_BWD: Tensor, mask_BWD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each token's number of weights, their mean, and the sum of their squared deviations from it.

    Twice over the weights, because a mean of squares less the square of the mean loses all digits of a small deviation.
    """
    count_BW = mask_BWD.sum(dim=-1, dtype=tokens_BWD.dtype)
    mean_BW = torch.where(mask_BWD, tokens_BWD, 0.0).sum(dim=-1) / count_BW.clamp(min=1)
    squares_BW = torch.where(mask_BWD, tokens_BWD - mean_BW[..., None], 0.0).square().sum(dim=-1)
    return count_BW, mean_BW, squares_BW


def _pool_deviations(count_BW: Tensor, mean_BW: Tensor, squares_BW: Tensor, key_BW: Tensor) -> Tensor:
    """Return for each token the deviation of all weights of those tokens of its window that have its key, (B, W).

    Squared deviations from a group's mean are those from the token's own mean, and count (token's mean - group's)^2.
    """
    # Number the groups of a window 0, 1, ...: sorted, so that no size must be fetched from a GPU.
    sorted_BW, order_BW = key_BW.sort(dim=1)
    number_BW = torch.zeros_like(key_BW)
    number_BW[:, 1:] = (sorted_BW[:, 1:] != sorted_BW[:, :-1]).cumsum(dim=1)
    group_BW = torch.empty_like(key_BW).scatter_(1, order_BW, number_BW)

    def add_up(values_BW: Tensor) -> Tensor:
        return torch.zeros_like(values_BW).scatter_add_(1, group_BW, values_BW).gather(1, group_BW)

    group_count_BW = add_up(count_BW).clamp(min=1)
    group_mean_BW = add_up(count_BW * mean_BW) / group_count_BW
    group_squares_BW = add_up(squares_BW + count_BW * (mean_BW - group_mean_BW).square())
    return (group_squares_BW / group_count_BW).sqrt()


def contrast_loss(
    first_BF: Tensor, second_BF: Tensor, temperature: float, kind: Literal["simclr", "positive"] = "simclr"
) -> Tensor:
    """Compare the projections of two views of the same windows; only their directions count.

    `simclr` is NT-Xent: each view against all others of the batch, of which the other view of its window is the right
    one; a single window has no others, and its loss is 0. `positive` is attraction alone, the mean of 1 - cosine: 0 for
    identical views, the least there is. A view whose projection is all zeros (it ends in a ReLU) has cosine 0 with all.

    Args:
        first_BF: projections of the first views; in a data-parallel run those of all processes, gathered.
        second_BF: projections of the second views of the same windows.
        temperature: divides the cosines of `simclr`.
        kind: simclr or positive.
    """
    views_NF = torch.cat([first_BF, second_BF])
    norm_N1 = torch.linalg.vector_norm(views_NF, dim=1, keepdim=True)
    views_NF = views_NF / torch.where(norm_N1 == 0, 1.0, norm_N1)
    if kind == "positive":
        first_BF, second_BF = views_NF.chunk(2)
        return 1 - (first_BF * second_BF).sum(dim=1).mean()
    similarity_NN = views_NF @ views_NF.T / temperature
    itself_NN = torch.eye(len(views_NF), dtype=torch.bool, device=views_NF.device)
    partner_N = torch.arange(len(views_NF), device=views_NF.device).roll(len(first_BF))
    return functional.cross_entropy(similarity_NN.masked_fill(itself_NN, float("-inf")), partner_N)


def latent_penalties(
    latents_BWL: Tensor, real_BW: Tensor, sum_ranks: Callable[[Tensor], Tensor] = lambda total: total
) -> tuple[Tensor, Tensor]:
    """Return what large and what spread latents cost.

    In a data-parallel run this process's part of it, with gradients for its own latents; no gradient flows through the
    means of the others, and none is missed, because deviations from a mean sum to 0.

    Args:
        latents_BWL: the latents.
        real_BW: True where there is a token.
        sum_ranks: sums a tensor of a few numbers over the processes of a data-parallel run.

    Returns:
        The mean square of the latents of real tokens, and the mean over the dimensions of their variance over these
        tokens.
    """
    real_BW1 = real_BW[:, :, None]
    latents_BWL = torch.where(real_BW1, latents_BWL, 0.0)
    count = sum_ranks(real_BW.sum()).clamp(min=1)
    mean_L = sum_ranks(latents_BWL.sum(dim=(0, 1))) / count
    deviation_BWL = torch.where(real_BW1, latents_BWL - mean_L, 0.0)
    numbers = count * latents_BWL.shape[-1]
    return latents_BWL.square().sum() / numbers, deviation_BWL.square().sum() / numbers


@torch.no_grad()
def group_errors(
    output_BWD: Tensor, target_BWD: Tensor, mask_BWD: Tensor, *groupings: tuple[Tensor, int]
) -> list[Tensor]:
    """Return R2 for each group of tokens: 1 - squared error / squared deviation from the group's mean.

    In float64, so that the mean of equal weights is exactly their value, and groups without variance are found.

    Args:
        output_BWD: reconstructed tokens; any number of axes before the last.
        target_BWD: what they should be.
        mask_BWD: True where there is a weight.
        groupings: ways to group the tokens: the group that a token is of, (B, W), 0 to G - 1, or -1 if it is left out,
            and the number of groups G.

    Returns:
        For each grouping (G,), float64; NaN for a group without weights or whose weights do not vary.
    """
    count_BW, mean_BW, squares_BW = _measure_tokens(target_BWD.double(), mask_BWD)
    error_BW = torch.where(mask_BWD, output_BWD.double() - target_BWD.double(), 0.0).square().sum(dim=-1)
    found = []
    for group_BW, groups in groupings:
        # What is left out goes to one more group at the end.
        group_BW = torch.where(group_BW < 0, groups, group_BW)
        sums_4G = count_BW.new_zeros(4, groups + 1)
        sums_4G.index_add_(
            1, group_BW.flatten(), torch.stack([count_BW, count_BW * mean_BW, squares_BW, error_BW]).flatten(1)
        )
        count_G, total_G, squares_G, error_G = sums_4G
        mean_G = total_G / count_G.clamp(min=1)
        between_BW = count_BW * (mean_BW - mean_G[group_BW]).square()
        squares_G = squares_G.index_add(0, group_BW.flatten(), between_BW.flatten())
        found.append(torch.where(squares_G > 0, 1 - error_G / squares_G, float("nan"))[:groups])
    return found


def explained_variance(output_BWD: Tensor, target_BWD: Tensor, mask_BWD: Tensor) -> float:
    """Return R2 over all weights: 1 - squared error / squared deviation from their mean; NaN if they do not vary."""
    one_group_BW = torch.zeros(target_BWD.shape[:-1], dtype=torch.int64, device=target_BWD.device)
    (r2_1,) = group_errors(output_BWD, target_BWD, mask_BWD, (one_group_BW, 1))
    return float(r2_1)
