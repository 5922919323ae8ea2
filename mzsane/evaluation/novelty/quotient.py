"""Weights up to symmetry: brought to the order, the signs and the scales in which they are closest to another model's.

Suffixes: B models, P weights of a model, F numbers of a model.
"""

from collections.abc import Sequence

from torch import Tensor

from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.align.canonical import Matching, apply_matching, match_population
from mzsane.symmetry.align.descent import match_models, prepare_steps
from mzsane.symmetry.align.scales import balance_scales, scale_weights
from mzsane.symmetry.align.signatures import Signatures
from mzsane.symmetry.apply.permute import permute_weights
from mzsane.symmetry.groups import PermutationGroup


class Quotient:
    """The symmetries of an architecture, divided out of the distance of its models.

    Args:
        layout: where the weights sit.
        groups: the architecture's groups, or those of its body; without them models are compared as they lie.
    """

    def __init__(self, layout: TokenLayout, groups: Sequence[PermutationGroup]) -> None:
        self.layout, self.groups = layout, tuple(groups)
        self.scaled = any(group.scale for group in groups)
        self._signatures = Signatures(layout, self.groups)

    def balance(self, flat_BP: Tensor) -> Tensor:
        """Return models whose units have the scales at which what makes them and what uses them has the same norm."""
        if not self.scaled:
            return flat_BP
        return scale_weights(self.layout, self.groups, balance_scales(self.layout, self.groups, flat_BP), flat_BP)

    def find_alignment(self, flat_BP: Tensor, reference_BP: Tensor) -> Matching:
        """Return the order and the signs that bring each balanced model closest to its own reference."""
        return match_population(self.layout, self.groups, flat_BP, reference_BP, signs=True)

    def align(self, flat_BP: Tensor, matching: Matching) -> Tensor:
        """Return balanced models in the order and with the signs that were found for them."""
        return apply_matching(self.layout, self.groups, flat_BP, matching)

    def match(self, flat_BP: Tensor, reference_BP: Tensor) -> Tensor:
        """Return balanced models as close to their references as weight matching brings them from where they lie.

        Args:
            flat_BP: models.
            reference_BP: one for each, or a single row for all.
        """
        steps = prepare_steps(self.layout, self.groups, reference_BP, signs=True)
        return match_models(steps, self.groups, flat_BP.clone()).work_BP

    def order(self, flat_BP: Tensor, reference_BP: Tensor) -> Tensor:
        """Return each balanced model with the order and signs of its own reference, as units' signatures tell."""
        ours, theirs = (self._signatures.measure(some_BP) for some_BP in (flat_BP, reference_BP))
        ordered_BP = permute_weights(self.layout, self.groups, self._signatures.match(ours, theirs), flat_BP)
        return self._signatures.orient(ordered_BP, reference_BP)

    def summarise(self, flat_BP: Tensor) -> Tensor:
        """Return numbers of balanced models that are the same for all copies of a model, (B, F)."""
        return self._signatures.summarise(self._signatures.measure(flat_BP))
