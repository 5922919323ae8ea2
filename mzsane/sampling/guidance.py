"""Guidance: new models are moved until they do on unlabelled images what known models do.

Latents far from every anchor decode to weights that hardly compute anything. A few steps of gradient descent on the
latents, through the decoder and the networks, repair the function and leave the weights nearly as far from the anchors
as they were. It is distillation of the anchors (arXiv 1503.02531): it uses images of the target, no labels. The same
steps on weights that no backbone made are the baseline that it must be compared with.

Suffixes: S samples, X numbers that are moved, P weights of a model, A teachers, N images, K classes, C channels,
H height, W width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mzsane.backbone.refinement import descend
from mzsane.config import ImagesConfig, NetworkConfig, SamplingConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.behaviour import NetworkBehaviour
from mzsane.networks.build import build_network, choose_network
from mzsane.problems.images.dataset import load_images
from mzsane.randomness import make_generator

_CHUNK = 20  # samples that are moved together
_IMAGES = 2000  # unlabelled training images that steps draw from


@dataclass(frozen=True)
class Guidance:
    """What samples are guided by.

    Attributes:
        network: runs models of the target's architecture.
        images_NCHW: unlabelled images, of which each step sees some.
        lessons_ANK: what each teacher says of the classes of each image: what `network.output` names.
        steps: steps of Adam; its rate falls along half a cosine.
        batch_size: images in a step.
        learning_rate: in deviations of the numbers that are moved.
        seed: of the draw of images.
    """

    network: NetworkBehaviour
    images_NCHW: Tensor
    lessons_ANK: Tensor
    steps: int
    batch_size: int
    learning_rate: float
    seed: int

    def count_passes(self, samples: int) -> int:
        """Return how many images are shown to a network for each of so many samples, teachers' lessons included."""
        return self.steps * self.batch_size + math.ceil(self.lessons_ANK.shape[:2].numel() / samples)

    def move(
        self,
        start_SX: Tensor,
        deviation_X: Tensor,
        teachers_SA: Tensor,
        decode: Callable[[Tensor], Tensor],
        sink: MetricSink = NO_SINK,
    ) -> Tensor:
        """Move numbers until the models that they decode to agree with their teachers' mean.

        Mean probabilities are compared by cross-entropy, mean logits by squared error.

        Args:
            start_SX: where to start: latents, (S, T, L), or weights, (S, P).
            deviation_X: the scale of each number; what is 0 does not move.
            teachers_SA: True for the teachers of each sample; a sample without any learns from all.
            decode: returns the weights, (S, P), differentiably.
            sink: told how far it is.

        Returns:
            The moved numbers, of the shape of `start_SX`; where a sample's loss is not finite, its start. They are
            computed where the lessons are, and come back to where they were.
        """
        home, device = start_SX.device, self.lessons_ANK.device
        start_SX, deviation_X, teachers_SA = start_SX.to(device), deviation_X.to(device), teachers_SA.to(device)
        share_SA = teachers_SA | ~teachers_SA.any(dim=1, keepdim=True)
        share_SA = share_SA.float() / share_SA.sum(dim=1, keepdim=True)
        moved = []
        for first in range(0, len(start_SX), _CHUNK):
            some = slice(first, first + _CHUNK)
            moved.append(self._move(start_SX[some], deviation_X, share_SA[some], decode))
            sink.progress(min(first + _CHUNK, len(start_SX)), len(start_SX), "samples guided")
        return torch.cat(moved).to(home)

    def _move(
        self, start_SX: Tensor, deviation_X: Tensor, share_SA: Tensor, decode: Callable[[Tensor], Tensor]
    ) -> Tensor:
        generator = make_generator(self.seed, "guidance")

        def measure(moved_SX: Tensor) -> Tensor:
            chosen = torch.randperm(len(self.images_NCHW), generator=generator)[: self.batch_size]
            goals_SNK = torch.einsum("sa,ank->snk", share_SA, self.lessons_ANK[:, chosen])
            logits_SNK = self.network.run_models(decode(moved_SX), self.images_NCHW[chosen])
            if self.network.output == "logits":
                return (logits_SNK - goals_SNK).square().mean(dim=(1, 2))
            loss = functional.cross_entropy(logits_SNK.flatten(0, 1), goals_SNK.flatten(0, 1), reduction="none")
            return loss.view(len(start_SX), -1).mean(dim=1)

        return descend(start_SX, deviation_X, self.steps, self.learning_rate, measure)


@torch.no_grad()
def write_soft_targets(network: NetworkBehaviour, teachers_AP: Tensor, images_NCHW: Tensor) -> Tensor:
    """Return what each teacher says of the classes of each image, (A, N, K): logits or probabilities."""
    logits_ANK = network.run_models(teachers_AP.to(images_NCHW.device), images_NCHW)
    return logits_ANK if network.output == "logits" else logits_ANK.softmax(dim=-1)


def open_guidance(
    config: SamplingConfig,
    network: NetworkConfig,
    images: ImagesConfig,
    layout: TokenLayout,
    teachers_AP: Tensor,
    seed: int,
    activations: Sequence[str | None] = (),
    device: torch.device = torch.device("cpu"),
) -> Guidance:
    """Prepare guidance by models of the target's architecture on its unlabelled training images, on a device.

    Teachers may have activations of their own; what is guided has the target's.
    """
    dataset = load_images(images)
    unlabelled_NCHW = dataset.splits["train"].images_NCHW[:_IMAGES].to(device)
    teachers_AP = teachers_AP.to(device)
    own = [choose_network(network, activation) or network for activation in activations or (None,) * len(teachers_AP)]
    behaviours: dict[NetworkConfig, NetworkBehaviour] = {}
    lessons: dict[int, Tensor] = {}
    for one in dict.fromkeys((network, *own)):
        built = build_network(one, dataset.channels, dataset.classes, dataset.size)
        behaviours[one] = NetworkBehaviour(built, layout, unlabelled_NCHW, config.guidance_images, "probabilities")
        places = [place for place, other in enumerate(own) if other == one]
        if places:
            found_ANK = write_soft_targets(behaviours[one], teachers_AP[places], unlabelled_NCHW)
            lessons |= dict(zip(places, found_ANK, strict=True))
    return Guidance(
        network=behaviours[network],
        images_NCHW=unlabelled_NCHW,
        lessons_ANK=torch.stack([lessons[place] for place in range(len(own))]),
        steps=config.guidance_steps,
        batch_size=config.guidance_images,
        learning_rate=config.guidance_rate,
        seed=seed,
    )
