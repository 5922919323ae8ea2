"""Weight matching: coordinate descent over the permutation groups of many models at once.

One group after another is put in the order that has the largest inner product with the reference while the other
groups stay, until no group improves (Git Re-Basin, arXiv 2209.04836, algorithm 1). A model leaves the loop when none
of its groups can improve.

Suffixes: B models, P weights of a model, Q those of the tensors that a group touches, S groups, G units of a group,
U units inside of a block, F weights of a unit, X any.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.align.nesting import relate_groups
from mzsane.symmetry.align.scales import scale_units, weights_of_units
from mzsane.symmetry.apply.permute import permute_weights
from mzsane.symmetry.groups import GroupMember, PermutationGroup

_MAX_SWEEPS = 100


@dataclass(frozen=True)
class MatchingStep:
    """One coordinate of the descent: a group, and what it needs of the layout.

    Attributes:
        number: which group.
        layout: of the tensors that the group touches, alone; Q is its number of weights.
        slices: where these tensors are in the flat vector of a model.
        reference_BQ: their weights in the reference, of each model or of all: then B is 1.
        later: groups behind it that do not commute with it; they are undone while the group is matched.
        children: for each unit of a block group the groups inside it, in corresponding order; or empty.
        neighbours: groups that touch a tensor of this one.
        signed: whether signs are chosen.
    """

    number: int
    layout: TokenLayout
    slices: tuple[slice, ...]
    reference_BQ: Tensor
    later: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]
    neighbours: tuple[int, ...]
    signed: bool


def prepare_steps(
    layout: TokenLayout, groups: Sequence[PermutationGroup], reference_BP: Tensor, signs: bool
) -> list[MatchingStep]:
    """Prepare a step for each group that touches the layout; the reference is one for all models, or one for each."""
    steps = []
    for number, (group, relations) in enumerate(zip(groups, relate_groups(layout, groups), strict=True)):
        entries = tuple(entry for entry in layout.tensors if entry.name in relations.tensors)
        if not entries:
            continue
        slices = tuple(slice(layout.offsets[e.name], layout.offsets[e.name] + e.size) for e in entries)
        steps.append(
            MatchingStep(
                number=number,
                layout=TokenLayout(token_dim=1, tensors=entries),
                slices=slices,
                reference_BQ=torch.cat([reference_BP[:, part] for part in slices], dim=1),
                later=relations.later,
                children=relations.children,
                neighbours=relations.neighbours,
                signed=signs and group.sign and not relations.later,
            )
        )
    return steps


@dataclass(frozen=True)
class Descent:
    """What is found for models so far.

    Attributes:
        work_BP: their weights, permuted and with signs flipped; changed in place as the other lists are.
        permutations: for each group (B, units) int64.
        signs: for each group (B, units) int8, of the permuted units.
    """

    work_BP: Tensor
    permutations: list[Tensor]
    signs: list[Tensor]

    def permute(
        self,
        step: MatchingStep,
        groups: Sequence[PermutationGroup],
        chosen: Sequence[int],
        models_B: Tensor,
        weights_BQ: Tensor,
        *,
        undo: bool = False,
    ) -> Tensor:
        """Apply what is found for some groups to the weights of a step, or undo it."""
        found = [self.permutations[number][models_B] for number in chosen]
        selected = [groups[number] for number in chosen]
        if undo:
            selected, found = selected[::-1], [permutation_BG.argsort(1) for permutation_BG in found[::-1]]
        return permute_weights(step.layout, selected, found, weights_BQ)


def match_models(steps: Sequence[MatchingStep], groups: Sequence[PermutationGroup], work_BP: Tensor) -> Descent:
    """Match models, in place, until none of their groups improves."""
    count = len(work_BP)
    state = Descent(
        work_BP,
        [torch.arange(group.units).repeat(count, 1) for group in groups],
        [torch.ones(count, group.units, dtype=torch.int8) for group in groups],
    )
    open_BS = torch.ones(count, len(groups), dtype=torch.bool)  # whether a group may still improve
    for _ in range(_MAX_SWEEPS):
        for step in steps:
            models_B = open_BS[:, step.number].nonzero().squeeze(1)
            open_BS[:, step.number] = False
            if len(models_B):
                improved_B = _take_step(step, groups, state, models_B)
                open_BS[improved_B[:, None], torch.tensor(step.neighbours, dtype=torch.int64)] = True
        if not open_BS[:, [step.number for step in steps]].any():
            break
    return state


def _take_step(step: MatchingStep, groups: Sequence[PermutationGroup], state: Descent, models_B: Tensor) -> Tensor:
    """Put the units of one group in the best order where that raises the objective; return the models that improved."""
    group = groups[step.number]
    weights_BQ = torch.cat([state.work_BP[models_B, part] for part in step.slices], dim=1)
    reference_BQ = step.reference_BQ if len(step.reference_BQ) == 1 else step.reference_BQ[models_B]
    if step.later:
        # The inner product stays the same when both sides are permuted alike.
        weights_BQ = state.permute(step, groups, step.later, models_B, weights_BQ, undo=True)
        reference_BQ = reference_BQ.expand(len(models_B), -1)
        reference_BQ = state.permute(step, groups, step.later, models_B, reference_BQ, undo=True)
    sign_BG = torch.ones(len(models_B), group.units, dtype=torch.int8)
    if step.children:
        before_B = measure_objective(weights_BQ, reference_BQ)
        weights_BQ = state.permute(step, groups, [step.number], models_B, weights_BQ, undo=True)
        chosen = _match_blocks(step, groups, weights_BQ, reference_BQ)
    else:
        gain_BGG = _multiply_members(step, group.members, weights_BQ, reference_BQ)
        choice_BG = _assign(gain_BGG.abs() if step.signed else gain_BGG)
        if step.signed:
            sign_BG[gain_BGG.gather(2, choice_BG[:, :, None]).squeeze(2) < 0] = -1
        # Most steps of a descent find that nothing is to be moved.
        moved_B = ((choice_BG != torch.arange(group.units)) | (sign_BG < 0)).any(dim=1)
        models_B, weights_BQ, sign_BG = models_B[moved_B], weights_BQ[moved_B], sign_BG[moved_B]
        reference_BQ = reference_BQ[moved_B] if len(reference_BQ) > 1 else reference_BQ
        if not len(models_B):
            return models_B
        before_B = measure_objective(weights_BQ, reference_BQ)
        chosen = {step.number: choice_BG[moved_B]}
    permuted_BQ = permute_weights(step.layout, [groups[n] for n in chosen], list(chosen.values()), weights_BQ)
    if step.signed:
        scale_units(step.layout, group, ("out", "in"), sign_BG, permuted_BQ)
    # A gain below the precision of the products is rounding.
    noise_B = torch.finfo(weights_BQ.dtype).eps * weights_BQ.norm(dim=1) * reference_BQ.norm(dim=1)
    better_B = measure_objective(permuted_BQ, reference_BQ) > before_B + noise_B
    improved_B = models_B[better_B]
    if not len(improved_B):
        return improved_B
    for number, choice_BG in chosen.items():
        choice_BG = choice_BG[better_B]
        if number == step.number:
            state.signs[number][improved_B] = state.signs[number][improved_B].gather(1, choice_BG) * sign_BG[better_B]
        if number != step.number or not step.children:
            choice_BG = state.permutations[number][improved_B].gather(1, choice_BG)
        state.permutations[number][improved_B] = choice_BG
    permuted_BQ = permuted_BQ[better_B]
    if step.later:
        permuted_BQ = state.permute(step, groups, step.later, improved_B, permuted_BQ)
    sizes = [part.stop - part.start for part in step.slices]
    for part, piece_BQ in zip(step.slices, permuted_BQ.split(sizes, dim=1), strict=True):
        state.work_BP[improved_B, part] = piece_BQ
    return improved_B


def _match_blocks(
    step: MatchingStep, groups: Sequence[PermutationGroup], weights_BQ: Tensor, reference_BQ: Tensor
) -> dict[int, Tensor]:
    """Match the units of a block group, each pair by the best assignment of the units inside.

    Returns:
        Permutations of the groups inside of the blocks, to be applied first, and of the blocks.
    """
    inside = {(member.tensor, member.axis) for number in step.children[0] for member in groups[number].members}
    own = [member for member in groups[step.number].members if (member.tensor, member.axis) not in inside]
    blocks = groups[step.number].units
    gain_BGG = _multiply_members(step, own, weights_BQ, reference_BQ)
    inner = []
    for numbers in zip(*step.children, strict=True):  # the groups that correspond, one of each block
        units = groups[numbers[0]].units
        pair_BGG = weights_BQ.new_zeros(1, 1, 1)
        for members in zip(*(groups[number].members for number in numbers), strict=True):
            pair_BGG = pair_BGG + _multiply_members(step, members, weights_BQ, reference_BQ, together=True)
        pair_BGGUU = pair_BGG.unflatten(2, (blocks, units)).unflatten(1, (blocks, units)).transpose(2, 3)
        inner_XU = _assign(pair_BGGUU.flatten(0, 2))
        best_X = pair_BGGUU.flatten(0, 2).gather(2, inner_XU[:, :, None]).sum((1, 2))
        gain_BGG = gain_BGG + best_X.view(-1, blocks, blocks)
        inner.append((numbers, inner_XU.view(-1, blocks, blocks, units)))
    order_BG = _assign(gain_BGG)
    place_BG = order_BG.argsort(1)  # the new place of each old block
    models_B = torch.arange(len(order_BG))
    chosen = {}
    for numbers, inner_BGGU in inner:
        for old, number in enumerate(numbers):
            chosen[number] = inner_BGGU[models_B, place_BG[:, old], old]
    return {**chosen, step.number: order_BG}


def _multiply_members(
    step: MatchingStep, members: Sequence[GroupMember], weights_BQ: Tensor, reference_BQ: Tensor, together: bool = False
) -> Tensor:
    """Return the inner products of the reference's units (axis 1) with the models' (axis 2).

    They are summed over members; with `together`, the units of all members are compared with each other instead.
    """
    theirs, ours = step.layout.unflatten(reference_BQ), step.layout.unflatten(weights_BQ)
    pairs = [(weights_of_units(theirs, m), weights_of_units(ours, m)) for m in members if m.tensor in ours]
    if together and pairs:
        pairs = [(torch.cat([a for a, _ in pairs], dim=1), torch.cat([b for _, b in pairs], dim=1))]
    gain_BGG = weights_BQ.new_zeros(1, 1, 1)
    for their_BGF, our_BGF in pairs:
        if len(their_BGF) == 1:  # one product for all models
            product_XG = our_BGF.flatten(0, 1) @ their_BGF[0].T
            gain_BGG = gain_BGG + product_XG.view(*our_BGF.shape[:2], -1).transpose(1, 2)
        else:
            gain_BGG = gain_BGG + their_BGF @ our_BGF.transpose(1, 2)
    return gain_BGG


def _assign(gain_BGG: Tensor) -> Tensor:
    """Return for each row of each matrix the column that the best assignment gives it, (B, G)."""
    choices = [linear_sum_assignment(gain, maximize=True)[1] for gain in gain_BGG.numpy()]
    return torch.from_numpy(np.array(choices, dtype=np.int64).reshape(gain_BGG.shape[:2]))


def measure_objective(weights_BP: Tensor, reference_BP: Tensor) -> Tensor:
    """Return the inner product of each model with the reference, summed in float64."""
    return (weights_BP * reference_BP).sum(1, dtype=torch.float64)
