"""A zoo, its backbone, and what models are drawn with (`experiments.draws`).

Suffixes: A anchors, S samples, P weights of a model, T tokens, L latent width, N images, C channels, H height, W width.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from experiments.reconstruction import COMMON, RECIPES, train
from mzsane.backbone.inference import decode_models, encode_models, load_backbone
from mzsane.backbone.validation.judge import Judge
from mzsane.config import AnyZooConfig, SamplingConfig
from mzsane.evaluation.baselines import draw_random_models
from mzsane.evaluation.distillation import OUTPUTS, SoftTargets, write_mean_targets
from mzsane.evaluation.novelty.distance import KnownModels
from mzsane.networks.build import build_network
from mzsane.problems.images.dataset import load_images
from mzsane.problems.images.noise import draw_noise_images
from mzsane.problems.images.pseudo import draw_pseudo_images
from mzsane.randomness import make_generator
from mzsane.sampling.guidance import Guidance, open_guidance
from mzsane.sampling.samplers import SAMPLERS
from mzsane.sampling.samplers.protocol import Anchors
from mzsane.store.artifacts import ArtifactStore
from mzsane.tokens.store import read_tokens
from mzsane.tokens.subject import find_subject

LATENTS = 48
NOISE_FROM = "joint"  # the sampler whose samples say how far noise goes
DISTILLATION_IMAGES = 5000
TEACHERS = 10  # of distillation, as many as an ablation has anchors


class Bench:
    """A zoo, its training models, all of which are anchors, and a backbone that was trained on them.

    Args:
        zoo: whose models are drawn anew.
        changes: settings of backbone and tokens other than the experiment's.
        samples: models drawn for each point.
        slow_samples: models drawn for each point that takes gradient steps.
        seed: of the backbone and of all draws.
        store: where artifacts are.

    Attributes:
        behaves: whether the backbone was trained on what networks do on the zoo's images.
    """

    def __init__(
        self,
        zoo: AnyZooConfig,
        changes: dict[str, Any],
        samples: int,
        slow_samples: int,
        seed: int,
        store: ArtifactStore,
    ) -> None:
        self.zoo, self.samples, self.slow_samples, self.seed = zoo, samples, slow_samples, seed
        settings = COMMON | RECIPES[LATENTS] | {"latent_dim": LATENTS, "behaviour": 0.0} | changes
        tokens, backbone = train(zoo, settings, seed, store)
        self.table = read_tokens(tokens)
        self.layout = self.table.layout
        self._model, self._config = load_backbone(backbone)
        self.behaves = self._config.behaviour > 0
        self.known = KnownModels.from_tables({zoo.name: (self.table, self.table.pick_rows("train"))})
        self.anchors_AP = self.table.load(self.table.pick_rows("train", last_epochs=1))
        started = time.monotonic()
        latents_ATL = encode_models(self._model, self.layout, self.anchors_AP, self._config.window)
        self.encoding = time.monotonic() - started
        self.anchors = Anchors(latents_ATL, self.layout.positions_T3[:, 1], seed)
        self.decoded_AP = self.decode(latents_ATL)
        self.decoded = self.known.against([str(number) for number in range(len(self.decoded_AP))], self.decoded_AP)
        origin = find_subject(tokens)
        assert origin is not None  # a zoo of ours
        self.origin, self.images = origin, load_images(origin.images)
        self.network = build_network(origin.network, *self.sizes)
        self.unlabelled_NCHW = self.images.splits["train"].images_NCHW
        self.tuning = Judge(self.table, "val", len(self.images.splits["val"].labels_N))

    def decode(self, latents_STL: Tensor) -> Tensor:
        """Return the weights that latents stand for."""
        return decode_models(self._model, self.layout, latents_STL, self._config.window)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Channels, classes and size of the images."""
        return self.images.channels, self.images.classes, self.images.size

    def make_generator(self, *names: str) -> torch.Generator:
        """Return a source of randomness of this name."""
        return make_generator(self.seed, "generation", *names)

    def draw_latents(self, sampler: str, bandwidth: float, count: int) -> tuple[Tensor, Tensor]:
        """Return latents of new models, (S, T, L), and the anchors that they were made of, (S, A)."""
        drawn = SAMPLERS[sampler](self.anchors, bandwidth, count, self.make_generator(sampler))
        return drawn.latents_STL, drawn.used_SA

    @cache  # noqa: B019  # a bench lives as long as its process
    def find_nearest(self, bandwidth: float) -> tuple[Tensor, Tensor]:
        """Return for each sample of a bandwidth the anchor nearest to it, and its distance."""
        sampled_SP = self.decode(self.draw_latents(NOISE_FROM, bandwidth, self.samples)[0])
        distance_S, nearest_S = torch.cdist(sampled_SP, self.anchors_AP).min(dim=1)
        return nearest_S, distance_S

    @cached_property
    def noise_NCHW(self) -> Tensor:
        """Images of noise."""
        shape = (self.images.channels, self.images.size, self.images.size)
        return draw_noise_images(DISTILLATION_IMAGES, shape, self.make_generator("noise images"))

    @cache  # noqa: B019
    def write_soft_targets(self, source: str) -> SoftTargets:
        """Ask teachers about images, pseudo-images drawn from their statistics, or noise (none)."""
        seen_NCHW = self.unlabelled_NCHW[:DISTILLATION_IMAGES]
        if source == "statistics":
            seen_NCHW = draw_pseudo_images(
                self.unlabelled_NCHW, DISTILLATION_IMAGES, self.make_generator("pseudo-images")
            )
        elif source == "none":
            seen_NCHW = self.noise_NCHW
        teachers_AP = self.anchors_AP[:TEACHERS]
        return write_mean_targets(self.network, self.layout, teachers_AP, seen_NCHW, OUTPUTS[source])

    @cached_property
    def guidance(self) -> tuple[Guidance, float]:
        """Guidance by all anchors, and the seconds that their lessons took."""
        started = time.monotonic()
        guidance = open_guidance(
            SamplingConfig(), self.origin.network, self.origin.images, self.layout, self.anchors_AP, self.seed
        )
        return guidance, time.monotonic() - started

    def guide(
        self,
        start_SX: Tensor,
        deviation_X: Tensor,
        used_SA: Tensor,
        decode: Callable[[Tensor], Tensor],
        steps: int,
        rate: float,
    ) -> Tensor:
        """Guide, and return the weights."""
        guidance = replace(self.guidance[0], steps=steps, learning_rate=rate)
        return decode(guidance.move(start_SX, deviation_X, used_SA, decode))

    def guide_weights(self, flat_SP: Tensor, used_SA: Tensor, steps: int, rate: float) -> Tensor:
        """Guide weights that no backbone made."""
        deviation_P = self.anchors_AP.std(dim=0, correction=0)
        return self.guide(flat_SP, deviation_P, used_SA, lambda moved_SP: moved_SP, steps, rate)

    def initialise(self, count: int) -> Tensor:
        """Draw models that were never trained."""
        origin, generator = self.origin, self.make_generator("random initialisation")
        return draw_random_models(origin.network, origin.images, self.layout, count, generator)

    def tune(self, kind: str, steps: int, rates: tuple[float, ...], draw: Callable[[float], Tensor]) -> float:
        """Return the rate whose models are best on validation images; once for a kind and number of steps."""
        if (kind, steps) not in self._rates:
            self._rates[kind, steps] = max(rates, key=lambda rate: self._score(draw(rate)))
        return self._rates[kind, steps]

    @cached_property
    def _rates(self) -> dict[tuple[str, int], float]:
        return {}

    def _score(self, flat_SP: Tensor) -> float:
        return self.tuning.score(self.tuning.classify(flat_SP, [None] * len(flat_SP)))
