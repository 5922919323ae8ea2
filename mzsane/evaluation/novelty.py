"""How new models are: their distance to what the backbone was trained on, in units of the zoo's own spacing.

Models are compared up to symmetry: a copy of a training model scores 0, whatever the order, the signs (where the
activation is odd) and the scales (where it is homogeneous) of its hidden units; a model as far from all training models
as these are from one another scores 1. Accuracy alone says nothing about generation: published samplers were found to
copy (arXiv 2506.07998).

Suffixes: S models that are judged, K known checkpoints, N known models, or some of what is known, P weights of a model.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial

import polars as pl
import torch
from torch import Tensor

from mzsane.artifacts import Artifact, ArtifactRef, ArtifactStore
from mzsane.evaluation.nearest import NearestSearch
from mzsane.evaluation.quotient import Quotient
from mzsane.tokens.fitting import cut_head, find_columns
from mzsane.tokens.layout import TokenLayout, check_same_layout
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.tokens.symmetry.groups import PermutationGroup

_CHUNK = 2**26  # weights of the known checkpoints, and of the judged models, that are in memory together
_PARTS = 2  # parts of tokens that are kept when not all are held; checkpoints that follow one another share a part


class KnownModels:
    """Checkpoints that a backbone was trained on, and how far apart their models are.

    Args:
        layout: where the weights sit.
        groups: the architecture's permutation groups; without them models are compared as they lie.
        names_K: the model that each is a checkpoint of, those of a model in the order of its epochs. Checkpoints of a
            model have their units in the same order.
        load: returns the weights, (N, P), of some checkpoints by number.
        reference_P: a model that all are aligned to when candidates are looked for; the first of them if None.
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
        self.quotient = Quotient(layout, groups)
        self.search = NearestSearch(self.quotient, self.model_K, load, self.reference_P, _CHUNK)

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
        return self.search.last_N

    def against(self, names: Sequence[str], flat_KP: Tensor) -> "KnownModels":
        """Return other models in the place of the known ones, compared in the same way; each is one checkpoint.

        Args:
            names: what they are called; those of one name count as checkpoints of one model.
            flat_KP: their weights, as those of judged models.
        """
        body_KP = flat_KP if self.columns_P is None else flat_KP[:, self.columns_P]
        return KnownModels(self.layout, self.groups, names, body_KP.__getitem__, self.reference_P, self.columns_P)

    def find_nearest(self, flat_SP: Tensor, not_S: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the Euclidean distance to the nearest known checkpoint, and its model's number in `names`: (S,), (S,).

        It is a distance up to symmetry, of weights with balanced scales (see `mzsane.evaluation.nearest`). NaN for a
        model whose weights are not finite, or if there is nothing to compare it with.

        Args:
            flat_SP: models.
            not_S: for each the number of a model that does not count: itself.
        """
        return self._search_in_parts(flat_SP if self.columns_P is None else flat_SP[:, self.columns_P], not_S)

    def measure_distances(self, flat_SP: Tensor) -> Tensor:
        """Return the distance of each model to each known one, at its nearest checkpoint, (S, N).

        For few models: each is matched to all known ones. Weights have to be finite.
        """
        return self.search.find_all(flat_SP if self.columns_P is None else flat_SP[:, self.columns_P])

    @cached_property
    def spacing(self) -> float:
        """The mean distance of the known models, at their last checkpoints, to the nearest checkpoint of another.

        NaN if there is one model.
        """
        numbers_N = torch.arange(len(self.names))
        size = max(1, _CHUNK // self.layout.weights)
        found = [self._search_in_parts(self.load(self.last_N[some]), some)[0] for some in numbers_N.split(size)]
        return float(torch.cat(found).mean())

    def measure_novelty(self, flat_SP: Tensor) -> Tensor:
        """Return the distance to the nearest known checkpoint over the spacing, (S,)."""
        return self.find_nearest(flat_SP)[0] / self.spacing

    def measure_spread(self, flat_SP: Tensor) -> Tensor:
        """Return the distance of each model to the nearest other of them over the spacing, (S,).

        NaN for a model whose weights are not finite, or if there is no other.
        """
        finite_S = flat_SP.isfinite().all(dim=1)
        spread_S = torch.full((len(flat_SP),), float("nan"))
        count = int(finite_S.sum())
        if count > 1:
            others = self.against([f"{number:09d}" for number in range(count)], flat_SP[finite_S])
            spread_S[finite_S] = others.find_nearest(flat_SP[finite_S], torch.arange(count))[0] / self.spacing
        return spread_S

    def _search_in_parts(self, flat_SP: Tensor, not_S: Tensor | None) -> tuple[Tensor, Tensor]:
        size = max(1, _CHUNK // self.layout.weights)
        parts = [
            self.search.find(some_SP, None if not_S is None else not_S[number * size : (number + 1) * size])
            for number, some_SP in enumerate(flat_SP.split(size))
        ]
        distances, models = zip(*parts, strict=True)
        return torch.cat(distances), torch.cat(models)


def open_known_models(samples: Artifact, store: ArtifactStore, layout: TokenLayout) -> KnownModels | None:
    """Open what samples of a layout are compared with, see `find_known_models`."""
    inputs = samples.manifest.inputs
    numbers = sorted(int(name.removeprefix("tokens/")) for name in inputs if name.startswith("tokens/"))
    tables = {number: read_tokens(store.open(ArtifactRef.parse(inputs[f"tokens/{number}"]))) for number in numbers}
    return find_known_models(store.open(ArtifactRef.parse(inputs["backbone"])), tables, layout)


def find_known_models(backbone: Artifact, tables: Mapping[int, TokenTable], layout: TokenLayout) -> KnownModels | None:
    """Return the checkpoints that a backbone was trained on, as far as they are of the judged models' architecture.

    Args:
        backbone: the BACKBONE artifact.
        tables: the tokens of all slices by number. Those of another architecture are left out.
        layout: of the models that are judged.

    Returns:
        Models called `number of the slice/model`; None if none are of the architecture.
    """
    used = pl.read_parquet(backbone.path("composition.parquet"))
    chosen = {
        str(number): (table, list_trained(used, number, table))
        for number, table in tables.items()
        if cut_head(table.layout).digest == cut_head(layout).digest
    }
    return KnownModels.from_tables(chosen, layout) if chosen else None


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
