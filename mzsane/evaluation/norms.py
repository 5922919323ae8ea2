"""Whether a model's weights are as large as those of training models, layer by layer.

Distance can be bought by larger weights: a network that keeps its function while they grow is far from all training
models and nothing new. Weights with scales are balanced first, so that moving a scale from one layer to the next says
nothing.

Suffixes: S models that are judged, N known models, L layers, P weights of a model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mzsane.evaluation.novelty import KnownModels
from mzsane.evaluation.quotient import Quotient
from mzsane.tokens.layout import TokenLayout

_LOW, _HIGH = 0.01, 0.99  # quantiles of the known models' norms that bound the range
_CHUNK = 2**26  # weights of the known models that are in memory together


@dataclass(frozen=True)
class NormRange:
    """The norms of known models' weights by layer.

    Attributes:
        quotient: the symmetries, with the layout of what is compared.
        low_L: first percentile.
        median_L: median.
        high_L: 99th percentile.
        columns_P: the weights of a judged model that are compared; all if None.
    """

    quotient: Quotient
    low_L: Tensor
    median_L: Tensor
    high_L: Tensor
    columns_P: Tensor | None = None

    @classmethod
    def from_models(cls, known: KnownModels) -> "NormRange":
        """Measure known models at their last checkpoints."""
        size = max(1, _CHUNK // known.layout.weights)
        norms_NL = torch.cat(
            [
                _measure_norms(known.layout, known.quotient.balance(known.load(some)))
                for some in known.last_N.split(size)
            ]
        )
        low_L, median_L, high_L = (torch.quantile(norms_NL, level, dim=0) for level in (_LOW, 0.5, _HIGH))
        return cls(known.quotient, low_L, median_L, high_L, known.columns_P)

    def measure(self, flat_SP: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest deviation of a layer's norm from the median, and whether a layer is outside the range.

        Returns:
            The norm over the median or the median over the norm, whichever is above 1, in the layer where that is
            largest, (S,); NaN where weights are not finite. Whether the norm of any layer is below the first or above
            the 99th percentile, or not a number, (S,) bool.
        """
        body_SP = flat_SP if self.columns_P is None else flat_SP[:, self.columns_P]
        finite_S = body_SP.isfinite().all(dim=1)
        balanced_SP = self.quotient.balance(body_SP.where(finite_S[:, None], 0.0))
        norms_SL = _measure_norms(self.quotient.layout, balanced_SP)
        # A layer of zeros in all known models (new biases) is as large as theirs while it stays zero.
        ratio_SL = torch.where(norms_SL == self.median_L, 1.0, norms_SL / self.median_L)
        ratio_S = ratio_SL.log().abs().amax(dim=1).exp().masked_fill(~finite_S, torch.nan)
        outside_S = ((norms_SL < self.low_L) | (norms_SL > self.high_L)).any(dim=1)
        return ratio_S, outside_S | ~finite_S


def _measure_norms(layout: TokenLayout, flat_SP: Tensor) -> Tensor:
    """Return the norm of each layer's weights, biases included, (S, L) float64."""
    tensors = layout.unflatten(flat_SP.double().square())
    return torch.stack(
        [
            torch.stack([tensors[entry.name].flatten(1).sum(dim=1) for entry in layer.entries]).sum(dim=0).sqrt()
            for layer in layout.layers
        ],
        dim=1,
    )
