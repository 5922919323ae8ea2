"""The batches of pre-training, made while the step before them is computed.

A batch is a function of the seed, the step and the part of the step alone, whatever came before it and however many
processes share it: each makes the whole part and takes its windows of it.

Suffixes: V versions, B windows (rows of both views in a `Feed`), W tokens of a window, D token width.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from mzsane.backbone.attention import AttentionPlan, plan_attention
from mzsane.backbone.ranks import Ranks
from mzsane.config import BackboneConfig
from mzsane.randomness import make_generator
from mzsane.tokens.augment import add_noise, cut_mix, erase, mix_up, scale_noise
from mzsane.tokens.bank import Mixture, TokenBank
from mzsane.tokens.composition import ChosenSlice
from mzsane.tokens.stream import TokenStream, stream_table
from mzsane.tokens.windows import WindowBatch, WindowSource

_MOST_REUSED = 16  # windows of a long model that is streamed, before it is read again


@dataclass(frozen=True)
class Feed:
    """What a process computes on in a part of a step: its windows in two versions, one after the other.

    Attributes:
        input_BWD: the views, with noise and gaps.
        clean_BWD: the same without.
        mask_BWD: True where there is a weight.
        positions_BW3: position of each token.
        segments_BW: which model of its window a token is of, from 1; 0 in the padding.
        source_BW: index of the slice that a token is of; -1 in the padding.
        plan: who attends to whom.
        noise_BWL: what is added to the latents, if anything is.
        weights: real weights of the part, over all processes.
        tokens: real tokens here, and pairs of them that attend to each other.
    """

    input_BWD: Tensor
    clean_BWD: Tensor
    mask_BWD: Tensor
    positions_BW3: Tensor
    segments_BW: Tensor
    source_BW: Tensor
    plan: AttentionPlan | None
    noise_BWL: Tensor | None
    weights: int
    tokens: tuple[int, int]


def open_windows(
    config: BackboneConfig,
    chosen: Sequence[ChosenSlice],
    seed: int,
    mixture: Mixture,
    device: torch.device | str = "cpu",
) -> TokenBank | TokenStream:
    """Return the source of training windows: in memory, the device's, when the composition fits, else streamed."""
    held, batch = int(config.memory_gib * 2**30), config.batch_size // config.accumulation
    if sum(4 * part.table.layout.weights * len(part.rows_N) for part in chosen) <= held:
        sources = [
            WindowSource(part.table.load(part.rows_N), part.table.layout, part.table.groups, part.weight)
            for part in chosen
        ]
        return TokenBank(sources, config.window, batch, seed, device=device, mixture=mixture)
    streams = [
        stream_table(
            part.table,
            part.rows_N,
            part.weight,
            reuse=min(_MOST_REUSED, math.ceil(part.table.layout.length / config.window)),
        )
        for part in chosen
    ]
    return TokenStream(streams, config.window, batch, seed, held, mixture=mixture)


class Feeder:
    """Makes the parts of the steps in turn, one ahead of the training, in a thread.

    Args:
        config: windows, augmentations.
        windows: where the windows come from.
        seed: the training's.
        ranks: the processes that share a batch.

    Attributes:
        waited: seconds that the training has waited for data so far.
    """

    def __init__(self, config: BackboneConfig, windows: TokenBank | TokenStream, seed: int, ranks: Ranks) -> None:
        self.config, self.windows, self.seed, self.ranks = config, windows, seed, ranks
        self.share = ranks.share(config.batch_size // config.accumulation)
        self.waited = 0.0
        self._next: tuple[int, Future[Feed]] | None = None
        # One thread of its own: the training's matrix products need the others.
        self._thread = ThreadPoolExecutor(1, "feeder", initializer=torch.set_num_threads, initargs=(1,))

    def take(self, step: int, part: int) -> Feed:
        """Return a part of a step, and begin with the one after it."""
        started, number = time.perf_counter(), step * self.config.accumulation + part
        if self._next is None or self._next[0] != number:
            self._next = (number, self._thread.submit(self._make, number))
        feed = self._next[1].result()
        self.waited += time.perf_counter() - started
        ahead = number + 1 < self.config.steps * self.config.accumulation
        self._next = (number + 1, self._thread.submit(self._make, number + 1)) if ahead else None
        return feed

    def close(self) -> None:
        """Stop the thread, and the processes that read a stream."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        if isinstance(self.windows, TokenStream):
            self.windows.close()

    def _make(self, number: int) -> Feed:
        with torch.no_grad():
            batch = self.windows.draw(number).to(self.ranks.device)
            generator = make_generator(self.seed, "backbone", "step", number)
            clean_VBWD, views_VBWD = augment(batch, self.config, generator)
            noise_VBWL = self._draw_latent_noise(batch, generator)
            own = self.share
            segments = batch.segments_BW[own].repeat(2, 1)
            plan = plan_attention(segments)
            longest = (plan.shape if plan else segments.shape)[1]
            # Queries in the padding of a row are computed in vain, and are not counted.
            real = int((segments > 0).sum())
            return Feed(
                views_VBWD[:, own].flatten(0, 1),
                clean_VBWD[:, own].flatten(0, 1),
                batch.mask_BWD[own].repeat(2, 1, 1),
                batch.positions_BW3[own].repeat(2, 1, 1),
                segments,
                batch.source_BW[own].repeat(2, 1),
                plan,
                None if noise_VBWL is None else noise_VBWL[:, own].flatten(0, 1),
                2 * int(batch.mask_BWD.sum()),
                (real, real * longest),
            )

    def _draw_latent_noise(self, batch: WindowBatch, generator: torch.Generator) -> Tensor | None:
        if not self.config.latent_noise:
            return None
        shape = (2, *batch.segments_BW.shape, self.config.latent_dim)
        noise_VBWL = torch.randn(shape, generator=generator, device=generator.device) * self.config.latent_noise
        return noise_VBWL.to(self.ranks.device)


def augment(batch: WindowBatch, config: BackboneConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return clean versions of windows, mixed if so set, and the views of them with noise and gaps: (V, B, W, D)."""
    clean_VBWD = batch.views_VBWD
    if config.mix_up:
        clean_VBWD = mix_up(clean_VBWD, batch.mask_BWD, batch.positions_BW3, config.mix_up, generator)
    if config.cut_mix:
        clean_VBWD = cut_mix(clean_VBWD, batch.mask_BWD, batch.positions_BW3, config.cut_mix, generator)
    views_VBWD = scale_noise(clean_VBWD, config.noise, generator)
    if config.additive_noise:
        views_VBWD = add_noise(views_VBWD, batch.mask_BWD, config.additive_noise, generator)
    if config.erasing:
        views_VBWD = erase(views_VBWD, config.erasing, generator)
    return clean_VBWD, views_VBWD
