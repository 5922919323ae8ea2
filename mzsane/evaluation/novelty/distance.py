"""How new models are: their distance to what the backbone was trained on, in units of the zoo's own spacing.

A copy of a training model scores 0, whatever element of the symmetry group was applied to it: its hidden units in
another order, signs of odd units flipped, scales of homogeneous units moved. A model as far from all training models as
these are from one another scores 1. Accuracy alone says nothing about generation: published samplers were found to copy
(arXiv 2506.07998).

Suffixes: S models that are judged, K known checkpoints, N known models or some of what is known, P weights of a model,
X checkpoints of one table.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial

import polars as pl
import torch
from torch import Tensor

from mzsane.composition import list_trained
from mzsane.evaluation.novelty.nearest import NearestSearch
from mzsane.evaluation.novelty.quotient import Quotient
from mzsane.layout.agreement import check_same_layout
from mzsane.layout.token_layout import TokenLayout
from mzsane.store.artifacts import Artifact, ArtifactRef, ArtifactStore
from mzsane.symmetry.groups import PermutationGroup, intersect_groups
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.tokens.transfer import cut_head, find_columns

_CHUNK = 2**26  # weights of the known checkpoints, and of the judged models, that are in memory together
_PARTS = 2  # parts of tokens that are kept when not all are held; checkpoints that follow one another share a part


class KnownModels:
    """Checkpoints that a backbone was trained on, and how far apart their models are.

    Args:
        layout: where the weights sit.
        groups: the architecture's symmetry groups; without them models are compared as they lie.
        names_K: the model that each is a checkpoint of, those of a model in the order of its epochs. They have their
            units in the same order.
        load: returns the weights, (N, P), of some checkpoints by number.
        references: the model that the checkpoints of each zoo were brought to canonical form with, by the part of
            their names before the slash; the first checkpoint of all if left out.
        columns_P: the weights of a judged model that are compared; all if None.
    """

    def __init__(
        self,
        layout: TokenLayout,
        groups: Sequence[PermutationGroup],
        names_K: Sequence[str],
        load: Callable[[Tensor], Tensor],
        references: Mapping[str, Tensor] | None = None,
        columns_P: Tensor | None = None,
    ) -> None:
        self.layout, self.groups, self.load, self.columns_P = layout, groups, load, columns_P
        self.names = sorted(set(names_K))
        numbers = {name: number for number, name in enumerate(self.names)}
        self.model_K = torch.tensor([numbers[name] for name in names_K])
        self.quotient = Quotient(layout, groups)
        zoos = list(references or ())
        self._zoo_K = torch.tensor([zoos.index(name.partition("/")[0]) if zoos else 0 for name in names_K])
        aligned_to = list((references or {}).values()) or [self.load(torch.tensor([0]))[0]]
        balanced = [self.quotient.balance(flat_P[None])[0] for flat_P in aligned_to]
        self._search = NearestSearch(self.quotient, self.model_K, self._zoo_K, self.load_balanced, balanced, _CHUNK)

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
        references = {}
        for name, (table, _) in tables.items():
            # The first training model of a zoo is what its others were aligned to.
            flat_1P = table.load(table.pick_rows("train", last_epochs=1)[:1])
            references[name] = flat_1P[0] if columns_P is None else flat_1P[0, find_columns(table.layout, layout)]
        load = read if held_KP is None else held_KP.__getitem__
        # Zoos of one layout may have different activations; one whose network is not known has no groups at all.
        groups = intersect_groups([table.groups for table, _ in opened if table.groups] or [()])
        return cls(layout, _cut_groups(groups, layout), names, load, references, columns_P)

    def against(self, names: Sequence[str], flat_KP: Tensor) -> "KnownModels":
        """Return other models, in the layout of those that are judged, to measure distances from."""
        cut_KP = flat_KP if self.columns_P is None else flat_KP[:, self.columns_P]
        return KnownModels(self.layout, self.groups, names, cut_KP.__getitem__, columns_P=self.columns_P)

    @cached_property
    def last_N(self) -> Tensor:
        """The last checkpoint of each model in `names`."""
        return self._search.last_N

    def find_nearest(self, flat_SP: Tensor, not_S: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the Euclidean distance to the nearest known checkpoint, and its model's number in `names`: (S,), (S,).

        It is a distance up to symmetry, of weights with balanced scales (see `nearest`). NaN for a model whose
        weights are not finite, or if there is nothing to compare it with.

        Args:
            flat_SP: models.
            not_S: for each the number of a model that does not count: itself.
        """
        body_SP = flat_SP if self.columns_P is None else flat_SP[:, self.columns_P]
        found = [
            self._search.find(body_SP[some], None if not_S is None else not_S[some, None] == self.model_K)
            for some in self.split(torch.arange(len(body_SP)))
        ]
        distances, models = zip(*found, strict=True)
        return torch.cat(distances), torch.cat(models)

    @cached_property
    def spacing(self) -> float:
        """The mean distance of the known models, at their last checkpoints, to the nearest checkpoint of another.

        The other is of the same zoo: zoos of one seed draw the same initial weights, and what became of these on two
        datasets lies closer together than two models of a zoo. NaN if no zoo has two models.
        """
        found = []
        for some_N in self.split(torch.arange(len(self.names))):
            last_N = self.last_N[some_N]
            not_NK = (some_N[:, None] == self.model_K) | (self._zoo_K[last_N][:, None] != self._zoo_K)
            found.append(self._search.find(self.load(last_N), not_NK)[0])
        return float(torch.cat(found).nanmean())

    def measure_novelty(self, flat_SP: Tensor) -> Tensor:
        """Return the distance to the nearest known checkpoint over the spacing, (S,)."""
        return self.find_nearest(flat_SP)[0] / self.spacing

    def measure_distances(self, flat_SP: Tensor, others_NP: Tensor) -> Tensor:
        """Return the distance of each model to each of some others, symmetries divided out, (S, N)."""
        if not len(others_NP):
            return torch.empty(len(flat_SP), 0)
        others = self.against([f"{number:09d}" for number in range(len(others_NP))], others_NP)
        return others._search.find_all(flat_SP if self.columns_P is None else flat_SP[:, self.columns_P])

    def prepare(self, flat_SP: Tensor) -> Tensor:
        """Return what is compared of judged models: their weights, scales balanced, without a head of other classes."""
        return self.quotient.balance(flat_SP if self.columns_P is None else flat_SP[:, self.columns_P])

    def measure_spread(self, flat_SP: Tensor) -> Tensor:
        """Return the distance to the nearest other of these models over the spacing, (S,); NaN where there is none."""
        finite_S = flat_SP.isfinite().all(dim=1)
        found_S = torch.full((len(flat_SP),), float("nan"))
        if int(finite_S.sum()) < 2:
            return found_S
        kept_SP = flat_SP[finite_S]
        others = self.against([f"{number:09d}" for number in range(len(kept_SP))], kept_SP)
        found_S[finite_S] = others.find_nearest(kept_SP, torch.arange(len(kept_SP)))[0]
        return found_S / self.spacing

    def load_balanced(self, rows_N: Tensor) -> Tensor:
        """Return known checkpoints with their scales balanced; kept while they are few."""
        if not self.quotient.scaled:
            return self.load(rows_N)
        return self._balanced_KP[rows_N] if self._few else self.quotient.balance(self.load(rows_N))

    @property
    def _few(self) -> bool:
        return len(self.model_K) * self.layout.weights <= _CHUNK

    @cached_property
    def _balanced_KP(self) -> Tensor:
        return self.quotient.balance(self.load(torch.arange(len(self.model_K))))

    def split(self, rows_N: Tensor | None = None) -> list[Tensor]:
        """Return numbers of checkpoints, of all if None, in parts that are in memory together."""
        rows_N = torch.arange(len(self.model_K)) if rows_N is None else rows_N
        return list(rows_N.split(max(1, _CHUNK // self.layout.weights)))


def open_trained_tokens(samples: Artifact, store: ArtifactStore) -> dict[int, TokenTable]:
    """Open the tokens that the backbone of some samples was trained on, by number of the slice."""
    inputs = samples.manifest.inputs
    numbers = sorted(int(name.removeprefix("tokens/")) for name in inputs if name.startswith("tokens/"))
    return {number: read_tokens(store.open(ArtifactRef.parse(inputs[f"tokens/{number}"]))) for number in numbers}


def open_known_models(samples: Artifact, store: ArtifactStore, layout: TokenLayout) -> KnownModels | None:
    """Open what samples of a layout are compared with, see `find_known_models`."""
    backbone = store.open(ArtifactRef.parse(samples.manifest.inputs["backbone"]))
    return find_known_models(backbone, open_trained_tokens(samples, store), layout)


def find_known_models(backbone: Artifact, tables: Mapping[int, TokenTable], layout: TokenLayout) -> KnownModels | None:
    """Return the checkpoints that a backbone was trained on, of the architecture of the models that are judged.

    Args:
        backbone: the BACKBONE artifact.
        tables: the tokens of all its slices, by number.
        layout: of the models that are judged.

    Returns:
        None if no slice has that architecture.
    """
    body = cut_head(layout).digest
    used = pl.read_parquet(backbone.path("composition.parquet"))
    chosen = {
        str(number): (table, list_trained(used, number, table))
        for number, table in tables.items()
        if cut_head(table.layout).digest == body
    }
    return KnownModels.from_tables(chosen, layout) if chosen else None


def _cut_groups(groups: Sequence[PermutationGroup], layout: TokenLayout) -> tuple[PermutationGroup, ...]:
    """Return the groups with their members in a layout alone."""
    kept = [
        group.model_copy(update={"members": tuple(m for m in group.members if m.tensor in layout.offsets)})
        for group in groups
    ]
    return tuple(group for group in kept if group.members)
