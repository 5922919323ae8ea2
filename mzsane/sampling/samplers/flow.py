"""Latent flow matching: a velocity field from noise to latents, learned from the anchors (arXiv 2210.02747).

On the straight path from a latent x to noise e, `z_t = (1 - t) x + t e`, the velocity is `e - x`; a small transformer
over the tokens of a model predicts it from `z_t` and t. Sampling follows the field back from some t to 0.

Suffixes: A anchors, S samples, B models of a step, T tokens, L latent width, M width of the transformer, F frequencies.
"""

import math
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from mzsane.randomness import make_generator
from mzsane.sampling.samplers.protocol import Anchors, Drawn, mark_used

_WIDTH, _HEADS, _LAYERS, _FREQUENCIES = 128, 4, 3, 32
_TRAINING_STEPS, _BATCH, _RATE, _WARMUP = 800, 16, 1e-3, 50
_SAMPLING_STEPS = 40
_FLOOR = 1e-6  # deviation of a latent number, in units of the largest, below which it is constant


def sample_flow(anchors: Anchors, bandwidth: float, count: int, generator: torch.Generator) -> Drawn:
    """Learn a velocity field from the anchors' latents, mix anchors with noise and follow the field back.

    The bandwidth is the share of noise that sampling starts from: 1 (or more) is noise alone, near no anchor in
    particular; 0 is the anchors; between them an anchor's coarse features stay. The field depends on the anchors alone
    and is learned once for them.
    """
    latents_ATL = anchors.latents_ATL
    deviation_TL = latents_ATL.std(dim=0, correction=0)
    deviation_TL = deviation_TL.clamp(min=max(_FLOOR * float(deviation_TL.max()), torch.finfo(torch.float32).tiny))
    mean_TL = latents_ATL.mean(dim=0)
    standard_ATL = (latents_ATL - mean_TL) / deviation_TL
    start = min(bandwidth, 1.0)
    chosen_S = torch.randint(len(latents_ATL), (count,), generator=generator)
    noise_STL = torch.randn(count, *mean_TL.shape, generator=generator)
    sample_STL = torch.lerp(standard_ATL[chosen_S], noise_STL, start)
    if start > 0:
        if anchors not in _FIELDS:
            _FIELDS[anchors] = _train_field(standard_ATL, make_generator(anchors.seed, "flow"))
        field = _FIELDS[anchors]
        times = torch.linspace(start, 0, _SAMPLING_STEPS + 1)
        with torch.no_grad():
            for time, following in pairwise(times):
                sample_STL = sample_STL + (following - time) * field(sample_STL, time.expand(count))
    used_SA = mark_used(chosen_S[:, None], len(latents_ATL)) & (start < 1)
    return Drawn(sample_STL * deviation_TL + mean_TL, used_SA)


class _VelocityField(nn.Module):
    """Predicts the velocity of standardised latents at a time from 0 (latents) to 1 (noise)."""

    frequency_F: Tensor

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(width, _WIDTH), nn.Linear(_WIDTH, width)
        self.position_TM = nn.Parameter(0.1 * torch.randn(tokens, _WIDTH))
        self.time = nn.Sequential(nn.Linear(2 * _FREQUENCIES, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH))
        layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, 4 * _WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)
        self.register_buffer("frequency_F", torch.linspace(0, 5, _FREQUENCIES).exp())

    def forward(self, latents_BTL: Tensor, time_B: Tensor) -> Tensor:
        """Return velocities, (B, T, L)."""
        angle_BF = time_B[:, None] * self.frequency_F
        time_BM = self.time(torch.cat([angle_BF.sin(), angle_BF.cos()], dim=1))
        hidden_BTM = self.encoder(self.inward(latents_BTL) + self.position_TM + time_BM[:, None])
        velocity_BTL: Tensor = self.outward(hidden_BTM)
        return velocity_BTL


_FIELDS: WeakKeyDictionary[Anchors, _VelocityField] = WeakKeyDictionary()


def _train_field(standard_ATL: Tensor, generator: torch.Generator) -> _VelocityField:
    """Fit a velocity field to latents of mean 0 and deviation 1."""
    with torch.random.fork_rng(devices=[]):  # modules draw their weights from the global generator
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        field = _VelocityField(*standard_ATL.shape[1:])
    optimizer = torch.optim.AdamW(field.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _share_of_rate)
    for _ in range(_TRAINING_STEPS):
        latents_BTL = standard_ATL[torch.randint(len(standard_ATL), (_BATCH,), generator=generator)]
        noise_BTL = torch.randn(latents_BTL.shape, generator=generator)
        time_B = torch.randn(_BATCH, generator=generator).sigmoid()
        mixed_BTL = torch.lerp(latents_BTL, noise_BTL, time_B[:, None, None])
        loss = functional.mse_loss(field(mixed_BTL, time_B), noise_BTL - latents_BTL)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return field.eval()


def _share_of_rate(step: int) -> float:
    return min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * min(step / _TRAINING_STEPS, 1.0)))
