"""Duels are paired as they ought to be, a difference that may be chance is a tie, and shared opponents count once."""

import math

import polars as pl
import pytest
from scipy import stats

from mzsane.report.statistics.duel_summary import summarise_duels
from mzsane.report.statistics.duels import find_strongest, match_duels
from tests.report.made_models import make_models


def fight(*groups):
    return match_duels(pl.DataFrame([row for group in groups for row in group], infer_schema_length=None)).to_dicts()


def test_three_seeds_are_paired_by_seed():
    own, others = [(0.80, 0.82), (0.70, 0.72), (0.91, 0.89)], [(0.78, 0.76), (0.69, 0.67), (0.80, 0.84)]
    groups = [make_models("samples", values, seed=seed) for seed, values in enumerate(own)]
    groups += [make_models("layer_noise", values, seed=seed) for seed, values in enumerate(others)]
    (duel,) = fight(*groups)
    paired = stats.ttest_rel([sum(v) / 2 for v in own], [sum(v) / 2 for v in others]).confidence_interval()
    assert (duel["low"], duel["high"]) == (pytest.approx(paired.low), pytest.approx(paired.high))
    assert (duel["units"], duel["unit_kind"]) == (3, "seeds")
    assert duel["verdict"] == "tie"


def test_one_seed_is_paired_by_anchor():
    anchors = ["x", "x", "y", "y", "z", "z"]
    own, others = (0.9, 0.8, 0.6, 0.5, 0.7, 0.8), (0.7, 0.7, 0.4, 0.4, 0.6, 0.7)
    (duel,) = fight(make_models("samples", own, clusters=anchors), make_models("layer_noise", others, clusters=anchors))
    means = [[sum(values[i : i + 2]) / 2 for i in (0, 2, 4)] for values in (own, others)]
    paired = stats.ttest_rel(*means).confidence_interval()
    assert (duel["low"], duel["high"]) == (pytest.approx(paired.low), pytest.approx(paired.high))
    assert (duel["units"], duel["unit_kind"], duel["verdict"]) == (3, "anchors", "win")


def test_other_anchors_are_welchs_with_the_anchors_as_units():
    anchors = ["x", "x", "y", "y", "z", "z"]
    own, others = (0.9, 0.8, 0.6, 0.5, 0.7, 0.8), (0.30, 0.35, 0.31, 0.38)
    (duel,) = fight(make_models("samples", own, clusters=anchors), make_models("random_init", others))
    means = [sum(own[i : i + 2]) / 2 for i in (0, 2, 4)]
    welch = stats.ttest_ind(means, others, equal_var=False).confidence_interval()
    assert (duel["low"], duel["high"]) == (pytest.approx(welch.low), pytest.approx(welch.high))
    assert duel["units"] == 3


def test_below_three_units_nothing_is_tested():
    samples = make_models("samples", (0.9, 0.9, 0.8, 0.8), clusters=["x", "x", "y", "y"])
    (duel,) = fight(samples, make_models("layer_noise", (0.1, 0.1, 0.1, 0.2), clusters=["x", "x", "y", "y"]))
    assert (duel["verdict"], duel["low"], duel["high"], duel["units"]) == ("untested", None, None, 2)
    assert duel["difference"] == pytest.approx(0.725)


def test_zero_shot_no_opponent_has_seen_or_paid_more():
    def of(sees="none", generator_sees="none", steps=0):
        groups = [make_models("samples", (0.5, 0.6, 0.7), sees=sees, generator_sees=generator_sees, steps=steps)]
        groups += [
            make_models("distilled_init", (0.5, 0.6, 0.7), sees=seen, steps=cost)
            for seen in ("none", "statistics", "images", "labels")
            for cost in (30, 300)
        ]
        groups.append(make_models("flat_noise", (0.5, 0.6, 0.7), sees="images"))
        return {(duel["opponent_sees"], duel["opponent_steps"]) for duel in fight(*groups)}

    assert of() == set()
    assert of(steps=30) == {("none", 30)}
    assert of("statistics", steps=300) == {(sees, steps) for sees in ("none", "statistics") for steps in (30, 300)}
    assert of("images") == of(generator_sees="images") == {("images", 0)}  # a backbone that looked has looked too


def test_fine_tuned_ones_are_compared_at_equal_epochs():
    groups = [make_models("samples", (0.5, 0.6, 0.7), sees="labels", epochs=epochs) for epochs in (0, 1, 5)]
    groups += [make_models("best_model", (0.5, 0.6, 0.7), sees="labels", steps=99, epochs=epochs) for epochs in (0, 1)]
    assert [(duel["finetune_epochs"], duel["opponent_steps"]) for duel in fight(*groups)] == [(1, 99)]


def test_the_zoo_and_reconstructions_are_no_opponents_and_a_failed_model_does_not_count():
    groups = [make_models("samples", (0.5, math.nan, 0.7, 0.6)), make_models("anchors", (0.6, 0.6, 0.7))]
    groups += [make_models(method, (0.5, 0.6, 0.7)) for method in ("zoo", "reconstruction")]
    (duel,) = fight(*groups)
    assert (duel["opponent"], duel["difference"]) == ("anchors", pytest.approx(0.6 - 1.9 / 3))


def test_arms_that_share_an_opponent_do_not_multiply_it():
    """Twelve compositions against the same four networks: luck of these is no more certain for being used again."""
    rows = []
    for seed, luck in enumerate((0.05, -0.06, 0.04, -0.02)):
        for number in range(12):
            name, own = f"c{number}", 0.5 + 0.002 * (number % 3)
            rows += make_models("samples", [own, own], name, seed=seed, epochs=1, sees="labels")
            rows += make_models("random_init", [0.48 + luck] * 2, name, seed=seed, epochs=1, sees="labels")
            rows += make_models(
                "layer_noise", [0.48 + luck + 0.0001 * number], name, seed=seed, epochs=1, sees="labels"
            )
    models = pl.DataFrame(rows, infer_schema_length=None)
    pooled = {row["opponent"]: row for row in summarise_duels(models, match_duels(models)).to_dicts()}
    shared, own = pooled["random_init"], pooled["layer_noise"]
    assert (shared["units"], shared["unit_kind"], shared["units_better"]) == (4, "targets x seeds", 2)
    assert shared["ties"] == 12
    assert shared["verdict"] == "tie"
    assert shared["high"] - shared["low"] > 0.15  # Student's of four means is 0.16
    assert (own["units"], own["unit_kind"], own["units_better"], own["verdict"]) == (12, "compositions", 12, "win")


def test_the_pool_counts_cells_and_keeps_places_apart():
    rows = []
    for number in range(4):
        for target, gap in (("in", 0.1), ("out", -0.1)):
            named = {"composition": f"c{number}", "target": target, "inside": target == "in"}
            for seed in range(3):
                rows += make_models("samples", [0.5 + gap + 0.001 * seed * number], seed=seed, **named)
                rows += make_models("layer_noise", [0.5], seed=seed, **named)
    models = pl.DataFrame(rows, infer_schema_length=None)
    summary = summarise_duels(models, match_duels(models)).to_dicts()
    found = {row["in_distribution"]: (row["wins"], row["ties"], row["losses"], row["verdict"]) for row in summary}
    assert found == {True: (4, 0, 0, "win"), False: (0, 0, 4, "loss")}


def test_the_strongest_opponent_is_as_new_as_the_samples():
    """Copies are as accurate as their originals: to lose against them says nothing of generation."""
    groups = [
        make_models("samples", (0.5, 0.6, 0.7), novelty=0.5),
        make_models("anchors", (0.8, 0.9, 0.9), novelty=0.0),
        make_models("layer_noise", (0.5, 0.6, 0.6), novelty=0.49),
        make_models("statistics", (0.1, 0.1, 0.2), novelty=1.5),
    ]
    duels = match_duels(pl.DataFrame([row for group in groups for row in group], infer_schema_length=None))
    assert find_strongest(duels)["opponent"].to_list() == ["layer_noise"]
    unknown = duels.with_columns(novelty=pl.lit(None, pl.Float64), opponent_novelty=pl.lit(None, pl.Float64))
    assert find_strongest(unknown)["opponent"].to_list() == ["layer_noise"]
