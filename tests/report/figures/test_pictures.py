"""Only what has something to say is drawn as a picture."""

import polars as pl

from mzsane.appearance import assign_styles
from mzsane.probing.stage import PROBE_SCHEMA
from mzsane.report.cells import check_rows
from mzsane.report.figures.pictures import plot_pictures
from mzsane.report.figures.shares import SHARE_SCHEMA
from mzsane.report.latents import LATENT_SCHEMA
from mzsane.report.statistics.effects import EFFECT_SCHEMA
from tests.report.made_up import make_small

FRAMES = ("effects", "shares", "latents", "curves", "probes")


def test_everything_that_was_measured_is_drawn():
    made = make_small()
    pictures = plot_pictures(
        check_rows(made["rows"]), *(made[name] for name in FRAMES), assign_styles(made["rows"]["composition"])
    )
    names = ("accuracy", "heatmap", "novelty", "effects", "shares", "finetuning", "latents", "curves", "probes")
    assert list(pictures) == [f"{name}.png" for name in names]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())


def test_what_has_nothing_to_say_is_not_drawn(row):
    rows = check_rows(pl.DataFrame([row("a", "t", "anchors", 0.5)], infer_schema_length=None))
    schemas = (EFFECT_SCHEMA, SHARE_SCHEMA, LATENT_SCHEMA, {}, {"arm": pl.String, **PROBE_SCHEMA})
    pictures = plot_pictures(rows, *(pl.DataFrame(schema=schema) for schema in schemas), assign_styles(["a"]))
    assert list(pictures) == ["accuracy.png"]
