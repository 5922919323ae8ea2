"""Permutations, signs and scales that change no function of a network.

`derive` finds the groups of a network and proves them, `apply` applies their elements to weights, `align` brings models
to the canonical form of a reference.
"""
