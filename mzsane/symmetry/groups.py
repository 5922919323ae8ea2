"""Permutation groups as data: which indices of which tensor axes each hidden unit owns.

A group is a set of hidden units that may change places without changing the network's function (Git Re-Basin, arXiv
2209.04836). A unit owns indices on several tensor axes: the rows of its layer's weight and bias, its norm parameters
and statistics, the columns of every consumer (several where a flatten stands between). The units of a block group are
the heads of an attention or the groups of a convolution: each owns what the units inside it own, in the same order.

Suffixes: B models, G units of a group, K indices that a unit owns on one axis.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class GroupMember(BaseModel):
    """One tensor axis that a group permutes.

    Attributes:
        tensor: name of the parameter or running statistic.
        axis: the axis.
        indices: for each unit the indices that it owns on the axis; units own equally many, in corresponding order.
        rows: only in these rows (first, past the last) of axis 0: the columns of one group of a grouped convolution.
        role: `out` when the weights make the unit's value (rows, bias), `in` when they use it (columns of consumers).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tensor: str
    axis: int
    indices: tuple[tuple[int, ...], ...]
    rows: tuple[int, int] | None = None
    role: Literal["out", "in"] = "out"


class PermutationGroup(BaseModel):
    """Hidden units that may be permuted together.

    Attributes:
        units: how many.
        members: what they own.
        sign: flipping the sign of all that a unit owns keeps the function (units behind an odd activation: tanh).
        scale: so does scaling a unit's `out` members by s > 0 and its `in` members by 1/s (ReLU-like activations).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    units: int
    members: tuple[GroupMember, ...]
    sign: bool = False
    scale: bool = False


def draw_permutations(groups: Sequence[PermutationGroup], batch: int, generator: torch.Generator) -> list[Tensor]:
    """Draw `batch` uniformly random permutations of every group: a list of (batch, units) int64."""
    return [torch.rand(batch, group.units, generator=generator).argsort(dim=1) for group in groups]


def intersect_groups(found: Sequence[Sequence[PermutationGroup]]) -> tuple[PermutationGroup, ...]:
    """Return the groups that several networks of one layout have in common; signs and scales where all allow them."""

    def strip(group: PermutationGroup) -> PermutationGroup:
        return group.model_copy(update={"sign": False, "scale": False})

    others = [{strip(group): group for group in groups} for groups in found[1:]]
    kept = []
    for group in found[0]:
        alike = [group, *(groups[strip(group)] for groups in others if strip(group) in groups)]
        if len(alike) == len(found):
            flags = {"sign": all(one.sign for one in alike), "scale": all(one.scale for one in alike)}
            kept.append(group.model_copy(update=flags))
    return tuple(kept)
