"""How new models are: their distance to what the backbone was trained on, in units of the zoo's own spacing.

A copy of a training model scores 0, and so does a copy with its hidden units in another order; a model as far from all
training models as these are from one another scores 1. Accuracy alone says nothing about generation: published samplers
were found to copy (arXiv 2506.07998).

Suffixes: S models that are judged, K known checkpoints, P weights of a model, C candidates, X models that share one.
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

_CANDIDATES = 3  # nearest checkpoints as they lie, to which a model is then aligned
_CHUNK = 2**26  # weights of the known checkpoints, and of the judged models, that are in memory together


class KnownModels:
    """Checkpoints that a backbone was trained on, and how far apart their models are.

    Args:
        layout: where the weights sit.
        groups: the architecture's permutation groups; without them models are compared as they lie.
        names_K: the model that each is a checkpoint of, those of a model in the order of its epochs.
        load: returns the weights, (N, P), of some checkpoints by number.
    """

    def __init__(
        self,
        layout: TokenLayout,
        groups: Sequence[PermutationGroup],
        names_K: Sequence[str],
        load: Callable[[Tensor], Tensor],
    ) -> None:
        self.layout, self.groups, self.load = layout, groups, load
        self.names = sorted(set(names_K))
        self.model_K = torch.tensor([self.names.index(name) for name in names_K])

    def find_nearest(self, flat_SP: Tensor, not_S: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the Euclidean distance to the nearest known checkpoint, and its model's number in `names`: (S,), (S,).

        Each model is aligned to the checkpoints that are nearest to it as it lies; the least distance counts, aligned
        or not. NaN for a model whose weights are not finite, or if there is nothing to compare it with.

        Args:
            flat_SP: models.
            not_S: for each the number of a model that does not count: itself.
        """
        distances_SK = torch.cat([torch.cdist(flat_SP, self.load(rows)) for rows in self._split()], dim=1)
        distances_SK = distances_SK.nan_to_num(nan=float("inf"))
        if not_S is not None:
            distances_SK[not_S[:, None] == self.model_K[None]] = float("inf")
        near_SC, candidates_SC = distances_SK.topk(min(_CANDIDATES, len(self.model_K)), largest=False)
        comparable_SC = near_SC.isfinite()
        for known in candidates_SC[comparable_SC].unique().tolist() if self.groups else ():
            models_X, ranks_X = ((candidates_SC == known) & comparable_SC).nonzero(as_tuple=True)
            reference_P, flat_XP = self.load(torch.tensor([known]))[0], flat_SP[models_X]
            matching = match_population(self.layout, self.groups, flat_XP, reference_P)
            aligned_XP = apply_matching(self.layout, self.groups, flat_XP, matching)
            distances_X = (aligned_XP - reference_P).norm(dim=1)
            near_SC[models_X, ranks_X] = torch.minimum(near_SC[models_X, ranks_X], distances_X)
        distances_S, ranks_S = near_SC.min(dim=1)
        nearest_S = candidates_SC.gather(1, ranks_S[:, None]).squeeze(1)
        return distances_S.masked_fill(distances_S.isinf(), float("nan")), self.model_K[nearest_S]

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

    def load(numbers_N: Tensor) -> Tensor:
        flat_NP = torch.empty(len(numbers_N), layout.weights)
        for at, table in enumerate(tables):
            own_M = torch.tensor([places[number][1] == at for number in numbers_N.tolist()])
            rows_M = torch.tensor([places[number][2] for number in numbers_N[own_M].tolist()], dtype=torch.int64)
            flat_NP[own_M] = table.load(rows_M)
        return flat_NP

    return KnownModels(layout, tables[0].groups, [name for name, _, _ in places], load)
