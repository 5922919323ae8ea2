"""What we export can be built, loaded and run by code that knows the published keys and no others."""

import json
import math
from itertools import pairwise

import polars as pl
import pytest
import torch
from torch import nn

from mzsane.config import ExecutionConfig, NetworkConfig, ReadConfig, ZooConfig
from mzsane.errors import ConfigError
from mzsane.networks.build import build_network
from mzsane.problems.images.dataset import load_images
from mzsane.store.serialisation import load_torch, save_tensors, to_parquet
from mzsane.zoo.export import export_zoo
from mzsane.zoo.formats.published import name_folders
from mzsane.zoo.make import plan_zoo
from mzsane.zoo.read import read_zoo
from mzsane.zoo.shards import load_weights
from mzsane.zoo.train import train_zoo

SERIAL = ExecutionConfig(processes=1)
ACTIVATIONS = {"leakyrelu": nn.LeakyReLU, "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
ACTIVATIONS |= {"silu": nn.SiLU, "gelu": nn.GELU}
INITIALISATIONS = [f"{kind}_{form}" for kind in ("xavier", "kaiming") for form in ("uniform", "normal")]


class Published(nn.Module):
    """A network as the published code names its layers: a list of modules, built from the published keys."""

    def __init__(self, config):
        super().__init__()
        assert config["model::init_type"] in [*INITIALISATIONS, "uniform", "normal"]
        layers = {"MLP": self._list_mlp, "CNN": self._list_cnn, "CNN3": self._list_cnn3}[config["model::type"]](config)
        self.module_list = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.module_list:
            x = layer(x)
        return x

    def _hide(self, config, always=False):
        drop = [nn.Dropout(config["model::dropout"])] if always or config["model::dropout"] > 0 else []
        return [ACTIVATIONS[config["model::nlin"]](), *drop]

    def _list_mlp(self, config):
        sizes = [config["model::i_dim"], *config["model::h_dim"]]
        layers = []
        for first, second in pairwise(sizes):
            layers += [nn.Linear(first, second, bias=config["model::use_bias"]), *self._hide(config)]
        return [*layers, nn.Linear(sizes[-1], config["model::o_dim"], bias=config["model::use_bias"])]

    def _list_cnn(self, config):
        layers = []
        for first, second, size in ((config["model::channels_in"], 8, 5), (8, 6, 5)):
            layers += [nn.Conv2d(first, second, size), nn.MaxPool2d(2), *self._hide(config)]
        layers += [nn.Conv2d(6, 4, 2), ACTIVATIONS[config["model::nlin"]](), nn.Flatten()]
        # The published CNN-s has ten outputs whatever its settings say.
        return [*layers, nn.Linear(36, 20), *self._hide(config), nn.Linear(20, config.get("model::o_dim", 10))]

    def _list_cnn3(self, config):
        layers = []
        for first, second in ((config["model::channels_in"], 16), (16, 32), (32, 15)):
            layers += [nn.Conv2d(first, second, 3), nn.MaxPool2d(2), *self._hide(config, always=True)]
        head = [nn.Linear(60, 20), *self._hide(config, always=True), nn.Linear(20, config["model::o_dim"])]
        return [*layers, nn.Flatten(), *head]


def make_published_optimizer(config, network):
    """Return optimiser and schedule as the published code makes them."""
    common = {"lr": config["optim::lr"], "weight_decay": config["optim::wd"]}
    if config["optim::optimizer"] == "sgd":
        optimizer = torch.optim.SGD(network.parameters(), momentum=config["optim::momentum"], **common)
    elif config["optim::optimizer"] == "rms_prop":
        optimizer = torch.optim.RMSprop(network.parameters(), momentum=config["optim::momentum"], **common)
    else:
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config["optim::optimizer"]](
            network.parameters(), **common
        )
    schedule = config.get("optim::scheduler", None)
    if schedule is None:
        return optimizer, None
    assert schedule == "OneCycleLR"
    steps, epochs = config["scheduler::steps_per_epoch"], config["training::epochs_train"]
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config["optim::lr"], epochs=epochs, steps_per_epoch=steps
    )


CASES = [
    {"network": {"activation": "leaky_relu"}, "optimizer": "rmsprop"},
    {"network": {"activation": "relu", "dropout": 0.2}, "optimizer": "sgd", "schedule": "one-cycle"},
    {"network": {"architecture": "mlp", "activation": "gelu"}, "optimizer": "adamw"},
    {"network": {"architecture": "mlp", "dropout": 0.1, "width": 12}, "initialisation": "xavier_normal"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_exported_zoo_is_built_by_the_published_keys(case, store, tmp_path):
    images = {"source": "glyphs", "characters": "ABC", "images": 60}
    settings = {**case, "images": images, "name": "z", "models": 2, "epochs": 2, "keep_epochs": 1, "batch_size": 16}
    config = ZooConfig.model_validate(settings)
    zoo = train_zoo(config, store, SERIAL)
    assert export_zoo(zoo, str(tmp_path / "out")) == 2
    dataset = load_images(config.images)
    pictures = dataset.splits["test"].images_NCHW[:20]
    index, weights = load_weights(zoo)
    for row in index.iter_rows(named=True):
        folder = tmp_path / "out" / f"NN_tune_trainable_{row['model']}"
        params = json.loads((folder / "params.json").read_text())
        lines = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
        assert all(line["config"] == params for line in lines)
        published = Published(lines[-1]["config"])
        published.load_state_dict(load_torch((folder / "checkpoint_000002" / "checkpoints").read_bytes()), strict=True)
        network = build_network(config.network, dataset.channels, dataset.classes, dataset.size)
        network.load_state_dict({name: value[row["row"]] for name, value in weights.items()})
        inputs = pictures.flatten(1) if params["model::type"] == "MLP" else pictures
        with torch.no_grad():
            assert torch.allclose(published.eval()(inputs), network.eval()(pictures), atol=1e-6)
        _, schedule = make_published_optimizer(params, published)
        assert (schedule is None) == (config.schedule == "constant")
        if schedule is not None:
            seen = len(dataset.splits["train"].labels_N)
            assert schedule.total_steps == 2 * math.ceil(seen / 16)
        assert (params["model::channels_in"], params["model::o_dim"]) == (dataset.channels, dataset.classes)
        assert params["seed"] == int(row["model"])
    again = read_zoo(ReadConfig(name="again", source=str(tmp_path / "out")), store, SERIAL)
    theirs, read = load_weights(again)
    assert theirs["scorable"].all()
    assert theirs["architecture"].unique().to_list() == [config.network.architecture]
    assert {name: value.tolist() for name, value in read.items()} == {n: v.tolist() for n, v in weights.items()}


def test_what_was_read_is_exported_with_what_is_known_of_it(store, tmp_path):
    config = NetworkConfig(architecture="cnn-l", activation="silu")
    network = build_network(config, 3, 7, 32)
    for value in network.parameters():
        torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(value.numel()))
    (tmp_path / "zoo").mkdir()
    torch.save(network.state_dict(), tmp_path / "zoo" / "m0.pt")
    zoo = read_zoo(ReadConfig(name="z", source=str(tmp_path / "zoo"), network=config), store, SERIAL)
    export_zoo(zoo, str(tmp_path / "out"))
    folder = tmp_path / "out" / "NN_tune_trainable_m0"
    params = json.loads((folder / "params.json").read_text())
    assert "model::init_type" not in params, "nothing tells it"
    published = Published({**params, "model::init_type": "uniform"})
    published.load_state_dict(load_torch((folder / "checkpoint_000000" / "checkpoints").read_bytes()), strict=True)
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(published.eval()(pictures), network.eval()(pictures), atol=1e-6)


def test_a_width_that_the_published_code_has_not_is_named_so(store, tmp_path):
    config = ZooConfig.model_validate(
        {
            **{"name": "z", "models": 2, "epochs": 1, "keep_epochs": 1},
            "images": {"source": "glyphs", "characters": "AB", "images": 60},
            "network": NetworkConfig(architecture="resnet18", width=4),
        }
    )
    export_zoo(train_zoo(config, store, SERIAL), str(tmp_path / "out"))
    params = json.loads((tmp_path / "out" / "NN_tune_trainable_000000" / "params.json").read_text())
    assert (params["model::type"], params["model::width"]) == ("Resnet18-width-4", 4)


@pytest.mark.parametrize(
    "models",
    [
        ["a/b", "a_b"],
        ["a/b/c", "a_b/c", "a/b_c", "a_b_c"],
        ["Net", "net", "NET"],
        ["ﬁne", "fine"],
        ["gr\u00f6\u00dfe", "gro\u0308\u00dfe", "gr\u00f6sse"],
        ["a:b", "a?b", "a*b", "a\\b", "a|b"],
        ["x" * 300, "x" * 299 + "y"],
        [".", "..", "...", " ", "a ", "a.", "a"],
        ["line\nfeed", "line_feed"],
    ],
    ids=str,
)
def test_names_stay_apart(models, tmp_path):
    folders = name_folders(models)
    assert len({folder.casefold() for folder in folders.values()}) == len(models)
    for folder in folders.values():
        (tmp_path / folder).mkdir()
    assert len(list(tmp_path.iterdir())) == len(models)
    assert name_folders(reversed(models)) == folders
    assert all(len(folder.encode()) < 255 and "/" not in folder for folder in folders.values())


def publish(store, models, tiny_zoo, work):
    """Publish the tiny zoo's first models under other names."""
    index, weights = load_weights(tiny_zoo)
    first = index.unique("model", keep="first", maintain_order=True)[: len(models)]
    rows = first["row"].to_list()
    names = dict(zip(first["model"], models, strict=True))
    index = first.with_columns(first["model"].replace_strict(names), row=pl.int_range(len(models)))
    files = {
        "index.parquet": to_parquet(index),
        "history.parquet": to_parquet(index),
        "weights-00000.safetensors": save_tensors({name: value[rows].contiguous() for name, value in weights.items()}),
    }
    return store.publish(work, files, {"checkpoints": len(models)})


def test_as_many_checkpoints_are_there_as_are_said_to_be(tiny_zoo, tiny_zoo_config, store, tmp_path):
    zoo = publish(store, ["lr/0", "lr_0", "LR_0", "lr/1", "lr_2"], tiny_zoo, plan_zoo(tiny_zoo_config))
    assert export_zoo(zoo, str(tmp_path / "out")) == 5
    assert len(list((tmp_path / "out").glob("*/*/checkpoints"))) == 5
    assert export_zoo(zoo, str(tmp_path / "out")) == 5  # again, onto itself
    again = read_zoo(ReadConfig(name="again", source=str(tmp_path / "out")), store, SERIAL)
    assert again.manifest.counts["models"] == 5
    (tmp_path / "out" / "mine").mkdir()
    (tmp_path / "out" / "mine" / "checkpoints").write_text("")
    with pytest.raises(ConfigError, match=r"has files that are not of this zoo, such as mine/checkpoints"):
        export_zoo(zoo, str(tmp_path / "out"))


def test_a_bucket_is_reached_at_the_endpoint_that_is_set(tiny_zoo, monkeypatch):
    monkeypatch.setenv("MZSANE_S3_ENDPOINT", "no-scheme")
    with pytest.raises(ConfigError, match="MZSANE_S3_ENDPOINT"):
        export_zoo(tiny_zoo, "s3://bucket/out")
