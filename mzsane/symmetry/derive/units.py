"""Hidden units as labels: which of them are the same, which stay in place, which move inside which.

A tracer gives every element of every value the number of the unit that it belongs to. 0 is no unit: the element stays
where it is under every permutation (inputs, constants). Rules of operators tie units, freeze them, or link them to a
parent: a unit that may move only among the other children of its parents (the dimensions of one attention head).

Suffixes: U units, E elements of a value, L links.
"""

from collections.abc import Hashable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

INVARIANT = 0


class Units:
    """A union-find over units, with what is known about them.

    Attributes:
        frozen_U: units that stay in place, by root.
        loose_U: units that are elements of parameters and tied to nothing else yet, by root.
        sign_U: units whose sign may be flipped, as far as seen, by root.
        scale_U: units that may be scaled, as far as seen, by root.
        links_L2: children, and the parents that they were given in the current pass.
        changed: whether anything was tied or frozen since it was last set to False.
    """

    def __init__(self) -> None:
        self._root_U = np.zeros(1, dtype=np.int64)
        self.frozen_U = np.ones(1, dtype=bool)
        self.loose_U = np.zeros(1, dtype=bool)
        self.sign_U = np.zeros(1, dtype=bool)
        self.scale_U = np.zeros(1, dtype=bool)
        self._allocated: dict[Hashable, np.ndarray] = {}
        self.links_L2 = np.zeros((0, 2), dtype=np.int64)
        self.changed = False

    def allocate(self, key: Hashable, count: int, loose: bool = False, frozen: bool = False) -> np.ndarray:
        """Return `count` units under a key: new ones at the first call, the same ones later."""
        if key not in self._allocated:
            start = len(self._root_U)
            new = np.arange(start, start + count)
            self._root_U = np.concatenate([self._root_U, new])
            self.frozen_U = np.concatenate([self.frozen_U, np.full(count, frozen)])
            self.loose_U = np.concatenate([self.loose_U, np.full(count, loose)])
            self.sign_U = np.concatenate([self.sign_U, np.ones(count, dtype=bool)])
            self.scale_U = np.concatenate([self.scale_U, np.ones(count, dtype=bool)])
            self._allocated[key] = new
        return self._allocated[key]

    def find(self, labels: np.ndarray) -> np.ndarray:
        """Return the root of every label."""
        roots: np.ndarray = self._root_U[labels]
        return roots

    def list_roots(self, labels: np.ndarray) -> np.ndarray:
        """Return the different units (roots) among labels, ascending, without 0."""
        roots = np.unique(self.find(labels))
        found: np.ndarray = roots[roots != INVARIANT]
        return found

    def tie(self, first_E: np.ndarray, second_E: np.ndarray) -> None:
        """Make the units of two equally long lists of labels the same, pair by pair; a unit tied to 0 is frozen."""
        first_E, second_E = self.find(first_E).reshape(-1), self.find(second_E).reshape(-1)
        self.freeze(np.concatenate([first_E[second_E == INVARIANT], second_E[first_E == INVARIANT]]))
        differ = (first_E != second_E) & (first_E != INVARIANT) & (second_E != INVARIANT)
        if not differ.any():
            return
        involved, ends = np.unique(np.stack([first_E[differ], second_E[differ]]), return_inverse=True)
        ends = ends.reshape(2, -1)
        graph = coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(len(involved), len(involved)))
        count, component = connected_components(graph, directed=False)
        smallest = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(smallest, component, involved)
        roots = smallest[component]
        for flags, merge in (
            (self.frozen_U, np.logical_or),
            (self.loose_U, np.logical_and),
            (self.sign_U, np.logical_and),
            (self.scale_U, np.logical_and),
        ):
            merge.at(flags, roots, flags[involved])
        moved = np.arange(len(self._root_U))
        moved[involved] = roots
        self._root_U = moved[self._root_U]
        self.changed = True

    def tie_all(self, labels: np.ndarray) -> None:
        """Make all units among labels one; 0 among them is left out."""
        roots = self.list_roots(labels)
        if len(roots) > 1:
            self.tie(roots[1:], np.full(len(roots) - 1, roots[0]))

    def freeze(self, labels: np.ndarray) -> None:
        """Keep units in place."""
        roots = self.list_roots(labels)
        if not self.frozen_U[roots].all():
            self.frozen_U[roots] = True
            self.changed = True

    def link(self, children: np.ndarray, parents: np.ndarray) -> None:
        """Let units move only inside their parents: two lists of labels, pair by pair; pairs with a 0 are left out."""
        new_L2 = np.stack([self.find(np.reshape(children, -1)), np.reshape(parents, -1)], axis=1)
        new_L2 = new_L2[(self.find(new_L2) != INVARIANT).all(axis=1)]
        if len(new_L2):
            self.links_L2 = np.unique(np.concatenate([self.links_L2, new_L2]), axis=0)

    def list_links(self) -> np.ndarray:
        """Return the different links between units that are different by now, (L, 2)."""
        roots_L2 = self.find(self.links_L2)
        return np.unique(roots_L2[roots_L2[:, 0] != roots_L2[:, 1]], axis=0)

    def limit(self, labels: np.ndarray, sign: bool, scale: bool) -> None:
        """Note an operator that does not commute with flipping a unit's sign, or with scaling it."""
        roots = self.list_roots(labels)
        self.sign_U[roots] &= sign
        self.scale_U[roots] &= scale

    def relate(self, first_E: np.ndarray, second_E: np.ndarray, certain: bool = False) -> np.ndarray:
        """Find the labels of a value computed element by element from two, whose labels are given.

        Units that always meet are tied. Where one unit meets several, each of which meets no other, it is their parent
        and the value belongs to the children. Everything else is tied.

        Args:
            first_E: labels.
            second_E: labels.
            certain: tie only units that always meet, and elements of parameters to their unit.

        Returns:
            (E,) the labels of the result.
        """
        first_E, second_E = self.find(first_E), self.find(second_E)
        both = (first_E != INVARIANT) & (second_E != INVARIANT) & (first_E != second_E)
        result_E = np.where(first_E != INVARIANT, first_E, second_E)
        if not both.any():
            return result_E
        pairs, which = np.unique(np.stack([first_E[both], second_E[both]]), axis=1, return_inverse=True)
        left, right = pairs
        many_right = (_is_parent(left, right) & ~self._are_loose(left, right)) | self._are_linked(right, left)
        many_left = (_is_parent(right, left) & ~self._are_loose(right, left)) | self._are_linked(left, right)
        many_left &= ~many_right
        self.link(right[many_right], left[many_right])
        self.link(left[many_left], right[many_left])
        tied = ~(many_right | many_left)
        if certain:
            tied &= (_is_alone(left) & _is_alone(right)) | _is_parent(left, right) | _is_parent(right, left)
        self.tie(left[tied], right[tied])
        chosen = np.where(many_right, right, left)
        result_E[both] = chosen[which.reshape(-1)]
        return self.find(result_E)

    def _are_linked(self, children: np.ndarray, parents: np.ndarray) -> np.ndarray:
        links_L2, size = self.list_links(), len(self._root_U)
        linked: np.ndarray = np.isin(children * size + parents, links_L2[:, 0] * size + links_L2[:, 1])
        return linked

    def _are_loose(self, parents: np.ndarray, children: np.ndarray) -> np.ndarray:
        """Tell for each pair whether the parent's children are elements of parameters: they are the parent's own."""
        keys, which = np.unique(parents, return_inverse=True)
        loose = np.ones(len(keys), dtype=bool)
        np.logical_and.at(loose, which, self.loose_U[children])
        result: np.ndarray = loose[which]
        return result


def _is_parent(parents: np.ndarray, children: np.ndarray) -> np.ndarray:
    """Tell for each of some different pairs whether its first unit meets several, each of which meets no other."""
    _, child, meets = np.unique(children, return_inverse=True, return_counts=True)
    keys, parent, counts = np.unique(parents, return_inverse=True, return_counts=True)
    alone = np.ones(len(keys), dtype=bool)
    np.logical_and.at(alone, parent, meets[child] == 1)
    result: np.ndarray = alone[parent] & (counts[parent] > 1)
    return result


def _is_alone(numbers: np.ndarray) -> np.ndarray:
    """Tell for each number whether it is there once."""
    _, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    result: np.ndarray = counts[which] == 1
    return result
