"""From slices to checkpoints: models, epochs and filters as asked for, and a clear word when there are too few."""

import polars as pl
import pytest
import torch
from pydantic import ValidationError

from mzsane.composition import TokenSlice, choose_checkpoints
from mzsane.config import CompositionConfig, MetricFilter, SliceConfig
from mzsane.errors import ConfigError


@pytest.fixture
def choose(tiny_tokens, trained_store):
    """Return the index rows that a slice of the tiny zoo takes."""

    def choose(models, seed=0, **settings):
        part = TokenSlice(tiny_tokens.ref, SliceConfig(zoo="tiny", models=models, **settings))
        (chosen,) = choose_checkpoints([part], seed, trained_store)
        return chosen.table.index[chosen.rows_N.tolist()]

    return choose


def test_takes_training_models_with_all_their_epochs(choose, tiny_table):
    rows = choose(3)
    assert rows["model"].n_unique() == 3
    assert len(rows) == 6
    assert set(rows["split"]) == {"train"}
    drawn = {tuple(choose(2, seed)["model"].unique().sort()) for seed in range(6)}
    assert len(drawn) > 1


def test_takes_the_epochs_that_are_asked_for(choose):
    assert set(choose(4, epochs=(1,))["epoch"]) == {1}
    assert set(choose(4, last_epochs=1)["epoch"]) == {2}
    assert set(choose(4, epochs=(1, 2))["epoch"]) == {1, 2}
    with pytest.raises(ConfigError, match=r"slice 0 .* asks for epochs \[1, 5\]; tokens/\w+ has \[1, 2\]"):
        choose(4, epochs=(1, 5))
    with pytest.raises(ConfigError, match=r"asks for epochs the last 3; tokens/\w+ has \[1, 2\]"):
        choose(4, last_epochs=3)


def test_takes_checkpoints_that_pass_all_filters(choose, tiny_table):
    training = tiny_table.index.filter(pl.col("split") == "train")
    middle = float(training["val_loss"].median())
    filters = (
        MetricFilter(metric="val_loss", maximum=middle),
        MetricFilter(metric="train_accuracy", minimum=0.0),
    )
    rows = choose(1, where=filters)
    assert (rows["val_loss"] <= middle).all()
    passing = training.filter(pl.col("val_loss") <= middle, pl.col("train_accuracy") >= 0.0)["model"].n_unique()
    with pytest.raises(ConfigError, match=rf"asks for {passing + 1} training models; .* has {passing} that pass"):
        choose(passing + 1, where=filters)


def test_a_metric_that_is_not_there_is_named_with_those_that_are(choose):
    with pytest.raises(ConfigError, match=r"filtered by 'sparsity'; tokens/\w+ has the metrics .*val_accuracy"):
        choose(1, where=(MetricFilter(metric="sparsity", minimum=0.5),))


def test_more_models_than_there_are_and_no_slice_at_all_are_refused(choose, trained_store):
    with pytest.raises(ConfigError, match=r"slice 0 of the composition asks for 5 training models; .* has 4$"):
        choose(5)
    with pytest.raises(ConfigError, match="the composition is empty"):
        choose_checkpoints([], 0, trained_store)


def test_weights_travel_and_shape_the_recipe(tiny_tokens, trained_store):
    one, two = (TokenSlice(tiny_tokens.ref, SliceConfig(zoo=name, models=2, weight=2.5)) for name in ("a", "b"))
    assert one.recipe() == two.recipe()
    assert one.recipe() != TokenSlice(tiny_tokens.ref, SliceConfig(zoo="a", models=2)).recipe()
    first, second = choose_checkpoints([one, two], 0, trained_store)
    assert (first.weight, second.weight) == (2.5, 2.5)
    assert torch.equal(first.table.load(first.rows_N), first.table.load()[first.rows_N])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": (1,), "last_epochs": 2}, "either last_epochs or epochs"),
        ({"epochs": ()}, "a list of epochs from 0 that is not empty"),
        ({"weight": 0}, "greater than 0"),
        ({"where": [{"metric": "val_accuracy"}]}, "needs minimum, maximum or both"),
        ({"where": [{"metric": "val_accuracy", "minimum": 0.9, "maximum": 0.1}]}, "cannot be more than maximum"),
        ({"models": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        SliceConfig.model_validate({"zoo": "a", "models": 1, **settings})


def test_an_empty_composition_is_refused():
    with pytest.raises(ValidationError, match="at least 1 item"):
        CompositionConfig(name="none", slices=())
