"""Networks: the sizes and names of the published zoos, and weights from one generator only."""

import math

import pytest
import torch
from torch import nn

from mzsane.config import NetworkConfig, ZooConfig
from mzsane.errors import ConfigError
from mzsane.networks.build import build_network, initialise_network
from mzsane.problems.images.vision import open_torchvision

INITIALISATIONS = [
    name
    for name in ZooConfig.model_fields["initialisation"].annotation.__args__
    if name not in ("uniform", "normal", "own")
]
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


def test_plain_distributions_are_the_published_ones():
    for name, mean, deviation in (("uniform", 0.5, 12**-0.5), ("normal", 0.0, 1.0)):
        weights = torch.cat([p.flatten() for p in make_network(name).parameters() if p.ndim > 1])
        assert weights.mean().item() == pytest.approx(mean, abs=0.08)
        assert weights.std().item() == pytest.approx(deviation, rel=0.08)


@pytest.mark.parametrize(
    ("settings", "channels", "classes", "size", "weights"),
    [
        ({"architecture": "cnn-l"}, 3, 10, 32, 10_853),
        ({"architecture": "resnet18"}, 3, 10, 32, 11_173_962),
        ({"architecture": "resnet18"}, 3, 100, 32, 11_220_132),
        ({"architecture": "resnet18", "width": 16}, 1, 10, 28, 701_178),
        ({"architecture": "mlp"}, 1, 10, 28, 784 * 32 + 32 + 32 * 32 + 32 + 330),
        ({"architecture": "vit"}, 1, 10, 28, 138_890),
    ],
)
def test_architectures_have_the_expected_size(settings, channels, classes, size, weights):
    network = build_network(NetworkConfig(activation="relu", **settings), channels, classes, size)
    assert sum(parameter.numel() for parameter in network.parameters()) == weights
    initialise_network(network, "kaiming_uniform", torch.Generator().manual_seed(0))
    logits = network(torch.randn(3, channels, size, size))
    assert logits.shape == (3, classes)
    assert logits.isfinite().all()


def test_cnn_l_has_the_published_names():
    names = {
        name.rsplit(".", 1)[0] for name in build_network(NetworkConfig(architecture="cnn-l"), 3, 10, 32).state_dict()
    }
    assert names == {f"module_list.{layer}" for layer in (0, 4, 8, 13, 16)}


def test_resnet18_computes_what_torchvisions_does():
    """With torchvision's own weights and the CIFAR stem put in its place, the outputs are the same."""
    theirs = open_torchvision().models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = build_network(NetworkConfig(architecture="resnet18", activation="relu"), 3, 10, 32)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-4, rtol=1e-4)


def test_dropout_changes_training_and_no_name():
    plain, dropping = make_network(), make_network(dropout=0.5)
    assert list(plain.state_dict()) == list(dropping.state_dict())
    x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.eval()(x), dropping.eval()(x))
    assert not torch.equal(dropping.train()(x), dropping(x))


class TestFactory:
    def test_is_called_with_channels_and_classes(self, monkeypatch, tmp_path):
        (tmp_path / "their_networks.py").write_text(
            "from torch import nn\ndef small(channels, classes):\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(784 * channels, classes))\n"
            "def broken(channels, classes):\n    raise KeyError('depth')\n"
            "number = lambda channels, classes: 3\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        network = build_network(NetworkConfig(architecture="their_networks:small"), 1, 7)
        assert torch.equal(before, torch.get_rng_state())
        assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
        for name, message in (
            ("broken", "KeyError: 'depth'"),
            ("number", "made a int"),
            ("none", "cannot be imported"),
        ):
            with pytest.raises(ConfigError, match=message):
                build_network(NetworkConfig(architecture=f"their_networks:{name}"), 1, 7)

    def test_unknown_name_is_refused(self):
        with pytest.raises(ValueError, match="architecture"):
            NetworkConfig(architecture="cnn-xl")
        with pytest.raises(ConfigError, match="cannot be imported"):
            build_network(NetworkConfig(architecture="no.such.module:make"), 1, 7)
