"""Functional novelty: whether a model errs as a training model does.

Half of the directions in the space of weights change nothing of what a network computes, so that distance alone says
little. Two networks that learned by themselves make errors of their own; a copy makes those of its original. Errors
are compared, not predictions: two accurate networks agree on most images whatever else they are (arXiv 2506.07998).

Suffixes: S models that are judged, N known models, I images.
"""

import torch
from torch import Tensor


def error_overlap(classes_SI: Tensor, classes_NI: Tensor, labels_I: Tensor) -> tuple[Tensor, Tensor]:
    """Return the overlap of each model's errors with those of the known model whose errors are most like them.

    The overlap is the number of images that both get wrong over the number that at least one does. Two models without
    an error have none in common that could tell them apart, and an overlap of 1.

    Args:
        classes_SI: predicted classes of the models.
        classes_NI: predicted classes of the known models.
        labels_I: right classes.

    Returns:
        The overlap, from 0 to 1, (S,), and the known model's number, (S,).
    """
    wrong_SI, wrong_NI = ((classes != labels_I).double() for classes in (classes_SI, classes_NI))
    both_SN = wrong_SI @ wrong_NI.T
    either_SN = wrong_SI.sum(dim=1)[:, None] + wrong_NI.sum(dim=1)[None] - both_SN
    overlap_SN = torch.where(either_SN > 0, both_SN / either_SN.clamp(min=1), 1.0)
    overlap_S, most_similar_S = overlap_SN.max(dim=1)
    return overlap_S, most_similar_S


def measure_disagreement(classes_SI: Tensor, others_SI: Tensor, labels_I: Tensor) -> Tensor:
    """Return how often a model and another put an image in different classes, of those that one of them gets right.

    Images that both get wrong are left out, on which inaccurate networks disagree for no good reason; NaN where both
    get every image wrong.

    Args:
        classes_SI: predicted classes of the models.
        others_SI: those of the model that each is compared with.
        labels_I: right classes.
    """
    right_SI = (classes_SI == labels_I) | (others_SI == labels_I)
    different_SI = (classes_SI != others_SI) & right_SI
    return different_SI.sum(dim=1).double() / right_SI.sum(dim=1)
