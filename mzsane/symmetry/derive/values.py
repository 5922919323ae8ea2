"""What a tracer knows about the values of a network: to which hidden unit every element belongs.

Labels are compact: along axes on which they do not vary they have stride 0, so a feature map costs no more than its
channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mzsane.symmetry.derive.units import Units


class NotTraceable(Exception):  # noqa: N818  (a signal to the tracer, not an error)
    """A rule does not cover this use of its operator."""


@dataclass(frozen=True)
class Value:
    """An activation, or a constant.

    Attributes:
        labels: the unit of every element, int64, shape of the value.
        uniform: axes along which the value itself is known not to vary (it was expanded).
        constant: the value, when it depends on no input and no parameter.
    """

    labels: Tensor
    uniform: frozenset[int] = frozenset()
    constant: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return tuple(self.labels.shape)

    def is_sized(self, axis: int) -> bool:
        """Tell whether the value may vary along an axis."""
        return self.labels.shape[axis] > 1 and axis not in self.uniform


@dataclass(frozen=True)
class Reference:
    """A parameter or running statistic, or a rearrangement of one, that no operator has computed with yet.

    Attributes:
        name: its name in the network.
        shape: its shape now.
        stored_shape: its shape in the network.
        positions: for each element its place in the flat stored tensor; None where nothing was rearranged.
    """

    name: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    positions: Tensor | None = None

    def list_positions(self) -> Tensor:
        """Return the place of each element in the flat stored tensor."""
        if self.positions is None:
            return torch.arange(int(np.prod(self.stored_shape, dtype=np.int64))).reshape(self.stored_shape)
        return self.positions


def build_invariant(shape: tuple[int, ...], constant: Tensor | None = None) -> Value:
    """Return a value that no permutation moves."""
    return Value(torch.zeros((), dtype=torch.int64).expand(shape), constant=constant)


def spread(labels: np.ndarray, shape: tuple[int, ...], uniform: frozenset[int] = frozenset()) -> Value:
    """Return a value from labels that broadcast to its shape."""
    return Value(torch.from_numpy(np.array(labels)).expand(shape), uniform)


def shrink(value: Value, units: Units) -> np.ndarray:
    """Return the roots of a value's labels, with size 1 along axes on which they do not vary."""
    labels = value.labels
    for axis in range(labels.ndim):
        if labels.stride(axis) == 0:
            labels = labels.narrow(axis, 0, 1)
    roots = units.find(labels.numpy())
    for axis in range(roots.ndim):
        if roots.shape[axis] > 1:
            first = roots.take([0], axis=axis)
            if (roots == first).all():
                roots = first
    return roots
