"""Probes: what the latents of checkpoints tell of their epoch, losses, accuracies and factors.

Suffixes: B models, T tokens, L latent width, E checkpoints, F features, R dimensions that these span.
"""

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mzsane.tokens.store import TokenTable

LEAST_FITTED, LEAST_SCORED = 20, 4  # checkpoints, below which a probe says nothing
_FOLDS = 4
_STRENGTHS = np.logspace(-1, 5, 7)


class Probes:
    """Ridge regressions from what a backbone makes of checkpoints to what the index says about them.

    Args:
        table: the tokens.
        fitted_E: rows of training checkpoints.
        scored_E: rows of validation checkpoints.
    """

    def __init__(self, table: TokenTable, fitted_E: Tensor, scored_E: Tensor) -> None:
        fitted, scored = table.index[fitted_E.tolist()], table.index[scored_E.tolist()]
        self.models = fitted["model"].to_numpy()
        self.properties: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, kind in table.index.schema.items():
            if kind.is_numeric() and name not in ("part", "generalisation_gap") and not name.startswith("test_"):
                values = (read_numbers(fitted[name]), read_numbers(scored[name]))
                known = np.isfinite(values[0])
                several = len(np.unique(self.models[known])) > 1
                if several and _vary(values[0], LEAST_FITTED) and _vary(values[1], LEAST_SCORED):
                    self.properties[name] = values
        self.flat = tuple(table.load(rows) for rows in (fitted_E, scored_E)) if self.properties else ()

    def score(self, fitted_EF: np.ndarray, scored_EF: np.ndarray) -> dict[str, float]:
        """Return the R2 of each property; not a number where a feature is not."""
        finite = bool(np.isfinite(fitted_EF).all() and np.isfinite(scored_EF).all())
        return {
            f"probe_r2_{name}": _score_r2(fitted_EF, values[0], self.models, scored_EF, values[1]) if finite else np.nan
            for name, values in self.properties.items()
        }


def rescale_features(fitted_EF: np.ndarray, scored_EF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features in deviations of the fitted ones, rotated into no more dimensions than there are of these.

    What is outside of that space has no weight in a regression that shrinks its coefficients.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(fitted_EF)
    fitted_EF, scored_EF = scaler.transform(fitted_EF), scaler.transform(scored_EF)
    if fitted_EF.shape[1] > len(fitted_EF):
        basis_RF = np.linalg.svd(fitted_EF, full_matrices=False)[2]
        fitted_EF, scored_EF = fitted_EF @ basis_RF.T, scored_EF @ basis_RF.T
    return fitted_EF, scored_EF


def cut_by_model(models_E: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return folds, kept and left out, that leave out whole models: their epochs are too much alike to tell."""
    # Imported here, because it takes more than a second, and most commands train nothing.
    from sklearn.model_selection import GroupKFold

    folds = GroupKFold(min(_FOLDS, len(np.unique(models_E))))
    return list(folds.split(models_E, groups=models_E))


def predict_numbers(
    fitted_EF: np.ndarray, fitted_E: np.ndarray, models_E: np.ndarray, scored_EF: np.ndarray
) -> np.ndarray:
    """Return what a ridge regression says of the scored checkpoints; its strength is chosen by leaving out models.

    Args:
        fitted_EF: features of the checkpoints that it is fitted on.
        fitted_E: their property; where it is not a number, the checkpoint is left out.
        models_E: the model that each is a checkpoint of.
        scored_EF: features of the checkpoints that it is asked for.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    known = np.isfinite(fitted_E)
    rescaled_EF, scored_EF = rescale_features(fitted_EF[known], scored_EF)
    search = GridSearchCV(Ridge(), {"alpha": _STRENGTHS}, scoring="r2", cv=cut_by_model(models_E[known]))
    predicted: np.ndarray = search.fit(rescaled_EF, fitted_E[known]).predict(scored_EF)
    return predicted


def _score_r2(
    fitted_EF: np.ndarray, fitted_E: np.ndarray, models_E: np.ndarray, scored_EF: np.ndarray, scored_E: np.ndarray
) -> float:
    from sklearn.metrics import r2_score

    asked = np.isfinite(scored_E)
    return float(r2_score(scored_E[asked], predict_numbers(fitted_EF, fitted_E, models_E, scored_EF[asked])))


def read_numbers(column: pl.Series) -> np.ndarray:
    """Return a column as float64, not a number where it has none."""
    numbers: np.ndarray = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return numbers


def _vary(values_E: np.ndarray, least: int) -> bool:
    known_E = values_E[np.isfinite(values_E)]
    return len(known_E) >= least and bool(np.ptp(known_E) > 0)


def pool_latents(latents_BTL: Tensor) -> np.ndarray:
    """Return the mean and the deviation of latents over the tokens, (B, 2 L)."""
    features = torch.cat([latents_BTL.mean(dim=1), latents_BTL.std(dim=1, correction=0)], dim=1)
    pooled: np.ndarray = features.double().cpu().numpy()
    return pooled
