"""The map of latents, on a real tiny backbone."""

import polars as pl
import pytest

from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import SliceConfig
from mzsane.report.latents import LATENT_SCHEMA, map_latents, plot_latents
from mzsane.tokens.build import plan_tokens
from mzsane.tokens.store import read_tokens


@pytest.fixture(scope="module")
def mapped(make_store, tiny_zoo_config, tiny_tokens_config, tiny_backbone_config):
    store = make_store()
    tokens = plan_tokens(tiny_tokens_config, tiny_zoo_config).ref
    backbone = pretrain(tiny_backbone_config, [TokenSlice(tokens, SliceConfig(zoo="tiny", models=3))], 0, store)
    zoos = {"tiny": tokens, "other": tokens}
    return read_tokens(store.open(tokens)), map_latents(backbone, zoos, {"tiny"}, 0, store)


def test_only_held_out_checkpoints_are_on_the_map_with_their_accuracies(mapped):
    table, latents = mapped
    held_out = table.index[table.pick_rows("test").tolist()]
    for name in ("tiny", "other"):
        found = latents.filter(zoo=name)
        assert found["model"].to_list() == held_out["model"].to_list()
        assert found["accuracy"].to_list() == held_out["test_accuracy"].to_list()
        assert set(found["trained_on"]) == {name == "tiny"}


def test_equal_checkpoints_are_at_one_place_and_others_are_not(mapped):
    _, latents = mapped
    tiny, other = (latents.filter(zoo=name).select("x", "y") for name in ("tiny", "other"))
    assert tiny.to_numpy() == pytest.approx(other.to_numpy(), abs=1e-6)
    assert len(tiny.unique()) == len(tiny) > 1
    assert latents["x"].var() >= latents["y"].var() >= 0


def test_figure_shows_every_checkpoint_by_zoo_and_by_accuracy(mapped):
    _, latents = mapped
    arm = [pl.lit("both-s0").alias("arm"), pl.lit("both").alias("composition")]
    figure = plot_latents(latents.with_columns(arm).select(list(LATENT_SCHEMA)))
    left, right, _ = figure.axes
    for axes in (left, right):
        assert sum(len(points.get_offsets()) for points in axes.collections) == len(latents)
    hollow = [len(points.get_facecolor()) == 0 for points in left.collections]
    assert hollow == [True, False]  # other, then tiny
    assert "No held-out" in plot_latents(pl.DataFrame(schema=LATENT_SCHEMA)).texts[0].get_text()
