"""Distillation: a fresh random initialisation is trained towards the mean output of a zoo, without labels.

It is the plain way to a new model that is as accurate as its zoo and as far from it as its members are from one
another, and so what a generator has to be compared with, at equal steps and equal knowledge of the target
(arXiv 1503.02531). Images, labels left out, are training images, pseudo-images drawn from their statistics, or noise.

Suffixes: A teachers, S students, P weights of a model, N images, K classes, C channels, H height, W width.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mzsane.layout.token_layout import TokenLayout
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.behaviour import NetworkBehaviour, Output
from mzsane.sampling.guidance import Guidance, write_soft_targets

STEPS = (30, 100, 300, 1000)
# The best rates on a zoo of CNN-s on MNIST, whatever students looked at: 0.03 for 30 steps, 0.02 for 100, 0.01 for 300
# and 1,000. Larger ones are no more accurate, but enlarge the weights: 1,000 steps at 0.03 go to novelty 1.4.
_RATE, _AT_STEPS, _HIGHEST_RATE = 0.01, 300, 0.03
# What is compared, by what students look at: each the better one there (see `write_mean_targets`).
OUTPUTS: dict[str, Output] = {"none": "logits", "statistics": "logits", "images": "probabilities"}
BATCH = 64
_CHUNK = 500  # images that teachers look at together


def choose_rate(steps: int) -> float:
    """Return the learning rate that does well for so many steps where none is tuned; none above it should be tried."""
    return float(min(_HIGHEST_RATE, _RATE * max(1.0, _AT_STEPS / steps) ** 0.5))


@dataclass(frozen=True)
class SoftTargets:
    """What students learn from.

    Attributes:
        network: runs models of the architecture, and says what is compared.
        images_NCHW: what they look at.
        goals_NK: the mean of the teachers' logits or probabilities for each image.
        passes: images that all teachers together looked at.
        seconds: that this took.
    """

    network: NetworkBehaviour
    images_NCHW: Tensor
    goals_NK: Tensor
    passes: int
    seconds: float


@dataclass(frozen=True)
class Distilled:
    """Students, and what each of them has cost.

    Attributes:
        flat_SP: their weights.
        gradient_steps: of each student.
        image_passes: images that a student was shown, with its share of what the teachers looked at.
        seconds: to make a student, with its share of the teachers' time.
    """

    flat_SP: Tensor
    gradient_steps: int
    image_passes: int
    seconds: float


def write_mean_targets(
    network: nn.Module,
    layout: TokenLayout,
    teachers_AP: Tensor,
    images_NCHW: Tensor,
    output: Output,
    device: torch.device = torch.device("cpu"),
) -> SoftTargets:
    """Ask all teachers once about every image.

    Args:
        network: a network of the architecture; its weights are not used.
        layout: where the weights sit. Without running statistics among them, batch norms use those of the batch.
        teachers_AP: flat weights of the teachers.
        images_NCHW: the images.
        output: `probabilities`, compared by cross-entropy: better on images. `logits`, compared by squared error:
            better on noise, of which teachers say nothing clear (79.4 % against 70.8 after 1,000 steps), and on
            pseudo-images (88.0 % against 86.5 after 300).
        device: where teachers are asked and, later, students learn.
    """
    started = time.perf_counter()
    images_NCHW = images_NCHW.to(device)
    behaviour = NetworkBehaviour(network, layout, images_NCHW[:BATCH], BATCH, output)
    parts = [
        write_soft_targets(behaviour, teachers_AP, some_NCHW).mean(dim=0) for some_NCHW in images_NCHW.split(_CHUNK)
    ]
    passes = len(teachers_AP) * len(images_NCHW)
    return SoftTargets(behaviour, images_NCHW, torch.cat(parts), passes, time.perf_counter() - started)


def distil(
    lessons: SoftTargets, start_SP: Tensor, steps: int, rate: float, seed: int, sink: MetricSink = NO_SINK
) -> Distilled:
    """Train students towards the lessons: Adam on 64 images a step, its rate falling to 0 along half a cosine.

    Args:
        lessons: what they learn from.
        start_SP: flat weights that they start from.
        steps: of Adam.
        rate: of the first step; see `choose_rate`.
        seed: of the draw of images, the same for all students.
        sink: told how far it is.
    """
    started = time.perf_counter()
    guidance = Guidance(lessons.network, lessons.images_NCHW, lessons.goals_NK[None], steps, BATCH, rate, seed)
    one_teacher = torch.ones(len(start_SP), 1, dtype=torch.bool)
    one_scale_P = torch.ones(start_SP.shape[1])
    flat_SP = guidance.move(start_SP, one_scale_P, one_teacher, lambda moved_SP: moved_SP, sink)
    students = max(1, len(start_SP))
    batch = min(BATCH, len(lessons.images_NCHW))
    passes = steps * batch + round(lessons.passes / students)
    return Distilled(flat_SP, steps, passes, (time.perf_counter() - started + lessons.seconds) / students)
