"""Whether models compute something else, told by the classes that they predict.

Two networks of equal accuracy differ less the better they are, so plain disagreement flatters bad models. Overlap of
wrong predictions and disagreement among images that at least one gets right do not (arXiv 2506.07998 compares sets of
errors as intersection over union).

Suffixes: S models that are judged, N known models, I images.
"""

import torch
from torch import Tensor


def error_overlap(classes_SI: Tensor, classes_NI: Tensor, labels_I: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each model the overlap of its errors with those of the most similar known model, and which that is.

    The overlap is the number of images that both get wrong over that of images that at least one gets wrong. Two models
    without errors are the same, with overlap 1.

    Args:
        classes_SI: predicted by the models that are judged.
        classes_NI: by the known models.
        labels_I: right classes.

    Returns:
        Overlap (S,) float64, and number of the known model (S,).
    """
    wrong_SI, wrong_NI = (classes_SI != labels_I).double(), (classes_NI != labels_I).double()
    both_SN = wrong_SI @ wrong_NI.T
    any_SN = wrong_SI.sum(dim=1)[:, None] + wrong_NI.sum(dim=1) - both_SN
    overlap_SN = torch.where(any_SN > 0, both_SN / any_SN, 1.0)
    overlap_S, similar_S = overlap_SN.max(dim=1)
    return overlap_S, similar_S


def measure_disagreement(classes_SI: Tensor, of_nearest_SI: Tensor, labels_I: Tensor) -> Tensor:
    """Return in how many of the images that a model or its nearest known one gets right the two differ, (S,).

    NaN where neither gets any right.

    Args:
        classes_SI: predicted by the models that are judged.
        of_nearest_SI: by the known model that is nearest to each.
        labels_I: right classes.
    """
    counted_SI = (classes_SI == labels_I) | (of_nearest_SI == labels_I)
    different_SI = counted_SI & (classes_SI != of_nearest_SI)
    return different_SI.sum(dim=1).double() / counted_SI.sum(dim=1)
