"""How new models are: their distance to what the backbone was trained on, in units of the zoo's own spacing.

A copy of a training model scores 0, and so does a copy with its hidden units in another order; a model as far from all
training models as these are from one another scores 1. Accuracy alone says nothing about generation: published samplers
were found to copy (arXiv 2506.07998).

Suffixes: S models that are judged, K known checkpoints, N some of them, P weights of a model, X models with one
nearest checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial

import polars as pl
import torch
from torch import Tensor

from mzsane.artifacts import Artifact, ArtifactRef, ArtifactStore
from mzsane.tokens.fitting import cut_head, find_columns
from mzsane.tokens.layout import TokenLayout, check_same_layout
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.tokens.symmetry.canonical import apply_matching, match_population
from mzsane.tokens.symmetry.groups import PermutationGroup

_CHUNK = 2**26  # weights of the known checkpoints, and of the judged models, that are in memory together
_PARTS = 2  # parts of tokens that are kept when not all are held; checkpoints that follow one another share a part


class KnownModels:
    """Checkpoints that a backbone was trained on, and how far apart their models are.

    Args:
        layout: where the weights sit.
        groups: the architecture's permutation groups; without them models are compared as they lie.
        names_K: the model that each is a checkpoint of, those of a model in the order of its epochs.
        load: returns the weights, (N, P), of some checkpoints by number.
        reference_P: the model that they were brought to canonical form with; the first of them if None.
        columns_P: the weights of a judged model that are compared; all if None.
    """

    def __init__(
        self,
        layout: TokenLayout,
        groups: Sequence[PermutationGroup],
        names_K: Sequence[str],
        load: Callable[[Tensor], Tensor],
        reference_P: Tensor | None = None,
        columns_P: Tensor | None = None,
    ) -> None:
        self.reference_P = load(torch.tensor([0]))[0] if reference_P is None else reference_P
        self.layout, self.groups, self.load, self.columns_P = layout, groups, load, columns_P
        self.names = sorted(set(names_K))
        numbers = {name: number for number, name in enumerate(self.names)}
        self.model_K = torch.tensor([numbers[name] for name in names_K])

    @classmethod
    def from_tables(
        cls, tables: Mapping[str, tuple[TokenTable, Tensor]], judged: TokenLayout | None = None
    ) -> "KnownModels":
        """Take checkpoints from tokens; models are called `name of the table/model`.

        Weights are read when they are needed, and held while they are few.

        Args:
            tables: tokens by name, with the rows of the checkpoints, those of a model in the order of its epochs.
            judged: the layout of the models that will be judged, that of the tokens if None. If they differ in the last
                layer, for another number of classes, all but that is compared.

        Raises:
            ConfigError: there are no tokens, or the layouts differ in more.
        """
        layouts = [table.layout for table, _ in tables.values()]
        judged = judged or check_same_layout(layouts, "measuring novelty")
        layout, columns_P = judged, None
        if any(other.digest != judged.digest for other in layouts):
            layout = check_same_layout(map(cut_head, (judged, *layouts)), "measuring novelty")
            columns_P = find_columns(judged, layout)
        opened = list(tables.values())
        names = [
            f"{name}/{table.index['model'][row]}" for name, (table, rows) in tables.items() for row in rows.tolist()
        ]
        place_K2 = torch.tensor([(at, row) for at, (_, rows) in enumerate(opened) for row in rows.tolist()])

        @lru_cache(maxsize=_PARTS)
        def read_part(at: int, part: int) -> Tensor:
            return opened[at][0].read_part(part)

        def read(numbers_N: Tensor) -> Tensor:
            flat_NP = torch.empty(len(numbers_N), layout.weights)
            table_N, row_N = place_K2[numbers_N].unbind(dim=1)
            for at in table_N.unique().tolist():
                table = opened[at][0]
                own_N = table_N == at
                flat_XP = table.load(row_N[own_N], read_part=partial(read_part, at))
                flat_NP[own_N] = flat_XP if columns_P is None else flat_XP[:, find_columns(table.layout, layout)]
            return flat_NP

        held_KP = read(torch.arange(len(names))) if len(names) * layout.weights <= _CHUNK else None
        # The first training model of a zoo is what its others were aligned to.
        first = opened[0][0]
        reference_1P = first.load(first.pick_rows("train", last_epochs=1)[:1])
        reference_1P = reference_1P if columns_P is None else reference_1P[:, find_columns(first.layout, layout)]
        load = read if held_KP is None else held_KP.__getitem__
        return cls(layout, _cut_groups(first.groups, layout), names, load, reference_1P[0], columns_P)

    @cached_property
    def last_N(self) -> Tensor:
        """The last checkpoint of each model in `names`."""
        return torch.tensor([int((self.model_K == number).nonzero()[-1]) for number in range(len(self.names))])

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
        return self._find_nearest(flat_SP if self.columns_P is None else flat_SP[:, self.columns_P], not_S)

    def _find_nearest(self, flat_SP: Tensor, not_S: Tensor | None) -> tuple[Tensor, Tensor]:
        finite_S = flat_SP.isfinite().all(dim=1)
        flat_SP = flat_SP.where(finite_S[:, None], 0.0)
        distances_SK = self._measure(flat_SP)
        if self.groups:
            aligned_SP = self.align(flat_SP, self.reference_P)
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
            aligned_XP = self.align(flat_SP[own_S], self.load(torch.tensor([known]))[0])
            distances_X = torch.cdist(aligned_XP, self.load(of_model_K)).min(dim=1).values
            distances_S[own_S] = torch.minimum(distances_S[own_S], distances_X)
        return distances_S.masked_fill(~comparable_S, float("nan")), self.model_K[nearest_S]

    @cached_property
    def spacing(self) -> float:
        """The mean distance of the known models, at their last checkpoints, to the nearest checkpoint of another.

        NaN if there is one model.
        """
        found = [self._find_nearest(self.load(some), self.model_K[some])[0] for some in self._split(self.last_N)]
        return float(torch.cat(found).mean())

    def measure_novelty(self, flat_SP: Tensor) -> Tensor:
        """Return the distance to the nearest known checkpoint over the spacing, (S,)."""
        return self.find_nearest(flat_SP)[0] / self.spacing

    def align(self, flat_SP: Tensor, reference_P: Tensor) -> Tensor:
        """Return models with their hidden units in the order that is closest to a reference."""
        matching = match_population(self.layout, self.groups, flat_SP, reference_P)
        return apply_matching(self.layout, self.groups, flat_SP, matching)

    def _measure(self, flat_SP: Tensor) -> Tensor:
        return torch.cat([torch.cdist(flat_SP, self.load(rows)) for rows in self._split()], dim=1)

    def _split(self, rows_N: Tensor | None = None) -> list[Tensor]:
        rows_N = torch.arange(len(self.model_K)) if rows_N is None else rows_N
        return list(rows_N.split(max(1, _CHUNK // self.layout.weights)))


def open_known_models(samples: Artifact, store: ArtifactStore, layout: TokenLayout) -> KnownModels | None:
    """Open what samples of a layout are compared with, see `find_known_models`."""
    inputs = samples.manifest.inputs
    numbers = sorted(int(name.removeprefix("tokens/")) for name in inputs if name.startswith("tokens/"))
    tables = {number: read_tokens(store.open(ArtifactRef.parse(inputs[f"tokens/{number}"]))) for number in numbers}
    return find_known_models(store.open(ArtifactRef.parse(inputs["backbone"])), tables, layout)


def find_known_models(backbone: Artifact, tables: Mapping[int, TokenTable], layout: TokenLayout) -> KnownModels | None:
    """Return the checkpoints that a backbone was trained on, of the slices that anchors are from.

    Args:
        backbone: the BACKBONE artifact.
        tables: the tokens of the slices by number.
        layout: of the models that are judged.

    Returns:
        None if these are of another architecture than what is judged.
    """
    if {cut_head(table.layout).digest for table in tables.values()} != {cut_head(layout).digest}:
        return None
    used = pl.read_parquet(backbone.path("composition.parquet"))
    chosen = {str(number): (table, list_trained(used, number, table)) for number, table in tables.items()}
    return KnownModels.from_tables(chosen, layout)


def list_trained(used: pl.DataFrame, number: int, table: TokenTable) -> Tensor:
    """Return the rows of a slice's tokens that a backbone was trained on, by model and epoch."""
    rows = table.index.with_row_index("row").join(used.filter(slice=number), on=["model", "epoch"], how="semi")
    return torch.tensor(rows.sort("model", "epoch")["row"].to_list())


def _cut_groups(groups: Sequence[PermutationGroup], layout: TokenLayout) -> tuple[PermutationGroup, ...]:
    """Return the groups with their members in a layout alone."""
    kept = [
        group.model_copy(update={"members": tuple(m for m in group.members if m.tensor in layout.offsets)})
        for group in groups
    ]
    return tuple(group for group in kept if group.members)
