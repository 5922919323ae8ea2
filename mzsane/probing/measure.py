"""One probe: fitted on the checkpoints of some models, scored on those of others, with intervals over models.

Suffixes: E checkpoints, F features, R resamples of the scored models, the first of them the models as they are; C
classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from mzsane.backbone.validation.linear_probes import cut_by_model, predict_numbers, read_numbers, rescale_features

_RESAMPLES = 400
_INTERVAL = (0.025, 0.975)
_LEAST_FITTED, _LEAST_SCORED = 3, 2  # models, below which there is no probe
_LEAST_RESAMPLED = 5  # models, below which there is no interval
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of logistic regression: inverse of the penalty
_OWN = ("part", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss")  # numbers that are not probed
_DECADE = 10.0
FACTOR = "factor_"


@dataclass(frozen=True)
class Checkpoints:
    """Some checkpoints: the models that they are of, what the index says of them, and their features by name."""

    models_E: np.ndarray
    index: pl.DataFrame
    features: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Property:
    """What a probe is asked for.

    Attributes:
        name: name of the property.
        fitted_E: its values of the fitted checkpoints, float64 with NaN where not known, or strings.
        scored_E: of the scored ones.
    """

    name: str
    fitted_E: np.ndarray
    scored_E: np.ndarray

    @property
    def classes(self) -> bool:
        """Whether the values are classes rather than numbers."""
        return self.fitted_E.dtype.kind != "f"


@dataclass(frozen=True)
class Measure:
    """A score of some features: the value, and its 95 % interval over the scored models.

    Attributes:
        metric: `r2`, `tau` (Kendall's tau-b), `accuracy`.
        chance: what is reached without features: the share of the most frequent class, or 0.
        value_R: the score, and that of each resample of the models.
    """

    metric: str
    chance: float
    value_R: np.ndarray

    def describe(self, baseline: "Measure | None" = None) -> dict[str, Any]:
        """Return value, interval and chance, and how far it is ahead of a baseline on the same resamples."""
        low, high = _find_interval(self.value_R)
        row = {"metric": self.metric, "chance": self.chance, "value": float(self.value_R[0]), "low": low, "high": high}
        gain_R = self.value_R - (np.full(1, np.nan) if baseline is None else baseline.value_R)
        return row | dict(
            zip(("gain", "gain_low", "gain_high"), (float(gain_R[0]), *_find_interval(gain_R)), strict=True)
        )


def list_properties(fitted: pl.DataFrame, scored: pl.DataFrame) -> list[Property]:
    """Return what two indices say of checkpoints: test accuracy, generalisation gap, epoch, factors and other numbers.

    Factors that are numbers above 0 and span a decade or more are taken by their logarithm.
    """
    found = []
    for name, kind in fitted.schema.items():
        if name not in scored.columns:
            continue
        if kind.is_numeric() and name not in _OWN:
            values = [read_numbers(frame[name]) for frame in (fitted, scored)]
            known = np.concatenate(values)
            known = known[np.isfinite(known)]
            if name.startswith(FACTOR) and len(known) and known.min() > 0 and known.max() >= _DECADE * known.min():
                values = [np.log10(part) for part in values]
            found.append(Property(name, *values))
        elif name.startswith(FACTOR):
            found.append(Property(name, *(frame[name].cast(pl.String).to_numpy() for frame in (fitted, scored))))
    return found


def explain_unprobeable(asked: Property, fitted: Checkpoints, scored: Checkpoints) -> str | None:
    """Return why a property cannot be probed, or None when it can."""
    known, out = _find_known(asked.fitted_E), _find_known(asked.scored_E)
    for what, models, least in (
        ("training", fitted.models_E[known], _LEAST_FITTED),
        ("test", scored.models_E[out], _LEAST_SCORED),
    ):
        if len(np.unique(models)) < least:
            return f"it is known of {len(np.unique(models))} {what} models, and a probe needs {least}"
    for what, values in (("training", asked.fitted_E[known]), ("test", asked.scored_E[out])):
        if len(np.unique(values)) < 2:
            return f"it is the same in all {what} checkpoints"
    return None


def score_property(
    asked: Property, fitted: Checkpoints, scored: Checkpoints, generator: torch.Generator
) -> dict[str, list[Measure]]:
    """Return for each kind of features what a linear probe makes of a property; none where a feature is not a number.

    Args:
        asked: the property, which can be probed (`explain_unprobeable`).
        fitted: what the probe is fitted on.
        scored: what it is scored on, of other models.
        generator: draws the models of the resamples, which all features share.
    """
    assert not set(fitted.models_E) & set(scored.models_E), "a model is in both fit and score"
    known, out = _find_known(asked.fitted_E), _find_known(asked.scored_E)
    weights_RE = draw_resamples(scored.models_E[out], generator)
    truth_E = asked.scored_E[out]
    measures: dict[str, list[Measure]] = {}
    for name, fitted_EF in fitted.features.items():
        parts = fitted_EF[known], asked.fitted_E[known], fitted.models_E[known], scored.features[name][out]
        if not (np.isfinite(parts[0]).all() and np.isfinite(parts[3]).all()):
            measures[name] = []
        elif asked.classes:
            measures[name] = [_measure_classes(truth_E, _predict_classes(*parts), weights_RE)]
        else:
            measures[name] = _measure_numbers(truth_E, predict_numbers(*parts), scored.models_E[out], weights_RE)
    return measures


def draw_resamples(models_E: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Return how often each checkpoint counts in each resample of the models, with replacement: (R, E).

    In the first each counts once; of fewer than 5 models there is no other.
    """
    names, number_E = np.unique(models_E, return_inverse=True)
    if len(names) < _LEAST_RESAMPLED:
        return np.ones((1, len(models_E)))
    drawn_RM = torch.randint(len(names), (_RESAMPLES, len(names)), generator=generator).numpy()
    counts_RM = np.stack([np.bincount(drawn_M, minlength=len(names)) for drawn_M in drawn_RM])
    return np.concatenate([np.ones((1, len(models_E))), counts_RM[:, number_E]])


def average(value_E: np.ndarray, weights_RE: np.ndarray) -> np.ndarray:
    """Return the mean of some values in each resample, (R,)."""
    return np.asarray(weights_RE @ value_E / weights_RE.sum(axis=1))


def _find_known(values_E: np.ndarray) -> np.ndarray:
    if values_E.dtype.kind == "f":
        return np.asarray(np.isfinite(values_E))
    return np.asarray([value is not None for value in values_E], dtype=bool)


def _find_interval(value_R: np.ndarray) -> tuple[float, float]:
    drawn_R = value_R[1:][np.isfinite(value_R[1:])]
    if not len(drawn_R):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn_R, _INTERVAL)
    return float(low), float(high)


def _measure_numbers(
    truth_E: np.ndarray, guess_E: np.ndarray, models_E: np.ndarray, weights_RE: np.ndarray
) -> list[Measure]:
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of equal values has neither
        spread_R = average(truth_E**2, weights_RE) - average(truth_E, weights_RE) ** 2
        spread_R = np.where(spread_R > 1e-9 * spread_R[0], spread_R, np.nan)
        r2_R = 1 - average((guess_E - truth_E) ** 2, weights_RE) / spread_R
        truth_EE, guess_EE = (np.sign(values_E[:, None] - values_E) for values_E in (truth_E, guess_E))
        concordant_R, truth_R, guess_R = (
            _sum_pairs(pairs_EE, models_E, weights_RE)
            for pairs_EE in (truth_EE * guess_EE, abs(truth_EE), abs(guess_EE))
        )
        tau_R = concordant_R / np.sqrt(truth_R * guess_R)
    return [Measure("r2", 0.0, r2_R), Measure("tau", 0.0, tau_R)]


def _sum_pairs(pairs_EE: np.ndarray, models_E: np.ndarray, weights_RE: np.ndarray) -> np.ndarray:
    """Return the sum over pairs of checkpoints in each resample, (R,).

    A pair of one model counts as often as the model, not its square: else pairs of epochs would outweigh the others.
    """
    same_EE = models_E[:, None] == models_E
    within_R = weights_RE @ (pairs_EE * same_EE).sum(axis=1)
    return np.asarray(within_R + ((weights_RE @ (pairs_EE * ~same_EE)) * weights_RE).sum(axis=1))


def _measure_classes(truth_E: np.ndarray, guess_E: np.ndarray, weights_RE: np.ndarray) -> Measure:
    _, counts_C = np.unique(truth_E, return_counts=True)
    right_R = average((truth_E == guess_E).astype(np.float64), weights_RE)
    return Measure("accuracy", float(counts_C.max() / len(truth_E)), right_R)


def _predict_classes(
    fitted_EF: np.ndarray, fitted_E: np.ndarray, models_E: np.ndarray, scored_EF: np.ndarray
) -> np.ndarray:
    """Return the classes that a logistic regression says; its strength is chosen by leaving out whole models."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    fitted_E = fitted_E.astype(str)
    fitted_EF, scored_EF = rescale_features(fitted_EF, scored_EF)
    regression = LogisticRegression(C=_STRENGTHS[0], max_iter=300)
    # A fold can hold all models of a class but one: the rest has nothing to tell apart.
    cuts = [cut for cut in cut_by_model(models_E) if len(np.unique(fitted_E[cut[0]])) > 1]
    if cuts:
        regression = GridSearchCV(regression, {"C": _STRENGTHS}, cv=cuts)
    return np.asarray(regression.fit(fitted_EF, fitted_E).predict(scored_EF))
