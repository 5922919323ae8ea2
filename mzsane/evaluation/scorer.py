"""The rows of a SCORES or BASELINES artifact, and who collects them.

A row a model, or an ensemble of models, and number of fine-tuning epochs: accuracy, loss and calibration error, always
on test images, and

- `sees`, what the model was allowed to use of the target: `none`; `statistics` of its images; `images`, without labels,
  for the running statistics of batch norms, for guidance or for curvature; `labels`, of validation images to choose
  anchors, a bandwidth or samples, or of training images for fine-tuning,
- `generator_sees`, the same of the making of the backbone: `images` if the behavioural loss looked at the target's,
- `ensemble`, models whose probabilities are averaged, 1 for a single model,
- `chosen_of`, of how many models this one was selected on validation images; null if it was not,
- `cluster`, the anchor that the model goes back to: models of one anchor are no independent evidence; null for a model
  that stands for itself,
- `learning_rate` and `images_per_class` of fine-tuning; null where there was none, or all images were used,
- `gradient_steps`, `image_passes` and `seconds`, what making it cost before any fine-tuning, a model; of models that
  somebody trained they are null, since nobody has counted,
- the memorisation card of single models that were not fine-tuned (`mzsane.evaluation.novelty.memorisation`).

Suffixes: N models, P weights of a model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from torch import Tensor

from mzsane.config import EvaluationConfig, ExecutionConfig
from mzsane.evaluation.finetuning import finetune_models
from mzsane.evaluation.novelty.memorisation import CARD_SCHEMA, Memorisation
from mzsane.layout.token_layout import TokenLayout
from mzsane.metrics import MetricSink
from mzsane.networks.build import build_network
from mzsane.networks.conditioning import has_statistics
from mzsane.networks.run import ModelSet, Score, score_models
from mzsane.problems.images.dataset import load_images
from mzsane.sampling.target import Target

SEES = ("none", "statistics", "images", "labels")  # what was used of the target, the least first
_MEASURED = {name: kind for name, kind in CARD_SCHEMA.items() if name != "nearest_model"}
SCORE_SCHEMA = {
    "method": pl.String,
    "sees": pl.String,
    "generator_sees": pl.String,
    "model": pl.Int64,
    "ensemble": pl.Int64,
    "chosen_of": pl.Int64,
    "cluster": pl.String,
    "finetune_epochs": pl.Int64,
    "learning_rate": pl.Float64,
    "images_per_class": pl.Int64,
    "gradient_steps": pl.Int64,
    "image_passes": pl.Int64,
    "seconds": pl.Float64,
    "accuracy": pl.Float64,
    "loss": pl.Float64,
    "calibration": pl.Float64,
    **_MEASURED,
}


@dataclass(frozen=True)
class Provenance:
    """What a set of models saw of the target, cost to make, and goes back to.

    Attributes:
        sees: what making them used of the target; None for what conditioning alone sees.
        generator_sees: what making the backbone used of it.
        clusters: of each the anchor that it goes back to; None if each stands for itself.
        activations: of each, where it may be another than the target's (see `ModelSet`).
        gradient_steps: a model.
        image_passes: images that were shown to a network, a model, those shown to its teachers too.
        seconds: a model, on the machine that made it.
    """

    sees: str | None = None
    generator_sees: str = "none"
    clusters: Sequence[str | None] | None = None
    activations: Sequence[str | None] = ()
    gradient_steps: int | None = 0
    image_passes: int | None = 0
    seconds: float | None = None


PLAIN = Provenance()
TRAINED = Provenance(gradient_steps=None, image_passes=None)


class Scorer:
    """Collects the score rows of several sets of models on one target."""

    def __init__(
        self,
        config: EvaluationConfig,
        target: Target,
        layout: TokenLayout,
        seed: int,
        execution: ExecutionConfig | None,
        sink: MetricSink,
        memorisation: Memorisation | None = None,
    ) -> None:
        self.config, self.target, self.layout, self.seed = config, target, layout, seed
        self.execution, self.sink, self.memorisation = execution, sink, memorisation
        images = load_images(target.images)
        network = build_network(target.network, images.channels, images.classes, images.size)
        conditioned = layout.running_statistics == "conditioned" and has_statistics(network)
        self.sees = "images" if conditioned else "none"
        self.rows: list[dict[str, object]] = []

    def add(
        self,
        method: str,
        flat_NP: Tensor,
        provenance: Provenance = PLAIN,
        *,
        card: pl.DataFrame | None = None,
        sampled: bool = False,
        zero_shot: bool = True,
        tuned: int | None = None,
    ) -> pl.DataFrame | None:
        """Score models as they are, their ensembles, and the first ones after fine-tuning, which sees labels.

        Args:
            method: where their weights come from.
            flat_NP: the models.
            provenance: what they saw and cost.
            card: their memorisation card where it is known; else it is measured.
            sampled: whether they were made from decoded anchors, see `Memorisation.measure`.
            zero_shot: whether they are scored as they are.
            tuned: how many of them are fine-tuned; as many as the config says if None.

        Returns:
            Their memorisation card; None where there is nothing to compare them with.
        """
        if zero_shot and card is None and self.memorisation is not None:
            card = self.memorisation.measure(flat_NP, sampled, provenance.activations)
        self._score(method, provenance, None, flat_NP, card, zero_shot, tuned)
        return card

    def add_chosen(
        self,
        method: str,
        flat_NP: Tensor,
        chosen: list[int],
        provenance: Provenance = PLAIN,
        *,
        card: pl.DataFrame | None = None,
        tuned: int | None = None,
        of: int | None = None,
    ) -> None:
        """Do the same for some of the models, which were selected on labelled validation images.

        Args:
            method: where their weights come from.
            flat_NP: the models that they were selected from.
            chosen: their numbers.
            provenance: what all these models saw and cost.
            card: the memorisation card of all.
            tuned: how many are fine-tuned.
            of: how many they were selected from, if `flat_NP` is not all of them.
        """
        clusters, activations = provenance.clusters, provenance.activations
        provenance = replace(
            provenance,
            sees="labels",
            clusters=None if clusters is None else [clusters[at] for at in chosen],
            activations=[activations[at] for at in chosen] if activations else (),
        )
        if card is not None:
            card = card[chosen]
        elif self.memorisation is not None:
            card = self.memorisation.measure(flat_NP[chosen], activations=provenance.activations)
        self._score(method, provenance, of or len(flat_NP), flat_NP[chosen], card, True, tuned)

    def select(self, flat_NP: Tensor, keep: int, activations: Sequence[str | None] = ()) -> list[int]:
        """Return the numbers of the `keep` models that are best on the validation images, the best first."""
        scores = self._validate(flat_NP, activations)
        return sorted(range(len(scores)), key=lambda i: -scores[i])[:keep]

    def find_best(self, parts: Iterable[tuple[Tensor, Sequence[str | None]]]) -> int:
        """Return the number of the model that is best on validation images, of models that come in parts.

        Each part is models and their activations.
        """
        accuracies = [accuracy for flat_NP, told in parts for accuracy in self._validate(flat_NP, told)]
        return max(range(len(accuracies)), key=accuracies.__getitem__)

    def table(self) -> pl.DataFrame:
        """Return all rows as a frame."""
        return pl.DataFrame(self.rows, schema=SCORE_SCHEMA)

    def _score(
        self,
        method: str,
        provenance: Provenance,
        chosen_of: int | None,
        flat_NP: Tensor,
        card: pl.DataFrame | None,
        zero_shot: bool,
        tuned: int | None,
    ) -> None:
        models, config = self._set(flat_NP, provenance.activations), self.config
        measured = [] if card is None else card.select(list(_MEASURED)).to_dicts()
        sees = provenance.sees or self.sees
        scores = score_models(models, "test", self.execution, self.sink, config.ensembles) if zero_shot else []
        for score in scores:
            single = score.ensemble == 1
            known = measured[score.model] if measured and single else {}
            self._extend(method, sees, provenance, chosen_of, score, known)
        count = config.finetune_models if tuned is None else tuned
        if count and config.finetune_epochs[-1] > 0:
            for score in finetune_models(models.cut(0, count), config, self.seed, self.execution, self.sink):
                self._extend(method, "labels", provenance, chosen_of, score, {})

    def _validate(self, flat_NP: Tensor, activations: Sequence[str | None]) -> list[float]:
        models = self._set(flat_NP, activations)
        return [score.accuracy for score in score_models(models, "val", self.execution, self.sink)]

    def _set(self, flat_NP: Tensor, activations: Sequence[str | None]) -> ModelSet:
        return ModelSet(self.target.network, self.target.images, self.layout, flat_NP, tuple(activations))

    def _extend(
        self,
        method: str,
        sees: str,
        provenance: Provenance,
        chosen_of: int | None,
        score: Score,
        measured: dict[str, Any],
    ) -> None:
        clusters = provenance.clusters if score.ensemble == 1 else None
        self.rows.append(
            {
                "method": method,
                "sees": sees,
                "generator_sees": provenance.generator_sees,
                "model": score.model,
                "ensemble": score.ensemble,
                "chosen_of": chosen_of,
                "cluster": None if clusters is None else clusters[score.model],
                "finetune_epochs": score.epochs,
                "learning_rate": score.learning_rate,
                "images_per_class": self.config.images_per_class if score.epochs else None,
                "gradient_steps": provenance.gradient_steps,
                "image_passes": provenance.image_passes,
                "seconds": provenance.seconds,
                "accuracy": score.accuracy,
                "loss": score.loss,
                "calibration": score.calibration,
                **measured,
            }
        )
