"""How permutation groups relate: which touch the same tensors, which do not commute, which lie inside of a block."""

from collections.abc import Sequence
from dataclasses import dataclass

from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.groups import GroupMember, PermutationGroup


@dataclass(frozen=True)
class GroupRelations:
    """The relations of one group to the others, which are meant by their numbers.

    Attributes:
        tensors: the tensors of the layout that the group touches.
        neighbours: groups that touch one of these too (and the group itself when it touches two axes of one).
        later: groups behind it that have to be undone, in their order, before it can be applied by itself.
        children: for a block group the groups inside of each unit, in corresponding order; otherwise empty.
    """

    tensors: frozenset[str]
    neighbours: tuple[int, ...]
    later: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Touch:
    """A member with all the indices that its group owns by it."""

    group: int
    member: GroupMember
    indices: frozenset[int]


def relate_groups(layout: TokenLayout, groups: Sequence[PermutationGroup]) -> list[GroupRelations]:
    """Find the relations of every group within the tensors of a layout."""
    names = {alias: entry.name for entry in layout.tensors for alias in (entry.name, *entry.tied)}
    touches: dict[str, list[_Touch]] = {}
    tensors: list[set[str]] = [set() for _ in groups]
    for number, group in enumerate(groups):
        for member in group.members:
            if member.tensor in names:
                indices = frozenset(index for unit in member.indices for index in unit)
                touches.setdefault(names[member.tensor], []).append(_Touch(number, member, indices))
                tensors[number].add(names[member.tensor])
    neighbours: list[set[int]] = [set() for _ in groups]
    conflicts: list[set[int]] = [set() for _ in groups]
    for found in touches.values():
        for a in found:
            for b in found:
                if a.group != b.group or a.member.axis != b.member.axis:
                    neighbours[a.group].add(b.group)
                if a.group < b.group and not (_commute(a, b) and _commute(b, a)):
                    conflicts[a.group].add(b.group)
    children = [
        _find_children(groups, number, [inner for inner in range(number) if number in conflicts[inner]])
        for number in range(len(groups))
    ]
    return [
        GroupRelations(
            frozenset(tensors[number]),
            tuple(sorted(neighbours[number])),
            _find_later(number, conflicts),
            # Blocks of blocks are matched as they lie: what corresponds inside of them is not known.
            () if any(children[inner] for unit in children[number] for inner in unit) else children[number],
        )
        for number in range(len(groups))
    ]


def _commute(a: _Touch, b: _Touch) -> bool:
    """Tell whether two members of a tensor commute, as far as `a`'s rows are concerned."""
    if a.member.axis == b.member.axis:
        rows_a, rows_b = a.member.rows, b.member.rows
        apart = rows_a is not None and rows_b is not None and (rows_a[1] <= rows_b[0] or rows_b[1] <= rows_a[0])
        return apart or not a.indices & b.indices
    if a.member.rows is None or b.member.axis != 0:
        return True
    # Rows that stay among those with the same columns do not disturb these.
    inside = sum(a.member.rows[0] <= row < a.member.rows[1] for row in b.indices)
    return inside in (0, len(b.indices))


def _find_later(number: int, conflicts: Sequence[set[int]]) -> tuple[int, ...]:
    """Return the later groups that do not commute with a group, nor with those that do not."""
    later: list[int] = []
    for other in range(number + 1, len(conflicts)):
        if any(other in conflicts[before] for before in (number, *later)):
            later.append(other)
    return tuple(later)


def _find_children(
    groups: Sequence[PermutationGroup], number: int, candidates: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Return the groups inside of each unit, when all units hold as many and these correspond."""
    group = groups[number]
    owner = {
        (member.tensor, member.axis, index): unit
        for member in group.members
        for unit, indices in enumerate(member.indices)
        for index in indices
    }
    axes = {(member.tensor, member.axis) for member in group.members}
    children: list[list[int]] = [[] for _ in range(group.units)]
    for candidate in candidates:
        owners = {
            owner.get((member.tensor, member.axis, index))
            for member in groups[candidate].members
            if (member.tensor, member.axis) in axes
            for indices in member.indices
            for index in indices
        }
        unit = owners.pop() if len(owners) == 1 else None
        if unit is not None:
            children[unit].append(candidate)
    kinds = {
        tuple(
            tuple(
                (member.tensor, member.axis, member.rows is None, len(member.indices), len(member.indices[0]))
                for member in groups[child].members
            )
            for child in unit
        )
        for unit in children
    }
    return tuple(tuple(unit) for unit in children) if len(kinds) == 1 and children[0] else ()
