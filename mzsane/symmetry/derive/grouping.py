"""Groups from units: units that are alike in all that is known about them may change places.

Two units are alike when they own equally many indices of the same tensor axes, occur equally often in every value, and
move inside the same parents. Parents are alike when their children are, pair by pair: they form block groups.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mzsane.symmetry.derive.slots import Key, Slots
from mzsane.symmetry.derive.units import Units
from mzsane.symmetry.groups import GroupMember, PermutationGroup


@dataclass
class _Unit:
    owned: dict[Key, list[int]] = field(default_factory=dict)
    parents: set[int] = field(default_factory=set)
    given: set[int] = field(default_factory=set)  # parents before any were tied: siblings share all of them
    children: list[int] = field(default_factory=list)
    frozen: bool = False
    occurrence: int = 0
    kind: int = 0  # equal for units that correspond, inside other parents too
    height: int = 0


def build_groups(
    units: Units,
    slots: Slots,
    occurrences_U: np.ndarray,
) -> list[PermutationGroup]:
    """Build the groups, inner ones first.

    Args:
        units: the units of a traced network.
        slots: the units along tensor axes.
        occurrences_U: a hash of how many elements of each of the network's values belong to a unit, uint64.
    """
    _merge_parents(units)
    table = _collect(units, slots, occurrences_U)
    _nest(table)
    order = {key: number for number, key in enumerate(slots.units_by_key)}
    _classify(table, order)
    classes: dict[tuple, list[int]] = {}
    for number, unit in table.items():
        if unit.frozen or not (unit.owned or unit.children):
            continue
        # The units of a block group own columns in rows of their own, which their kind leaves out.
        exact = () if unit.children else tuple(sorted((order[key], len(own)) for key, own in unit.owned.items()))
        inside = (tuple(sorted(unit.parents)), tuple(sorted(unit.given)))
        classes.setdefault((unit.height, unit.kind, exact, inside), []).append(number)
    groups: list[tuple[tuple, PermutationGroup]] = []
    for (height, *_), numbers in classes.items():
        contents = [_list_content(table, number, order) for number in numbers]
        shared = sorted(set(contents[0]).intersection(*contents), key=lambda key: order[key])
        if len(numbers) < 2 or not shared:
            continue
        contents.sort(key=lambda content: content[shared[0]])
        plain = height == 0 and not table[numbers[0]].given
        group = PermutationGroup(
            units=len(numbers),
            members=tuple(_build_member(key, contents, slots) for key in shared),
            sign=plain and bool(units.sign_U[numbers].all()),
            scale=plain and bool(units.scale_U[numbers].all()),
        )
        groups.append(((height, order[shared[0]], contents[0][shared[0]]), group))
    return [group for _, group in sorted(groups, key=lambda item: item[0])]


def _build_member(key: Key, contents: Sequence[Mapping[Key, Sequence[int]]], slots: Slots) -> GroupMember:
    tensor, axis, rows = key
    indices = tuple(tuple(content[key]) for content in contents)
    role: Literal["out", "in"] = "in" if slots.roles[key] == "in" else "out"
    return GroupMember(tensor=tensor, axis=axis, rows=rows, indices=indices, role=role)


def _merge_parents(units: Units) -> None:
    """Make parents one that have the same children, and a parent one with its only child: they move alike."""
    while True:
        children: dict[int, set[int]] = {}
        for child, parent in units.list_links().tolist():
            children.setdefault(parent, set()).add(child)
        by_set: dict[frozenset[int], int] = {}
        ties = []
        for parent, members in children.items():
            if len(members) == 1:
                ties.append((parent, *members))
            ties.append((parent, by_set.setdefault(frozenset(members), parent)))
        units.changed = False
        if ties:
            first, second = np.array(ties).T
            units.tie(first, second)
        if not units.changed:
            return


def _collect(units: Units, slots: Slots, occurrences_U: np.ndarray) -> dict[int, _Unit]:
    """Gather what is known about each unit."""
    size = len(units.frozen_U)
    merged_U = np.zeros(size, dtype=np.uint64)
    np.add.at(merged_U, units.find(np.arange(size)), occurrences_U)
    table: dict[int, _Unit] = {}

    def get(number: int) -> _Unit:
        if number not in table:
            table[number] = _Unit(frozen=bool(units.frozen_U[number]), occurrence=int(merged_U[number]))
        return table[number]

    for key, slot in slots.units_by_key.items():
        for index, number in enumerate(units.find(slot).tolist()):
            get(number).owned.setdefault(key, []).append(index)
    for child, parent in units.list_links().tolist():
        get(child).parents.add(parent)
        get(parent)
    for child, parent in zip(units.find(units.links_L2[:, 0]).tolist(), units.links_L2[:, 1].tolist(), strict=True):
        if child in table and units.find(np.array(parent)) != child:
            table[child].given.add(parent)
    return table


def _nest(table: dict[int, _Unit]) -> None:
    """Leave each unit only its nearest parent where its parents lie inside one another; freeze parents that cross."""
    inside: dict[int, set[int]] = {}
    for number, unit in table.items():
        for parent in unit.parents:
            inside.setdefault(parent, set()).add(number)
    for unit in table.values():
        nearest = sorted(unit.parents, key=lambda parent: len(inside[parent]))
        for inner, outer in itertools.pairwise(nearest):
            if inside[inner] - {outer} < inside[outer]:
                table[inner].parents.add(outer)
                unit.parents.discard(outer)
            else:
                table[inner].frozen = table[outer].frozen = True
    for number, unit in table.items():
        for parent in unit.parents:
            table[parent].children.append(number)


def _classify(table: dict[int, _Unit], order: Mapping[Key, int]) -> None:
    """Give units that correspond the same kind, children before parents."""
    kinds: dict[tuple, int] = {}
    done: set[int] = set()

    def visit(number: int, above: frozenset[int]) -> None:
        unit = table[number]
        if number in done:
            return
        if number in above:
            unit.frozen = True
            return
        for child in unit.children:
            visit(child, above | {number})
        unit.height = 1 + max((table[child].height for child in unit.children), default=-1)
        unit.frozen |= any(table[child].frozen for child in unit.children)
        owned: Counter[tuple] = Counter()
        for (tensor, axis, rows), indices in unit.owned.items():
            owned[tensor, axis, rows is not None] += len(indices)
        inner = tuple(sorted(Counter(table[child].kind for child in unit.children).items()))
        description = (tuple(sorted(owned.items())), unit.occurrence, inner)
        unit.kind = kinds.setdefault(description, len(kinds))
        unit.children.sort(key=lambda child: (table[child].kind, _place(table, child, order)))
        done.add(number)

    for number in table:
        visit(number, frozenset())


def _place(table: dict[int, _Unit], number: int, order: Mapping[Key, int]) -> tuple:
    """Return where a unit stands among its siblings: its place in a group of a convolution counts first."""
    unit = table[number]
    places = [(key[2] is None, order[key], min(indices)) for key, indices in unit.owned.items()]
    places += [_place(table, child, order) for child in unit.children]
    return min(places, default=(True, -1, -1))


def _list_content(table: dict[int, _Unit], number: int, order: Mapping[Key, int]) -> dict[Key, list[int]]:
    """Return the indices that a unit owns by itself and through its children."""
    unit = table[number]
    content = {key: list(indices) for key, indices in unit.owned.items()}
    for child in unit.children:
        for key, indices in _list_content(table, child, order).items():
            content.setdefault(key, []).extend(indices)
    return content
