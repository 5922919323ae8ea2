"""Permutations as index maps of axes: what the groups of an architecture do to each tensor, ready for use.

All groups are folded into one index of a tensor's rows and one of the places within a row; a map of every weight is
never made.

Suffixes: N permuted models, G units of a group, K indices of a unit, S size of an axis, R selected rows, L places of
the permuted axes within a row, T tokens, D token width, P weights of a model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.groups import PermutationGroup


@dataclass(frozen=True, eq=False)
class _Architecture:
    """A layout with its groups: what a plan is made for and found again by, without reading every index."""

    layout: TokenLayout
    groups: tuple[PermutationGroup, ...]

    def __hash__(self) -> int:
        return hash((self.layout.digest, tuple(group.units for group in self.groups)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Architecture)
            and self.layout.digest == other.layout.digest
            and self.groups == other.groups
        )


@dataclass(frozen=True)
class AxisPattern:
    """How a group permutes an axis; many tensors share one (all norms of a residual stream)."""

    group: int
    indices_GK: Tensor
    size: int


@dataclass(frozen=True)
class TensorMember:
    """A member of a group: on which axis, and where in the plan its pattern is."""

    group: int
    pattern: int
    axis: int
    rows: tuple[int, int] | None


@dataclass(frozen=True)
class PermutedTensor:
    """A tensor of the layout and the members that permute it, in the order of their groups."""

    offset: int
    shape: tuple[int, ...]
    members: tuple[TensorMember, ...]

    @property
    def row_size(self) -> int:
        """Weights of one index of axis 0."""
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.row_size

    @cached_property
    def plain(self) -> bool:
        """Whether at most one member permutes all rows, and at most one the columns of all rows."""
        axes = [member.axis for member in self.members]
        return len(set(axes)) == len(axes) and max(axes) <= 1 and not any(member.rows for member in self.members)


@dataclass(frozen=True)
class PermutationPlan:
    """What is prepared once for a layout and its groups."""

    layout: TokenLayout
    tensors: tuple[PermutedTensor, ...]
    patterns: tuple[AxisPattern, ...]
    device: torch.device

    @cached_property
    def places_TD(self) -> Tensor:
        """`gather_TD` in int32, on the device, with the number of weights for padding."""
        padding = self.layout.gather_TD < 0
        return self.layout.gather_TD.int().masked_fill_(padding, self.layout.weights).to(self.device)

    @cached_property
    def shown(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token, tensor and row of the tensor for every row of which a token shows weights, in the order of tokens."""
        # Rows are numbered through all tensors; a token shows a new one wherever the number changes within it.
        counts = torch.tensor([tensor.shape[0] for tensor in self.tensors])
        row_sizes = torch.tensor([tensor.row_size for tensor in self.tensors])
        rows = torch.arange(int(counts.sum()), dtype=torch.int32)
        row_P = rows.repeat_interleave(row_sizes.repeat_interleave(counts))
        row_TD = row_P[self.layout.gather_TD.clamp(min=0)].masked_fill_(self.layout.gather_TD < 0, -1)
        changed_TD = row_TD >= 0
        changed_TD[:, 1:] &= row_TD[:, 1:] != row_TD[:, :-1]
        row = row_TD[changed_TD].long()
        tensor = torch.arange(len(self.tensors)).repeat_interleave(counts)[row]
        first_row = counts.cumsum(0) - counts
        return changed_TD.nonzero()[:, 0].numpy(), tensor.numpy(), (row - first_row[tensor]).numpy()

    def find_visible(self, start: int, stop: int) -> list[tuple[PermutedTensor, int, int]]:
        """Return the tensors that tokens `start` to `stop` show, with the range of their rows."""
        token, tensor, row = self.shown
        part = slice(*np.searchsorted(token, (start, stop)))
        first, last = np.full(len(self.tensors), np.iinfo(np.int64).max), np.full(len(self.tensors), -1)
        np.minimum.at(first, tensor[part], row[part])
        np.maximum.at(last, tensor[part], row[part])
        return [(self.tensors[i], int(first[i]), int(last[i]) + 1) for i in np.flatnonzero(last >= 0)]

    def map_axes(self, permutations: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return for each pattern of the permuted groups which index of the axis each index shows, (N, S) int64."""
        maps = {}
        for number, pattern in enumerate(self.patterns):
            if pattern.group in permutations:
                old_NGK = pattern.indices_GK[permutations[pattern.group]]
                map_NS = torch.arange(pattern.size, device=old_NGK.device).repeat(len(old_NGK), 1)
                map_NS[:, pattern.indices_GK.flatten()] = old_NGK.flatten(1)
                maps[number] = map_NS
        return maps


def compose_index(tensor: PermutedTensor, rows: tuple[int, int], maps: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Fold the members of a tensor into one index of rows and one over the other axes, up to the last permuted one.

    Args:
        tensor: the tensor, which has members.
        rows: range of rows of the permuted tensor that are wanted.
        maps: for each pattern which index of the axis each index shows, (N, S).

    Returns:
        For each wanted row the unpermuted one, (N, R) int32, and for each place in it the unpermuted one,
        (N, 1 or R, L) int32: the same places for all rows, or for each row its own.
    """
    leading = tensor.shape[: 1 + max(member.axis for member in tensor.members)]
    example_NS = maps[tensor.members[0].pattern]
    steps = [torch.arange(size, device=example_NS.device).expand(len(example_NS), size) for size in leading]
    # Columns may move in some rows only (grouped convolutions): then every row has a map of columns of its own, and
    # later permutations of rows take it along.
    columns_NSS: Tensor | None = None
    if any(member.rows is not None for member in tensor.members):
        columns_NSS = steps[1][:, None, :].repeat(1, leading[0], 1)
    for member in tensor.members:
        map_NS, axis = maps[member.pattern], member.axis
        if columns_NSS is None or axis != 1:
            steps[axis] = steps[axis].gather(1, map_NS)
            if columns_NSS is not None and axis == 0:
                columns_NSS = columns_NSS.gather(1, map_NS[:, :, None].expand_as(columns_NSS))
        else:
            part_NSS = columns_NSS[:, slice(*member.rows)] if member.rows else columns_NSS
            part_NSS.copy_(part_NSS.gather(2, map_NS[:, None, :].expand_as(part_NSS)))
    places_NRL = torch.zeros(1, 1, 1, dtype=torch.int32, device=example_NS.device)
    for axis in range(1, len(leading)):
        step = steps[axis][:, None, :] if columns_NSS is None or axis > 1 else columns_NSS[:, rows[0] : rows[1]]
        places_NRL = (places_NRL[..., None] * leading[axis] + step.int()[:, :, None, :]).flatten(2)
    return steps[0][:, rows[0] : rows[1]].int(), places_NRL.expand(len(example_NS), -1, -1)


def make_plan(layout: TokenLayout, groups: Sequence[PermutationGroup], device: torch.device) -> PermutationPlan:
    """Return the plan of an architecture, which is made once for each device."""
    return _make_plan(_Architecture(layout, tuple(groups)), device)


@lru_cache(maxsize=64)
def _make_plan(architecture: _Architecture, device: torch.device) -> PermutationPlan:
    layout = architecture.layout
    names = {alias: entry.name for entry in layout.tensors for alias in (entry.name, *entry.tied)}
    shapes = {entry.name: entry.shape or (1,) for entry in layout.tensors}
    members: dict[str, list[TensorMember]] = {name: [] for name in shapes}
    patterns: dict[tuple, int] = {}
    for number, group in enumerate(architecture.groups):
        for member in group.members:
            if member.tensor not in names:  # running statistics, when the layout leaves them out
                continue
            name = names[member.tensor]
            key = (number, member.indices, shapes[name][member.axis])
            ready = TensorMember(number, patterns.setdefault(key, len(patterns)), member.axis, member.rows)
            if ready not in members[name]:  # a tied tensor may be named twice
                members[name].append(ready)
    tensors = tuple(PermutedTensor(layout.offsets[name], shape, tuple(members[name])) for name, shape in shapes.items())
    used = tuple(AxisPattern(number, torch.tensor(indices, device=device), size) for number, indices, size in patterns)
    return PermutationPlan(layout, tensors, used, device)
