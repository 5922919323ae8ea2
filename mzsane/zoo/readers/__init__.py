"""Zoos that others trained, read into a ZOO artifact."""
