"""The batched engine does what the loop does, model by model."""

import copy
from functools import partial

import pytest
import torch

from mzsane.config import ExecutionConfig, FactorsConfig, GlyphsConfig, NetworkConfig, RecipeConfig, ZooConfig
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.train_batched import BatchedModels, explain_unbatchable, fit_epochs_batched, measure_batched
from mzsane.networks.train_loop import fit_epochs, measure
from mzsane.problems.images.dataset import ImageSplit
from mzsane.zoo import train
from mzsane.zoo.shards import load_weights

CPU = torch.device("cpu")


def make_split(size=28, channels=1, images=22):
    generator = torch.Generator().manual_seed(3)
    shape = (images, channels, size, size)
    return ImageSplit(torch.randn(shape, generator=generator), torch.arange(images) % 4)


def make_networks(config, size=28, channels=1, count=3):
    networks = []
    for seed in range(count):
        network = build_network(config, channels, 4, size)
        initialise_network(network, "kaiming_uniform", torch.Generator().manual_seed(seed))
        networks.append(network)
    return networks


def compare_engines(config, recipes, splits, epochs=2, size=28, channels=1):
    """Train by both engines; return the largest difference of a state over the distance travelled."""
    networks = make_networks(config, size, channels, len(recipes))
    start = [copy.deepcopy(network) for network in networks]
    models = BatchedModels.stack([copy.deepcopy(network) for network in networks], CPU)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(recipes))]
    batched = fit_epochs_batched(models, splits, recipes, generators, epochs)
    loops = [
        fit_epochs(network, split, recipe, torch.Generator().manual_seed(seed), epochs)
        for seed, (network, split, recipe) in enumerate(zip(networks, splits, recipes, strict=True))
    ]
    for _ in range(epochs):
        next(batched)
        for loop in loops:
            next(loop)
    worst = 0.0
    for number, network in enumerate(networks):
        state = models.read_state(number)
        assert list(state) == list(network.state_dict())
        for name, value in network.state_dict().items():
            travelled = (value - start[number].state_dict()[name]).abs().max().item()
            worst = max(worst, (state[name] - value).abs().max().item() / max(travelled, 1e-3))
    scores = measure_batched(models, splits[0])
    for number, network in enumerate(networks):
        assert scores[number] == pytest.approx(measure(network, splits[0]), rel=2e-3, abs=1e-3)
    return worst


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_optimizers_equal_those_of_the_loop(optimizer):
    recipe = partial(RecipeConfig, optimizer=optimizer, batch_size=8)
    recipes = [recipe(learning_rate=1e-3), recipe(learning_rate=3e-3, weight_decay=0.05), recipe(learning_rate=1e-2)]
    assert compare_engines(NetworkConfig(), recipes, [make_split()] * 3) < 0.01


def test_one_cycle_equals_that_of_the_loop():
    recipes = [RecipeConfig(schedule="one-cycle", learning_rate=rate, batch_size=8) for rate in (1e-3, 3e-3)]
    assert compare_engines(NetworkConfig(), recipes, [make_split()] * 2) < 0.01


@pytest.mark.parametrize(
    ("config", "size", "channels"),
    [
        (NetworkConfig(architecture="cnn-l", activation="gelu"), 32, 3),
        (NetworkConfig(architecture="mlp", width=8), 12, 1),
        (NetworkConfig(architecture="vit", width=8, activation="gelu"), 12, 1),
        (NetworkConfig(architecture="resnet18", width=4, activation="relu"), 8, 3),
    ],
)
def test_architectures_equal_those_of_the_loop(config, size, channels):
    recipes = [RecipeConfig(optimizer="sgd", learning_rate=rate, batch_size=8) for rate in (1e-3, 3e-3)]
    assert compare_engines(config, recipes, [make_split(size, channels)] * 2, 1, size, channels) < 0.02


def test_models_may_see_labels_and_images_of_their_own():
    split = make_split()
    other = ImageSplit(split.images_NCHW, (split.labels_N + 1) % 4)
    third = ImageSplit(split.images_NCHW.flip(0), split.labels_N)
    recipes = [RecipeConfig(batch_size=8)] * 3
    assert compare_engines(NetworkConfig(), recipes, [split, other, third]) < 0.01


def test_a_zoo_is_the_same_by_both_engines(store, tmp_path, monkeypatch):
    """The whole stage: factors, label noise, chunks and rows."""
    images = GlyphsConfig(source="glyphs", characters="ABCD", images=120)
    factors = FactorsConfig(learning_rate=(1e-3, 3e-3), label_noise=(0.0, 0.2), batch_size=(16, 24))
    config = ZooConfig(name="both", images=images, models=8, epochs=2, keep_epochs=1, factors=factors)
    execution = ExecutionConfig(processes=1)
    index, weights = load_weights(train.train_zoo(config, store, execution))
    monkeypatch.setattr(train, "_train_looping", train._train_batched)
    monkeypatch.setattr(train, "choose_device", lambda wanted: torch.device("cpu"))
    plan = train._plan_chunks
    monkeypatch.setattr(
        train,
        "_plan_chunks",
        lambda *settings: [train._Chunk(c.config, c.models, "cpu") for c in plan(*settings[:-1], "batched")],
    )
    from mzsane.store.artifacts import ArtifactStore

    other = ArtifactStore(str(tmp_path / "other"))
    batched_index, batched = load_weights(train.train_zoo(config, other, execution))
    order = [batched_index["model"].to_list().index(model) for model in index["model"]]
    for name, value in weights.items():
        torch.testing.assert_close(batched[name][order], value, atol=2e-4, rtol=1e-2)
    assert batched_index[order]["test_loss"].to_list() == pytest.approx(index["test_loss"].to_list(), rel=2e-3)
    assert batched_index[order]["recipe"].to_list() == index["recipe"].to_list()


@pytest.mark.parametrize("factory", ["tied", "averaged", "own_norm", "instance_norm"])
def test_state_of_any_kind_is_trained_alike_and_read_whole(factory):
    """Tied weights have all their names, and buffers that training changes change as in the loop."""
    config = NetworkConfig(architecture=f"tests.factories:{factory}")
    split = make_split()
    networks = make_networks(config, count=2)
    assert explain_unbatchable(copy.deepcopy(networks[0]), split.images_NCHW[:4]) is None
    models = BatchedModels.stack([copy.deepcopy(network) for network in networks], CPU)
    recipe = RecipeConfig(optimizer="sgd", batch_size=11)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    next(fit_epochs_batched(models, [split] * 2, [recipe] * 2, generators, 1))
    for place, network in enumerate(networks):
        next(fit_epochs(network, split, recipe, torch.Generator().manual_seed(place)))
        state = models.read_state(place)
        assert list(state) == list(network.state_dict())
        for name, value in network.state_dict().items():
            torch.testing.assert_close(state[name], value.contiguous(), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_one_program_is_known_before():
    network = build_network(NetworkConfig(architecture="tests.factories:spectral"), 1, 4)
    assert "Batching rule not implemented" in explain_unbatchable(network, make_split().images_NCHW[:4])
