"""Loss, accuracy and calibration of many models at once, and of their ensembles, from what they predict.

Suffixes: B models, E ensembles, N images, K classes, X bins.
"""

import math

import torch
from torch import Tensor

BINS = 15  # of the confidence, equally wide


def measure_predictions(log_probabilities_BNK: Tensor, labels_N: Tensor) -> list[tuple[float, float, float]]:
    """Return each model's mean cross-entropy (nats; infinite if not a number), accuracy (0..1) and calibration error.

    The expected calibration error (arXiv 1706.04599): images are sorted in bins by the probability of the predicted
    class, and the difference between mean probability and accuracy of each bin is averaged over the images, 0..1. NaN
    where a model's outputs are not numbers.
    """
    models, count = log_probabilities_BNK.shape[:2]
    labels_BN1 = labels_N.expand(models, -1)[:, :, None]
    loss_B = -log_probabilities_BNK.gather(2, labels_BN1).double().mean(dim=(1, 2))
    highest_BN, classes_BN = log_probabilities_BNK.max(dim=2)
    correct_BN = classes_BN == labels_N
    confidence_BN = highest_BN.double().exp()
    bin_BN = (confidence_BN.nan_to_num(0.0) * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    gap_BX = confidence_BN.new_zeros(models, BINS).scatter_add(1, bin_BN, confidence_BN - correct_BN.double())
    calibration_B = gap_BX.abs().sum(dim=1) / count
    loss_B = loss_B.nan_to_num(nan=math.inf, posinf=math.inf)
    accuracy_B = correct_BN.sum(dim=1).double() / count
    return list(zip(loss_B.tolist(), accuracy_B.tolist(), calibration_B.tolist(), strict=True))


def join_predictions(log_probabilities_BNK: Tensor, size: int) -> Tensor:
    """Return the log of the mean probabilities of each `size` models in a row, (E, N, K).

    What is left over at the end is in no ensemble.
    """
    ensembles = len(log_probabilities_BNK) // size
    members = log_probabilities_BNK[: ensembles * size].unflatten(0, (ensembles, size))
    joined_ENK: Tensor = torch.logsumexp(members, dim=1) - math.log(size)
    return joined_ENK
