"""Which models are anchors, and what choosing them looked at."""

from dataclasses import replace

import polars as pl
import pytest
import torch

from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import GlyphsConfig, SamplingConfig, SliceConfig
from mzsane.errors import ConfigError
from mzsane.sampling.anchors import choose_anchors, resolve_given, share_images
from mzsane.tokens.build import plan_tokens
from mzsane.tokens.store import read_tokens

OTHER = GlyphsConfig(source="glyphs", characters="WXYZ", images=120)


@pytest.fixture(scope="module")
def arm(make_store, tiny_zoo_config, tiny_tokens_config, tiny_backbone_config):
    """Three training models of the tiny zoo, of which the backbone saw the first of two epochs only."""
    store = make_store()
    tokens = plan_tokens(tiny_tokens_config, tiny_zoo_config).ref
    slices = [TokenSlice(tokens, SliceConfig(zoo="tiny", models=3, epochs=(1,)))]
    backbone = pretrain(tiny_backbone_config, slices, 0, store)
    return slices, backbone, {0: read_tokens(store.open(tokens))}


def choose(arm, images, seed=0, tables=None, **settings):
    slices, backbone, known = arm
    return choose_anchors(SamplingConfig(**settings), backbone, slices, tables or known, images, seed)


def list_models(arm):
    return pl.read_parquet(arm[1].path("composition.parquet"))["model"].unique().sort().to_list()


def test_anchors_are_at_the_last_epoch_that_was_trained_on(arm, tiny_zoo_config):
    chosen = choose(arm, tiny_zoo_config.images, anchors=3)
    index = arm[2][0].index
    assert [f"0/{index['model'][row]}" for _, row in chosen.rows] == chosen.names
    assert chosen.names == [f"0/{model}" for model in list_models(arm)]
    assert {index["epoch"][row] for _, row in chosen.rows} == {1}


def test_random_anchors_look_at_nothing_and_differ_by_seed(arm, tiny_zoo_config):
    drawn = [choose(arm, tiny_zoo_config.images, seed, anchors=1) for seed in range(20)]
    assert {name for chosen in drawn for name in chosen.names} == {f"0/{model}" for model in list_models(arm)}
    assert not any(chosen.labelled for chosen in drawn)


def test_the_best_anchors_have_the_highest_validation_accuracy(arm, tiny_zoo_config):
    # As if the second model were the best and the first the second best, on the epoch that was trained on.
    accuracy = dict(zip(list_models(arm), (0.5, 0.9, 0.4), strict=True))
    table = arm[2][0]
    marked = table.index.with_columns(pl.col("model").replace_strict(accuracy, default=1.0).alias("val_accuracy"))
    marked = marked.with_columns(val_accuracy=pl.when(pl.col("epoch") == 2).then(1.0).otherwise("val_accuracy"))
    tables = {0: replace(table, index=marked)}
    names = [f"0/{model}" for model in list_models(arm)]
    best = choose(arm, tiny_zoo_config.images, tables=tables, anchors=2, anchor_choice="best")
    assert best.names == names[:2]
    (one,) = choose(arm, OTHER, tables=tables, anchors=1, anchor_choice="best").names
    assert one == names[1]


@pytest.mark.parametrize(
    ("images", "labelled"),
    [
        (GlyphsConfig(source="glyphs", characters="ABCD", images=120), True),
        (
            GlyphsConfig(source="glyphs", characters="ABCD", images=240, seed=7),
            True,
        ),  # its test images may be among them
        (GlyphsConfig(source="glyphs", characters="DEFG", images=120), True),
        (OTHER, False),
    ],
)
def test_the_best_anchors_saw_labels_where_their_images_may_be_the_targets(arm, images, labelled):
    assert choose(arm, images, anchors=1, anchor_choice="best").labelled == labelled


def test_the_best_anchors_of_unknown_images_count_as_chosen_by_labels(arm):
    table = arm[2][0]
    manifest = table.artifact.manifest.model_copy(update={"inputs": {}})
    unknown = type(table.artifact)(table.artifact.store, manifest)
    assert share_images(replace(table, artifact=unknown), OTHER)


def test_best_needs_the_accuracy_of_every_model(arm):
    table = arm[2][0]
    tables = {0: replace(table, index=table.index.drop("val_accuracy"))}
    with pytest.raises(ConfigError, match=r"anchor_choice best needs val_accuracy .* choose random"):
        choose(arm, OTHER, tables=tables, anchors=1, anchor_choice="best")


def test_given_anchors_are_taken_as_they_are_given_and_count_as_chosen_by_labels(arm):
    first, _, last = list_models(arm)
    given = (f"tiny/{last}", f"tiny/{first}")
    chosen = choose(arm, OTHER, anchors=2, anchor_choice="given", anchor_models=given)
    assert chosen.names == [f"0/{last}", f"0/{first}"]
    assert chosen.labelled
    config = SamplingConfig(anchors=2, anchor_choice="given", anchor_models=given)
    renamed = [replace(arm[0][0], part=arm[0][0].part.model_copy(update={"zoo": "other"}))]
    other = config.model_copy(update={"anchor_models": tuple(name.replace("tiny", "other") for name in given)})
    assert resolve_given(config, arm[0]) == resolve_given(other, renamed)


def test_a_given_model_that_was_not_trained_on_is_named_with_those_that_were(arm):
    held_out = arm[2][0].index.filter(split="test")["model"][0]
    with pytest.raises(
        ConfigError, match=rf"'tiny/{held_out}', which the backbone was not trained on.*{list_models(arm)[0]}"
    ):
        choose(arm, OTHER, anchors=1, anchor_choice="given", anchor_models=(f"tiny/{held_out}",))


def test_latents_of_all_models_stand_for_no_anchor(arm):
    chosen = choose(arm, OTHER, anchors=0, sampler="gaussian")
    assert len(chosen.names) == 3
    assert not chosen.labelled
    assert torch.tensor(chosen.rows).shape == (3, 2)
