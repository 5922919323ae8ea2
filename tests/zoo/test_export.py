"""The export is a zoo in the published layout: its folders, keys and state dicts."""

import json

import pytest
import torch

from mzsane.config import ExecutionConfig, FactorsConfig, ZooConfig
from mzsane.errors import StoreError
from mzsane.store.serialisation import load_torch
from mzsane.zoo.export import export_zoo
from mzsane.zoo.shards import load_weights
from mzsane.zoo.train import train_zoo


def test_layout_is_the_published_one(tiny_zoo_config, store, tmp_path):
    factors = FactorsConfig(activation=("tanh", "relu"))
    config = ZooConfig(**{**dict(tiny_zoo_config), "models": 2, "epochs": 3, "keep_epochs": 2, "factors": factors})
    zoo = train_zoo(config, store, ExecutionConfig(processes=1))
    assert export_zoo(zoo, str(tmp_path / "out")) == 4
    index, weights = load_weights(zoo)
    folders = sorted((tmp_path / "out").iterdir())
    assert [folder.name for folder in folders] == ["NN_tune_trainable_000000", "NN_tune_trainable_000001"]
    for number, folder in enumerate(folders):
        params = json.loads((folder / "params.json").read_text())
        assert params["model::type"] == "CNN"
        assert params["model::nlin"] == ("tanh", "relu")[number]
        assert params["optim::optimizer"] == "adam"
        assert params["optim::lr"] == 1e-3
        assert params["seed"] == number
        lines = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
        assert [line["training_iteration"] for line in lines] == [1, 2, 3]
        assert sorted(path.name for path in folder.glob("checkpoint_*")) == ["checkpoint_000002", "checkpoint_000003"]
        for row in index.filter(model=f"{number:06d}").iter_rows(named=True):
            line = lines[row["epoch"] - 1]
            assert (line["test_acc"], line["train_loss"]) == (row["test_accuracy"], row["train_loss"])
            state = load_torch((folder / f"checkpoint_{row['epoch']:06d}" / "checkpoints").read_bytes())
            assert list(state) == list(weights)
            assert all(torch.equal(state[name], value[row["row"]]) for name, value in weights.items())


def test_a_target_that_cannot_be_written_is_said(tiny_zoo, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="the export's target"):
        export_zoo(tiny_zoo, str(tmp_path / "file"))
