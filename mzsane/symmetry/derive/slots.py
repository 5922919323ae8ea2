"""Which unit owns which index of which tensor axis, and parameters that are computed with element by element."""

import itertools

import numpy as np
import torch

from mzsane.symmetry.derive.units import Units
from mzsane.symmetry.derive.values import Reference, Value, build_invariant

Rows = tuple[int, int]
Key = tuple[str, int, Rows | None]  # tensor, axis, rows
_MOST_ELEMENTS = 4_000_000  # of a parameter that is computed with element by element; larger ones stay in place


class Slots:
    """The units along tensor axes.

    Attributes:
        units_by_key: the unit of every index along an axis.
        roles: whether an axis makes the units' values (`out`) or uses them (`in`).
        notes: warnings about tensors.
    """

    def __init__(self, units: Units) -> None:
        self._units = units
        self.units_by_key: dict[Key, np.ndarray] = {}
        self.roles: dict[Key, str] = {}
        self.notes: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._touched: dict[str, np.ndarray] = {}  # elements that were computed with
        self._pinned: set[str] = set()

    def pin(self, name: str) -> None:
        """Keep a tensor in place."""
        self._pinned.add(name)

    def get(self, reference: Reference, axis: int, rows: Rows | None = None, role: str = "out") -> np.ndarray:
        """Return the units along an axis of a stored tensor, or along one part of it that is used in some rows."""
        key = (reference.name, axis, rows)
        shape = self._shapes.setdefault(reference.name, reference.stored_shape)
        self.roles.setdefault(key, role)
        # A vector that is only added or multiplied belongs to whatever it meets.
        self.units_by_key[key] = self._units.allocate(("slot", *key), shape[axis], loose=len(shape) == 1)
        return self._units.find(self.units_by_key[key])

    def get_matrix(self, reference: Reference) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the units along both axes of a matrix: a parameter, some rows of one, or the transpose; else None."""
        if len(reference.shape) != 2 or len(reference.stored_shape) != 2:
            return None
        rows, columns = reference.stored_shape
        if reference.positions is None:
            return self.get(reference, 0), self.get(reference, 1, role="in")
        row, column = (part.numpy() for part in (reference.positions // columns, reference.positions % columns))
        is_transposed = bool((row == row[:1]).all() and (column == column[:, :1]).all())
        if is_transposed:
            row, column = row.T, column.T
        if not ((row == row[:, :1]).all() and (column == column[:1]).all()):
            return None
        used, taken = row[:, 0], column[0]
        if len(set(used.tolist())) != used.max() + 1 - used.min() or len(set(taken.tolist())) != columns:
            return None
        part = None if len(used) == rows else (int(used.min()), int(used.max()) + 1)
        row_role, column_role = ("in", "out") if is_transposed else ("out", "in")
        along_rows = self.get(reference, 0, role=row_role)[used]
        along_columns = self.get(reference, 1, part, role=column_role)[taken]
        return (along_columns, along_rows) if is_transposed else (along_rows, along_columns)

    def read(self, item: Value | Reference) -> Value:
        """Return a value as it is, and a parameter as a value with a unit for every element."""
        if isinstance(item, Value):
            return item
        self._shapes.setdefault(item.name, item.stored_shape)
        size = int(np.prod(item.stored_shape, dtype=np.int64))
        if size > _MOST_ELEMENTS:
            self.pin(item.name)
            self.notes[item.name] = f"{item.name}: too large to compute with element by element; it stays in place"
            return build_invariant(item.shape)
        if len(item.stored_shape) == 1:
            ids = self.get(item, 0)
        else:
            ids = self._units.allocate(("element", item.name), size, loose=True)
        positions = item.list_positions()
        self._touched.setdefault(item.name, np.zeros(size, dtype=bool))[positions.numpy().reshape(-1)] = True
        return Value(torch.from_numpy(ids)[positions])

    def place_elements(self) -> None:
        """Turn units of elements into units along one axis, where they are that, and keep other elements in place.

        Tensors that are pinned, or of which one axis is used in ways that overlap, stay in place too.
        """
        for name, touched in self._touched.items():
            if len(self._shapes[name]) != 1:
                self._place_tensor(name, touched.reshape(self._shapes[name]))
        parts: dict[tuple[str, int], list[Rows | None]] = {}
        for name, axis, rows in self.units_by_key:
            parts.setdefault((name, axis), []).append(rows)
        for (name, axis), spans in parts.items():
            covered = sorted(rows or (0, self._shapes[name][0]) for rows in spans)
            overlap = any(before[1] > after[0] for before, after in itertools.pairwise(covered))
            if overlap or name in self._pinned:
                for rows in spans:
                    self._units.freeze(self.units_by_key[name, axis, rows])

    def _place_tensor(self, name: str, touched: np.ndarray) -> None:
        ids = self._units.allocate(("element", name), touched.size)
        labels = self._units.find(ids).reshape(touched.shape)
        axes = [] if name in self._pinned else [axis for axis in range(touched.ndim) if touched.shape[axis] > 1]
        lines = {axis: [np.unique(line[used]) for line, used in _cut(labels, touched, axis)] for axis in axes}
        # Along the right axis no unit is in two lines; all elements of a line are then one unit's.
        whole = [axis for axis in axes if all(len(line) == 1 for line in lines[axis]) and _are_disjoint(lines[axis])]
        apart = whole or [axis for axis in axes if _are_disjoint(lines[axis])]
        if len(apart) == 1:
            slot = self.get(Reference(name, touched.shape, touched.shape), apart[0])
            for unit, line in zip(slot, lines[apart[0]], strict=True):
                self._units.tie_all(np.append(line, unit))
            for (tensor, other, _), slot in self.units_by_key.items():
                if tensor == name and other != apart[0]:
                    self._units.freeze(slot)  # here its indices are positions
            return
        moving = self._units.list_roots(labels[touched])
        if not self._units.frozen_U[moving].all() and len(moving) > 1:
            self.notes[name] = f"{name}: its elements belong to units along several axes; it stays in place"
        self._units.freeze(moving)
        self.pin(name)


def _cut(labels: np.ndarray, touched: np.ndarray, axis: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(np.moveaxis(labels, axis, 0), np.moveaxis(touched, axis, 0), strict=True))


def _are_disjoint(lines: list[np.ndarray]) -> bool:
    members = np.concatenate(lines)
    return all(len(line) for line in lines) and len(np.unique(members)) == len(members)
