"""Image datasets: the right images, no image in two splits, scaled by the training images only."""

import pytest
import torch
from sklearn.datasets import load_digits

from mzsane.config import DigitsConfig, GlyphsConfig
from mzsane.problems.images.dataset import load_images


def make_glyphs(**settings):
    return load_images(GlyphsConfig(source="glyphs", **{"characters": "ABCD", "images": 120, **settings}))


def join(dataset, what):
    return torch.cat([getattr(split, what) for split in dataset.splits.values()])


DATASETS = [DigitsConfig(source="digits"), GlyphsConfig(source="glyphs", images=200)]


@pytest.mark.parametrize("config", DATASETS, ids=["digits", "glyphs"])
class TestEveryDataset:
    def test_shape(self, config):
        dataset = load_images(config)
        assert (dataset.classes, dataset.channels) == (config.classes, 1)
        assert list(dataset.splits) == ["train", "val", "test"]
        for split in dataset.splits.values():
            assert split.images_NCHW.shape == (len(split.labels_N), 1, 28, 28)
            assert (split.images_NCHW.dtype, split.labels_N.dtype) == (torch.float32, torch.int64)
            assert set(split.labels_N.tolist()) <= set(range(10))
            assert len(set(split.labels_N.tolist())) > 5  # shuffled: no split has some classes only

    def test_shares(self, config):
        sizes = [len(split.labels_N) for split in load_images(config).splits.values()]
        for size, share in zip(sizes, (0.6, 0.2, 0.2), strict=True):
            assert size == pytest.approx(share * sum(sizes), abs=1)

    def test_training_images_alone_set_the_scale(self, config):
        dataset = load_images(config)
        train = dataset.splits["train"].images_NCHW
        assert train.mean().item() == pytest.approx(0, abs=1e-5)
        assert train.std().item() == pytest.approx(1, abs=1e-5)
        # White and black have one value in all splits.
        assert {split.images_NCHW.min().item() for split in dataset.splits.values()} == {train.min().item()}
        for split in ("val", "test"):
            assert abs(dataset.splits[split].images_NCHW.mean().item()) > 1e-5

    def test_global_random_state_is_left_alone(self, config):
        load_images.cache_clear()
        torch.manual_seed(3)
        before = torch.get_rng_state()
        load_images(config)
        assert torch.equal(before, torch.get_rng_state())


def test_digits_are_all_there_once():
    dataset = load_images(DigitsConfig(source="digits"))
    assert len(join(dataset, "labels_N")) == 1797
    assert (
        torch.bincount(join(dataset, "labels_N")).tolist()
        == torch.bincount(torch.from_numpy(load_digits().target)).tolist()
    )
    # Enlarged 3.5 times, so the mean of an image stays near that of its 8x8 original up to one scale for all.
    originals = torch.from_numpy(load_digits().images).float().mean(dim=(1, 2)).sort().values
    ours = join(dataset, "images_NCHW").mean(dim=(1, 2, 3)).sort().values
    assert torch.corrcoef(torch.stack([originals, ours]))[0, 1] > 0.999


def test_no_image_is_in_two_splits():
    images = join(load_images(DigitsConfig(source="digits")), "images_NCHW").flatten(1)
    # scikit-learn's digits hold no two equal images.
    assert len(images.unique(dim=0)) == 1797
    glyphs = join(make_glyphs(), "images_NCHW").flatten(1)
    assert len(glyphs.unique(dim=0)) == 120


def test_split_follows_its_seed():
    one, other = (load_images(DigitsConfig(source="digits", split_seed=seed)) for seed in (0, 1))
    assert not torch.equal(one.splits["test"].labels_N, other.splits["test"].labels_N)
    load_images.cache_clear()
    again = load_images(DigitsConfig(source="digits"))
    for name, split in one.splits.items():
        assert torch.equal(split.images_NCHW, again.splits[name].images_NCHW)
        assert torch.equal(split.labels_N, again.splits[name].labels_N)


def test_glyphs_are_the_same_every_time_and_follow_their_seed():
    first = join(make_glyphs(), "images_NCHW")
    load_images.cache_clear()
    assert torch.equal(first, join(make_glyphs(), "images_NCHW"))
    assert not torch.equal(first, join(make_glyphs(seed=1), "images_NCHW"))


def test_glyphs_come_equally_often():
    assert torch.bincount(join(make_glyphs(), "labels_N")).tolist() == [30, 30, 30, 30]


@pytest.mark.parametrize(("characters", "images"), [("AB", 60), ("".join(map(chr, range(65, 91))) + "0123456789", 60)])
def test_glyphs_have_as_many_classes_as_characters(characters, images):
    config = GlyphsConfig(source="glyphs", characters=characters, images=images)
    assert load_images(config).classes == config.classes


def test_every_class_can_be_had_even_with_few_images():
    characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    config = GlyphsConfig(source="glyphs", characters=characters, images=60)
    assert load_images(config).classes == config.classes


def test_glyphs_without_jitter_are_the_plain_fonts():
    plain = make_glyphs(shift=0, angle=0, noise=0, images=600)
    images, labels = join(plain, "images_NCHW").flatten(1), join(plain, "labels_N")
    for label in range(4):
        assert len(images[labels == label].unique(dim=0)) <= 11 * 8  # fonts x sizes
    for setting in ("shift", "angle", "noise"):
        jittered = make_glyphs(**{"shift": 0, "angle": 0, "noise": 0, "images": 600, setting: 0.5})
        images = join(jittered, "images_NCHW").flatten(1)
        assert len(images.unique(dim=0)) > 590, setting


def test_glyphs_can_be_told_apart():
    dataset = make_glyphs(images=600)
    train, test = dataset.splits["train"], dataset.splits["test"]
    means = torch.stack([train.images_NCHW[train.labels_N == label].mean(dim=0).flatten() for label in range(4)])
    found = torch.cdist(test.images_NCHW.flatten(1), means).argmin(dim=1)
    assert (found == test.labels_N).float().mean() > 0.6
