"""Effects of size and diversity: found where they were put in, with intervals that are honest, and said in words."""

import math
from itertools import combinations, product

import numpy as np
import polars as pl
import pytest

from mzsane.report.effects import describe_effects, estimate_effects

DATASETS = ("a", "b", "c")
TARGETS = (*DATASETS, "new")


@pytest.fixture
def ablate(row):
    """The maker of an ablation over every choice of three datasets at three sizes, with effects of known size."""

    def ablate(doubling=0.0, dataset=0.0, noise=0.0, seed=0, sizes=(25, 50, 100), seeds=(0, 1, 2), epochs=0):
        random = np.random.default_rng(seed)
        choices = [chosen for count in (1, 2, 3) for chosen in combinations(DATASETS, count)]
        rows = []
        for models, chosen in product(sizes, choices):
            luck = random.normal(0, noise)  # of the composition, the same for all seeds and targets
            for number, target in product(seeds, TARGETS):
                inside = target in chosen
                level = 0.3 + 0.1 * TARGETS.index(target) + 0.02 * number + (0.2 if inside else 0)
                effect = (math.log2(models) * doubling + len(chosen) * dataset) * (-1 if inside else 1)
                measured = {"seed": number, "inside": inside, "models": models, "datasets": len(chosen)}
                accuracy = level + effect + luck + random.normal(0, noise / 2)
                name = f"{''.join(chosen)}-{models}"
                rows.append(row(name, target, "samples", accuracy, **measured, epochs=epochs))
        return pl.DataFrame(rows)

    return ablate


def pick(effects, factor, inside, epochs=0):
    (effect,) = [e for e in effects if (e.factor, e.in_distribution, e.epochs) == (factor, inside, epochs)]
    return effect


def test_effects_are_found_apart_and_by_distribution(ablate):
    effects = estimate_effects(ablate(doubling=0.03, dataset=-0.05))
    assert {(e.factor, e.in_distribution) for e in effects} == set(product(("models", "datasets"), (True, False)))
    for inside, sign in ((True, -1), (False, 1)):
        for factor, put_in in (("models", 0.03), ("datasets", -0.05)):
            effect = pick(effects, factor, inside)
            assert effect.estimate == pytest.approx(sign * put_in)
            assert effect.low == pytest.approx(effect.high)
            assert effect.over == "compositions"


def test_intervals_hold_what_was_put_in_as_often_as_they_say(ablate):
    """The noise is shared by the measurements of a composition; who takes these as independent holds it too rarely."""
    held, found = [], []
    for seed in range(40):
        for effect in estimate_effects(ablate(doubling=0.02, noise=0.05, seed=seed)):
            put_in = (0.02 if effect.factor == "models" else 0) * (-1 if effect.in_distribution else 1)
            held.append(effect.low <= put_in <= effect.high)
            found.append(effect.verdict != "no effect can be told from chance")
    assert 0.91 <= np.mean(held) <= 0.99
    assert np.mean(found) < 0.9  # the noise is large enough for this test to mean something


def test_words_follow_the_interval(ablate):
    clear = describe_effects(ablate(doubling=0.05, noise=0.005))
    assert clear.startswith(
        "Size and diversity of the composition: Doubling the models changes the accuracy of samples "
    )
    assert "zero-shot by -5." in clear or "zero-shot by -4.9" in clear
    assert clear.count("it harms") == 1
    assert clear.count("it helps") == 1
    assert clear.count("no effect can be told from chance") == 2  # of the datasets, in and out of distribution
    assert "All compositions have 1 architecture." in clear
    chance = describe_effects(ablate(noise=0.05))
    assert "it helps" not in chance
    assert "it harms" not in chance


def test_fine_tuned_samples_are_estimated_beside_zero_shot_ones(ablate):
    parts = [ablate(dataset=0.01), ablate(dataset=0.02, epochs=1), ablate(dataset=0.04, epochs=5)]
    rows = pl.concat(parts, how="vertical_relaxed")
    effects = estimate_effects(rows)
    assert {effect.epochs for effect in effects} == {0, 5}
    assert pick(effects, "datasets", False, 5).estimate == pytest.approx(0.04)
    assert "; after 5 epochs of fine-tuning by -4.0 points in distribution" in describe_effects(rows)


def test_size_and_diversity_that_vary_together_are_not_told_apart(ablate):
    rows = ablate(doubling=0.05).filter(pl.col("models") == 25 * 2 ** (pl.col("datasets") - 1))
    assert all(effect.estimate is None for effect in estimate_effects(rows))
    words = describe_effects(rows)
    assert "What doubling the models does cannot be estimated: the number of models varies only together with" in words
    assert "changes the accuracy" not in words


def test_one_size_leaves_diversity_alone(ablate):
    rows = ablate(dataset=0.03, sizes=(50,), seeds=(0,))
    assert {effect.factor for effect in estimate_effects(rows)} == {"datasets"}
    assert pick(estimate_effects(rows), "datasets", False).estimate == pytest.approx(0.03)
    assert "All compositions have 50 models and 1 architecture." in describe_effects(rows)


def test_two_compositions_have_an_interval_over_seeds_that_says_so(row):
    accuracies = {("small", 20): (0.50, 0.52, 0.54), ("large", 40): (0.60, 0.66, 0.66)}
    rows = pl.DataFrame(
        [
            row(name, "t", "samples", accuracy, seed=seed, models=models)
            for (name, models), of_seeds in accuracies.items()
            for seed, accuracy in enumerate(of_seeds)
        ]
    )
    (inside, outside) = estimate_effects(rows)
    # The paired t interval of 0.10, 0.14, 0.12.
    assert inside.estimate == pytest.approx(0.12)
    assert inside.high - 0.12 == pytest.approx(4.302653 * 0.02 / math.sqrt(3))
    assert inside.over == "seeds"
    assert outside.reason == "no target is scored there"
    words = describe_effects(rows)
    assert "by +12.0 points in distribution (+7.0 to +17.0 over seeds: it helps)." in words
    assert "says nothing of other compositions" in words
    alone = estimate_effects(rows.filter(pl.col("seed") == 0))[0]
    assert (alone.estimate, alone.low) == (pytest.approx(0.10), None)
    said = describe_effects(rows.filter(pl.col("seed") == 0))
    assert "by +10.0 points in distribution (no interval)." in said
    assert said.endswith("No interval: there are too few compositions and seeds to tell an effect from chance.")


def test_what_cannot_be_estimated_is_said(row):
    alike = pl.DataFrame([row(name, "t", "samples", 0.5) for name in ("one", "two")])
    assert describe_effects(alike) == (
        "Size and diversity of the composition: all compositions have 40 models, 1 dataset and 1 architecture, so that "
        "no effect can be estimated."
    )
    failed = pl.DataFrame([row("one", "t", "samples", math.nan), row("two", "t", "samples", math.nan, models=80)])
    assert "no samples were scored" in describe_effects(failed)


def test_other_methods_and_selection_do_not_count(ablate, row):
    rows = ablate(dataset=0.03)
    more = [
        row("a-25", "a", "selected", 0.99, sees="labels", models=25),
        row("abc-100", "new", "samples", 0.99, sees="labels", inside=False, models=100, datasets=3),
        row("a-25", "new", "zoo", 0.01, inside=False, models=25),
        row("a-25", "a", "samples", 0.99, models=25, ensemble=5),
    ]
    assert estimate_effects(pl.concat([rows, pl.DataFrame(more, schema=rows.schema)])) == estimate_effects(rows)


def change_novelty(rows, change):
    """Return the rows with samples whose novelty depends on their composition, and whose accuracy depends on that."""
    novelty = 0.25 + 0.04 * pl.struct("models", "datasets").map_elements(change, pl.Float64)
    return rows.with_columns(novelty_mean=novelty).with_columns(
        accuracy_mean=pl.col("accuracy_mean") - 1.5 * (pl.col("novelty_mean") - 0.25)
    )


def test_zero_shot_effects_are_at_equal_novelty(ablate):
    """Samples of large compositions went a step further: that is not what their size does."""
    rows = change_novelty(
        ablate(doubling=-0.01, noise=0.002), lambda c: float(c["models"] == 100 or c["datasets"] == 2)
    )
    effect = pick(estimate_effects(rows), "models", True)
    assert effect.at_equal_novelty
    assert effect.estimate == pytest.approx(0.01, abs=0.003)
    assert "zero-shot, at equal novelty, by +" in describe_effects(rows)
    unknown = rows.with_columns(novelty_mean=pl.when(pl.col("seed") == 0).then(None).otherwise(pl.col("novelty_mean")))
    confounded = pick(estimate_effects(unknown), "models", True)
    assert not confounded.at_equal_novelty
    assert confounded.estimate < -0.005
    assert "novelty" not in describe_effects(unknown)


def test_few_measurements_do_not_tell_what_novelty_does(ablate):
    rows = change_novelty(ablate(doubling=-0.01, sizes=(25, 50), seeds=(0,)), lambda c: float(c["models"] == 50))
    assert not pick(estimate_effects(rows), "models", True).at_equal_novelty
