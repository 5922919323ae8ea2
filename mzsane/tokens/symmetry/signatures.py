"""What no symmetry changes: signatures of hidden units and of whole models, and the start that they give to matching.

A unit's weights change places and signs when other units do, but their absolute values stay: moments of them tell the
unit again in an exact copy, whatever the order. Weight matching from there has nothing left to do; from the order in
which models lie it is a descent that may stop short. Weights with scales have to be balanced first (`balance_scales`).

Suffixes: B models, P weights of a model, G units of a group, U units inside of a block, F weights of a unit, D numbers
of a signature, Q numbers of a fingerprint, S size of an axis.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.symmetry.groups import PermutationGroup
from mzsane.tokens.symmetry.nesting import GroupRelations, relate_groups
from mzsane.tokens.symmetry.permute import permute_weights
from mzsane.tokens.symmetry.scales import scale_units, weights_of_units

Signatures = dict[int, Tensor]


def sign_units(layout: TokenLayout, groups: Sequence[PermutationGroup], flat_BP: Tensor) -> Signatures:
    """Return for each group that touches the layout what tells its units apart, (B, G, D).

    That is, for each tensor axis that a unit owns weights on, their norms of power two and four: the first grows with
    all of them, the second with the largest.
    """
    squares = layout.unflatten(flat_BP.square())
    found = {}
    for number, group in enumerate(groups):
        numbers = []
        for member in group.members:
            if member.tensor in squares:
                square_BGF = weights_of_units(squares, member)
                numbers += [square_BGF.sum(2).sqrt(), square_BGF.square().sum(2).pow(0.25)]
        if numbers:
            found[number] = torch.stack(numbers, dim=2)
    return found


def fingerprint_models(layout: TokenLayout, groups: Sequence[PermutationGroup], flat_BP: Tensor) -> Tensor:
    """Return numbers of each model that no order and no signs change, (B, Q).

    They are the norms, of power two and four, of each tensor's rows and columns, sorted. Columns of which some rows are
    permuted by themselves (of a convolution in groups) are left out.
    """
    apart = {member.tensor for group in groups for member in group.members if member.rows is not None}
    pieces = []
    for name, square in layout.unflatten(flat_BP.square()).items():
        for axis in range(1, min(square.ndim, 2 if name in apart else 3)):
            square_BSF = square.movedim(axis, 1).flatten(2) if square.ndim > 2 else square[:, :, None]
            pieces += [square_BSF.sum(2).sqrt(), square_BSF.square().sum(2).pow(0.25)]
    return torch.cat([norm_BS.sort(dim=1).values for norm_BS in pieces], dim=1)


def order_by_signatures(
    layout: TokenLayout,
    groups: Sequence[PermutationGroup],
    flat_BP: Tensor,
    reference_BP: Tensor,
    ours: Signatures,
    theirs: Signatures,
) -> Tensor:
    """Return models with the units of each group in the order and with the signs of the reference, as signatures tell.

    Args:
        layout: the layout of the architecture.
        groups: its groups, the groups inside of a block before the block.
        flat_BP: the models.
        reference_BP: for each the model that it is ordered like.
        ours: signatures of the models.
        theirs: of the references.
    """
    relations = relate_groups(layout, groups)
    permutations = [torch.arange(group.units).repeat(len(flat_BP), 1) for group in groups]
    for number, found in enumerate(relations):
        if number in ours and not found.later:
            permutations[number] = _assign(ours[number], theirs[number])
            _order_inside(found, permutations, number, ours, theirs)
    ordered_BP = permute_weights(layout, groups, permutations, flat_BP)
    # Layer after layer: what makes a unit's value comes from units whose signs are chosen.
    for group in groups:
        if group.sign:
            gain_BG = _multiply_own(layout, group, ordered_BP, reference_BP)
            scale_units(layout, group, ("out", "in"), torch.where(gain_BG < 0, -1.0, 1.0), ordered_BP)
    return ordered_BP


def _order_inside(
    found: GroupRelations, permutations: list[Tensor], number: int, ours: Signatures, theirs: Signatures
) -> None:
    """Order the units inside of each block like those of the block whose place it takes."""
    place_BG = permutations[number].argsort(1)
    for numbers in zip(*found.children, strict=True):  # the groups that correspond, one of each block
        their_BGUD = torch.stack([theirs[inner] for inner in numbers], dim=1)
        for old, inner in enumerate(numbers):
            their_BUD = their_BGUD[torch.arange(len(place_BG)), place_BG[:, old]]
            permutations[inner] = _assign(ours[inner], their_BUD)


def _assign(our_BGD: Tensor, their_BGD: Tensor) -> Tensor:
    """Return for each of their units ours with the most similar signature, each once, (B, G)."""
    cost_BGG = torch.cdist(their_BGD, our_BGD, compute_mode="donot_use_mm_for_euclid_dist").square()
    choices = [linear_sum_assignment(cost)[1] for cost in cost_BGG.numpy()]
    return torch.from_numpy(np.array(choices, dtype=np.int64).reshape(cost_BGG.shape[:2]))


def _multiply_own(layout: TokenLayout, group: PermutationGroup, ours_BP: Tensor, theirs_BP: Tensor) -> Tensor:
    """Return for each unit the inner product of the weights that make it with those in the reference, (B, G)."""
    ours, theirs = layout.unflatten(ours_BP), layout.unflatten(theirs_BP)
    gain_BG = ours_BP.new_zeros(len(ours_BP), group.units)
    for member in group.members:
        if member.role == "out" and member.tensor in ours:
            gain_BG += (weights_of_units(ours, member) * weights_of_units(theirs, member)).sum(2)
    return gain_BG
