"""The plain loop that pre-training is compared with: what a short script would do, with the parts that torch has.

Float32, `nn.TransformerEncoder`, one model a window, padded to it, a `DataLoader` over windows that were cut, permuted
and stored before. Sizes, positions, noise, contrast and learning rate are those of the config.

Suffixes: N stored windows, B windows of a step, V views, R = V * B, W tokens of a window, D token width, M model width,
F projection width.
"""

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from mzsane.composition import ChosenSlice
from mzsane.config import BackboneConfig
from mzsane.windows.memory import WindowsInMemory
from mzsane.windows.windows import WindowSource


class PlainAutoencoder(nn.Module):
    """The sequence autoencoder of the same sizes from torch's own layers."""

    def __init__(self, config: BackboneConfig, token_dim: int, window: int) -> None:
        super().__init__()
        width, half = config.d_model, config.d_model // 2
        self.token_in = nn.Linear(token_dim, width)
        self.number = nn.Embedding(config.max_positions[0], half)
        self.layer = nn.Embedding(config.max_positions[1], half)
        self.row = nn.Embedding(config.max_positions[2], half)
        self.encoder = make_transformer(config)
        self.latent_out = nn.Linear(width, config.latent_dim)
        self.latent_in = nn.Linear(config.latent_dim, width)
        self.decoder = make_transformer(config)
        self.token_out = nn.Linear(width, token_dim)
        self.projection = nn.Sequential(
            nn.Linear(window * config.latent_dim, config.projection_dim, bias=False),
            nn.LayerNorm(config.projection_dim),
            nn.ReLU(),
            nn.Linear(config.projection_dim, config.projection_dim, bias=False),
            nn.LayerNorm(config.projection_dim),
            nn.ReLU(),
        )

    def forward(self, tokens_RWD: Tensor, positions_RW3: Tensor, padding_RW: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return reconstructed tokens (R, W, D) and projections (R, F); `padding_RW` is None if there is no padding."""
        number, layer, row = positions_RW3.unbind(dim=-1)
        places_RWM = torch.cat([self.number(number) + self.layer(layer), self.row(row)], dim=-1)
        hidden_RWM = self.encoder(self.token_in(tokens_RWD) + places_RWM, src_key_padding_mask=padding_RW)
        latents_RWL = self.latent_out(hidden_RWM)
        hidden_RWM = self.decoder(self.latent_in(latents_RWL) + places_RWM, src_key_padding_mask=padding_RW)
        if padding_RW is not None:
            latents_RWL = latents_RWL.masked_fill(padding_RW[:, :, None], 0)
        return self.token_out(hidden_RWM), self.projection(latents_RWL.flatten(1))


def make_transformer(config: BackboneConfig) -> nn.TransformerEncoder:
    """Make a pre-norm transformer with a norm at its end; without dropout, as ours, which makes it faster too."""
    width = config.d_model
    block = nn.TransformerEncoderLayer(
        width, config.heads, 4 * width, 0.0, functional.gelu, batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(block, config.layers, nn.LayerNorm(width), enable_nested_tensor=False)


def store_windows(chosen: ChosenSlice, window: int) -> TensorDataset:
    """Cut two permuted versions of each model, pad them to the window, and keep them: (N, V, W, D), mask, positions."""
    table = chosen.table
    length, models = table.layout.length, len(chosen.rows_N)
    source = WindowSource(table.load(chosen.rows_N), table.layout, table.groups)
    batch = WindowsInMemory([source], length, models, 0).draw(0)
    padding = (0, 0, 0, window - length)
    return TensorDataset(
        functional.pad(batch.views_VBWD.transpose(0, 1), padding),
        functional.pad(batch.mask_BWD, padding),
        functional.pad(batch.positions_BW3, padding),
    )


def normalised_error(output_RWD: Tensor, target_RWD: Tensor, mask_RWD: Tensor) -> Tensor:
    """Return the masked mean squared error over the batch's variance, as the published code computes it."""
    count = mask_RWD.sum()
    mean = (target_RWD * mask_RWD).sum() / count
    variance = ((target_RWD - mean).square() * mask_RWD).sum() / count
    return ((output_RWD - target_RWD).square() * mask_RWD).sum() / count / variance


def contrast_views(first_BF: Tensor, second_BF: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent (arXiv 2002.05709) between the projections of two views."""
    both_RF = functional.normalize(torch.cat([first_BF, second_BF]), dim=1)
    scores_RR = both_RF @ both_RF.T / temperature
    scores_RR.fill_diagonal_(float("-inf"))
    partner_R = torch.arange(len(both_RF), device=both_RF.device).roll(len(first_BF))
    return functional.cross_entropy(scores_RR, partner_R)


class PlainLoop:
    """The plain loop.

    Args:
        config: sizes, batch, contrast, noise, learning rate.
        chosen: the models.
        window: tokens of a window, which holds one model; windows of a model's own length have no padding at all.
        models: of a step.
        device: where it trains.
    """

    def __init__(
        self, config: BackboneConfig, chosen: ChosenSlice, window: int, models: int, device: torch.device
    ) -> None:
        torch.manual_seed(0)
        self.config, self.device, self.models = config, device, models
        self.layout = chosen.table.layout
        self.padded = window > self.layout.length
        self.model = PlainAutoencoder(config, self.layout.token_dim, window).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate)
        self.loader = DataLoader(store_windows(chosen, window), batch_size=models, shuffle=True, drop_last=True)
        self.batches = self._repeat()

    def run(self, steps: int) -> dict[str, float]:
        """Train some steps; return real weights a second, of both views, and the last loss."""
        started = time.perf_counter()
        for _ in range(steps):
            loss = self._take_step(*next(self.batches))
        last = float(loss)  # waits for the GPU too
        seconds = time.perf_counter() - started
        return {"weights_per_s": 2 * self.layout.weights * self.models * steps / seconds, "loss": last}

    def _take_step(self, views_BVWD: Tensor, mask_BWD: Tensor, positions_BW3: Tensor) -> Tensor:
        config = self.config
        views_RWD = views_BVWD.to(self.device).transpose(0, 1).flatten(0, 1)
        mask_RWD = mask_BWD.to(self.device).repeat(2, 1, 1)
        positions_RW3 = positions_BW3.to(self.device).repeat(2, 1, 1)
        views_RWD = views_RWD * (1 + config.noise * torch.randn_like(views_RWD))
        padding_RW = ~mask_RWD.any(dim=2) if self.padded else None
        output_RWD, projected_RF = self.model(views_RWD, positions_RW3, padding_RW)
        first_BF, second_BF = projected_RF.chunk(2)
        loss = (1 - config.gamma) * normalised_error(output_RWD, views_RWD, mask_RWD)
        loss = loss + config.gamma * contrast_views(first_BF, second_BF, config.temperature)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        self.optimizer.step()
        return loss.detach()

    def _repeat(self) -> Iterator[list[Tensor]]:
        while True:
            yield from self.loader
