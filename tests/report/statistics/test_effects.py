"""Effects of size and diversity: found where they were put in, with intervals that are honest, and said in words."""

import math
from itertools import combinations, product

import numpy as np
import polars as pl
import pytest

from mzsane.report.statistics.effects import EFFECT_SCHEMA, estimate_effects, to_frame

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


def pick(effects, factor, inside, epochs=0, kind="total"):
    named = (factor, inside, epochs, kind)
    (effect,) = [e for e in effects if (e.factor, e.in_distribution, e.epochs, e.kind) == named]
    return effect


def test_effects_are_found_apart_and_by_distribution(ablate):
    effects = estimate_effects(ablate(doubling=0.03, dataset=-0.05))
    assert {(e.factor, e.in_distribution) for e in effects} == set(product(("models", "datasets"), (True, False)))
    for inside, sign in ((True, -1), (False, 1)):
        for factor, put_in in (("models", 0.03), ("datasets", -0.05)):
            effect = pick(effects, factor, inside)
            assert effect.estimate == pytest.approx(sign * put_in)
            assert effect.low == pytest.approx(effect.high)
            assert (effect.over, effect.units) == ("compositions", 21)


def test_intervals_hold_what_was_put_in_as_often_as_they_say(ablate):
    """The noise is shared by the measurements of a composition; who takes these as independent holds it too rarely."""
    held, found = [], []
    for seed in range(40):
        found_here = estimate_effects(ablate(doubling=0.02, noise=0.05, seed=seed))
        for effect in (effect for effect in found_here if effect.kind == "total"):
            put_in = (0.02 if effect.factor == "models" else 0) * (-1 if effect.in_distribution else 1)
            held.append(effect.low <= put_in <= effect.high)
            found.append(effect.verdict != "no effect can be told from chance")
    assert 0.91 <= np.mean(held) <= 0.99
    assert np.mean(found) < 0.9  # the noise is large enough for this test to mean something


def test_fine_tuned_samples_are_estimated_beside_zero_shot_ones(ablate):
    parts = [ablate(dataset=0.01), ablate(dataset=0.02, epochs=1), ablate(dataset=0.04, epochs=5)]
    rows = pl.concat(parts, how="vertical_relaxed")
    effects = estimate_effects(rows)
    assert {effect.epochs for effect in effects} == {0, 5}
    assert pick(effects, "datasets", False, 5).estimate == pytest.approx(0.04)
    assert {effect.epochs for effect in effects if effect.kind == "adjusted"} == {0}


def test_size_and_diversity_that_vary_together_are_not_told_apart(ablate):
    rows = ablate(doubling=0.05).filter(pl.col("models") == 25 * 2 ** (pl.col("datasets") - 1))
    effects = estimate_effects(rows)
    assert {(effect.estimate, effect.kind) for effect in effects} == {(None, "total")}
    assert pick(effects, "models", True).reason.startswith("the number of models varies only together with that of")


def test_one_size_leaves_diversity_alone(ablate):
    rows = ablate(dataset=0.03, sizes=(50,), seeds=(0,))
    assert {effect.factor for effect in estimate_effects(rows)} == {"datasets"}
    assert pick(estimate_effects(rows), "datasets", False).estimate == pytest.approx(0.03)


def test_two_compositions_have_an_interval_over_seeds_that_says_so(row):
    accuracies = {("small", 20): (0.50, 0.52, 0.54), ("large", 40): (0.60, 0.66, 0.66)}
    rows = pl.DataFrame(
        [
            row(name, "t", "samples", accuracy, seed=seed, models=models)
            for (name, models), of_seeds in accuracies.items()
            for seed, accuracy in enumerate(of_seeds)
        ]
    )
    inside, adjusted, outside = estimate_effects(rows)
    # The paired t interval of 0.10, 0.14, 0.12.
    assert inside.estimate == pytest.approx(0.12)
    assert inside.high - 0.12 == pytest.approx(4.302653 * 0.02 / math.sqrt(3))
    assert (inside.over, inside.units) == ("seeds", 3)
    assert (adjusted.kind, adjusted.estimate) == ("adjusted", None)
    assert outside.reason == "no target is scored there"


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_units_there_is_no_interval(row, seeds):
    rows = [
        row(f"c{models}", "t", "samples", models / 100 + 0.01 * seed * (models > 30), seed=seed, models=models)
        for models in (20, 40)
        for seed in range(seeds)
    ]
    effect = pick(estimate_effects(pl.DataFrame(rows)), "models", True)
    assert (effect.low, effect.units, effect.verdict) == (None, 0, "no interval")
    assert effect.estimate == pytest.approx(0.2 + 0.005 * (seeds - 1))


def test_what_does_not_vary_or_failed_has_no_effect(row):
    assert estimate_effects(pl.DataFrame([row(name, "t", "samples", 0.5) for name in ("one", "two")])) == []
    failed = pl.DataFrame([row("one", "t", "samples", math.nan), row("two", "t", "samples", math.nan, models=80)])
    assert estimate_effects(failed) == []


def test_arms_whose_backbone_has_failed_can_be_left_out(ablate):
    rows = ablate(doubling=0.03)
    broken = rows.with_columns(
        accuracy_mean=pl.when(pl.col("arm") == "abc-25-s1").then(0.1).otherwise(pl.col("accuracy_mean"))
    )
    kept = pick(estimate_effects(broken, failed=["abc-25-s1"]), "models", False)
    assert kept.estimate == pytest.approx(0.03)
    assert pick(estimate_effects(broken), "models", False).estimate != pytest.approx(0.03, abs=1e-3)


def test_the_frame_has_a_label_for_each_kind(ablate):
    frame = to_frame(estimate_effects(change_novelty(ablate(), lambda c: float(c["datasets"] == 2))))
    assert dict(frame.schema) == EFFECT_SCHEMA
    labels = set(frame.filter(factor="models").select("kind", "label").rows())
    assert labels == {
        ("total", "total effect of doubling the models"),
        ("adjusted", "direct effect of doubling the models, given novelty"),
    }
    assert to_frame([]).is_empty()


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


def test_size_that_acts_only_through_reconstruction_harms_in_all_whatever_it_does_given_novelty(ablate):
    """Novelty is a consequence of size here: a larger composition is reconstructed worse, and nothing else.

    Bandwidths move novelty too, with another price in accuracy. Who takes novelty out finds that size helps.
    """
    random = np.random.default_rng(0)
    rows = ablate(noise=0.002)
    lost = 0.04 * (rows["models"] / 25).log(2)
    bandwidth = dict(
        zip(rows["composition"].unique(maintain_order=True), random.choice([0.0, 0.05, 0.1], 21), strict=True)
    )
    noise = rows["composition"].replace_strict(bandwidth, return_dtype=pl.Float64)
    rows = rows.with_columns(
        novelty_mean=0.15 + lost + noise, accuracy_mean=rows["accuracy_mean"] - 0.2 * lost - 0.8 * noise
    )
    effects = estimate_effects(rows)
    for inside in (True, False):
        places = [effect for effect in effects if (effect.factor, effect.in_distribution) == ("models", inside)]
        assert [effect.kind for effect in places] == ["total", "adjusted"]  # the total effect is always first
        total, adjusted = places
        assert total.low < -0.008 < total.high
        assert total.estimate < 0
        assert adjusted.estimate == pytest.approx(0.024, abs=0.005)
        assert adjusted.verdict == "it helps"
        assert adjusted.label == "direct effect of doubling the models, given novelty"


def test_novelty_that_is_not_known_of_all_leaves_the_total_alone(ablate):
    rows = change_novelty(ablate(doubling=-0.01), lambda c: float(c["models"] == 50))
    unknown = rows.with_columns(novelty_mean=pl.when(pl.col("seed") == 0).then(None).otherwise(pl.col("novelty_mean")))
    assert pick(estimate_effects(unknown), "models", True) == pick(estimate_effects(rows), "models", True)
    adjusted = pick(estimate_effects(unknown), "models", True, kind="adjusted")
    assert (adjusted.estimate, adjusted.reason) == (None, "the novelty of some samples is not known")


def test_few_compositions_do_not_tell_what_novelty_does(ablate):
    rows = change_novelty(ablate(sizes=(25, 50)), lambda c: float(c["models"] == 50)).filter(
        pl.col("composition").is_in(["a-25", "a-50"])
    )
    adjusted = pick(estimate_effects(rows), "models", True, kind="adjusted")
    assert adjusted.estimate is None
    assert adjusted.reason == "the samples' novelty varies only together with the number of models"
