"""Zoos as others keep them: shards, names of wrappers, ties, masks; one odd file stops no other."""

import json

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

from mzsane.config import ExecutionConfig, NetworkConfig
from mzsane.config.reading import ReadConfig
from mzsane.errors import ConfigError
from mzsane.zoo.read import plan_read, read_zoo
from mzsane.zoo.shards import load_weights, read_index

SERIAL = ExecutionConfig(processes=1)
GIVEN = NetworkConfig(activation="relu")


def read_all(store, source, **settings):
    return read_zoo(ReadConfig(name="zoo", source=str(source), **settings), store, SERIAL)


def read_reasons(zoo):
    return pl.read_parquet(zoo.path("rejected.parquet"))["reason"].to_list()


def save_shards(folder, state, kind, stem="model"):
    """Write a network in two files and an index; return the index's path."""
    folder.mkdir(parents=True)
    names = list(state)
    places = {}
    for part, some in enumerate((names[1::2], names[::2]), 1):
        file = f"{stem}-{part:05d}-of-00002.{kind}"
        shard = {name: state[name].clone() for name in some}
        if kind == "safetensors":
            safetensors.torch.save_file(shard, folder / file)
        else:
            torch.save(shard, folder / file)
        places |= dict.fromkeys(some, file)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.mark.parametrize(("kind", "stem"), [("safetensors", "model"), ("bin", "pytorch_model"), ("pt", "w_epoch_3")])
def test_shards_are_joined(kind, stem, tmp_path, store, make_state):
    for number in range(3):
        save_shards(tmp_path / f"run-{number}", make_state(number), kind, stem)
    zoo = read_all(store, tmp_path, network=GIVEN)
    index, weights = load_weights(zoo)
    assert len(index) == 3
    assert set(index["architecture"]) == {"cnn-s"}
    assert set(index["epoch"]) == {3 if kind == "pt" else 0}
    assert zoo.manifest.counts["rejected"] == 0
    for name, value in make_state(1).items():
        assert torch.equal(weights[name][1], value)


def test_shards_that_cannot_be_joined_are_told(tmp_path, store, make_state, to_bytes):
    for number in range(4):
        (tmp_path / f"m{number}.pt").write_bytes(to_bytes(make_state(number)))
    save_shards(tmp_path / "a", make_state(5), "safetensors").unlink()
    save_shards(tmp_path / "b", make_state(6), "bin")
    (tmp_path / "b" / "model-00002-of-00002.bin").unlink()
    index = save_shards(tmp_path / "c", make_state(7), "safetensors")
    text = json.loads(index.read_text())
    text["weight_map"]["module_list.99.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(text))
    index = save_shards(tmp_path / "d", make_state(8), "safetensors")
    (index.parent / "model-00001-of-00002.safetensors").write_bytes(b"broken")
    save_shards(tmp_path / "e", make_state(9), "safetensors").write_text("[" * 100_000)
    zoo = read_all(store, tmp_path, max_rejected=0.8)
    assert read_index(zoo)["model"].to_list() == ["m0", "m1", "m2", "m3"]
    reasons = read_reasons(zoo)
    assert (
        len([reason for reason in reasons if "a shard: part" in reason and "model.safetensors.index.json" in reason])
        == 4
    )
    assert any(reason.startswith("incomplete: the index names 2 files, and b/model-00002") for reason in reasons)
    assert any("module_list.99.weight is in c/model-00001" in reason for reason in reasons)
    assert any("in the shard d/model-00001" in reason for reason in reasons)
    assert any("without a weight_map" in reason for reason in reasons)


def test_a_whole_file_beside_its_shards_is_taken(tmp_path, store, make_state):
    for number in range(2):
        save_shards(tmp_path / f"run-{number}", make_state(number), "safetensors")
        safetensors.torch.save_file(dict(make_state(number)), tmp_path / f"run-{number}" / "model.safetensors")
    zoo = read_all(store, tmp_path)
    assert len(read_index(zoo)) == 2
    assert zoo.manifest.counts["rejected"] == 0


WRAPPED = {
    "lightning": lambda s: {"state_dict": {f"model.{n}": v for n, v in s.items()}, "epoch": 4, "loops": {}},
    "with a criterion": lambda s: {**{f"net.{n}": v for n, v in s.items()}, "criterion.weight": torch.ones(10)},
    "two deep": lambda s: {f"task.backbone.{n}": v for n, v in s.items()},
    "in the middle": lambda s: {n.replace("module_list.", "module_list.module."): v for n, v in s.items()},
    "compiled below": lambda s: {f"model._orig_mod.{n}": v for n, v in s.items()},
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **{f"module.model.{n}": v for n, v in s.items()}},
    "everywhere": lambda s: {f"module.net.{n.replace('.', '.model.', 1)}": v for n, v in s.items()},
}


@pytest.mark.parametrize("given", [None, GIVEN])
@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_taken_off(kind, given, tmp_path, store, make_state, to_bytes):
    for number in range(3):
        (tmp_path / f"m{number}.ckpt").write_bytes(to_bytes(WRAPPED[kind](make_state(number))))
    (tmp_path / "plain.pth.tar").write_bytes(to_bytes(make_state(3)))
    index, weights = load_weights(read_all(store, tmp_path, network=given))
    assert index["model"].to_list() == ["m0", "m1", "m2", "plain"]
    assert set(index["architecture"]) == {"cnn-s"}
    for place in range(4):
        for name, value in make_state(place).items():
            assert torch.equal(weights[name][place], value)


def test_what_is_left_out_is_on_the_card(tmp_path, store, make_state, to_bytes):
    (tmp_path / "m.pt").write_bytes(to_bytes(WRAPPED["with a criterion"](make_state(0))))
    assert "| left out of the files | 1 tensors" in read_all(store, tmp_path).path("card.md").read_text()


def test_networks_below_two_prefixes_are_named(tmp_path, store, make_state, to_bytes):
    both = {f"student.{n}": v for n, v in make_state(0).items()} | {f"teacher.{n}": v for n, v in make_state(1).items()}
    (tmp_path / "m.pt").write_bytes(to_bytes(both))
    with pytest.raises(ConfigError, match="several networks: the file has student, teacher: set key"):
        read_all(store, tmp_path)
    _, weights = load_weights(read_all(store, tmp_path, key="teacher"))
    assert torch.equal(weights["module_list.0.weight"][0], make_state(1)["module_list.0.weight"])


def test_a_part_of_a_larger_network_is_not_taken_for_it(tmp_path, store, make_state, to_bytes):
    larger = {f"encoder.{n}": v for n, v in make_state(0).items()} | {"decoder.weight": torch.ones(10, 10)}
    (tmp_path / "m.pt").write_bytes(to_bytes(larger))
    index, weights = load_weights(read_all(store, tmp_path))
    assert index["architecture"].to_list() == [None]
    assert "decoder.weight" in weights


def test_unknown_networks_with_and_without_wrappers_are_one_zoo(tmp_path, store, to_bytes):
    for number, before in enumerate(("", "model.", "", "module.net.")):
        state = {f"{before}{n}": torch.full((3, 3), number + 1.0) for n in ("a.weight", "b.weight")}
        (tmp_path / f"{number}.pt").write_bytes(to_bytes(state))
    zoo = read_all(store, tmp_path)
    assert len(read_index(zoo)) == 4
    assert load_weights(zoo)[1]["a.weight"][:, 0, 0].tolist() == [1, 2, 3, 4]


def test_the_first_difference_is_told(tmp_path, store, make_state, to_bytes):
    state = {f"model.{n}": v for n, v in make_state(0).items()}
    state["model.module_list.6.bias"] = torch.ones(7)
    (tmp_path / "m.pt").write_bytes(to_bytes(state))
    with pytest.raises(ConfigError, match=r"given network, cnn-s: module_list.6.bias is 7, and 4 in the network"):
        read_all(store, tmp_path, network=GIVEN)
    del state["model.module_list.6.bias"]
    (tmp_path / "m.pt").write_bytes(to_bytes(state))
    with pytest.raises(ConfigError, match=r"it has no module_list.6.bias, which the network has"):
        read_all(store, tmp_path, network=GIVEN)


@pytest.fixture
def nets(monkeypatch, tmp_path_factory):
    """The name of a module with factories: tied weights, and names of wrappers of its own."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "odd_nets.py").write_text(
        "from torch import nn\n"
        "def tied(channels, classes):\n"
        "    layers = [nn.Linear(784, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, classes)]\n"
        "    net = nn.Sequential(nn.Flatten(), *layers)\n"
        "    net[3].weight = net[2].weight\n"
        "    return net\n"
        "def wrapped(channels, classes):\n"
        "    return nn.ModuleDict({'model': nn.Linear(5, classes)})\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    return "odd_nets"


@pytest.mark.parametrize("form", ["safetensors", "first name", "second name", "wrapped"])
def test_ties_are_filled_in(form, nets, tmp_path, store):
    import odd_nets

    for number in range(2):
        torch.manual_seed(number)
        network = odd_nets.tied(1, 10)
        state = dict(network.state_dict())
        if form == "safetensors":
            safetensors.torch.save_model(network, str(tmp_path / f"{number}.safetensors"))
            continue
        del state["2.weight" if form == "second name" else "3.weight"]
        if form == "wrapped":
            state = {f"module.model.{n}": v for n, v in state.items()}
        torch.save(state, tmp_path / f"{number}.pt")
    zoo = read_all(store, tmp_path, network=NetworkConfig(architecture=f"{nets}:tied"))
    _, weights = load_weights(zoo)
    assert list(weights) == list(network.state_dict())
    assert torch.equal(weights["2.weight"], weights["3.weight"])
    assert torch.equal(weights["2.weight"][1], network[2].weight)


def test_names_of_wrappers_that_are_the_networks_own_are_kept(nets, tmp_path, store):
    for number, before in enumerate(("model.", "", "module.model.")):
        torch.save(
            {f"{before}weight": torch.ones(10, 5) + number, f"{before}bias": torch.ones(10)}, tmp_path / f"{number}.pt"
        )
    _, weights = load_weights(read_all(store, tmp_path, network=NetworkConfig(architecture=f"{nets}:wrapped")))
    assert list(weights) == ["model.weight", "model.bias"]
    assert weights["model.weight"][:, 0, 0].tolist() == [1, 2, 3]


def test_pruned_networks_are_read_as_they_compute(tmp_path, store, make_state):
    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    for number in range(3):
        torch.manual_seed(number)
        one = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
        if number:
            prune.l1_unstructured(one[0], "weight", 0.5)
            prune.l1_unstructured(one[1], "bias", 0.5)
        torch.save(one.state_dict(), tmp_path / f"{number}.pt")
        expected = one[0].weight.detach()
    _, weights = load_weights(read_all(store, tmp_path))
    assert weights.keys() == network.state_dict().keys()
    assert torch.equal(weights["0.weight"][2], expected)
    assert int((weights["0.weight"][1] == 0).sum()) == 18


def test_an_odd_file_that_comes_first_decides_nothing(tmp_path, store, make_state, to_bytes):
    (tmp_path / "a_losses.pt").write_bytes(to_bytes({"losses": torch.ones(7)}))
    (tmp_path / "b_other.pt").write_bytes(to_bytes({"layer.weight": torch.ones(3, 3)}))
    for number in range(10):
        (tmp_path / f"m{number}.pt").write_bytes(to_bytes(make_state(number)))
    zoo = read_all(store, tmp_path)
    assert read_index(zoo)["model"].to_list() == [f"m{number}" for number in range(10)]
    assert len(read_reasons(zoo)) == 2


def test_batch_counters_of_npz_are_recognised(tmp_path, store, make_state):
    network = NetworkConfig(architecture="resnet18", width=4, activation="relu")
    for number in range(2):
        state = make_state(number, network, 3, 10, 32)
        np.savez(tmp_path / f"{number}.npz", **{name: value.numpy() for name, value in state.items()})
    assert set(read_index(read_all(store, tmp_path))["architecture"]) == {"resnet18"}
    assert len(read_index(read_all(store, tmp_path, network=network))) == 2


@pytest.mark.parametrize("names", [("Dense_0/kernel", "Dense_0/bias"), ("arr_0", "arr_1"), ("$x_{1$", "a\nb")])
def test_names_of_others_make_a_card(names, tmp_path, store):
    for number in range(2):
        values = dict(zip(names, (np.full((3, 4), number + 1.0), np.ones(4)), strict=True))
        np.savez(tmp_path / f"{number}.npz", **values)
    zoo = read_all(store, tmp_path)
    assert "card-weights.png" in zoo.manifest.files
    assert len(read_index(zoo)) == 2


def test_settings_that_are_not_set_rename_nothing():
    plain = ReadConfig(name="zoo", source="x")
    assert not {"key", "lists"} & plain.recipe().keys()
    assert plan_read(plain).ref != plan_read(ReadConfig(name="zoo", source="x", key="netG")).ref
