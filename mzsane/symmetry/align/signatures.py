"""Signatures of hidden units: numbers that no element of the symmetry group changes.

The norms of what a unit owns of each tensor stay the same whatever the order of the other units and whatever their
signs; in balanced weights (`balance_scales`) they do not depend on scales either. So a copy of a model with its units
in another order has the same signatures in another order, and can be told by them.

Suffixes: B models, P weights of a model, G units of a group, M numbers of a unit, F numbers of a model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.align.nesting import GroupRelations, relate_groups
from mzsane.symmetry.align.scales import scale_units, weights_of_units
from mzsane.symmetry.groups import PermutationGroup


class Signatures:
    """Computes and matches the signatures of units of one architecture.

    Args:
        layout: where the weights sit.
        groups: the architecture's groups.
    """

    def __init__(self, layout: TokenLayout, groups: Sequence[PermutationGroup]) -> None:
        self.layout, self.groups = layout, groups
        self._relations: list[GroupRelations] = relate_groups(layout, groups)

    def measure(self, flat_BP: Tensor) -> list[Tensor]:
        """Return for each group the Euclidean and the absolute norm of what its units own of each tensor, (B, G, M)."""
        tensors = self.layout.unflatten(flat_BP)
        found = []
        for group in self.groups:
            parts = [weights_of_units(tensors, member) for member in group.members if member.tensor in tensors]
            norms = [norm for part_BGF in parts for norm in (part_BGF.norm(dim=2), part_BGF.abs().sum(dim=2))]
            found.append(torch.stack(norms, dim=2) if norms else flat_BP.new_zeros(len(flat_BP), group.units, 0))
        return found

    def summarise(self, signatures: Sequence[Tensor]) -> Tensor:
        """Return numbers of whole models that no order of their units changes, (B, F).

        Units inside of a block are left out: they change places with it.
        """
        kept = [
            signature_BGM.sort(dim=1).values.flatten(1)
            for signature_BGM, relations in zip(signatures, self._relations, strict=True)
            if not relations.later
        ]
        return torch.cat(kept, dim=1)

    def orient(self, flat_BP: Tensor, others_BP: Tensor) -> Tensor:
        """Return models whose units have the signs of another model's, where groups allow it and orders correspond.

        A unit's sign is that of the inner product of what makes it with what makes the other's: the groups come in the
        order of the layers, so that what makes a unit has its signs before.
        """
        oriented_BP = flat_BP.clone()
        theirs = self.layout.unflatten(others_BP)
        for group, relations in zip(self.groups, self._relations, strict=True):
            if group.sign and not relations.later:
                ours = self.layout.unflatten(oriented_BP)
                made = [member for member in group.members if member.role == "out" and member.tensor in ours]
                gain_BG = flat_BP.new_zeros(len(flat_BP), group.units)
                for member in made:
                    gain_BG += (weights_of_units(theirs, member) * weights_of_units(ours, member)).sum(dim=2)
                scale_units(self.layout, group, ("out", "in"), torch.where(gain_BG < 0, -1.0, 1.0), oriented_BP)
        return oriented_BP

    def match(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Tensor]:
        """Return for each group the order of each model's units that is most like those of another model, (B, units).

        Args:
            ours: signatures of the models, (B, G, M).
            theirs: those of the model that each is compared with, (B, G, M).
        """
        orders: list[Tensor | None] = [None] * len(self.groups)
        inside = {child for relations in self._relations for unit in relations.children for child in unit}
        models_B = torch.arange(len(ours[0])) if ours else torch.arange(0)
        for number, relations in enumerate(self._relations):
            if number in inside:
                continue
            order_BG = _assign(ours[number], theirs[number])
            orders[number] = order_BG
            for unit, children in enumerate(relations.children):
                # Where the block of this unit goes, the units inside of it meet those of that block.
                goes_B = (order_BG == unit).int().argmax(dim=1)
                for place, child in enumerate(children):
                    of_blocks_UBGM = torch.stack([theirs[unit[place]] for unit in relations.children])
                    orders[child] = _assign(ours[child], of_blocks_UBGM[goes_B, models_B])
        return [order for order in orders if order is not None]


def _assign(ours_BGM: Tensor, theirs_BGM: Tensor) -> Tensor:
    """Return for each of their units ours that the best assignment gives it, (B, G)."""
    scale_BM = theirs_BGM.mean(dim=1, keepdim=True).clamp(min=torch.finfo(theirs_BGM.dtype).tiny)
    cost_BGG = torch.cdist(theirs_BGM / scale_BM, ours_BGM / scale_BM, compute_mode="donot_use_mm_for_euclid_dist")
    choices = [linear_sum_assignment(cost)[1] for cost in cost_BGG.double().numpy()]
    return torch.from_numpy(np.array(choices, dtype=np.int64).reshape(ours_BGM.shape[:2]))
