"""Small zoos in the layouts that readers know, and the real checkpoints where they are."""

import io
import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from mzsane.config import NetworkConfig
from mzsane.networks.build import build_network

_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_checkpoints():
    """The folder of real checkpoints made by others."""
    folder = Path(os.environ.get("MZSANE_DATA") or _REPOSITORY.parent / "shared" / "data") / "checkpoints"
    if not folder.is_dir():
        pytest.skip("no real checkpoints: set MZSANE_DATA to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def make_state():
    """The maker of random state dicts of a network."""

    def make(seed, network=None, channels=1, classes=10, size=28):
        built = build_network(network or NetworkConfig(), channels, classes, size)
        generator = torch.Generator().manual_seed(seed)
        return OrderedDict(
            (name, torch.randn(value.shape, generator=generator) if value.is_floating_point() else torch.tensor(3))
            for name, value in built.state_dict().items()
        )

    return make


@pytest.fixture(scope="session")
def to_bytes():
    """The bytes that `torch.save` writes."""

    def save(value, **options):
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)
        return buffer.getvalue()

    return save


@pytest.fixture
def write_ray_zoo(make_state, to_bytes):
    """The writer of a zoo in the published layout: `write(folder, models, epochs)`; metrics tell model and epoch."""

    def write(folder, models=3, epochs=(0, 1, 2), network=None, results=True):
        for number in range(models):
            model = folder / f"trainable_{number}_seed={number}"
            model.mkdir(parents=True)
            parameters = {"model::type": "CNN", "model::nlin": "leakyrelu", "optim::lr": 1e-3, "seed": number}
            (model / "params.json").write_text(json.dumps(parameters))
            lines = [{"training_iteration": epoch, **describe_epoch(number, epoch)} for epoch in epochs]
            if results:
                (model / "result.json").write_text("\n".join(json.dumps(line) for line in lines))
            for epoch in epochs:
                checkpoint = model / f"checkpoint_{epoch:06d}"
                checkpoint.mkdir()
                (checkpoint / "checkpoints").write_bytes(to_bytes(make_state(100 * number + epoch, network)))
                (checkpoint / "optimizer").write_bytes(b"not read")
        return folder

    return write


def describe_epoch(number, epoch):
    """Return what `result.json` says of an epoch."""
    return {
        "train_acc": 0.1 * epoch + 0.01 * number,
        "test_acc": 0.09 * epoch,
        "train_loss": 2.0 - epoch / 10,
        "test_loss": 2.1 - epoch / 10,
    }
