"""One probe: it finds what is there, nothing where there is nothing, and never scores what it was fitted on."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from scipy.stats import kendalltau

from mzsane.backbone.validation.linear_probes import predict_numbers
from mzsane.probing.measure import (
    Checkpoints,
    Property,
    draw_resamples,
    explain_unprobeable,
    list_properties,
    score_property,
)
from mzsane.randomness import make_generator

EPOCHS = 3


def make_checkpoints(prefix, models, **features):
    """Checkpoints of some models, three epochs each, with the given features."""
    names = [f"{prefix}{number:02d}" for number in range(models) for _ in range(EPOCHS)]
    index = pl.DataFrame({"model": names, "epoch": [1, 2, 3] * models})
    return Checkpoints(np.array(names), index, features)


@pytest.fixture(scope="module")
def split():
    """Thirty models to fit on, twenty to score; a feature set that holds the truth, one that is noise."""
    generator = np.random.default_rng(0)
    parts = []
    for prefix, models in (("a", 30), ("b", 20)):
        truth = np.repeat(generator.normal(size=models), EPOCHS) + 0.1 * generator.normal(size=models * EPOCHS)
        noise = generator.normal(size=(models * EPOCHS, 6))
        planted = np.column_stack([noise[:, :5], 2 * truth + 0.05 * generator.normal(size=len(truth))])
        parts.append((truth, make_checkpoints(prefix, models, planted=planted, statistics=noise)))
    return parts


def score(split, values=None):
    (fitted_E, fitted), (scored_E, scored) = split
    asked = Property("truth", *(values or (fitted_E, scored_E)))
    assert explain_unprobeable(asked, fitted, scored) is None
    return {
        name: {measure.metric: measure for measure in measures}
        for name, measures in score_property(asked, fitted, scored, make_generator(0)).items()
    }


def test_a_feature_that_holds_the_property_is_found_and_noise_is_not(split):
    found = score(split)
    planted, noise = (found[name]["r2"].describe(found["statistics"]["r2"]) for name in ("planted", "statistics"))
    assert planted["value"] > 0.95
    assert noise["value"] < 0.1
    assert planted["low"] <= planted["value"] <= planted["high"]
    assert noise["gain"] == noise["gain_low"] == noise["gain_high"] == 0
    assert 0 < planted["gain_low"] <= planted["gain"] <= planted["gain_high"]
    assert found["planted"]["tau"].value_R[0] > 0.8
    assert abs(found["statistics"]["tau"].value_R[0]) < 0.3


def test_classes_are_told_apart_beside_the_share_of_the_most_frequent(split):
    values = tuple(np.where(truth > 0.3, "relu", "tanh").astype(object) for truth, _ in split)
    found = score(split, values)
    share = max(np.mean(values[1] == "relu"), np.mean(values[1] == "tanh"))
    assert {name: set(metrics) for name, metrics in found.items()} == {
        "planted": {"accuracy"},
        "statistics": {"accuracy"},
    }
    assert found["planted"]["accuracy"].value_R[0] > 0.93
    assert found["planted"]["accuracy"].chance == pytest.approx(share)
    assert found["statistics"]["accuracy"].value_R[0] < share + 0.1


def test_values_that_are_not_known_are_left_out(split):
    values = [truth.copy() for truth, _ in split]
    for truth in values:
        truth[::7] = np.nan
    assert score(split, tuple(values))["planted"]["r2"].value_R[0] > 0.95


def test_a_model_in_both_fit_and_score_is_refused(split):
    (fitted_E, fitted), (scored_E, scored) = split
    names = scored.models_E.copy()
    names[-1] = fitted.models_E[0]
    leaking = dataclasses.replace(scored, models_E=names)
    with pytest.raises(AssertionError, match="in both fit and score"):
        score_property(Property("truth", fitted_E, scored_E), fitted, leaking, make_generator(0))


@pytest.mark.parametrize("broken", ["fitted", "scored"])
def test_features_that_are_not_numbers_have_no_score_and_harm_no_other(split, broken):
    parts = [(truth, dataclasses.replace(part, features=dict(part.features))) for truth, part in split]
    at = ("fitted", "scored").index(broken)
    features = parts[at][1].features
    features["statistics"] = features["statistics"].copy()
    features["statistics"][4, 2] = np.nan
    found = score(parts)
    assert found["statistics"] == {}
    np.testing.assert_array_equal(found["planted"]["r2"].value_R, score(split)["planted"]["r2"].value_R)


def test_what_does_not_vary_or_is_hardly_known_has_a_reason(split):
    (fitted_E, fitted), (scored_E, scored) = split
    constant = Property("learning_rate", np.full(len(fitted_E), 0.1), scored_E)
    assert explain_unprobeable(constant, fitted, scored) == "it is the same in all training checkpoints"
    constant = Property("learning_rate", fitted_E, np.full(len(scored_E), 0.1))
    assert explain_unprobeable(constant, fitted, scored) == "it is the same in all test checkpoints"
    unknown = np.full(len(fitted_E), np.nan)
    unknown[: 2 * EPOCHS] = fitted_E[: 2 * EPOCHS]
    reason = explain_unprobeable(Property("x", unknown, scored_E), fitted, scored)
    assert reason == "it is known of 2 training models, and a probe needs 3"


def test_tau_and_intervals_are_those_of_the_models_as_they_are(split):
    (fitted_E, fitted), (scored_E, scored) = split
    coarse = tuple(np.round(2 * values) for values in (fitted_E, scored_E))  # with ties
    found = score(split, coarse)["planted"]["tau"]
    guess_E = predict_numbers(fitted.features["planted"], coarse[0], fitted.models_E, scored.features["planted"])
    assert found.value_R[0] == pytest.approx(kendalltau(guess_E, coarse[1]).statistic)
    weights_RE = draw_resamples(scored.models_E, make_generator(0))
    assert (weights_RE[0] == 1).all()
    assert (weights_RE.sum(axis=1) == len(scored_E)).all()
    assert (weights_RE[:, 0] == weights_RE[:, EPOCHS - 1]).all()  # a model's checkpoints go together
    assert len(np.unique(weights_RE[:, 0])) > 2
    assert len(draw_resamples(np.array(["a", "b", "c", "d"]), make_generator(0))) == 1  # too few for an interval


def test_properties_are_what_people_ask_for():
    index = pl.DataFrame(
        {
            "model": ["a", "b"],
            "epoch": [1, 2],
            "part": [0, 0],
            "train_loss": [0.1, 0.2],
            "val_accuracy": [0.8, 0.9],
            "test_accuracy": [0.8, 0.9],
            "generalisation_gap": [0.0, 0.1],
            "dataset": ["digits", "digits"],
            "factor_learning_rate": [0.001, 0.1],
            "factor_dropout": [0.0, 0.5],
            "factor_activation": ["tanh", None],
        }
    )
    found = {asked.name: asked for asked in list_properties(index, index)}
    assert set(found) == {
        *("epoch", "test_accuracy", "generalisation_gap"),
        *("factor_learning_rate", "factor_dropout", "factor_activation"),
    }
    np.testing.assert_allclose(found["factor_learning_rate"].fitted_E, [-3, -1])
    np.testing.assert_allclose(found["factor_dropout"].fitted_E, [0, 0.5])
    assert found["factor_activation"].classes
    assert list_properties(index, index.drop("epoch", "test_accuracy"))[0].name == "generalisation_gap"
