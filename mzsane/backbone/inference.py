"""A trained backbone in use: whole models to latents and back.

Suffixes: B models, P weights of a model, T tokens, L latent width.
"""

import torch
from torch import Tensor

from mzsane.backbone.autoencoder import Autoencoder, build_autoencoder, cap_latents
from mzsane.backbone.machine import choose_precision
from mzsane.config import BackboneConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.store.artifacts import Artifact
from mzsane.store.serialisation import load_tensors
from mzsane.windows.windows import map_windows


def load_backbone(backbone: Artifact, device: torch.device = torch.device("cpu")) -> tuple[Autoencoder, BackboneConfig]:
    """Open a BACKBONE artifact as a model in evaluation mode, its weights fixed, with its config.

    Its products are in the number format that the device would train it in.
    """
    config = BackboneConfig.model_validate(backbone.manifest.config["backbone"])
    weights, notes = load_tensors(backbone.path("weights.safetensors").read_bytes())
    model = build_autoencoder(config, notes["token_dim"], torch.Generator())
    model.load_state_dict(weights)
    model.inference_precision = choose_precision(config, device)
    return model.eval().requires_grad_(False).to(device), config


@torch.no_grad()
def encode_models(
    model: Autoencoder, layout: TokenLayout, flat_BP: Tensor, window: int, halo: int | None = None
) -> Tensor:
    """Return the latents of whole models, (B, T, L), computed in windows with a halo, by default of a quarter.

    They are computed where the backbone is, and come back to where the models are.
    """
    tokens_BTD = layout.tokenize(flat_BP.to(_find_device(model, flat_BP)))
    positions_T3 = layout.positions_T3.to(tokens_BTD.device)
    halo = window // 4 if halo is None else halo
    return _cap(map_windows(model.encode, tokens_BTD, positions_T3, window, halo), layout).to(flat_BP.device)


def decode_models(
    model: Autoencoder, layout: TokenLayout, latents_BTL: Tensor, window: int, halo: int | None = None
) -> Tensor:
    """Return the flat weights that latents stand for, (B, P); with a gradient only for latents that ask for one.

    They are computed where the backbone is, and come back to where the latents are.
    """
    with torch.set_grad_enabled(latents_BTL.requires_grad):
        capped_BTL = _cap(latents_BTL.to(_find_device(model, latents_BTL)), layout)
        positions_T3 = layout.positions_T3.to(capped_BTL.device)
        halo = window // 4 if halo is None else halo
        tokens_BTD = map_windows(model.decode, capped_BTL, positions_T3, window, halo)
        return layout.detokenize(tokens_BTD).to(latents_BTL.device)


def count_latents(layout: TokenLayout, latent_dim: int) -> int:
    """Return how many latents stand for a model: of each token as many as it has weights, but no more than these."""
    return int(layout.weights_T.clamp(max=latent_dim).sum())


def _find_device(model: Autoencoder, given: Tensor) -> torch.device:
    """Return where a model's weights are; where what it is given is, if it has none."""
    return next((parameter.device for parameter in model.parameters()), given.device)


def _cap(latents_BTL: Tensor, layout: TokenLayout) -> Tensor:
    return cap_latents(latents_BTL, layout.weights_T.to(latents_BTL.device))
