"""Score one arm's samples on one target, and the target's own baselines.

A SCORES and a BASELINES artifact each hold `scores.parquet`, the rows of `mzsane.evaluation.scorer`; that of SCORES has
`populations.parquet` too, the two-sample tests of whole populations (`mzsane.evaluation.novelty.two_sample`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl
import torch
from torch import Tensor, nn

from mzsane.config import EvaluationConfig, ExecutionConfig, SamplingConfig, TokensConfig
from mzsane.device import find_device
from mzsane.evaluation.anchor_baselines import AnchorBaselines, Scored
from mzsane.evaluation.baselines import draw_random_models
from mzsane.evaluation.distillation import OUTPUTS, choose_rate, distil, write_mean_targets
from mzsane.evaluation.novelty.distance import KnownModels, find_known_models, open_trained_tokens
from mzsane.evaluation.novelty.memorisation import CARD_SCHEMA, Memorisation
from mzsane.evaluation.novelty.two_sample import measure_copying, measure_coverage
from mzsane.evaluation.scorer import SEES, TRAINED, Provenance, Scorer
from mzsane.layout.agreement import check_same_layout
from mzsane.layout.token_layout import TokenLayout
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.build import build_network, choose_network
from mzsane.networks.run import ModelSet
from mzsane.networks.shapes import name_code
from mzsane.problems.images.content import pin_images
from mzsane.problems.images.dataset import ImageDataset, load_images
from mzsane.problems.images.noise import draw_noise_images
from mzsane.problems.images.pseudo import draw_pseudo_images
from mzsane.randomness import make_generator
from mzsane.sampling.decoding import lay_out_target
from mzsane.sampling.populations import read_populations
from mzsane.sampling.target import Target
from mzsane.steady import steady
from mzsane.store.artifacts import Artifact, ArtifactRef, ArtifactStore, Work
from mzsane.store.serialisation import to_parquet
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.tokens.subject import name_activations, read_activations

VERSION = 7

POPULATION_SCHEMA = {
    "method": pl.String,
    "sees": pl.String,
    "n": pl.Int64,
    "coverage": pl.Float64,
    "copying_z": pl.Float64,
}
_TEACHERS = 20  # training models of the zoo that random initialisations are trained towards
_DISTILLATION_IMAGES = 5000  # of each kind, of which each step sees some
_HELD = 2**26  # weights of training models that are scored together


def plan_scores(
    config: EvaluationConfig, sampling: SamplingConfig, target: Target, samples: ArtifactRef, seed: int
) -> Work:
    """Name the work of scoring an arm's samples on a target."""
    settings = {"evaluation": config.recipe(), "keep": sampling.keep, **_describe(target), "seed": seed}
    return Work("scores", VERSION, settings, {"samples": samples}, seed=seed)


@steady
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
    validation images.
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
    scored = [Scored("samples", records["sees"][0], populations["samples"], card)]
    # A target with a zoo has it fine-tuned once for all arms, among the baselines.
    held_out = replace(TRAINED, activations=pl.read_parquet(artifact.path("originals.parquet"))["activation"].to_list())
    zoo_card = scorer.add("zoo", populations["originals"], held_out, tuned=None if target.tokens is None else 0)
    decoded = Provenance(generator_sees=made.generator_sees)
    scorer.add("reconstruction", populations["reconstruction"], decoded, tuned=0)  # `anchors` tell it of tuned models
    scorer.add("samples", populations["samples"], made, card=card)
    scorer.add_chosen("selected", populations["samples"], best, made, card=card)
    _add_best_model(scorer, known, tables)
    if len(populations["anchor_weights"]):
        names = pl.read_parquet(artifact.path("anchors.parquet"))["model"].to_list()
        decoded_AP, anchors_AP = populations["anchors"], populations["anchor_weights"]
        own = name_activations(tables, names, layout)
        scored += AnchorBaselines(scorer, sampling, made, records, decoded_AP, anchors_AP, names, own).add_all()
    files = {
        "scores.parquet": to_parquet(scorer.table()),
        "populations.parquet": to_parquet(
            _compare_populations(known, scored, Scored("zoo", scorer.sees, populations["originals"], zoo_card))
        ),
    }
    return store.publish(work, files, counts={"scores": len(scorer.rows), **_made_by(execution)})


def _add_best_model(scorer: Scorer, known: KnownModels | None, tables: Mapping[int, TokenTable]) -> None:
    """Score the training model that is best on validation images: what a user would take."""
    if known is None or known.columns_P is not None:
        return
    told = name_activations(tables, known.names, known.layout)
    at_once = max(1, _HELD // known.layout.weights)
    best = scorer.find_best(
        (known.load(known.last_N[first : first + at_once]), told[first : first + at_once])
        for first in range(0, len(told), at_once)
    )
    flat_1P = known.load(known.last_N[[best]])
    made = replace(TRAINED, activations=[told[best]])
    scorer.add_chosen("best_model", flat_1P, [0], made, of=len(known.names))


def _compare_populations(known: KnownModels | None, scored: Sequence[Scored], zoo: Scored) -> pl.DataFrame:
    """Return the two-sample tests of whole populations against held-out models, a row a method and what it sees.

    That of the zoo is of training models, as many as there are samples: what coverage models of the zoo reach.

    Args:
        known: the training models.
        scored: the populations, the samples first.
        zoo: the held-out models.
    """
    if known is None or zoo.card is None or len(zoo.flat_SP) < 2:
        return pl.DataFrame(schema=POPULATION_SCHEMA)
    trained_NP = known.load(known.last_N[: len(scored[0].flat_SP)])
    return pl.DataFrame(
        [
            {
                "method": one.method,
                "sees": one.sees,
                "n": len(one.flat_SP),
                "coverage": measure_coverage(known, zoo.flat_SP, one.flat_SP),
                "copying_z": None if one.card is None else measure_copying(_novelty(one.card), _novelty(zoo.card)),
            }
            for one in (replace(zoo, flat_SP=trained_NP, card=None), *scored)
        ],
        schema=POPULATION_SCHEMA,
    )


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


@steady
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
    plain = TokenLayout.from_network(network, tokens.token_dim, tokens.running_statistics)
    table = None if target.tokens is None else read_tokens(store.open(target.tokens))
    others = [read_tokens(store.open(ref)) for ref in transfer]
    layout = lay_out_target(network, [one.layout for one in ([table] if table else others)], plain)
    memorisation = None
    if table is not None:
        known = KnownModels.from_tables({"0": (table, table.pick_rows("train"))})
        models = ModelSet(target.network, target.images, layout, torch.empty(0, layout.weights))
        memorisation = Memorisation(known, {0: table}, models, seed, execution, sink)
    scorer = Scorer(config, target, layout, seed, execution, sink, memorisation)
    if table is not None:
        # As they are, arms score them, each beside the training models of its own backbone.
        rows = table.pick_rows("test", last_epochs=1)
        made = replace(TRAINED, activations=read_activations(table.index, rows.tolist()))
        scorer.add("zoo", table.load(rows), made, zero_shot=False)
        _add_distilled(scorer, network, table, images)
    if others:
        check_same_layout([layout, *(other.layout for other in others)], "scoring models of other zoos")
        chosen = [other.pick_rows("test", last_epochs=1) for other in others]
        others_NP = torch.cat([other.load(rows) for other, rows in zip(others, chosen, strict=True)])
        told = [read_activations(other.index, rows.tolist()) for other, rows in zip(others, chosen, strict=True)]
        activations = [activation for some in told for activation in some]
        order_N = torch.randperm(len(others_NP), generator=make_generator(seed, "baselines", "transfer"))
        made = replace(TRAINED, activations=[activations[at] for at in order_N.tolist()])
        scorer.add("transfer", others_NP[order_N], made)
    count = max(config.random_models, config.finetune_models)
    generator = make_generator(seed, "baselines", "random_init")
    fresh_NP = draw_random_models(target.network, target.images, layout, count, generator)
    scorer.add("random_init", fresh_NP, tuned=count)
    return store.publish(
        work, {"scores.parquet": to_parquet(scorer.table())}, counts={"scores": len(scorer.rows), **_made_by(execution)}
    )


def _add_distilled(scorer: Scorer, network: nn.Module, table: TokenTable, images: ImageDataset) -> None:
    """Score random initialisations that are trained towards the mean output of the target's zoo, without labels."""
    config, target, layout, seed = scorer.config, scorer.target, scorer.layout, scorer.seed
    if not config.distillation_steps:
        return
    trained = table.pick_rows("train", last_epochs=1)
    told = read_activations(table.index, trained.tolist())
    # What students learn from is of their own network.
    trained = trained[torch.tensor([choose_network(target.network, word) == target.network for word in told])]
    if not len(trained):
        return
    order_N = torch.randperm(len(trained), generator=make_generator(seed, "baselines", "teachers"))
    teachers_AP = table.load(trained[order_N[:_TEACHERS]])
    generator = make_generator(seed, "baselines", "distilled_init")
    start_SP = draw_random_models(target.network, target.images, layout, config.distilled_models, generator)
    unlabelled_NCHW = images.splits["train"].images_NCHW
    shape, device = (images.channels, images.size, images.size), find_device(scorer.execution)
    looks = {
        "none": draw_noise_images(_DISTILLATION_IMAGES, shape, generator),
        "statistics": draw_pseudo_images(unlabelled_NCHW, _DISTILLATION_IMAGES, generator),
        "images": unlabelled_NCHW[:_DISTILLATION_IMAGES],
    }
    for sees, seen_NCHW in looks.items():
        lessons = write_mean_targets(network, layout, teachers_AP, seen_NCHW, OUTPUTS[sees], device)
        for steps in config.distillation_steps:
            found = distil(lessons, start_SP, steps, choose_rate(steps), seed, scorer.sink)
            made = Provenance(
                sees=max(sees, scorer.sees, key=SEES.index),
                gradient_steps=found.gradient_steps,
                image_passes=found.image_passes,
                seconds=found.seconds,
            )
            scorer.add("distilled_init", found.flat_SP, made, tuned=0)


def _made_by(execution: ExecutionConfig | None) -> dict[str, str | int]:
    """Return what of the execution changes last bits."""
    return {"device": find_device(execution).type, "threads": torch.get_num_threads()}


def _describe(target: Target) -> dict[str, object]:
    code = name_code(target.network, target.images)
    return {"network": target.network.recipe(), "images": pin_images(target.images).recipe(), **code}
