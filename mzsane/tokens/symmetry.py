"""Permutation symmetry: groups of hidden units, permutations as index maps on flat weights, and the canonical form.

A group names the tensor axes that a permutation of one layer's hidden units touches: the rows of its weight and bias
and the columns of its consumer, the latter in blocks where a flatten stands between. Applying any permutation of any
group leaves the network's function unchanged (Git Re-Basin, arXiv 2209.04836).

Suffixes: B models, P weights of a model, G units of a group.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mzsane.tokens.layout import TokenLayout

_MAX_SWEEPS = 100
_ELEMENTWISE = (nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Dropout, nn.Identity)


class GroupMember(BaseModel):
    """One tensor axis that a group permutes; each unit owns `block` consecutive indices of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tensor: str
    axis: int
    block: int = 1


class PermutationGroup(BaseModel):
    """Hidden units that may be permuted together."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    units: int
    members: tuple[GroupMember, ...]


def derive_groups(network: nn.Module) -> tuple[PermutationGroup, ...]:
    """Derive the permutation groups of a network whose layers form a chain.

    The layers are walked in order; the outputs of one linear or convolution layer are the group that the next one
    consumes.

    Raises:
        ValueError: the network is not a chain, or has a layer whose effect on the order of units is not known.
    """
    children = list(network.children())
    one_chain = isinstance(network, nn.Sequential) or (len(children) == 1 and isinstance(children[0], nn.Sequential))
    inner = [module for module in network.modules() if list(module.children()) and module is not network]
    once = len(list(network.named_modules())) == len(list(network.named_modules(remove_duplicate=False)))
    if not (once and one_chain and all(isinstance(module, nn.Sequential) for module in inner)):
        raise ValueError(f"no permutation groups for {type(network).__name__}: it is not a chain of layers")
    groups = []
    open_group: tuple[int, list[GroupMember]] | None = None
    before: nn.Module | None = None  # the last layer that decides what the units are
    for name, layer in network.named_modules():
        if list(layer.children()) or isinstance(layer, (*_ELEMENTWISE, nn.MaxPool2d, nn.AvgPool2d)):
            continue
        if not _follows(layer, before):
            raise ValueError(f"no permutation groups for layer {name} ({type(layer).__name__}) at this place")
        before = layer
        if isinstance(layer, nn.Flatten):
            continue
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if open_group is not None:
            units, members = open_group
            if weight.shape[1] % units:
                raise ValueError(f"layer {name} has {weight.shape[1]} inputs, which {units} units do not divide")
            consumer = GroupMember(tensor=f"{name}.weight", axis=1, block=weight.shape[1] // units)
            groups.append(PermutationGroup(units=units, members=(*members, consumer)))
        members = [GroupMember(tensor=f"{name}.weight", axis=0)]
        if layer.bias is not None:
            members.append(GroupMember(tensor=f"{name}.bias", axis=0))
        open_group = (weight.shape[0], members)
    return tuple(groups)


def _follows(layer: nn.Module, before: nn.Module | None) -> bool:
    """Tell whether the units of `before` (None at the input) are what `layer` takes, whole or in blocks."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and (before is None or isinstance(before, nn.Conv2d))
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1) and not isinstance(before, nn.Linear)
    return isinstance(layer, nn.Linear) and not isinstance(before, nn.Conv2d)


def build_permutation_map(
    layout: TokenLayout, groups: Sequence[PermutationGroup], permutations: Sequence[Tensor]
) -> Tensor:
    """Compose one permutation a group into an index map on flat weights.

    Args:
        layout: the layout of the architecture.
        groups: its groups.
        permutations: for each group, (B, units) int64: new unit i is old unit `permutation[b, i]`.

    Returns:
        (B, P) int64: `flat_BP.gather(1, result)` is the permuted population.
    """
    batch = len(permutations[0])
    axes: dict[tuple[str, int], Tensor] = {}
    for group, permutation_BG in zip(groups, permutations, strict=True):
        for member in group.members:
            within = torch.arange(member.block)
            indices = permutation_BG[:, :, None] * member.block + within
            axes[member.tensor, member.axis] = indices.reshape(batch, -1)
    pieces = []
    for entry in layout.tensors:
        index = torch.full((batch, 1), layout.offsets[entry.name])
        stride = entry.size
        for axis, size in enumerate(entry.shape):
            stride //= size
            steps_BS = axes.get((entry.name, axis), torch.arange(size).expand(batch, size)) * stride
            index = (index[:, :, None] + steps_BS[:, None, :]).flatten(1)
        pieces.append(index)
    return torch.cat(pieces, dim=1)


def draw_permutations(groups: Sequence[PermutationGroup], batch: int, generator: torch.Generator) -> list[Tensor]:
    """Draw `batch` uniformly random permutations of every group: a list of (batch, units) int64."""
    return [torch.rand(batch, group.units, generator=generator).argsort(dim=1) for group in groups]


def match_weights(
    parameters: Mapping[str, Tensor], reference: Mapping[str, Tensor], groups: Sequence[PermutationGroup]
) -> list[Tensor]:
    """Find the permutations that bring one model closest to a reference.

    Coordinate descent over groups: one linear assignment a group on the sum of inner products over all tensors it
    touches, until no group improves (Git Re-Basin, algorithm 1).

    Returns:
        For each group, (units,) int64, in the convention of `build_permutation_map`.
    """
    theirs = {name: value.double().numpy() for name, value in reference.items()}
    ours = {name: value.double().numpy() for name, value in parameters.items()}
    found = [np.arange(group.units) for group in groups]
    for _ in range(_MAX_SWEEPS):
        improved = False
        for number, group in enumerate(groups):
            gain = np.zeros((group.units, group.units))
            for member in group.members:
                gain += _inner_products(theirs[member.tensor], ours[member.tensor], member, group.units)
            _, choice = linear_sum_assignment(gain, maximize=True)
            if gain[np.arange(group.units), choice].sum() > np.trace(gain) + 1e-9:
                improved = True
                found[number] = found[number][choice]
                for member in group.members:
                    ours[member.tensor] = _permute_axis(ours[member.tensor], member, choice)
        if not improved:
            break
    return [torch.from_numpy(permutation) for permutation in found]


def _inner_products(theirs: np.ndarray, ours: np.ndarray, member: GroupMember, units: int) -> np.ndarray:
    a, b = (np.moveaxis(x, member.axis, 0).reshape(units, -1) for x in (theirs, ours))
    products: np.ndarray = a @ b.T
    return products


def _permute_axis(value: np.ndarray, member: GroupMember, choice: np.ndarray) -> np.ndarray:
    index = (choice[:, None] * member.block + np.arange(member.block)).reshape(-1)
    permuted: np.ndarray = np.take(value, index, axis=member.axis)
    return permuted
