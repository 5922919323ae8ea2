"""Tokens of one layout in the places of another."""

import pytest
import torch
from torch import nn

from mzsane.config import NetworkConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network
from mzsane.tokens.transfer import cut_head, find_columns, fit_weights, map_tokens, match_layers, needs_head

TOKEN_DIM = 51


def make_layout(architecture="cnn-s", channels=1, classes=10, width=None, token_dim=TOKEN_DIM):
    size = 32 if architecture == "cnn-l" else 28
    network = build_network(NetworkConfig(architecture=architecture, width=width), channels, classes, size)
    return TokenLayout.from_network(network, token_dim)


def name_matches(source, target):
    names = [layer.name for layer in source.layers]
    return {
        layer.name: names[number] for layer, number in zip(target.layers, match_layers(source, target), strict=True)
    }


def test_a_layout_stands_for_itself():
    layout = make_layout()
    assert torch.equal(map_tokens(layout, layout), torch.arange(layout.length))
    flat = torch.randn(2, layout.weights)
    assert fit_weights(layout, layout, flat) is flat


def test_another_number_of_classes_keeps_all_but_the_head():
    source, target = make_layout(classes=4), make_layout(classes=10)
    flat = torch.randn(3, source.weights, generator=torch.Generator().manual_seed(0))
    fitted = fit_weights(source, target, flat)
    before, after = source.unflatten(flat), target.unflatten(fitted)
    for name, value in before.items():
        assert torch.equal(after[name], value) != name.startswith("module_list.11")
    # Rows of the head are those of the source again and again.
    assert torch.equal(after["module_list.11.weight"], before["module_list.11.weight"][:, [i % 4 for i in range(10)]])
    assert torch.equal(after["module_list.11.bias"], before["module_list.11.bias"][:, [i % 4 for i in range(10)]])
    assert needs_head(source, target, 10)
    assert not needs_head(target, target, 10)
    assert cut_head(source).digest == cut_head(target).digest
    body = [
        torch.cat([flat_P[find_columns(layout, cut_head(layout))] for flat_P in models[:1]])
        for layout, models in ((source, flat), (target, fitted))
    ]
    assert torch.equal(*body)


def test_layers_stand_for_layers_of_their_kind_and_place():
    source, target = make_layout("cnn-s"), make_layout("cnn-l")
    assert list(name_matches(source, target).values()) == [f"module_list.{i}" for i in (0, 3, 6, 9, 11)]

    assert not needs_head(source, target, 10)  # as many classes: its rows stand for the target's


@pytest.mark.parametrize(("known", "wanted"), [(4, 8), (8, 4)])
def test_a_wider_or_narrower_resnet_takes_layer_for_layer(known, wanted):
    source, target = make_layout("resnet18", width=known), make_layout("resnet18", width=wanted)
    matches = name_matches(source, target)
    assert list(matches) == list(matches.values())
    mapped = map_tokens(source, target)
    assert len(mapped) == target.length
    rows = target.positions_T3[:, 2], source.positions_T3[mapped][:, 2]
    layers = target.positions_T3[:, 1]
    for number, layer in enumerate(source.layers):
        assert torch.equal(rows[1][layers == number], rows[0][layers == number] % layer.rows)


def make_blocks(count):
    """A stem, blocks of a convolution, a norm and a 1x1 convolution, and a head."""
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)) for _ in range(count)]
    return TokenLayout.from_network(nn.Sequential(nn.Conv2d(1, 4, 5), *blocks, nn.Linear(4, 3)), 40)


def test_a_deeper_network_takes_layers_of_the_same_kernel_at_the_same_relative_depth():
    source, target = make_blocks(2), make_blocks(4)
    matches = name_matches(source, target)
    assert matches["1.0"] == "1.0"  # the same names are the same layers
    assert matches["2.2"] == "2.2"
    assert (matches["3.0"], matches["4.0"]) == ("2.0", "2.0")  # the third and fourth of four: the second of two
    assert (matches["3.1"], matches["4.2"]) == ("2.1", "2.2")
    assert matches["5"] == "3"  # the head is the only linear layer


def test_parts_of_a_row_are_spread_over_those_of_the_source():
    source = TokenLayout.from_network(nn.Sequential(nn.Linear(19, 2), nn.Linear(2, 2)), 10)
    target = TokenLayout.from_network(nn.Sequential(nn.Linear(39, 3), nn.Linear(3, 2)), 10)
    assert [layer.parts for layer in (source.layers[0], target.layers[0])] == [2, 4]
    assert map_tokens(source, target)[:12].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1]


def test_a_network_of_other_kinds_takes_layers_by_depth_alone():
    source = TokenLayout.from_network(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2)), 10)
    target = TokenLayout.from_network(nn.Sequential(*(nn.Conv2d(2, 2, 2) for _ in range(5))), 10)
    assert match_layers(source, target) == [0, 0, 1, 2, 2]
