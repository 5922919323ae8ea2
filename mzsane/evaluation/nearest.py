"""The nearest of many known checkpoints, up to symmetry.

The best order of units cannot be searched for with every checkpoint. Models are proposed in two ways: by the distance
as they lie or after alignment to one reference, whichever is less, and by that of fingerprints, which no symmetry
changes: the original of an exact copy is always among these. Each judged model is matched to all that are proposed, and
compared with all checkpoints of these models. That finds copies surely, and the least distance up to a few percent.

Suffixes: S models that are judged, K known checkpoints, N known models, B pairs of a judged model and a checkpoint, X
some of them, R some known checkpoints, P weights of a model, Q numbers of a fingerprint.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from mzsane.evaluation.quotient import Quotient
from mzsane.tokens.symmetry.canonical import Matching

_CHUNK = 2**24  # weights of the pairs that are matched together
_BY_WEIGHTS, _BY_FINGERPRINTS = 3, 1  # models that are proposed
_LYING, _ALIGNED, _SIGNATURES = range(3)  # orders that a pair is matched from

Load = Callable[[Tensor], Tensor]


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
        self.load_aligned = self._hold(self._read_aligned, few) if quotient.groups else self.load_plain

    @cached_property
    def last_N(self) -> Tensor:
        """The last checkpoint of each model."""
        numbers = range(int(self.model_K.max()) + 1)
        return torch.tensor([int((self.model_K == number).nonzero()[-1]) for number in numbers])

    def find(self, flat_SP: Tensor, not_S: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the distance to the nearest checkpoint, and its model's number: (S,), (S,).

        NaN for a model whose weights are not finite, or if there is nothing to compare it with.

        Args:
            flat_SP: models.
            not_S: for each the number of a model that does not count.
        """
        finite_S = flat_SP.isfinite().all(dim=1)
        plain_SP = self.quotient.balance(flat_SP.where(finite_S[:, None], 0.0))
        aligned_SP = self.quotient.match(plain_SP, self.reference_P[None])
        lying_SK, aligned_SK = self._measure(plain_SP, self.load_plain), self._measure(aligned_SP, self.load_aligned)
        prints_SK = torch.cdist(self.quotient.fingerprint(plain_SP), self._fingerprint_KQ)
        by_weights_2B = self._propose(torch.minimum(lying_SK, aligned_SK), _BY_WEIGHTS, not_S)
        by_prints_2B = self._propose(prints_SK, _BY_FINGERPRINTS, not_S)
        judged_B, known_B = torch.cat([by_weights_2B, by_prints_2B], dim=1)
        start_B = torch.full_like(judged_B, _SIGNATURES)
        start_B[: by_weights_2B.shape[1]] = torch.where(
            lying_SK[tuple(by_weights_2B)] < aligned_SK[tuple(by_weights_2B)], _LYING, _ALIGNED
        )
        distance_B = self._match(judged_B, known_B, start_B, plain_SP, aligned_SP)
        nearest_S = torch.full((len(flat_SP),), torch.nan)
        model_S = torch.zeros(len(flat_SP), dtype=torch.int64)
        for pair in distance_B.argsort(descending=True).tolist():  # what is written last is the nearest
            nearest_S[judged_B[pair]], model_S[judged_B[pair]] = distance_B[pair], self.model_K[known_B[pair]]
        return nearest_S.masked_fill(~finite_S, torch.nan), model_S

    def _propose(self, distances_SK: Tensor, count: int, not_S: Tensor | None) -> Tensor:
        """Return pairs of a judged model and a checkpoint, (2, B): the nearest of each of the nearest models."""
        left_SK = distances_SK if not_S is None else distances_SK.masked_fill(not_S[:, None] == self.model_K, torch.inf)
        pairs = []
        for _ in range(min(count, len(self.last_N))):
            distance_S, known_S = left_SK.min(dim=1)
            judged_B = distance_S.isfinite().nonzero().squeeze(1)
            pairs.append(torch.stack([judged_B, known_S[judged_B]]))
            left_SK = left_SK.masked_fill(self.model_K[known_S][:, None] == self.model_K, torch.inf)
        return torch.cat(pairs, dim=1)

    def find_all(self, flat_SP: Tensor) -> Tensor:
        """Return the distance of each model to each known one, at its nearest checkpoint, (S, N).

        They are matched from the order that is closest to the reference. Weights have to be finite.
        """
        plain_SP = self.quotient.balance(flat_SP)
        aligned_SP = self.quotient.match(plain_SP, self.reference_P[None])
        judged_B = torch.arange(len(flat_SP)).repeat_interleave(len(self.last_N))
        start_B = torch.full_like(judged_B, _ALIGNED)
        distance_B = self._match(judged_B, self.last_N.repeat(len(flat_SP)), start_B, plain_SP, aligned_SP)
        return distance_B.view(len(flat_SP), -1)

    def _match(
        self, judged_B: Tensor, known_B: Tensor, start_B: Tensor, plain_SP: Tensor, aligned_SP: Tensor
    ) -> Tensor:
        """Match each judged model to its checkpoint, and return its distance to the nearest one of that model, (B,)."""
        distance_B = torch.empty(len(judged_B))
        # Pairs with one known model are side by side.
        for some_X in known_B.argsort().split(max(1, _CHUNK // self.quotient.layout.weights)):
            distance_B[some_X] = self._match_some(
                judged_B[some_X], known_B[some_X], start_B[some_X], plain_SP, aligned_SP
            )
        return distance_B

    def _match_some(
        self, judged_X: Tensor, known_X: Tensor, start_X: Tensor, plain_SP: Tensor, aligned_SP: Tensor
    ) -> Tensor:
        known_R, place_X = known_X.unique(return_inverse=True)
        model_X = self.model_K[known_X]
        reference_XP = self.load_aligned(known_R)[place_X]
        matched_XP = aligned_SP[judged_X]
        if self.quotient.groups:
            lying_X = start_X == _LYING  # as they lie beside the known one, which is moved with it
            matched_XP[lying_X] = self.quotient.align(
                plain_SP[judged_X[lying_X]], self._alignment.pick(model_X[lying_X])
            )
            signed_X = start_X == _SIGNATURES
            matched_XP[signed_X] = self.quotient.order(matched_XP[signed_X], reference_XP[signed_X])
            matched_XP = self.quotient.match(matched_XP, reference_XP)
        distance_X = torch.empty(len(judged_X))
        for model in model_X.unique().tolist():
            same_X = (model_X == model).nonzero().squeeze(1)
            of_model_RP = self.load_aligned((self.model_K == model).nonzero().squeeze(1))
            # Products of matrices would lose what is left of a copy.
            exact = "donot_use_mm_for_euclid_dist"
            distance_X[same_X] = torch.cdist(matched_XP[same_X], of_model_RP, compute_mode=exact).min(dim=1).values
        return distance_X

    def _measure(self, flat_SP: Tensor, load: Load) -> Tensor:
        return torch.cat([torch.cdist(flat_SP, load(rows_R)) for rows_R in self._split()], dim=1)

    @cached_property
    def _fingerprint_KQ(self) -> Tensor:
        return torch.cat([self.quotient.fingerprint(self.load_plain(rows_R)) for rows_R in self._split()])

    @cached_property
    def _alignment(self) -> Matching:
        """What aligns each model to the reference, at its last checkpoint."""
        parts = [self.quotient.find_alignment(self.load_plain(r), self.reference_P) for r in self._split(self.last_N)]
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
