"""Score one arm's samples on one target, and the target's own baselines.

A SCORES and a BASELINES artifact each hold `scores.parquet`, a row a model, or an ensemble of models, and number of
fine-tuning epochs: accuracy, loss and calibration error, always on test images, and

- `sees`, what the model was allowed to use of the target: `none`; `images`, without labels, for the running statistics
  of batch norms; `labels`, of validation images to choose anchors, a bandwidth or samples, or of training images for
  fine-tuning,
- `ensemble`, models whose probabilities are averaged, 1 for a single model,
- `chosen_of`, of how many models this one was selected on validation images; null if it was not,
- `learning_rate` and `images_per_class` of fine-tuning; null where there was none, or all images were used,
- `novelty`, the distance to what the backbone was trained on (see `KnownModels`), of single models that were not
  fine-tuned.
"""

from collections.abc import Sequence

import polars as pl
import torch
from torch import Tensor

from mzsane.artifacts import Artifact, ArtifactRef, ArtifactStore, Work
from mzsane.config import EvaluationConfig, ExecutionConfig, SamplingConfig, TokensConfig
from mzsane.evaluation.baselines import (
    average_anchors,
    draw_from_statistics,
    draw_random_models,
    interpolate_anchors,
    perturb_anchors,
)
from mzsane.evaluation.finetuning import finetune_models
from mzsane.evaluation.novelty import KnownModels, open_known_models
from mzsane.evaluation.scoring import ModelSet, Score, score_models
from mzsane.files import to_parquet
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.randomness import make_generator
from mzsane.sampling.draw import Target, read_populations
from mzsane.tokens.layout import TokenLayout, check_same_layout
from mzsane.tokens.store import read_tokens
from mzsane.zoo.architectures import build_network
from mzsane.zoo.conditioning import has_statistics
from mzsane.zoo.images import load_images

VERSION = 4
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


def plan_scores(
    config: EvaluationConfig, sampling: SamplingConfig, target: Target, samples: ArtifactRef, seed: int
) -> Work:
    """Name the work of scoring an arm's samples on a target."""
    settings = {"evaluation": config.recipe(), "keep": sampling.keep, **_describe(target), "seed": seed}
    return Work("scores", VERSION, settings, {"samples": samples}, seed=seed)


def score_samples(
    config: EvaluationConfig,
    sampling: SamplingConfig,
    target: Target,
    samples: ArtifactRef,
    seed: int,
    store: ArtifactStore,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> Artifact:
    """Score samples, the selected ones, reconstructions, and what anchors give without a backbone, on test images.

    Selection, of samples, of perturbed anchors and of the best anchor, is by accuracy on validation images.
    """
    work = plan_scores(config, sampling, target, samples, seed)
    if found := store.find(work.ref):
        return found
    artifact = store.open(samples)
    populations, records, layout = read_populations(artifact)
    scorer = _Scorer(config, target, layout, seed, execution, sink, open_known_models(artifact, store, layout))
    drawn = populations["samples"]
    best = records.filter(pl.col("rank") <= sampling.keep).sort("rank")["sample"].to_list()
    records = records.sort("sample")
    anchors_AP = populations["anchor_weights"]
    sees, anchors_see = records["sees"][0], records["anchors_see"][0]
    novelty = records["novelty"].to_list()
    if target.tokens is None:
        scorer.add("zoo", populations["originals"])
    scorer.add("reconstruction", populations["reconstruction"])
    scorer.add("samples", drawn, sees=sees, novelty=novelty)
    scorer.add_chosen("selected", drawn, best, novelty)
    if len(anchors_AP):
        nearest, distances = (records[name].to_torch() for name in ("nearest_anchor", "nearest_distance"))
        noisy = perturb_anchors(anchors_AP, nearest, distances.float(), layout, make_generator(seed, "scores", "noise"))
        scorer.add("anchors", populations["anchors"], sees=anchors_see)
        # Noise goes as far as the samples do, so that it knows what their distance was chosen by.
        of_noisy = scorer.add("anchor_noise", noisy, sees=sees)
        if sees != "labels":  # else tables, which tell rows apart by what they saw, would average all and the selected
            scorer.add_chosen("anchor_noise", noisy, scorer.select(noisy, sampling.keep), of_noisy, finetune=False)
        scorer.add_chosen("best_anchor", anchors_AP, scorer.select(anchors_AP, 1), finetune=False)
        if len(anchors_AP) > 1:
            between = interpolate_anchors(anchors_AP, len(drawn), make_generator(seed, "scores", "interpolation"))
            scorer.add("interpolation", between, sees=anchors_see, finetune=False)
        scorer.add("average", average_anchors(anchors_AP), sees=anchors_see)
        statistics = draw_from_statistics(anchors_AP, layout, len(drawn), make_generator(seed, "scores", "statistics"))
        scorer.add("statistics", statistics, sees=anchors_see, finetune=False)
    return store.publish(work, {"scores.parquet": to_parquet(scorer.table())}, counts={"scores": len(scorer.rows)})


def plan_baselines(
    config: EvaluationConfig, target: Target, tokens: TokensConfig, seed: int, transfer: Sequence[ArtifactRef] = ()
) -> Work:
    """Name the work of scoring what a target has without any backbone; `transfer` are tokens of zoos of other images.

    These zoos have the target's architecture and number of classes.
    """
    inputs = {f"transfer/{number}": ref for number, ref in enumerate(transfer)}
    if target.tokens is not None:
        inputs["target"] = target.tokens
    layout = {"token_dim": tokens.token_dim, "running_statistics": tokens.running_statistics}
    settings = {"evaluation": config.recipe(), **layout, **_describe(target), "seed": seed}
    return Work("baselines", VERSION, settings, inputs, seed=seed)


def score_baselines(
    config: EvaluationConfig,
    target: Target,
    tokens: TokensConfig,
    seed: int,
    store: ArtifactStore,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
    transfer: Sequence[ArtifactRef] = (),
) -> Artifact:
    """Score random initialisations, and held-out models of the target's own zoo and of zoos of other images.

    Of several other zoos models are taken at random.
    """
    work = plan_baselines(config, target, tokens, seed, transfer)
    if found := store.find(work.ref):
        return found
    images = load_images(target.images)
    network = build_network(target.network, images.channels, images.classes, images.size)
    assert tokens.token_dim is not None
    layout = TokenLayout.from_network(network, tokens.token_dim, tokens.running_statistics)
    scorer = _Scorer(config, target, layout, seed, execution, sink)
    if target.tokens is not None:
        table = read_tokens(store.open(target.tokens))
        scorer.add("zoo", table.load(table.pick_rows("test", last_epochs=1)))
    if transfer:
        tables = [read_tokens(store.open(ref)) for ref in transfer]
        check_same_layout([layout, *(table.layout for table in tables)], "scoring models of other zoos")
        others_NP = torch.cat([table.load(table.pick_rows("test", last_epochs=1)) for table in tables])
        order_N = torch.randperm(len(others_NP), generator=make_generator(seed, "baselines", "transfer"))
        scorer.add("transfer", others_NP[order_N])
    generator = make_generator(seed, "baselines", "random_init")
    scorer.add(
        "random_init", draw_random_models(target.network, target.images, layout, config.finetune_models, generator)
    )
    return store.publish(work, {"scores.parquet": to_parquet(scorer.table())}, counts={"scores": len(scorer.rows)})


def _describe(target: Target) -> dict[str, object]:
    return {"network": target.network.recipe(), "images": target.images.recipe()}


class _Scorer:
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
        finetune: bool = True,
        sees: str | None = None,
        novelty: list[float | None] | None = None,
    ) -> list[float | None] | None:
        """Score models as they are, their ensembles, and the first ones after fine-tuning; return their novelty.

        It is measured where it is not given.
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
        novelty: list[float | None] | None = None,
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
        novelty: list[float | None] | None,
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
