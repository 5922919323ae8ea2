"""The canonical form of a population: each model's hidden units in the order that is closest to a reference.

Weight matching (Git Re-Basin, arXiv 2209.04836, algorithm 1): one group after another is put in the order that has the
largest inner product with the reference while the other groups stay, until no group improves. The signs of units are
chosen with it only when asked for; scales are balanced before (`mzsane.symmetry.align.scales`).

Suffixes: B models, P weights of a model, G units of a group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.align.descent import match_models, measure_objective, prepare_steps
from mzsane.symmetry.align.scales import balance_scales, scale_units, scale_weights
from mzsane.symmetry.apply.permute import permute_weights
from mzsane.symmetry.groups import PermutationGroup

_CHUNK = 2**24  # weights of the models that are matched together


@dataclass(frozen=True)
class Matching:
    """What brings each model to canonical form: how its units correspond to those of the reference.

    Attributes:
        permutations: for each group (B, units) int64, in the convention of `permute_weights`.
        signs: for each group (B, units) of 1 and -1, by which the permuted units are multiplied; empty when not chosen.
        scales: for each group (B, units), by which the unpermuted units are scaled; empty when not balanced.
        objective_before_B: inner product of each model's weights with the reference, over all weights of the layout.
        objective_after_B: the same for the matched model.
    """

    permutations: list[Tensor]
    signs: list[Tensor]
    scales: list[Tensor]
    objective_before_B: Tensor
    objective_after_B: Tensor

    @classmethod
    def join(cls, parts: Sequence["Matching"]) -> "Matching":
        """Put the matchings of several populations behind one another."""

        def join_lists(lists: Sequence[list[Tensor]]) -> list[Tensor]:
            return [torch.cat(found) for found in zip(*lists, strict=True)]

        return cls(
            join_lists([part.permutations for part in parts]),
            join_lists([part.signs for part in parts]),
            join_lists([part.scales for part in parts]),
            torch.cat([part.objective_before_B for part in parts]),
            torch.cat([part.objective_after_B for part in parts]),
        )

    def pick(self, models_B: Tensor) -> "Matching":
        """Return the matching of chosen models, which may repeat."""
        return Matching(
            [found[models_B] for found in self.permutations],
            [found[models_B] for found in self.signs],
            [found[models_B] for found in self.scales],
            self.objective_before_B[models_B],
            self.objective_after_B[models_B],
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all as named tensors, as safetensors stores them."""
        lists = {"permutation": self.permutations, "sign": self.signs, "scale": self.scales}
        named = {f"{kind}.{number}": value for kind, values in lists.items() for number, value in enumerate(values)}
        return {**named, "objective_before": self.objective_before_B, "objective_after": self.objective_after_B}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Matching":
        """Read what `to_tensors` wrote."""

        def read_list(kind: str) -> list[Tensor]:
            count = sum(name.startswith(f"{kind}.") for name in tensors)
            return [tensors[f"{kind}.{number}"] for number in range(count)]

        lists = [read_list(kind) for kind in ("permutation", "sign", "scale")]
        return cls(lists[0], lists[1], lists[2], tensors["objective_before"], tensors["objective_after"])


def match_population(
    layout: TokenLayout,
    groups: Sequence[PermutationGroup],
    flat_BP: Tensor,
    reference: Tensor,
    *,
    signs: bool = False,
    scales: bool = False,
) -> Matching:
    """Find the order of hidden units that brings each model closest to a reference.

    The objective is the inner product of a model's weights with the reference's over every weight of the layout; its
    norm being fixed, the largest one is the smallest distance. A step is only taken when it raises the objective, so
    that it never goes down. The units of a block group (heads) are compared by the best assignment of the units inside
    them. Half precision is matched in float32, everything else in its own dtype.

    Args:
        layout: the layout of the architecture.
        groups: its groups, the groups inside of a block before the block.
        flat_BP: the models.
        reference: the model that they are matched to, (P,), or one for each of them, (B, P).
        signs: also choose the signs of units whose group allows it.
        scales: balance models and reference first, where groups allow it (`balance_scales`); the objective is that of
            the balanced weights.

    Raises:
        ConfigError: the weights do not fit the layout, or are not finite.
    """
    shapes = ((layout.weights,), tuple(flat_BP.shape))
    if flat_BP.ndim != 2 or flat_BP.shape[1] != layout.weights or tuple(reference.shape) not in shapes:
        raise ConfigError(
            f"models of shape {tuple(flat_BP.shape)} and a reference of shape {tuple(reference.shape)} do not fit a "
            f"layout of {layout.weights} weights"
        )
    work_type = torch.float64 if flat_BP.dtype == torch.float64 else torch.float32
    reference_BP = reference.detach().view(-1, layout.weights).to("cpu", work_type)
    if scales:
        reference_BP = scale_weights(layout, groups, balance_scales(layout, groups, reference_BP), reference_BP)
    common = prepare_steps(layout, groups, reference_BP, signs) if reference.ndim == 1 else None
    parts = []
    chunk = max(1, _CHUNK // layout.weights)
    # An empty population has one chunk, which is empty.
    for first, chunk_BP in enumerate(flat_BP.detach().split(chunk)):
        own_BP = reference_BP if reference.ndim == 1 else reference_BP[first * chunk : (first + 1) * chunk]
        steps = prepare_steps(layout, groups, own_BP, signs) if common is None else common
        work_BP = chunk_BP.to("cpu", work_type, copy=True)
        found_scales = balance_scales(layout, groups, work_BP) if scales else []
        if scales:
            work_BP = scale_weights(layout, groups, found_scales, work_BP)
        before_B = measure_objective(work_BP, own_BP)
        broken = int((~before_B.isfinite()).sum())
        if broken:
            raise ConfigError(f"{broken} of {len(work_BP)} models cannot be matched: weights that are not finite")
        found = match_models(steps, groups, work_BP)
        after_B = measure_objective(found.work_BP, own_BP)
        parts.append(Matching(found.permutations, found.signs if signs else [], found_scales, before_B, after_B))
    return Matching.join(parts)


def apply_matching(
    layout: TokenLayout, groups: Sequence[PermutationGroup], flat_BP: Tensor, matching: Matching
) -> Tensor:
    """Bring models to the canonical form that was found for them: scale, permute and flip signs.

    Without scales it is exact in every dtype.
    """
    if matching.scales:
        flat_BP = scale_weights(layout, groups, matching.scales, flat_BP)
    canonical_BP = permute_weights(layout, groups, matching.permutations, flat_BP)
    for group, signs_BG in zip(groups if matching.signs else (), matching.signs, strict=True):
        scale_units(layout, group, ("out", "in"), signs_BG, canonical_BP)
    return canonical_BP
