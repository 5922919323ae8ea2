"""Probes: what the latents of checkpoints tell of their epoch, losses, accuracies and factors.

Suffixes: B models, T tokens, L latent width, E checkpoints, F features.
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
                values = (_read_numbers(fitted[name]), _read_numbers(scored[name]))
                known = np.isfinite(values[0])
                several = len(np.unique(self.models[known])) > 1
                if several and _vary(values[0], LEAST_FITTED) and _vary(values[1], LEAST_SCORED):
                    self.properties[name] = values
        self.flat = tuple(table.load(rows) for rows in (fitted_E, scored_E)) if self.properties else ()

    def score(self, fitted_EF: np.ndarray, scored_EF: np.ndarray) -> dict[str, float]:
        """Return the R2 of each property; not a number where a feature is not."""
        finite = bool(np.isfinite(fitted_EF).all() and np.isfinite(scored_EF).all())
        return {
            f"probe_r2_{name}": _probe(fitted_EF, values[0], self.models, scored_EF, values[1]) if finite else np.nan
            for name, values in self.properties.items()
        }


def _probe(
    fitted_EF: np.ndarray, fitted_E: np.ndarray, models_E: np.ndarray, scored_EF: np.ndarray, scored_E: np.ndarray
) -> float:
    """Return the R2 of a ridge regression on the scored checkpoints that know the property.

    Its strength is chosen by leaving out whole models: epochs of one model are too much alike to tell.
    """
    # Imported here, because it takes more than a second, and most commands train nothing.
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known, asked = np.isfinite(fitted_E), np.isfinite(scored_E)
    folds = GroupKFold(min(_FOLDS, len(np.unique(models_E[known]))))
    cuts = list(folds.split(fitted_EF[known], groups=models_E[known]))
    regression = make_pipeline(StandardScaler(), RidgeCV(_STRENGTHS, cv=cuts))
    regression.fit(fitted_EF[known], fitted_E[known])
    return float(r2_score(scored_E[asked], regression.predict(scored_EF[asked])))


def _read_numbers(column: pl.Series) -> np.ndarray:
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
