"""Permutations and the canonical form: times the copy of the same bytes, and models or windows a second on one core.

Every figure of a ratio is taken next to its copy, in turns, and the median is reported.
"""

import time

import torch
from measuring import make_row, time_in_turns
from torch import Tensor

from mzsane.config import NetworkConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network, initialise_network
from mzsane.symmetry.align.canonical import apply_matching, match_population
from mzsane.symmetry.apply.permute import cut_views, permute_weights
from mzsane.symmetry.derive.trace import derive_groups
from mzsane.symmetry.groups import PermutationGroup, draw_permutations

REPEATS = 7
VERSIONS = 6


def load_case(
    architecture: str, channels: int, size: int, token_dim: int, models: int
) -> tuple[TokenLayout, tuple[PermutationGroup, ...], Tensor]:
    """Return the layout, the groups and freshly initialised models of an architecture."""
    network = build_network(NetworkConfig(architecture=architecture), channels, 10, size)
    layout = TokenLayout.from_network(network, token_dim)
    groups = derive_groups(network, torch.zeros(1, channels, size, size)).groups
    population = []
    for seed in range(models):
        initialise_network(network, "kaiming_uniform", torch.Generator().manual_seed(seed))
        population.append(layout.flatten(network.state_dict()))
    return layout, groups, torch.stack(population)


def measure_permutation(name: str, case: tuple, bar: float | None) -> dict:
    """Permute every group of all models of a case."""
    layout, groups, flat_BP = case
    permutations = draw_permutations(groups, len(flat_BP), torch.Generator().manual_seed(0))
    copy, permute = time_in_turns(
        REPEATS, flat_BP.clone, lambda: permute_weights(layout, groups, permutations, flat_BP)
    )
    return make_row(name, permute / copy, "ratio", 1e3 * copy, bar, at_most=True)


def measure_views() -> list[dict]:
    """Cut windows in six views, one of them as it is."""
    generator = torch.Generator().manual_seed(0)
    layout, groups, flat_BP = load_case("resnet18", 3, 32, 288, 1)
    starts = torch.randint(layout.length - 2048, (8, 1), generator=generator)
    (large,) = time_in_turns(
        REPEATS, lambda: [cut_views(layout, groups, flat_BP, start_1, 2048, VERSIONS, generator) for start_1 in starts]
    )
    layout, groups, flat_BP = load_case("cnn-s", 1, 28, 51, 128)
    start_B = torch.zeros(len(flat_BP), dtype=torch.int64)
    (small,) = time_in_turns(
        REPEATS, lambda: cut_views(layout, groups, flat_BP, start_B, layout.length, VERSIONS, generator)
    )
    return [
        make_row("windows of 2,048 tokens of a ResNet-18, six views", len(starts) / large, "1/s", 0.8, 60),
        make_row("whole CNN-s, six views", len(flat_BP) / small, "1/s", 300, 5000),
    ]


def measure_matching() -> list[dict]:
    """Bring 1,000 CNN-s and one ResNet-18 to canonical form."""
    rows = []
    for name, case, bar in (
        ("canonical form of 1,000 CNN-s", load_case("cnn-s", 1, 28, 51, 1001), 2),
        ("canonical form of a ResNet-18", load_case("resnet18", 3, 32, 288, 2), 20),
    ):
        layout, groups, flat_BP = case
        started = time.perf_counter()
        matching = match_population(layout, groups, flat_BP[1:], flat_BP[0])
        apply_matching(layout, groups, flat_BP[1:], matching)
        rows.append(make_row(name, time.perf_counter() - started, "s", None, bar, at_most=True))
    return rows


def measure_symmetry() -> list[dict]:
    """Measure everything on one thread."""
    return [
        measure_permutation(
            "permute every group of a ResNet-18, times the copy", load_case("resnet18", 3, 32, 288, 1), 2.5
        ),
        measure_permutation(
            "permute every group of 1,000 CNN-s, times the copy", load_case("cnn-s", 1, 28, 51, 1000), None
        ),
        *measure_views(),
        *measure_matching(),
    ]
