"""How new models are: their distance to what the backbone was trained on, in units of the zoo's own spacing.

A copy of a training model scores 0, whatever element of the symmetry group was applied to it: its hidden units in
another order, signs of odd units flipped, scales of homogeneous units moved. A model as far from all training models as
these are from one another scores 1. Accuracy alone says nothing about generation: published samplers were found to copy
(arXiv 2506.07998).

Suffixes: S models that are judged, K known checkpoints, N some of them, P weights of a model, X models with one
candidate, Z zoos.
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
from mzsane.tokens.symmetry.permute import permute_weights
from mzsane.tokens.symmetry.scales import balance_scales, scale_weights
from mzsane.tokens.symmetry.signatures import Signatures

_CHUNK = 2**26  # weights of the known checkpoints, and of the judged models, that are in memory together
_PARTS = 2  # parts of tokens that are kept when not all are held; checkpoints that follow one another share a part


class KnownModels:
    """Checkpoints that a backbone was trained on, and how far apart their models are.

    Args:
        layout: where the weights sit.
        groups: the architecture's symmetry groups; without them models are compared as they lie.
        names_K: the model that each is a checkpoint of, those of a model in the order of its epochs.
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
        self._scaled = any(group.scale for group in groups)
        self._signatures = Signatures(layout, groups)
        zoos = list(references or ())
        self._references = [self._balance(flat_P[None])[0] for flat_P in (references or {}).values()]
        if not zoos:
            self._references = [self.load_balanced(torch.tensor([0]))[0]]
        self._zoo_K = torch.tensor([zoos.index(name.partition("/")[0]) if zoos else 0 for name in names_K])

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
        return cls(layout, _cut_groups(opened[0][0].groups, layout), names, load, references, columns_P)

    def against(self, names: Sequence[str], flat_KP: Tensor) -> "KnownModels":
        """Return other models, in the layout of those that are judged, to measure distances from."""
        cut_KP = flat_KP if self.columns_P is None else flat_KP[:, self.columns_P]
        return KnownModels(self.layout, self.groups, names, cut_KP.__getitem__, columns_P=self.columns_P)

    @cached_property
    def last_N(self) -> Tensor:
        """The last checkpoint of each model in `names`."""
        return torch.tensor([int((self.model_K == number).nonzero()[-1]) for number in range(len(self.names))])

    def find_nearest(self, flat_SP: Tensor, not_S: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the Euclidean distance to the nearest known checkpoint, and its model's number in `names`: (S,), (S,).

        Scales are balanced first, of judged and of known models. Weight matching is a heuristic that can end in
        another order of the units, so that it starts more than once: each model is taken as it lies or aligned to the
        reference of its zoo, whichever is nearer to a checkpoint, and aligned to that; aligned to it again from the
        order that the signatures of units say; and, from their order, to the checkpoint whose signatures are most like
        its own, which of a copy is its original. Each time it is compared with all checkpoints of the model; the least
        distance counts. NaN for a model whose weights are not finite, or if there is nothing to compare it with.

        Args:
            flat_SP: models.
            not_S: for each the number of a model that does not count: itself.
        """
        return self._find_nearest(flat_SP if self.columns_P is None else flat_SP[:, self.columns_P], not_S)

    def _find_nearest(self, flat_SP: Tensor, not_S: Tensor | None) -> tuple[Tensor, Tensor]:
        finite_S = flat_SP.isfinite().all(dim=1)
        flat_SP = self._balance(flat_SP.where(finite_S[:, None], 0.0))
        distances_SK = self._exclude(self._measure(flat_SP), not_S)
        work_SP = flat_SP
        if self.groups:
            aligned_SP = self._align_to_references(flat_SP, self._zoo_K[distances_SK.argmin(dim=1)])
            aligned_SK = self._exclude(self._measure(aligned_SP), not_S)
            nearer_S = aligned_SK.min(dim=1).values < distances_SK.min(dim=1).values
            work_SP = aligned_SP.where(nearer_S[:, None], flat_SP)
            distances_SK = aligned_SK.where(nearer_S[:, None], distances_SK)
        distances_S, nearest_S = distances_SK.min(dim=1)
        comparable_S = finite_S & distances_S.isfinite()
        models_S = self.model_K[nearest_S]
        if self.groups:
            signatures = self._signatures.measure(flat_SP)
            summary_SF = self._signatures.summarise(signatures)
            twin_S = self._exclude(torch.cdist(summary_SF, self._summary_KF), not_S).argmin(dim=1)
            for start_SP, candidate_S in ((work_SP, nearest_S), (None, nearest_S), (None, twin_S)):
                found_S = self._match_candidates(
                    flat_SP if start_SP is None else start_SP, candidate_S, signatures if start_SP is None else None
                )
                models_S = models_S.where(found_S >= distances_S, self.model_K[candidate_S])
                distances_S = torch.minimum(distances_S, found_S)
        return distances_S.masked_fill(~comparable_S, float("nan")), models_S

    def _match_candidates(self, flat_SP: Tensor, candidate_S: Tensor, signatures: Sequence[Tensor] | None) -> Tensor:
        """Return the least distance to the checkpoints of each model's candidate, aligned to it, (S,).

        Where the signatures of the models are given, the alignment starts from the order that they say.
        """
        candidate_SP = self.load_balanced(candidate_S)
        if signatures is not None:
            orders = self._signatures.match(signatures, self._signatures.measure(candidate_SP))
            flat_SP = permute_weights(self.layout, self.groups, orders, flat_SP)
            flat_SP = self._signatures.orient(flat_SP, candidate_SP)
        aligned_SP = self._align(flat_SP, candidate_SP)
        distances_S = torch.empty(len(flat_SP))
        models_S = self.model_K[candidate_S]
        for model in models_S.unique().tolist():
            own_S = models_S == model
            checkpoints_NP = self.load_balanced((self.model_K == model).nonzero().squeeze(1))
            distances_S[own_S] = torch.cdist(aligned_SP[own_S], checkpoints_NP).min(dim=1).values
        return distances_S

    @cached_property
    def spacing(self) -> float:
        """The mean distance of the known models, at their last checkpoints, to the nearest checkpoint of another.

        NaN if there is one model.
        """
        found = [self._find_nearest(self.load(some), self.model_K[some])[0] for some in self.split(self.last_N)]
        return float(torch.cat(found).mean())

    def measure_novelty(self, flat_SP: Tensor) -> Tensor:
        """Return the distance to the nearest known checkpoint over the spacing, (S,)."""
        return self.find_nearest(flat_SP)[0] / self.spacing

    def measure_distances(self, flat_SP: Tensor, others_NP: Tensor) -> Tensor:
        """Return the distance of each model to each of some others, symmetries divided out, (S, N)."""
        flat_SP, others_NP = self.prepare(flat_SP), self.prepare(others_NP)
        if not self.groups:
            return torch.cdist(flat_SP, others_NP)
        found = [torch.cdist(self._align(flat_SP, other_P), other_P[None]) for other_P in others_NP]
        return torch.cat(found, dim=1) if found else torch.empty(len(flat_SP), 0)

    def prepare(self, flat_SP: Tensor) -> Tensor:
        """Return what is compared of judged models: their weights, scales balanced, without a head of other classes."""
        return self._balance(flat_SP if self.columns_P is None else flat_SP[:, self.columns_P])

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

    @cached_property
    def _summary_KF(self) -> Tensor:
        parts = [self._signatures.measure(self.load_balanced(some)) for some in self.split()]
        return torch.cat([self._signatures.summarise(signatures) for signatures in parts])

    def _align_to_references(self, flat_SP: Tensor, zoo_S: Tensor) -> Tensor:
        aligned_SP = flat_SP.clone()
        for zoo in zoo_S.unique().tolist():
            aligned_SP[zoo_S == zoo] = self._align(flat_SP[zoo_S == zoo], self._references[zoo])
        return aligned_SP

    def _align(self, flat_SP: Tensor, reference: Tensor) -> Tensor:
        """Return balanced models, units in the order and with the signs closest to one model, or each to its own."""
        matching = match_population(self.layout, self.groups, flat_SP, reference, signs=True)
        return apply_matching(self.layout, self.groups, flat_SP, matching)

    def _balance(self, flat_BP: Tensor) -> Tensor:
        if not self._scaled:
            return flat_BP
        scales = balance_scales(self.layout, self.groups, flat_BP)
        return scale_weights(self.layout, self.groups, scales, flat_BP)

    def load_balanced(self, rows_N: Tensor) -> Tensor:
        """Return known checkpoints with their scales balanced; kept while they are few."""
        if not self._scaled:
            return self.load(rows_N)
        return self._balanced_KP[rows_N] if self._few else self._balance(self.load(rows_N))

    @property
    def _few(self) -> bool:
        return len(self.model_K) * self.layout.weights <= _CHUNK

    @cached_property
    def _balanced_KP(self) -> Tensor:
        return self._balance(self.load(torch.arange(len(self.model_K))))

    def _exclude(self, distances_SK: Tensor, not_S: Tensor | None) -> Tensor:
        if not_S is not None:
            distances_SK[not_S[:, None] == self.model_K[None]] = float("inf")
        return distances_SK

    def _measure(self, flat_SP: Tensor) -> Tensor:
        return torch.cat([torch.cdist(flat_SP, self.load_balanced(rows)) for rows in self.split()], dim=1)

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
