"""Checkpoints that others trained, from the data folder: read, measured, and as accurate as published."""

import os
from pathlib import Path

import pytest

from mzsane.config import (
    ExecutionConfig,
    FilesConfig,
    NetworkConfig,
    ReadConfig,
    TokensConfig,
    TorchvisionConfig,
)
from mzsane.tokens.build import build_tokens
from mzsane.tokens.store import read_tokens
from mzsane.zoo.images import load_images
from mzsane.zoo.readers.read import read_zoo
from mzsane.zoo.shards import read_index

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
    """Read and measure a folder of the data."""
    network = NetworkConfig(architecture=f"tests.zoo.networks:{factory}")
    source = str(DATA / "checkpoints" / folder)
    return read_zoo(
        ReadConfig(name="real", source=source, network=network, images=images, measure=True, **settings), store, SERIAL
    )


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
