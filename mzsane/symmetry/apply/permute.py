"""Permuted weights and windows at the speed of memory: rows are copied first, then what lies together within them.

The weights behind the last permuted axis of a tensor (a convolution's kernel) are copied together. A window is cut from
the rows that it shows; the others are never permuted.

Suffixes: B models, V views of a model, N models times views, P weights of a model, W tokens of a window, D token
width, G units of a group, R selected rows, X weights of a row, L places of the permuted axes within a row, H weights
around a window.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.apply.axis_maps import PermutationPlan, PermutedTensor, compose_index, make_plan
from mzsane.symmetry.groups import PermutationGroup, draw_permutations

_LARGE = 2**15  # weights of a tensor; from here on a call for each model costs less than stacking the models
_BLOCK = 2**18  # weights of rows that are fetched at once
_CHUNK = 2**20  # weights that are permuted together, so that they stay in the cache


def permute_weights(
    layout: TokenLayout, groups: Sequence[PermutationGroup], permutations: Sequence[Tensor], flat_BP: Tensor
) -> Tensor:
    """Permute the hidden units of a population, bit for bit.

    Args:
        layout: the layout of the architecture.
        groups: its groups, applied in their order.
        permutations: for each group (B, units) int64: new unit i is old unit `permutation[b, i]`.
        flat_BP: flat weights of any dtype, on any device.

    Raises:
        ConfigError: the weights or the permutations do not fit the layout, the groups or each other.
    """
    _check_weights(layout, flat_BP)
    _check_permutations(groups, permutations, len(flat_BP))
    plan = make_plan(layout, groups, flat_BP.device)
    moved = [permutation_BG.to(flat_BP.device) for permutation_BG in permutations]
    flat_BP = flat_BP.detach()
    permuted_BP = flat_BP.new_empty(flat_BP.shape)
    scratch = _make_scratch(plan, flat_BP)
    for models_B in torch.arange(len(flat_BP), device=flat_BP.device).split(max(1, _CHUNK // layout.weights)):
        maps = plan.map_axes({number: all_BG[models_B] for number, all_BG in enumerate(moved)})
        first = int(models_B[0]) if len(models_B) else 0  # no models are one empty chunk
        for tensor in plan.tensors:
            out_BR = permuted_BP[first : first + len(models_B), tensor.offset : tensor.offset + tensor.size]
            _permute_rows(tensor, (0, tensor.shape[0]), maps, flat_BP, models_B, out_BR[:, None], scratch)
    return permuted_BP


def window_index(
    layout: TokenLayout,
    groups: Sequence[PermutationGroup],
    permutations: Sequence[Tensor],
    starts_B: Tensor,
    window: int,
) -> Tensor:
    """Return where the weights of permuted windows are in the unpermuted flat weights.

    Args:
        layout: the layout of the architecture.
        groups: its groups, applied in their order.
        permutations: for each group (B, units) int64: new unit i is old unit `permutation[b, i]`.
        starts_B: first token of each window.
        window: number of tokens.

    Returns:
        (B, W, D) int64 on the device of `starts_B`; -1 in padding and past the last token.

    Raises:
        ConfigError: a window starts outside of the layout or is empty, or permutations and groups do not fit.
    """
    _check_windows(layout, starts_B, window)
    _check_permutations(groups, permutations, len(starts_B))
    plan = make_plan(layout, groups, starts_B.device)
    moved = [permutation_BG.to(starts_B.device) for permutation_BG in permutations]
    flat_BP = torch.arange(layout.weights, device=starts_B.device).expand(len(starts_B), -1)
    index_BWD = starts_B.new_empty(len(starts_B), window, layout.token_dim, dtype=torch.int64)
    for start in starts_B.unique().tolist():
        models_B = (starts_B == start).nonzero().squeeze(1)
        maps = plan.map_axes({number: all_BG[models_B] for number, all_BG in enumerate(moved)})
        _cut(plan, maps, flat_BP, models_B, start, index_BWD[:, None], plain=0, padding=-1)
    return index_BWD


def cut_views(
    layout: TokenLayout,
    groups: Sequence[PermutationGroup],
    flat_BP: Tensor,
    starts_B: Tensor,
    window: int,
    views: int,
    generator: torch.Generator,
) -> Tensor:
    """Cut the same window from each model as it is and from freshly, randomly permuted views of it.

    Only groups that permute weights in the window are drawn. Models whose windows start at the same token are cut
    together.

    Args:
        layout: the layout of the architecture.
        groups: its groups.
        flat_BP: flat weights.
        starts_B: first token of each model's window.
        window: number of tokens.
        views: number of views; the first is the model as it is.
        generator: where the permutations are drawn from.

    Returns:
        (B, V, W, D); zero in padding and past the last token.

    Raises:
        ConfigError: the weights do not fit the layout, a window starts outside of it or is empty, or `views` is
            below 1.
    """
    _check_weights(layout, flat_BP)
    _check_windows(layout, starts_B, window)
    if views < 1 or len(starts_B) != len(flat_BP):
        raise ConfigError(f"{views} views of {len(starts_B)} windows of {len(flat_BP)} models cannot be cut")
    plan = make_plan(layout, groups, flat_BP.device)
    flat_BP = flat_BP.detach()
    # View by view in memory, as windows are used.
    views_BVWD = flat_BP.new_empty(views, len(flat_BP), window, layout.token_dim).transpose(0, 1)
    for start in starts_B.unique().tolist():
        visible = plan.find_visible(start, start + window)
        touched = sorted({member.group for tensor, _, _ in visible for member in tensor.members})
        shown = sum(tensor.size for tensor, _, _ in visible) * views
        same_start_B = (starts_B == start).nonzero().squeeze(1).to(flat_BP.device)
        for models_B in same_start_B.split(max(1, _CHUNK // shown)):
            drawn = draw_permutations([groups[number] for number in touched], len(models_B) * (views - 1), generator)
            maps = plan.map_axes(
                {number: new_NG.to(flat_BP.device) for number, new_NG in zip(touched, drawn, strict=True)}
            )
            _cut(plan, maps, flat_BP, models_B, start, views_BVWD, plain=1, padding=0)
    return views_BVWD


def _cut(
    plan: PermutationPlan,
    maps: dict[int, Tensor],
    flat_BP: Tensor,
    models_B: Tensor,
    start: int,
    out_BVWD: Tensor,
    *,
    plain: int,
    padding: int,
) -> None:
    """Write one window of chosen models to their places; the first `plain` views are not permuted."""
    views, window = out_BVWD.shape[1:3]
    places_WD = plan.places_TD[start : start + window]
    visible = plan.find_visible(start, start + window)
    base = min(tensor.offset + first * tensor.row_size for tensor, first, _ in visible)
    top = max(tensor.offset + last * tensor.row_size for tensor, _, last in visible)
    # The permuted rows lie where they are in the flat weights; one place more holds the value of the padding.
    around_BVH = flat_BP.new_empty(views, len(models_B), top - base + 1).transpose(0, 1)
    around_BVH[..., -1] = padding
    scratch = _make_scratch(plan, flat_BP)
    for tensor, first, last in visible:
        begin, end = (tensor.offset + row * tensor.row_size for row in (first, last))
        out_BVR = around_BVH[..., begin - base : end - base]
        if plain:
            out_BVR[:, :plain] = flat_BP[:, begin:end].index_select(0, models_B)[:, None]
        if views > plain:
            _permute_rows(tensor, (first, last), maps, flat_BP, models_B, out_BVR[:, plain:], scratch)
    tokens = len(places_WD)
    places = (places_WD - base).clamp_(max=top - base).flatten()
    if len(models_B) == 1:
        for around_H, out_WD in zip(around_BVH[0], out_BVWD[models_B[0]], strict=True):
            torch.index_select(around_H, 0, places, out=out_WD[:tokens].view(-1))
    else:
        around_NH = around_BVH.transpose(0, 1).flatten(0, 1)
        out_VBWD = out_BVWD.transpose(0, 1)
        everything = len(models_B) == len(out_BVWD) and tokens == window  # chosen models are in their order
        if everything and out_VBWD.is_contiguous():
            torch.index_select(around_NH, 1, places, out=out_VBWD.view(len(around_NH), -1))
        else:
            out_VBWD[:, models_B, :tokens] = around_NH.index_select(1, places).view(views, -1, *places_WD.shape)
    out_BVWD[models_B, :, tokens:] = padding


def _permute_rows(
    tensor: PermutedTensor,
    rows: tuple[int, int],
    maps: dict[int, Tensor],
    flat_BP: Tensor,
    models_B: Tensor,
    out_BVR: Tensor,
    scratch: Tensor,
) -> None:
    """Write a range of rows of a tensor, as permuted for each view of chosen models, to `out_BVR`."""
    if not tensor.members:
        begin, end = (tensor.offset + row * tensor.row_size for row in rows)
        out_BVR.copy_(flat_BP[:, begin:end].index_select(0, models_B)[:, None])
        return
    whole = slice(tensor.offset, tensor.offset + tensor.size)
    count, views = out_BVR.shape[:2]
    if count == views == 1 and tensor.plain:
        source_SX = flat_BP[int(models_B), whole].view(tensor.shape[0], -1)
        _permute_plainly(tensor, rows, maps, source_SX, out_BVR[0, 0].view(-1, tensor.row_size), scratch)
        return
    rows_NR, columns_NRL = compose_index(tensor, rows, maps)
    columns = columns_NRL.shape[2]
    together = tensor.row_size // columns  # weights behind the last permuted axis
    unit = (-1, together) if together > 1 else (-1,)  # a last axis of one weight is several times slower than none
    if flat_BP.is_cuda or (tensor.size < _LARGE and len(rows_NR) > 1):
        first_N = torch.arange(0, count * tensor.shape[0], tensor.shape[0], device=rows_NR.device)
        first_N = first_N.int().repeat_interleave(views)
        index_NRL = (rows_NR + first_N[:, None])[:, :, None] * columns + columns_NRL
        stacked = flat_BP[:, whole].index_select(0, models_B).view(unit)
        out_BVR.copy_(stacked.index_select(0, index_NRL.flatten()).view(out_BVR.shape))
        return
    # Whole rows are fetched to the cache before their columns are picked: picked from memory they cost twice as much.
    block = min(rows_NR.shape[1], max(1, _BLOCK // tensor.row_size))
    cache_RX = scratch[: block * tensor.row_size].view(block, tensor.row_size)
    local_R1 = torch.arange(block, dtype=torch.int32)[:, None]
    for number, rows_R in enumerate(rows_NR):
        model, view = divmod(number, views)
        source = flat_BP[models_B[model], whole].reshape(tensor.shape[0], -1)
        out_RX = out_BVR[model, view].view(-1, tensor.row_size)
        if columns == 1:
            torch.index_select(source, 0, rows_R, out=out_RX)
            continue
        own_columns_RL = columns_NRL[number]
        for first in range(0, len(rows_R), block):
            part = slice(first, first + block)
            fetched_RX, picked_RX = cache_RX[: len(rows_R[part])], out_RX[part]
            torch.index_select(source, 0, rows_R[part], out=fetched_RX)
            if len(own_columns_RL) == 1:  # the same columns of all rows
                shape = (len(fetched_RX), *unit)
                torch.index_select(fetched_RX.view(shape), 1, own_columns_RL[0], out=picked_RX.view(shape))
            else:
                index = (local_R1[: len(fetched_RX)] * columns + own_columns_RL[part]).flatten()
                torch.index_select(fetched_RX.view(unit), 0, index, out=picked_RX.view(unit))


def _permute_plainly(
    tensor: PermutedTensor,
    rows: tuple[int, int],
    maps: dict[int, Tensor],
    source_SX: Tensor,
    out_RX: Tensor,
    scratch: Tensor,
) -> None:
    """Write a range of rows of a plain tensor of one model; most tensors are plain, and small ones are many."""
    by_axis = {member.axis: maps[member.pattern][0] for member in tensor.members}
    rows_R = by_axis[0][rows[0] : rows[1]] if 0 in by_axis else None
    if 1 not in by_axis:
        assert rows_R is not None
        torch.index_select(source_SX, 0, rows_R, out=out_RX)
        return
    block = max(1, _BLOCK // tensor.row_size)
    unit = tensor.shape[1:2] if tensor.row_size == tensor.shape[1] else (tensor.shape[1], -1)
    for first in range(0, len(out_RX), block):
        picked_RX = out_RX[first : first + block]
        if rows_R is None:
            fetched_RX = source_SX[rows[0] + first : rows[0] + first + len(picked_RX)]
        else:
            fetched_RX = scratch[: picked_RX.numel()].view(picked_RX.shape)
            torch.index_select(source_SX, 0, rows_R[first : first + block], out=fetched_RX)
        shape = (len(picked_RX), *unit)
        torch.index_select(fetched_RX.view(shape), 1, by_axis[1], out=picked_RX.view(shape))


def _make_scratch(plan: PermutationPlan, flat_BP: Tensor) -> Tensor:
    """Return room for a block of rows of any tensor, taken once: memory that is new costs more than the copy."""
    return flat_BP.new_empty(max(_BLOCK, *(tensor.row_size for tensor in plan.tensors)))


def _check_weights(layout: TokenLayout, flat_BP: Tensor) -> None:
    if flat_BP.ndim != 2 or flat_BP.shape[1] != layout.weights:
        raise ConfigError(f"weights of shape {tuple(flat_BP.shape)} are not models of {layout.weights} weights")


def _check_windows(layout: TokenLayout, starts_B: Tensor, window: int) -> None:
    if window < 1:
        raise ConfigError(f"a window must have at least 1 token, not {window}")
    if starts_B.numel() and not (int(starts_B.min()) >= 0 and int(starts_B.max()) < layout.length):
        raise ConfigError(
            f"windows that start at tokens {int(starts_B.min())} to {int(starts_B.max())} do not fit a layout of "
            f"{layout.length} tokens"
        )


def _check_permutations(groups: Sequence[PermutationGroup], permutations: Sequence[Tensor], batch: int) -> None:
    expected = [(batch, group.units) for group in groups]
    found = [tuple(permutation.shape) for permutation in permutations]
    if found != expected:
        raise ConfigError(f"permutations of shapes {found} do not fit groups that need {expected}")
