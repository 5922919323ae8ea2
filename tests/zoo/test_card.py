"""A zoo's card says what is in the zoo."""

import io
from itertools import permutations

import pytest
from matplotlib.image import imread

from mzsane.appearance import plot_png
from mzsane.config import ExecutionConfig, FactorsConfig, NetworkConfig, ZooConfig
from mzsane.networks.build import build_network
from mzsane.problems.images.dataset import load_images
from mzsane.zoo.shards import load_weights
from mzsane.zoo.train import train_zoo

SERIAL = ExecutionConfig(processes=1)


@pytest.fixture
def grid_zoo(tiny_zoo_config, store):
    factors = FactorsConfig(activation=("tanh", "relu"), learning_rate=(1e-3, 1e-2))
    return train_zoo(ZooConfig(**{**dict(tiny_zoo_config), "models": 8, "factors": factors}), store, SERIAL)


def test_text_has_the_numbers_of_the_index(grid_zoo):
    index, _ = load_weights(grid_zoo)
    text = grid_zoo.path("card.md").read_text()
    last = index.filter(epoch=2)
    mean, lowest, highest = (getattr(last["test_accuracy"], name)() for name in ("mean", "min", "max"))
    assert f"| test accuracy, last epoch | {mean:.3f} ±" in text
    assert f"({lowest:.3f} to {highest:.3f})" in text
    assert "| models | 8 |" in text
    assert "| checkpoints | 16 (epochs 1, 2) |" in text
    assert "| weights a model | 2,338 |" in text
    for activation in ("tanh", "relu"):
        part = last.filter(factor_activation=activation)
        assert f"| {activation} | {len(part)} | {part['test_accuracy'].mean():.3f} |" in text
    assert "generating factors | activation ['tanh', 'relu'], learning_rate [0.001, 0.01]" in text
    assert "learning_rate 0" not in text.split("| recipe |")[1].split("\n")[0]


def test_figures_are_pictures_that_the_text_names(grid_zoo):
    text = grid_zoo.path("card.md").read_text()
    figures = {name for name in grid_zoo.manifest.files if name.endswith(".png")}
    assert figures == {"card-epochs.png", "card-factors.png", "card-weights.png", "card-agreement.png"}
    for name in figures:
        assert f"`{name}`" in text
        picture = imread(io.BytesIO(grid_zoo.path(name).read_bytes()))
        assert min(picture.shape[:2]) > 300
        assert picture[..., :3].std() > 0.02  # not blank


def test_only_what_there_is_is_drawn(tiny_zoo_config, store):
    changes = {"models": 2, "epochs": 1, "keep_epochs": 1}
    zoo = train_zoo(ZooConfig(**{**dict(tiny_zoo_config), **changes}), store, SERIAL)
    assert {name for name in zoo.manifest.files if name.endswith(".png")} == {"card-weights.png", "card-agreement.png"}


def test_agreement_is_that_of_the_predictions(grid_zoo, tiny_zoo_config):
    index, weights = load_weights(grid_zoo)
    images = load_images(tiny_zoo_config.images)
    answers = []
    for row in index.filter(epoch=2).iter_rows(named=True):
        network = build_network(NetworkConfig(activation=row["factor_activation"]), 1, 4)
        network.load_state_dict({name: value[row["row"]] for name, value in weights.items()})
        answers.append(network(images.splits["test"].images_NCHW).argmax(dim=1))
    shares = [(a == b).float().mean().item() for a, b in permutations(answers, 2)]
    text = grid_zoo.path("card.md").read_text()
    mean = sum(shares) / len(shares)
    assert f"| agreement of two models | {mean:.3f} of test images ({min(shares):.3f} to {max(shares):.3f}) |" in text


def test_a_picture_that_cannot_be_drawn_says_so():
    def draw():
        raise ValueError("a name that\nmatplotlib $does not like")

    picture = imread(io.BytesIO(plot_png(draw)))
    assert min(picture.shape[:2]) > 100
    assert plot_png(lambda: b"drawn") == b"drawn"


def test_a_card_without_its_pictures_is_a_card(tiny_zoo_config, store, monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("no picture today")

    for name in ("_plot_epochs", "_plot_weights", "_plot_agreement"):
        monkeypatch.setattr(f"mzsane.zoo.card.{name}", fail)
    zoo = train_zoo(ZooConfig(**{**dict(tiny_zoo_config), "models": 2}), store, SERIAL)
    assert "| models | 2 |" in zoo.path("card.md").read_text()
