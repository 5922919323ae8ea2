"""The batches of pre-training, made while the steps before them are computed.

A batch is a function of the seed, the step and the part of the step alone, whatever came before it and however many
processes share it: each makes the whole part and takes its windows of it. Small parts are made several at a time, in
blocks of a fixed length: a batch is many small operations, each of which holds up those of the training.

Suffixes: V views, B windows (rows of both views in a `TrainingBatch`), W tokens of a window, D token width, L latent
width.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from mzsane.backbone.attention import AttentionPlan, plan_attention
from mzsane.backbone.distributed.ranks import Ranks
from mzsane.composition import ChosenSlice
from mzsane.config import BackboneConfig
from mzsane.randomness import make_generator
from mzsane.windows.augment import add_noise, cut_mix, erase, mix_up, scale_noise
from mzsane.windows.memory import Mixture, WindowsInMemory
from mzsane.windows.row_groups import stream_table
from mzsane.windows.stream import WindowStream
from mzsane.windows.windows import WindowBatch, WindowSource

_BLOCK = 2**20  # numbers of both views that are made at once, if a part has fewer
_MOST_REUSED = 16  # windows of a long model that is streamed, before it is read again


@dataclass(frozen=True)
class TrainingBatch:
    """What a process computes on in a part of a step: its windows in two views, one after the other.

    Attributes:
        input_BWD: the views, with noise and gaps.
        clean_BWD: the same without.
        mask_BWD: True where there is a weight.
        weights_BW: how many weights a token has.
        positions_BW3: position of each token; one window's, expanded, if all are packed alike.
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
    weights_BW: Tensor
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
) -> WindowsInMemory | WindowStream:
    """Return the source of training windows: in memory, the device's, when the composition fits, else streamed.

    A batch of it is a block: the windows of one part of a step or of some.
    """
    held, windows = int(config.memory_gib * 2**30), config.part_windows
    batch = windows * max(1, _BLOCK // (2 * windows * config.window * chosen[0].table.layout.token_dim))
    if sum(4 * part.table.layout.weights * len(part.rows_N) for part in chosen) <= held:
        sources = [
            WindowSource(part.table.load(part.rows_N), part.table.layout, part.table.groups, part.weight)
            for part in chosen
        ]
        return WindowsInMemory(sources, config.window, batch, seed, device=device, mixture=mixture)
    streams = [
        stream_table(
            part.table,
            part.rows_N,
            part.weight,
            reuse=min(_MOST_REUSED, math.ceil(part.table.layout.length / config.window)),
        )
        for part in chosen
    ]
    return WindowStream(streams, config.window, batch, seed, held, mixture=mixture)


@dataclass(frozen=True)
class _Host:
    """What of a block the host has to know: models, numbers of weights and positions."""

    segments_BW: Tensor
    weights_B: list[int]
    positions_BW3: Tensor


class BatchLoader:
    """Makes the parts of the steps in turn, a block ahead of the training, in a thread.

    Args:
        config: windows, augmentations.
        windows: where the windows come from, a block at a time.
        seed: the training's.
        ranks: the processes that share a batch.

    Attributes:
        waited: seconds that the training has waited for data so far.
    """

    def __init__(
        self, config: BackboneConfig, windows: WindowsInMemory | WindowStream, seed: int, ranks: Ranks
    ) -> None:
        self.config, self.windows, self.seed, self.ranks = config, windows, seed, ranks
        self.share = ranks.share(config.part_windows)
        self.waited = 0.0
        self._length = windows.batch_size // config.part_windows
        self._block: tuple[int, list[TrainingBatch]] | None = None
        self._next: tuple[int, Future[list[TrainingBatch]]] | None = None
        # One thread of its own: the training's matrix products need the others. What a thread sets is also what threads
        # that come later start with, so the old number is set again.
        threads = torch.get_num_threads()
        self._thread = ThreadPoolExecutor(1, "feeder")
        self._thread.submit(_take_one_thread).result()
        torch.set_num_threads(threads)

    def take(self, step: int, part: int) -> TrainingBatch:
        """Return a part of a step; with the first of its block, begin to make the block after it."""
        block, place = divmod(step * self.config.accumulation + part, self._length)
        if self._block is None or self._block[0] != block:
            started = time.perf_counter()
            if self._next is None or self._next[0] != block:
                self._next = (block, self._thread.submit(self._make, block))
            self._block = (block, self._next[1].result())
            self.waited += time.perf_counter() - started
            ahead = (block + 1) * self._length < self.config.steps * self.config.accumulation
            self._next = (block + 1, self._thread.submit(self._make, block + 1)) if ahead else None
        return self._block[1][place]

    def close(self) -> None:
        """Stop the thread, and the processes that read a stream."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        if isinstance(self.windows, WindowStream):
            self.windows.close()

    @torch.no_grad()
    def _make(self, number: int) -> list[TrainingBatch]:
        batch = self.windows.draw(number).to(self.ranks.device)
        generator = make_generator(self.seed, "backbone", "block", number)
        clean_VBWD, views_VBWD = augment(batch, self.config, generator)
        noise_VBWL = self._draw_latent_noise(batch, generator)
        windows = self.config.part_windows
        # Read from the device once a block: what is asked of each part is small, and asking makes a GPU wait.
        host = _Host(batch.segments_BW.cpu(), batch.weights_BW.sum(dim=1).tolist(), batch.positions_BW3.cpu())
        return [
            self._cut(slice(first, first + windows), batch, host, clean_VBWD, views_VBWD, noise_VBWL)
            for first in range(0, self.windows.batch_size, windows)
        ]

    def _cut(
        self,
        part: slice,
        batch: WindowBatch,
        host: "_Host",
        clean_VBWD: Tensor,
        views_VBWD: Tensor,
        noise_VBWL: Tensor | None,
    ) -> TrainingBatch:
        """Return what this process computes on of a part of a block."""
        own = slice(part.start + self.share.start, part.start + self.share.stop)
        segments = _double(host.segments_BW[own])
        plan = plan_attention(segments, batch.segments_BW.device)
        longest = (plan.shape if plan else segments.shape)[1]
        # Queries in the padding of a row are computed in vain, and are not counted.
        real = int((segments > 0).sum())
        return TrainingBatch(
            views_VBWD[:, own].flatten(0, 1),
            clean_VBWD[:, own].flatten(0, 1),
            _double(batch.mask_BWD[own]),
            _double(batch.weights_BW[own]),
            _double_positions(batch.positions_BW3[own], host.positions_BW3[own]),
            _double(batch.segments_BW[own]),
            _double(batch.source_BW[own]),
            plan,
            None if noise_VBWL is None else noise_VBWL[:, own].flatten(0, 1),
            2 * sum(host.weights_B[part]),
            (real, real * longest),
        )

    def _draw_latent_noise(self, batch: WindowBatch, generator: torch.Generator) -> Tensor | None:
        if not self.config.latent_noise:
            return None
        shape = (2, *batch.segments_BW.shape, self.config.latent_dim)
        noise_VBWL = torch.randn(shape, generator=generator, device=generator.device) * self.config.latent_noise
        return noise_VBWL.to(self.ranks.device)


def _take_one_thread() -> None:
    """Let this thread's operations have one thread, whatever another thread sets later."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first look, not the setting, ends that a thread follows the others


def _double(of_views: Tensor) -> Tensor:
    """Return what both views share, once for each."""
    return torch.cat([of_views, of_views])  # `repeat` takes ten times as long for a mask


def _double_positions(positions_BW3: Tensor, known_BW3: Tensor) -> Tensor:
    """Return the positions of both views, expanded if all windows have the same, so that they are embedded once.

    Args:
        positions_BW3: where the batch is.
        known_BW3: the same on the host.
    """
    if torch.equal(known_BW3, known_BW3[:1].expand_as(known_BW3)):
        return positions_BW3[:1].expand(2 * len(positions_BW3), -1, -1)
    return _double(positions_BW3)


def augment(batch: WindowBatch, config: BackboneConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return clean views of windows, mixed if so set, and the views of them with noise and gaps: (V, B, W, D)."""
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
