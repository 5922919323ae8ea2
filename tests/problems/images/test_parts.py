"""Images of one's own: whatever form they come in, no image is in two splits and every label is that of its name."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from mzsane.config import DigitsConfig, FilesConfig, GlyphsConfig, TorchvisionConfig
from mzsane.errors import ConfigError
from mzsane.problems.images.dataset import load_images
from tests.problems.images.test_stored import folders as folders
from tests.problems.images.test_stored import write_idx

CLASSES = ("ant", "bee", "cat")
COUNTS = {"train": 45, "val": 15, "test": 18}


def make(part, classes=3, channels=0):
    """Make images that all differ, with the number of the class in their first pixel."""
    count = COUNTS[part]
    seed = list(COUNTS).index(part)
    shape = (count, 8, 8, channels) if channels else (count, 8, 8)
    images = np.random.default_rng(seed).integers(100, 256, shape, dtype=np.uint8)
    labels = np.arange(count) % classes
    images[:, 0, 0] = labels.reshape(-1, *[1] * bool(channels))
    return images, labels


def write_folder(place, part, names=CLASSES, nested=False):
    for number, (image, label) in enumerate(zip(*make(part), strict=True)):
        folder = place / names[label] / (f"deep-{number % 2}" if nested else "")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{part}{number:03d}.png")


def write_npz(place, **parts):
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez(place, **{key: make(part)[kind] for key, (part, kind) in parts.items()})


def write_litter(place):
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (place / name).mkdir(parents=True)
        Image.fromarray(make("val")[0][0]).save(place / name / "copy.png")
    for folder in (place, *(place / name for name in CLASSES if (place / name).is_dir())):
        for name in (".DS_Store", "Thumbs.db", "._cat.png", ".hidden.png", "desktop.ini"):
            (folder / name).write_bytes(b"no image")


def folder(train="pets", **settings):
    return FilesConfig(source="folder", train=train, classes=3, **settings)


def npz(train="a.npz", **settings):
    return FilesConfig(source="npz", train=train, classes=3, **settings)


def flat_folder(root):
    write_folder(root / "pets", "train")
    write_litter(root / "pets")
    return folder()


def nested_folder(root):
    write_folder(root / "pets", "train", nested=True)
    return folder()


def only_train_folder(root):
    write_folder(root / "pets" / "train", "train")
    write_litter(root / "pets")
    return folder()


def two_parts(root):
    for part in ("train", "test"):
        write_folder(root / "pets" / part, part)
        write_litter(root / "pets" / part)
    return folder()


def three_parts(root):
    for part, name in (("train", "Training"), ("val", "valid"), ("test", "Test")):
        write_folder(root / "pets" / name, part)
    return folder()


def train_and_validation(root):
    for part, name in (("train", "train"), ("val", "validation")):
        write_folder(root / "pets" / name, part)
    return folder()


def two_folders(root):
    for part in ("train", "test"):
        write_folder(root / "pets" / part, part)
    return folder("pets/train", test="pets/test")


def parent_as_test(root):
    for part in ("train", "test"):
        write_folder(root / "pets" / part, part)
    return folder("pets/train", test="pets")


def linked_folder(root):
    write_folder(root / "away", "train")
    (root / "pets").mkdir()
    for name in CLASSES:
        (root / "pets" / name).symlink_to(root / "away" / name)
    (root / "away" / "ant" / "loop").symlink_to(root / "away" / "ant")
    return folder()


def bare_npz(root):
    write_npz(root / "a.npz", images=("train", 0), labels=("train", 1))
    return npz()


def named_npz(root):
    write_npz(root / "a.npz", x_train=("train", 0), y_train=("train", 1), x_test=("test", 0), y_test=("test", 1))
    return npz()


def other_names_npz(root):
    keys = {f"{part}_{what}": (part, kind) for part in COUNTS for kind, what in enumerate(("images", "labels"))}
    write_npz(root / "a.npz", **keys)
    return npz()


def capital_npz(root):
    keys = {"X_train": ("train", 0), "Y_train": ("train", 1), "X_valid": ("val", 0), "Y_valid": ("val", 1)}
    write_npz(root / "a.npz", **keys)
    return npz()


def same_npz_twice(root):
    named_npz(root)
    return npz(test="a.npz")


def two_npz(root):  # as the CIFAR-10 subset
    for part in ("train", "test"):
        write_npz(root / "c" / f"{part}.npz", images=(part, 0), labels=(part, 1))
    return npz("c/train.npz", test="c/test.npz")


def idx(root):
    for part, name in (("train", "train"), ("test", "t10k")):
        write_idx(root / "MNIST" / "raw", name, *make(part))
    return TorchvisionConfig(source="mnist")


def one_idx(root):
    write_idx(root / "KMNIST" / "raw", "t10k", *make("train"))
    return TorchvisionConfig(source="kmnist", part="test")


def digits(_):
    return DigitsConfig(source="digits")


def glyphs(_):
    return GlyphsConfig(source="glyphs", images=200, shift=0, angle=0, noise=0)


ONE = (flat_folder, nested_folder, only_train_folder, linked_folder, bare_npz, one_idx)
TWO = (two_parts, two_folders, parent_as_test, named_npz, same_npz_twice, two_npz, idx)
THREE = (three_parts, other_names_npz)
NO_TEST = (train_and_validation, capital_npz)
LAYOUTS = (*ONE, *TWO, *THREE, *NO_TEST)


def unscaled(config):
    """Return splits in whole pixel values, by a scale that changes nothing."""
    config = config.model_copy(update={"mean": (0.0,), "deviation": (1.0,)})
    return {
        name: (split.images_NCHW.mul(255).round().to(torch.uint8)[:, 0].numpy(), split.labels_N)
        for name, split in load_images(config).splits.items()
    }


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("layout", [*LAYOUTS, digits, glyphs], ids=lambda layout: layout.__name__)
def test_no_image_is_in_two_splits(folders, layout):
    splits = load_images(layout(folders)).splits
    contents = {name: {image.numpy().tobytes() for image in split.images_NCHW} for name, split in splits.items()}
    assert all(contents.values())
    for name, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not contents[name] & contents[other]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_image_is_there_with_its_label(folders, layout):
    splits = unscaled(layout(folders))
    for images, labels in splits.values():
        assert images[:, 0, 0].tolist() == labels.tolist()
    given = {name: {image.tobytes() for image in make(name)[0]} for name in COUNTS}
    found = {name: {image.tobytes() for image in images} for name, (images, _) in splits.items()}
    sizes = [len(found[name]) for name in ("train", "val", "test")]
    if layout in ONE:
        assert sizes == [27, 9, 9]
        assert set.union(*found.values()) == given["train"]
    elif layout in TWO:
        assert (found["test"], found["train"] | found["val"]) == (given["test"], given["train"])
    elif layout in THREE:
        assert found == given
    else:
        assert sizes == [36, 15, 9]
        assert found["val"] == given["val"]


def test_training_images_are_limited_whatever_the_parts(folders):
    for layout in (three_parts, two_npz, bare_npz):
        splits = load_images(layout(folders).model_copy(update={"train_images": 20})).splits
        assert len(splits["train"].labels_N) + len(splits["val"].labels_N) == 20


class TestCopies:
    def test_what_is_given_twice_stays_in_the_test_images_alone(self, folders):
        images, labels = make("train")
        tests = np.concatenate([images[:6], make("test")[0]])
        np.savez(folders / "a.npz", images=images, labels=labels)
        np.savez(folders / "b.npz", images=tests, labels=np.concatenate([labels[:6], make("test")[1]]))
        with pytest.warns(UserWarning, match=r"a\.npz: \d train images are left out, .* those of another split"):
            splits = unscaled(npz(test="b.npz"))
        assert len(splits["test"][1]) == 24
        assert len(splits["train"][1]) + len(splits["val"][1]) == 39

    def test_training_images_under_another_name_are_no_test_images(self, folders):
        write_folder(folders / "pets", "train")
        write_folder(folders / "again", "train")
        with pytest.raises(ConfigError, match=r"all its \d+ val images are among those of another split"):
            load_images(folder(test="again"))

    @pytest.mark.parametrize("test", ["pets", "./pets", "link"])
    def test_one_folder_is_not_both(self, folders, test):
        write_folder(folders / "pets", "train")
        (folders / "link").symlink_to(folders / "pets")
        with pytest.raises(ConfigError, match=r"images\.train and images\.test are both .*: leave test out"):
            load_images(folder(test=test))

    def test_one_file_is_not_both(self, folders):
        config = bare_npz(folders)
        with pytest.raises(ConfigError, match=r"images\.train and images\.test are both"):
            load_images(config.model_copy(update={"test": "a.npz"}))

    def test_a_part_inside_another_is_refused(self, folders):
        write_folder(folders / "pets", "train", nested=True)
        write_folder(folders / "pets" / "cat" / "held-out", "test")
        with pytest.raises(ConfigError, match="are in one another"):
            load_images(folder(test="pets/cat/held-out"))


class TestClasses:
    def test_a_class_that_training_has_not_is_named(self, folders):
        write_folder(folders / "pets" / "train", "train")
        write_folder(folders / "pets" / "test", "test", ("ant", "bee", "dog"))
        with pytest.raises(ConfigError, match=r"test images in .* have classes that the training images have not: dog"):
            load_images(folder())

    @pytest.mark.parametrize("part", ["test", "val"])
    def test_a_class_that_a_part_lacks_is_named(self, folders, part):
        for name in ("train", part):
            write_folder(folders / "pets" / name, name)
        for file in (folders / "pets" / part / "ant").iterdir():
            file.unlink()
        (folders / "pets" / part / "ant").rmdir()
        with pytest.raises(ConfigError, match=rf"{part} images in .* have no image of class ant"):
            load_images(folder())

    def test_an_empty_class_is_named(self, folders):
        two_parts(folders)
        for file in (folders / "pets" / "test" / "bee").iterdir():
            file.unlink()
        with pytest.raises(ConfigError, match=r"test.bee has no images"):
            load_images(folder())

    @pytest.mark.parametrize("classes", [2, 4])
    def test_another_number_of_classes_is_said(self, folders, classes):
        flat_folder(folders)
        config = FilesConfig(source="folder", train="pets", classes=classes)
        with pytest.raises(ConfigError, match=rf"has 3 classes, ant, bee, cat; images\.classes is {classes}"):
            load_images(config)

    def test_a_class_may_be_called_like_a_part(self, folders):
        write_folder(folders / "pets", "train", ("bus", "car", "train"))
        assert sorted(set(unscaled(folder())["test"][1].tolist())) == [0, 1, 2]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda pets: (pets / "dog").mkdir(), "has dog beside the parts"),
            (lambda pets: write_folder(pets / "testing", "test"), "has two folders for test"),
            (lambda pets: (pets / "train").rename(pets / "old"), "has old beside the parts? test"),
            (
                lambda pets: (pets / "train" / "ant" / "train000.png").rename(pets / "train" / "x.png"),
                r"x\.png is in no folder of a class",
            ),
        ],
    )
    def test_other_forms_of_folders_are_refused(self, folders, change, message):
        two_parts(folders)
        change(folders / "pets")
        with pytest.raises(ConfigError, match=message):
            load_images(folder())

    def test_test_images_alone_are_no_dataset(self, folders):
        write_folder(folders / "pets" / "test", "test")
        with pytest.raises(ConfigError, match="has no training images, only test"):
            load_images(folder())

    def test_images_without_classes_are_none(self, folders):
        for part in ("train", "test"):
            (folders / "pets" / part).mkdir(parents=True)
            Image.fromarray(make(part)[0][0]).save(folders / "pets" / part / "a.png")
        with pytest.raises(ConfigError, match="has test and train, but no folder a class in them"):
            load_images(FilesConfig(source="folder", train="pets", classes=2))

    def test_files_that_are_no_images_are_told(self, folders):
        flat_folder(folders)
        (folders / "pets" / "bee" / "boxes.txt").write_text("1 2 3")
        with pytest.warns(UserWarning, match=r"1 files are no images and are left out, such as .*boxes\.txt"):
            load_images(folder())


LABELS = make("train")[1]


class TestLabels:
    @pytest.mark.parametrize(
        "labels",
        [
            LABELS.astype(np.uint8),
            LABELS.astype(np.int64)[:, None],
            LABELS.astype(np.uint64),
            LABELS.astype(np.float32),
            LABELS.astype(">i2"),
            LABELS.astype(str),
            np.eye(3)[LABELS],
            np.eye(3, dtype=bool)[LABELS],
            np.array(CLASSES)[LABELS],
            np.array([name.encode() for name in CLASSES])[LABELS],
        ],
        ids=lambda labels: f"{labels.dtype}{labels.ndim}",
    )
    def test_every_usual_form_is_read(self, folders, labels):
        np.savez(folders / "a.npz", images=make("train")[0], labels=labels)
        for images, numbers in unscaled(npz()).values():
            assert images[:, 0, 0].tolist() == numbers.tolist()

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (LABELS + 1, "labels 1 to 3; classes is 3; labels start at 0: subtract 1"),
            (LABELS - 1, "labels -1 to 1; classes is 3"),
            (np.minimum(LABELS, 1), "no image of class 2"),
            (LABELS + 0.5, "labels has 0.5, which is no number of a class"),
            (np.where(LABELS == 2, np.nan, 0.0), "labels has nan"),
            (np.ones((45, 3)), "is not one 1 and else 0 in each row"),
            (LABELS.reshape(5, 3, 3), r"labels has shape \(5, 3, 3\)"),
            (LABELS.astype(complex), "which are no labels"),
            (np.array(["ant", "bee"])[LABELS % 2], "has 2 classes, ant, bee"),
        ],
    )
    def test_others_are_refused(self, folders, labels, message):
        np.savez(folders / "a.npz", images=make("train")[0], labels=labels)
        with pytest.raises(ConfigError, match=message):
            load_images(npz())

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"x_test": ("test", 0), "y_test": ("test", 1)}, "has no training images, only test"),
            ({"images": ("train", 0), "labels": ("train", 1), "x_test": ("test", 0)}, "has x_test, but no array"),
            (
                {"x": ("train", 0), "y": ("train", 1), "x_train": ("train", 0), "y_train": ("train", 1)},
                "images for train twice, as x and as x_train",
            ),
            ({"images": ("train", 0), "Images": ("test", 0), "y": ("train", 1)}, "two arrays of one meaning"),
        ],
    )
    def test_parts_that_do_not_fit_are_refused(self, folders, keys, message):
        write_npz(folders / "a.npz", **keys)
        with pytest.raises(ConfigError, match=message):
            load_images(npz())

    def test_names_are_numbered_by_the_training_images(self, folders):
        images, labels = make("train")
        np.savez(folders / "a.npz", images=images, labels=np.array(CLASSES)[labels])
        images, labels = make("test")
        np.savez(folders / "b.npz", images=images[labels > 0], labels=np.array(CLASSES)[labels[labels > 0]])
        with pytest.raises(ConfigError, match=r"test images in .* have no image of class ant"):
            load_images(npz(test="b.npz"))

    def test_what_unpacks_to_more_than_the_memory_is_refused_first(self, folders):
        with zipfile.ZipFile(folders / "a.npz", "w") as archive:
            archive.writestr("images.npy", b"x")
            archive.getinfo("images.npy").file_size = 2**50
        with pytest.raises(ConfigError, match="take 1048576 GiB, and the machine has"):
            load_images(npz())

    def test_one_array_is_no_archive(self, folders):
        with (folders / "a.npz").open("wb") as file:
            np.save(file, make("train")[0])
        with pytest.raises(ConfigError, match="cannot be read as npz"):
            load_images(npz())
