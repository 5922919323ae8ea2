"""Draw samples for one target from one backbone, and select the best on the target's validation images.

The SAMPLES artifact holds `populations.safetensors`, flat weights by population, all in the target's layout:

- `samples`: the drawn models,
- `anchors`: the anchors decoded without noise, and `anchor_weights`: the anchors as they are in the zoo, canonical,
  whose names, slice/model, are in `anchors.parquet`,
- `originals`: held-out zoo models, and `reconstruction`: the same through the backbone.

`samples.parquet` is a record a sample: how it was made (sampler, bandwidth, seed, `anchor_choice`, the round that it is
of, the anchors that it was `made_of`, the anchor that its weights are nearest to and the distance), accuracy on
validation images and rank by that, its memorisation card (`novelty.memorisation`), and what it cost: gradient
steps, image passes and seconds, those of preparing the anchors shared among the samples, those of choosing a bandwidth
left out. `sees` says what drawing it looked at of the target, `anchors_see` what choosing its anchors did: `none`;
`images`, without labels, where running statistics are computed on them (`conditioned`) or samples were `guided` by them
(`mzsane.sampling.guidance`); `labels`, where anchors or bandwidth were chosen by them, and in every round after the
first. `generator_sees` says the same of the backbone: `images` if it was trained with the behavioural loss on a zoo of
the target's dataset. It says whether the anchors' latents were `refined`, for which nothing is seen (`refine_anchors`).
`positions` are `mapped` when anchors of another architecture lent their latents, and the `head` is `new` when they have
other classes. `bandwidths.parquet` has the bandwidths that were tried, none when one was given.

Suffixes: A anchors, S samples, P weights of a model, T tokens, L latent width.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import polars as pl
import torch
from torch import Tensor

from mzsane.composition import TokenSlice
from mzsane.config import BackboneConfig, ExecutionConfig, ImagesConfig, SamplingConfig
from mzsane.device import find_device
from mzsane.evaluation.bandwidth import Trial, choose_bandwidth, list_trials
from mzsane.evaluation.novelty.distance import find_known_models
from mzsane.evaluation.novelty.memorisation import Memorisation
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.build import choose_network
from mzsane.networks.run import ModelSet, score_models
from mzsane.networks.shapes import name_code
from mzsane.problems.images.content import pin_images
from mzsane.sampling.anchors import (
    choose_anchors,
    load_anchors,
    load_held_out,
    refine_anchors,
    resolve_given,
    share_images,
)
from mzsane.sampling.decoding import Decoder
from mzsane.sampling.draw import WeightSampler
from mzsane.sampling.guidance import open_guidance
from mzsane.sampling.samplers import digest_sampler
from mzsane.sampling.samplers.protocol import Anchors, Drawn
from mzsane.sampling.target import Target
from mzsane.steady import steady
from mzsane.store.artifacts import Artifact, ArtifactRef, ArtifactStore, Work
from mzsane.store.serialisation import save_tensors, to_parquet
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.tokens.subject import name_activations

VERSION = 7


def plan_samples(
    config: SamplingConfig,
    target: Target,
    backbone: ArtifactRef,
    slices: Sequence[TokenSlice],
    anchor_slices: Sequence[int],
    seed: int,
) -> Work:
    """Name the work of drawing samples; `anchor_slices` are the numbers of the slices that anchors come from."""
    inputs = {"backbone": backbone} | {f"tokens/{number}": part.tokens for number, part in enumerate(slices)}
    if target.tokens is not None:
        inputs["target"] = target.tokens
    settings = {
        "sampling": config.recipe() | {"anchor_models": resolve_given(config, slices)},
        "network": target.network.recipe(),
        "images": pin_images(target.images).recipe(),
        **name_code(target.network, target.images),
        **digest_sampler(config.sampler),
        "anchor_slices": list(anchor_slices),
        "seed": seed,
    }
    return Work("samples", VERSION, settings, inputs, seed=seed)


@steady
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

    Anchors are training models of the composition, at the last checkpoint that was trained on. Random ones look at no
    target data; for others see `choose_anchors`. All choices look at validation images only.

    Raises:
        ConfigError: there are too few anchors for the sampler, one that is given was not trained on, or the backbone
            has no positions for the target's tokens.
    """
    work = plan_samples(config, target, backbone, slices, anchor_slices, seed)
    if found := store.find(work.ref):
        return found
    trained = store.open(backbone)
    all_tables = {number: read_tokens(store.open(part.tokens)) for number, part in enumerate(slices)}
    tables = {number: all_tables[number] for number in anchor_slices}
    device = find_device(execution)
    known = [table.layout for table in tables.values()]
    decoder = Decoder(trained, target.network, target.images, known, seed, device)
    chosen = choose_anchors(config, trained, slices, tables, target.images, seed)
    started = time.monotonic()
    flat_AP, latents_ATL = load_anchors(chosen, tables, decoder)
    guidance = None
    # What has another architecture or other classes cannot teach the target's.
    comparable = not decoder.mapped and not decoder.new_head
    told = name_activations(tables, chosen.names, decoder.layout)
    alike = all(choose_network(target.network, activation) == target.network for activation in told)
    refined = config.refine_anchors and comparable and alike  # the target's network is what compares them
    if refined:
        latents_ATL = refine_anchors(decoder, flat_AP, latents_ATL, seed, sink)
    if config.guidance_steps and comparable:
        guidance = open_guidance(config, target.network, target.images, decoder.layout, flat_AP, seed, told, device)
    preparing = time.monotonic() - started
    decoded_AP = decoder.renew_heads(decoder.decode(latents_ATL), "anchors")
    anchors = Anchors(latents_ATL, decoder.layout.positions_T3[:, 1], seed)
    memorisation = Memorisation(
        find_known_models(trained, all_tables, decoder.layout),
        all_tables,
        ModelSet(target.network, target.images, decoder.layout, decoded_AP),
        seed,
        execution,
        sink,
        decoded_AP,
    )
    selection = _Selection(WeightSampler(config, decoder, guidance, seed, sink), target, memorisation, execution)
    bandwidth, trials = choose_bandwidth(config, lambda width: selection.attempt(anchors, width))
    drawn, samples, accuracies = selection.draw_rounds(anchors, bandwidth)
    if not config.anchors:  # their latents stood for all, and no sample is made of one
        flat_AP, decoded_AP, names = flat_AP[:0], decoded_AP[:0], []
        drawn = replace(drawn, used_SA=drawn.used_SA[:, :0])
    else:
        names = chosen.names
    anchor_weights = decoder.renew_heads(flat_AP, "anchor_weights")
    originals, activations = load_held_out(target.tokens, tables, decoder, store)
    populations = {
        "samples": samples,
        "anchors": decoded_AP,
        "anchor_weights": anchor_weights,
        "originals": originals,
        "reconstruction": decoder.decode(decoder.encode(originals)),
    }
    base = "images" if decoder.conditioned else "none"
    looked = chosen.labelled or config.rounds > 1 or any(trial.accuracy is not None for trial in trials)
    guided = "images" if guidance else base
    how = {
        "sampler": config.sampler,
        "bandwidth": bandwidth,
        "seed": seed,
        "sees": "labels" if looked else guided,
        "anchors_see": "labels" if chosen.labelled else base,
        "generator_sees": "images" if _behaves_on(decoder.config, all_tables, target.images) else "none",
        "anchor_choice": config.anchor_choice if names else "none",
        "round": config.rounds,
        "positions": "mapped" if decoder.mapped else "own",
        "head": "new" if decoder.new_head else "decoded",
        "conditioned": decoder.conditioned,
        "guided": guidance is not None,
        "refined": refined,
        "gradient_steps": config.guidance_steps * config.rounds if guidance else 0,
        "image_passes": guidance.count_passes(config.samples) * config.rounds if guidance else 0,
        "seconds": (preparing + selection.seconds) / config.samples,
    }
    records = pl.DataFrame(
        {
            "sample": range(config.samples),
            "made_of": [[names[i] for i in used_A.nonzero().flatten()] for used_A in drawn.used_SA],
            **_find_nearest(samples, anchor_weights, decoder.body_P),
            "validation_accuracy": accuracies[-1],
        },
        schema_overrides={"made_of": pl.List(pl.String), "nearest_anchor": pl.Int64, "nearest_distance": pl.Float64},
    ).with_columns(
        pl.col("validation_accuracy").rank("ordinal", descending=True).cast(pl.Int64).alias("rank"),
        **{name: pl.lit(value) for name, value in how.items()},
        cluster=pl.col("nearest_anchor").replace_strict(dict(enumerate(names)), return_dtype=pl.String, default=None),
    )
    card = memorisation.measure(samples, sampled=True)
    best = records.filter(pl.col("rank") <= config.keep)["validation_accuracy"].mean()
    notes = {"layout": decoder.layout.model_dump(mode="json")}
    files = {
        "populations.safetensors": save_tensors(populations, notes),
        "samples.parquet": to_parquet(pl.concat([records, card], how="horizontal")),
        "anchors.parquet": to_parquet(pl.DataFrame({"model": names}, schema={"model": pl.String})),
        "originals.parquet": to_parquet(pl.DataFrame({"activation": activations}, schema={"activation": pl.String})),
        "bandwidths.parquet": to_parquet(list_trials(trials, bandwidth)),
    }
    counts = {
        "samples": config.samples,
        "anchors": len(names),
        "models_that_latents_are_from": len(chosen.names),
        "bandwidth": bandwidth,
        "validation_accuracy_by_round": [fmean(found) for found in accuracies],
        "validation_accuracy_of_selected": best,
    }
    return store.publish(work, files, counts)


class _Selection:
    """Models that are drawn, and scored on validation images to choose among them."""

    def __init__(
        self,
        sampler: WeightSampler,
        target: Target,
        memorisation: Memorisation,
        execution: ExecutionConfig | None,
    ) -> None:
        self.sampler, self.target, self.memorisation, self.execution = sampler, target, memorisation, execution
        self.seconds = 0.0  # that drawing the samples, not trying bandwidths, took

    def attempt(self, anchors: Anchors, bandwidth: float) -> Trial:
        """Draw a few models with a bandwidth, the same random numbers for all bandwidths, and measure them."""
        origin_AA = torch.eye(len(anchors.latents_ATL), dtype=torch.bool)
        _, flat_SP = self.sampler.draw(anchors, origin_AA, bandwidth, self.sampler.config.bandwidth_samples, "trial")
        accuracy = None if self.sampler.decoder.new_head else fmean(self._score(flat_SP))
        novelty = float(self.memorisation.measure_sampling(flat_SP).nanmean())
        return Trial(bandwidth, accuracy, None if math.isnan(novelty) else novelty)

    def draw_rounds(self, anchors: Anchors, bandwidth: float) -> tuple[Drawn, Tensor, list[list[float]]]:
        """Draw the samples; where there are more rounds, draw again from the selected ones.

        Returns:
            The last round's latents, with the anchors that they go back to, its weights (S, P), and the accuracies on
            validation images of each round.
        """
        config = self.sampler.config
        origin_AA = torch.eye(len(anchors.latents_ATL), dtype=torch.bool)
        accuracies: list[list[float]] = []
        for number in range(config.rounds):
            names = ("kde", number) if number else ("kde",)
            started = time.monotonic()
            drawn, flat_SP = self.sampler.draw(anchors, origin_AA, bandwidth, config.samples, *names)
            self.seconds += time.monotonic() - started
            accuracies.append(self._score(flat_SP))
            best = sorted(range(len(flat_SP)), key=lambda i: -accuracies[-1][i])[: config.keep]
            anchors, origin_AA = replace(anchors, latents_ATL=drawn.latents_STL[best]), drawn.used_SA[best]
        return drawn, flat_SP, accuracies

    def _score(self, flat_SP: Tensor) -> list[float]:
        models = ModelSet(self.target.network, self.target.images, self.sampler.decoder.layout, flat_SP)
        return [score.accuracy for score in score_models(models, "val", self.execution, self.sampler.sink)]


def _behaves_on(config: BackboneConfig, tables: Mapping[int, TokenTable], images: ImagesConfig) -> bool:
    """Tell whether a backbone was trained on what networks do on images of the target's dataset."""
    return config.behaviour > 0 and any(share_images(table, images) for table in tables.values())


def _find_nearest(flat_SP: Tensor, anchors_AP: Tensor, body_P: Tensor) -> dict[str, list[float | None]]:
    """Return for each sample the anchor with the nearest weights, new heads left out, and its distance."""
    if not len(anchors_AP):
        return {name: [None] * len(flat_SP) for name in ("nearest_anchor", "nearest_distance")}
    distances_S, nearest_S = torch.cdist(flat_SP[:, body_P], anchors_AP[:, body_P]).min(dim=1)
    return {"nearest_anchor": nearest_S.tolist(), "nearest_distance": distances_S.tolist()}
