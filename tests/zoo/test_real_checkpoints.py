"""Checkpoints that others trained, from the data folder: read, measured, and as accurate as published."""

import os
from pathlib import Path

import pytest
import torch

from mzsane.config import (
    ExecutionConfig,
    FilesConfig,
    NetworkConfig,
    ReadConfig,
    TokensConfig,
    TorchvisionConfig,
)
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network
from mzsane.networks.train_loop import measure
from mzsane.problems.images.dataset import ImageSplit, load_images
from mzsane.symmetry.apply.permute import permute_weights, window_index
from mzsane.symmetry.derive.trace import derive_groups
from mzsane.symmetry.groups import draw_permutations
from mzsane.tokens.build import build_tokens
from mzsane.tokens.store import read_tokens
from mzsane.zoo.read import read_zoo
from mzsane.zoo.shards import load_weights, read_index

DATA = Path(os.environ.get("MZSANE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
pytestmark = pytest.mark.skipif(
    not (DATA / "checkpoints").exists(), reason="no checkpoints in the data folder (MZSANE_DATA)"
)
SERIAL = ExecutionConfig(processes=1)
CIFAR = FilesConfig(
    source="npz",
    train="cifar10/cifar10_subset_train.npz",
    test="cifar10/cifar10_subset_test.npz",
    classes=10,
    train_images=500,
    mean=(0.485, 0.456, 0.406),
    deviation=(0.229, 0.224, 0.225),
)


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    """The real data folder, and a cache of the test's own."""
    monkeypatch.setenv("MZSANE_DATA", str(DATA))
    monkeypatch.setenv("MZSANE_CACHE", str(tmp_path / "cache"))
    load_images.cache_clear()
    yield
    load_images.cache_clear()


def read(store, folder, factory, images, **settings):
    """Read a folder of the data, and measure its models unless told otherwise."""
    network = NetworkConfig(architecture=f"tests.zoo.networks:{factory}")
    source = str(DATA / "checkpoints" / folder)
    settings = {"measure": True, **settings}
    return read_zoo(ReadConfig(name="real", source=source, network=network, images=images, **settings), store, SERIAL)


@pytest.mark.parametrize(("name", "published"), [("resnet20", 0.9173), ("resnet32", 0.9263)])
def test_resnets_are_as_accurate_as_published(store, name, published):
    """On 3,000 of the 10,000 test images: one deviation is half a point."""
    index = read_index(read(store, "cifar10_resnets", name, CIFAR, pattern=f"(?P<model>{name})"))
    assert index["model"].to_list() == [name]
    assert index["test_accuracy"][0] == pytest.approx(published, abs=0.012)


def test_mnist_zoo_is_as_accurate_as_published(store):
    """20 models, mean 85.9 % on MNIST's training images; here on 2,500 of them."""
    images = TorchvisionConfig(source="mnist", train_images=2700, test_images=100, mean=(0.1307,), deviation=(0.3081,))
    index = read_index(read(store, "mnist_cnn_zoo", "shadow_cnn", images))
    assert len(index) == 20
    assert index["train_accuracy"].mean() == pytest.approx(0.859, abs=0.01)
    assert index["train_accuracy"].min() > 0.81


def test_fashion_trajectory_is_as_accurate_as_published(store):
    """One model at epochs 1 to 7: 87.6 to 91.1 %; here on 2,000 test images."""
    images = TorchvisionConfig(
        source="fashion-mnist", train_images=500, test_images=2000, mean=(0.0,), deviation=(1.0,)
    )
    settings = {"pattern": r"model_epoch_(?P<epoch>\d+)"}
    index = read_index(read(store, "fashion_mnist_trajectory", "fashion_cnn", images, **settings))
    assert index["epoch"].to_list() == [1, 2, 3, 4, 5, 6, 7]
    assert index["model"].n_unique() == 1
    assert index["test_accuracy"][0] == pytest.approx(0.876, abs=0.015)
    assert index["test_accuracy"][-1] == pytest.approx(0.911, abs=0.015)


def test_a_zoo_of_unknown_architecture_becomes_tokens(store):
    config = ReadConfig(name="unknown", source=str(DATA / "checkpoints" / "mnist_cnn_zoo"))
    index = read_index(read_zoo(config, store, SERIAL))
    assert set(index["architecture"]) == {None}
    assert not index["scorable"].any()
    tokens = build_tokens(TokensConfig(token_dim=128), config, store)
    table = read_tokens(tokens)
    assert table.load().shape == (20, 432_180)
    assert table.groups == ()
    assert "network" in tokens.manifest.counts["no_symmetry"]


@pytest.mark.parametrize(
    ("folder", "factory", "groups"),
    [
        ("mnist_cnn_zoo", "shadow_cnn", 3),
        ("fashion_mnist_trajectory", "fashion_cnn", 3),
        ("cifar10_resnets", "resnet20", 10),
    ],
)
def test_permuted_in_tokens_and_back_they_are_as_accurate_to_the_last_digit(store, folder, factory, groups):
    digits = TorchvisionConfig(source="mnist", train_images=2700, test_images=1000, mean=(0.1307,), deviation=(0.3081,))
    clothes = TorchvisionConfig(
        source="fashion-mnist", train_images=500, test_images=1000, mean=(0.0,), deviation=(1.0,)
    )
    config = {"shadow_cnn": digits, "fashion_cnn": clothes, "resnet20": CIFAR}[factory]
    settings = {"pattern": f"(?P<model>{factory})"} if factory == "resnet20" else {}
    _, weights = load_weights(read(store, folder, factory, config, measure=False, **settings))
    images = load_images(config)
    network = build_network(
        NetworkConfig(architecture=f"tests.zoo.networks:{factory}"), images.channels, 10, images.size
    )
    test = ImageSplit(images.splits["test"].images_NCHW[:1000], images.splits["test"].labels_N[:1000])
    symmetry = derive_groups(network.eval(), test.images_NCHW[:1])
    assert len(symmetry.groups) == groups
    # This ResNet's shortcuts add channels of zeros before and behind those of the stage before, which pins some.
    assert bool(symmetry.notes) == (factory == "resnet20")
    layout = TokenLayout.from_network(network, 128, "in")
    flat_BP = layout.flatten(weights)
    tokens_BTD = layout.tokenize(flat_BP)
    assert torch.equal(layout.detokenize(tokens_BTD), flat_BP)
    generator = torch.Generator().manual_seed(0)
    permutations = draw_permutations(symmetry.groups, len(flat_BP), generator)
    index_BTD = window_index(
        layout, symmetry.groups, permutations, torch.zeros(len(flat_BP), dtype=torch.int64), layout.length
    )
    gathered_BX = flat_BP.gather(1, index_BTD.clamp(min=0).flatten(1))
    permuted_BTD = gathered_BX.view(index_BTD.shape).masked_fill(index_BTD < 0, 0)
    permuted_BP = layout.detokenize(permuted_BTD)
    assert not torch.equal(permuted_BP, flat_BP)
    assert torch.equal(permuted_BP, permute_weights(layout, symmetry.groups, permutations, flat_BP))
    for number in range(min(5, len(flat_BP))):
        accuracies = []
        for flat_P in (flat_BP[number], permuted_BP[number]):
            network.load_state_dict(layout.unflatten(flat_P), strict=False)
            accuracies.append(measure(network, test)[1])
        assert accuracies[0] == accuracies[1]
        assert accuracies[0] > 0.7
