"""Figures: data in, a picture or a vega-lite chart out."""
