"""Whether generated models are distributed as held-out trained models are: coverage, and a test for copying.

Novelty 1 is necessary and not sufficient: what was made might cover a corner of the population only, or keep closer to
the training models than training again does.

Suffixes: S generated models, H held-out models, P weights of a model.
"""

import math

from scipy.stats import mannwhitneyu
from torch import Tensor

from mzsane.evaluation.novelty import KnownModels


def measure_coverage(known: KnownModels, held_out_HP: Tensor, flat_SP: Tensor, neighbours: int = 5) -> float:
    """Return the share of held-out models that have a generated one beside them (Naeem et al. 2020, arXiv 2002.09797).

    Beside means no farther than the held-out model's `neighbours`-th nearest other one, up to symmetry. With as many
    generated models, drawn from the population that the held-out ones are from, about 1 - 2^-neighbours is expected;
    with more generated models it is more.

    Args:
        known: the training models; they say how models are compared.
        held_out_HP: trained models that the generator has not seen.
        flat_SP: generated models. Those whose weights are not finite cover nothing.
        neighbours: which neighbour gives the radius; the farthest where there are fewer.

    Returns:
        The share, 0..1; NaN for fewer than two held-out models.
    """
    count = len(held_out_HP)
    if count < 2:
        return math.nan
    flat_SP = flat_SP[flat_SP.isfinite().all(dim=1)]
    if not len(flat_SP):
        return 0.0
    held_out = known.against([f"{number:09d}" for number in range(count)], held_out_HP)
    others_HH = held_out.measure_distances(held_out_HP).fill_diagonal_(math.inf)
    radius_H = others_HH.kthvalue(min(neighbours, count - 1), dim=1).values
    covered_H = held_out.measure_distances(flat_SP).amin(dim=0) <= radius_H
    return float(covered_H.double().mean())


def measure_copying(sample_distances_S: Tensor, held_out_distances_H: Tensor) -> float:
    """Return whether samples are closer to training models than held-out models are (Meehan et al. 2020, 2004.05675).

    It is Z_U, the Mann-Whitney statistic of the distances to the nearest training model, with mean 0 and deviation 1
    where both are distributed alike: far below 0 samples copy, far above 0 they are farther than training again goes.
    Samples that go back to the same anchor are not independent, therefore it is too large on both sides.

    Args:
        sample_distances_S: of generated models; what is not a number is left out.
        held_out_distances_H: of trained models that the generator has not seen.

    Returns:
        NaN if there are none of either.
    """
    samples = sample_distances_S[sample_distances_S.isfinite()].double()
    held_out = held_out_distances_H[held_out_distances_H.isfinite()].double()
    pairs = len(samples) * len(held_out)
    if not pairs:
        return math.nan
    wins = float(mannwhitneyu(samples.numpy(), held_out.numpy()).statistic)
    return (wins - pairs / 2) / math.sqrt(pairs * (len(samples) + len(held_out) + 1) / 12)
