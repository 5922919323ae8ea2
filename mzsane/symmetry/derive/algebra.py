"""Label algebra: the labels of a value that is computed from others.

The rules of the operators are made of four steps: align a value before a weight, combine values element by element,
reduce one over axes, contract two as in a matrix product.
"""

from collections import Counter

import numpy as np

from mzsane.symmetry.derive.units import INVARIANT, Units
from mzsane.symmetry.derive.values import Value, shrink, spread


class Algebra:
    """Computes labels, and ties, freezes and links units on the way.

    Attributes:
        node_name: name of the node that is being traced; units that a step invents belong to it.
        settled: False in the first pass, which only ties what certainly belongs together.
        pinned: how many units stay in place because the node combines them with values that tell them apart.
    """

    def __init__(self, units: Units) -> None:
        self.units = units
        self.node_name = ""
        self.settled = False
        self.pinned = 0

    def align(self, value: Value, axis: int) -> np.ndarray:
        """Make units the same at all positions of the other axes; return the units along the axis."""
        labels = np.moveaxis(shrink(value, self.units), axis, -1)
        lines = np.broadcast_to(labels, (*labels.shape[:-1], value.shape[axis])).reshape(-1, value.shape[axis])
        if len(lines) > 1:
            self.units.tie(lines[1:], np.broadcast_to(lines[0], lines[1:].shape))
        return self.units.find(lines[0])

    def combine(self, first: Value, second: Value, number: int) -> Value:
        """Compute the labels of a value made element by element from two that broadcast.

        Args:
            first: a value.
            second: a value.
            number: tells several calls for one node apart.
        """
        rank = max(len(first.shape), len(second.shape))
        a, b = (_pad_rank(value, rank) for value in (first, second))
        shape = np.broadcast_shapes(a.shape, b.shape)
        uniform = frozenset(
            axis for axis in range(rank) if shape[axis] > 1 and not a.is_sized(axis) and not b.is_sized(axis)
        )
        left, right = shrink(a, self.units), shrink(b, self.units)
        if not (left.any() or right.any()):
            return spread(np.zeros([1] * rank, dtype=np.int64), shape, uniform)
        if self.settled:
            right = self._separate(left, right)
            right = self._pin_along(right, a, left, (number, "right"))
            left = self._pin_along(left, b, right, (number, "left"))
        left, right = np.broadcast_arrays(self.units.find(left), self.units.find(right))
        labels = self.units.relate(left.reshape(-1), right.reshape(-1), certain=not self.settled)
        return spread(labels.reshape(left.shape), shape, uniform)

    def _separate(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Keep the second operand's units in place where the two vary along different axes: an element has one unit."""
        varying = [{axis for axis, size in enumerate(labels.shape) if size > 1} for labels in (left, right)]
        if varying[0] and varying[1] and not varying[0] & varying[1]:
            before = self._count_frozen(right)
            self.units.freeze(right)
            self.pinned += self._count_frozen(right) - before
            return np.zeros([1] * right.ndim, dtype=np.int64)
        return right

    def _pin_along(self, labels: np.ndarray, other: Value, others: np.ndarray, key: tuple[int, str]) -> np.ndarray:
        """Keep units in place along axes on which the other operand varies and its units do not: it pins the order."""
        axes = [
            axis
            for axis in range(labels.ndim)
            if labels.shape[axis] > 1 and others.shape[axis] == 1 and other.is_sized(axis)
        ]
        if axes:
            sizes = [labels.shape[axis] if axis in axes else 1 for axis in range(labels.ndim)]
            places = self.units.allocate((self.node_name, "pin", *key), int(np.prod(sizes)), frozen=True)
            spots = np.broadcast_to(places.reshape(sizes), labels.shape)
            moving = labels != INVARIANT
            before = self._count_frozen(labels)
            related = labels.copy()
            related[moving] = self.units.relate(labels[moving], spots[moving])
            self.pinned += self._count_frozen(labels) - before
            labels = related
        meets = [axis for axis in range(labels.ndim) if labels.shape[axis] > 1 and other.is_sized(axis)]
        if meets and others.any():
            mine, theirs = np.broadcast_arrays(labels, others)
            before = self._count_frozen(labels)
            self.units.freeze(mine[theirs == INVARIANT])
            self.pinned += self._count_frozen(labels) - before
        return labels

    def _count_frozen(self, labels: np.ndarray) -> int:
        labels = np.unique(labels[(labels != INVARIANT) & ~self.units.loose_U[labels]])
        return int(self.units.frozen_U[self.units.find(labels)].sum())

    def reduce(self, value: Value, axes: list[int]) -> Value:
        """Compute the labels of a symmetric function of the elements along axes, which become 1.

        Elements of one unit give that unit. Where every fibre holds the same units nothing moves; where fibres hold
        different ones (heads) the fibre gets a unit of its own, their parent. Sets that overlap are tied.
        """
        labels = shrink(value, self.units)
        shape = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
        rest = [axis for axis in range(labels.ndim) if axis not in axes]
        fibres = labels.transpose(*rest, *axes).reshape(int(np.prod([labels.shape[axis] for axis in rest])), -1)
        kept = [labels.shape[axis] if axis in rest else 1 for axis in range(labels.ndim)]
        result = self._reduce_fibres(fibres).reshape(kept)
        return spread(result, shape, frozenset(axis for axis in value.uniform if axis not in axes))

    def _reduce_fibres(self, fibres: np.ndarray) -> np.ndarray:
        if fibres.shape[1] == 1:
            return fibres[:, 0]
        different, which = np.unique(np.sort(fibres, axis=1), axis=0, return_inverse=True)
        sets: dict[tuple[int, ...], list[int]] = {}
        uneven: set[tuple[int, ...]] = set()  # a permutation would change how often a unit counts
        for number, line in enumerate(different):
            members, counts = np.unique(line[line != INVARIANT], return_counts=True)
            units = tuple(members.tolist())
            sets.setdefault(units, []).append(number)
            if len(set(counts.tolist())) > 1:
                uneven.add(units)
        shares = Counter(unit for units in sets for unit in units)
        crossing = [units for units in sets if units in uneven or any(shares[unit] > 1 for unit in units)]
        if crossing and self.settled and any(len(units) > 1 for units in crossing):
            for units in crossing:
                self.units.tie_all(np.array(units, dtype=np.int64))
            return self._reduce_fibres(self.units.find(fibres))
        result = np.zeros(len(different), dtype=np.int64)
        for units, numbers in sets.items():
            if len(units) == 1:
                result[numbers] = units[0]
            elif len(sets) > 1 and units:
                parent = self.units.allocate((self.node_name, "reduce", units[0]), 1)
                self.units.link(np.array(units), np.broadcast_to(parent, len(units)))
                result[numbers] = parent
        return self.units.find(result[which.reshape(-1)])

    def contract(self, first: Value, second: Value, left: str, right: str, output: str) -> Value:
        """Compute the labels of a product of two values, summed over the letters that are not in the output."""
        letters = sorted(set(left + right))
        aligned = [_align_letters(value, own, letters) for value, own in ((first, left), (second, right))]
        product = self.combine(aligned[0], aligned[1], 10 + len(output))
        reduced = self.reduce(product, [axis for axis, letter in enumerate(letters) if letter not in output])
        order = [letters.index(letter) for letter in output]
        summed = [axis for axis in range(len(letters)) if axis not in order]
        labels = reduced.labels.permute([*order, *summed])
        return Value(labels.reshape(labels.shape[: len(order)]))


def _pad_rank(value: Value, rank: int) -> Value:
    missing = rank - len(value.shape)
    labels = value.labels[(None,) * missing] if missing else value.labels
    return Value(labels, frozenset(axis + missing for axis in value.uniform))


def _align_letters(value: Value, own: str, letters: list[str]) -> Value:
    order = [own.index(letter) for letter in letters if letter in own]
    labels = value.labels.permute(order)
    index = tuple(slice(None) if letter in own else None for letter in letters)
    return Value(labels[index])
