"""Score one arm's samples on one target, and the target's own baselines.

A SCORES and a BASELINES artifact each hold `scores.parquet`, the rows of `mzsane.evaluation.scorer`.
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
from mzsane.evaluation.novelty import open_known_models
from mzsane.evaluation.scorer import Novelty, Scorer
from mzsane.files import to_parquet
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.randomness import make_generator
from mzsane.sampling.draw import Target, read_populations
from mzsane.sampling.guidance import open_guidance
from mzsane.sampling.samplers.protocol import mark_used
from mzsane.tokens.layout import TokenLayout, check_same_layout
from mzsane.tokens.store import read_tokens
from mzsane.zoo.architectures import build_network
from mzsane.zoo.images import load_images

VERSION = 5


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
    scorer = Scorer(config, target, layout, seed, execution, sink, open_known_models(artifact, store, layout))
    drawn = populations["samples"]
    best = records.filter(pl.col("rank") <= sampling.keep).sort("rank")["sample"].to_list()
    records = records.sort("sample")
    anchors_AP = populations["anchor_weights"]
    novelty: Novelty = records["novelty"].to_list()
    if target.tokens is None:
        scorer.add("zoo", populations["originals"])
    scorer.add("reconstruction", populations["reconstruction"], finetune=False)  # anchors tell that of decoded models
    scorer.add("samples", drawn, sees=records["sees"][0], novelty=novelty)
    scorer.add_chosen("selected", drawn, best, novelty)
    if len(anchors_AP):
        _add_baselines(scorer, sampling, populations["anchors"], anchors_AP, records)
    return store.publish(work, {"scores.parquet": to_parquet(scorer.table())}, counts={"scores": len(scorer.rows)})


def _add_baselines(
    scorer: Scorer, sampling: SamplingConfig, decoded_AP: Tensor, anchors_AP: Tensor, records: pl.DataFrame
) -> None:
    """Score what the anchors give without a sampler; what it starts from is guided as the samples were."""
    layout, seed, target, count = scorer.layout, scorer.seed, scorer.target, len(records)
    sees, anchors_see = records["sees"][0], records["anchors_see"][0]
    nearest, distances = (records[name].to_torch() for name in ("nearest_anchor", "nearest_distance"))
    noisy = perturb_anchors(anchors_AP, nearest, distances.float(), layout, make_generator(seed, "scores", "noise"))
    between = None
    if len(anchors_AP) > 1:
        between = interpolate_anchors(anchors_AP, count, make_generator(seed, "scores", "interpolation"))
    guided_see = anchors_see
    if records["guided"][0]:
        guidance = open_guidance(sampling, target.network, target.images, layout, anchors_AP, seed)
        deviation_P = anchors_AP.std(dim=0, correction=0)
        everyone_SA = torch.ones(count, len(anchors_AP), dtype=torch.bool)
        own_SA = mark_used(nearest[:, None], len(anchors_AP))
        guided_see = "labels" if anchors_see == "labels" else "images"

        def guide(flat_SP: Tensor, teachers_SA: Tensor) -> Tensor:
            return guidance.move(flat_SP, deviation_P, teachers_SA, lambda moved_SP: moved_SP, scorer.sink)

        noisy = guide(noisy, own_SA)
        between = None if between is None else guide(between, everyone_SA)
        generator = make_generator(seed, "scores", "random_init")
        fresh = draw_random_models(target.network, target.images, layout, count, generator)
        scorer.add("random_init", guide(fresh, everyone_SA), sees=guided_see, finetune=False)
    scorer.add("anchors", decoded_AP, sees=anchors_see)
    # Noise goes as far as the samples do, so that it knows what their distance was chosen by.
    novelty = scorer.add("anchor_noise", noisy, sees=sees)
    if sees != "labels":  # else one row would be of all and of the selected
        scorer.add_chosen("anchor_noise", noisy, scorer.select(noisy, sampling.keep), novelty, finetune=False)
    scorer.add_chosen("best_anchor", anchors_AP, scorer.select(anchors_AP, 1), finetune=False)
    if between is not None:
        scorer.add("interpolation", between, sees=guided_see, finetune=False)
    scorer.add("average", average_anchors(anchors_AP), sees=anchors_see)
    statistics = draw_from_statistics(anchors_AP, layout, count, make_generator(seed, "scores", "statistics"))
    scorer.add("statistics", statistics, sees=anchors_see, finetune=False)


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
    scorer = Scorer(config, target, layout, seed, execution, sink)
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
