"""The same config gives the same bits, however networks draw random numbers and whatever the process did before."""

import random

import numpy as np
import pytest
import torch

from mzsane.config import ExecutionConfig, GlyphsConfig, NetworkConfig, RecipeConfig, SparseConfig, ZooConfig
from mzsane.networks.build import start_network
from mzsane.networks.train_batched import BatchedModels, fit_epochs_batched, measure_batched
from mzsane.networks.train_loop import fit_epochs, measure
from mzsane.problems.images.dataset import load_images
from mzsane.randomness import seed_globally
from mzsane.store.artifacts import ArtifactStore
from mzsane.zoo import train
from mzsane.zoo.shards import load_weights
from mzsane.zoo.sparse import sparsify_zoo

IMAGES = GlyphsConfig(source="glyphs", characters="ABCD", images=120)
KINDS = ("module", "spatial", "alpha", "functional_dropout", "noise", "depth", "from_numpy")
RECIPE = RecipeConfig(learning_rate=3e-3, batch_size=16)
CPU = torch.device("cpu")


def name(kind):
    return NetworkConfig(architecture=f"tests.zoo.random_networks:{kind}")


def disturb(number):
    """Leave the global generators as some other work would."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def start(config, seed):
    return start_network(config, 1, 4, 28, "own", torch.Generator().manual_seed(seed))


def train_loop(config, seed, epochs=2):
    split = load_images(IMAGES).splits["train"]
    network = start(config, seed)
    training = fit_epochs(network, split, RECIPE, torch.Generator().manual_seed(seed), epochs)
    for epoch in range(epochs):
        disturb(17 * epoch + torch.initial_seed() % 1000)  # otherwise in every call
        next(training)
    return network.state_dict(), measure(network, split)


def train_batched(config, seeds, epochs=2):
    split = load_images(IMAGES).splits["train"]
    models = BatchedModels.stack([start(config, seed) for seed in seeds], CPU)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    training = fit_epochs_batched(models, [split] * len(seeds), [RECIPE] * len(seeds), generators, epochs)
    for epoch in range(epochs):
        disturb(17 * epoch + torch.initial_seed() % 1000)  # otherwise in every call
        next(training)
    return models.flat_BP.detach().clone(), measure_batched(models, split)


def equal(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_gives_the_same_bits_in_any_order(kind):
    disturb(1)
    first, second = (train_loop(name(kind), seed) for seed in (0, 1))
    disturb(2)
    again_second, again_first = (train_loop(name(kind), seed) for seed in (1, 0))
    assert equal(first[0], again_first[0])
    assert equal(second[0], again_second[0])
    assert (first[1], second[1]) == (again_first[1], again_second[1])
    assert not equal(first[0], second[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_batched_engine_gives_the_same_bits(kind):
    disturb(1)
    flat_BP, scores = train_batched(name(kind), (0, 1, 2))
    disturb(2)
    train_batched(name(kind), (3, 4))
    again_BP, again = train_batched(name(kind), (0, 1, 2))
    assert torch.equal(flat_BP, again_BP)
    assert scores == again


def test_dropout_differs_between_epochs_and_models():
    network = start(name("functional_dropout"), 0)
    split = load_images(IMAGES).splits["train"]
    seen = []
    network.head.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0] == 0).sum(dim=1)))
    training = fit_epochs(network, split, RecipeConfig(batch_size=200), torch.Generator().manual_seed(0))
    next(training)
    next(training)
    assert not torch.equal(*seen)


def test_the_engine_leaves_the_global_generators_alone():
    disturb(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with seed_globally(3):
        torch.rand(3), random.random(), np.random.rand()
    start(name("noise"), 0)
    measure(start(name("noise"), 0), load_images(IMAGES).splits["val"])
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def make_zoo_config(kind, **settings):
    return ZooConfig(name="z", images=IMAGES, network=name(kind), models=4, epochs=2, keep_epochs=1, **settings)


@pytest.mark.parametrize("kind", ["functional_dropout", "depth", "noise"])
def test_a_zoo_is_the_same_in_other_chunks_and_after_other_work(kind, store, tmp_path):
    disturb(1)
    index, weights = load_weights(train.train_zoo(make_zoo_config(kind), store, ExecutionConfig(processes=1)))
    disturb(2)
    other = ArtifactStore(str(tmp_path / "other"))
    execution = ExecutionConfig(processes=1, chunk_models=1)
    again, same = load_weights(train.train_zoo(make_zoo_config(kind), other, execution))
    assert equal(weights, same)
    assert index.drop("shard", "row").equals(again.drop("shard", "row"))


def test_a_resumed_zoo_equals_an_uninterrupted_one(store, tmp_path, monkeypatch):
    config, execution = make_zoo_config("spatial"), ExecutionConfig(processes=1, chunk_models=2)
    disturb(1)
    _, weights = load_weights(train.train_zoo(config, store, execution))
    other = ArtifactStore(str(tmp_path / "other"))

    class StopError(Exception):
        pass

    class Interrupted:
        def metrics(self, values, step):
            pass

        def progress(self, done, total, note=""):
            if 0 < done < total:
                raise StopError

    with pytest.raises(StopError):
        train.train_zoo(config, other, execution, Interrupted())
    disturb(7)
    _, resumed = load_weights(train.train_zoo(config, other, execution))
    assert equal(weights, resumed)


@pytest.mark.parametrize("method", ["magnitude", "variational"])
@pytest.mark.parametrize("kind", ["module", "functional_dropout"])
def test_twins_are_the_same_again(kind, method, store, tmp_path):
    sparsity = {"sparsity": (0.5,)} if method == "magnitude" else {}
    twins = SparseConfig(name="t", zoo=make_zoo_config(kind), method=method, epochs=1, **sparsity)
    found = []
    for number, place in enumerate((store, ArtifactStore(str(tmp_path / "other")))):
        train.train_zoo(twins.zoo, place, ExecutionConfig(processes=1))
        disturb(number)
        found.append(load_weights(sparsify_zoo(twins, place, ExecutionConfig(processes=1)))[1])
    assert equal(*found)


def test_own_starts_differ_by_model_and_are_the_factorys():
    one, other = (start(name("module"), seed) for seed in (0, 1))
    assert not torch.equal(one.conv.weight, other.conv.weight)
    slopes = start(NetworkConfig(architecture="tests.zoo.random_networks:slopes"), 0)
    assert slopes[2].weight.item() == pytest.approx(0.1)
    assert slopes[3].bias.tolist() == [0.5] * 4
