"""Two-sample tests: whether generated models are distributed as held-out models of the zoo are.

A distance of one spacing is necessary and not sufficient: samples may all lie in one corner, or nearer to the training
models than any model that was trained by itself.

Suffixes: S generated models, H held-out models, P weights of a model.
"""

import math

import torch
from scipy.stats import rankdata
from torch import Tensor

from mzsane.evaluation.novelty.distance import KnownModels

NEIGHBOURS = 3  # held-out models within a ball: of so few models, no more


def measure_coverage(known: KnownModels, held_out_HP: Tensor, flat_SP: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Return the share of held-out models that have a generated model in their neighbourhood (arXiv 2002.09797).

    The neighbourhood of a held-out model reaches as far as its k-th nearest other one; distances are those of
    `KnownModels`.

    Args:
        known: says what symmetries are divided out.
        held_out_HP: held-out models.
        flat_SP: generated models.
        neighbours: k; fewer where there are fewer other held-out models.

    Returns:
        0 to 1; NaN with fewer than two held-out models or no generated one.
    """
    flat_SP = flat_SP[flat_SP.isfinite().all(dim=1)]
    count = len(held_out_HP)
    if count < 2 or not len(flat_SP):
        return math.nan
    held_out_HH = known.measure_distances(held_out_HP, held_out_HP).fill_diagonal_(math.inf)
    radius_H = held_out_HH.sort(dim=1).values[:, min(neighbours, count - 1) - 1]
    nearest_H = known.measure_distances(flat_SP, held_out_HP).min(dim=0).values
    return float((nearest_H <= radius_H).double().mean())


def measure_copying(sample_distances_S: Tensor, held_out_distances_H: Tensor) -> float:
    """Return Z_U: how much nearer to the training models generated models are than held-out ones (arXiv 2004.05675).

    It is the Mann-Whitney statistic of the distances, standardised with ties: about 0 for a perfect generator, far
    below 0 for one that copies, above 0 for one that is farther away than new models are.

    Args:
        sample_distances_S: distances of generated models to the nearest training model; what is not finite is left out.
        held_out_distances_H: those of held-out models.

    Returns:
        NaN where one of the two is empty.
    """
    ours, theirs = (values[values.isfinite()].double() for values in (sample_distances_S, held_out_distances_H))
    first, second = len(ours), len(theirs)
    if not first or not second:
        return math.nan
    ranks = torch.from_numpy(rankdata(torch.cat([ours, theirs]).numpy()))
    larger = float(ranks[:first].sum()) - first * (first + 1) / 2
    total = first + second
    ties = float(sum(count**3 - count for count in ranks.unique(return_counts=True)[1].tolist()))
    variance = first * second / 12 * (total + 1 - ties / (total * (total - 1)))
    return (larger - first * second / 2) / math.sqrt(variance) if variance > 0 else 0.0
