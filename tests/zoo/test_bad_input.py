"""Bad input is set aside with its reason and the rest goes on; too much of it stops, and says why."""

import json
import shutil
import zipfile

import polars as pl
import pytest

from mzsane.config import ExecutionConfig, NetworkConfig
from mzsane.config.reading import MetricFilter, ReadConfig
from mzsane.errors import ConfigError, StoreError
from mzsane.fetch.sources import FolderSource
from mzsane.zoo import read
from mzsane.zoo.read import plan_read, read_zoo
from mzsane.zoo.shards import hash_weights, load_weights, read_index

SERIAL = ExecutionConfig(processes=1)


def read_all(store, source, **settings):
    return read_zoo(ReadConfig(name="zoo", source=str(source), **settings), store, SERIAL)


def read_rejected(zoo):
    return pl.read_parquet(zoo.path("rejected.parquet"))


def test_an_epoch_that_is_not_there_is_listed(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo", models=3)
    shutil.rmtree(folder / "trainable_1_seed=1" / "checkpoint_000002")
    zoo = read_all(store, folder, epochs=(2,))
    assert read_index(zoo)["model"].to_list() == ["trainable_0_seed=0", "trainable_2_seed=2"]
    (row,) = read_rejected(zoo).iter_rows(named=True)
    assert (row["model"], row["epoch"]) == ("trainable_1_seed=1", 2)
    assert "no such epoch" in row["reason"]


def test_nothing_left_after_the_filter_says_what_there_is(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo")
    with pytest.raises(ConfigError, match=r"none of its 9 .*epochs 0 to 2, test_accuracy from 0 to 0.18"):
        read_all(store, folder, where=(MetricFilter(minimum=0.5),))
    with pytest.raises(ConfigError, match="epochs 0 to 2"):
        read_all(store, folder, epoch_range=(7, 9))


def test_a_model_without_results_is_kept_unless_filtered(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo", models=3)
    (folder / "trainable_2_seed=2" / "result.json").unlink()
    zoo = read_all(store, folder)
    index = read_index(zoo)
    assert (len(index), index["test_accuracy"].null_count()) == (9, 3)
    assert zoo.manifest.counts["models_without_metrics"] == 1
    zoo = read_all(store, folder, where=(MetricFilter(minimum=0.0),))
    assert (len(read_index(zoo)), zoo.manifest.counts["rejected"]) == (6, 3)
    assert set(read_rejected(zoo)["model"]) == {"trainable_2_seed=2"}


def test_mixed_architectures_the_first_one_counts(tmp_path, write_ray_zoo, store, to_bytes, make_state):
    folder = write_ray_zoo(tmp_path / "zoo", models=3)
    other = make_state(9, NetworkConfig(architecture="mlp"))
    (folder / "trainable_1_seed=1" / "checkpoint_000001" / "checkpoints").write_bytes(to_bytes(other))
    zoo = read_all(store, folder)
    assert len(read_index(zoo)) == 8
    (row,) = read_rejected(zoo).iter_rows(named=True)
    assert (row["model"], row["epoch"]) == ("trainable_1_seed=1", 1)
    assert row["reason"].startswith("another architecture: ")
    given = read_all(store, folder, network=NetworkConfig(architecture="mlp"), max_rejected=0.9)
    assert read_index(given)["checkpoint"].to_list() == ["trainable_1_seed=1/1"]


def test_duplicates_are_listed_with_the_first_name(tmp_path, write_ray_zoo, store, monkeypatch):
    monkeypatch.setattr(read, "_SMALL_CHUNK", 2)
    folder = write_ray_zoo(tmp_path / "zoo", models=3)
    shutil.copytree(folder / "trainable_0_seed=0", folder / "trainable_9_copy")
    shutil.copytree(folder / "trainable_0_seed=0" / "checkpoint_000001", folder / "trainable_0_seed=0" / "checkpoint_1")
    zoo = read_all(store, folder)
    index, weights = load_weights(zoo)
    assert index["sha256"].n_unique() == len(index) == len(next(iter(weights.values()))) == 9
    for row in range(9):  # the weights still lie where the index says
        assert hash_weights({name: value[row] for name, value in weights.items()}) == index["sha256"][row]
    rejected = read_rejected(zoo)
    assert sorted(rejected["model"].to_list()) == ["trainable_0_seed=0", *["trainable_9_copy"] * 3]
    assert "same weights as trainable_0_seed=0/2" in " ".join(rejected["reason"])
    assert "a second trainable_0_seed=0/1" in " ".join(rejected["reason"])
    stored = {name for name in store.files.walk() if str(zoo.ref) in name and "weights" in name}
    named = {f"{zoo.ref}/{entry.path}" for name, entry in zoo.manifest.files.items() if "weights" in name}
    assert stored == named, "what the first round wrote is gone"


def break_share(folder, share):
    """Break a share of the checkpoints, in different ways."""
    files = sorted(folder.glob("*/checkpoint_*/checkpoints"))
    broken = files[len(files) - round(share * len(files)) :]
    for number, path in enumerate(broken):
        data = path.read_bytes()
        path.write_bytes([data[: len(data) // 2], b"", b"<html>"][number % 3])
    return [path.parent.parent.name for path in broken]


def test_a_third_broken_goes_on(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo", models=5, epochs=(1, 2))
    broken = break_share(folder, 0.3)
    zoo = read_all(store, folder)
    assert zoo.manifest.counts == {"models": 4, "checkpoints": 7, "rejected": 3, "models_without_metrics": 0}
    rejected = read_rejected(zoo)
    assert rejected["model"].to_list() == broken
    assert [reason.partition(":")[0] for reason in rejected["reason"]] == [
        "truncated or damaged",
        "empty file",
        "no checkpoint",
    ]
    assert all(source.startswith(str(folder)) for source in rejected["source"])


def test_nearly_all_broken_stops(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo", models=5, epochs=(1, 2))
    break_share(folder, 0.9)
    with pytest.raises(ConfigError, match=r"9 of 10 .*90%, max_rejected is 50%.* 3 times truncated.*3 times"):
        read_all(store, folder)
    assert store.files.walk() == []
    assert read_all(store, folder, max_rejected=0.9).manifest.counts["checkpoints"] == 1
    break_share(folder, 1.0)
    with pytest.raises(ConfigError, match=r"no checkpoint of .* can be used"):
        read_all(store, folder, max_rejected=1.0)


def test_not_finite_weights_are_rejected(tmp_path, write_ray_zoo, store, to_bytes, make_state):
    folder = write_ray_zoo(tmp_path / "zoo", models=2)
    for epoch, value in ((0, float("nan")), (1, float("inf"))):
        state = make_state(5)
        state["module_list.9.bias"][3] = value
        (folder / "trainable_0_seed=0" / f"checkpoint_{epoch:06d}" / "checkpoints").write_bytes(to_bytes(state))
    reasons = read_rejected(read_all(store, folder))["reason"].to_list()
    assert reasons == [
        "weights that are not finite: NaN in module_list.9.bias",
        "weights that are not finite: infinite numbers in module_list.9.bias",
    ]


def test_a_diverged_model_is_marked(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo", models=2, epochs=(0, 1))
    lines = [{"training_iteration": 0, "train_loss": 2.0}, {"training_iteration": 1, "train_loss": float("nan")}]
    (folder / "trainable_0_seed=0" / "result.json").write_text("\n".join(json.dumps(line) for line in lines))
    assert read_index(read_all(store, folder))["diverged"].to_list() == [False, True, False, False]


def test_members_that_escape_are_listed(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo", models=2)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for path in sorted(folder.glob("**/*")):
            archive.write(path, path.relative_to(tmp_path))
        archive.writestr("../../escaped/checkpoint_000001/checkpoints", b"x")
    zoo = read_all(store, tmp_path / "z.zip")
    assert zoo.manifest.counts["checkpoints"] == 6
    (row,) = read_rejected(zoo).iter_rows(named=True)
    assert row["reason"] == "refused: a path that leads out of the archive"
    assert not list(tmp_path.parent.glob("**/escaped"))


def test_no_checkpoints_says_what_there_is(tmp_path, store):
    with pytest.raises(ConfigError, match="is not a folder"):
        read_all(store, tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ConfigError, match=r"no checkpoints .* 1 files, notes.txt"):
        read_all(store, tmp_path)
    with pytest.raises(ConfigError, match="format ray-tune"):
        read_all(store, tmp_path, format="ray-tune")


class Failing(FolderSource):
    """A folder that is out of reach for one file."""

    def __init__(self, address, lost):
        super().__init__(address, 10**7)
        self.lost, self.parallel_reads = lost, 4

    def read(self, name):
        if self.lost in name:
            raise StoreError("source cannot be reached")
        return super().read(name)


def test_an_outage_stops_the_reading_and_rejects_nothing(tmp_path, write_ray_zoo, store):
    folder = write_ray_zoo(tmp_path / "zoo")
    config = ReadConfig(name="zoo", source=str(folder))
    with pytest.raises(StoreError, match="cannot be reached"):
        read_zoo(config, store, SERIAL, source=Failing(str(folder), "seed=2/checkpoint_000001/checkpoints"))
    assert store.find(plan_read(config).ref) is None
    again = read_zoo(config, store, SERIAL, source=Failing(str(folder), "nothing"))
    assert again.manifest.counts["checkpoints"] == 9
    assert read_index(again)["checkpoint"].to_list() == [
        f"trainable_{n}_seed={n}/{e}" for n in range(3) for e in range(3)
    ]
