"""How far each backbone was trained, which stands beside every effect of what it was trained on."""

import polars as pl

CONVERGENCE_SCHEMA = {
    "arm": pl.String,
    "composition": pl.String,
    "seed": pl.Int64,
    "steps": pl.Int64,
    "passes": pl.Float64,
    "val_r2": pl.Float64,
    "gain_last_quarter": pl.Float64,
    "reconstruction_loss_of_accuracy": pl.Float64,
    "failed": pl.Boolean,
}
