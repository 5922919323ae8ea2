"""What the anchors give without a sampler: noise of several kinds on them, places between them, their average.

Noise goes as far as the samples do, so that it knows what their distance was chosen by, and is guided as they are.

Suffixes: A anchors, S samples, P weights of a model, N images, C channels, H height, W width.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import polars as pl
import torch
from torch import Tensor

from mzsane.config import SamplingConfig
from mzsane.device import find_device
from mzsane.evaluation.baselines import (
    add_decoded_noise,
    add_layer_noise,
    average_anchors,
    draw_from_statistics,
    draw_random_models,
    interpolate_anchors,
)
from mzsane.evaluation.curvature import count_images, flatten_noise
from mzsane.evaluation.scorer import SEES, Provenance, Scorer
from mzsane.networks.build import build_network
from mzsane.problems.images.dataset import load_images
from mzsane.problems.images.noise import draw_noise_images
from mzsane.randomness import make_generator
from mzsane.sampling.guidance import Guidance, open_guidance
from mzsane.sampling.samplers.protocol import mark_used

_CURVATURE_IMAGES = 300  # that flat directions of an anchor are computed from, at most


@dataclass(frozen=True)
class Scored:
    """A population that is compared with held-out models as a whole: models, and their memorisation card."""

    method: str
    sees: str
    flat_SP: Tensor
    card: pl.DataFrame | None


class AnchorBaselines:
    """Scores what anchors give without a sampler.

    Args:
        scorer: collects the scores.
        sampling: how the samples were guided.
        made: what the samples saw and cost.
        records: of the samples, a row each: the nearest anchor, how far it is, whether they were guided.
        decoded_AP: the anchors as the backbone decodes them.
        anchors_AP: the anchors as they are in the zoo.
        names: of the anchors.
        activations: of the anchors, where they may be another than the target's.
    """

    def __init__(
        self,
        scorer: Scorer,
        sampling: SamplingConfig,
        made: Provenance,
        records: pl.DataFrame,
        decoded_AP: Tensor,
        anchors_AP: Tensor,
        names: Sequence[str],
        activations: Sequence[str | None] = (),
    ) -> None:
        self.scorer, self.sampling, self.made, self.names = scorer, sampling, made, names
        self.decoded_AP, self.anchors_AP, self.activations = decoded_AP, anchors_AP, activations
        self.count = len(records)
        self.nearest_S = records["nearest_anchor"].to_torch()
        self.distance_S = records["nearest_distance"].to_torch().float()
        self.anchors_see: str = records["anchors_see"][0]
        self.guidance = self._open_guidance() if records["guided"][0] else None
        self.guided_see = self.anchors_see
        if self.guidance is not None:
            self.guided_see = "labels" if self.anchors_see == "labels" else "images"

    def add_all(self) -> list[Scored]:
        """Score every baseline; return the models of those that are compared with held-out models as a whole."""
        scorer, names = self.scorer, self.names
        of_backbone = Provenance(
            sees=self.anchors_see, generator_sees=self.made.generator_sees, clusters=names, image_passes=0
        )
        card = scorer.add("anchors", self.decoded_AP, of_backbone, sampled=True)
        chosen = scorer.select(self.anchors_AP, 1, self.activations)
        as_trained = replace(of_backbone, generator_sees="none", activations=self.activations)
        scorer.add_chosen("best_anchor", self.anchors_AP, chosen, as_trained, tuned=0)
        noisy = self._add_noise()
        self._add_mixtures()
        if self.guidance is not None:
            self._add_guided_init()
        return [Scored("anchors", self.anchors_see, self.decoded_AP, card), *noisy]

    def _add_noise(self) -> list[Scored]:
        layout, anchors_AP, nearest_S, distance_S = self.scorer.layout, self.anchors_AP, self.nearest_S, self.distance_S
        images, device = load_images(self.scorer.target.images), find_device(self.scorer.execution)
        network = build_network(self.scorer.target.network, images.channels, images.classes, images.size)
        unlabelled_NCHW = images.splits["train"].images_NCHW[:_CURVATURE_IMAGES]
        shape = (images.channels, images.size, images.size)
        noise_NCHW = draw_noise_images(_CURVATURE_IMAGES, shape, self._generator("images"))
        scored = [
            self._add_noisy(
                "decoded_noise",
                lambda generator: add_decoded_noise(
                    anchors_AP, self.decoded_AP, nearest_S, distance_S, layout, generator
                ),
                sampled=True,
            ),
            self._add_noisy(
                "layer_noise",
                lambda generator: add_layer_noise(anchors_AP, nearest_S, distance_S, layout, generator),
                tuned=0,
            ),
        ]
        looks = [(noise_NCHW, "none"), (unlabelled_NCHW, "images")]
        # What has seen images anyway need not do with noise in their place.
        for seen_NCHW, sees in looks[SEES.index(self.made.sees or "none") >= SEES.index("images") :]:
            flatten = partial(flatten_noise, network, layout, anchors_AP, nearest_S, distance_S, seen_NCHW.to(device))
            looked_at = count_images(layout.weights, images.classes, len(seen_NCHW))
            passes = math.ceil(looked_at * len(anchors_AP) / self.count)
            scored.append(self._add_noisy("flat_noise", flatten, least=sees, passes=passes, tuned=0))
        return scored

    def _add_noisy(
        self,
        method: str,
        draw: Callable[[torch.Generator], Tensor],
        *,
        sampled: bool = False,
        least: str = "none",
        passes: int = 0,
        tuned: int | None = None,
    ) -> Scored:
        """Score anchors plus noise, and the best of them on validation images as samples are selected."""
        started = time.monotonic()
        noisy_SP = self._guide(draw(self._generator("noise")), mark_used(self.nearest_S[:, None], len(self.anchors_AP)))
        assert self.made.sees is not None
        provenance = replace(
            self.made,
            sees=max(self.made.sees, least, key=SEES.index),
            generator_sees=self.made.generator_sees if sampled else "none",
            clusters=[self.names[at] for at in self.nearest_S.tolist()],
            image_passes=(self.made.image_passes or 0) + passes,
            seconds=(time.monotonic() - started) / self.count,
        )
        card = self.scorer.add(method, noisy_SP, provenance, sampled=sampled, tuned=tuned)
        # One row must not be of all and of the selected, nor of those selected from two kinds of flat noise.
        if provenance.sees != "labels" and (method != "flat_noise" or least == "images"):
            chosen = self.scorer.select(noisy_SP, self.sampling.keep)
            self.scorer.add_chosen(method, noisy_SP, chosen, provenance, card=card, tuned=0)
        return Scored(method, provenance.sees or self.scorer.sees, noisy_SP, card)

    def _add_mixtures(self) -> None:
        scorer, anchors_AP = self.scorer, self.anchors_AP
        plain = Provenance(sees=self.anchors_see)
        everyone_SA = torch.ones(self.count, len(anchors_AP), dtype=torch.bool)
        if len(anchors_AP) > 1:
            started = time.monotonic()
            between_SP = interpolate_anchors(anchors_AP, self.count, self._generator("interpolation"))
            near_S = torch.cdist(between_SP, anchors_AP).argmin(dim=1)
            between_SP = self._guide(between_SP, everyone_SA)
            provenance = replace(self._guided(started), clusters=[self.names[at] for at in near_S.tolist()])
            scorer.add("interpolation", between_SP, provenance, tuned=0)
        scorer.add("average", average_anchors(anchors_AP), plain)
        statistics_SP = draw_from_statistics(anchors_AP, scorer.layout, self.count, self._generator("statistics"))
        scorer.add("statistics", statistics_SP, plain, tuned=0)

    def _add_guided_init(self) -> None:
        """Score random initialisations that are guided as the samples are: as many steps, from no anchor at all."""
        target, layout = self.scorer.target, self.scorer.layout
        started = time.monotonic()
        fresh_SP = draw_random_models(target.network, target.images, layout, self.count, self._generator("random_init"))
        everyone_SA = torch.ones(self.count, len(self.anchors_AP), dtype=torch.bool)
        self.scorer.add("random_init", self._guide(fresh_SP, everyone_SA), self._guided(started), tuned=0)

    def _guided(self, started: float) -> Provenance:
        seconds = (time.monotonic() - started) / self.count
        if self.guidance is None:
            return Provenance(sees=self.guided_see, seconds=seconds)
        return replace(self.made, sees=self.guided_see, generator_sees="none", clusters=None, seconds=seconds)

    def _guide(self, flat_SP: Tensor, teachers_SA: Tensor) -> Tensor:
        if self.guidance is None:
            return flat_SP
        deviation_P = self.anchors_AP.std(dim=0, correction=0)
        return self.guidance.move(flat_SP, deviation_P, teachers_SA, lambda moved_SP: moved_SP, self.scorer.sink)

    def _open_guidance(self) -> Guidance:
        target = self.scorer.target
        return open_guidance(
            self.sampling,
            target.network,
            target.images,
            self.scorer.layout,
            self.anchors_AP,
            self.scorer.seed,
            self.activations,
            find_device(self.scorer.execution),
        )

    def _generator(self, name: str) -> torch.Generator:
        return make_generator(self.scorer.seed, "scores", name)
