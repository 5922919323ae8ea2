"""Assembling windows: pieces of models are cut from flat weights and put in their places.

Suffixes: V views of the same places, B windows or models, W tokens of a window, D token width, T tokens of a model,
P weights of a model, K pieces (a model or a part of one, in a window), X places of a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.apply.permute import cut_views
from mzsane.symmetry.groups import PermutationGroup
from mzsane.windows.windows import WindowBatch

_CHUNK = 2**19  # places of windows that are filled at once
_FRAMES = 4  # ways of packing that are remembered


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
        self._room_BTD = torch.empty(0)

    def cut_whole(self, flat_BP: Tensor, views: int, generator: torch.Generator) -> Tensor:
        """Return the tokens of whole models in some views, (V, B * T, D); good until the next call."""
        if views == 1:
            layout = self.layout
            if len(self._room_BTD) < len(flat_BP) or self._room_BTD.dtype != flat_BP.dtype:
                # Taken once: its padding is zero and stays so, and new memory costs more than the copies.
                self._room_BTD = flat_BP.new_zeros(len(flat_BP), layout.length, layout.token_dim)
            tokens_BTD = self._room_BTD[: len(flat_BP)]
            layout.write_tokens(flat_BP, tokens_BTD)
            return tokens_BTD.flatten(0, 1)[None]
        starts_B = torch.zeros(len(flat_BP), dtype=torch.int64)
        views_BVTD = cut_views(self.layout, self.groups, flat_BP, starts_B, self.tokens, views, generator)
        return views_BVTD.transpose(0, 1).flatten(1, 2)

    def cut_part(self, flat_P: Tensor, start: int, generator: torch.Generator, out_VWD: Tensor) -> None:
        """Write the window that begins at token `start` of a long model, in some views, to where it belongs."""
        layout = self.layout
        if len(out_VWD) > 1:
            starts_1 = torch.tensor([start])
            views_1VWD = cut_views(layout, self.groups, flat_P[None], starts_1, self.tokens, len(out_VWD), generator)
            out_VWD.copy_(views_1VWD[0])
            return
        tokens_WD = out_VWD[0]
        if len(self._crooked_T) < layout.length:
            runs_XD = flat_P.unfold(0, layout.token_dim, 1)  # a view: the run of weights from each weight on
            places = self._first_T[start : start + self.tokens]
            if flat_P.dtype == tokens_WD.dtype:
                torch.index_select(runs_XD, 0, places, out=tokens_WD)
            else:
                tokens_WD.copy_(runs_XD.index_select(0, places))
        first, last = torch.searchsorted(self._crooked_T, torch.tensor([start, start + self.tokens])).tolist()
        crooked = self._crooked_T[first:last]
        index_XD = layout.gather_TD[crooked].to(flat_P.device)
        values_XD = flat_P.index_select(0, index_XD.clamp(min=0).flatten()).view(index_XD.shape)
        values_XD.masked_fill_(index_XD < 0, 0)
        tokens_WD[(crooked - start).to(flat_P.device)] = values_XD.to(tokens_WD.dtype)


@dataclass(frozen=True)
class _Frame:
    """What of a batch does not depend on the weights; batches that are packed alike share it.

    Attributes:
        piece_X: which piece fills each place, one past the last in padding.
        padding_X: the places of padding.
        mask_XD: see `WindowBatch`, as the others.
        weights_X: the same.
        positions_X3: the same.
        segments_X: the same.
    """

    piece_X: Tensor
    padding_X: Tensor
    mask_XD: Tensor
    weights_X: Tensor
    positions_X3: Tensor
    segments_X: Tensor


class WindowAssembler:
    """Puts pieces of models in their windows.

    The place of a part of a long model: a window that may stick out of the model by all but one token is moved inside,
    so that every token is seen at least as often as one in the middle (up to twice as often in the first and last
    window), and the ends lie in their windows as they do at inference (`map_windows`). With places drawn evenly the
    first and the last token would be seen once where others are seen a window's length times.

    Args:
        cutters: one for each source, on `device`.
        shape: views V, windows B, tokens of a window W.
        device: where the weights are and the batches shall be.
    """

    def __init__(
        self, cutters: Sequence[WindowCutter], shape: tuple[int, int, int], device: torch.device | str = "cpu"
    ) -> None:
        self._cutters, self._shape, self._device = cutters, shape, device
        self._lengths = torch.tensor([cutter.layout.length for cutter in cutters])
        # The tokens of all layouts, one after another, behind one of padding; sources of one layout share theirs.
        layouts = {cutter.layout.digest: cutter for cutter in cutters}
        lengths = torch.tensor([1, *(cutter.layout.length for cutter in layouts.values())]).cumsum(0).tolist()
        first = dict(zip(layouts, lengths, strict=False))
        self._first = torch.tensor([first[cutter.layout.digest] for cutter in cutters])
        width = cutters[0].layout.token_dim
        masks, positions = zip(*((cutter.mask_TD, cutter.positions_T3) for cutter in layouts.values()), strict=True)
        self._mask_XD = torch.cat([torch.zeros(1, width, dtype=torch.bool, device=device), *masks])
        self._positions_X3 = torch.cat([torch.zeros(1, 3, dtype=torch.int64, device=device), *positions])
        self._find_frame = lru_cache(maxsize=_FRAMES)(self._make_frame)

    def assemble(
        self, pieces: Pieces, fetch: Callable[[int, Tensor], Tensor], generator: torch.Generator
    ) -> WindowBatch:
        """Cut the pieces of a batch and put them in their windows.

        Args:
            pieces: what goes where, window by window.
            fetch: given a source and draws of it, (n,), returns the flat weights, (n, P). Called with one draw at a
                time where models are longer than a window, so that none is copied whole.
            generator: for places and permutations.
        """
        views, batch, window = self._shape
        starts_K = _draw_starts(self._lengths[pieces.source_K], window, generator)
        tokens_K = self._lengths[pieces.source_K].clamp(max=window)
        first_K = pieces.window_K * window + pieces.offset_K
        views_VXD = torch.empty(views, batch * window, self._mask_XD.shape[1], device=self._device)
        step = max(1, _CHUNK // (window * views_VXD.shape[2]))
        for some in torch.arange(batch).split(step):
            self._fill(views_VXD, int(some[0]), int(some[-1]) + 1, pieces, starts_K, first_K, fetch, generator)
        whole = bool((tokens_K == self._lengths[pieces.source_K]).all())
        token_K = self._first[pieces.source_K] + starts_K
        plan_4K = torch.stack([first_K, tokens_K, token_K, pieces.segment_K]).numpy().tobytes()
        frame = self._find_frame(plan_4K) if whole else self._make_frame(plan_4K)
        views_VXD[:, frame.padding_X] = 0
        source_X = torch.cat([pieces.source_K, torch.tensor([-1])])[frame.piece_X].to(self._device)
        return WindowBatch(
            views_VXD.view(views, batch, window, -1),
            frame.mask_XD.view(batch, window, -1),
            frame.weights_X.view(batch, window),
            frame.positions_X3.view(batch, window, 3),
            frame.segments_X.view(batch, window),
            source_X.view(batch, window),
        )

    def _make_frame(self, plan_4K: bytes) -> "_Frame":
        """Describe the windows of a batch, whatever the weights.

        Args:
            plan_4K: int64, for each piece its first place in the batch, how many tokens it has, which of all layouts'
                tokens the first one is, and its segment.
        """
        first_K, tokens_K, token_K, segment_K = torch.frombuffer(bytearray(plan_4K), dtype=torch.int64).view(4, -1)
        places = self._shape[1] * self._shape[2]
        # For each place the piece that fills it, and that piece's token; one past the last piece, 0 in padding.
        piece_X = torch.full((places,), len(first_K))
        token_X = torch.zeros_like(piece_X)
        filling = torch.repeat_interleave(tokens_K)
        within = torch.arange(len(filling)) - (tokens_K.cumsum(0) - tokens_K)[filling]
        filled = first_K[filling] + within
        piece_X[filled] = filling
        token_X[filled] = token_K[filling] + within
        token_X = token_X.to(self._device)
        mask_XD = self._mask_XD.index_select(0, token_X)
        return _Frame(
            piece_X,
            (piece_X == len(first_K)).nonzero().squeeze(1).to(self._device),
            mask_XD,
            mask_XD.sum(dim=1),
            self._positions_X3.index_select(0, token_X),
            torch.cat([segment_K, torch.tensor([0])])[piece_X].to(self._device),
        )

    def _fill(
        self,
        views_VXD: Tensor,
        begin: int,
        end: int,
        pieces: Pieces,
        starts_K: Tensor,
        first_K: Tensor,
        fetch: Callable[[int, Tensor], Tensor],
        generator: torch.Generator,
    ) -> None:
        """Cut the pieces of a few windows, which stay in the cache, and copy them to their places row by row."""
        window = self._shape[2]
        low, high = torch.searchsorted(pieces.window_K, torch.tensor([begin, end])).tolist()
        source_K = pieces.source_K[low:high]
        cut_VXD, places, long = [], [], []
        for number in source_K.unique().tolist():
            cutter = self._cutters[number]
            chosen = (source_K == number).nonzero().squeeze(1) + low
            if cutter.layout.length <= window:
                cut_VXD.append(cutter.cut_whole(fetch(number, pieces.draw_K[chosen]), len(views_VXD), generator))
                places.append((first_K[chosen, None] + torch.arange(cutter.tokens)).flatten() - begin * window)
            else:
                long += chosen.tolist()
        if places:
            place_X = torch.cat(places)
            order_X: Tensor | None = None  # of the rows, unless they are in order already
            if not torch.equal(place_X, torch.arange((end - begin) * window)):
                order_X = torch.zeros((end - begin) * window, dtype=torch.int64)
                order_X[place_X] = torch.arange(len(place_X))
                order_X = order_X.to(self._device)
            for view, out_XD in enumerate(views_VXD[:, begin * window : end * window]):
                tokens = [part_VXD[view] for part_VXD in cut_VXD]
                source_XD = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
                if order_X is None:
                    out_XD.copy_(source_XD)
                else:
                    torch.index_select(source_XD.to(out_XD.dtype), 0, order_X, out=out_XD)
        for piece in long:  # each has a window to itself
            number, place = int(pieces.source_K[piece]), int(first_K[piece])
            (flat_P,) = fetch(number, pieces.draw_K[piece : piece + 1])
            out_VWD = views_VXD[:, place : place + window]
            self._cutters[number].cut_part(flat_P, int(starts_K[piece]), generator, out_VWD)


def _draw_starts(lengths_K: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """Draw the first token of each piece, (K,); 0 of a model that is shown whole."""
    places_K = lengths_K + window - 1
    draws_K = torch.rand(len(lengths_K), dtype=torch.float64, generator=generator)
    starts_K = (draws_K * places_K).long() - (window - 1)
    return torch.minimum(starts_K, lengths_K - window).clamp(min=0)
