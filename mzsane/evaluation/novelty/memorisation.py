"""The memorisation card of generated models: what of each was there before, in its weights and in what it does.

What is measured of generated models is measured in the same way of held-out models of the zoo, which a perfect
generator would match (see `mzsane.evaluation.novelty.distance`, `norms` and `functional` for the numbers).

Suffixes: S models that are judged, N known models, I images, P weights of a model, A anchors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import torch
from torch import Tensor

from mzsane.config import ExecutionConfig
from mzsane.evaluation.novelty.distance import KnownModels
from mzsane.evaluation.novelty.functional import error_overlap, measure_disagreement
from mzsane.evaluation.novelty.norms import NormRange
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.disagreement import classify_models, read_labels
from mzsane.networks.run import ModelSet
from mzsane.randomness import make_generator
from mzsane.tokens.store import TokenTable
from mzsane.tokens.subject import name_activations

_COMPARED = 30  # training models, beside the nearest ones, whose errors are compared with a model's

CARD_SCHEMA = {
    "novelty": pl.Float64,
    "nearest_model": pl.String,
    "sampling_novelty": pl.Float64,
    "norm_ratio": pl.Float64,
    "outside_norms": pl.Boolean,
    "error_overlap": pl.Float64,
    "disagreement": pl.Float64,
    "spread": pl.Float64,
}


class Memorisation:
    """Compares models with those that a generator was trained on, and with one another.

    Args:
        known: the training models; None if none has the architecture of the models, and nothing can be compared.
        tables: tokens by number of the slice, for the activation of models that differ in it.
        models: network, images and layout of the models that are judged; its weights do not matter.
        seed: of the choice of training models whose errors are compared.
        execution: how many processes.
        sink: told of progress.
        decoded_AP: the anchors as the backbone decodes them, without noise; None where there is no backbone.
    """

    def __init__(
        self,
        known: KnownModels | None,
        tables: Mapping[int, TokenTable],
        models: ModelSet,
        seed: int,
        execution: ExecutionConfig | None = None,
        sink: MetricSink = NO_SINK,
        decoded_AP: Tensor | None = None,
    ) -> None:
        self.known, self._tables, self._models = known, tables, models
        self._execution, self._sink = execution, sink
        self._decoded = None
        if known is None:
            return
        self._norms = NormRange.from_models(known)
        if decoded_AP is not None and len(decoded_AP):
            self._decoded = known.against([f"{number:09d}" for number in range(len(decoded_AP))], decoded_AP)
        order_N = torch.randperm(len(known.names), generator=make_generator(seed, "memorisation"))
        self._compared = order_N[:_COMPARED].tolist()
        self._classes: dict[int, Tensor] = {}

    def measure(self, flat_SP: Tensor, sampled: bool = False, activations: Sequence[str | None] = ()) -> pl.DataFrame:
        """Return a row a model with the columns of `CARD_SCHEMA`.

        Null stands for what cannot be measured: of weights that are not finite, with one training model, without any of
        this architecture; of errors also where the number of classes is another; `sampling_novelty` also of what no
        sampler has made; `spread`, the distance to the nearest other of these models, of a single one.

        Args:
            flat_SP: models.
            sampled: whether they were made from the decoded anchors, from which the sampling novelty is measured.
            activations: of each, where it may be another than the network's (see `ModelSet`).
        """
        if self.known is None:
            return pl.DataFrame({name: [None] * len(flat_SP) for name in CARD_SCHEMA}, schema=CARD_SCHEMA)
        distances_S, nearest_S = self.known.find_nearest(flat_SP)
        finite_S = distances_S.isfinite()
        ratio_S, outside_S = self._norms.measure(flat_SP)
        card: dict[str, list[Any]] = {name: [None] * len(flat_SP) for name in CARD_SCHEMA} | {
            "novelty": (distances_S / self.known.spacing).tolist(),
            "nearest_model": _where(finite_S, [self.known.names[i] for i in nearest_S]),
            "norm_ratio": ratio_S.tolist(),
            "outside_norms": _where(finite_S, outside_S.tolist()),
            "spread": self.known.measure_spread(flat_SP).tolist(),
        }
        if sampled and self._decoded is not None:
            card["sampling_novelty"] = self.measure_sampling(flat_SP).tolist()
        if self.known.columns_P is None:
            overlap_S, disagreement_S = self._compare_errors(flat_SP, nearest_S, tuple(activations))
            card["error_overlap"] = _where(finite_S, overlap_S.tolist())
            card["disagreement"] = _where(finite_S, disagreement_S.tolist())
        frame = pl.DataFrame(card, schema_overrides=CARD_SCHEMA).select(list(CARD_SCHEMA))
        return frame.with_columns(pl.selectors.float().fill_nan(None))

    def measure_sampling(self, flat_SP: Tensor) -> Tensor:
        """Return the distance to the nearest decoded anchor over the zoo's spacing, (S,); NaN where there is none."""
        if self.known is None or self._decoded is None:
            return torch.full((len(flat_SP),), float("nan"))
        return self._decoded.find_nearest(flat_SP)[0] / self.known.spacing

    def _compare_errors(
        self, flat_SP: Tensor, nearest_S: Tensor, activations: tuple[str | None, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return the overlap of errors with the training model of the most similar ones, and the disagreement, (S,)."""
        wanted = sorted({*self._compared, *nearest_S.tolist()})
        self._classify_known([number for number in wanted if number not in self._classes])
        classes_NI = torch.stack([self._classes[number] for number in wanted])
        models = replace(self._models, flat_NP=flat_SP, activations=activations)
        classes_SI = classify_models(models, self._execution, self._sink)
        labels_I = read_labels(self._models.images)
        overlap_S, similar_S = error_overlap(classes_SI, classes_NI, labels_I)
        return overlap_S, measure_disagreement(classes_SI, classes_NI[similar_S], labels_I)

    def _classify_known(self, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        known = self.known
        assert known is not None
        activations = name_activations(self._tables, [known.names[number] for number in numbers], known.layout)
        flat_NP = known.load(known.last_N[torch.tensor(numbers)])
        models = replace(self._models, flat_NP=flat_NP, activations=tuple(activations))
        classes_NI = classify_models(models, self._execution, self._sink)
        self._classes |= dict(zip(numbers, classes_NI, strict=True))


def _where(known_S: Tensor, values: Sequence[Any]) -> list[Any]:
    return [value if found else None for value, found in zip(values, known_S.tolist(), strict=True)]
