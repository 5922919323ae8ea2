"""The token bank: a composition's flat weights on a device, and its batches as a function of seed and step.

The order of the draws is a plan of whole numbers. It repeats in passes: a pass draws a fixed number of checkpoints of
each source, its quota, and packs them into a fixed number of windows, so that any step's draws are found without
those before it. A training that starts again at a step needs no state.

Suffixes: V windows of a pass, K pieces (a model or a part of one, in a window), N checkpoints, P weights of a model.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.randomness import make_generator
from mzsane.windows.assembly import Pieces, WindowAssembler, WindowCutter
from mzsane.windows.windows import WindowBatch, WindowSource, check_composition

Mixture = Literal["checkpoints", "equal"]
_EXACT = 1e-6  # quotas this close to whole numbers are whole
_FEWEST_DRAWS = 1000  # of a pass whose quotas are rounded, so that the mixture is right to a per mille
_OPEN_WINDOWS = 16  # windows that the packing tries before it starts a new one


class MixturePlan:
    """Which source's turn it is in each window of each step, and where in the window.

    Every draw of a checkpoint is of a source with probability proportional to its weight times its number of
    checkpoints (`checkpoints`: with weights of 1 every checkpoint counts the same), or to its weight alone (`equal`:
    the same budget for each source, whatever its size). The shares are kept exactly in every pass, up to rounding to
    whole draws, not only on average. With `checkpoints` and weights of 1, a pass is an epoch.

    Args:
        counts: checkpoints of each source.
        lengths: tokens of a model of each source.
        weights: weight of each source.
        window: tokens of a window.
        seed: seed of the order.
        mixture: what the weights refer to.

    Raises:
        ConfigError: a source's share is too small for a single draw in a pass.
    """

    def __init__(
        self,
        counts: Sequence[int],
        lengths: Sequence[int],
        weights: Sequence[float],
        window: int,
        seed: int,
        mixture: Mixture = "checkpoints",
    ) -> None:
        self.seed = seed
        self.quotas = _count_draws(counts, weights, mixture)
        self._source_K = torch.arange(len(counts)).repeat_interleave(torch.tensor(self.quotas))
        order = torch.randperm(len(self._source_K), generator=make_generator(seed, "windows", "pattern"))
        self._source_K = self._source_K[order]
        shown = [min(length, window) for length in lengths]
        window_K, self._offset_K = _pack([shown[source] for source in self._source_K.tolist()], window)
        self._source_K, self._offset_K = (x[window_K.argsort(stable=True)] for x in (self._source_K, self._offset_K))
        self._pieces_V = torch.bincount(window_K)
        self.windows = len(self._pieces_V)
        self._shuffle = lru_cache(maxsize=2)(self._shuffle_pass)

    def place(self, step: int, batch: int) -> Pieces:
        """Return the pieces of a step's `batch` windows."""
        first, parts = step * batch, []
        while first < (step + 1) * batch:
            number, start = divmod(first, self.windows)
            stop = min(self.windows, start + (step + 1) * batch - first)
            ends_V, source_K, offset_K, draw_K = self._shuffle(number)
            begin = int(ends_V[start - 1]) if start else 0
            cut = slice(begin, int(ends_V[stop - 1]))
            pieces_V = torch.diff(ends_V[start:stop], prepend=torch.tensor([begin]))
            window_K = torch.repeat_interleave(pieces_V) + first - step * batch
            segment_K = _count_within(pieces_V) + 1
            parts.append((window_K, offset_K[cut], segment_K, source_K[cut], draw_K[cut]))
            first += stop - start
        return Pieces(*(torch.cat(fields) for fields in zip(*parts, strict=True)))

    def _shuffle_pass(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a pass's windows in their order: past the last piece of each, and source, offset, draw of each piece.

        Draws are numbered in the order of time, so that a source's checkpoints come without repeats one after another.
        """
        order_V = torch.randperm(self.windows, generator=make_generator(self.seed, "windows", "pass", number))
        pieces_V = self._pieces_V[order_V]
        first_V = (self._pieces_V.cumsum(0) - self._pieces_V)[order_V]
        chosen_K = first_V.repeat_interleave(pieces_V) + _count_within(pieces_V)
        source_K = self._source_K[chosen_K]
        draw_K = torch.empty_like(source_K)
        for source, quota in enumerate(self.quotas):
            draw_K[source_K == source] = torch.arange(quota) + number * quota
        return pieces_V.cumsum(0), source_K, self._offset_K[chosen_K], draw_K


class WindowsInMemory:
    """Training windows from flat weights that fit on a device.

    Within a source, checkpoints are drawn without replacement: in a fresh random order in each of its epochs.

    Args:
        sources: the slices of the composition.
        window: tokens of a window.
        batch_size: windows of a batch; one holds several small models.
        seed: seed of all that is drawn.
        views: views of each window (see `WindowBatch`).
        device: where the weights are kept and the windows cut; where they are now if None.
        mixture: how the weights of the sources are meant (see `MixturePlan`).

    Raises:
        ConfigError: a size is below 1, or the sources do not fit together or their own layouts.
    """

    def __init__(
        self,
        sources: Sequence[WindowSource],
        window: int,
        batch_size: int,
        seed: int,
        views: int = 2,
        device: torch.device | str | None = None,
        mixture: Mixture = "checkpoints",
    ) -> None:
        check_sizes(window=window, batch_size=batch_size, views=views)
        layouts, weights = [source.layout for source in sources], [source.weight for source in sources]
        counts = [len(source.flat_NP) for source in sources]
        check_composition(layouts, counts, weights)
        for number, source in enumerate(sources):
            if source.flat_NP.shape[1:] != (source.layout.weights,):
                raise ConfigError(
                    f"slice {number} of the composition has weights of shape {tuple(source.flat_NP.shape)}; "
                    f"its layout has {source.layout.weights} a model"
                )
        self.seed = seed
        self._device = torch.device(device) if device is not None else sources[0].flat_NP.device
        self._flat = [source.flat_NP.to(self._device) for source in sources]
        self.batch_size = batch_size
        self._room = [flat_NP[:0] for flat_NP in self._flat]
        self.plan = MixturePlan(counts, [layout.length for layout in layouts], weights, window, seed, mixture)
        cutters = [WindowCutter(source.layout, source.groups, window, self._device) for source in sources]
        self._assembler = WindowAssembler(cutters, (views, batch_size, window), self._device)
        self._order = lru_cache(maxsize=2 * len(sources))(self._draw_order)

    def draw(self, step: int) -> WindowBatch:
        """Draw the windows of a step: the same ones whenever it is asked for."""
        pieces = self.plan.place(step, self.batch_size)
        return self._assembler.assemble(pieces, self._fetch, make_generator(self.seed, "windows", "step", step))

    def _fetch(self, source: int, draws_K: Tensor) -> Tensor:
        flat_NP = self._flat[source]
        epochs = draws_K // len(flat_NP)
        rows_K = torch.empty_like(draws_K)
        for epoch in epochs.unique().tolist():
            now = epochs == epoch
            rows_K[now] = self._order(source, epoch)[draws_K[now] % len(flat_NP)]
        if len(rows_K) == 1:
            return flat_NP[int(rows_K)][None]  # a view: of a long model only the window is ever read
        if len(rows_K) > len(self._room[source]):  # taken once: new memory costs more than the copy
            self._room[source] = flat_NP.new_empty(len(rows_K), flat_NP.shape[1])
        return torch.index_select(flat_NP, 0, rows_K.to(self._device), out=self._room[source][: len(rows_K)])

    def _draw_order(self, source: int, epoch: int) -> Tensor:
        generator = make_generator(self.seed, "windows", "order", source, epoch)
        return torch.randperm(len(self._flat[source]), generator=generator)


def check_sizes(**sizes: int) -> None:
    """Check that sizes are at least 1.

    Raises:
        ConfigError: one is not.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1, not {size}")


def _count_draws(counts: Sequence[int], weights: Sequence[float], mixture: Mixture) -> list[int]:
    """Return how many checkpoints of each source a pass draws: as many in all as there are, or a multiple of that."""
    total = sum(counts)
    parts = [w * n for w, n in zip(weights, counts, strict=True)] if mixture == "checkpoints" else list(weights)
    draws = [total * part / sum(parts) for part in parts]
    if any(abs(count - round(count)) > _EXACT for count in draws):
        repeats = math.ceil(_FEWEST_DRAWS / total)
        draws = [repeats * count for count in draws]
    for number, count in enumerate(draws):
        if round(count) < 1:
            raise ConfigError(
                f"the weight of slice {number} of the composition, {weights[number]}, gives it less than half a draw "
                f"in {round(sum(draws))}: raise it, or drop the slice"
            )
    return [round(count) for count in draws]


def _pack(lengths: Sequence[int], window: int) -> tuple[Tensor, Tensor]:
    """Pack pieces into windows, each into the first of a few open ones that has room (first fit).

    Returns:
        Window and offset of each piece, (K,). Pieces longer than half a window have a window to themselves.
    """
    windows, offsets = [], []
    count = 0
    filled: dict[int, int] = {}  # tokens in the open windows, oldest first
    for length in lengths:
        shares = length <= window // 2
        number = next((w for w, tokens in filled.items() if tokens + length <= window), None) if shares else None
        if number is None:
            number, count = count, count + 1
        offset = filled.get(number, 0)
        if shares:
            filled[number] = offset + length
        if len(filled) > _OPEN_WINDOWS:
            del filled[next(iter(filled))]
        windows.append(number)
        offsets.append(offset)
    return torch.tensor(windows), torch.tensor(offsets)


def _count_within(sizes_V: Tensor) -> Tensor:
    """Count 0, 1, ... within each of some consecutive runs."""
    return torch.arange(int(sizes_V.sum())) - (sizes_V.cumsum(0) - sizes_V).repeat_interleave(sizes_V)
