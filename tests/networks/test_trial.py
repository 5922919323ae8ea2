"""A factory that cannot be used is refused in one line before any work, and known again by what it computes."""

import importlib

import pytest
import torch

from mzsane.config import ExecutionConfig, GlyphsConfig, NetworkConfig, RecipeConfig, ZooConfig
from mzsane.errors import ConfigError
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.factories import digest_factory
from mzsane.networks.train_batched import BatchedModels, count_models, fit_epochs_batched
from mzsane.networks.trial import try_evaluation, try_training
from mzsane.problems.images.dataset import load_images
from mzsane.zoo.train import plan_zoo, train_zoo

IMAGES = GlyphsConfig(source="glyphs", characters="ABCD", images=120)
RECIPES = [RecipeConfig(initialisation="own")]


def name(kind):
    return NetworkConfig(architecture=f"tests.zoo.random_networks:{kind}")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("tuples", ["a tuple of 2", "each class"]),
        ("lists", ["a list of 1"]),
        ("dicts", ["a dict of 1"]),
        ("nothing", ["NoneType"]),
        ("numbers", ["(3,)", "torch.int64"]),
        ("flattened", ["(12,)"]),
        ("extra", ["(3, 4, 1)"]),
        ("too_many", ["(3, 6)", "(3, 4)"]),
        ("wrong_size", ["1x28x28", "RuntimeError"]),
        ("frozen", ["no weight that may change"]),
        ("doubles", ["evaluation", "RuntimeError"]),
        ("fixed_batch", ["RuntimeError"]),
        ("uncopied", ["deepcopy"]),
        ("counting", ["not the same twice"]),
        ("unseeded", ["not the same twice"]),
        ("growing", ["with each seed"]),
    ],
)
def test_factories_that_cannot_be_used_are_refused(kind, words, store):
    config = ZooConfig(name="z", images=IMAGES, network=name(kind), models=2, epochs=1, keep_epochs=1)
    with pytest.raises(ConfigError) as refused:
        train_zoo(config, store, ExecutionConfig(processes=1))
    text = str(refused.value)
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("kind", ["lazy", "viewing", "slopes", "scaled", "attending", "recurrent", "tied", "depth"])
def test_awkward_factories_are_trained(kind, store):
    config = ZooConfig(name="z", images=IMAGES, network=name(kind), models=2, epochs=1, keep_epochs=1)
    assert train_zoo(config, store, ExecutionConfig(processes=1)).manifest.counts["models"] == 2


def test_what_cannot_be_vectorised_is_refused_for_a_gpu():
    images = load_images(IMAGES)
    try_training(name("viewing"), images, RECIPES, "cuda")
    with pytest.raises(ConfigError, match="device to cpu"):
        try_training(name("deciding"), images, RECIPES, "cuda")


def test_reading_asks_for_evaluation_alone():
    images = load_images(IMAGES)
    try_evaluation(name("frozen"), images)
    with pytest.raises(ConfigError, match="a tuple"):
        try_evaluation(name("tuples"), images)


@pytest.mark.parametrize(
    ("kind", "what"),
    [("slopes", "PReLU"), ("scaled", "gamma"), ("attending", "in_proj_weight"), ("recurrent", "weight_ih_l0")],
)
def test_weights_that_an_initialisation_does_not_know_are_refused(kind, what):
    network = build_network(name(kind), 1, 4)
    with pytest.raises(ConfigError, match=what):
        initialise_network(network, "kaiming_uniform", torch.Generator())
    with pytest.raises(ConfigError, match="own"):
        try_training(name(kind), load_images(IMAGES), [RecipeConfig()], "cpu")


def test_ties_and_frozen_weights_are_those_of_the_loop():
    split = load_images(IMAGES).splits["train"]
    networks = [build_network(name("tied"), 1, 4, seed=seed) for seed in (1, 2)]
    before = networks[1].enter.weight.detach().clone()
    models = BatchedModels.stack(networks, torch.device("cpu"))
    recipe = RecipeConfig(weight_decay=0.1, optimizer="adamw")
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    next(fit_epochs_batched(models, [split] * 2, [recipe] * 2, generators, 1))
    state = models.read_state(1)
    assert torch.equal(state["enter.weight"], before)
    assert torch.equal(state["again.weight"], state["mix.weight"])
    assert not torch.equal(state["mix.weight"], networks[1].mix.weight)


def test_models_in_a_chunk_go_with_memory():
    small, large = (build_network(NetworkConfig(architecture="mlp", width=width), 1, 4) for width in (8, 512))
    images = load_images(IMAGES).splits["train"].images_NCHW[:16]
    assert count_models(small, images, 2**37) == 512
    assert count_models(large, images, 2**30) < count_models(large, images, 2**31) < count_models(small, images, 2**31)
    assert count_models(large, images, 1) == 1


CODE = """
import torch
from torch import nn

def small(channels, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), {activation}, nn.Dropout({share}), nn.Linear(8, classes))
"""
VARIANTS = [("nn.ReLU()", 0.1), ("nn.Tanh()", 0.1), ("nn.ReLU()", 0.5), ("nn.LeakyReLU(0.02)", 0.1)]


def test_changed_code_is_another_zoo(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    names = []
    for number, (activation, share) in enumerate([*VARIANTS, VARIANTS[0]]):
        module = f"their_code_{number}"
        (tmp_path / f"{module}.py").write_text(
            CODE.format(activation=activation, share=share) + f"# comment {number}\n"
        )
        importlib.invalidate_caches()
        names.append(digest_factory(f"{module}:small", 1, 4, 28))
    assert len(set(names[:-1])) == len(VARIANTS)
    assert names[-1] == names[0]


def test_code_that_is_loaded_again_is_looked_at_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "reloaded_code.py"
    refs = []
    for activation, share in VARIANTS[:2]:
        file.write_text(CODE.format(activation=activation, share=share))
        importlib.invalidate_caches()
        module = importlib.import_module("reloaded_code")
        exec(compile(file.read_text(), str(file), "exec"), vars(module))
        network = NetworkConfig(architecture="reloaded_code:small")
        refs.append(plan_zoo(ZooConfig(name="z", images=IMAGES, network=network)).ref)
    assert refs[0] != refs[1]


def test_architectures_of_ours_have_the_settings_alone_in_their_name():
    config = ZooConfig(name="z", images=IMAGES)
    assert plan_zoo(config).config == config.recipe()
