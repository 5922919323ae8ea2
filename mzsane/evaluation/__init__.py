"""Scoring and fine-tuning many models, and the baselines that every score stands beside."""
