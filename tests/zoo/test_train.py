"""Training a population: complete, the same however it is spread, and resumed instead of repeated."""

import json

import polars as pl
import pytest
import torch

from mzsane.config import ExecutionConfig, FactorsConfig, NetworkConfig, RecipeConfig, ZooConfig
from mzsane.errors import ConfigError
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.train_loop import fit_epochs, measure
from mzsane.problems.images.dataset import load_images
from mzsane.randomness import make_generator
from mzsane.zoo import train
from mzsane.zoo.shards import hash_weights, iterate_weights, load_weights
from mzsane.zoo.train import plan_models, plan_zoo, train_zoo

SERIAL = ExecutionConfig(processes=1)


class Interruptor:
    """A sink that raises when `done` models are done, and remembers all it was told."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.seen = []

    def metrics(self, values, step):
        assert set(values) == {"zoo/test_accuracy"}

    def progress(self, done, total, note=""):
        self.seen.append(done)
        if done == self.stop_at:
            raise KeyboardInterrupt


def hash_files(artifact):
    """Return what tells the contents of two zoos apart."""
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items()}


def rebuild(config, weights, row):
    images = load_images(config.images)
    network = build_network(config.network, images.channels, images.classes)
    network.load_state_dict({name: value[row] for name, value in weights.items()})
    return network


def test_index_has_a_row_a_kept_checkpoint(tiny_zoo, tiny_zoo_config):
    index, weights = load_weights(tiny_zoo)
    expected = [(f"{model:06d}", epoch) for model in range(6) for epoch in (1, 2)]
    assert index.select("model", "epoch").rows() == expected
    assert set(weights) == set(build_network(tiny_zoo_config.network, 1, 4).state_dict())
    assert all(len(value) == len(index) and value.dtype == torch.float32 for value in weights.values())
    made_by = {"engine": "loop", "device": "cpu"}
    assert tiny_zoo.manifest.counts == {"models": 6, "checkpoints": 12, "rejected": 0, **made_by}
    assert set(index["architecture"]) == {"cnn-s"}
    assert set(index["dataset"]) == {"glyphs"}


def test_history_is_complete(tiny_zoo_config, store):
    config = tiny_zoo_config.model_copy(update={"epochs": 3, "keep_epochs": 1, "models": 2})
    zoo = train_zoo(config, store, SERIAL)
    history = pl.read_parquet(zoo.path("history.parquet"))
    rows = history.select("model", "epoch").rows()
    assert rows == [(f"{model:06d}", epoch) for model in range(2) for epoch in (1, 2, 3)]
    metrics = {f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("loss", "accuracy")}
    assert metrics | {"generalisation_gap"} <= set(history.columns)
    assert history.null_count().sum_horizontal().item() == 0
    assert history["generalisation_gap"].to_list() == (history["train_accuracy"] - history["test_accuracy"]).to_list()
    index, weights = load_weights(zoo)
    assert index["epoch"].to_list() == [3, 3]
    images = load_images(config.images).splits["test"]
    for row in range(2):  # the weights are of the last epoch, not of another one
        loss, _ = measure(rebuild(config, weights, row), images)
        assert loss == pytest.approx(index["test_loss"][row], rel=1e-5)


def test_metrics_are_those_of_the_weights_beside_them(tiny_zoo, tiny_zoo_config):
    index, weights = load_weights(tiny_zoo)
    images = load_images(tiny_zoo_config.images)
    for row, metrics in enumerate(index.iter_rows(named=True)):
        network = rebuild(tiny_zoo_config, weights, row)
        for split, data in images.splits.items():
            loss, accuracy = measure(network, data)
            assert loss == pytest.approx(metrics[f"{split}_loss"], rel=1e-5)
            assert accuracy == metrics[f"{split}_accuracy"]


def test_a_model_is_what_the_recipe_says(tiny_zoo, tiny_zoo_config):
    """Trained here with the building blocks, model 4 has the same bits as in the zoo."""
    _, weights = load_weights(tiny_zoo)
    images = load_images(tiny_zoo_config.images)
    generator = make_generator(0, "zoo", 4)
    network = build_network(tiny_zoo_config.network, 1, 4)
    initialise_network(network, "kaiming_uniform", generator)
    training = fit_epochs(network, images.splits["train"], RecipeConfig(), generator)
    for epoch in (1, 2):
        next(training)
        for name, value in network.named_parameters():
            assert torch.equal(value, weights[name][2 * 4 + epoch - 1]), (name, epoch)


def test_training_helps(tiny_zoo_config, store):
    config = tiny_zoo_config.model_copy(update={"epochs": 6, "keep_epochs": 6, "models": 2, "learning_rate": 3e-3})
    index, _ = load_weights(train_zoo(config, store, SERIAL))
    first, last = (index.filter(pl.col("epoch") == epoch)["test_accuracy"].mean() for epoch in (1, 6))
    assert last > max(first, 0.5)


def test_trained_zoo_is_opened_not_trained_again(trained_store, tiny_zoo, tiny_zoo_config):
    sink = Interruptor()
    again = train_zoo(tiny_zoo_config.model_copy(update={"name": "other"}), trained_store, SERIAL, sink)
    assert again.ref == tiny_zoo.ref
    assert sink.seen == []


def test_chunks_and_population_size_change_no_model(tiny_zoo, tiny_zoo_config, store):
    whole = train_zoo(tiny_zoo_config, store, ExecutionConfig(processes=1, chunk_models=6))
    assert hash_files(whole) == hash_files(tiny_zoo)
    _, few = load_weights(train_zoo(tiny_zoo_config.model_copy(update={"models": 2}), store, SERIAL))
    _, all_six = load_weights(tiny_zoo)
    for name, value in few.items():
        assert torch.equal(value, all_six[name][:4])


def test_three_processes_give_the_same_numbers_as_one(tiny_zoo, tiny_zoo_config, store):
    zoo = train_zoo(tiny_zoo_config, store, ExecutionConfig(processes=3, chunk_models=2))
    assert hash_files(zoo) == hash_files(tiny_zoo)


@pytest.mark.parametrize("stop_at", [2, 4, 6])
def test_interrupted_and_resumed_equals_uninterrupted(tiny_zoo, tiny_zoo_config, store, stop_at):
    execution = ExecutionConfig(processes=1, chunk_models=2)
    with pytest.raises(KeyboardInterrupt):
        train_zoo(tiny_zoo_config, store, execution, Interruptor(stop_at))
    assert not store.exists(plan_zoo(tiny_zoo_config).ref)
    names = store.partial(plan_zoo(tiny_zoo_config)).names()
    assert len([name for name in names if name.endswith(".json")]) == stop_at // 2
    sink = Interruptor()
    zoo = train_zoo(tiny_zoo_config, store, execution, sink)
    assert sink.seen == list(range(stop_at, 7, 2))
    assert hash_files(zoo) == hash_files(tiny_zoo)
    assert store.partial(plan_zoo(tiny_zoo_config)).names() == set()


def test_two_calls_at_once_end_with_one_zoo(tiny_zoo, tiny_zoo_config, store):
    """The second call finds all chunks, publishes and tidies up while the first is about to gather them."""

    class OtherCall(Interruptor):
        def progress(self, done, total, note=""):
            if done == total:
                self.zoo = train_zoo(tiny_zoo_config, store, SERIAL)

    sink = OtherCall()
    zoo = train_zoo(tiny_zoo_config, store, SERIAL, sink)
    assert zoo.manifest == sink.zoo.manifest
    assert hash_files(zoo) == hash_files(tiny_zoo)


def test_seed_changes_every_model(tiny_zoo, tiny_zoo_config, store):
    other = tiny_zoo_config.model_copy(update={"seed": 1, "models": 2})
    _, weights = load_weights(train_zoo(other, store, SERIAL))
    _, ours = load_weights(tiny_zoo)
    first = "module_list.0.weight"
    assert not any(torch.equal(a, b) for a in weights[first] for b in ours[first])


@pytest.mark.parametrize("count", [1, 2])
def test_models_take_initial_weights_in_turn(tiny_zoo_config, store, monkeypatch, count):
    first, prepare = {}, train._prepare

    def watch(chunk, model, images):
        prepared = prepare(chunk, model, images)
        first[model.number] = prepared[0].module_list[0].weight.detach().clone()
        return prepared

    monkeypatch.setattr(train, "_prepare", watch)
    config = tiny_zoo_config.model_copy(update={"initial_weights": count, "models": 4})
    _, weights = load_weights(train_zoo(config, store, SERIAL))
    same = {(a, b) for a in range(4) for b in range(a) if torch.equal(first[a], first[b])}
    assert same == {(a, b) for a in range(4) for b in range(a) if a % count == b % count}
    trained = weights["module_list.0.weight"]
    assert len({tuple(row.flatten().tolist()) for row in trained}) == len(trained)  # they see other batches


def test_global_random_state_is_left_alone(tiny_zoo_config, store):
    torch.manual_seed(2)
    before = torch.get_rng_state()
    train_zoo(tiny_zoo_config.model_copy(update={"models": 2, "epochs": 1, "keep_epochs": 1}), store, SERIAL)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_damaged_chunk_is_made_again(tiny_zoo, tiny_zoo_config, store, suffix):
    work = plan_zoo(tiny_zoo_config)
    with pytest.raises(KeyboardInterrupt):
        train_zoo(tiny_zoo_config, store, SERIAL, Interruptor(4))
    (name,) = (name for name in store.partial(work).names() if name.endswith(suffix))
    stored = f"partial/{work.ref}/{name}"
    store.files.write(stored, store.files.read(stored)[:1000])
    sink = Interruptor()
    assert hash_files(train_zoo(tiny_zoo_config, store, SERIAL, sink)) == hash_files(tiny_zoo)
    assert sink.seen == [0, 4, 6]


def test_fingerprint_follows_the_recipe_alone(tiny_zoo_config):
    ref = plan_zoo(tiny_zoo_config).ref
    assert plan_zoo(tiny_zoo_config.model_copy(update={"name": "other"})).ref == ref
    changes = [
        {"models": 7},
        {"epochs": 3},
        {"keep_epochs": 1},
        {"learning_rate": 0.01},
        {"seed": 1},
        {"batch_size": 8},
    ]
    refs = {plan_zoo(ZooConfig(**{**dict(tiny_zoo_config), **change})).ref.fingerprint for change in changes}
    assert len(refs | {ref.fingerprint}) == len(changes) + 1


class TestFactors:
    def test_grid_takes_every_combination_equally_often(self, tiny_zoo_config):
        factors = FactorsConfig(activation=("tanh", "relu"), learning_rate=(1e-3, 3e-3), dropout=(0.0, 0.2))
        config = ZooConfig(**{**dict(tiny_zoo_config), "models": 16, "factors": factors})
        plans = plan_models(config)
        seen = [(p.network.activation, p.recipe.learning_rate, p.network.dropout) for p in plans]
        assert len(set(seen)) == 8
        assert all(seen.count(combination) == 2 for combination in seen)

    def test_random_design_draws_every_level(self, tiny_zoo_config):
        factors = FactorsConfig(design="random", optimizer=("adam", "sgd"), batch_size=(8, 16, 32))
        config = ZooConfig(**{**dict(tiny_zoo_config), "models": 60, "factors": factors})
        plans = plan_models(config)
        assert {(p.recipe.optimizer, p.recipe.batch_size) for p in plans} == {
            (optimizer, size) for optimizer in ("adam", "sgd") for size in (8, 16, 32)
        }
        assert plans == plan_models(config)
        assert plans[:20] == plan_models(config.model_copy(update={"models": 20}))

    @pytest.mark.parametrize(
        ("factors", "message"),
        [
            ({"learning_rate": (1e-3, -1.0)}, "greater than 0"),
            ({"width": (8, 16)}, "width has no meaning for cnn-s"),
            ({"dropout": (0.0, 0.1, 0.2, 0.3)}, "multiple of the 4 combinations"),
            ({"colour": ("red",)}, "colour"),
        ],
    )
    def test_bad_factors_are_refused(self, tiny_zoo_config, factors, message):
        with pytest.raises(ValueError, match=message):
            ZooConfig.model_validate({**tiny_zoo_config.model_dump(), "factors": factors})

    def test_index_says_what_each_model_is(self, tiny_zoo_config, store):
        factors = FactorsConfig(activation=("tanh", "relu"), learning_rate=(1e-3, 1e-2))
        changes = {"models": 4, "epochs": 1, "keep_epochs": 1, "factors": factors}
        index, weights = load_weights(train_zoo(ZooConfig(**{**dict(tiny_zoo_config), **changes}), store, SERIAL))
        assert index.select("factor_activation", "factor_learning_rate").rows() == [
            ("tanh", 1e-3),
            ("tanh", 1e-2),
            ("relu", 1e-3),
            ("relu", 1e-2),
        ]
        for row in index.iter_rows(named=True):
            recipe = json.loads(row["recipe"])
            assert recipe["activation"] == row["factor_activation"]
            assert recipe["learning_rate"] == row["factor_learning_rate"]
            assert row["sha256"] == hash_weights({name: value[row["row"]] for name, value in weights.items()})
        assert not torch.equal(weights["module_list.0.weight"][0], weights["module_list.0.weight"][1])

    def test_widths_are_shards_of_their_own(self, tiny_zoo_config, store):
        changes = {"network": NetworkConfig(architecture="mlp"), "factors": FactorsConfig(width=(8, 16)), "models": 4}
        zoo = train_zoo(ZooConfig(**{**dict(tiny_zoo_config), **changes}), store, SERIAL)
        widths = [weights["module_list.1.weight"].shape[1] for _, weights in iterate_weights(zoo)]
        assert widths == [8, 16]
        with pytest.raises(ConfigError, match="different architectures"):
            load_weights(zoo)


def test_a_diverged_model_is_kept_and_marked(tiny_zoo_config, store):
    factors = FactorsConfig(weight_decay=(0.0, 1.0))  # at a rate of 10 a decay of 1 multiplies weights by -9 a step
    changes = {"models": 2, "epochs": 8, "factors": factors, "optimizer": "sgd", "learning_rate": 10.0}
    config = ZooConfig(**{**dict(tiny_zoo_config), **changes, "network": NetworkConfig(activation="relu")})
    index, _ = load_weights(train_zoo(config, store, SERIAL))
    assert index["diverged"].to_list()[2:] == [True, True]
    assert len(index) == 4


def test_batch_norm_statistics_are_kept(tiny_zoo_config, store):
    network = NetworkConfig(architecture="resnet18", width=4, activation="relu")
    changes = {"network": network, "models": 2, "epochs": 1, "keep_epochs": 1, "batch_size": 40}
    config = ZooConfig(**{**dict(tiny_zoo_config), **changes})
    index, weights = load_weights(train_zoo(config, store, SERIAL))
    assert weights["bn1.num_batches_tracked"].tolist() == [2, 2]
    assert not torch.equal(weights["bn1.running_mean"][0], torch.zeros(4))
    rebuilt = rebuild(config, weights, 1)
    loss, accuracy = measure(rebuilt, load_images(config.images).splits["test"])
    assert (loss, accuracy) == pytest.approx((index["test_loss"][1], index["test_accuracy"][1]), rel=1e-5)


def test_wrong_image_size_is_said_before_any_work(tiny_zoo_config, store):
    config = ZooConfig(**{**dict(tiny_zoo_config), "network": NetworkConfig(architecture="cnn-l")})
    with pytest.raises(ConfigError, match="cnn-l takes images of 32x32 pixels, not 28x28"):
        train_zoo(config, store, SERIAL)
