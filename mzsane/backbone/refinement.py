"""Latents refined for the models that they stand for: steps down the backbone's own loss, through its decoder.

An encoder answers for all models in one pass, and what its latents lose against the best ones of a model is the
amortisation gap (arXiv 1801.03558). Gradient descent that starts at its answer closes some of it, as in semi-amortised
inference (arXiv 1802.02550). With the behavioural loss it sees unlabelled images of the model's zoo, or noise alone.

Suffixes: B models, X numbers that are moved, P weights of a model, T tokens, D token width, L latent width, S images
of a step, K classes, C channels, H height, R width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mzsane.backbone.autoencoder import Autoencoder
from mzsane.backbone.inference import decode_models
from mzsane.backbone.loss import weigh_errors
from mzsane.config import BackboneConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.behaviour import NetworkBehaviour, compare_outputs
from mzsane.randomness import make_generator

# On validation models of two zoos of CNN-s, twice the rate and three times the steps brought nothing more.
STEPS = 60
RATE = 0.05
_CHUNK = 20  # models that are refined together


def descend(start_BX: Tensor, scale_BX: Tensor, steps: int, rate: float, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Move the numbers of each model down its loss: steps of Adam whose rate falls along half a cosine.

    Args:
        start_BX: where to start.
        scale_BX: the scale of each number, broadcast to them; what is 0 does not move.
        steps: how many.
        rate: of the first step, in scales.
        measure: returns the losses of all models, (B,), differentiably; called once a step.

    Returns:
        The moved numbers; where a model's loss was not finite, its start.
    """
    step_BX = torch.zeros_like(start_BX, requires_grad=True)
    optimizer = torch.optim.Adam([step_BX], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    finite_B = torch.ones(len(start_BX), dtype=torch.bool, device=start_BX.device)
    for _ in range(steps):
        loss_B = measure(start_BX + step_BX * scale_BX)
        finite_B &= loss_B.detach().isfinite()
        (gradient_BX,) = torch.autograd.grad(loss_B.where(finite_B, 0.0).sum(), step_BX)
        step_BX.grad = gradient_BX.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
        schedule.step()
    end_BX = (start_BX + step_BX * scale_BX).detach()
    return end_BX.where(finite_B.view(-1, *[1] * (start_BX.ndim - 1)), start_BX)


def refine_latents(
    model: Autoencoder,
    config: BackboneConfig,
    layout: TokenLayout,
    flat_BP: Tensor,
    latents_BTL: Tensor,
    behaviour: NetworkBehaviour | None = None,
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
    sink: MetricSink = NO_SINK,
) -> Tensor:
    """Return latents, (B, T, L), that decode to something nearer to the models than the encoder's do.

    The loss is that of pre-training without its contrast and penalties: the errors of weights, normalised as they were,
    and `config.behaviour` times the difference of outputs where `behaviour` is given. Each model is refined for itself:
    together with others or alone, it gets the same latents.

    Args:
        model: the backbone, its weights fixed.
        config: the backbone's settings.
        layout: where the weights sit.
        flat_BP: the models.
        latents_BTL: where to start: what `encode_models` returned for them.
        behaviour: runs models of the zoo on its unlabelled images, which each step draws anew (see
            `open_network_behaviour`), or on others (`look_at`): on `draw_noise_images` no data is seen. Without it only
            weights count.
        steps: steps of Adam; 0 returns the start.
        rate: of the first step, in deviations of the model's latents.
        seed: of the draw of images.
        sink: told how far it is.
    """
    refined = []
    for first in range(0, len(flat_BP), _CHUNK):
        some = slice(first, first + _CHUNK)
        generator = make_generator(seed, "refinement")
        measure = _make_loss(model, config, layout, flat_BP[some], behaviour, generator)
        scale_B = latents_BTL[some].flatten(1).std(dim=1)
        refined.append(descend(latents_BTL[some], scale_B[:, None, None], steps, rate, measure))
        sink.progress(min(first + _CHUNK, len(flat_BP)), len(flat_BP), "models refined")
    return torch.cat(refined)


def _make_loss(
    model: Autoencoder,
    config: BackboneConfig,
    layout: TokenLayout,
    flat_BP: Tensor,
    behaviour: NetworkBehaviour | None,
    generator: torch.Generator,
) -> Callable[[Tensor], Tensor]:
    """Return the loss of each model, (B,), as a function of its latents."""
    device, tokens_BTD = flat_BP.device, layout.tokenize(flat_BP)
    one_BT = torch.ones(tokens_BTD.shape[:2], dtype=torch.int64, device=device)
    mask_BTD = layout.mask_TD.to(device).expand(tokens_BTD.shape)
    layers_BT = layout.positions_T3[:, 1].to(device).expand(one_BT.shape)
    # A model is a batch of its own.
    normalisation = "window" if config.normalisation == "batch" else config.normalisation
    floors = (config.deviation_floor, config.relative_floor)

    def measure(latents_BTL: Tensor) -> Tensor:
        decoded_BP = decode_models(model, layout, latents_BTL, config.window)
        decoded_BTD = layout.tokenize(decoded_BP)
        errors_BTD = weigh_errors(decoded_BTD, tokens_BTD, mask_BTD, one_BT, layers_BT, normalisation, *floors)
        loss_B = (1 - config.gamma) * errors_BTD.sum(dim=(1, 2)) / layout.weights
        if behaviour is not None:
            images_SCHR = behaviour.draw_images(device, generator)
            with torch.no_grad():
                outputs_BSK = behaviour.run_models(flat_BP, images_SCHR)
            moved_BSK = behaviour.run_models(decoded_BP, images_SCHR)
            loss_B = loss_B + config.behaviour * compare_outputs(outputs_BSK, moved_BSK, behaviour.output)
        return loss_B

    return measure
