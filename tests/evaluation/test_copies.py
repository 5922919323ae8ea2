"""A copy is not new: whatever the order, the signs and the scales of its hidden units, in every architecture."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from mzsane.config import GlyphsConfig, NetworkConfig, RecipeConfig
from mzsane.evaluation.novelty import KnownModels
from mzsane.randomness import make_generator
from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.symmetry.groups import draw_permutations
from mzsane.tokens.symmetry.permute import permute_weights
from mzsane.tokens.symmetry.scales import scale_units
from mzsane.tokens.symmetry.trace import derive_groups
from mzsane.zoo.architectures import build_network, initialise_network
from mzsane.zoo.fit import fit_epochs
from mzsane.zoo.images import ImageSplit, load_images

COPIES, TOGETHER, MODELS = 500, 100, 5
NETWORKS = {
    "cnn-s": NetworkConfig(),
    "cnn-l": NetworkConfig(architecture="cnn-l"),
    "mlp": NetworkConfig(architecture="mlp", activation="relu"),
    "resnet18": NetworkConfig(architecture="resnet18", width=8, activation="relu"),
    "vit": NetworkConfig(architecture="vit", width=16),
}
SYMMETRIES = {"cnn-s": "sign", "cnn-l": "sign", "mlp": "scale", "vit": "sign"}  # beside the order


@pytest.fixture(scope="module", params=NETWORKS)
def zoo(request):
    """Return the name of an architecture and a zoo of it: few models, trained briefly, their last two epochs kept."""
    config = NETWORKS[request.param]
    size = 32 if request.param == "cnn-l" else 28
    images = load_images(GlyphsConfig(source="glyphs", images=160, characters="ABCD"))
    split = images.splits["train"]
    split = ImageSplit(functional.interpolate(split.images_NCHW, (size, size)), split.labels_N)
    flat, names = [], []
    for number in range(MODELS):
        network = build_network(config, images.channels, images.classes, size)
        initialise_network(network, "kaiming_uniform", make_generator(number, "start"))
        layout = TokenLayout.from_network(network, 64)
        epochs = fit_epochs(network, split, RecipeConfig(batch_size=32), make_generator(number, "fit"))
        for epoch, _ in zip(range(3), epochs, strict=False):
            if epoch:
                flat.append(layout.flatten(network.state_dict()))
                names.append(f"{number}")
    groups = derive_groups(network, split.images_NCHW[:1]).groups
    return request.param, KnownModels(layout, groups, names, torch.stack(flat).__getitem__)


def move_units(known, flat_SP, generator):
    """Return models under random elements of their groups: permutations, and signs and scales where they may be."""
    moved_SP = permute_weights(
        known.layout, known.groups, draw_permutations(known.groups, len(flat_SP), generator), flat_SP
    )
    for group in known.groups:
        draw = partial(torch.rand, len(flat_SP), group.units, generator=generator)
        if group.sign:
            scale_units(known.layout, group, ("out", "in"), torch.where(draw() < 0.5, -1.0, 1.0), moved_SP)
        if group.scale:
            scale_SG = ((2 * draw() - 1) * math.log(3)).exp()
            scale_units(known.layout, group, ("out",), scale_SG, moved_SP)
            scale_units(known.layout, group, ("in",), 1 / scale_SG, moved_SP)
    return moved_SP


def test_copies_under_all_symmetries_are_found(zoo):
    name, known = zoo
    if name in SYMMETRIES:
        assert any(getattr(group, SYMMETRIES[name]) for group in known.groups)
    generator = make_generator(0, "copies")
    found, moved = [], []
    for first in range(0, COPIES, TOGETHER):
        chosen_S = torch.arange(first, first + TOGETHER) % len(known.model_K)
        flat_SP = known.load(chosen_S)
        copies_SP = move_units(known, flat_SP, generator)
        moved.append((copies_SP - flat_SP).norm(dim=1) / known.spacing)
        distance_S, model_S = known.find_nearest(copies_SP)
        found.append((distance_S < 0.05 * known.spacing) & (model_S == known.model_K[chosen_S]))
    assert torch.cat(moved).min() > 0.5  # compared as they lie, they would be new
    assert torch.cat(found).double().mean() >= 0.99


def test_a_model_beside_a_copy_is_as_far_as_it_was_moved(zoo):
    _, known = zoo
    generator = make_generator(1, "copies")
    flat_SP = known.load(known.last_N)
    noise_SP = functional.normalize(torch.randn(flat_SP.shape, generator=generator), dim=1)
    balanced_SP = known.quotient.balance(flat_SP)
    near_SP = move_units(known, balanced_SP + 0.1 * known.spacing * noise_SP, generator)
    torch.testing.assert_close(known.measure_novelty(near_SP), torch.full((MODELS,), 0.1), rtol=0.1, atol=0)
