"""A copy is a copy under any element of the symmetry group: permutations, signs of odd units, homogeneous scales."""

import pytest
import torch

from mzsane.config import NetworkConfig
from mzsane.evaluation.novelty.distance import KnownModels
from mzsane.evaluation.novelty.norms import NormRange
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network, initialise_network
from mzsane.randomness import make_generator
from mzsane.symmetry.align.scales import scale_units
from mzsane.symmetry.apply.permute import permute_weights
from mzsane.symmetry.derive.trace import derive_groups
from mzsane.symmetry.groups import draw_permutations

COPIES = 500
ZOO = 5  # models; training moves them by half a spacing from where they are drawn, so that untrained ones will do
ARCHITECTURES = {
    "cnn-s": ({"activation": "tanh"}, 1, 28),
    "cnn-l": ({"activation": "tanh"}, 3, 32),
    "mlp": ({"activation": "relu", "width": 8}, 1, 28),
    "resnet18": ({"activation": "relu", "width": 8}, 3, 32),
    "vit": ({"activation": "gelu"}, 1, 28),
}


def draw_zoo(architecture):
    """Models with weights of the usual size and no two numbers alike: norms and biases are not constant either."""
    settings, channels, pixels = ARCHITECTURES[architecture]
    network = build_network(NetworkConfig(architecture=architecture, **settings), channels, 10, pixels)
    layout = TokenLayout.from_network(network, 51, "in" if architecture == "resnet18" else "conditioned")
    symmetry = derive_groups(network, torch.zeros(1, channels, pixels, pixels))
    assert symmetry.groups
    generator = make_generator(0, architecture)
    models = []
    for _ in range(ZOO):
        initialise_network(network, "kaiming_uniform", generator)
        flat_P = layout.flatten(network.state_dict())
        models.append(flat_P + 0.02 * torch.randn(flat_P.shape, generator=generator))
    return network, layout, symmetry.groups, torch.stack(models), generator


def disguise(layout, groups, flat_BP, generator):
    """Apply a random element of the group to each model."""
    changed_BP = permute_weights(layout, groups, draw_permutations(groups, len(flat_BP), generator), flat_BP).clone()
    for group in groups:
        if group.sign:
            sign_BG = torch.randint(0, 2, (len(flat_BP), group.units), generator=generator) * 2.0 - 1
            scale_units(layout, group, ("out", "in"), sign_BG, changed_BP)
        if group.scale:
            scale_BG = (2.2 * torch.rand(len(flat_BP), group.units, generator=generator) - 1.1).exp()  # 1/3 to 3
            scale_units(layout, group, ("out",), scale_BG, changed_BP)
            scale_units(layout, group, ("in",), 1 / scale_BG, changed_BP)
    return changed_BP


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_disguised_copies_have_no_novelty(architecture):
    _, layout, groups, flat_KP, generator = draw_zoo(architecture)
    known = KnownModels(layout, groups, [f"0/{number}" for number in range(ZOO)], flat_KP.__getitem__)
    assert known.spacing > 0
    original_S = torch.randint(ZOO, (COPIES,), generator=generator)
    found = []
    for some_S in original_S.split(50):
        copies_SP = disguise(layout, groups, flat_KP[some_S], generator)
        plain_S = torch.cdist(copies_SP, flat_KP).min(dim=1).values
        assert plain_S.min() > 0.3 * known.spacing  # as they lie they are no copies
        distances_S, nearest_S = known.find_nearest(copies_SP)
        found.append((distances_S / known.spacing < 0.05) & (nearest_S == some_S))
    assert torch.cat(found).double().mean() >= 0.99


@pytest.mark.parametrize("architecture", ["cnn-s", "mlp"])
def test_a_copy_that_is_disguised_has_the_norms_of_its_original(architecture):
    _, layout, groups, flat_KP, generator = draw_zoo(architecture)
    known = KnownModels(layout, groups, [f"0/{number}" for number in range(ZOO)], flat_KP.__getitem__)
    norms = NormRange.from_models(known)
    copies_KP = disguise(layout, groups, flat_KP, generator)
    for ours, theirs in zip(norms.measure(copies_KP), norms.measure(flat_KP), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=1e-4)
    # Of no group's scale is a whole layer: three times the head is another function, and larger.
    head = layout.layers[-1].entries[0]
    larger_KP = flat_KP.clone()
    larger_KP[:, layout.offsets[head.name] :][:, : head.size] *= 3
    ratio_K, outside_K = norms.measure(larger_KP)
    assert outside_K.all()
    assert ratio_K.min() > 1.2


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_what_is_beside_a_disguised_model_is_as_far_as_it_was_moved(architecture):
    _, layout, groups, flat_KP, generator = draw_zoo(architecture)
    known = KnownModels(layout, groups, [f"0/{number}" for number in range(ZOO)], flat_KP.__getitem__)
    original_S = torch.arange(20) % ZOO
    noise_SP = torch.randn(20, layout.weights, generator=generator)
    distance = 0.1 * known.spacing
    moved_SP = known.prepare(flat_KP)[original_S] + distance * noise_SP / noise_SP.norm(dim=1, keepdim=True)
    distances_S, nearest_S = known.find_nearest(disguise(layout, groups, moved_SP, generator))
    found_S = (nearest_S == original_S) & ((distances_S / distance - 1).abs() < 0.1)
    assert found_S.double().mean() >= 0.95
