"""A Gaussian for each layer: what the statistics of the latents alone give.

Suffixes: A anchors, S samples, T tokens, L latent width, R layers.
"""

import torch

from mzsane.sampling.samplers.protocol import Anchors, Drawn


def sample_gaussian(anchors: Anchors, bandwidth: float, count: int, generator: torch.Generator) -> Drawn:
    """Sample each latent number with its mean and deviation over the anchors and the tokens of its layer.

    No sample is near an anchor. The deviation is multiplied by the bandwidth: 1 is the statistics as they are, 0 the
    means alone.
    """
    latents_ATL, layers_T = anchors.latents_ATL, anchors.layers_T
    layers = int(layers_T.max()) + 1
    mean_RL = torch.zeros(layers, latents_ATL.shape[2])
    deviation_RL = torch.zeros_like(mean_RL)
    for layer in range(layers):
        of_layer_XL = latents_ATL[:, layers_T == layer].flatten(0, 1)
        mean_RL[layer], deviation_RL[layer] = of_layer_XL.mean(dim=0), of_layer_XL.std(dim=0, correction=0)
    noise_STL = torch.randn(count, *latents_ATL.shape[1:], generator=generator)
    drawn_STL = mean_RL[layers_T] + bandwidth * deviation_RL[layers_T] * noise_STL
    return Drawn(drawn_STL, torch.zeros(count, len(latents_ATL), dtype=torch.bool))
