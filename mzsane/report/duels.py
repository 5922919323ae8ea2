"""Generated models against every other method, paired: who wins by how much, and what is a tie."""

import polars as pl

DUEL_SCHEMA = {
    "composition": pl.String,
    "target": pl.String,
    "in_distribution": pl.Boolean,
    "method": pl.String,
    "sees": pl.String,
    "opponent": pl.String,
    "opponent_sees": pl.String,
    "opponent_steps": pl.Int64,
    "finetune_epochs": pl.Int64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "units": pl.Int64,
    "unit_kind": pl.String,
    "verdict": pl.String,
}
