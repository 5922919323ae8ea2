"""The rows of a SCORES or BASELINES artifact, and who collects them.

A row a model, or an ensemble of models, and number of fine-tuning epochs: accuracy, loss and calibration error, always
on test images, and

- `sees`, what the model was allowed to use of the target: `none`; `images`, without labels, for the running statistics
  of batch norms or for guidance; `labels`, of validation images to choose anchors, a bandwidth or samples, or of
  training images for fine-tuning,
- `ensemble`, models whose probabilities are averaged, 1 for a single model,
- `chosen_of`, of how many models this one was selected on validation images; null if it was not,
- `learning_rate` and `images_per_class` of fine-tuning; null where there was none, or all images were used,
- `novelty`, the distance to what the backbone was trained on (see `KnownModels`), of single models that were not
  fine-tuned.

Suffixes: N models, P weights of a model.
"""

import polars as pl
from torch import Tensor

from mzsane.config import EvaluationConfig, ExecutionConfig
from mzsane.evaluation.finetuning import finetune_models
from mzsane.evaluation.novelty import KnownModels
from mzsane.evaluation.scoring import ModelSet, Score, score_models
from mzsane.metrics import MetricSink
from mzsane.sampling.draw import Target
from mzsane.tokens.layout import TokenLayout
from mzsane.zoo.architectures import build_network
from mzsane.zoo.conditioning import has_statistics
from mzsane.zoo.images import load_images

SCORE_SCHEMA = {
    "method": pl.String,
    "sees": pl.String,
    "model": pl.Int64,
    "ensemble": pl.Int64,
    "chosen_of": pl.Int64,
    "finetune_epochs": pl.Int64,
    "learning_rate": pl.Float64,
    "images_per_class": pl.Int64,
    "accuracy": pl.Float64,
    "loss": pl.Float64,
    "calibration": pl.Float64,
    "novelty": pl.Float64,
}
Novelty = list[float | None] | None  # of each model, or not known of any


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
        known: KnownModels | None = None,
    ) -> None:
        self.config, self.target, self.layout, self.seed = config, target, layout, seed
        self.execution, self.sink, self.known = execution, sink, known
        images = load_images(target.images)
        network = build_network(target.network, images.channels, images.classes, images.size)
        conditioned = layout.running_statistics == "conditioned" and has_statistics(network)
        self.sees = "images" if conditioned else "none"
        self.rows: list[dict[str, object]] = []

    def add(
        self,
        method: str,
        flat_NP: Tensor,
        sees: str | None = None,
        finetune: bool = True,
        novelty: Novelty = None,
    ) -> Novelty:
        """Score models as they are, their ensembles, and the first ones after fine-tuning, which sees labels.

        Returns:
            Their novelty, measured where it is not given.
        """
        if novelty is None and self.known is not None:
            novelty = self.known.measure_novelty(flat_NP).tolist()
        self._score(method, sees or self.sees, None, flat_NP, novelty, finetune)
        return novelty

    def add_chosen(
        self,
        method: str,
        flat_NP: Tensor,
        chosen: list[int],
        novelty: Novelty = None,
        finetune: bool = True,
    ) -> None:
        """Do the same for some of the models, which were selected on labelled validation images."""
        if novelty is not None:
            novelty = [novelty[number] for number in chosen]
        elif self.known is not None:
            novelty = self.known.measure_novelty(flat_NP[chosen]).tolist()
        self._score(method, "labels", len(flat_NP), flat_NP[chosen], novelty, finetune)

    def select(self, flat_NP: Tensor, keep: int) -> list[int]:
        """Return the numbers of the `keep` models that are best on the validation images, the best first."""
        scores = score_models(self._set(flat_NP), "val", self.execution, self.sink)
        return sorted(range(len(scores)), key=lambda i: -scores[i].accuracy)[:keep]

    def table(self) -> pl.DataFrame:
        """Return all rows as a frame."""
        return pl.DataFrame(self.rows, schema=SCORE_SCHEMA)

    def _score(
        self,
        method: str,
        sees: str,
        chosen_of: int | None,
        flat_NP: Tensor,
        novelty: Novelty,
        finetune: bool,
    ) -> None:
        models, config = self._set(flat_NP), self.config
        for score in score_models(models, "test", self.execution, self.sink, config.ensembles):
            known = novelty[score.model] if novelty is not None and score.ensemble == 1 else None
            self._extend(method, sees, chosen_of, score, known)
        if finetune and config.finetune_epochs[-1] > 0:
            some = models.cut(0, config.finetune_models)
            for score in finetune_models(some, config, self.seed, self.execution, self.sink):
                self._extend(method, "labels", chosen_of, score)

    def _set(self, flat_NP: Tensor) -> ModelSet:
        return ModelSet(self.target.network, self.target.images, self.layout, flat_NP)

    def _extend(
        self, method: str, sees: str, chosen_of: int | None, score: Score, novelty: float | None = None
    ) -> None:
        self.rows.append(
            {
                "method": method,
                "sees": sees,
                "model": score.model,
                "ensemble": score.ensemble,
                "chosen_of": chosen_of,
                "finetune_epochs": score.epochs,
                "learning_rate": score.learning_rate,
                "images_per_class": self.config.images_per_class if score.epochs else None,
                "accuracy": score.accuracy,
                "loss": score.loss,
                "calibration": score.calibration,
                "novelty": novelty,
            }
        )
