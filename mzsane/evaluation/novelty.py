"""How new models are: their distance to what the backbone was trained on, in units of the zoo's own spacing.

A copy of a training model scores 0, and so does a copy with its hidden units in another order; a model as far from all
training models as these are from one another scores 1. Accuracy alone says nothing about generation: published samplers
were found to copy (arXiv 2506.07998).

Suffixes: S models that are judged, K known checkpoints, P weights of a model, X models with one
nearest checkpoint.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import polars as pl
import torch
from torch import Tensor

from mzsane.artifacts import Artifact, ArtifactRef, ArtifactStore
from mzsane.tokens.layout import TokenLayout, check_same_layout
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.tokens.symmetry.canonical import apply_matching, match_population
from mzsane.tokens.symmetry.groups import PermutationGroup

_CHUNK = 2**26  # weights of the known checkpoints, and of the judged models, that are in memory together


class KnownModels:
    """Checkpoints that a backbone was trained on, and how far apart their models are.

    Args:
        layout: where the weights sit.
        groups: the architecture's permutation groups; without them models are compared as they lie.
        names_K: the model that each is a checkpoint of, those of a model in the order of its epochs.
        load: returns the weights, (N, P), of some checkpoints by number.
        reference_P: the model that they were brought to canonical form with; the first of them if None.
    """

    def __init__(
        self,
        layout: TokenLayout,
        groups: Sequence[PermutationGroup],
        names_K: Sequence[str],
        load: Callable[[Tensor], Tensor],
        reference_P: Tensor | None = None,
    ) -> None:
        self.reference_P = load(torch.tensor([0]))[0] if reference_P is None else reference_P
        self.layout, self.groups, self.load = layout, groups, load
        self.names = sorted(set(names_K))
        self.model_K = torch.tensor([self.names.index(name) for name in names_K])

    def find_nearest(self, flat_SP: Tensor, not_S: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the Euclidean distance to the nearest known checkpoint, and its model's number in `names`: (S,), (S,).

        Each model is taken as it lies or aligned to the reference, whichever is nearer to a checkpoint, then aligned
        to that and compared with all checkpoints of its model; the least distance counts. Weight matching is a
        heuristic: of copies with shuffled units it found 91 % in a zoo of CNN-s on MNIST. NaN for a model whose weights
        are not finite, or if there is nothing to compare it with.

        Args:
            flat_SP: models.
            not_S: for each the number of a model that does not count: itself.
        """
        finite_S = flat_SP.isfinite().all(dim=1)
        flat_SP = flat_SP.where(finite_S[:, None], 0.0)
        distances_SK = self._measure(flat_SP)
        if self.groups:
            aligned_SP = self._align(flat_SP, self.reference_P)
            aligned_SK = self._measure(aligned_SP)
            nearer_S = aligned_SK.min(dim=1).values < distances_SK.min(dim=1).values
            flat_SP = aligned_SP.where(nearer_S[:, None], flat_SP)
            distances_SK = aligned_SK.where(nearer_S[:, None], distances_SK)
        if not_S is not None:
            distances_SK[not_S[:, None] == self.model_K[None]] = float("inf")
        distances_S, nearest_S = distances_SK.min(dim=1)
        comparable_S = finite_S & distances_S.isfinite()
        for known in nearest_S.unique().tolist() if self.groups else ():
            own_S = nearest_S == known
            of_model_K = (self.model_K == self.model_K[known]).nonzero().squeeze(1)
            aligned_XP = self._align(flat_SP[own_S], self.load(torch.tensor([known]))[0])
            distances_X = torch.cdist(aligned_XP, self.load(of_model_K)).min(dim=1).values
            distances_S[own_S] = torch.minimum(distances_S[own_S], distances_X)
        return distances_S.masked_fill(~comparable_S, float("nan")), self.model_K[nearest_S]

    @cached_property
    def spacing(self) -> float:
        """The mean distance of the known models, at their last checkpoints, to the nearest checkpoint of another.

        NaN if there is one model.
        """
        last_N = torch.tensor([int((self.model_K == number).nonzero()[-1]) for number in range(len(self.names))])
        found = [self.find_nearest(self.load(some), self.model_K[some])[0] for some in self._split(last_N)]
        return float(torch.cat(found).mean())

    def measure_novelty(self, flat_SP: Tensor) -> Tensor:
        """Return the distance to the nearest known checkpoint over the spacing, (S,)."""
        return self.find_nearest(flat_SP)[0] / self.spacing

    def _measure(self, flat_SP: Tensor) -> Tensor:
        return torch.cat([torch.cdist(flat_SP, self.load(rows)) for rows in self._split()], dim=1)

    def _align(self, flat_SP: Tensor, reference_P: Tensor) -> Tensor:
        matching = match_population(self.layout, self.groups, flat_SP, reference_P)
        return apply_matching(self.layout, self.groups, flat_SP, matching)

    def _split(self, rows_N: Tensor | None = None) -> list[Tensor]:
        rows_N = torch.arange(len(self.model_K)) if rows_N is None else rows_N
        return list(rows_N.split(max(1, _CHUNK // self.layout.weights)))


def open_known_models(samples: Artifact, store: ArtifactStore) -> KnownModels:
    """Open the checkpoints that the samples' backbone was trained on, of the zoos that their anchors are from."""
    inputs = samples.manifest.inputs
    used = pl.read_parquet(store.open(ArtifactRef.parse(inputs["backbone"])).path("composition.parquet"))
    tables: list[TokenTable] = []
    places: list[tuple[str, int, int]] = []  # of each checkpoint its model, its table and its row
    for name in sorted(inputs):
        if not name.startswith("tokens/"):
            continue
        number = int(name.removeprefix("tokens/"))
        table = read_tokens(store.open(ArtifactRef.parse(inputs[name])))
        rows = table.index.with_row_index("row").join(used.filter(slice=number), on=["model", "epoch"], how="semi")
        for model, row in rows.sort("model", "epoch").select("model", "row").iter_rows():
            places.append((f"{number}/{model}", len(tables), row))
        tables.append(table)
    layout = check_same_layout((table.layout for table in tables), "measuring novelty")

    def read(numbers_N: Tensor) -> Tensor:
        flat_NP = torch.empty(len(numbers_N), layout.weights)
        for at, table in enumerate(tables):
            own_M = torch.tensor([places[number][1] == at for number in numbers_N.tolist()])
            rows_M = torch.tensor([places[number][2] for number in numbers_N[own_M].tolist()], dtype=torch.int64)
            flat_NP[own_M] = table.load(rows_M)
        return flat_NP

    held_KP = read(torch.arange(len(places))) if len(places) * layout.weights <= _CHUNK else None

    def load(numbers_N: Tensor) -> Tensor:
        return read(numbers_N) if held_KP is None else held_KP[numbers_N]

    # The first training model of a zoo is what its others were aligned to.
    (reference_P,) = tables[0].load(tables[0].pick_rows("train", last_epochs=1)[:1])
    return KnownModels(layout, tables[0].groups, [name for name, _, _ in places], load, reference_P)
