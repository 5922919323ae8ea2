"""What a zoo says of splits, what follows from a lineage, and that no model moves another."""

import random

import polars as pl
import pytest

from mzsane.config import TokensConfig
from mzsane.errors import ConfigError
from mzsane.tokens.splitting import find_empty, split_models

CONFIG = TokensConfig()


def make_index(models, lineage=None, split=None, epochs=2):
    rows = [(model, epoch) for model in models for epoch in range(epochs)]
    index = pl.DataFrame(rows, schema={"model": pl.String, "epoch": pl.Int64}, orient="row")
    for column, values in (("lineage", lineage), ("split", split or {})):
        if values is not None:
            told = [values.get(model) for model in index["model"]]
            index = index.with_columns(pl.Series(column, told, dtype=pl.String))
    return index


def find_splits(index, config=CONFIG):
    return dict(split_models(index, config).select("model", "split").unique().rows())


@pytest.mark.parametrize("form", ["{:06d}", "runs/{}/net", "{}-{}"])
def test_leaving_out_or_adding_models_moves_no_other(form):
    names = [form.format(number, "abcdefgh"[number % 8]) for number in range(128)]
    everything = find_splits(make_index(names))
    assert find_splits(make_index(names[:64])).items() <= everything.items()
    generator = random.Random(0)
    for _ in range(20):
        some = generator.sample(names, 30)
        assert find_splits(make_index(some)).items() <= everything.items()


def test_epochs_and_other_columns_change_nothing():
    names = [f"m{number}" for number in range(30)]
    assert find_splits(make_index(names, epochs=1)) == find_splits(make_index(names, epochs=3))


def test_models_of_one_lineage_share_a_split():
    names = [f"run{run}/{kind}" for run in range(20) for kind in ("best", "last", "epoch")]
    lineage = {each: each.partition("/")[0] for each in names}
    found = find_splits(make_index(names, lineage))
    assert all(len({found[f"run{run}/{kind}"] for kind in ("best", "last", "epoch")}) == 1 for run in range(20))
    assert {found[f"run{run}/best"] for run in range(20)} == {"train", "val", "test"}
    assert found["run3/best"] == find_splits(make_index(["run3", "run4"]))["run3"]


def test_what_is_given_holds_for_the_whole_lineage():
    names = [f"m{number}" for number in range(6)]
    index = make_index(names, lineage={"m0": "root", "m1": "root"}, split={"m0": "test", "m2": "val"})
    # Only one of a model's epochs has been given a split.
    index = index.with_columns(pl.when(pl.col("epoch") == 0).then("split").alias("split"))
    found = find_splits(index)
    assert (found["m0"], found["m1"], found["m2"]) == ("test", "test", "val")


def test_one_model_in_two_splits_is_refused():
    index = make_index(["good", "m0"]).with_columns(
        split=pl.Series(["train", "train", "train", "test"]),
    )
    with pytest.raises(ConfigError, match="puts model 'm0' into the splits train and test"):
        split_models(index, CONFIG)
    lineage = {"m0": "root", "m1": "root"}
    with pytest.raises(ConfigError, match="models 'm0' and 'm1', which are of one lineage,"):
        split_models(make_index(["m0", "m1"], lineage, {"m0": "val", "m1": "train"}), CONFIG)


def test_no_model_to_train_on_is_said_and_empty_splits_are_told():
    with pytest.raises(ConfigError, match=r"no model of the zoo is in the train split \(1 models"):
        split_models(make_index(["a"], split={"a": "test"}), CONFIG)
    index = split_models(make_index(["a", "b"], split={"a": "train", "b": "test"}), CONFIG)
    assert find_empty(index, CONFIG) == ["val"]
    assert find_empty(index, TokensConfig(train_fraction=0.8, validation_fraction=0)) == []
