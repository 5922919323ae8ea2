"""The nearest of many known checkpoints, up to symmetry.

The best order of units cannot be searched for with every checkpoint. Three ways propose models: the distance as
they lie, that after alignment to one reference, and that of fingerprints, which no symmetry changes: the original of an
exact copy is always among them. Each judged model is matched to all that are proposed, and compared with all
checkpoints of these models.

Suffixes: S models that are judged, K known checkpoints, N known models, C proposed models, B pairs of a judged model
and a checkpoint, R some known checkpoints, P weights of a model, Q numbers of a fingerprint.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from mzsane.evaluation.quotient import Quotient
from mzsane.tokens.symmetry.canonical import Matching

_CHUNK = 2**24  # weights of the pairs that are matched together
_AS_THEY_LIE, _ALIGNED, _BY_FINGERPRINT = 1, 3, 1  # models that each way proposes

Load = Callable[[Tensor], Tensor]
Match = Callable[[Tensor, Tensor], Tensor]


class NearestSearch:
    """Searches known checkpoints for the nearest.

    Args:
        quotient: the symmetries.
        model_K: number of the model that each is a checkpoint of, those of a model in the order of its epochs and with
            their units in the same order.
        load: returns the weights, (R, P), of some checkpoints by number.
        reference_P: the model that all are aligned to.
        held: weights that may be held in memory at once.
    """

    def __init__(self, quotient: Quotient, model_K: Tensor, load: Load, reference_P: Tensor, held: int) -> None:
        self.quotient, self.model_K, self.held = quotient, model_K, held
        self.reference_P = quotient.balance(reference_P[None])[0]
        few = len(model_K) * quotient.layout.weights <= held
        self.load_plain = self._hold(lambda rows_R: quotient.balance(load(rows_R)), few) if quotient.scaled else load
        self.load_aligned = self._hold(self._read_aligned, few)

    def find(self, flat_SP: Tensor, not_S: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the distance to the nearest checkpoint, and its model's number: (S,), (S,).

        NaN for a model whose weights are not finite, or if there is nothing to compare it with.

        Args:
            flat_SP: models.
            not_S: for each the number of a model that does not count.
        """
        quotient = self.quotient
        finite_S = flat_SP.isfinite().all(dim=1)
        plain_SP = quotient.balance(flat_SP.where(finite_S[:, None], 0.0))
        lying_SK = self._measure(plain_SP, self.load_plain)
        ways: list[tuple[int, Tensor, Tensor, Load, Match]] = [
            (_AS_THEY_LIE, lying_SK, plain_SP, self.load_plain, quotient.match)
        ]
        if quotient.groups:
            aligned_SP = quotient.align(plain_SP, quotient.find_alignment(plain_SP, self.reference_P))
            coarse_SK = self._measure(aligned_SP, self.load_aligned)
            of_prints_SK = torch.cdist(quotient.fingerprint(plain_SP), self._fingerprint_KQ)
            ways += [
                (_ALIGNED, coarse_SK, aligned_SP, self.load_aligned, quotient.match),
                (_BY_FINGERPRINT, of_prints_SK, plain_SP, self.load_plain, quotient.match_by_signatures),
            ]
        nearest_S = torch.full((len(flat_SP),), float("inf"))
        model_S = torch.zeros(len(flat_SP), dtype=torch.int64)
        for count, distances_SK, start_SP, load, match in ways:
            if not_S is not None:
                distances_SK[not_S[:, None] == self.model_K] = float("inf")
            judged_B, known_B = self._propose(distances_SK, count)
            found_B = self._compare(judged_B, known_B, start_SP, load, match)
            for distance, judged, known in zip(found_B.tolist(), judged_B.tolist(), known_B.tolist(), strict=True):
                if distance < nearest_S[judged]:
                    nearest_S[judged], model_S[judged] = distance, self.model_K[known]
        return nearest_S.where(finite_S & nearest_S.isfinite(), float("nan")), model_S

    def _propose(self, distances_SK: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return pairs of a judged model and a checkpoint: the nearest of each of the nearest models."""
        pairs = []
        for _ in range(min(count, int(self.model_K.max()) + 1)):
            distance_S, known_S = distances_SK.min(dim=1)
            judged_B = distance_S.isfinite().nonzero().squeeze(1)
            pairs.append(torch.stack([known_S[judged_B], judged_B]))
            distances_SK[self.model_K[known_S][:, None] == self.model_K] = float("inf")
        known_B, judged_B = torch.cat(pairs, dim=1)
        order_B = known_B.argsort()  # those with one model are read together
        return judged_B[order_B], known_B[order_B]

    def _compare(self, judged_B: Tensor, known_B: Tensor, start_SP: Tensor, load: Load, match: Match) -> Tensor:
        """Return the distance of each pair, the judged model matched to the checkpoint, to any checkpoint of its model.

        Distances are summed as they are: products of matrices lose what is left of a copy.
        """
        parts = []
        size = max(1, _CHUNK // self.quotient.layout.weights)
        for own_B, with_B in zip(judged_B.split(size), known_B.split(size), strict=True):
            if not len(own_B):
                return torch.empty(0)
            known_R, place_B = with_B.unique(return_inverse=True)
            matched_BP = match(start_SP[own_B], load(known_R)[place_B])
            found_B = torch.empty(len(own_B))
            model_B = self.model_K[with_B]
            for model in model_B.unique().tolist():
                same_B = (model_B == model).nonzero().squeeze(1)
                of_model_RP = load((self.model_K == model).nonzero().squeeze(1))
                exact = "donot_use_mm_for_euclid_dist"
                found_B[same_B] = torch.cdist(matched_BP[same_B], of_model_RP, compute_mode=exact).min(dim=1).values
            parts.append(found_B)
        return torch.cat(parts)

    def _measure(self, flat_SP: Tensor, load: Load) -> Tensor:
        return torch.cat([torch.cdist(flat_SP, load(rows_R)) for rows_R in self._split()], dim=1)

    @cached_property
    def _fingerprint_KQ(self) -> Tensor:
        return torch.cat([self.quotient.fingerprint(self.load_plain(rows_R)) for rows_R in self._split()])

    @cached_property
    def _alignment(self) -> Matching:
        """What aligns each model to the reference, at its last checkpoint."""
        count = int(self.model_K.max()) + 1
        last_N = torch.tensor([int((self.model_K == number).nonzero()[-1]) for number in range(count)])
        parts = [self.quotient.find_alignment(self.load_plain(r), self.reference_P) for r in self._split(last_N)]
        return Matching.join(parts)

    def _read_aligned(self, rows_R: Tensor) -> Tensor:
        return self.quotient.align(self.load_plain(rows_R), self._alignment.pick(self.model_K[rows_R]))

    def _hold(self, read: Load, few: bool) -> Load:
        """Return what reads all checkpoints at once, at the first call, when they are few."""
        kept: list[Tensor] = []

        def pick(rows_R: Tensor) -> Tensor:
            if not kept:
                kept.append(read(torch.arange(len(self.model_K))))
            return kept[0][rows_R]

        return pick if few else read

    def _split(self, rows_R: Tensor | None = None) -> list[Tensor]:
        rows_R = torch.arange(len(self.model_K)) if rows_R is None else rows_R
        return list(rows_R.split(max(1, self.held // self.quotient.layout.weights)))
