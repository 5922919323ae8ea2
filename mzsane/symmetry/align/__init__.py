"""Canonical form: nesting, descent, scales → canonical aligns a population; barrier measures how well."""
