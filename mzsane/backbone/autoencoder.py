"""The sequence autoencoder: a pre-norm transformer over the tokens of a window.

MZ-SANE, arXiv 2504.10141; SANE, arXiv 2406.09997.

Suffixes: B windows, W tokens of a window, D token width, M model width, L latent width, H heads.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mzsane.config import BackboneConfig
from mzsane.tokens.windows import attention_mask

_INITIAL_DEVIATION = 0.02


class PositionEmbedding(nn.Module):
    """Learned tables for a token's number, layer and row: the first two added, the third beside them."""

    def __init__(self, sizes: tuple[int, int, int], d_model: int) -> None:
        super().__init__()
        half = d_model // 2
        self.number = nn.Embedding(sizes[0], half)
        self.layer = nn.Embedding(sizes[1], half)
        self.row = nn.Embedding(sizes[2], half)

    def forward(self, positions_BW3: Tensor) -> Tensor:
        """Return the embeddings, (B, W, M)."""
        number, layer, row = positions_BW3.unbind(dim=-1)
        return torch.cat([self.number(number) + self.layer(layer), self.row(row)], dim=-1)


class Block(nn.Module):
    """Pre-norm transformer block: attention along the tokens, then a GELU network of four times the width."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.norm_mlp = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x_BWM: Tensor, mask_B1WW: Tensor | None) -> Tensor:
        """Return the block's output; a token attends to those where its row of the mask is True, None: to all."""
        batch, window, width = x_BWM.shape
        qkv = self.qkv(self.norm_attention(x_BWM)).view(batch, window, 3, self.heads, width // self.heads)
        q_BHWE, k_BHWE, v_BHWE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHWE = functional.scaled_dot_product_attention(q_BHWE, k_BHWE, v_BHWE, attn_mask=mask_B1WW)
        x_BWM = x_BWM + self.out(mixed_BHWE.transpose(1, 2).reshape(batch, window, width))
        hidden: Tensor = x_BWM + self.down(functional.gelu(self.up(self.norm_mlp(x_BWM))))
        return hidden


class Autoencoder(nn.Module):
    """Tokens to a latent per token and back.

    Args:
        config: sizes.
        token_dim: width of a token.
    """

    def __init__(self, config: BackboneConfig, token_dim: int) -> None:
        super().__init__()
        width, latent = config.d_model, config.latent_dim
        self.positions = PositionEmbedding(config.max_positions, width)
        self.token_in = nn.Linear(token_dim, width)
        self.encoder = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.latent_out = nn.Linear(width, latent)
        self.latent_in = nn.Linear(latent, width)
        self.decoder = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.token_out = nn.Linear(width, token_dim)
        self.projection = nn.Sequential(
            nn.Linear(config.window * latent, config.projection_dim, bias=False),
            nn.LayerNorm(config.projection_dim),
            nn.ReLU(),
            nn.Linear(config.projection_dim, config.projection_dim, bias=False),
            nn.LayerNorm(config.projection_dim),
            nn.ReLU(),
        )

    def encode(self, tokens_BWD: Tensor, positions_BW3: Tensor, segments_BW: Tensor | None = None) -> Tensor:
        """Return the latents, (B, W, L).

        `segments_BW` is the number of the model within the window that a token is of, 0 in the padding; tokens of
        different segments do not attend to each other. None if each window is of one model, without padding.
        """
        x_BWM = self.token_in(tokens_BWD) + self.positions(positions_BW3)
        mask_B1WW = _mask_attention(segments_BW)
        for block in self.encoder:
            x_BWM = block(x_BWM, mask_B1WW)
        latents_BWL: Tensor = self.latent_out(self.encoder_norm(x_BWM))
        return latents_BWL

    def decode(self, latents_BWL: Tensor, positions_BW3: Tensor, segments_BW: Tensor | None = None) -> Tensor:
        """Return the reconstructed tokens, (B, W, D)."""
        x_BWM = self.latent_in(latents_BWL) + self.positions(positions_BW3)
        mask_B1WW = _mask_attention(segments_BW)
        for block in self.decoder:
            x_BWM = block(x_BWM, mask_B1WW)
        tokens_BWD: Tensor = self.token_out(self.decoder_norm(x_BWM))
        return tokens_BWD

    def project(self, latents_BWL: Tensor, segments_BW: Tensor | None = None) -> Tensor:
        """Return the projection of whole windows that the contrast compares, (B, projection_dim)."""
        if segments_BW is not None:
            latents_BWL = latents_BWL * (segments_BW > 0)[:, :, None]
        projected: Tensor = self.projection(latents_BWL.flatten(1))
        return projected


def _mask_attention(segments_BW: Tensor | None) -> Tensor | None:
    """Return who attends to whom, (B, 1, W, W); None when all do."""
    return None if segments_BW is None or bool((segments_BW == 1).all()) else attention_mask(segments_BW)


@torch.no_grad()
def build_autoencoder(config: BackboneConfig, token_dim: int, generator: torch.Generator) -> Autoencoder:
    """Build an autoencoder with weights drawn from an explicit generator; no global random state is touched.

    Matrices are N(0, 0.02), those that write into the residual stream smaller by sqrt(2 layers); biases are 0, norms 1.
    """
    with torch.device("meta"):
        model = Autoencoder(config, token_dim)
    model.to_empty(device="cpu")
    residual_scale = 1 / math.sqrt(2 * config.layers)
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 2:
                scale = residual_scale if module_name.endswith((".out", ".down")) else 1.0
                parameter.normal_(0, _INITIAL_DEVIATION * scale, generator=generator)
            else:
                parameter.fill_(1.0 if isinstance(module, nn.LayerNorm) and name == "weight" else 0.0)
    return model
