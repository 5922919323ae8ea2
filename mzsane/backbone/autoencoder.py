"""The sequence autoencoder: a pre-norm transformer over the tokens of a window.

MZ-SANE, arXiv 2504.10141; SANE, arXiv 2406.09997.

Suffixes: B windows, W tokens of a window, D token width, M model width, L latent width, H heads, X tokens of a batch,
I and O numbers of a token before and after a linear map.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mzsane.backbone.attention import AttentionPlan, attend
from mzsane.config import BackboneConfig

_INITIAL_DEVIATION = 0.02
_LONGEST_WAVE = 10_000


class LearnedPositions(nn.Module):
    """Learned tables for a token's number, layer and row: the first two added, the third beside them (MZ-SANE)."""

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


class SinusoidalPositions(nn.Module):
    """Sines and cosines of a token's number and row, side by side, and of its layer added to the first.

    Frequencies as in arXiv 1706.03762; as large as the entries of new tables, without parameters or a largest position.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.width = d_model // 2

    def forward(self, positions_BW3: Tensor) -> Tensor:
        """Return the embeddings, (B, W, M)."""
        count = math.ceil(self.width / 2)
        exponents = torch.arange(count, device=positions_BW3.device) / count
        angles = positions_BW3[..., None] * _LONGEST_WAVE**-exponents  # (B, W, 3, M / 4)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)[..., : self.width] * (_INITIAL_DEVIATION * math.sqrt(2))
        number, layer, row = waves.unbind(dim=-2)
        # A layer's waves are turned round, so that layer 3 at token 5 is not layer 5 at token 3.
        return torch.cat([number + layer.flip(-1), row], dim=-1)


class Block(nn.Module):
    """Pre-norm transformer block: attention within each model, then a GELU network of four times the width."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.norm_mlp = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x_BWM: Tensor, plan: AttentionPlan | None) -> Tensor:
        """Return the block's output."""
        x_BWM = x_BWM + self.out(attend(self.qkv(self.norm_attention(x_BWM)), self.heads, plan))
        hidden: Tensor = x_BWM + self.down(functional.gelu(self.up(self.norm_mlp(x_BWM))))
        return hidden


class LayerLinear(nn.Module):
    """A linear map of tokens for each layer of a network, without bias."""

    def __init__(self, layers: int, wide_in: int, wide_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(layers, wide_in, wide_out))

    # Not compiled: how many tokens a layer has is another number in each batch.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x_BWI: Tensor, layer_BW: Tensor) -> Tensor:
        """Map each token by its layer, (B, W, O)."""
        layer_X, x_XI = layer_BW.flatten(), x_BWI.flatten(0, 1)
        order_X = layer_X.argsort()
        counts = torch.bincount(layer_X, minlength=len(self.weight)).tolist()
        mapped = [part_XI @ map_IO for part_XI, map_IO in zip(x_XI[order_X].split(counts), self.weight, strict=True)]
        mapped_XO = torch.cat(mapped)[order_X.argsort()]
        return mapped_XO.view(*layer_BW.shape, -1)


class Autoencoder(nn.Module):
    """Tokens to a latent per token and back.

    Tokens of different models do not see each other, and padding is seen by nothing (see `AttentionPlan`).

    Args:
        config: sizes.
        token_dim: width of a token.

    Attributes:
        precision: number format of the products within the blocks in training; all else is float32.
        inference_precision: the same in evaluation mode.
    """

    def __init__(self, config: BackboneConfig, token_dim: int) -> None:
        super().__init__()
        width, latent = config.d_model, config.latent_dim
        learned = config.positions == "learned"
        self.positions = LearnedPositions(config.max_positions, width) if learned else SinusoidalPositions(width)
        self.token_in = nn.Linear(token_dim, width)
        self.encoder = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.latent_out = nn.Linear(width, latent)
        self.latent_in = nn.Linear(latent, width)
        self.decoder = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.token_out = nn.Linear(width, token_dim)
        self.shortcut_in: LayerLinear | None = None
        self.shortcut_out: LayerLinear | None = None
        if config.shortcut:
            self.shortcut_in = LayerLinear(config.max_positions[1], token_dim, latent)
            self.shortcut_out = LayerLinear(config.max_positions[1], latent, token_dim)
        self.projection = nn.Sequential(
            nn.Linear(config.window * latent, config.projection_dim, bias=False),
            nn.LayerNorm(config.projection_dim),
            nn.ReLU(),
            nn.Linear(config.projection_dim, config.projection_dim, bias=False),
            nn.LayerNorm(config.projection_dim),
            nn.ReLU(),
        )
        self.recompute = config.recompute
        self.precision = self.inference_precision = torch.float32

    def forward(
        self,
        tokens_BWD: Tensor,
        positions_BW3: Tensor,
        weights_BW: Tensor,
        plan: AttentionPlan | None,
        noise_BWL: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents (B, W, L), reconstructed tokens (B, W, D) and projections of windows, for training.

        `weights_BW` is how many weights each token has, none in the padding. Noise is added to the latents that are
        decoded and projected.
        """
        places_BWM, layer_BW = self._embed(positions_BW3), positions_BW3[..., 1]
        latents_BWL = cap_latents(self._encode(tokens_BWD, places_BWM, layer_BW, plan), weights_BW)
        noisy_BWL = latents_BWL if noise_BWL is None else cap_latents(latents_BWL + noise_BWL, weights_BW)
        return latents_BWL, self._decode(noisy_BWL, places_BWM, layer_BW, plan), self.project(noisy_BWL)

    def encode(self, tokens_BWD: Tensor, positions_BW3: Tensor, plan: AttentionPlan | None = None) -> Tensor:
        """Return the latents, (B, W, L), not capped. Without a plan each window is one model without padding."""
        return self._encode(tokens_BWD, self._embed(positions_BW3), positions_BW3[..., 1], plan)

    def decode(self, latents_BWL: Tensor, positions_BW3: Tensor, plan: AttentionPlan | None = None) -> Tensor:
        """Return the reconstructed tokens, (B, W, D)."""
        return self._decode(latents_BWL, self._embed(positions_BW3), positions_BW3[..., 1], plan)

    def project(self, latents_BWL: Tensor) -> Tensor:
        """Return the projection of whole windows that the contrast compares, (B, projection_dim).

        The latents are those of `cap_latents`, so that nothing of the padding is in them.
        """
        projected: Tensor = self.projection(latents_BWL.flatten(1))
        return projected

    def _embed(self, positions_BW3: Tensor) -> Tensor:
        """Embed positions: once, (1, W, M), if they are one window's that is expanded to all, else (B, W, M)."""
        places_BWM: Tensor = self.positions(positions_BW3[:1] if positions_BW3.stride(0) == 0 else positions_BW3)
        return places_BWM

    def _encode(self, tokens_BWD: Tensor, places_BWM: Tensor, layer_BW: Tensor, plan: AttentionPlan | None) -> Tensor:
        x_BWM = self._transform(self.encoder, self.token_in(tokens_BWD) + places_BWM, plan)
        latents_BWL: Tensor = self.latent_out(self.encoder_norm(x_BWM))
        return latents_BWL if self.shortcut_in is None else latents_BWL + self.shortcut_in(tokens_BWD, layer_BW)

    def _decode(self, latents_BWL: Tensor, places_BWM: Tensor, layer_BW: Tensor, plan: AttentionPlan | None) -> Tensor:
        x_BWM = self._transform(self.decoder, self.latent_in(latents_BWL) + places_BWM, plan)
        tokens_BWD: Tensor = self.token_out(self.decoder_norm(x_BWM))
        return tokens_BWD if self.shortcut_out is None else tokens_BWD + self.shortcut_out(latents_BWL, layer_BW)

    def _transform(self, blocks: nn.ModuleList, x_BWM: Tensor, plan: AttentionPlan | None) -> Tensor:
        # The parts outside are small, and what they give is the loss's and the samplers' data.
        precision = self.precision if self.training else self.inference_precision
        with torch.autocast(x_BWM.device.type, precision, enabled=precision != torch.float32):
            for block in blocks:
                if self.recompute and torch.is_grad_enabled():
                    x_BWM = checkpoint(block, x_BWM, plan, use_reentrant=False)
                else:
                    x_BWM = block(x_BWM, plan)
        return x_BWM


def cap_latents(latents_BWL: Tensor, weights_BW: Tensor) -> Tensor:
    """Return latents of which each token has no more than weights; those beyond are 0, and so are all in the padding.

    What a short token cannot use counts for nothing in the latents per weight, and long ones can have it instead.
    """
    number_L = torch.arange(latents_BWL.shape[-1], device=latents_BWL.device)
    return latents_BWL.masked_fill(number_L >= weights_BW[..., None], 0)


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
            if parameter.ndim >= 2:
                scale = residual_scale if module_name.endswith((".out", ".down")) else 1.0
                parameter.normal_(0, _INITIAL_DEVIATION * scale, generator=generator)
            else:
                parameter.fill_(1.0 if isinstance(module, nn.LayerNorm) and name == "weight" else 0.0)
    return model
