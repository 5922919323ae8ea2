"""Score one arm's samples on one target, and the target's own baselines.

A SCORES and a BASELINES artifact each hold `scores.parquet`, the rows of `mzsane.evaluation.scorer`.
"""

from collections.abc import Sequence

import polars as pl
import torch
from torch import Tensor

from mzsane.artifacts import Artifact, ArtifactRef, ArtifactStore, Work
from mzsane.config import EvaluationConfig, ExecutionConfig, SamplingConfig, TokensConfig
from mzsane.evaluation.anchor_baselines import AnchorBaselines, Scored
from mzsane.evaluation.baselines import draw_random_models
from mzsane.evaluation.memorisation import CARD_SCHEMA, Memorisation
from mzsane.evaluation.novelty import KnownModels, find_known_models, open_trained_tokens
from mzsane.evaluation.scorer import TRAINED, Provenance, Scorer
from mzsane.evaluation.scoring import ModelSet
from mzsane.evaluation.two_sample import measure_copying, measure_coverage
from mzsane.files import to_parquet
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.randomness import make_generator
from mzsane.sampling.draw import Target, read_populations
from mzsane.tokens.layout import TokenLayout, check_same_layout
from mzsane.tokens.store import read_tokens
from mzsane.zoo.architectures import build_network
from mzsane.zoo.images import load_images

VERSION = 6

POPULATION_SCHEMA = {"method": pl.String, "n": pl.Int64, "coverage": pl.Float64, "copying_z": pl.Float64}
_HELD = 2**26  # weights of training models that are scored together


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
    """Score samples, the selected ones, reconstructions, and what models give without a sampler, on test images.

    Selection, of samples, of perturbed anchors, of the best anchor and the best training model, is by accuracy on
    validation images. `populations.parquet` has the two-sample tests, a row a method.
    """
    work = plan_scores(config, sampling, target, samples, seed)
    if found := store.find(work.ref):
        return found
    artifact = store.open(samples)
    populations, records, layout = read_populations(artifact)
    tables = open_trained_tokens(artifact, store)
    known = find_known_models(store.open(ArtifactRef.parse(artifact.manifest.inputs["backbone"])), tables, layout)
    models = ModelSet(target.network, target.images, layout, populations["anchors"])
    memorisation = Memorisation(known, tables, models, seed, execution, sink, populations["anchors"])
    scorer = Scorer(config, target, layout, seed, execution, sink, memorisation)
    records = records.sort("sample")
    best = records.filter(pl.col("rank") <= sampling.keep).sort("rank")["sample"].to_list()
    card = records.select(list(CARD_SCHEMA))
    made = Provenance(
        sees=records["sees"][0],
        generator_sees=records["generator_sees"][0],
        clusters=records["cluster"].to_list(),
        gradient_steps=records["gradient_steps"][0],
        image_passes=records["image_passes"][0],
        seconds=records["seconds"][0],
    )
    scored: Scored = {"samples": (populations["samples"], card)}
    # A target with a zoo has it fine-tuned once for all arms, among the baselines.
    zoo_card = scorer.add("zoo", populations["originals"], TRAINED, tuned=None if target.tokens is None else 0)
    decoded = Provenance(generator_sees=made.generator_sees)
    scorer.add("reconstruction", populations["reconstruction"], decoded, tuned=0)  # `anchors` tell it of tuned models
    scorer.add("samples", populations["samples"], made, card=card)
    scorer.add_chosen("selected", populations["samples"], best, made, card=card)
    _add_best_model(scorer, known)
    if len(populations["anchor_weights"]):
        names = pl.read_parquet(artifact.path("anchors.parquet"))["model"].to_list()
        decoded_AP, anchors_AP = populations["anchors"], populations["anchor_weights"]
        scored |= AnchorBaselines(scorer, sampling, made, records, decoded_AP, anchors_AP, names).add_all()
    files = {
        "scores.parquet": to_parquet(scorer.table()),
        "populations.parquet": to_parquet(
            _compare_populations(known, scored, populations["originals"], zoo_card)
        ),
    }
    return store.publish(work, files, counts={"scores": len(scorer.rows)})


def _add_best_model(scorer: Scorer, known: KnownModels | None) -> None:
    """Score the training model that is best on validation images: what a user would take."""
    if known is None or known.columns_P is not None:
        return
    best = scorer.find_best(known.load(some) for some in known.last_N.split(max(1, _HELD // known.layout.weights)))
    flat_1P = known.load(known.last_N[[best]])
    scorer.add_chosen("best_model", flat_1P, [0], TRAINED, of=len(known.names))


def _compare_populations(
    known: KnownModels | None, scored: Scored, held_out_HP: Tensor, held_out: pl.DataFrame | None
) -> pl.DataFrame:
    """Return the two-sample tests of whole populations against held-out models, a row a method.

    That of the zoo is of training models, as many as there are samples: what coverage models of the zoo reach.
    """
    if known is None or held_out is None or len(held_out_HP) < 2:
        return pl.DataFrame(schema=POPULATION_SCHEMA)
    rows: list[dict[str, object]] = []
    trained_NP = known.load(known.last_N[: len(scored["samples"][0])])
    for method, (flat_SP, card) in {"zoo": (trained_NP, None), **scored}.items():
        copying = None if card is None else measure_copying(_novelty(card), _novelty(held_out))
        coverage = measure_coverage(known, held_out_HP, flat_SP)
        rows.append({"method": method, "n": len(flat_SP), "coverage": coverage, "copying_z": copying})
    return pl.DataFrame(rows, schema=POPULATION_SCHEMA)


def _novelty(card: pl.DataFrame) -> Tensor:
    return card["novelty"].fill_null(float("nan")).to_torch()


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
