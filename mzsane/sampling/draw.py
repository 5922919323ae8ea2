"""Draw samples for one target from one backbone, and select the best on the target's validation images.

The SAMPLES artifact holds `populations.safetensors`, flat weights by population:

- `samples`: the drawn models,
- `anchors`: the anchors decoded without noise, and `anchor_weights`: the anchors as they are in the zoo, canonical,
- `originals`: held-out zoo models, and `reconstruction`: the same through the backbone,

and `samples.parquet`, a record a sample: sampler, bandwidth, seed, the anchors that it was made of, the anchor that its
weights are nearest to and the distance, accuracy on validation images, rank by that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from mzsane.artifacts import Artifact, ArtifactRef, ArtifactStore, Work
from mzsane.backbone.inference import decode_models, encode_models, load_backbone
from mzsane.config import ExecutionConfig, ImagesConfig, NetworkConfig, SamplingConfig
from mzsane.evaluation.scoring import ModelSet, score_models
from mzsane.files import load_tensors, save_tensors, to_parquet
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.randomness import make_generator
from mzsane.sampling.samplers import SAMPLERS
from mzsane.sampling.samplers.protocol import Anchors
from mzsane.tokens.composition import TokenSlice
from mzsane.tokens.layout import TokenLayout, check_same_layout
from mzsane.tokens.store import TokenTable, read_tokens

VERSION = 2


@dataclass(frozen=True)
class Target:
    """What samples are made for and scored on.

    Attributes:
        network: the architecture.
        images: the image dataset.
        tokens: the TOKENS artifact of a zoo that was trained on just this, if there is one.
    """

    network: NetworkConfig
    images: ImagesConfig
    tokens: ArtifactRef | None = None


def plan_samples(
    config: SamplingConfig,
    target: Target,
    backbone: ArtifactRef,
    slices: Sequence[TokenSlice],
    anchor_slices: Sequence[int],
    seed: int,
) -> Work:
    """Name the work of drawing samples; `anchor_slices` are the numbers of the slices that anchors come from."""
    inputs = {"backbone": backbone} | {f"tokens/{number}": slices[number].tokens for number in anchor_slices}
    if target.tokens is not None:
        inputs["target"] = target.tokens
    settings = {
        "sampling": config.recipe(),
        "network": target.network.recipe(),
        "images": target.images.recipe(),
        "anchor_slices": list(anchor_slices),
        "seed": seed,
    }
    return Work("samples", VERSION, settings, inputs, seed=seed)


def draw_samples(
    config: SamplingConfig,
    target: Target,
    backbone: ArtifactRef,
    slices: Sequence[TokenSlice],
    anchor_slices: Sequence[int],
    seed: int,
    store: ArtifactStore,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> Artifact:
    """Draw samples, or open them when they were drawn before.

    Anchors are random training models of the composition, at their last epoch: choosing them looks at no target data.
    Only the ranking does, at labelled validation images.
    """
    work = plan_samples(config, target, backbone, slices, anchor_slices, seed)
    if found := store.find(work.ref):
        return found
    trained = store.open(backbone)
    model, backbone_config = load_backbone(trained)
    tables = {number: read_tokens(store.open(slices[number].tokens)) for number in anchor_slices}
    names, anchors = _draw_anchors(trained, tables, config.anchors, seed)
    layout = check_same_layout((table.layout for table in tables.values()), "drawing samples from anchors")
    latents = encode_models(model, layout, anchors, backbone_config.window)
    drawn = SAMPLERS[config.sampler](
        Anchors(latents, layout.positions_T3[:, 1]),
        config.bandwidth,
        config.samples,
        make_generator(seed, "samples", "kde"),
    )
    samples = decode_models(model, layout, drawn.latents_STL, backbone_config.window)
    distances_S, nearest_S = torch.cdist(samples, anchors).min(dim=1)
    originals = _held_out(target, tables, store)
    populations = {
        "samples": samples,
        "anchors": decode_models(model, layout, latents, backbone_config.window),
        "anchor_weights": anchors,
        "originals": originals,
        "reconstruction": decode_models(
            model, layout, encode_models(model, layout, originals, backbone_config.window), backbone_config.window
        ),
    }
    models = ModelSet(target.network, target.images, layout, samples)
    scores = score_models(models, "val", execution, sink)
    records = pl.DataFrame(
        {
            "sample": range(config.samples),
            "sampler": config.sampler,
            "bandwidth": config.bandwidth,
            "seed": seed,
            "made_of": [[names[i] for i in used_A.nonzero().flatten()] for used_A in drawn.used_SA],
            "nearest_anchor": nearest_S.tolist(),
            "nearest_distance": distances_S.tolist(),
            "validation_accuracy": [score.accuracy for score in scores],
        },
        schema_overrides={"made_of": pl.List(pl.String)},
    ).with_columns(pl.col("validation_accuracy").rank("ordinal", descending=True).cast(pl.Int64).alias("rank"))
    best = records.filter(pl.col("rank") <= config.keep)["validation_accuracy"].mean()
    notes = {"layout": layout.model_dump(mode="json")}
    files = {
        "populations.safetensors": save_tensors(populations, notes),
        "samples.parquet": to_parquet(records),
    }
    counts = {"samples": config.samples, "anchors": len(anchors), "validation_accuracy_of_selected": best}
    return store.publish(work, files, counts)


def read_populations(samples: Artifact) -> tuple[dict[str, Tensor], pl.DataFrame, TokenLayout]:
    """Read a SAMPLES artifact: flat weights by population, the records, and the layout."""
    populations, notes = load_tensors(samples.path("populations.safetensors").read_bytes())
    records = pl.read_parquet(samples.path("samples.parquet"))
    return populations, records, TokenLayout.model_validate(notes["layout"])


def _draw_anchors(backbone: Artifact, tables: dict[int, TokenTable], count: int, seed: int) -> tuple[list[str], Tensor]:
    """Draw training models of the composition at random; return their names and last epoch's weights."""
    used = pl.read_parquet(backbone.path("composition.parquet"))
    models = used.filter(pl.col("slice").is_in(list(tables))).select("slice", "model").unique().sort("slice", "model")
    order = torch.randperm(len(models), generator=make_generator(seed, "samples", "anchors"))
    names, flat = [], []
    for number, model in models[sorted(order[:count].tolist())].iter_rows():
        row = tables[number].pick_rows("train", last_epochs=1, models=[model])
        names.append(f"{number}/{model}")
        flat.append(tables[number].load(row))
    return names, torch.cat(flat)


def _held_out(target: Target, tables: dict[int, TokenTable], store: ArtifactStore) -> Tensor:
    """Return the test models of the target's own zoo, or of the anchors' zoos when it has none, at their last epoch."""
    sources = [read_tokens(store.open(target.tokens))] if target.tokens is not None else list(tables.values())
    return torch.cat([table.load(table.pick_rows("test", last_epochs=1)) for table in sources])
