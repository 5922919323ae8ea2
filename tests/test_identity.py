"""Whether datasets and architectures are the same: yes, no, or not known."""

from itertools import product

import pytest

from mzsane.config import AblationConfig, FilesConfig, NetworkConfig, ReadConfig, validate_config
from mzsane.config.identity import (
    count_different,
    describe_dataset,
    describe_images,
    same_architecture,
    same_dataset,
    same_network,
)
from mzsane.errors import ConfigError
from mzsane.plan import ArmPlan, list_arms

MNIST = {"source": "mnist"}
USPS = {"source": "usps"}
NPZ = {"source": "npz", "train": "usps/usps.npz", "classes": 10}
GLYPHS = {"source": "glyphs", "characters": "ABCDEFGHIJ"}
HEX = {"content": ["ab" * 16]}


def describe(images=None, **zoo):
    zoo = ReadConfig.model_validate({"name": "z", "source": "/zoo", "images": images, **zoo})
    return describe_dataset(zoo)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (MNIST, {**MNIST, "train_images": 5000}, True),
        (MNIST, {**MNIST, "split_seed": 4}, True),
        (MNIST, {**MNIST, "mean": [0.13], "deviation": [0.3]}, True),
        (MNIST, {**MNIST, "test_images": 50, "validation_fraction": 0.3, "part": "test"}, True),
        ({"source": "cifar10"}, {"source": "cifar10", "size": 32}, True),
        ({"source": "digits"}, {"source": "digits", "split_seed": 1}, True),
        (GLYPHS, {**GLYPHS, "images": 600, "seed": 5}, True),
        (GLYPHS, {**GLYPHS, "noise": 0.5}, False),
        (GLYPHS, {**GLYPHS, "characters": "KLMNOPQRST"}, False),
        (MNIST, USPS, False),
        (MNIST, {"source": "emnist"}, False),
        (USPS, NPZ, None),
        (USPS, {**NPZ, "label": "USPS"}, True),
        (MNIST, {**NPZ, "label": "usps"}, False),
        (MNIST, {**NPZ, "classes": 47}, False),
        (NPZ, {**NPZ, "test": "usps/other.npz", "size": 28, "split_seed": 2, "white": 255}, True),
        (NPZ, {**NPZ, "train": "copy.npz"}, None),
        ({**NPZ, **HEX}, {**NPZ, **HEX, "train": "copy.npz"}, True),
        ({**NPZ, **HEX}, {**NPZ, "content": ["cd" * 16]}, None),
        ({**NPZ, "label": "Fashion_MNIST"}, {"source": "fashion-mnist"}, True),
        ({**NPZ, "label": "a"}, {**NPZ, "label": "b"}, False),
        (None, MNIST, None),
        (None, None, None),
    ],
)
def test_datasets(one, other, same):
    assert same_dataset(describe(one), describe(other)) is same
    assert same_dataset(describe(other), describe(one)) is same


def test_what_a_zoo_calls_its_dataset_is_its_name_where_nothing_else_says_it():
    mnist = describe(MNIST)
    assert same_dataset(describe(dataset="mnist"), mnist) is True
    assert same_dataset(describe(dataset="MNIST"), mnist) is True
    assert same_dataset(describe(dataset="usps"), mnist) is False
    assert same_dataset(describe(dataset="usps"), describe(NPZ)) is None
    assert same_dataset(describe(NPZ, dataset="usps"), describe(USPS)) is True
    assert same_dataset(describe(MNIST, dataset="my run"), mnist) is True
    assert same_dataset(describe(dataset="glyphs"), describe(GLYPHS)) is None


@pytest.mark.parametrize(
    ("one", "other", "architecture", "network"),
    [
        ({}, {"dropout": 0.3}, True, True),
        ({}, {"activation": "relu"}, True, False),
        ({}, {"architecture": "cnn-l"}, False, False),
        ({"architecture": "mlp"}, {"architecture": "mlp", "width": 32}, True, True),
        ({"architecture": "mlp"}, {"architecture": "mlp", "width": 8}, False, False),
        ({"architecture": "resnet18", "width": 64}, {"architecture": "resnet18"}, True, True),
        ({"architecture": "nets:one"}, {"architecture": "nets:one"}, True, True),
        ({"architecture": "nets:one"}, {"architecture": "nets:two"}, None, None),
        ({"architecture": "nets:one"}, {}, None, None),
        (None, {}, None, None),
    ],
)
def test_architectures(one, other, architecture, network):
    one, other = (None if data is None else NetworkConfig.model_validate(data) for data in (one, other))
    for pair in ((one, other), (other, one)):
        assert same_architecture(*pair) is architecture
        assert same_network(*pair) is network


def test_how_many_there_are_is_known_or_not():
    images = [FilesConfig.model_validate(NPZ | {"label": label}) for label in ("a", "b", "a")]
    named = [describe_images(some) for some in images]
    unnamed = describe_images(FilesConfig.model_validate(NPZ | {"train": "x.npz"}))
    other = describe_images(FilesConfig.model_validate(NPZ | {"train": "y.npz", "classes": 5}))
    assert count_different(named, same_dataset) == 2
    assert count_different([unnamed], same_dataset) == 1
    assert count_different([unnamed, unnamed], same_dataset) == 1
    assert count_different([*named, unnamed], same_dataset) is None
    assert count_different([*named, other], same_dataset) == 3


SMALL = {"architecture": "mlp", "width": 4}


def make_ablation(targets, read=(), **settings):
    zoos = [
        {"name": "part", "images": {"source": "digits"}, "network": SMALL, "models": 10, "epochs": 1, "keep_epochs": 1},
        {"name": "drop", "images": {"source": "digits", "split_seed": 3}, "network": {**SMALL, "dropout": 0.2}},
        {"name": "own", "images": {"source": "npz", "train": "a.npz", "classes": 10}, "network": SMALL},
    ]
    common = {"models": 10, "epochs": 1, "keep_epochs": 1}
    names = [zoo["name"] for zoo in (*zoos, *read)]
    slices = {name: {"zoo": name, "models": 2} for name in names}
    data = {
        "name": "identity",
        "zoos": [common | zoo for zoo in zoos],
        "read_zoos": list(read),
        "tokens": {"token_dim": 33, "train_fraction": 0.6, "validation_fraction": 0.2},
        "compositions": [
            *({"name": name, "slices": [part]} for name, part in slices.items()),
            {"name": "same", "slices": [slices["part"], slices["drop"]]},
            {"name": "with-own", "slices": [slices["part"], slices["own"]]},
        ],
        "targets": [{"name": name, **target} for name, target in targets.items()],
        "sampling": {"anchors": 2},
        **settings,
    }
    return validate_config(AblationConfig, data, "the test")


def judge(config):
    found = {
        (composition.name, target.name): config.in_distribution(composition, target)
        for composition, target in product(config.compositions, config.targets)
    }
    counts = {composition.name: config.count_parts(composition) for composition in config.compositions}
    return found, counts


def test_a_config_of_an_ablation_is_judged_by_identity():
    read = [
        {"name": "called", "source": "/zoo", "dataset": "digits", "network": SMALL},
        {"name": "unknown", "source": "/zoo"},
    ]
    targets = {
        "digits": {"images": {"source": "digits", "split_seed": 9}, "network": SMALL},
        "letters": {"images": GLYPHS, "network": SMALL},
        "own": {"zoo": "own"},
    }
    config = make_ablation(targets, read)
    found, counts = judge(config)
    assert [found[name, "digits"] for name in ("part", "drop", "called", "same")] == [True] * 4
    assert [found[name, "letters"] for name in ("part", "drop", "called", "same")] == [False] * 4
    assert [found[name, "digits"] for name in ("own", "unknown")] == [None, None]
    assert (found["with-own", "digits"], found["with-own", "letters"]) == (True, None)
    assert (found["own", "own"], found["part", "own"]) == (True, None)
    assert counts["same"] == {"models": 4, "datasets": 1, "architectures": 1}
    assert counts["with-own"] == {"models": 4, "datasets": None, "architectures": 1}
    assert counts["unknown"] == {"models": 2, "datasets": 1, "architectures": 1}
    digits, letters, own = config.targets
    assert config.transfer_zoos(digits) == []
    assert config.transfer_zoos(letters) == ["part", "drop"]  # of what is called digits nobody knows the classes
    assert config.transfer_zoos(own) == []


def test_another_split_is_no_transfer():
    config = make_ablation({"drop": {"zoo": "drop"}})
    (target,) = config.targets
    assert config.transfer_zoos(target) == []
    same = next(composition for composition in config.compositions if composition.name == "same")
    assert [part.zoo for part in config.anchor_slices(same, target)] == ["part", "drop"]
    for arm in list_arms(config)[:2]:
        assert not [role for role in ArmPlan(config, arm).baselines(target).work.inputs if "transfer" in role]


def test_what_no_composition_tells_cannot_be_asked():
    """A number that is not known of any composition has no effect to ask for."""
    targets = {"digits": {"images": {"source": "digits"}, "network": SMALL}}
    asked = [{"text": "More datasets?", "factor": "datasets"}]
    unknown = [{"name": f"u{n}", "source": f"/zoo{n}"} for n in range(2)]
    slices = [{"zoo": f"u{n}", "models": 2} for n in range(2)]
    with pytest.raises(ConfigError, match=r"the number of datasets .* not known of any composition: say what"):
        make_ablation(targets, unknown, questions=asked, compositions=[{"name": "c", "slices": slices}])
