"""Score one arm's samples on one target, and the target's own baselines.

A SCORES and a BASELINES artifact each hold `scores.parquet`, a row a model and number of fine-tuning epochs: method,
sees, model, finetune_epochs, accuracy, loss, always on test images, and novelty, the distance to what the backbone was
trained on (see `KnownModels`), of models that were not fine-tuned. `sees` says what the model was allowed to use of
the target: `none`; `images`, without labels, for the running statistics of batch norms; `labels`, of validation images
to choose anchors, a bandwidth or samples, or of training images for fine-tuning.
"""

import polars as pl
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
from mzsane.evaluation.novelty import KnownModels, open_known_models
from mzsane.evaluation.scoring import ModelSet, Score, finetune_models, score_models
from mzsane.files import to_parquet
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.randomness import make_generator
from mzsane.sampling.draw import Target, read_populations
from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.store import read_tokens
from mzsane.zoo.architectures import build_network
from mzsane.zoo.conditioning import has_statistics
from mzsane.zoo.images import load_images

VERSION = 3
SCORE_SCHEMA = {
    "method": pl.String,
    "sees": pl.String,
    "model": pl.Int64,
    "finetune_epochs": pl.Int64,
    "accuracy": pl.Float64,
    "loss": pl.Float64,
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
    scorer.add("selected", drawn[best], sees="labels", novelty=[novelty[sample] for sample in best])
    if len(anchors_AP):
        nearest, distances = (records[name].to_torch() for name in ("nearest_anchor", "nearest_distance"))
        noisy = perturb_anchors(anchors_AP, nearest, distances.float(), layout, make_generator(seed, "scores", "noise"))
        scorer.add("anchors", populations["anchors"], sees=anchors_see)
        # Noise goes as far as the samples do, so that it knows what their distance was chosen by.
        scorer.add("anchor_noise", noisy, sees=sees)
        if sees != "labels":  # else one row would be of all and of the selected
            scorer.add("anchor_noise", scorer.select(noisy, sampling.keep), sees="labels", finetune=False)
        scorer.add("best_anchor", scorer.select(anchors_AP, 1), sees="labels", finetune=False)
        if len(anchors_AP) > 1:
            between = interpolate_anchors(anchors_AP, len(drawn), make_generator(seed, "scores", "interpolation"))
            scorer.add("interpolation", between, sees=anchors_see, finetune=False)
        scorer.add("average", average_anchors(anchors_AP), sees=anchors_see)
        statistics = draw_from_statistics(anchors_AP, layout, len(drawn), make_generator(seed, "scores", "statistics"))
        scorer.add("statistics", statistics, sees=anchors_see, finetune=False)
    return store.publish(work, {"scores.parquet": to_parquet(scorer.table())}, counts={"scores": len(scorer.rows)})


def plan_baselines(config: EvaluationConfig, target: Target, tokens: TokensConfig, seed: int) -> Work:
    """Name the work of scoring what a target has without any backbone."""
    inputs = {"target": target.tokens} if target.tokens is not None else {}
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
) -> Artifact:
    """Score random initialisations, and the held-out models of the target's own zoo when it has one, on test images."""
    work = plan_baselines(config, target, tokens, seed)
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
        self.rows: list[tuple[str, str, int, int, float, float, float | None]] = []

    def add(
        self,
        method: str,
        flat_NP: Tensor,
        sees: str | None = None,
        finetune: bool = True,
        novelty: list[float | None] | None = None,
    ) -> None:
        """Score all models as they are, and the first ones after fine-tuning, which sees labels.

        Novelty is measured where it is not given.
        """
        scores = score_models(self._set(flat_NP), "test", self.execution, self.sink)
        if novelty is None and self.known is not None:
            novelty = self.known.measure_novelty(flat_NP).tolist()
        self._extend(method, sees or self.sees, scores, novelty)
        if finetune and self.config.finetune_epochs[-1] > 0:
            some = self._set(flat_NP[: self.config.finetune_models])
            tuned = finetune_models(some, self.config, self.seed, self.execution, self.sink)
            self._extend(method, "labels", [score for score in tuned if score.epochs > 0])

    def select(self, flat_NP: Tensor, keep: int) -> Tensor:
        """Return the `keep` models that are best on the validation images."""
        scores = score_models(self._set(flat_NP), "val", self.execution, self.sink)
        order = sorted(range(len(scores)), key=lambda i: -scores[i].accuracy)
        return flat_NP[order[:keep]]

    def table(self) -> pl.DataFrame:
        """Return all rows as a frame."""
        return pl.DataFrame(self.rows, schema=SCORE_SCHEMA, orient="row")

    def _set(self, flat_NP: Tensor) -> ModelSet:
        return ModelSet(self.target.network, self.target.images, self.layout, flat_NP)

    def _extend(self, method: str, sees: str, scores: list[Score], novelty: list[float | None] | None = None) -> None:
        for place, s in enumerate(scores):
            new = None if novelty is None else novelty[place]
            self.rows.append((method, sees, s.model, s.epochs, s.accuracy, s.loss, new))
