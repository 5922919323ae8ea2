"""Networks: the sizes and names of the published zoos, and weights from one generator only."""

import math

import pytest
import torch
from torch import nn

from mzsane.config import NetworkConfig, ZooConfig
from mzsane.zoo.architectures import build_network, initialise_network

INITIALISATIONS = ZooConfig.model_fields["initialisation"].annotation.__args__
ACTIVATIONS = NetworkConfig.model_fields["activation"].annotation.__args__


def make_network(initialisation="kaiming_uniform", seed=0, **settings):
    network = build_network(NetworkConfig(**settings), channels=1, classes=10)
    initialise_network(network, initialisation, torch.Generator().manual_seed(seed))
    return network


@pytest.mark.parametrize(("channels", "classes", "weights"), [(1, 10, 2464), (3, 10, 2864), (1, 4, 2464 - 6 * 21)])
def test_cnn_s_has_the_published_size(channels, classes, weights):
    network = build_network(NetworkConfig(), channels, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == weights
    initialise_network(network, "kaiming_uniform", torch.Generator())
    assert network(torch.zeros(2, channels, 28, 28)).shape == (2, classes)


def test_names_and_shapes_are_the_published_ones():
    shapes = {name: tuple(value.shape) for name, value in make_network().state_dict().items()}
    assert shapes == {
        "module_list.0.weight": (8, 1, 5, 5),
        "module_list.0.bias": (8,),
        "module_list.3.weight": (6, 8, 5, 5),
        "module_list.3.bias": (6,),
        "module_list.6.weight": (4, 6, 2, 2),
        "module_list.6.bias": (4,),
        "module_list.9.weight": (20, 36),
        "module_list.9.bias": (20,),
        "module_list.11.weight": (10, 20),
        "module_list.11.bias": (10,),
    }


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_computes_what_it_says(activation):
    network = make_network(activation=activation)
    function = {"leaky_relu": nn.functional.leaky_relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu}.get(
        activation, getattr(torch, activation, None)
    )
    weights = network.state_dict()
    x = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    expected = x
    for layer in (0, 3, 6):
        expected = nn.functional.conv2d(
            expected, weights[f"module_list.{layer}.weight"], weights[f"module_list.{layer}.bias"]
        )
        expected = function(nn.functional.max_pool2d(expected, 2) if layer < 6 else expected)
    expected = expected.flatten(1)
    expected = function(expected @ weights["module_list.9.weight"].T + weights["module_list.9.bias"])
    expected = expected @ weights["module_list.11.weight"].T + weights["module_list.11.bias"]
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_initial_weights_have_the_named_distribution(initialisation):
    network = make_network(initialisation)
    for name, value in network.named_parameters():
        if value.ndim == 1:
            assert value.tolist() == pytest.approx([0.01] * len(value))
            continue
        fan_in = value[0].numel()
        fan_out = value.shape[0] * value[0, 0].numel()
        variance = 2 / fan_in if initialisation.startswith("kaiming") else 2 / (fan_in + fan_out)
        assert value.var().item() == pytest.approx(variance, rel=0.35), name
        if initialisation.endswith("uniform"):
            assert value.abs().max().item() <= math.sqrt(3 * variance) + 1e-6
        elif value.numel() > 700:
            assert value.abs().max().item() > math.sqrt(3 * variance)


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = make_network(seed=5), make_network(seed=5), make_network(seed=6)
    assert torch.equal(before, torch.get_rng_state())
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if a.ndim > 1:
            assert not torch.equal(a, c)
    assert all(parameter.requires_grad for parameter in one.parameters())
