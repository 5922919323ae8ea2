"""The split of a model depends on its name and a seed alone, and the shares stay near their fractions."""

import random
from collections import Counter

import pytest

from mzsane.splits import SPLITS, assign_split, count_splits, find_shares

USUAL = find_shares(0.7, 0.15)
FORMS = ("{:06d}", "run_{}/model", "trainable_{}_seed={}", "lr=0.1/m{}", "größe {}")


def name(form, number):
    return form.format(*[number] * 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_small_populations_have_models_in_every_split(form, seed):
    for models in (5, 6, 8, 10):
        found = Counter(assign_split(name(form, number), USUAL, seed) for number in range(models))
        assert set(found) == set(SPLITS)
        assert found["train"] >= models / 2


@pytest.mark.parametrize(("train", "validation"), [(0.7, 0.15), (0.8, 0.1), (0.5, 0.25), (0.6, 0.4), (1.0, 0.0)])
def test_shares_are_near_their_fractions_for_every_number_of_models(train, validation):
    shares = find_shares(train, validation)
    for seed in range(5):
        found = [assign_split(str(number), shares, seed) for number in range(300)]
        for models in range(1, 301):
            counts = Counter(found[:models])
            for split, share in zip(SPLITS, shares, strict=True):
                assert abs(counts[split] - share * models) <= (2 if models <= 20 else 5), (seed, models, split)
            assert all(counts[split] == 0 for split, share in zip(SPLITS, shares, strict=True) if not share)


def test_names_without_a_number_are_drawn_in_the_shares():
    letters = "abcdefghijklmnop"
    names = [f"{a}{b}{c}" for a in letters for b in letters for c in letters]
    found = Counter(assign_split(each, USUAL, 0) for each in names)
    for split, share in zip(SPLITS, USUAL, strict=True):
        assert found[split] / len(names) == pytest.approx(share, abs=0.02)


def test_a_name_is_all_that_counts():
    """Whatever was asked before, in whatever order: the answers are those of a fresh process."""
    names = [name(form, number) for form in FORMS for number in range(100)] + ["best", "", "2024-01-01", "9" * 5000]
    expected = {each: assign_split(each, USUAL, 1) for each in names}
    generator = random.Random(0)
    for _ in range(3):
        generator.shuffle(names)
        assert {each: assign_split(each, USUAL, 1) for each in names} == expected
    # What is written here may never change: zoos of today are compared with those of years ago.
    assert [assign_split(f"{number:06d}", USUAL, 0) for number in range(8)] == [
        *("test", "train", "val", "train", "train", "train", "val", "train")
    ]


def test_the_shipped_presets_have_the_models_that_they_ask_for():
    assert [count_splits(60, USUAL, seed) for seed in range(9)] == [{"train": 42, "val": 9, "test": 9}] * 9
    assert min(count_splits(8, USUAL, seed)["train"] for seed in range(99)) >= 4


def test_padding_changes_nothing():
    for number in range(50):
        assert assign_split(f"{number:06d}", USUAL, 0) == assign_split(str(number), USUAL, 0)


@pytest.mark.parametrize("period", [2, 3, 4, 5, 8, 10, 13, 16, 20, 40])
def test_a_grid_of_factors_is_not_in_step_with_the_splits(period):
    """The models of one combination, which come once a period, have the shares that all have."""
    models = 200 * period
    found = [assign_split(str(number), USUAL, 0) for number in range(models)]
    for combination in range(period):
        share = found[combination::period].count("train") / 200
        assert share == pytest.approx(0.7, abs=0.15), combination


def test_seeds_make_other_splits():
    assert len({tuple(assign_split(str(number), USUAL, seed) for number in range(20)) for seed in range(20)}) == 20
