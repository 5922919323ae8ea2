"""The nearest of many known checkpoints, up to symmetry.

The best order of units cannot be searched for with every checkpoint. Models are proposed in two ways: by the distance
as they lie or after alignment to the reference of the known one's zoo, whichever is less, and by that of summaries,
which no symmetry changes: the original of an exact copy is always among these. Each judged model is matched to all that
are proposed, and compared with all checkpoints of these models. That finds copies surely, and the least distance up to
a few percent.

Suffixes: S models that are judged, K known checkpoints, N known models, Z zoos, B pairs of a judged model and a
checkpoint, X some of them, R some known checkpoints, P weights of a model, F numbers of a summary.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from mzsane.evaluation.novelty.quotient import Quotient
from mzsane.symmetry.align.canonical import Matching

_CHUNK = 2**24  # weights of the pairs that are matched together
_BY_WEIGHTS, _BY_SUMMARIES = 2, 1  # models that are proposed
_LYING, _ALIGNED, _SIGNATURES = range(3)  # orders that a pair is matched from

Load = Callable[[Tensor], Tensor]


class NearestSearch:
    """Searches known checkpoints for the nearest.

    Args:
        quotient: the symmetries.
        model_K: number of the model that each is a checkpoint of, those of a model in the order of its epochs and with
            their units in the same order.
        zoo_K: number of its zoo.
        load: returns the weights, (R, P), of some checkpoints by number, scales balanced.
        references: for each zoo the model that its own are aligned to, scales balanced.
        held: weights that may be held in memory at once.
    """

    def __init__(
        self,
        quotient: Quotient,
        model_K: Tensor,
        zoo_K: Tensor,
        load: Load,
        references: Sequence[Tensor],
        held: int,
    ) -> None:
        self.quotient, self.model_K, self.zoo_K, self.load, self.held = quotient, model_K, zoo_K, load, held
        self.reference_ZP = torch.stack(list(references))
        self._few = len(model_K) * quotient.layout.weights <= held

    @cached_property
    def last_N(self) -> Tensor:
        """The last checkpoint of each model."""
        numbers = range(int(self.model_K.max()) + 1)
        return torch.tensor([int((self.model_K == number).nonzero()[-1]) for number in numbers])

    def find(self, flat_SP: Tensor, not_SK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the distance to the nearest checkpoint, and its model's number: (S,), (S,).

        NaN for a model whose weights are not finite, or if there is nothing to compare it with.

        Args:
            flat_SP: models.
            not_SK: checkpoints that do not count.
        """
        finite_S = flat_SP.isfinite().all(dim=1)
        plain_SP = self.quotient.balance(flat_SP.where(finite_S[:, None], 0.0))
        aligned_ZSP = self._align(plain_SP)
        lying_SK, aligned_SK = self._measure(plain_SP, aligned_ZSP)
        excluded_SK = torch.zeros_like(lying_SK, dtype=torch.bool) if not_SK is None else not_SK
        judged_B, known_B = self._propose(torch.minimum(lying_SK, aligned_SK), _BY_WEIGHTS, excluded_SK)
        start_B = torch.where(lying_SK[judged_B, known_B] < aligned_SK[judged_B, known_B], _LYING, _ALIGNED)
        if self.quotient.groups:
            summaries_SK = torch.cdist(self.quotient.summarise(plain_SP), self._summary_KF)
            alike_B, original_B = self._propose(summaries_SK, _BY_SUMMARIES, excluded_SK)
            judged_B, known_B = torch.cat([judged_B, alike_B]), torch.cat([known_B, original_B])
            start_B = torch.cat([start_B, torch.full_like(alike_B, _SIGNATURES)])
        distance_B = self._match(judged_B, known_B, start_B, plain_SP, aligned_ZSP)
        nearest_S = torch.full((len(flat_SP),), torch.nan)
        model_S = torch.zeros(len(flat_SP), dtype=torch.int64)
        for pair in distance_B.argsort(descending=True).tolist():  # what is written last is the nearest
            nearest_S[judged_B[pair]], model_S[judged_B[pair]] = distance_B[pair], self.model_K[known_B[pair]]
        return nearest_S.masked_fill(~finite_S, torch.nan), model_S

    def find_all(self, flat_SP: Tensor) -> Tensor:
        """Return the distance of each model to each known one, at its nearest checkpoint, (S, N).

        They are matched from the order that is closest to the reference. Weights have to be finite.
        """
        plain_SP = self.quotient.balance(flat_SP)
        judged_B = torch.arange(len(flat_SP)).repeat_interleave(len(self.last_N))
        start_B = torch.full_like(judged_B, _ALIGNED)
        known_B = self.last_N.repeat(len(flat_SP))
        return self._match(judged_B, known_B, start_B, plain_SP, self._align(plain_SP)).view(len(flat_SP), -1)

    def _align(self, plain_SP: Tensor) -> Tensor:
        """Return models aligned to the reference of each zoo, (Z, S, P)."""
        if not self.quotient.groups:
            return plain_SP.expand(len(self.reference_ZP), -1, -1)
        return torch.stack([self.quotient.match(plain_SP, reference_P[None]) for reference_P in self.reference_ZP])

    def _propose(self, distances_SK: Tensor, count: int, excluded_SK: Tensor) -> tuple[Tensor, Tensor]:
        """Return pairs of a judged model and a checkpoint, (B,) twice: the nearest of each of the nearest models."""
        left_SK = distances_SK.masked_fill(excluded_SK, torch.inf)
        judged, known = [], []
        for _ in range(min(count, len(self.last_N))):
            distance_S, known_S = left_SK.min(dim=1)
            judged_B = distance_S.isfinite().nonzero().squeeze(1)
            judged.append(judged_B)
            known.append(known_S[judged_B])
            left_SK.masked_fill_(self.model_K[known_S][:, None] == self.model_K, torch.inf)
        return torch.cat(judged), torch.cat(known)

    def _match(
        self, judged_B: Tensor, known_B: Tensor, start_B: Tensor, plain_SP: Tensor, aligned_ZSP: Tensor
    ) -> Tensor:
        """Match each judged model to its checkpoint, and return its distance to the nearest one of that model, (B,)."""
        distance_B = torch.empty(len(judged_B))
        # Pairs with one known model are side by side.
        for some_X in known_B.argsort().split(max(1, _CHUNK // self.quotient.layout.weights)):
            if len(some_X):
                pairs = (judged_B[some_X], known_B[some_X], start_B[some_X])
                distance_B[some_X] = self._match_some(*pairs, plain_SP, aligned_ZSP)
        return distance_B

    def _match_some(
        self, judged_X: Tensor, known_X: Tensor, start_X: Tensor, plain_SP: Tensor, aligned_ZSP: Tensor
    ) -> Tensor:
        known_R, place_X = known_X.unique(return_inverse=True)
        model_X = self.model_K[known_X]
        reference_XP = self._load_aligned(known_R)[place_X]
        matched_XP = aligned_ZSP[self.zoo_K[known_X], judged_X]
        if self.quotient.groups:
            lying_X = start_X == _LYING  # as they lie beside the known one, which is moved with it
            moved = self._alignment.pick(model_X[lying_X])
            matched_XP[lying_X] = self.quotient.align(plain_SP[judged_X[lying_X]], moved)
            told_X = start_X == _SIGNATURES
            matched_XP[told_X] = self.quotient.order(matched_XP[told_X], reference_XP[told_X])
            matched_XP = self.quotient.match(matched_XP, reference_XP)
        distance_X = torch.empty(len(judged_X))
        for model in model_X.unique().tolist():
            same_X = (model_X == model).nonzero().squeeze(1)
            of_model_RP = self._load_aligned((self.model_K == model).nonzero().squeeze(1))
            # Products of matrices would lose what is left of a copy.
            exact = "donot_use_mm_for_euclid_dist"
            distance_X[same_X] = torch.cdist(matched_XP[same_X], of_model_RP, compute_mode=exact).min(dim=1).values
        return distance_X

    def _measure(self, plain_SP: Tensor, aligned_ZSP: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance to each checkpoint, as models lie and aligned to its zoo's reference, (S, K) twice."""
        lying_SK = torch.empty(len(plain_SP), len(self.model_K))
        aligned_SK = torch.empty_like(lying_SK)
        for rows_R in self._split():
            lying_SK[:, rows_R] = torch.cdist(plain_SP, self.load(rows_R))
            for zoo in self.zoo_K[rows_R].unique().tolist():
                own_R = rows_R[self.zoo_K[rows_R] == zoo]
                aligned_SK[:, own_R] = torch.cdist(aligned_ZSP[zoo], self._load_aligned(own_R))
        return lying_SK, aligned_SK

    @cached_property
    def _summary_KF(self) -> Tensor:
        return torch.cat([self.quotient.summarise(self.load(rows_R)) for rows_R in self._split()])

    @cached_property
    def _alignment(self) -> Matching:
        """What aligns each model to the reference of its zoo, at its last checkpoint."""
        parts = [
            self.quotient.find_alignment(self.load(rows_R), self.reference_ZP[self.zoo_K[rows_R]])
            for rows_R in self._split(self.last_N)
        ]
        return Matching.join(parts)

    def _load_aligned(self, rows_R: Tensor) -> Tensor:
        if not self.quotient.groups:
            return self.load(rows_R)
        return self._aligned_KP[rows_R] if self._few else self._read_aligned(rows_R)

    @cached_property
    def _aligned_KP(self) -> Tensor:
        return self._read_aligned(torch.arange(len(self.model_K)))

    def _read_aligned(self, rows_R: Tensor) -> Tensor:
        return self.quotient.align(self.load(rows_R), self._alignment.pick(self.model_K[rows_R]))

    def _split(self, rows_R: Tensor | None = None) -> list[Tensor]:
        rows_R = torch.arange(len(self.model_K)) if rows_R is None else rows_R
        return list(rows_R.split(max(1, self.held // self.quotient.layout.weights)))
