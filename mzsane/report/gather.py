"""What a comparison is made of, gathered from the artifacts of arms: scores, curves, shares, latents, provenance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import polars as pl
import torch

from mzsane.config import AblationConfig, CompositionConfig, TargetConfig
from mzsane.report.cells import ROW_SCHEMA
from mzsane.report.figures.shares import SHARE_SCHEMA, measure_shares
from mzsane.report.latents import LATENT_SCHEMA, map_latents
from mzsane.report.statistics.intervals import Interval, measure_interval
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from mzsane.tokens.build import plan_tokens
from mzsane.tokens.store import read_tokens

_MEASURES = ("novelty", "sampling_novelty", "norm_ratio", "error_overlap", "disagreement", "spread")
_AVERAGED = ("loss", "calibration", *_MEASURES)


@dataclass(frozen=True)
class ArmParts:
    """An arm's name and artifacts; those of samples, scores and baselines by target."""

    name: str
    composition: CompositionConfig
    seed: int
    backbone: ArtifactRef
    probes: ArtifactRef
    samples: Mapping[str, ArtifactRef]
    scores: Mapping[str, ArtifactRef]
    baselines: Mapping[str, ArtifactRef]


def gather_scores(config: AblationConfig, arm: ArmParts, store: ArtifactStore) -> pl.DataFrame:
    """Return every score of one arm and of its targets' baselines, a row a model or ensemble (`SCORE_SCHEMA`)."""
    frames = []
    for target in config.targets:
        parts = [store.open(ref) for ref in (arm.baselines[target.name], arm.scores[target.name])]
        scores = pl.concat([pl.read_parquet(part.path("scores.parquet")) for part in parts])
        zoos = {str(number): part.zoo for number, part in enumerate(arm.composition.slices)}
        slice_, model = (pl.col("cluster").str.extract(pattern) for pattern in ("^([^/]*)/", "/(.*)$"))
        named = scores.with_columns(cluster=pl.concat_str(slice_.replace(zoos), model, separator="/"))
        frames.append(named.select(*name_measurement(config, arm, target), pl.all()))
    return pl.concat(frames)


def gather_rows(config: AblationConfig, arm: ArmParts, scores: pl.DataFrame, store: ArtifactStore) -> pl.DataFrame:
    """Return the measurements of one arm: the means of its scores and of its targets' baselines (`gather_scores`)."""
    keys = ("target", "method", "sees", "generator_sees", "ensemble", "chosen_of", "finetune_epochs", "gradient_steps")
    means = scores.group_by(keys, maintain_order=True).agg(
        pl.col("arm", "composition", "seed", "in_distribution").first(),
        pl.col("learning_rate", "images_per_class", "image_passes", "seconds").first(),
        pl.len().cast(pl.Int64).alias("n"),
        pl.col("accuracy").mean().alias("accuracy_mean"),
        pl.col("accuracy").std().alias("accuracy_std"),
        pl.col("accuracy"),
        pl.col("cluster"),
        pl.col("outside_norms").mean().alias("outside_norms_share"),
        *(pl.col(name).mean().alias(f"{name}_mean") for name in _AVERAGED),
    )
    intervals = [_measure_interval(*pair) for pair in means.select("accuracy", "cluster").iter_rows()]
    counts = config.count_parts(arm.composition)
    labels = means.with_columns(
        pl.Series("accuracy_interval", [interval.half for interval in intervals], pl.Float64).fill_nan(None),
        pl.Series("clusters", [interval.units for interval in intervals], pl.Int64),
        *(pl.lit(count).cast(pl.Int64).alias(name) for name, count in counts.items()),
    )
    populations = pl.concat([gather_populations(arm, target.name, store) for target in config.targets])
    return labels.join(
        populations, on=["target", "method", "sees", "finetune_epochs", "ensemble"], how="left", maintain_order="left"
    ).select(list(ROW_SCHEMA))


def _measure_interval(accuracies: Sequence[float], clusters: Sequence[str | None]) -> Interval:
    finite = [math.isfinite(accuracy) for accuracy in accuracies]
    return measure_interval(list(compress(accuracies, finite)), list(compress(clusters, finite)))


def gather_populations(arm: ArmParts, target: str, store: ArtifactStore) -> pl.DataFrame:
    """Return the two-sample tests of an arm's populations, which are of single models that were not fine-tuned."""
    found = pl.read_parquet(store.open(arm.scores[target]).path("populations.parquet"))
    places = {"target": pl.lit(target), "finetune_epochs": pl.lit(0, pl.Int64), "ensemble": pl.lit(1, pl.Int64)}
    return found.drop("n").with_columns(**places)


def _name_arm(arm: ArmParts) -> list[pl.Expr]:
    return [
        pl.lit(arm.name).alias("arm"),
        pl.lit(arm.composition.name).alias("composition"),
        pl.lit(arm.seed).cast(pl.Int64).alias("seed"),
    ]


def name_measurement(config: AblationConfig, arm: ArmParts, target: TargetConfig) -> list[pl.Expr]:
    """Return what names a measurement of an arm: its own names, the target, and whether that is in distribution."""
    inside = pl.lit(config.in_distribution(arm.composition, target), pl.Boolean)
    return [*_name_arm(arm), pl.lit(target.name).alias("target"), inside.alias("in_distribution")]


def name_curve(arm: ArmParts, metric: str) -> str:
    """Return the name for people of a training metric: what training numbers by slice, as `val_r2/0`, by zoo."""
    name, _, number = metric.partition("/")
    return f"{name}/{arm.composition.slices[int(number)].zoo}" if number.isdecimal() else metric


def gather_curves(arm: ArmParts, store: ArtifactStore) -> pl.DataFrame:
    """Return an arm's training curves, long: arm, composition, seed, step, metric, value."""
    curves = pl.read_parquet(store.open(arm.backbone).path("curves.parquet"))
    names = {metric: name_curve(arm, metric) for metric in curves["metric"].unique()}
    return curves.select(
        *_name_arm(arm),
        "step",
        pl.col("metric").replace(names),
        "value",
    )


def count_passes(config: AblationConfig, arm: ArmParts, store: ArtifactStore) -> float:
    """Return how often a backbone saw each checkpoint of its composition: tokens of all windows over those of all."""
    backbone = store.open(arm.backbone)
    settings = config.find_backbone(arm.composition)
    used = pl.read_parquet(backbone.path("composition.parquet"))
    tables = [
        read_tokens(store.open(ArtifactRef.parse(backbone.manifest.inputs[f"tokens/{number}"])))
        for number in range(len(arm.composition.slices))
    ]
    tokens = sum(table.layout.length * used.filter(slice=number).height for number, table in enumerate(tables))
    return settings.steps * settings.batch_size * settings.window / tokens


def gather_shares(config: AblationConfig, arm: ArmParts, models: pl.DataFrame) -> pl.DataFrame:
    """Return the shares of an arm's models that are novel and as accurate as the zoo, on targets that have a zoo.

    Args:
        config: the ablation.
        arm: the arm.
        models: the scores of the single models of all arms.
    """
    frames = [pl.DataFrame(schema=SHARE_SCHEMA)]
    for target in config.targets:
        if target.zoo is None:
            continue
        own = models.filter(arm=arm.name, target=target.name)
        shares = measure_shares(own, own).with_columns(*name_measurement(config, arm, target))
        frames.append(shares.select(list(SHARE_SCHEMA)))
    return pl.concat(frames)


def choose_mapped(config: AblationConfig, arms: Sequence[ArmParts]) -> list[ArmParts]:
    """Return the arms whose latents are mapped: of each diversity the first of the largest, with the first seed."""
    chosen: dict[tuple[int | None, int | None], ArmParts] = {}
    counts = {arm.name: config.count_parts(arm.composition) for arm in arms}
    for arm in sorted(arms, key=lambda arm: -(counts[arm.name]["models"] or 0)):
        chosen.setdefault((counts[arm.name]["datasets"], counts[arm.name]["architectures"]), arm)
    return [chosen[key] for key in sorted(chosen, key=lambda key: [count or 0 for count in key])]


def gather_latents(
    config: AblationConfig, arm: ArmParts, store: ArtifactStore, device: torch.device = torch.device("cpu")
) -> pl.DataFrame:
    """Return the map of an arm's latents: held-out checkpoints of its composition's zoos and of the targets' zoos."""
    inputs = store.open(arm.backbone).manifest.inputs
    zoos = {part.zoo: ArtifactRef.parse(inputs[f"tokens/{i}"]) for i, part in enumerate(arm.composition.slices)}
    trained_on = set(zoos)
    for target in config.targets:
        if target.zoo is not None:
            samples = store.open(arm.samples[target.name]).manifest.inputs
            zoos.setdefault(target.zoo, ArtifactRef.parse(samples["target"]))
    latents = map_latents(store.open(arm.backbone), zoos, trained_on, arm.seed, store, device)
    labels = (pl.lit(arm.name).alias("arm"), pl.lit(arm.composition.name).alias("composition"))
    return latents.with_columns(labels).select(list(LATENT_SCHEMA))


def gather_probes(config: AblationConfig, arm: ArmParts, store: ArtifactStore) -> pl.DataFrame:
    """Return an arm's probes, with the ablation's names of zoos in place of what is in them."""
    probes = pl.read_parquet(store.open(arm.probes).path("probes.parquet"))
    names = {plan_tokens(config.tokens, zoo).ref.fingerprint: zoo.name for zoo in reversed(config.all_zoos)}
    labels = {label: names[tokens] for label, tokens in probes.select("zoo", "tokens").rows() if tokens in names}
    return probes.select(
        *_name_arm(arm),
        pl.all().exclude("zoo", "fitted_on"),
        pl.col("zoo").replace(labels),
        pl.col("fitted_on").list.eval(pl.element().replace(labels)),
    ).select("arm", "composition", "seed", *probes.columns)


def trace_provenance(config: AblationConfig, arms: Sequence[ArmParts], store: ArtifactStore) -> list[dict[str, Any]]:
    """Return what came from where: for every arm each artifact that leads to its scores, with what it reads."""
    zoo_names: dict[str, str] = {}
    records: list[dict[str, Any]] = []

    def visit(arm: ArmParts, ref: ArtifactRef, stage: str, name: str) -> None:
        manifest = store.open(ref).manifest
        reads = [ArtifactRef.parse(text) for text in manifest.inputs.values()]
        records.append(
            {
                "arm": arm.name,
                "stage": stage,
                "name": name,
                "fingerprint": ref.fingerprint,
                "address": store.address(ref),
                "reads": [read.fingerprint for read in reads],
            }
        )
        for read in reads:
            if read.kind in ("tokens", "zoo"):
                visit(arm, read, read.kind, zoo_names.get(read.fingerprint, name))

    for arm in arms:
        for number, part in enumerate(arm.composition.slices):
            tokens = store.open(arm.backbone).manifest.inputs[f"tokens/{number}"]
            zoo_names[ArtifactRef.parse(tokens).fingerprint] = part.zoo
    for arm in arms:
        visit(arm, arm.backbone, "backbone", arm.name)
        visit(arm, arm.probes, "probes", arm.name)
        for target in config.targets:
            visit(arm, arm.samples[target.name], "samples", f"{arm.name}/{target.name}")
            visit(arm, arm.scores[target.name], "scores", f"{arm.name}/{target.name}")
            visit(arm, arm.baselines[target.name], "scores", f"baselines/{target.name}")
    return records
