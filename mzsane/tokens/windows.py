"""Windows: tokens of one long or several small models, cut from flat weights; halo windows for long sequences.

A model of at most half a window shares its window with others, whatever their architecture or zoo, each in a segment of
its own; a model of at most a window has one to itself, padded; of a longer one a window shows a random part. Nothing is
attended to across segments, so a packed model is seen as if it were alone.

Suffixes: V versions of the same places, B windows, W tokens of a window, D token width, T tokens of a model, P weights
of a model, N checkpoints, K pieces (a model or a part of one, in a window), X and Y features.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.symmetry.groups import PermutationGroup
from mzsane.tokens.symmetry.permute import cut_views

_CHUNK = 2**18  # weights of small models that are cut at once


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
    """Windows of the same places of the same models in several versions.

    Attributes:
        views_VBWD: tokens, float32, zero in the padding. Version 0 is the models as stored, the others are random
            permutations of them that keep their function.
        mask_BWD: True where there is a weight.
        positions_BW3: position of each token (see `TokenLayout`), zero in the padding.
        segments_BW: which model of its window a token is of, int64: 1, 2, ...; 0 in the padding.
        source_BW: index of the source that a token is of, int64; -1 in the padding.
    """

    views_VBWD: Tensor
    mask_BWD: Tensor
    positions_BW3: Tensor
    segments_BW: Tensor
    source_BW: Tensor

    def to(self, device: torch.device | str) -> "WindowBatch":
        """Return the batch on a device."""
        return WindowBatch(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


@dataclass(frozen=True)
class Pieces:
    """What goes where in a batch; every field is (K,) int64.

    Attributes:
        window_K: the window that a piece is in.
        offset_K: its first token there.
        segment_K: its number in the window, from 1.
        source_K: the source whose turn it is.
        draw_K: number of this draw among all draws of the source, since the first batch.
    """

    window_K: Tensor
    offset_K: Tensor
    segment_K: Tensor
    source_K: Tensor
    draw_K: Tensor


class WindowCutter:
    """Cuts windows of one layout, with its index maps on the device of the weights.

    Args:
        layout: the layout.
        groups: the architecture's permutation groups.
        window: tokens of a window.
        device: where the weights are.
    """

    def __init__(
        self,
        layout: TokenLayout,
        groups: Sequence[PermutationGroup],
        window: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.layout, self.groups = layout, groups
        self.tokens = min(window, layout.length)
        self.mask_TD = layout.mask_TD.to(device)
        self.positions_T3 = layout.positions_T3.to(device)
        # Of a long model most tokens are weights that lie side by side; only the others are gathered one by one.
        straight_TD = layout.gather_TD[:, :1] + torch.arange(layout.token_dim)
        straight_T = (layout.gather_TD == straight_TD).all(dim=1)
        self._first_T = torch.where(straight_T, layout.gather_TD[:, 0], 0).to(device)
        self._crooked_T = (~straight_T).nonzero().squeeze(1)

    def cut(self, flat_BP: Tensor, start: int, versions: int, generator: torch.Generator) -> Tensor:
        """Cut the window that begins at token `start` from each model, (B, V, tokens, D); of a long one at a time."""
        if versions > 1:
            starts_B = torch.full((len(flat_BP),), start)
            return cut_views(self.layout, self.groups, flat_BP, starts_B, self.tokens, versions, generator)
        if self.tokens == self.layout.length:
            return self.layout.tokenize(flat_BP)[:, None]
        tokens_WD = self._cut_part(flat_BP[0], start)
        return tokens_WD[None, None]

    def _cut_part(self, flat_P: Tensor, start: int) -> Tensor:
        layout = self.layout
        if len(self._crooked_T) < layout.length:
            runs_XD = flat_P.unfold(0, layout.token_dim, 1)  # a view: the run of weights from each weight on
            tokens_WD = runs_XD.index_select(0, self._first_T[start : start + self.tokens])
        else:
            tokens_WD = flat_P.new_empty(self.tokens, layout.token_dim)
        first, last = torch.searchsorted(self._crooked_T, torch.tensor([start, start + self.tokens])).tolist()
        crooked = self._crooked_T[first:last]
        index_XD = layout.gather_TD[crooked].to(flat_P.device)
        values_XD = flat_P.index_select(0, index_XD.clamp(min=0).flatten()).view(index_XD.shape)
        tokens_WD[(crooked - start).to(flat_P.device)] = values_XD.masked_fill_(index_XD < 0, 0)
        return tokens_WD


def assemble_windows(
    cutters: Sequence[WindowCutter],
    pieces: Pieces,
    fetch: Callable[[int, Tensor], Tensor],
    shape: tuple[int, int, int],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> WindowBatch:
    """Cut the pieces of a batch and put them in their windows.

    The place of a part of a long model: a window that may stick out of the model by all but one token is moved inside,
    so that every token is seen at least as often as one in the middle (up to twice as often in the first and last
    window), and the ends lie in their windows as they do at inference (`map_windows`). With places drawn evenly the
    first and the last token would be seen once where others are seen a window's length times.

    Args:
        cutters: one for each source, on `device`.
        pieces: what goes where.
        fetch: given a source and draws of it, (n,), returns the flat weights, (n, P). Called with one draw at a time
            where models are longer than a window, so that none is copied whole.
        shape: versions V, windows B, tokens of a window W.
        generator: for places and permutations.
        device: where the weights are and the batch shall be.
    """
    versions, batch, window = shape
    width = cutters[0].layout.token_dim
    # What is not filled is set to zero at the end: touching such big tensors twice would cost more than filling them.
    views_VXD = torch.empty(versions, batch * window, width, device=device)
    mask_XD = torch.empty(batch * window, width, dtype=torch.bool, device=device)
    positions_X3 = torch.zeros(batch * window, 3, dtype=torch.int64, device=device)
    segments_X = torch.zeros(batch * window, dtype=torch.int64, device=device)
    source_X = torch.full((batch * window,), -1, device=device)
    lengths = torch.tensor([cutter.layout.length for cutter in cutters])[pieces.source_K]
    starts_K = _draw_starts(lengths, window, generator)
    first_K = pieces.window_K * window + pieces.offset_K
    for number in pieces.source_K.unique().tolist():
        cutter = cutters[number]
        chosen = torch.nonzero(pieces.source_K == number).squeeze(1)
        for part in [chosen] if cutter.layout.length <= window else chosen.split(1):
            start = int(starts_K[part[0]])  # 0 of whole models
            shown = slice(start, start + cutter.tokens)
            places = _find_places(first_K[part], cutter.tokens, device)
            mask_XD[places] = cutter.mask_TD[shown].expand(len(part), -1, -1).flatten(0, 1)
            positions_X3[places] = cutter.positions_T3[shown].expand(len(part), -1, -1).flatten(0, 1)
            segments_X[places] = pieces.segment_K[part].repeat_interleave(cutter.tokens).to(device)
            source_X[places] = number
            # Together, what stays in the cache and in memory that is used again; fresh memory costs more than copies.
            for few in part.split(max(1, _CHUNK // cutter.layout.weights)):
                places = _find_places(first_K[few], cutter.tokens, device)
                flat_KP = fetch(number, pieces.draw_K[few])
                views_KVWD = cutter.cut(flat_KP, start, versions, generator)
                for version in range(versions):
                    views_VXD[version, places] = views_KVWD[:, version].flatten(0, 1).to(views_VXD.dtype)
    padding = (segments_X == 0).nonzero().squeeze(1)
    views_VXD[:, padding] = 0
    mask_XD[padding] = False
    return WindowBatch(
        views_VXD.view(versions, batch, window, width),
        mask_XD.view(batch, window, width),
        positions_X3.view(batch, window, 3),
        segments_X.view(batch, window),
        source_X.view(batch, window),
    )


def _find_places(first_K: Tensor, tokens: int, device: torch.device | str) -> Tensor | slice:
    """Return where the tokens of some pieces go, piece by piece; a slice of one piece, which is a plain copy."""
    if len(first_K) == 1:
        return slice(int(first_K), int(first_K) + tokens)
    return (first_K[:, None] + torch.arange(tokens)).flatten().to(device)


def _draw_starts(lengths_K: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """Draw the first token of each piece, (K,); 0 of a model that is shown whole."""
    places_K = lengths_K + window - 1
    draws_K = torch.rand(len(lengths_K), dtype=torch.float64, generator=generator)
    starts_K = (draws_K * places_K).long() - (window - 1)
    return torch.minimum(starts_K, lengths_K - window).clamp(min=0)


def attention_mask(segments_BW: Tensor) -> Tensor:
    """Return who may attend to whom, (B, 1, W, W), bool: tokens of one segment to each other, padding to nothing.

    The rows of padding tokens are all False; `scaled_dot_product_attention` returns zeros for them.
    """
    same_BWW = segments_BW[:, :, None] == segments_BW[:, None, :]
    return (same_BWW & (segments_BW > 0)[:, :, None])[:, None]


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
