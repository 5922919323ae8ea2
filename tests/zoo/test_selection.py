"""Filters on metrics: of what is told or, when that is asked for, of what is measured; NaN is in no range."""

import json
import math

import polars as pl
import pytest
import torch

from mzsane.config import DigitsConfig, ExecutionConfig, NetworkConfig, ReadConfig
from mzsane.errors import ConfigError
from mzsane.zoo.formats.listing import Candidate, Listing
from mzsane.zoo.read import read_zoo
from mzsane.zoo.selection import select_checkpoints
from mzsane.zoo.shards import read_index

SERIAL = ExecutionConfig(processes=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("limit", [{"minimum": -1e300}, {"maximum": 1e300}, {"minimum": 0.0, "maximum": 1.0}])
@pytest.mark.parametrize("metric", ["train_loss", "generalisation_gap"])
def test_what_is_not_finite_is_in_no_range(value, limit, metric):
    config = ReadConfig.model_validate({"name": "z", "source": "x", "where": [{"metric": metric, **limit}]})
    entries = [Candidate("good", 1, "good.pt", {metric: 0.5}), Candidate("bad", 1, "bad.pt", {metric: value})]
    assert [entry.model for entry in select_checkpoints(config, Listing(entries)).entries] == ["good"]


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", '"nan"', '"0.9"'])
def test_results_that_have_diverged_are_filtered(written, tmp_path, store, write_ray_zoo):
    folder = write_ray_zoo(tmp_path / "zoo", models=2, epochs=(1,))
    results = folder / "trainable_1_seed=1" / "result.json"
    results.write_text(f'{{"training_iteration": 1, "train_loss": {written}, "test_acc": 0.5}}')
    config = {"name": "z", "source": str(folder)}
    index = read_index(read_zoo(ReadConfig.model_validate(config), store, SERIAL))
    assert index["diverged"].to_list() == [False, "0.9" not in written]
    config["where"] = [{"metric": "train_loss", "maximum": 2.0}]
    kept = read_index(read_zoo(ReadConfig.model_validate(config), store, SERIAL))
    assert len(kept) == (2 if "0.9" in written else 1)


@pytest.fixture
def digits_zoo(tmp_path, make_state, to_bytes):
    (tmp_path / "zoo").mkdir()
    for number in range(3):
        (tmp_path / "zoo" / f"m{number}.pt").write_bytes(to_bytes(make_state(number)))
    return {"name": "z", "source": str(tmp_path / "zoo"), "images": DigitsConfig(source="digits"), "measure": True}


def test_filters_are_of_what_was_measured(digits_zoo, store):
    network = NetworkConfig(activation="tanh")
    everything = read_index(read_zoo(ReadConfig(**digits_zoo, network=network), store, SERIAL))
    middle = everything["test_loss"].median()
    where = ({"metric": "test_loss", "maximum": middle},)
    kept = read_zoo(ReadConfig.model_validate({**digits_zoo, "network": network, "where": where}), store, SERIAL)
    expected = everything.filter(everything["test_loss"] <= middle)
    assert read_index(kept).select("model", "test_loss", "sha256").rows() == (
        expected.select("model", "test_loss", "sha256").rows()
    )
    assert pl.read_parquet(kept.path("rejected.parquet")).rows() == []
    assert kept.manifest.counts["checkpoints"] == 2
    nothing = {**digits_zoo, "network": network, "where": [{"metric": "test_accuracy", "minimum": 2}]}
    with pytest.raises(ConfigError, match="3 were measured and none passes where; the first has test_accuracy 0"):
        read_zoo(ReadConfig.model_validate(nothing), store, SERIAL)


def test_what_cannot_be_measured_is_refused_before_anything_is_read(digits_zoo, store, tmp_path):
    (tmp_path / "zoo" / "m0.pt").write_bytes(b"never read")
    with pytest.raises(ConfigError, match="measure needs the network of the checkpoints"):
        read_zoo(ReadConfig(**digits_zoo), store, SERIAL)


def test_an_unknown_architecture_cannot_be_measured(tmp_path, store, to_bytes):
    for number in range(2):
        model = tmp_path / "zoo" / f"trial_{number}"
        (model / "checkpoint_000001").mkdir(parents=True)
        (model / "params.json").write_text(json.dumps({"model::nlin": "tanh"}))
        weights = {"odd.weight": torch.randn(3, 3, generator=torch.Generator().manual_seed(number))}
        (model / "checkpoint_000001" / "checkpoints").write_bytes(to_bytes(weights))
    config = ReadConfig(name="z", source=str(tmp_path / "zoo"), images=DigitsConfig(source="digits"), measure=True)
    with pytest.raises(ConfigError, match="measure needs the network"):
        read_zoo(config, store, SERIAL)
