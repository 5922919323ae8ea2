"""Permutation groups of any network, derived by tracing it.

The network is exported to a graph of ATen operators, and the graph is run on labels instead of numbers: the label of an
element says which hidden unit it belongs to. Rules of the operators (`operators`) tie, freeze and nest units
(`units`); what is left free becomes groups (`grouping`), and every group must keep the function of a network with
random weights (`proof`). So a rule that is missing costs groups, and a rule that is wrong costs a warning.
"""

import warnings
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mzsane.layout.buffers import copy_network, list_statistics
from mzsane.symmetry.derive.grouping import build_groups
from mzsane.symmetry.derive.proof import FunctionCheck
from mzsane.symmetry.derive.tracer import Tracer
from mzsane.symmetry.groups import PermutationGroup

TOLERANCE = 1e-9  # relative, in float64


@dataclass(frozen=True)
class Symmetry:
    """The permutation groups of a network.

    Attributes:
        groups: in the order in which permutations are applied; groups inside the units of a block group come first.
        notes: warnings, one line each, that name the layers whose units stay in place.
    """

    groups: tuple[PermutationGroup, ...]
    notes: tuple[str, ...]


def derive_groups(network: nn.Module, example: Tensor, buffers: Collection[str] = ()) -> Symmetry:
    """Derive the permutation groups of a network by tracing it in evaluation mode.

    Args:
        network: any module that takes one tensor, with the buffers that its models have; it is not changed.
        example: an input, batch of 1; its values do not matter unless they are integers.
        buffers: those that every model has its own values of, so that they move with the units like weights.

    Returns:
        Groups that were all shown to keep the function, and notes on what stays in place.
    """
    generator = torch.Generator().manual_seed(0)
    example = example.detach().cpu()
    try:
        network = copy_network(network, example).cpu().eval()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, about its own copies of weights
            program = torch.export.export(network, (example,), strict=False)
    except Exception as error:  # anything that the module's code and the exporter may raise
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Symmetry((), (f"{type(network).__name__} cannot be exported, so no unit moves: {text}",))
    moving = {*buffers, *list_statistics(network)}
    tracer = Tracer(program, network, moving)
    tracer.run()
    groups = build_groups(tracer.units, tracer.slots, tracer.hash_occurrences())
    notes = list(tracer.notes.values())
    return _prove(network.double(), example, groups, notes, generator, moving)


def _prove(
    network: nn.Module,
    example: Tensor,
    groups: list[PermutationGroup],
    notes: list[str],
    generator: torch.Generator,
    moving: Collection[str],
) -> Symmetry:
    """Keep the groups, and their flags, that keep the function."""
    if not groups:
        return Symmetry((), tuple(notes))
    try:
        check = FunctionCheck(network, example, generator, moving)
    except Exception as error:  # whatever the module's code raises in float64
        return Symmetry((), (*notes, f"{type(network).__name__} does not run in float64, so no unit moves: {error}"))
    kept = check.select(groups, lambda some: check.measure_groups(some) < TOLERANCE)
    if len(kept) < len(groups) and not check.measure_groups(kept) < TOLERANCE:
        kept = []
    for group in groups:
        if group not in kept:
            notes.append(
                f"{group.members[0].tensor}: {group.units} units stay in place, moving them changes the output"
            )
    signed = check.select([g for g in kept if g.sign], lambda some: check.measure_signs(some) < TOLERANCE)
    scaled = check.select([g for g in kept if g.scale], lambda some: check.measure_scales(some) < TOLERANCE)
    flagged = [group.model_copy(update={"sign": group in signed, "scale": group in scaled}) for group in kept]
    return Symmetry(tuple(flagged), tuple(notes))
