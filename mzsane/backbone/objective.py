"""What pre-training minimises: reconstruction, contrast, penalties and behaviour, weighted and summed.

Suffixes: V versions, B windows, W tokens of a window, D token width, L latent width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mzsane.backbone.autoencoder import Autoencoder
from mzsane.backbone.behaviour import Behaviour
from mzsane.backbone.distributed.ranks import Ranks
from mzsane.backbone.loader import TrainingBatch
from mzsane.backbone.loss import contrast_loss, group_errors, latent_penalties, weigh_errors
from mzsane.config import BackboneConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.randomness import make_generator


@dataclass(frozen=True)
class Losses:
    """The loss of a part of a step.

    Attributes:
        own: what this process minimises: its part of each term, and the whole contrast with gradients for its own
            windows. The gradients' sum over all processes is that of the loss.
        parts: by name, this process's part of each term, unweighted; detached.
        output_BWD: the reconstructed tokens, detached.
    """

    own: Tensor
    parts: dict[str, Tensor]
    output_BWD: Tensor


class Objective:
    """The loss of a config.

    Args:
        config: terms and their weights.
        layouts: the layout of each slice.
        behaviour: the behavioural loss, if it has a weight.
        seed: the training's.
        ranks: the processes that share a batch.
    """

    def __init__(
        self,
        config: BackboneConfig,
        layouts: Sequence[TokenLayout],
        behaviour: Behaviour | None,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self.config, self.behaviour, self.seed, self.ranks = config, behaviour, seed, ranks
        kinds = sorted({layer.kind for layout in layouts for layer in layout.layers})
        self.kinds = kinds
        # The kind of each layer of each slice; one more slice for the padding's number, -1.
        layers = max(len(layout.layers) for layout in layouts)
        self._kind_SL = torch.full((len(layouts) + 1, layers), -1)
        for number, layout in enumerate(layouts):
            for at, layer in enumerate(layout.layers):
                self._kind_SL[number, at] = kinds.index(layer.kind)
        self._kind_SL = self._kind_SL.to(ranks.device)

    def measure(self, model: torch.nn.Module, feed: TrainingBatch, number: int) -> Losses:
        """Compute the loss of a part of a step.

        Args:
            model: the autoencoder, or what wraps it.
            feed: this process's windows.
            number: of the part, counted over all steps.
        """
        config, ranks = self.config, self.ranks
        real_BW = feed.segments_BW > 0
        latents_BWL, output_BWD, projected = model(
            feed.input_BWD, feed.positions_BW3, feed.weights_BW, feed.plan, feed.noise_BWL
        )
        target_BWD = feed.input_BWD if config.target == "augmented" else feed.clean_BWD
        errors_BWD = weigh_errors(
            output_BWD,
            target_BWD,
            feed.mask_BWD,
            feed.segments_BW,
            feed.positions_BW3[..., 1],
            config.normalisation,
            config.deviation_floor,
            config.relative_floor,
            ranks.sum,
        )
        parts = {"reconstruction": errors_BWD.sum() / feed.weights}
        own = (1 - config.gamma) * parts["reconstruction"]
        if config.gamma:
            # Each process computes the whole contrast, with gradients for its own windows.
            first, second = ranks.gather(torch.stack(projected.chunk(2), dim=1)).unbind(dim=1)
            contrast = contrast_loss(first, second, config.temperature, config.contrast)
            own = own + config.gamma * contrast
            parts["contrast"] = contrast / ranks.count
        if config.latent_norm or config.latent_variance:
            parts["latent_norm"], parts["latent_variance"] = latent_penalties(latents_BWL, real_BW, ranks.sum)
            own = own + config.latent_norm * parts["latent_norm"] + config.latent_variance * parts["latent_variance"]
        if self.behaviour is not None:
            parts["behaviour"] = self._measure_behaviour(self.behaviour, output_BWD, feed, number)
            own = own + config.behaviour * parts["behaviour"]
        return Losses(own, {name: value.detach() for name, value in parts.items()}, output_BWD.detach())

    def describe(self, losses: Losses, feed: TrainingBatch) -> dict[str, float]:
        """Return numbers of a part of a step for people: loss, its terms, R2 in all, by slice and by kind of layer.

        The terms are those of all processes, R2 is that of this one's windows, against the clean weights.
        """
        config, names = self.config, list(losses.parts)
        sums = self.ranks.sum(torch.stack([losses.parts[name] for name in names])).tolist()
        values = {f"loss_{name}": value for name, value in zip(names, sums, strict=True)}
        weights = {
            "loss_reconstruction": 1 - config.gamma,
            "loss_contrast": config.gamma,
            "loss_latent_norm": config.latent_norm,
            "loss_latent_variance": config.latent_variance,
            "loss_behaviour": config.behaviour,
        }
        kind_BW = self._kind_SL[feed.source_BW, feed.positions_BW3[..., 1]]
        whole, by_slice, by_kind = group_errors(
            losses.output_BWD,
            feed.clean_BWD,
            feed.mask_BWD,
            (torch.zeros_like(feed.source_BW), 1),
            (feed.source_BW, len(self._kind_SL) - 1),
            (kind_BW, len(self.kinds)),
        )
        r2 = {"r2": whole[0]}
        r2 |= {f"r2/{number}": value for number, value in enumerate(by_slice)}
        r2 |= {f"r2_{kind}": value for kind, value in zip(self.kinds, by_kind, strict=True)}
        total = sum(weights[name] * value for name, value in values.items())
        return {"loss": total, **values, **{name: float(value) for name, value in r2.items() if not value.isnan()}}

    def _measure_behaviour(self, behaviour: Behaviour, output_BWD: Tensor, feed: TrainingBatch, number: int) -> Tensor:
        half = len(output_BWD) // 2
        total, count = behaviour.loss_sum_and_count(
            feed.clean_BWD[:half],
            output_BWD.unflatten(0, (2, half)),
            feed.segments_BW[:half],
            feed.source_BW[:half],
            make_generator(self.seed, "backbone", "behaviour", number),
        )
        models = self.ranks.sum(torch.tensor(float(count), device=output_BWD.device))
        return total / models.clamp(min=1)


def freeze_unused(model: Autoencoder, config: BackboneConfig) -> None:
    """Take the projection head out of the training when there is no contrast."""
    model.projection.requires_grad_(config.gamma > 0)
