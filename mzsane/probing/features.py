"""What probes see of checkpoints: latents of a backbone, and beside them weights and their statistics by layer.

Suffixes: E checkpoints, P weights of a model, T tokens, L latent width, C weights of a layer, F features.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mzsane.backbone.autoencoder import Autoencoder
from mzsane.backbone.inference import encode_models
from mzsane.backbone.validation.linear_probes import pool_latents
from mzsane.layout.token_layout import TokenLayout
from mzsane.randomness import make_generator

# All but the pooled latents belong to one layout: models of another architecture have other ones.
FEATURES = ("latents", "pooled_latents", "weights", "statistics", "statistics_latents")
POOLED, BASELINE = "pooled_latents", "statistics"
_SKETCHED = 4096  # of more weights a model, this many random sums take their place
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


def extract_features(model: Autoencoder, layout: TokenLayout, flat_EP: Tensor, window: int) -> Mapping[str, np.ndarray]:
    """Return the features of checkpoints, which are on the CPU, by name, (E, F) each.

    - `latents`: mean and deviation of the latents over the tokens of each layer.
    - `pooled_latents`: the same over all tokens, which models of any architecture have.
    - `weights`: the weights as they are; of a large model random sums of them (feature hashing), from which inner
      products come out right on average.
    - `statistics`: mean, variance and quantiles of the weights of each layer, without padding (Unterthiner et al.,
      arXiv 2002.11448): what a backbone has to beat.
    - `statistics_latents`: statistics and latents together.
    """
    latents_ETL = encode_models(model, layout, flat_EP, window)
    by_layer = [pool_latents(latents_ETL[:, layer.first : layer.first + layer.tokens]) for layer in layout.layers]
    latents_EF, statistics_EF = np.concatenate(by_layer, axis=1), measure_statistics(layout, flat_EP)
    return {
        "latents": latents_EF,
        "pooled_latents": pool_latents(latents_ETL),
        "weights": sketch_weights(flat_EP),
        "statistics": statistics_EF,
        "statistics_latents": np.concatenate([statistics_EF, latents_EF], axis=1),
    }


def measure_statistics(layout: TokenLayout, flat_EP: Tensor) -> np.ndarray:
    """Return mean, variance and quantiles of the weights of each layer, (E, 7 times layers)."""
    pieces = []
    for layer in layout.layers:
        index_TD = layout.gather_TD[layer.first : layer.first + layer.tokens]
        weights_EC = flat_EP[:, index_TD[index_TD >= 0]].double().sort(dim=1).values
        places = [round(share * (weights_EC.shape[1] - 1)) for share in _QUANTILES]
        pieces += [weights_EC.mean(1, keepdim=True), weights_EC.var(1, correction=0, keepdim=True)]
        pieces.append(weights_EC[:, places])
    return np.asarray(torch.cat(pieces, dim=1).numpy())


def sketch_weights(flat_EP: Tensor) -> np.ndarray:
    """Return the weights, or, of a large model, the sums of random groups of them with random signs: (E, F)."""
    weights = flat_EP.shape[1]
    if weights <= _SKETCHED:
        return np.asarray(flat_EP.double().numpy())
    generator = make_generator("features", weights)
    group_P = torch.randint(_SKETCHED, (weights,), generator=generator)
    sign_P = 2.0 * torch.randint(2, (weights,), generator=generator) - 1
    sums_EF = torch.zeros(len(flat_EP), _SKETCHED).index_add_(1, group_P, flat_EP * sign_P)
    return np.asarray(sums_EF.double().numpy())
