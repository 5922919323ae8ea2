"""Training windows over several zoos at once, cut by gathers over index maps; halo windows for long sequences.

Suffixes: B windows, W tokens of a window, D token width, P weights of a model, N checkpoints.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.symmetry import PermutationGroup, build_permutation_map, draw_permutations


@dataclass(frozen=True)
class WindowSource:
    """Checkpoints of one layout that windows are cut from: `flat_NP` float32 in canonical form."""

    flat_NP: Tensor
    layout: TokenLayout
    groups: tuple[PermutationGroup, ...]


@dataclass(frozen=True)
class WindowBatch:
    """Windows of the same places of the same models in two versions: canonical and randomly permuted.

    Attributes:
        canonical_BWD: tokens, zero in the padding.
        permuted_BWD: the same windows of function-preserving random permutations of the models.
        mask_BWD: True where there is a weight.
        positions_BW3: position of each token (see `TokenLayout`), zero in the padding.
    """

    canonical_BWD: Tensor
    permuted_BWD: Tensor
    mask_BWD: Tensor
    positions_BW3: Tensor


def check_positions(layouts: Sequence[TokenLayout], max_positions: Sequence[int]) -> None:
    """Check that all positions have an entry in the position tables.

    Raises:
        ConfigError: one does not.
    """
    for layout in layouts:
        largest = layout.positions_T3.amax(dim=0).tolist()
        if any(value >= size for value, size in zip(largest, max_positions, strict=True)):
            raise ConfigError(
                f"max_positions {list(max_positions)} is too small: the layout has positions up to {largest}"
            )


def draw_windows(sources: Sequence[WindowSource], window: int, batch: int, generator: torch.Generator) -> WindowBatch:
    """Draw windows of checkpoints at random places; every checkpoint of every source weighs the same.

    A model of at most `window` tokens is taken whole and padded. Checkpoints repeat in a batch only if it has more
    windows than there are checkpoints.
    """
    counts = [len(source.flat_NP) for source in sources]
    total = sum(counts)
    picks = torch.cat([torch.randperm(total, generator=generator) for _ in range(-(-batch // total))])[:batch]
    parts, first = [], 0
    for source, count in zip(sources, counts, strict=True):
        rows = picks[(picks >= first) & (picks < first + count)] - first
        first += count
        if len(rows):
            parts.append(_cut_windows(source, rows, window, generator))
    return WindowBatch(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _cut_windows(
    source: WindowSource, rows: Tensor, window: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout, batch = source.layout, len(rows)
    places = max(layout.length - window, 0) + 1
    starts_B = torch.randint(places, (batch,), generator=generator)
    tokens_BW = starts_B[:, None] + torch.arange(min(window, layout.length))
    gather_BWD = layout.gather_TD[tokens_BW]
    mask_BWD = gather_BWD >= 0
    index_BK = gather_BWD.clamp(min=0).flatten(1)
    flat_BP = source.flat_NP[rows]
    canonical_BWD = flat_BP.gather(1, index_BK).view(gather_BWD.shape) * mask_BWD
    map_BP = build_permutation_map(layout, source.groups, draw_permutations(source.groups, batch, generator))
    permuted_BWD = flat_BP.gather(1, map_BP.gather(1, index_BK)).view(gather_BWD.shape) * mask_BWD
    missing = window - tokens_BW.shape[1]
    positions_BW3 = layout.positions_T3[tokens_BW]
    fields = (canonical_BWD, permuted_BWD, mask_BWD, positions_BW3)
    padded = [torch.nn.functional.pad(field, (0, 0, 0, missing)) for field in fields]
    return padded[0], padded[1], padded[2], padded[3]


def map_windows(
    function: Callable[[Tensor, Tensor], Tensor], sequence_BTX: Tensor, positions_T3: Tensor, window: int, halo: int
) -> Tensor:
    """Apply a window function along a sequence of any length and stitch the results.

    Args:
        function: takes (B, w, X) and positions (B, w, 3), w <= window, returns (B, w, Y).
        sequence_BTX: the whole sequences.
        positions_T3: positions of their tokens.
        window: largest number of tokens at once.
        halo: tokens of context on each side of a window's kept part; fewer at the ends.

    Returns:
        (B, T, Y).

    Raises:
        ConfigError: the halo leaves nothing of a window.
    """
    length, batch = sequence_BTX.shape[1], sequence_BTX.shape[0]
    if length <= window:
        return function(sequence_BTX, positions_T3.expand(batch, -1, -1))
    kept = window - 2 * halo
    if halo < 0 or kept < 1:
        raise ConfigError(f"halo must be at least 0 and less than half of the window of {window} tokens, not {halo}")
    pieces = []
    for first in range(0, length, kept):
        last = min(first + kept, length)
        start = min(max(first - halo, 0), length - window)
        result = function(
            sequence_BTX[:, start : start + window], positions_T3[start : start + window].expand(batch, -1, -1)
        )
        pieces.append(result[:, first - start : last - start])
    return torch.cat(pieces, dim=1)
