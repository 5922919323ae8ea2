"""The order of a model's checkpoints on its way through training, recovered from their features alone.

Suffixes: E checkpoints, of one model where not said otherwise, F features, O orders, M models, R resamples of models.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch

from mzsane.probing.measure import Checkpoints, Measure, average, draw_resamples

LEAST_EPOCHS = 3  # of two there is only the direction to tell
MOST_EPOCHS = 8  # on a path: all orders of them are tried


def find_direction(paths_EF: Sequence[np.ndarray]) -> np.ndarray:
    """Return the way that training takes from first to last checkpoint, the mean over models, (F,).

    Args:
        paths_EF: features of each model's checkpoints, in the order of their epochs.
    """
    return np.asarray(np.mean([path_EF[-1] - path_EF[0] for path_EF in paths_EF], axis=0))


def order_checkpoints(features_EF: np.ndarray, direction_F: np.ndarray) -> np.ndarray:
    """Return the place of each checkpoint on the shortest path through all of them, (E,).

    The path starts at the end from which the other one lies in the direction of training.

    Args:
        features_EF: features of a model's checkpoints, in any order; at most 8 of them.
        direction_F: where training goes.
    """
    count = len(features_EF)
    assert count <= MOST_EPOCHS
    distances_EE = np.linalg.norm(features_EF[:, None] - features_EF[None], axis=2)
    orders_OE = np.array([order for order in permutations(range(count)) if order[0] <= order[-1]])
    shortest_E = orders_OE[distances_EE[orders_OE[:, :-1], orders_OE[:, 1:]].sum(axis=1).argmin()]
    if (features_EF[shortest_E[-1]] - features_EF[shortest_E[0]]) @ direction_F < 0:
        shortest_E = shortest_E[::-1]
    return np.argsort(shortest_E)


def score_order(paths_EF: Sequence[np.ndarray], direction_F: np.ndarray) -> np.ndarray:
    """Return Kendall's tau between the epochs of each model's checkpoints and their places on its path, (M,).

    Args:
        paths_EF: features of each model's checkpoints, in the order of their epochs.
        direction_F: where training goes.
    """
    taus_M = []
    for path_EF in paths_EF:
        place_E = order_checkpoints(path_EF, direction_F)
        first, second = np.triu_indices(len(path_EF), k=1)
        # Where all checkpoints look the same there is no path, and the order that they came in says nothing.
        same = float(np.ptp(path_EF, axis=0).max()) == 0
        taus_M.append(0.0 if same else float(np.sign(place_E[second] - place_E[first]).mean()))
    return np.array(taus_M)


def score_trajectories(
    fitted: Checkpoints, scored: Checkpoints, generator: torch.Generator
) -> dict[str, list[Measure]]:
    """Return for each kind of features how well the order of each scored model's checkpoints is recovered.

    Args:
        fitted: checkpoints that tell which way training goes, and the scale of each feature.
        scored: checkpoints of other models.
        generator: draws the models of the resamples, which all features share.
    """
    assert not set(fitted.models_E) & set(scored.models_E), "a model is in both fit and score"
    weights_RM = draw_resamples(np.arange(count_paths(scored)), generator)
    measures: dict[str, list[Measure]] = {}
    for name, features_EF in fitted.features.items():
        measures[name] = []
        if np.isfinite(features_EF).all() and np.isfinite(scored.features[name]).all():
            scale_F = features_EF.std(axis=0)
            scale_F = np.where(scale_F > 0, scale_F, 1.0)
            known, asked = (_split_models(part, part.features[name] / scale_F) for part in (fitted, scored))
            tau_M = score_order(asked, find_direction(known))
            measures[name] = [Measure("tau", 0.0, average(tau_M, weights_RM))]
    return measures


def count_paths(checkpoints: Checkpoints) -> int:
    """Return the number of models with enough checkpoints for an order."""
    return int((np.unique(checkpoints.models_E, return_counts=True)[1] >= LEAST_EPOCHS).sum())


def _split_models(checkpoints: Checkpoints, features_EF: np.ndarray) -> list[np.ndarray]:
    """Return the features of the checkpoints of each model that has enough of them, in the order of their epochs."""
    epochs_E = checkpoints.index["epoch"].to_numpy()
    paths = []
    for name in np.unique(checkpoints.models_E):
        own = np.flatnonzero(checkpoints.models_E == name)
        if len(own) >= LEAST_EPOCHS:
            paths.append(features_EF[own[np.argsort(epochs_E[own])]])
    return paths
