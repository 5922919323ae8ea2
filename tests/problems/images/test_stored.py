"""Image datasets in files: torchvision's from a copy, folders and npz files, and what is wrong with them."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mzsane.config import FilesConfig, TorchvisionConfig
from mzsane.errors import ConfigError
from mzsane.problems.images.dataset import load_images

DATA = Path(os.environ.get("MZSANE_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")
real_data = pytest.mark.skipif(not (DATA / "MNIST").exists(), reason="no MNIST in the data folder (MZSANE_DATA)")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """A data folder and a cache of the test's own, and no memory of other tests' images."""
    monkeypatch.setenv("MZSANE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MZSANE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    load_images.cache_clear()
    yield tmp_path / "data"
    load_images.cache_clear()


def fail(*_, **__):
    raise OSError("no network")


def draw(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_idx(folder, part, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">IIII", 2051, *images.shape) + images.tobytes())
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">II", 2049, len(labels)) + labels.astype(np.uint8).tobytes())


class TestTorchvision:
    def test_copy_in_the_data_folder_is_read_and_not_written_to(self, folders):
        images, labels = draw(70, (28, 28)), np.arange(70) % 10
        write_idx(folders / "MNIST" / "raw", "train", images[:50], labels[:50])
        write_idx(folders / "MNIST" / "raw", "t10k", images[50:], labels[50:])
        before = sorted(folders.rglob("*"))
        dataset = load_images(TorchvisionConfig(source="mnist", validation_fraction=0.2))
        assert sorted(folders.rglob("*")) == before
        assert {name: len(split.labels_N) for name, split in dataset.splits.items()} == {
            "train": 40,
            "val": 10,
            "test": 20,
        }
        seen = torch.cat([dataset.splits[name].images_NCHW for name in ("train", "val")])
        assert len({image.numpy().tobytes() for image in seen}) == 50
        train = dataset.splits["train"].images_NCHW
        assert train.mean().item() == pytest.approx(0, abs=1e-5)
        assert train.std().item() == pytest.approx(1, abs=1e-5)

    def test_one_part_alone_is_cut_in_three(self, folders):
        write_idx(folders / "KMNIST" / "raw", "t10k", draw(50, (28, 28)), np.arange(50) % 10)
        dataset = load_images(TorchvisionConfig(source="kmnist", part="test"))
        assert [len(dataset.splits[name].labels_N) for name in ("train", "val", "test")] == [30, 10, 10]

    def test_one_part_alone_is_limited_too(self, folders):
        write_idx(folders / "KMNIST" / "raw", "t10k", draw(50, (28, 28)), np.arange(50) % 10)
        whole = load_images(TorchvisionConfig(source="kmnist", part="test", mean=(0,), deviation=(1,)))
        some = load_images(TorchvisionConfig(source="kmnist", part="test", mean=(0,), deviation=(1,), train_images=20))
        assert [len(some.splits[name].labels_N) for name in ("train", "val", "test")] == [15, 5, 10]
        for name, split in some.splits.items():
            assert torch.equal(split.images_NCHW, whole.splits[name].images_NCHW[: len(split.labels_N)])

    @pytest.mark.parametrize(("there", "missing"), [("t10k", "train"), ("train", "test")])
    def test_missing_part_is_named(self, monkeypatch, folders, there, missing):
        monkeypatch.setattr("socket.getaddrinfo", fail)
        write_idx(folders / "KMNIST" / "raw", there, draw(50, (28, 28)), np.arange(50) % 10)
        with pytest.raises(ConfigError, match=rf"kmnist has no {missing} images .* set images.part to"):
            load_images(TorchvisionConfig(source="kmnist"))

    @pytest.mark.parametrize("source", TorchvisionConfig.model_fields["source"].annotation.__args__)
    def test_missing_dataset_says_what_to_do(self, monkeypatch, source):
        monkeypatch.setattr("socket.getaddrinfo", fail)
        with pytest.raises(ConfigError, match=rf"{source} is not in the data folder .*MZSANE_DATA"):
            load_images(TorchvisionConfig(source=source))

    def test_damaged_copy_is_said(self, folders):
        write_idx(folders / "MNIST" / "raw", "train", draw(5, (28, 28)), np.arange(5))
        file = folders / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
        file.write_bytes(file.read_bytes()[:-30])
        with pytest.raises(ConfigError, match=r"train-images-idx3-ubyte\.gz is damaged"):
            load_images(TorchvisionConfig(source="mnist"))

    @real_data
    @pytest.mark.parametrize(
        ("source", "part", "images"), [("mnist", None, (60_000, 10_000)), ("kmnist", "test", (0, 10_000))]
    )
    def test_real_ones(self, monkeypatch, source, part, images):
        monkeypatch.setenv("MZSANE_DATA", str(DATA))
        dataset = load_images(TorchvisionConfig(source=source, part=part))
        assert sum(len(split.labels_N) for split in dataset.splits.values()) == sum(images)
        counts = torch.bincount(dataset.splits["test"].labels_N)
        assert len(counts) == 10
        assert counts.min() > 0.5 * counts.max()


class TestFiles:
    def test_npz_with_named_parts(self, folders):
        images, labels = draw(40, (16, 16)), np.arange(40) % 4
        np.savez(folders / "both.npz", x_train=images[:30], y_train=labels[:30], x_test=images[30:], y_test=labels[30:])
        dataset = load_images(FilesConfig(source="npz", train="both.npz", classes=4, size=28))
        assert dataset.splits["test"].images_NCHW.shape == (10, 1, 28, 28)
        assert sorted(dataset.splits["test"].labels_N.tolist()) == sorted(labels[30:].tolist())

    def test_npz_in_two_files_with_colours(self, folders):
        for name, count in (("train", 30), ("test", 12)):
            np.savez(folders / f"{name}.npz", images=draw(count, (8, 8, 3)), labels=np.arange(count) % 3)
        config = FilesConfig(source="npz", train="train.npz", test="test.npz", classes=3, test_images=10)
        dataset = load_images(config)
        assert dataset.channels == 3
        assert dataset.size == 8
        assert len(dataset.splits["test"].labels_N) == 10
        assert dataset.splits["train"].images_NCHW.mean(dim=(0, 2, 3)).abs().max() < 1e-4

    def test_folder_of_images(self, folders):
        for part, count, first in (("train", 12, 20), ("test", 5, 40)):
            for label in ("cat", "dog"):
                (folders / "pets" / part / label).mkdir(parents=True)
                for number in range(count):
                    value = first + 180 * (label == "dog")
                    image = Image.fromarray(np.full((9, 9), value + number, dtype=np.uint8))
                    image.save(folders / "pets" / part / label / f"{number:02d}.png")
        dataset = load_images(FilesConfig(source="folder", train="pets", classes=2))
        assert {name: len(split.labels_N) for name, split in dataset.splits.items()} == {
            "train": 21,
            "val": 3,
            "test": 10,
        }
        for split in dataset.splits.values():
            assert torch.equal(split.images_NCHW[:, 0, 0, 0] > 0, split.labels_N == 1)

    def test_given_scale_is_used(self, folders):
        images = draw(30, (8, 8, 3))
        np.savez(folders / "a.npz", images=images, labels=np.arange(30) % 3)
        config = FilesConfig(source="npz", train="a.npz", classes=3, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.2, 0.1))
        dataset = load_images(config)
        values = torch.cat([split.images_NCHW for split in dataset.splits.values()])
        expected = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).mean(dim=(0, 2, 3))
        expected = (expected - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.2, 0.1])
        torch.testing.assert_close(values.mean(dim=(0, 2, 3)), expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"pictures": draw(4, (8, 8))}, "has arrays pictures; images are looked for under"),
            ({"images": draw(4, (8, 8)), "labels": np.arange(3)}, "4 images and 3 labels"),
            ({"images": draw(12, (8, 8)), "labels": np.arange(12)}, "labels 0 to 11; classes is 4"),
            ({"images": draw(4, (8,)), "labels": np.arange(4)}, "not height x width"),
            ({"images": np.array([{}, {}], dtype=object), "labels": np.arange(2)}, "cannot be read as npz"),
        ],
    )
    def test_bad_npz(self, folders, arrays, message):
        np.savez(folders / "bad.npz", **arrays)
        with pytest.raises(ConfigError, match=message):
            load_images(FilesConfig(source="npz", train="bad.npz", classes=4))

    def test_missing_and_damaged_files(self, folders):
        with pytest.raises(ConfigError, match="no such image file or folder"):
            load_images(FilesConfig(source="npz", train="none.npz", classes=4))
        (folders / "cut.npz").write_bytes(b"PK\x03\x04 cut")
        with pytest.raises(ConfigError, match="cannot be read as npz"):
            load_images(FilesConfig(source="npz", train="cut.npz", classes=4))
        (folders / "pets" / "cat").mkdir(parents=True)
        (folders / "pets" / "cat" / "a.png").write_bytes(b"no image")
        with pytest.raises(ConfigError, match=r"a.png cannot be read as an image"):
            load_images(FilesConfig(source="folder", train="pets", classes=2))

    def test_scale_must_fit(self, folders):
        with pytest.raises(ValueError, match="given together"):
            FilesConfig(source="npz", train="a.npz", classes=3, mean=(0.5,))
        np.savez(folders / "a.npz", images=draw(30, (8, 8, 3)), labels=np.arange(30) % 3)
        with pytest.raises(ConfigError, match="mean has 1 numbers, the images have 3 channels"):
            load_images(FilesConfig(source="npz", train="a.npz", classes=3, mean=(0.5,), deviation=(0.2,)))
