"""Symmetry: permutation groups found by tracing and proved by function, permuting, and the canonical form.

trace → tracer → (operators, products on labels: values, units, slots, algebra) → grouping → proof finds groups;
axis_maps → permute applies permutations; nesting, descent, scales → canonical aligns a population; barrier measures
how well.
"""
