"""Architectures are found by names and shapes, and only those that fit exactly."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from mzsane.config import NetworkConfig
from mzsane.errors import ConfigError
from mzsane.networks.recognise import read_signature, recognise, rename_tensors


@pytest.mark.parametrize(
    ("network", "channels", "classes", "size"),
    [
        (NetworkConfig(), 1, 10, 28),
        (NetworkConfig(), 3, 47, 28),
        (NetworkConfig(dropout=0.5), 1, 10, 28),
        (NetworkConfig(architecture="cnn-l"), 3, 10, 32),
        (NetworkConfig(architecture="cnn-l", dropout=0.5), 1, 4, 32),
        (NetworkConfig(architecture="mlp", width=17), 1, 10, 28),
        (NetworkConfig(architecture="mlp", width=64), 3, 10, 32),
        (NetworkConfig(architecture="resnet18", width=8), 3, 100, 32),
        (NetworkConfig(architecture="vit", width=16), 3, 10, 32),
    ],
)
def test_our_architectures_are_recognised(network, channels, classes, size, make_state):
    state = make_state(0, network, channels, classes, size)
    found = recognise(read_signature(state), None)
    assert (found.network.architecture, found.channels, found.classes) == (network.architecture, channels, classes)
    assert found.network.width == network.width
    assert found.size == size
    assert list(rename_tensors(state, found)) == list(state)
    shuffled = OrderedDict(sorted(state.items()))
    assert list(rename_tensors(shuffled, recognise(read_signature(shuffled), None))) == list(state)


def test_the_published_names_with_dropout_become_ours(make_state):
    state = make_state(0)
    theirs = {"0": "0", "3": "4", "6": "8", "9": "11", "11": "14"}
    published = {
        f"module_list.{theirs[name.split('.')[1]]}.{name.split('.')[2]}": value for name, value in state.items()
    }
    found = recognise(read_signature(published), None)
    assert found.network.architecture == "cnn-s"
    renamed = rename_tensors(published, found)
    assert list(renamed) == list(state)
    assert all(torch.equal(renamed[name], value) for name, value in state.items())


def test_files_without_batch_counters_are_recognised(make_state):
    state = make_state(0, NetworkConfig(architecture="resnet18", width=4), 3, 10, 32)
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    found = recognise(read_signature(old), None)
    assert found.network.architecture == "resnet18"
    assert list(rename_tensors(old, found)) == list(old)


@pytest.mark.parametrize("change", ["shape", "missing", "extra", "renamed"])
def test_what_only_resembles_is_not_recognised(change, make_state):
    state = dict(make_state(0))
    if change == "shape":
        state["module_list.3.weight"] = torch.zeros(6, 8, 3, 3)
    elif change == "missing":
        del state["module_list.6.bias"]
    elif change == "extra":
        state["module_list.99.bias"] = torch.zeros(2)
    else:
        state["layer"] = state.pop("module_list.6.bias")
    assert recognise(read_signature(state), None) is None


def test_hostile_widths_do_no_harm():
    width = 10**6
    shapes = (("conv1.weight", (width, 3, 3, 3)), ("fc.weight", (10, 8 * width)))
    assert recognise(shapes, None) is None


def make_pair(channels, classes):
    """Return a network that mzsane does not know."""
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))


@pytest.fixture
def factory(monkeypatch, tmp_path):
    """The name of a factory that can be imported."""
    code = "from torch import nn\ndef make(channels, classes):\n    return nn.Sequential(nn.Conv2d(channels, 4, 3), "
    code += "nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))\n"
    (tmp_path / "reader_factories.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "reader_factories:make"


def test_a_given_factory_is_fitted(factory):
    given = NetworkConfig(architecture=factory)
    state = make_pair(2, 7).state_dict()
    found = recognise(read_signature(state), given)
    assert (found.network, found.channels, found.classes) == (given, 2, 7)
    assert recognise(read_signature(state), None) is None
    assert recognise(read_signature(state), given, 8) is None


def test_a_factory_that_cannot_be_built_is_an_error():
    with pytest.raises(ConfigError, match="no_such_module"):
        recognise((("w", (2, 3)),), NetworkConfig(architecture="no_such_module:make"))


def test_a_given_architecture_is_the_only_one(make_state):
    signature = read_signature(make_state(0))
    given = NetworkConfig(activation="relu")
    assert recognise(signature, given).network == given
    assert recognise(signature, NetworkConfig(architecture="mlp")) is None
