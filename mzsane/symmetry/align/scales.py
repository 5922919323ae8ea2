"""Units as rows: what each owns of the weights, and the scales that may be moved from one side of a unit to the other.

A ReLU-like unit may have what makes it scaled by s > 0 and what uses it by 1/s; a tanh-like one may have its sign
flipped on both sides. Neither is made canonical unless asked for.

Suffixes: B models, P weights of a model, G units of a group, K indices of a unit, F weights of a unit, S size of an
axis.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.groups import GroupMember, PermutationGroup

_MAX_SWEEPS = 1000
_BALANCED = 1e-10  # largest logarithm of a scale that still counts as none


def balance_scales(layout: TokenLayout, groups: Sequence[PermutationGroup], flat_BP: Tensor) -> list[Tensor]:
    """Find scales by which each unit's `out` and `in` weights get the same norm, where its group allows it.

    Balancing one layer changes the norms of the next, therefore all are balanced in turn until none changes. The
    balanced weights do not depend on the scales before. A unit whose weights on one side are all zero keeps them.

    Returns:
        For each group (B, units) float64; ones where it has no scale symmetry.
    """
    balanced_BP = flat_BP.to(torch.float64, copy=True)
    scales = [balanced_BP.new_ones(len(flat_BP), group.units) for group in groups]
    for _ in range(_MAX_SWEEPS):
        largest = 0.0
        for number, group in enumerate(groups):
            if not group.scale or not len(flat_BP):
                continue
            tensors = layout.unflatten(balanced_BP)
            squares = {role: balanced_BP.new_zeros(len(flat_BP), group.units) for role in ("out", "in")}
            for member in group.members:
                if member.tensor in tensors:
                    squares[member.role] += weights_of_units(tensors, member).square().sum(2)
            scale_BG = (squares["in"] / squares["out"]) ** 0.25
            scale_BG = torch.where(scale_BG.isfinite() & (scale_BG > 0), scale_BG, 1.0)
            scale_units(layout, group, ("out",), scale_BG, balanced_BP)
            scale_units(layout, group, ("in",), 1 / scale_BG, balanced_BP)
            scales[number] *= scale_BG
            largest = max(largest, float(scale_BG.log().abs().max()))
        if largest < _BALANCED:
            break
    return scales


def scale_weights(
    layout: TokenLayout, groups: Sequence[PermutationGroup], scales: Sequence[Tensor], flat_BP: Tensor
) -> Tensor:
    """Multiply what makes each unit by its scale and divide what uses it; the function stays."""
    scaled_BP = flat_BP.to(torch.float64, copy=True)
    for group, scale_BG in zip(groups, scales, strict=True):
        if group.scale:
            scale_units(layout, group, ("out",), scale_BG, scaled_BP)
            scale_units(layout, group, ("in",), 1 / scale_BG, scaled_BP)
    return scaled_BP.to(flat_BP.dtype)


def weights_of_units(tensors: Mapping[str, Tensor], member: GroupMember) -> Tensor:
    """Return what each unit owns of stacked tensors by one member, (B, G, F)."""
    value = tensors[member.tensor]
    if member.rows is not None:
        value = value[:, slice(*member.rows)]
    indices = value.shape[member.axis + 1]
    value_BSF = value.movedim(member.axis + 1, 1).reshape(len(value), indices, math.prod(value.shape[1:]) // indices)
    indices_GK = torch.tensor(member.indices)
    if not indices_GK.flatten().equal(torch.arange(value_BSF.shape[1])):
        value_BSF = value_BSF.index_select(1, indices_GK.flatten())
    return value_BSF.reshape(len(value), len(indices_GK), indices_GK.shape[1] * value_BSF.shape[2])


def scale_units(
    layout: TokenLayout, group: PermutationGroup, roles: Sequence[str], scale_BG: Tensor, flat_BP: Tensor
) -> None:
    """Multiply what each unit owns, in place."""
    tensors = layout.unflatten(flat_BP)
    for member in group.members:
        if member.tensor in tensors and member.role in roles:
            value = tensors[member.tensor]
            part = (value if member.rows is None else value[:, slice(*member.rows)]).movedim(member.axis + 1, 1)
            scale_BS = scale_BG.new_ones(part.shape[:2])
            indices_GK = torch.tensor(member.indices)
            scale_BS[:, indices_GK.flatten()] = scale_BG.repeat_interleave(indices_GK.shape[1], dim=1)
            part.mul_(scale_BS.view(*part.shape[:2], *[1] * (part.ndim - 2)).to(part.device))
