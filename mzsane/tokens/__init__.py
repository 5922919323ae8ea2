"""Weights as tokens: layout, symmetry, the parquet store, and training windows."""
