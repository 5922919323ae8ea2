"""The norm guard: whether a model's layers are as large as those of the zoo.

Distance can be bought by enlarging weights, which networks with saturating activations hardly feel: such a model is far
from every training model and new in nothing. Scales of homogeneous units are balanced first, so that moving them from
one layer to the next changes no norm.

Suffixes: S models that are judged, N known models, P weights of a model, L layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from mzsane.evaluation.novelty.distance import KnownModels
from mzsane.layout.token_layout import TokenLayout

_TAIL = 0.01  # share of the zoo's models whose layer is smaller, and larger, than the range that counts as the zoo's


@dataclass(frozen=True)
class NormRange:
    """The norms of a zoo's layers.

    Attributes:
        known: the zoo's models, which say how weights are balanced.
        spans: where the weights of each layer are.
        low_L: what 1 % of the zoo's models are below, for each layer.
        median_L: the median.
        high_L: what 1 % are above.
    """

    known: KnownModels
    spans: Sequence[tuple[slice, ...]]
    low_L: Tensor
    median_L: Tensor
    high_L: Tensor

    @classmethod
    def from_models(cls, known: KnownModels) -> "NormRange":
        """Measure the last checkpoints of known models.

        The range is that of a new model: a prediction interval of the norm's logarithm (Student's t). The quantiles of
        a few dozen models themselves are their extremes, which one in three new models exceeds in some layer.
        """
        spans = _find_spans(known.layout)
        parts = [_measure_norms(known.load_balanced(some), spans) for some in known.split(known.last_N)]
        log_NL = torch.cat(parts).clamp(min=torch.finfo(torch.float64).tiny).log()
        count = len(log_NL)
        if count < 2:
            unknown_L = torch.full_like(log_NL[0], math.inf)
            return cls(known, spans, -unknown_L, log_NL[0].exp(), unknown_L)
        reach_L = float(stdtrit(count - 1, 1 - _TAIL)) * log_NL.std(dim=0) * (1 + 1 / count) ** 0.5
        mean_L = log_NL.mean(dim=0)
        return cls(known, spans, (mean_L - reach_L).exp(), log_NL.median(dim=0).values.exp(), (mean_L + reach_L).exp())

    def measure(self, flat_SP: Tensor) -> tuple[Tensor, Tensor]:
        """Compare models with the zoo.

        Args:
            flat_SP: models, in the layout of those that are judged.

        Returns:
            The norm over the zoo's median of the layer that is farthest from it, as a ratio, (S,), and whether a layer
            is outside the zoo's 1 to 99 % range, (S,), bool.
        """
        norm_SL = _measure_norms(self.known.prepare(flat_SP), self.spans)
        ratio_SL = norm_SL / self.median_L.clamp(min=torch.finfo(norm_SL.dtype).tiny)
        farthest_S = ratio_SL.clamp(min=torch.finfo(norm_SL.dtype).tiny).log().abs().argmax(dim=1)
        ratio_S = ratio_SL.gather(1, farthest_S[:, None]).squeeze(1)
        outside_S = ~((norm_SL >= self.low_L) & (norm_SL <= self.high_L)).all(dim=1)  # what is no number is outside
        return ratio_S, outside_S


def _find_spans(layout: TokenLayout) -> list[tuple[slice, ...]]:
    return [
        tuple(
            slice(layout.offsets[entry.name], layout.offsets[entry.name] + entry.size)
            for entry in layer.entries
            if entry.name in layout.offsets
        )
        for layer in layout.layers
    ]


def _measure_norms(flat_SP: Tensor, spans: Sequence[tuple[slice, ...]]) -> Tensor:
    squares = [sum(flat_SP[:, span].double().square().sum(dim=1) for span in own) for own in spans]
    return torch.stack([torch.as_tensor(square) for square in squares], dim=1).sqrt()
