"""The groups of a network: traced, derived from its operators, and proved by running it.

trace → tracer → (operators, products on labels: values, units, slots, algebra) → grouping → proof.
"""
