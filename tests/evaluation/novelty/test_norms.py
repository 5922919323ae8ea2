"""Weights that have grown are told from those of training models, scales that were only moved are not."""

import math

import pytest
import torch

from mzsane.config import NetworkConfig
from mzsane.evaluation.novelty.distance import KnownModels
from mzsane.evaluation.novelty.norms import NormRange
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network, initialise_network
from mzsane.randomness import make_generator
from mzsane.symmetry.align.scales import scale_units
from mzsane.symmetry.derive.trace import derive_groups

MODELS = 100


def build_known(activation):
    """Return freshly initialised MLPs, as if they were trained."""
    network = build_network(NetworkConfig(architecture="mlp", width=8, activation=activation), 1, 4, 6)
    layout = TokenLayout.from_network(network, 16)
    flat = []
    for number in range(MODELS):
        initialise_network(network, "kaiming_normal", make_generator(number, "norms"))
        flat.append(layout.flatten(network.state_dict()))
    groups = derive_groups(network, torch.zeros(1, 1, 6, 6)).groups
    return KnownModels(layout, groups, [f"{number:03d}" for number in range(MODELS)], torch.stack(flat).__getitem__)


@pytest.fixture(scope="module")
def tanh():
    """Models without scales."""
    return build_known("tanh")


@pytest.fixture(scope="module")
def relu():
    """Models whose scales may be moved from layer to layer."""
    return build_known("relu")


@pytest.mark.parametrize(("activation", "least"), [("tanh", 1.6), ("relu", 1.2)])  # balancing shares a factor out
def test_a_layer_that_is_scaled_by_three_is_marked(activation, least, request):
    known = request.getfixturevalue(activation)
    norms = NormRange.from_models(known)
    for layer in known.layout.layers:
        for factor in (3.0, 1 / 3):
            flat_SP = known.load(known.last_N).clone()
            for entry in layer.entries:
                known.layout.unflatten(flat_SP)[entry.name].mul_(factor)
            ratio_S, outside_S = norms.measure(flat_SP)
            assert outside_S.all()
            assert ratio_S.log().abs().min() > math.log(least)


def test_known_models_are_inside_and_their_ratio_is_about_one(tanh):
    ratio_S, outside_S = NormRange.from_models(tanh).measure(tanh.load(tanh.last_N))
    assert outside_S.double().mean() <= 0.04 * len(tanh.layout.layers)
    assert ratio_S.log().abs().median() < math.log(1.2)


def test_the_ratio_is_that_of_the_layer_that_deviates_most(tanh):
    norms = NormRange.from_models(tanh)
    flat_SP = tanh.load(tanh.last_N[:1]).clone()
    tensors = tanh.layout.unflatten(flat_SP)
    for layer, factor in zip(tanh.layout.layers, (0.2, 1.0, 2.0), strict=True):
        for entry in layer.entries:
            tensors[entry.name].mul_(factor)
    expected = torch.cat([tensors[entry.name].flatten() for entry in tanh.layout.layers[0].entries]).norm()
    assert float(norms.measure(flat_SP)[0]) == pytest.approx(float(expected / norms.median_L[0]), rel=1e-5)


def test_scales_that_are_moved_say_nothing(relu):
    norms = NormRange.from_models(relu)
    flat_SP = relu.load(relu.last_N)
    moved_SP = flat_SP.clone()
    scale_SG = torch.full((MODELS, relu.groups[0].units), 3.0)
    scale_units(relu.layout, relu.groups[0], ("out",), scale_SG, moved_SP)
    scale_units(relu.layout, relu.groups[0], ("in",), 1 / scale_SG, moved_SP)
    assert (moved_SP - flat_SP).norm(dim=1).min() > 1
    torch.testing.assert_close(norms.measure(moved_SP)[0], norms.measure(flat_SP)[0], rtol=1e-5, atol=0)
    assert norms.measure(moved_SP)[1].equal(norms.measure(flat_SP)[1])


def test_weights_that_are_no_numbers_are_outside(tanh):
    flat_SP = tanh.load(tanh.last_N[:2]).clone()
    flat_SP[0, 3] = float("nan")
    ratio_S, outside_S = NormRange.from_models(tanh).measure(flat_SP)
    assert ratio_S.isnan().tolist() == [True, False]
    assert outside_S[0]
