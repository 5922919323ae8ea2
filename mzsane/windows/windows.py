"""Windows: what they are cut from, what is in a batch of them, and halo windows for long sequences.

A model of at most half a window shares its window with others, whatever their architecture or zoo, each in a segment of
its own; a model of at most a window has one to itself, padded; of a longer one a window shows a random part. Nothing is
attended to across segments, so a packed model is seen as if it were alone.

Suffixes: V views of the same places, B windows, W tokens of a window, D token width, T tokens of a model, P weights
of a model, N checkpoints, X and Y features.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.groups import PermutationGroup

# Tokens of one call of a window function: on a CPU what stays in its cache.
_TOKENS_AT_ONCE = {"cpu": 2**11, "other": 2**16}


@dataclass(frozen=True)
class WindowSource:
    """Checkpoints of one layout that windows are cut from: one slice of a composition.

    Attributes:
        flat_NP: their flat weights in canonical form.
        layout: where each weight sits in the tokens.
        groups: the architecture's permutation groups; none where the symmetry is not known.
        weight: how often its checkpoints are drawn, relative to the other sources (see `MixturePlan`).
    """

    flat_NP: Tensor
    layout: TokenLayout
    groups: tuple[PermutationGroup, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class WindowBatch:
    """Windows of the same places of the same models in several views.

    All but the views may be shared with other batches: they are read, not written to.

    Attributes:
        views_VBWD: tokens, float32, zero in the padding. Version 0 is the models as stored, the others are random
            permutations of them that keep their function.
        mask_BWD: True where there is a weight.
        weights_BW: how many weights a token has, int64; none in the padding.
        positions_BW3: position of each token (see `TokenLayout`), zero in the padding.
        segments_BW: which model of its window a token is of, int64: 1, 2, ...; 0 in the padding.
        source_BW: index of the source that a token is of, int64; -1 in the padding.
    """

    views_VBWD: Tensor
    mask_BWD: Tensor
    weights_BW: Tensor
    positions_BW3: Tensor
    segments_BW: Tensor
    source_BW: Tensor

    def to(self, device: torch.device | str) -> "WindowBatch":
        """Return the batch on a device."""
        return WindowBatch(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


def check_composition(layouts: Sequence[TokenLayout], counts: Sequence[int], weights: Sequence[float]) -> None:
    """Check that windows can be cut from these sources together.

    Raises:
        ConfigError: there is no source, one is empty or has no positive weight, or their tokens differ in width.
    """
    if not layouts:
        raise ConfigError("the composition is empty: give at least one slice")
    for number, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        if count < 1:
            raise ConfigError(f"slice {number} of the composition has no checkpoints: widen its filter, or drop it")
        if not 0 < weight < float("inf"):
            raise ConfigError(f"the weight of slice {number} of the composition must be above 0, not {weight}")
    widths = {layout.token_dim for layout in layouts}
    if len(widths) > 1:
        raise ConfigError(f"the slices have tokens of different widths: {sorted(widths)}; tokenize them alike")


def check_positions(layouts: Sequence[TokenLayout], limits: Sequence[float]) -> None:
    """Check that all positions are below the limits of token in network, layer and row (see `BackboneConfig`).

    Raises:
        ConfigError: one does not.
    """
    for layout in layouts:
        needed = (layout.positions_T3.amax(dim=0) + 1).tolist()
        if any(least > size for least, size in zip(needed, limits, strict=True)):
            raise ConfigError(
                f"max_positions {list(limits)} is too small for these networks: it must be at least {needed} "
                "(tokens, layers, tokens in a row)"
            )


def map_windows(
    function: Callable[[Tensor, Tensor], Tensor], sequence_BTX: Tensor, positions_T3: Tensor, window: int, halo: int
) -> Tensor:
    """Apply a window function along sequences of any length and stitch the results.

    Windows of all sequences are taken together, so many at once as the device likes best.

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
    batch, length, _ = sequence_BTX.shape
    width, kept = min(window, length), length
    if length > window:
        kept = window - 2 * halo
        if halo < 0 or kept < 1:
            raise ConfigError(
                f"halo must be at least 0 and less than half of the window of {window} tokens, not {halo}"
            )
    firsts = range(0, length, kept)
    starts = [min(max(first - halo, 0), length - width) for first in firsts]
    places = list(product(range(batch), zip(firsts, starts, strict=True)))
    at_once = max(1, _TOKENS_AT_ONCE["cpu" if sequence_BTX.device.type == "cpu" else "other"] // width)
    result_BTY: Tensor | None = None
    for number in range(0, len(places), at_once):
        some = places[number : number + at_once]
        cut_XWX = torch.stack([sequence_BTX[model, start : start + width] for model, (_, start) in some])
        positions_XW3 = torch.stack([positions_T3[start : start + width] for _, (_, start) in some])
        found_XWY = function(cut_XWX, positions_XW3)
        if result_BTY is None:
            result_BTY = found_XWY.new_empty(batch, length, found_XWY.shape[2])
        for found_WY, (model, (first, start)) in zip(found_XWY, some, strict=True):
            last = min(first + kept, length)
            result_BTY[model, first:last] = found_WY[first - start : last - start]
    if result_BTY is None:  # no model
        return function(sequence_BTX, positions_T3.expand(0, -1, -1))
    return result_BTY
