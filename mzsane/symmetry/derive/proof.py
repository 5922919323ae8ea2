"""Proof by function: a network with permuted weights must compute what it computed before.

Suffixes: none; parameters are dictionaries by name.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mzsane.layout.buffers import list_statistics
from mzsane.symmetry.groups import GroupMember, PermutationGroup

Tensors = dict[str, Tensor]
_SMALL = 1_000_000  # weights
_INPUTS = 16  # for a small network


def permute_parameters(
    parameters: Mapping[str, Tensor], groups: Sequence[PermutationGroup], permutations: Sequence[Tensor]
) -> Tensors:
    """Permute the hidden units of one network: the plain reference that faster versions are tested against.

    Args:
        parameters: parameters and running statistics by name; those that no group touches are handed on.
        groups: applied in their order.
        permutations: for each group, (units,) int64: new unit i is old unit `permutation[i]`.

    Returns:
        New tensors under the same names.
    """
    result = dict(parameters)
    orders: dict[tuple[str, int], Tensor] = {}  # one gather an axis, however many groups touch it
    for group, permutation in zip(groups, permutations, strict=True):
        for member in group.members:
            value = result[member.tensor]
            indices = torch.tensor(member.indices)
            if member.rows is None:
                order = orders.setdefault((member.tensor, member.axis), torch.arange(value.shape[member.axis]))
                order[indices] = order[indices[permutation]]
            else:
                # Columns inside some rows. Groups that move these rows as a whole come later in the order.
                value = value.clone()
                rows = value[slice(*member.rows)]
                order = torch.arange(value.shape[member.axis])
                order[indices] = order[indices[permutation]]
                rows.copy_(rows.index_select(member.axis, order))
                result[member.tensor] = value
    for (name, axis), order in orders.items():
        result[name] = result[name].index_select(axis, order)
    return result


def draw_generic_weights(network: nn.Module, generator: torch.Generator, moving: Collection[str] = ()) -> Tensors:
    """Draw weights, norms and moving buffers that no two units share, so that a wrong permutation changes outputs."""
    drawn: Tensors = {}
    moving = {*moving, *list_statistics(network)}
    seen: set[int] = set()  # tied parameters are drawn once
    for module_name, module in network.named_modules():
        prefix = f"{module_name}." if module_name else ""
        for name, value in module.named_parameters(recurse=False):
            if id(value) in seen:
                continue
            seen.add(id(value))
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if value.ndim > 1:
                value_drawn = noise * math.sqrt(2 / max(1, value[0].numel()))
            elif name.endswith("weight"):
                value_drawn = 1 + 0.5 * noise.tanh()
            else:
                value_drawn = 0.3 * noise
            drawn[prefix + name] = value_drawn.to(value.dtype)
        for name, value in module.named_buffers(recurse=False):
            if prefix + name in moving and id(value) not in seen:
                seen.add(id(value))
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
                drawn[prefix + name] = 0.3 * noise if name == "running_mean" else 1 + 0.5 * noise.tanh()
    return drawn


def _draw_inputs(example: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw inputs of an example's shape; integers are the example's own in another order."""
    shape = (count, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    chosen = torch.randint(example.numel(), shape, generator=generator)
    return example.reshape(-1)[chosen]


class FunctionCheck:
    """Compares what a network computes with two sets of weights, at random inputs, in float64."""

    def __init__(
        self, network: nn.Module, example: Tensor, generator: torch.Generator, moving: Collection[str] = ()
    ) -> None:
        """Take a network in evaluation mode and float64 that nobody else uses."""
        self._network = network
        self.weights = draw_generic_weights(network, generator, moving)
        self._generator = generator
        # All ReLU units of a small layer may be dead at one input, and then no error shows.
        small = sum(value.numel() for value in self.weights.values()) < _SMALL
        self._input = _draw_inputs(example, _INPUTS if small else 1, generator)
        try:
            self._expected = self._compute(self.weights)
        except Exception:  # a module written for batches of 1 may raise anything
            self._input = self._input[:1]
            self._expected = self._compute(self.weights)

    def _compute(self, weights: Tensors) -> list[Tensor]:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = torch.func.functional_call(self._network, weights, (self._input,))
        return [leaf.clone() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]

    def measure_change(self, weights: Tensors) -> float:
        """Return the largest change of an output, relative to the largest value of that output; nan if not finite."""
        change = 0.0
        for ours, theirs in zip(self._compute(weights), self._expected, strict=True):
            size = max(float(theirs.abs().max()), 1e-30) if theirs.numel() else 1.0
            value = float((ours.double() - theirs.double()).abs().max()) / size if theirs.numel() else 0.0
            change = max(change, value) if math.isfinite(value) else math.nan
        return change

    def measure_groups(self, groups: Sequence[PermutationGroup]) -> float:
        """Return the change after one random permutation of every group; each is a cycle that moves every unit."""
        permutations = []
        for group in groups:
            order = torch.randperm(group.units, generator=self._generator)
            permutations.append(torch.empty_like(order).index_copy_(0, order, order.roll(1)))
        return self.measure_change(permute_parameters(self.weights, groups, permutations))

    def select(
        self, groups: Sequence[PermutationGroup], holds: Callable[[Sequence[PermutationGroup]], bool]
    ) -> list[PermutationGroup]:
        """Return the groups for which something holds, asking for all at once and for halves where it does not."""
        if not groups or holds(groups):
            return list(groups)
        if len(groups) == 1:
            return []
        half = len(groups) // 2
        return self.select(groups[:half], holds) + self.select(groups[half:], holds)

    def measure_signs(self, groups: Sequence[PermutationGroup]) -> float:
        """Return the change after flipping the sign of every second unit."""
        return self.measure_change(self._rescale(groups, lambda role: -1.0))

    def measure_scales(self, groups: Sequence[PermutationGroup]) -> float:
        """Return the change after scaling every second unit by 1.7."""
        return self.measure_change(self._rescale(groups, lambda role: 1.7 if role == "out" else 1 / 1.7))

    def _rescale(self, groups: Sequence[PermutationGroup], factor: Callable[[str], float]) -> Tensors:
        result = dict(self.weights)
        for group in groups:
            for member in group.members:
                result[member.tensor] = _rescale_member(result[member.tensor], member, factor(member.role))
        return result


def _rescale_member(value: Tensor, member: GroupMember, factor: float) -> Tensor:
    indices = torch.tensor(member.indices[::2]).reshape(-1)
    value = value.clone()
    rows = value if member.rows is None else value[slice(*member.rows)]
    rows.index_copy_(member.axis, indices, rows.index_select(member.axis, indices) * factor)
    return value
