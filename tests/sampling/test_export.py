"""Exported samples load into the target's network as they are, and the index says what they saw."""

import json

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import ExecutionConfig, GlyphsConfig, NetworkConfig, SamplingConfig, SliceConfig
from mzsane.errors import ConfigError, StoreError
from mzsane.evaluation.selection import draw_samples
from mzsane.networks.build import build_network
from mzsane.networks.run import ModelSet, score_models
from mzsane.networks.train_loop import measure
from mzsane.problems.images.dataset import load_images
from mzsane.sampling import export
from mzsane.sampling.export import export_samples
from mzsane.sampling.populations import read_populations
from mzsane.sampling.target import Target
from mzsane.store.artifacts import Artifact
from mzsane.tokens.build import plan_tokens

LETTERS = GlyphsConfig(source="glyphs", characters="ABCD", images=120)
RESNET = NetworkConfig(architecture="resnet18", activation="relu", width=4)


@pytest.fixture(scope="module")
def draw(make_store, tiny_zoo_config, tiny_tokens_config, tiny_backbone_config):
    store = make_store()
    slices = [TokenSlice(plan_tokens(tiny_tokens_config, tiny_zoo_config).ref, SliceConfig(zoo="tiny", models=3))]
    config = tiny_backbone_config.model_copy(update={"positions": "sinusoidal"})
    backbone = pretrain(config, slices, 0, store)
    sampling = SamplingConfig(anchors=2, samples=4, keep=2, bandwidth=0.2)

    def run(network) -> Artifact:
        target = Target(network, LETTERS)
        return draw_samples(sampling, target, backbone.ref, slices, [0], 0, store, ExecutionConfig(processes=1))

    return run


@pytest.mark.parametrize("network", [NetworkConfig(), RESNET], ids=["cnn-s", "resnet18"])
def test_selected_samples_load_strictly_and_are_what_was_scored(draw, network, tmp_path):
    samples = draw(network)
    assert export_samples(samples, str(tmp_path / "out" / "new")) == 2
    folder = tmp_path / "out" / "new"
    index = json.loads((folder / "index.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["index.json", *(row["file"] for row in index["models"])]
    )
    assert [path.name for path in folder.parent.iterdir()] == ["new"]
    _, records, _ = read_populations(samples)
    best = records.sort("rank")[:2]
    images = load_images(LETTERS)
    config = NetworkConfig.model_validate(index["network"])
    for row, record in zip(index["models"], best.iter_rows(named=True), strict=True):
        model = build_network(config, index["channels"], index["classes"], index["size"])
        state = load_file(folder / row["file"])
        model.load_state_dict(state, strict=True)
        assert measure(model, images.splits["val"])[1] == record["validation_accuracy"] == row["validation_accuracy"]
        assert (row["sample"], row["rank"], row["sees"]) == (record["sample"], record["rank"], "labels")
        assert row["novelty"] == record["novelty"]
        assert any(name.endswith("running_var") for name in state) == (network == RESNET)
        save_file(state, folder / "again.safetensors")  # plain tensors of their own


def test_all_samples_say_what_drawing_them_saw(draw, tmp_path):
    samples = draw(RESNET)
    assert export_samples(samples, str(tmp_path), everything=True) == 4  # an empty folder is as good as none
    index = json.loads((tmp_path / "index.json").read_text())
    assert {row["sees"] for row in index["models"]} == {"images"}
    assert sorted(row["sample"] for row in index["models"]) == [0, 1, 2, 3]
    populations, _, layout = read_populations(samples)
    for row in index["models"]:
        state = load_file(tmp_path / row["file"])
        assert torch.equal(layout.flatten(state), populations["samples"][row["sample"]])
    validated = score_models(ModelSet(RESNET, LETTERS, layout, populations["samples"]), "val")
    by_sample = {row["sample"]: row["validation_accuracy"] for row in index["models"]}
    assert [score.accuracy for score in validated] == [by_sample[score.model] for score in validated]


def test_a_folder_with_other_files_is_left_alone(draw, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="has files in it: name a new or an empty folder"):
        export_samples(draw(NetworkConfig()), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match=r"mine\.txt is a file"):
        export_samples(draw(NetworkConfig()), str(tmp_path / "mine.txt"))
    with pytest.raises(StoreError, match="cannot be written"):
        export_samples(draw(NetworkConfig()), str(tmp_path / "mine.txt" / "below"))


def test_a_failure_leaves_nothing(draw, tmp_path, monkeypatch):
    saved = []

    def fail_second(network):
        saved.append(network)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        return b""

    monkeypatch.setattr(export, "_save", fail_second)
    with pytest.raises(StoreError, match="No space left on device"):
        export_samples(draw(NetworkConfig()), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_records_name_every_fact_of_the_index(draw):
    assert set(export._FACTS) <= set(pl.read_parquet(draw(NetworkConfig()).path("samples.parquet")).columns)
