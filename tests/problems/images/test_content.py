"""Images of one's own are known by what is in them: other images are another dataset, whatever the path."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mzsane.config import ExecutionConfig, FilesConfig, ReadConfig, SparseConfig, TokensConfig, ZooConfig
from mzsane.errors import ConfigError
from mzsane.plan import plan_tokens_stage, plan_zoo_stage
from mzsane.problems.images.content import pin_images
from mzsane.problems.images.dataset import load_images
from mzsane.store.artifacts import ArtifactStore
from mzsane.zoo.train import plan_zoo, train_zoo
from tests.problems.images.test_stored import folders as folders


def write(root, seed=0, count=40):
    (root / "d").mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    np.savez(root / "d" / "a.npz", images=images, labels=np.arange(count) % 2)
    for number, image in enumerate(images):
        (root / "pets" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "pets" / "ab"[number % 2] / f"{number}.png")


NPZ = FilesConfig(source="npz", train="d/a.npz", classes=2)
FOLDER = FilesConfig(source="folder", train="pets", classes=2)


def make_zoo(images=NPZ):
    return ZooConfig(name="z", images=images, network={"architecture": "mlp"}, models=2, epochs=1, keep_epochs=1)


@pytest.mark.parametrize("images", [NPZ, FOLDER], ids=["npz", "folder"])
def test_content_is_the_name_of_images(folders, tmp_path, monkeypatch, images):
    write(folders)
    first = pin_images(images).content
    assert len(first) == 1
    write(tmp_path / "copy")
    write(tmp_path / "other", seed=1)
    contents = {}
    for name in ("copy", "other"):
        monkeypatch.setenv("MZSANE_DATA", str(tmp_path / name))
        contents[name] = pin_images(images).content
    assert contents["copy"] == first
    assert contents["other"] != first


def test_the_same_config_in_another_folder_is_another_zoo(tmp_path, monkeypatch):
    monkeypatch.delenv("MZSANE_DATA", raising=False)
    refs = []
    for seed, name in enumerate(("one", "two", "again")):
        write(tmp_path / name, seed % 2)
        monkeypatch.chdir(tmp_path / name)
        kinds = {
            "train": plan_zoo(make_zoo()),
            "stage": plan_zoo_stage(make_zoo()).work,
            "read": plan_zoo_stage(ReadConfig(name="r", source="/checkpoints", images=NPZ)).work,
            "twins": plan_zoo_stage(SparseConfig(name="t", zoo=make_zoo())).work,
        }
        refs.append({kind: work.ref for kind, work in kinds.items()})
    assert refs[0] == refs[2]
    assert not set(refs[0].values()) & set(refs[1].values())


def test_what_the_manifest_holds_loads_the_same_images_and_no_others(folders, tmp_path):
    write(folders)
    zoo = train_zoo(make_zoo(), ArtifactStore(str(tmp_path / "store")), ExecutionConfig(processes=1))
    assert zoo.ref == plan_zoo(make_zoo()).ref
    images = FilesConfig.model_validate(zoo.manifest.config["images"])
    assert images.content is not None
    assert load_images(images).classes == 2
    write(folders, seed=1)
    load_images.cache_clear()
    with pytest.raises(ConfigError, match=r"images in d/a\.npz are others than those that this was planned with"):
        load_images(images)


def test_names_and_litter_are_no_content(folders):
    write(folders)
    before = pin_images(FOLDER)
    (folders / "pets" / ".DS_Store").write_bytes(b"x")
    (folders / "pets" / ".ipynb_checkpoints").mkdir()
    (folders / "d" / "a.npz").rename(folders / "d" / "b.npz")
    labelled = NPZ.model_copy(update={"train": "d/b.npz", "label": "noise"})
    assert pin_images(FOLDER) == before
    assert plan_zoo(make_zoo(labelled)).ref == plan_zoo(make_zoo(labelled.model_copy(update={"label": None}))).ref


def test_images_that_are_not_there_can_be_planned(folders):
    for images in (NPZ, FOLDER):
        assert pin_images(images) is images
        assert plan_tokens_stage(TokensConfig(token_dim=33), make_zoo(images)).work.ref


def test_planning_again_reads_no_image(folders, monkeypatch):
    write(folders)
    first = pin_images(FOLDER)
    opened = []
    usual = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *rest, **more: opened.append(path) or usual(path, *rest, **more))
    assert pin_images(FOLDER) == first
    assert not [path for path in opened if path.suffix == ".png"]


def test_a_file_changed_in_place_is_seen(folders):
    """Neither size nor time of change may tell."""
    write(folders)
    first = pin_images(NPZ).content
    file = folders / "d" / "a.npz"
    stat, data = file.stat(), bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert pin_images(NPZ).content != first


def test_settings_that_came_later_rename_nothing():
    for images in (NPZ, FOLDER):
        assert set(images.recipe()) == {
            *("source", "train", "test", "classes", "size", "train_images", "test_images", "validation_fraction"),
            *("mean", "deviation", "split_seed"),
        }
