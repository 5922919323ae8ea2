"""Zoos of every origin: the same artifact, on to tokens, and back from the published layout without a loss."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from mzsane.config import (
    AblationConfig,
    AnyZooConfig,
    DownloadConfig,
    ExecutionConfig,
    FactorsConfig,
    FilesConfig,
    NetworkConfig,
    ReadConfig,
    SparseConfig,
    ZooConfig,
    validate_config,
)
from mzsane.errors import ConfigError
from mzsane.plan import plan_ablation
from mzsane.tokens.build import build_tokens
from mzsane.tokens.store import read_tokens
from mzsane.zoo.export import export_zoo
from mzsane.zoo.make import make_zoo, plan_zoo
from mzsane.zoo.shards import load_weights, read_index
from tests.fetch.http_server import serve

SERIAL = ExecutionConfig(processes=1)
METRICS = [f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("loss", "accuracy")]


@pytest.fixture
def exported(tiny_zoo_config, store, tmp_path):
    """A zoo with factors, and a folder that it was exported to."""
    factors = FactorsConfig(activation=("tanh", "relu"), learning_rate=(1e-3, 1e-2))
    config = ZooConfig(**{**dict(tiny_zoo_config), "models": 8, "epochs": 3, "factors": factors})
    zoo = make_zoo(config, store, SERIAL)
    export_zoo(zoo, str(tmp_path / "exported"))
    return config, zoo, tmp_path / "exported"


def pack(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"zoo/{file.relative_to(folder)}")
    return buffer.getvalue()


def assert_same(ours, theirs) -> None:
    """Two zoos have the same weights, metrics and recipes, model by model and epoch by epoch."""
    (index, weights), (other_index, other) = load_weights(ours), load_weights(theirs)
    index = index.sort("model", "epoch")
    order = other_index.with_row_index("place").sort("model", "epoch")
    assert index["epoch"].to_list() == order["epoch"].to_list()
    assert [name[-6:] for name in order["model"]] == index["model"].to_list()
    assert index["sha256"].to_list() == order["sha256"].to_list()
    for name in [*METRICS, "generalisation_gap"]:
        assert index[name].to_list() == order[name].to_list(), name
    places = index["row"].to_list()
    for name, value in weights.items():
        assert torch.equal(value[places], other[name][order["place"].to_list()])


def test_round_trip_keeps_weights_and_metrics(exported, store, tiny_zoo_config):
    _, zoo, folder = exported
    config = ReadConfig(name="back", source=str(folder), images=tiny_zoo_config.images)
    back = make_zoo(config, store, SERIAL)
    assert_same(zoo, back)
    index = read_index(back)
    assert set(index["architecture"]) == {"cnn-s"}
    assert index["scorable"].all()
    assert back.manifest.counts["rejected"] == 0
    history = pl.read_parquet(back.path("history.parquet"))
    assert history["epoch"].value_counts().sort("epoch").rows() == [(1, 8), (2, 8), (3, 8)]
    assert "card.md" in back.manifest.files


def test_nothing_is_computed_of_networks_that_are_not_known(exported, store, tiny_zoo_config):
    """Without the settings nobody knows the activations: no agreement on the card, no scores, nothing to measure."""
    _, zoo, folder = exported
    for file in folder.glob("*/params.json"):
        file.write_text("{}")
    for file in folder.glob("*/result.json"):
        lines = [{**json.loads(line), "config": {}} for line in file.read_text().splitlines()]
        file.write_text("\n".join(map(json.dumps, lines)))
    config = ReadConfig(name="back", source=str(folder), images=tiny_zoo_config.images)
    with pytest.raises(ConfigError, match="measure needs the network"):
        make_zoo(config.model_copy(update={"measure": True}), store, SERIAL)
    back = make_zoo(config, store, SERIAL)
    index = read_index(back)
    assert not index["scorable"].any()
    assert set(index["architecture"]) == {"cnn-s"}
    assert "card-agreement.png" not in back.manifest.files
    assert sorted(index["test_loss"]) == sorted(read_index(zoo)["test_loss"])  # what the source says


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"characters": "ABC"}, "have 4 outputs, and images glyphs have 3 classes"),
        (None, r"module_list\.0\.weight .* is \[8, 1, 5, 5\]; images of 3 channels"),
    ],
)
def test_images_that_do_not_fit_are_said_before_reading(exported, store, tiny_zoo_config, tmp_path, changes, message):
    _, _, folder = exported
    images = tiny_zoo_config.images
    if changes:
        images = images.model_copy(update=changes)
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 3), dtype=np.uint8)
        np.savez(tmp_path / "colour.npz", images=pixels, labels=np.arange(40) % 4)
        images = FilesConfig(source="npz", train=str(tmp_path / "colour.npz"), classes=4)
    with pytest.raises(ConfigError, match=message):
        make_zoo(ReadConfig(name="back", source=str(folder), images=images), store, SERIAL)


def test_measured_again_the_metrics_are_the_same(exported, store, tiny_zoo_config):
    _, zoo, folder = exported
    for file in folder.glob("*/result.json"):
        file.unlink()
    config = ReadConfig(name="back", source=str(folder), images=tiny_zoo_config.images, measure=True)
    index = read_index(make_zoo(config, store, SERIAL)).sort("model", "epoch")
    ours = read_index(zoo).sort("model", "epoch")
    for name in METRICS:
        assert index[name].to_list() == pytest.approx(ours[name].to_list(), rel=1e-5), name


def test_download_becomes_a_zoo(exported, store):
    _, zoo, folder = exported
    with serve() as server:
        server.files["/zoo.zip"] = pack(folder)
        download = DownloadConfig(name="d", source=f"{server.url}/zoo.zip", epochs=(3,), piece_bytes=1 << 16)
        config = ReadConfig(name="theirs", download=download)
        theirs = make_zoo(config, store, SERIAL)
    index = read_index(theirs)
    assert index["epoch"].to_list() == [3] * 8
    ours = read_index(zoo).filter(epoch=3).sort("model")
    assert index.sort("model")["sha256"].to_list() == ours["sha256"].to_list()
    assert theirs.manifest.inputs["archive"].startswith("archive/")
    assert make_zoo(config, store, SERIAL).ref == theirs.ref  # and the server is gone


def test_every_origin_becomes_tokens_with_symmetry(exported, store, tiny_zoo_config, tiny_tokens_config):
    config, _, folder = exported
    one_network = {"network": NetworkConfig(), "images": tiny_zoo_config.images}
    origins = [
        config,
        ReadConfig(name="read", source=str(folder), **one_network),
        SparseConfig(name="twins", zoo=config, sparsity=(0.5,), epochs=1),
    ]
    for origin in origins:
        make_zoo(origin, store, SERIAL)
        table = read_tokens(build_tokens(tiny_tokens_config, origin, store))
        assert len(table.groups) == 4
        assert table.index["model"].n_unique() == 8
        assert set(table.index["split"]) == {"train", "val", "test"}


def test_config_tells_the_origins_apart(tiny_zoo_config):
    def load(data):
        return validate_config(AnyZooConfig, data, "here")

    trained = tiny_zoo_config.model_dump(mode="json")
    assert load(trained) == tiny_zoo_config
    assert isinstance(load({"name": "r", "source": "folder"}), ReadConfig)
    assert isinstance(load({"name": "t", "zoo": trained}), SparseConfig)
    with pytest.raises(ConfigError, match=r"^here: learning_rate: Input should be greater than 0, not -1$"):
        load({**trained, "learning_rate": -1})
    with pytest.raises(ConfigError, match=r"^here: format: Input should be .*not 'tar'$"):
        load({"name": "r", "source": "folder", "format": "tar"})
    with pytest.raises(ValueError, match="needs either source or download"):
        ReadConfig(name="r")


def test_ablation_of_a_zoo_that_is_read(exported, store, tiny_zoo_config):
    """Planned without a look at the files; and refused where the files alone do not say enough."""
    config, _, folder = exported
    read = {"name": "theirs", "source": str(folder), "images": tiny_zoo_config.images.model_dump(mode="json")}
    data = {
        "name": "a",
        "zoos": [config.model_dump(mode="json")],
        "read_zoos": [{**read, "network": {"architecture": "cnn-s"}}],
        "compositions": [{"name": "both", "slices": [{"zoo": "theirs", "models": 3}, {"zoo": "tiny", "models": 3}]}],
        "targets": [{"name": "theirs", "zoo": "theirs"}],
        "sampling": {"anchors": 3, "samples": 3, "keep": 1},
    }
    stages = plan_ablation(validate_config(AblationConfig, data, "here"))
    assert [stage.work.kind for stage in stages][:4] == ["zoo", "zoo", "tokens", "tokens"]
    assert stages[1].work.ref == plan_zoo(ReadConfig.model_validate(data["read_zoos"][0])).ref
    data["read_zoos"][0].pop("network")
    with pytest.raises(ConfigError, match="whose network and images are not given: give both to the zoo"):
        validate_config(AblationConfig, data, "here")


def test_the_same_zoo_under_another_name_is_the_same_work(tmp_path):
    first, second = (ReadConfig(name=name, source=str(tmp_path)) for name in ("a", "b"))
    assert plan_zoo(first) == plan_zoo(second)
    assert plan_zoo(ReadConfig(name="a", source=str(tmp_path), revision="2")).ref != plan_zoo(first).ref
