"""Layers of a token layout: tensors whose rows lie side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from mzsane.layout.entries import STATISTICS, WeightTensor


@dataclass(frozen=True)
class Layer:
    """Rows that lie side by side in the tokens: a tensor and what goes with its rows.

    Attributes:
        name: name of the module, or of the parameter that has none.
        kind: what it is (see `WeightTensor`).
        entries: the tensors, in the order in which they follow one another in a row.
        first: number of its first token.
        rows: how many rows it has.
        parts: tokens of a row.
    """

    name: str
    kind: str
    entries: tuple[WeightTensor, ...]
    first: int
    rows: int
    parts: int

    @property
    def row_length(self) -> int:
        """Weights of a row."""
        return sum(entry.size for entry in self.entries) // self.rows

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.rows * self.parts


def join_vectors(tensors: Sequence[WeightTensor]) -> dict[str, list[WeightTensor]]:
    """Return for each tensor that starts a layer the vectors that go with its rows: bias, running mean, variance."""
    entries = {entry.name: entry for entry in tensors}
    joined: dict[str, list[WeightTensor]] = {}
    taken: set[str] = set()
    # Weights first, whatever the order of the names: a mean is a layer's start only where a norm has no scale.
    for ending in ("weight", STATISTICS[0], ""):
        for entry in tensors:
            if entry.name in taken or entry.name in joined or not entry.name.endswith(ending):
                continue
            stem = entry.name.removesuffix(ending)
            names = [f"{stem}{other}" for other in ("bias", *STATISTICS)] if ending else []
            found = [entries[name] for name in names if name in entries and name not in taken and name != entry.name]
            joined[entry.name] = [other for other in found if other.shape == (entry.rows,)]
            taken.update(other.name for other in joined[entry.name])
    return joined
