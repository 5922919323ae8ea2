"""The ways in which models are drawn from a zoo and its backbone, as the pipeline draws them, and what each costs.

Noise on anchors goes to the anchor that is nearest to a sample, and as far from it as the sample is.

Suffixes: A anchors, S samples, X numbers that are moved, P weights of a model, T tokens, L latent width, N images, C
channels, H height, W width.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from experiments.bench import Bench
from mzsane.config import ZooConfig
from mzsane.evaluation.baselines import (
    add_decoded_noise,
    add_layer_noise,
    average_anchors,
    draw_from_statistics,
    interpolate_anchors,
)
from mzsane.evaluation.curvature import count_images, flatten_noise
from mzsane.evaluation.distillation import choose_rate, distil
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.train_loop import fit_epochs
from mzsane.sampling.samplers.protocol import mark_used

FEW_STEPS = 100
# In deviations of what is moved. Many steps at a large rate enlarge the weights, and distance is bought by that.
GUIDANCE_RATES = {True: (0.03, 0.1), False: (0.01, 0.03)}  # of few steps, and of more
TUNED_WITH, TUNED_AT = 5, 0.7  # models, and the bandwidth, that learning rates are chosen with
CURVATURE_IMAGES = 300


@dataclass(frozen=True)
class Made:
    """Models, and what each of them has cost.

    Attributes:
        flat_SP: their weights.
        seconds: to make one, its share of what was prepared for all included, that of the backbone's training not.
        gradient_steps: in which it was trained or moved.
        image_passes: images that were shown to it, to its teachers or its anchor, each time counted.
        rate: learning rate, chosen on validation images for all models of its kind and number of steps.
    """

    flat_SP: Tensor
    seconds: float
    gradient_steps: int = 0
    image_passes: int = 0
    rate: float | None = None


# What starts from the backbone.


def sample(bench: Bench, sampler: str, bandwidth: float) -> Made:
    """Draw models by a sampler."""
    bench.draw_latents(sampler, bandwidth, 1)  # what a sampler learns from the anchors is no part of its samples
    started = time.monotonic()
    flat_SP = bench.decode(bench.draw_latents(sampler, bandwidth, bench.samples)[0])
    return _finish(flat_SP, started - bench.encoding)


def sample_guided(bench: Bench, sampler: str, steps: int, bandwidth: float) -> Made:
    """Draw models by a sampler and guide their latents by the anchors that they were made of."""

    def move(bandwidth: float, count: int, rate: float) -> Tensor:
        latents_STL, used_SA = bench.draw_latents(sampler, bandwidth, count)
        deviation_TL = bench.anchors.latents_ATL.std(dim=0, correction=0)
        return bench.guide(latents_STL, deviation_TL, used_SA, bench.decode, steps, rate)

    rate = bench.tune("latents", steps, GUIDANCE_RATES[steps <= FEW_STEPS], partial(move, TUNED_AT, TUNED_WITH))
    started = time.monotonic()
    return _finish_guided(bench, move(bandwidth, bench.slow_samples, rate), started - bench.encoding, steps, rate)


# What starts from anchors, as far from them as samples are.


def draw_decoded_noise(bench: Bench, bandwidth: float) -> Made:
    """Add noise to decoded anchors."""
    return _time(
        bench,
        lambda generator: add_decoded_noise(
            bench.anchors_AP, bench.decoded_AP, *bench.find_nearest(bandwidth), bench.layout, generator
        ),
        bandwidth,
        bench.encoding,
    )


def draw_layer_noise(bench: Bench, bandwidth: float) -> Made:
    """Add noise to anchors, in proportion to the deviation of each tensor."""
    return _time(
        bench,
        lambda generator: add_layer_noise(bench.anchors_AP, *bench.find_nearest(bandwidth), bench.layout, generator),
        bandwidth,
    )


def draw_flat_noise(bench: Bench, source: str, bandwidth: float) -> Made:
    """Add noise to anchors that their outputs on images, or on noise images, hardly feel."""
    made = _time(bench, partial(_flatten, bench, bandwidth, source), bandwidth)
    anchors = len(bench.find_nearest(bandwidth)[0].unique())
    looked_at = count_images(bench.layout.weights, bench.images.classes, CURVATURE_IMAGES)
    return replace(made, image_passes=round(looked_at * anchors / bench.samples))


def guide_noise(bench: Bench, kind: str, steps: int, bandwidth: float) -> Made:
    """Add noise to anchors, then guide the weights by the anchor that they started from."""

    def move(bandwidth: float, count: int, rate: float) -> Tensor:
        chosen_S, distance_S = (found[:count] for found in bench.find_nearest(bandwidth))
        generator = bench.make_generator("noise")
        if kind == "flat":
            flat_SP = _flatten(bench, bandwidth, "images", generator, count)
        else:
            flat_SP = add_layer_noise(bench.anchors_AP, chosen_S, distance_S, bench.layout, generator)
        return bench.guide_weights(flat_SP, mark_used(chosen_S[:, None], len(bench.anchors_AP)), steps, rate)

    rate = bench.tune(f"{kind} noise", steps, GUIDANCE_RATES[steps <= FEW_STEPS], partial(move, TUNED_AT, TUNED_WITH))
    started = time.monotonic()
    return _finish_guided(bench, move(bandwidth, bench.slow_samples, rate), started, steps, rate)


def interpolate(bench: Bench) -> Made:
    """Take places on lines between anchors, in their weights."""
    return _time(bench, lambda generator: interpolate_anchors(bench.anchors_AP, bench.samples, generator))


def average(bench: Bench) -> Made:
    """Average the anchors."""
    return _time(bench, lambda _: average_anchors(bench.anchors_AP))


def draw_statistics(bench: Bench) -> Made:
    """Draw each weight by itself."""
    return _time(
        bench, lambda generator: draw_from_statistics(bench.anchors_AP, bench.layout, bench.samples, generator)
    )


# What starts from nothing.


def guide_init(bench: Bench, steps: int) -> Made:
    """Guide random initialisations by all anchors."""

    def move(count: int, rate: float) -> Tensor:
        everyone_SA = torch.ones(count, len(bench.anchors_AP), dtype=torch.bool)
        return bench.guide_weights(bench.initialise(count), everyone_SA, steps, rate)

    rate = bench.tune("random initialisation", steps, GUIDANCE_RATES[steps <= FEW_STEPS], partial(move, TUNED_WITH))
    started = time.monotonic()
    return _finish_guided(bench, move(bench.slow_samples, rate), started, steps, rate)


def draw_distilled(bench: Bench, source: str, steps: int) -> Made:
    """Train random initialisations towards the anchors' mean output on images, pseudo-images, or noise images."""
    lessons = bench.write_soft_targets(source)

    def learn(count: int, rate: float) -> Tensor:
        return distil(lessons, bench.initialise(count), steps, rate, bench.seed).flat_SP

    rates = (choose_rate(steps) / 3, choose_rate(steps))
    rate = bench.tune(f"distilled on {source}", steps, rates, partial(learn, TUNED_WITH))
    done = distil(lessons, bench.initialise(bench.slow_samples), steps, rate, bench.seed)
    return Made(done.flat_SP, done.seconds, steps, done.image_passes, rate)


# What labels give.


def pick_best(bench: Bench) -> Made:
    """Return the training model that is best on validation images."""
    correct_AN = bench.tuning.classify(bench.anchors_AP, [None] * len(bench.anchors_AP)) == bench.tuning.labels_N
    best = int(correct_AN.sum(dim=1).argmax())
    return Made(bench.anchors_AP[best : best + 1], 0.0)


def train_one(bench: Bench) -> Made | None:
    """Train a model of the zoo by its recipe; None if it is no zoo of ours."""
    if not isinstance(bench.zoo, ZooConfig):
        return None
    split, generator = bench.images.splits["train"], bench.make_generator("training")
    network = build_network(bench.origin.network, *bench.sizes)
    initialise_network(network, bench.zoo.initialisation, generator)
    started = time.monotonic()
    training = fit_epochs(network, split, bench.zoo, generator, bench.zoo.epochs)
    for _ in range(bench.zoo.epochs):
        next(training)
    shown = bench.zoo.epochs * len(split.labels_N)
    flat_P = bench.layout.flatten(network.state_dict()).contiguous()
    return Made(flat_P[None], time.monotonic() - started, shown // bench.zoo.batch_size, shown)


def _flatten(
    bench: Bench, bandwidth: float, source: str, generator: torch.Generator, count: int | None = None
) -> Tensor:
    chosen_S, distance_S = (found[:count] for found in bench.find_nearest(bandwidth))
    seen_NCHW = bench.unlabelled_NCHW[:CURVATURE_IMAGES] if source == "images" else bench.noise_NCHW
    return flatten_noise(
        bench.network, bench.layout, bench.anchors_AP, chosen_S, distance_S, seen_NCHW[:CURVATURE_IMAGES], generator
    )


def _time(
    bench: Bench, draw: Callable[[torch.Generator], Tensor], bandwidth: float | None = None, prepared: float = 0.0
) -> Made:
    if bandwidth is not None:
        bench.find_nearest(bandwidth)  # how far noise goes is given
    started = time.monotonic()
    return _finish(draw(bench.make_generator("noise")), started - prepared)


def _finish(flat_SP: Tensor, started: float) -> Made:
    return Made(flat_SP, (time.monotonic() - started) / len(flat_SP))


def _finish_guided(bench: Bench, flat_SP: Tensor, started: float, steps: int, rate: float) -> Made:
    guidance, lessons = bench.guidance
    passes = replace(guidance, steps=steps).count_passes(len(flat_SP))
    return replace(_finish(flat_SP, started - lessons), gradient_steps=steps, image_passes=passes, rate=rate)
