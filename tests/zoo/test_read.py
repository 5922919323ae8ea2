"""Checkpoints become a ZOO artifact: complete, ordered, the same from every source, and with what was set aside."""

import json
import shutil
import tarfile
import zipfile

import boto3
import polars as pl
import pytest
import torch

from mzsane.config import DigitsConfig, ExecutionConfig, GlyphsConfig, NetworkConfig
from mzsane.config.reading import MetricFilter, ReadConfig
from mzsane.errors import ConfigError
from mzsane.fetch.archives import ZipSource
from mzsane.zoo import read
from mzsane.zoo.read import plan_read, read_zoo
from mzsane.zoo.shards import hash_weights, load_weights, read_index

SERIAL = ExecutionConfig(processes=1)
COLUMNS = {
    "model",
    "checkpoint",
    "epoch",
    "architecture",
    "dataset",
    "split",
    "lineage",
    "diverged",
    "generalisation_gap",
}
COLUMNS |= {"recipe", "sha256", "source", "scorable", "shard", "row"}
COLUMNS |= {f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("loss", "accuracy")}


def read_all(store, source, **settings):
    return read_zoo(ReadConfig(name="zoo", source=str(source), **settings), store, SERIAL)


def read_rejected(zoo):
    return pl.read_parquet(zoo.path("rejected.parquet"))


def assert_weights(zoo, expected):
    """Compare the weights of a zoo with state dicts by (model, epoch), and the index with both."""
    index, weights = load_weights(zoo)
    assert [(row["model"], row["epoch"]) for row in index.iter_rows(named=True)] == list(expected)
    for position, state in enumerate(expected.values()):
        assert list(weights) == list(state)
        for name, value in state.items():
            assert torch.equal(weights[name][position], value), (position, name)
        assert index["sha256"][position] == hash_weights(state)


def test_a_published_zoo_is_read(tmp_path, write_ray_zoo, store, make_state):
    zoo = read_all(store, write_ray_zoo(tmp_path / "zoo"), dataset="mnist")
    states = {(f"trainable_{n}_seed={n}", e): make_state(100 * n + e) for n in range(3) for e in range(3)}
    assert_weights(zoo, states)
    index = read_index(zoo)
    assert set(index.columns) == COLUMNS
    row = index.row(5, named=True)
    assert row["checkpoint"] == "trainable_1_seed=1/2"
    assert row["train_accuracy"] == pytest.approx(0.21)
    assert row["generalisation_gap"] == pytest.approx(0.03)
    assert row["val_loss"] is None
    assert (row["architecture"], row["dataset"], row["split"], row["diverged"]) == ("cnn-s", "mnist", None, False)
    recipe = json.loads(row["recipe"])
    assert (recipe["activation"], recipe["seed"], recipe["architecture"]) == ("leaky_relu", 1, "cnn-s")
    assert "dropout" not in recipe, "nothing tells it"
    assert row["scorable"]
    assert row["source"].endswith("zoo/trainable_1_seed=1/checkpoint_000002/checkpoints")
    history = pl.read_parquet(zoo.path("history.parquet"))
    assert history.select("model", "epoch").rows() == list(states)
    assert zoo.manifest.counts == {"models": 3, "checkpoints": 9, "rejected": 0, "models_without_metrics": 0}
    assert read_rejected(zoo).is_empty()


def hash_files(zoo):
    return [zoo.manifest.files[name].sha256 for name in ("history.parquet", "weights-00000.safetensors")]


def test_folder_zip_and_tar_give_the_same_zoo(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "zoo")
    shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path, "zoo")
    with tarfile.open(tmp_path / "packed.tar", "w") as archive:
        archive.add(folder, "./deep/zoo")
    expected = read_all(store, folder)
    for name in ("packed.zip", "packed.tar.gz", "packed.tar"):
        zoo = read_all(store, tmp_path / name)
        assert hash_files(zoo) == hash_files(expected), name
        assert zoo.manifest.counts == expected.manifest.counts
        assert read_index(zoo).drop("source").equals(read_index(expected).drop("source"))


def test_several_zips_are_read_as_one(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo", models=2)
    for number in range(2):
        with zipfile.ZipFile(tmp_path / f"members-{number:05d}.zip", "w") as archive:
            for path in sorted(folder.glob(f"trainable_{number}*/**/*")):
                archive.write(path, path.relative_to(folder))
    source = ZipSource([tmp_path / "members-00000.zip", tmp_path / "members-00001.zip"], 10**7)
    config = ReadConfig(name="zoo", source="archive/1234")
    assert len(read_index(read_zoo(config, store, SERIAL, source=source))) == 6


def test_processes_change_nothing(tmp_path, write_ray_zoo, make_store, store, monkeypatch):
    monkeypatch.setattr(read, "_SMALL_CHUNK", 2)
    folder = write_ray_zoo(tmp_path / "zoo")
    config = ReadConfig(name="zoo", source=str(folder))
    alone = read_zoo(config, store, SERIAL)
    spread = read_zoo(config, make_store(), ExecutionConfig(processes=2))
    assert {n: f.sha256 for n, f in alone.manifest.files.items()} == {
        n: f.sha256 for n, f in spread.manifest.files.items()
    }


def test_names_are_labels_and_content_is_named_by_revision():
    first = plan_read(ReadConfig(name="a", source="x")).ref
    assert plan_read(ReadConfig(name="b", source="x")).ref == first
    assert plan_read(ReadConfig(name="a", source="x", revision="2")).ref != first
    assert plan_read(ReadConfig(name="a", source="y")).ref != first


def test_what_was_read_is_not_read_again(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo")
    first = read_all(store, folder)
    shutil.rmtree(folder)
    assert read_all(store, folder).ref == first.ref


def test_epochs_are_chosen(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo", models=2, epochs=(0, 1, 2, 5))
    assert read_index(read_all(store, folder, epochs=(0, 5)))["epoch"].to_list() == [0, 5, 0, 5]
    zoo = read_all(store, folder, epoch_range=(2, 9))
    assert read_index(zoo)["epoch"].to_list() == [2, 5, 2, 5]
    assert zoo.manifest.counts["rejected"] == 0


def test_metrics_filter(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo", models=2, epochs=(0, 1, 2))
    where = (MetricFilter(metric="test_accuracy", minimum=0.09), MetricFilter(metric="train_accuracy", maximum=0.105))
    index = read_index(read_all(store, folder, where=where))
    assert index["checkpoint"].to_list() == ["trainable_0_seed=0/1"]


def test_a_zoo_without_any_metrics_has_the_same_columns(tmp_path, write_ray_zoo, store):
    zoo = read_all(store, write_ray_zoo(tmp_path / "zoo", results=False))
    index = read_index(zoo)
    assert set(index.columns) == COLUMNS
    assert index.schema["test_accuracy"] == pl.Float64
    assert pl.read_parquet(zoo.path("history.parquet")).is_empty()


def test_dropout_and_plain_networks_share_a_zoo(tmp_path, store, to_bytes, make_state):
    plain, theirs = make_state(0), {"0": "0", "3": "4", "6": "8", "9": "11", "11": "14"}
    renamed = {f"module_list.{theirs[n.split('.')[1]]}.{n.split('.')[2]}": v for n, v in make_state(1).items()}
    (tmp_path / "a.pt").write_bytes(to_bytes(renamed))
    (tmp_path / "b.pt").write_bytes(to_bytes(plain))
    zoo = read_all(store, tmp_path, format="files")
    assert_weights(zoo, {("a", 0): make_state(1), ("b", 0): plain})


def test_several_networks_of_a_file_are_epochs_or_models(tmp_path, store, to_bytes, make_state):
    (tmp_path / "run.pt").write_bytes(to_bytes([make_state(seed) for seed in range(3)]))
    (tmp_path / "team_epoch_7.pt").write_bytes(to_bytes([make_state(seed) for seed in (7, 8)]))
    with pytest.raises(ConfigError, match=r"list of 3: set lists to epochs .* or to models"):
        read_all(store, tmp_path)
    zoo = read_all(store, tmp_path, lists="epochs", pattern="(?P<model>run)")
    assert_weights(zoo, {("run", epoch): make_state(epoch) for epoch in range(3)})
    zoo = read_all(store, tmp_path, lists="epochs", pattern="(?P<model>run)", epoch_range=(1, 7))
    assert read_index(zoo)["checkpoint"].to_list() == ["run/1", "run/2"]
    zoo = read_all(store, tmp_path, lists="models")
    expected = {(f"run-{place}", 0): make_state(place) for place in range(3)}
    assert_weights(zoo, {**expected, ("team-0", 7): make_state(7), ("team-1", 7): make_state(8)})


def test_an_architecture_of_its_own_is_kept_but_not_scorable(tmp_path, store, to_bytes):
    for number in range(2):
        state = {"encoder.weight": torch.full((3, 2), number + 1.0), "encoder.bias": torch.ones(3)}
        (tmp_path / f"{number}.pt").write_bytes(to_bytes(state))
    index = read_index(read_all(store, tmp_path))
    assert index["architecture"].to_list() == [None, None]
    assert not index["scorable"].any()


def test_scorable_needs_the_activation(tmp_path, store, to_bytes, make_state):
    (tmp_path / "a.pt").write_bytes(to_bytes(make_state(1)))
    assert read_index(read_all(store, tmp_path)).select("architecture", "scorable").rows() == [("cnn-s", False)]
    index = read_index(read_all(store, tmp_path, network=NetworkConfig(activation="gelu")))
    assert index["scorable"].to_list() == [True]
    assert json.loads(index["recipe"][0])["activation"] == "gelu"


def test_images_label_the_dataset_and_must_fit(tmp_path, store, to_bytes, make_state):
    (tmp_path / "a.pt").write_bytes(to_bytes(make_state(1)))
    assert read_index(read_all(store, tmp_path, images=DigitsConfig(source="digits")))["dataset"][0] == "digits"
    with pytest.raises(ConfigError, match=r"10 outputs.* 4 classes"):
        read_all(store, tmp_path, images=GlyphsConfig(source="glyphs", characters="ABCD"))


class Interruptor:
    """A sink that raises when some checkpoints are done, and remembers all it was told."""

    def __init__(self, stop_at=None):
        self.stop_at, self.seen = stop_at, []

    def metrics(self, values, step):
        raise AssertionError("there is nothing to report")

    def progress(self, done, total, note=""):
        self.seen.append(done)
        if done == self.stop_at:
            raise KeyboardInterrupt


def test_a_killed_reading_continues(tmp_path, write_ray_zoo, store, make_store, monkeypatch):
    monkeypatch.setattr(read, "_SMALL_CHUNK", 2)
    folder = write_ray_zoo(tmp_path / "zoo")
    config = ReadConfig(name="zoo", source=str(folder))
    with pytest.raises(KeyboardInterrupt):
        read_zoo(config, store, SERIAL, Interruptor(stop_at=4))
    assert store.find(plan_read(config).ref) is None
    again = Interruptor()
    zoo = read_zoo(config, store, SERIAL, again)
    assert again.seen == [4, 6, 8, 9]
    untroubled = read_zoo(config, make_store(), SERIAL)
    assert {n: f.sha256 for n, f in zoo.manifest.files.items()} == {
        n: f.sha256 for n, f in untroubled.manifest.files.items()
    }


def test_a_reading_does_not_continue_with_what_has_changed(tmp_path, write_ray_zoo, store, monkeypatch):
    monkeypatch.setattr(read, "_SMALL_CHUNK", 2)
    folder = write_ray_zoo(tmp_path / "zoo")
    config = ReadConfig(name="zoo", source=str(folder))
    with pytest.raises(KeyboardInterrupt):
        read_zoo(config, store, SERIAL, Interruptor(stop_at=4))
    (folder / "trainable_0_seed=0" / "result.json").write_text('{"training_iteration": 0, "train_acc": 0.77}')
    assert read_index(read_zoo(config, store, SERIAL))["train_accuracy"][0] == 0.77


def test_a_bucket_is_read(tmp_path, write_ray_zoo, store, s3_endpoint, monkeypatch):
    client = boto3.client("s3", endpoint_url=s3_endpoint, aws_access_key_id="x", aws_secret_access_key="x")
    client.create_bucket(Bucket="reader-zoo")
    folder = write_ray_zoo(tmp_path / "zoo", models=2)
    for path in sorted(folder.glob("**/*.json")) + sorted(folder.glob("**/checkpoints")):
        client.put_object(Bucket="reader-zoo", Key=f"zoos/{path.relative_to(folder)}", Body=path.read_bytes())
    for name, value in (
        ("MZSANE_S3_ENDPOINT", s3_endpoint),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
    ):
        monkeypatch.setenv(name, value)
    zoo = read_all(store, "s3://reader-zoo/zoos")
    assert hash_files(zoo) == hash_files(read_all(store, folder))
    with pytest.raises(ConfigError, match="reader-zoo/nothing has no files"):
        read_all(store, "s3://reader-zoo/nothing")


def test_large_chunks_are_shards_of_their_own(tmp_path, write_ray_zoo, store, monkeypatch):
    for module in ("mzsane.zoo.read", "mzsane.zoo.shards"):
        monkeypatch.setattr(f"{module}.SHARD_BYTES", 40_000)
    folder = write_ray_zoo(tmp_path / "zoo", models=4)
    zoo = read_all(store, folder)
    assert sum(name.startswith("weights") for name in zoo.manifest.files) == 4
    assert len(load_weights(zoo)[0]) == 12


def test_real_zoos_are_read(real_checkpoints, store):
    zoo = read_all(store, real_checkpoints / "mnist_cnn_zoo", dataset="mnist")
    index, weights = load_weights(zoo)
    assert index["model"].to_list() == [f"shadow_{number}" for number in range(20)]
    assert sum(v[0].numel() for n, v in weights.items() if "running" not in n and "tracked" not in n) == 432_180
    assert index["architecture"].null_count() == 20
    zoo = read_all(store, real_checkpoints / "fashion_mnist_trajectory")
    assert read_index(zoo).select("model", "epoch").rows() == [("models_model", epoch) for epoch in range(1, 8)]
    assert sum(value[0].numel() for value in load_weights(zoo)[1].values()) == 421_642


def test_real_residual_networks_are_read(real_checkpoints, store):
    zoo = read_all(store, real_checkpoints / "cifar10_resnets", format="files")
    index, weights = load_weights(zoo)
    assert index["model"].to_list() == ["resnet20-12fca82f"]
    assert not any(name.startswith("module.") for name in weights)
    assert "another architecture" in read_rejected(zoo)["reason"][0]


def test_the_index_has_the_types_that_the_next_stage_reads(tmp_path, write_ray_zoo, store):
    index = read_index(read_all(store, write_ray_zoo(tmp_path / "zoo")))
    assert index.schema["split"] == pl.String
    assert index.schema["epoch"] == pl.Int64
    assert index["shard"].to_list() == ["00000"] * 9
    assert index["row"].to_list() == list(range(9))
