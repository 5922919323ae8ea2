"""Which files are checkpoints, of which model and epoch, and what is known of them."""

import json

import polars as pl
import pytest

from mzsane.errors import ConfigError
from mzsane.fetch.sources import FolderSource
from mzsane.zoo.formats.listing import find_common_folder, pick_metrics, sort_key
from mzsane.zoo.formats.loose_files import list_files
from mzsane.zoo.formats.metadata import apply_metadata
from mzsane.zoo.formats.ray_tune import is_ray_tune, list_ray_tune


def list_tuned(folder):
    source = FolderSource(str(folder), 10**7)
    return list_ray_tune(source, source.names())


def show(listing):
    return [(entry.model, entry.epoch) for entry in listing.entries]


def test_metrics_have_our_names():
    told = {"train_acc": 0.9, "test_accuracy": 0.7, "val_loss": 1, "loss_test": 2.0, "lr": 0.1, "test_acc_top5": 1.0}
    found = pick_metrics({**told, "validation_acc": True, "train_loss": "not a number", "huge_loss": 1.0})
    assert found == {
        "train_accuracy": 0.9,
        "test_accuracy": 0.7,
        "val_loss": 1.0,
        "test_loss": 2.0,
        "generalisation_gap": pytest.approx(0.2),
    }
    assert pick_metrics({"train_loss": 10**400}) == {"train_loss": float("inf")}


def test_numbers_in_names_are_sorted_as_numbers():
    assert sorted(["m10", "m9", "m", "a2b10", "a2b9"], key=sort_key) == ["a2b9", "a2b10", "m", "m9", "m10"]


def test_common_folder():
    assert find_common_folder(["a/b/x", "a/b/c/y"]) == "a/b/"
    assert find_common_folder(["a/b/x", "ab/y"]) == ""
    assert find_common_folder([]) == ""


def test_the_published_layout_is_listed(tmp_path, write_ray_zoo):
    write_ray_zoo(tmp_path / "zoo", models=2, epochs=(0, 3))
    listing = list_tuned(tmp_path)
    assert is_ray_tune([entry.file for entry in listing.entries])
    assert show(listing) == [(f"trainable_{n}_seed={n}", epoch) for n in (0, 1) for epoch in (0, 3)]
    entry = listing.entries[3]
    assert entry.metrics["train_accuracy"] == pytest.approx(0.31)
    assert entry.recipe["activation"] == "leaky_relu"
    assert entry.recipe["learning_rate"] == entry.recipe["optim::lr"] == 1e-3
    assert [(row["model"], row["epoch"]) for row in listing.history] == show(listing)
    assert (listing.rejected, listing.without_metrics) == ([], 0)


@pytest.mark.parametrize("form", ["shuffled", "array", "truncated", "repeated", "first epoch is 1"])
def test_results_belong_to_epochs_by_their_number(form, tmp_path, write_ray_zoo):
    folder = write_ray_zoo(tmp_path, models=1, epochs=(0, 1, 2, 5)) / "trainable_0_seed=0"
    lines = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    text = {
        "shuffled": "\n".join(json.dumps(line) for line in reversed(lines)),
        "array": json.dumps(lines),
        "truncated": "\n".join(json.dumps(line) for line in [*lines, lines[0]])[:-9],
        "repeated": "\n".join(json.dumps(line) for line in [{**lines[3], "train_acc": 0.0}, *lines]),
        "first epoch is 1": "\n".join(json.dumps(line) for line in lines[1:]),
    }[form]
    (folder / "result.json").write_text(text)
    accuracies = {entry.epoch: entry.metrics.get("train_accuracy") for entry in list_tuned(tmp_path).entries}
    expected = {epoch: pytest.approx(epoch / 10) for epoch in (0, 1, 2, 5)}
    assert accuracies == (expected if form != "first epoch is 1" else {**expected, 0: None})


def test_a_model_without_results_is_kept(tmp_path, write_ray_zoo):
    write_ray_zoo(tmp_path, models=2)
    (tmp_path / "trainable_1_seed=1" / "result.json").unlink()
    (tmp_path / "trainable_1_seed=1" / "params.json").write_text("{damaged")
    listing = list_tuned(tmp_path)
    assert len(listing.entries) == 6
    assert [bool(entry.metrics) for entry in listing.entries] == [True] * 3 + [False] * 3
    assert listing.without_metrics == 1
    assert not listing.entries[5].recipe


def test_older_config_names_are_read(tmp_path, write_ray_zoo):
    model = write_ray_zoo(tmp_path, models=1) / "trainable_0_seed=0"
    (model / "params.json").rename(model / "config.json")
    assert list_tuned(tmp_path).entries[0].recipe["activation"] == "leaky_relu"
    (model / "config.json").unlink()
    (model / "result.json").write_text(json.dumps({"training_iteration": 0, "config": {"model::nlin": "tanh"}}))
    assert list_tuned(tmp_path).entries[0].recipe["activation"] == "tanh"


def test_an_epoch_without_weights_is_rejected(tmp_path, write_ray_zoo):
    write_ray_zoo(tmp_path, models=2)
    (tmp_path / "trainable_0_seed=0" / "checkpoint_000001" / "checkpoints").unlink()
    listing = list_tuned(tmp_path)
    (row,) = listing.rejected
    assert (row["model"], row["epoch"]) == ("trainable_0_seed=0", 1)
    assert len(listing.entries) == 5


@pytest.mark.parametrize("padding", ["checkpoint_7", "checkpoint_0007", "checkpoint_000007"])
def test_any_padding_of_epochs_is_read(padding):
    assert is_ray_tune([f"model/{padding}/checkpoints"])
    assert not is_ray_tune([f"model/{padding}/optimizer", "checkpoints"])


def test_files_are_listed_by_their_suffix():
    names = ["zoo/m_10.pt", "zoo/m_9.PTH", "zoo/readme.md", "zoo/run/epoch_3.safetensors", "zoo/run/epoch=12.bin"]
    names += ["zoo/step.npz", "zoo/__MACOSX/._m_9.pt", "zoo/.hidden/m.pt"]
    assert show(list_files(sorted(names), None)) == [
        *[("m_9", None), ("m_10", None), ("run", 3), ("run", 12), ("step", None)]
    ]


def test_epochs_are_seen_at_the_end_of_names():
    names = ["models_model_epoch_3.pth", "net-ep07.pt", "deep2.pt", "step7.pt", "epoch_1/a.pt"]
    found = {entry.file: (entry.model, entry.epoch) for entry in list_files(names, None).entries}
    assert found["models_model_epoch_3.pth"] == ("models_model", 3)
    assert found["net-ep07.pt"] == ("net", 7)
    assert found["deep2.pt"] == ("deep2", None)
    assert found["step7.pt"] == ("model", 7)
    assert found["epoch_1/a.pt"] == ("a", 1)


def test_a_pattern_tells_models_and_epochs():
    names = ["lr1/w-5.ckpt", "lr1/w-10.ckpt", "lr2/w-5.ckpt", "notes.txt"]
    listing = list_files(names, r"(?P<model>[^/]+)/w-(?P<epoch>\d+)\.ckpt$")
    assert show(listing) == [("lr1", 5), ("lr1", 10), ("lr2", 5)]
    assert show(list_files(["a/e5.pt", "a/e6.pt"], r"e(?P<epoch>\d+)")) == [("a/e", 5), ("a/e", 6)]
    with pytest.raises(ConfigError, match="must match a number"):
        list_files(["a/eX.pt"], r"e(?P<epoch>\w+)")


def write_table(path, rows):
    frame = pl.DataFrame(rows)
    {".csv": frame.write_csv, ".json": frame.write_json, ".jsonl": frame.write_ndjson, ".parquet": frame.write_parquet}[
        path.suffix
    ](path)
    return path.name


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_table_tells_what_paths_do_not(suffix, inside, tmp_path):
    (tmp_path / "zoo").mkdir()
    rows = [
        {
            "file": "x1.pt",
            "model": "one",
            "epoch": 4,
            "test_acc": 0.5,
            "split": "validation",
            "dataset": "mnist",
            "lr": 0.1,
        },
        {"file": "x2.pt", "model": "two", "epoch": 0, "test_acc": 0.6, "split": "train", "dataset": None, "lr": 0.2},
        {
            "file": "gone.pt",
            "model": "gone",
            "epoch": 1,
            "test_acc": 0.1,
            "split": "test",
            "dataset": "mnist",
            "lr": 1.0,
        },
    ]
    name = write_table((tmp_path / "zoo" if inside else tmp_path) / f"table{suffix}", rows)
    names = ["x1.pt", "x2.pt", "x3.pt", *([name] if inside else [])]
    source = FolderSource(str(tmp_path / "zoo"), 10**7)
    listing = apply_metadata(
        list_files(names, None), source, names, name if inside else str(tmp_path / f"table{suffix}")
    )
    assert show(listing) == [("one", 4), ("two", 0), ("x3", None)]
    first, second, third = listing.entries
    assert (first.metrics, first.split, first.dataset, dict(first.recipe)) == (
        *({"test_accuracy": 0.5}, "val", "mnist"),
        {"lr": 0.1},
    )
    assert (second.split, second.dataset) == ("train", None)
    assert not third.metrics
    assert [(row["model"], row["source"]) for row in listing.rejected] == [("gone", "gone.pt")]


def test_a_table_of_models_is_joined_by_model_and_epoch(tmp_path, write_ray_zoo):
    write_ray_zoo(tmp_path, models=2, epochs=(0, 1))
    pl.DataFrame({"model": ["trainable_0_seed=0"], "split": ["test"]}).write_csv(tmp_path / "t.csv")
    source = FolderSource(str(tmp_path), 10**7)
    listing = apply_metadata(list_tuned(tmp_path), source, source.names(), "t.csv")
    assert [entry.split for entry in listing.entries] == ["test", "test", None, None]
    assert listing.entries[1].metrics["test_accuracy"] == 0.09
    pl.DataFrame({"model": ["trainable_0_seed=0"], "epoch": [1], "val_acc": [0.3]}).write_csv(tmp_path / "t.csv")
    listing = apply_metadata(list_tuned(tmp_path), source, source.names(), "t.csv")
    assert [entry.metrics.get("val_accuracy") for entry in listing.entries] == [None, 0.3, None, None]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,epoch\na,1\n", "no column file or model"),
        ("model,epoch\nx1,1.5\n", "whole numbers"),
        ("model,split\nx1,training\n", "train, val or test"),
        ("", "cannot be read"),
    ],
)
def test_a_table_that_makes_no_sense_is_an_error(text, reason, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    source = FolderSource(str(tmp_path), 10**7)
    with pytest.raises(ConfigError, match=reason):
        apply_metadata(list_files(["x1.pt"], None), source, ["x1.pt", "t.csv"], "t.csv")


def test_a_missing_table_is_an_error(tmp_path):
    source = FolderSource(str(tmp_path), 10**7)
    for address in ("no.csv", str(tmp_path / "no.csv"), "memory://no/no.csv"):
        with pytest.raises(ConfigError, match="there is no metadata"):
            apply_metadata(list_files(["x1.pt"], None), source, ["x1.pt"], address)
