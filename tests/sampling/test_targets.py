"""Samples for targets that anchors do not fit: other classes, other architectures, batch norms, no anchors."""

import numpy as np
import polars as pl
import pytest
import torch

from mzsane.backbone.inference import decode_models, encode_models, load_backbone
from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import (
    EvaluationConfig,
    ExecutionConfig,
    FilesConfig,
    GlyphsConfig,
    NetworkConfig,
    SamplingConfig,
    SliceConfig,
    ZooConfig,
)
from mzsane.errors import ConfigError
from mzsane.evaluation.score import score_samples
from mzsane.evaluation.selection import draw_samples
from mzsane.networks.build import build_network
from mzsane.networks.run import ModelSet, score_models
from mzsane.sampling.populations import read_populations
from mzsane.sampling.target import Target
from mzsane.tokens.build import build_tokens, plan_tokens
from mzsane.tokens.store import read_tokens
from mzsane.tokens.transfer import fit_weights, map_tokens
from mzsane.zoo.train import train_zoo

SERIAL = ExecutionConfig(processes=1)
SAMPLING = SamplingConfig(anchors=2, samples=5, keep=2, bandwidth=0.2)
EVALUATION = EvaluationConfig(finetune_epochs=(0,), finetune_models=1)
FIGURES = GlyphsConfig(source="glyphs", characters="012345", images=120)  # six classes, the zoo has four
LETTERS = GlyphsConfig(source="glyphs", characters="ABCD", images=120)


@pytest.fixture(scope="module")
def arm(make_store, tiny_zoo_config, tiny_tokens_config, tiny_backbone_config):
    store = make_store()
    slices = [TokenSlice(plan_tokens(tiny_tokens_config, tiny_zoo_config).ref, SliceConfig(zoo="tiny", models=3))]
    return store, slices, pretrain(tiny_backbone_config, slices, 0, store)


@pytest.fixture(scope="module")
def draw(arm):
    store, slices, backbone = arm

    def run(target, **changes):
        config = SamplingConfig.model_validate(SAMPLING.model_dump() | changes)
        samples = draw_samples(config, target, backbone.ref, slices, [0], 0, store, SERIAL)
        scores = score_samples(EVALUATION, config, target, samples.ref, 0, store, SERIAL)
        return *read_populations(samples), pl.read_parquet(scores.path("scores.parquet")), samples

    return run


def test_other_classes_get_a_new_head_and_it_is_said(arm, draw):
    store, slices, _ = arm
    target = Target(NetworkConfig(), FIGURES)
    populations, records, layout, scores, _ = draw(target, refine_anchors=True)
    source = read_tokens(store.open(slices[0].tokens)).layout
    states = {name: layout.unflatten(flat) for name, flat in populations.items()}
    for name, state in states.items():
        assert state["module_list.11.weight"].shape[1:] == (6, 20)
        if name != "reconstruction":
            assert (state["module_list.11.bias"] == 0.01).all(), name
            assert state["module_list.11.weight"].unique(dim=0).shape[0] == len(state["module_list.11.weight"])
    kinds = ("samples", "anchors", "anchor_weights")
    assert len({float(states[name]["module_list.11.weight"][0, 0, 0]) for name in kinds}) == 3
    used = read_tokens(store.open(slices[0].tokens))
    rows = [used.pick_rows("train", 1, [name[2:]]) for name in sorted(set(records["made_of"].explode()))]
    anchors = used.load(torch.cat(rows))
    for name in source.offsets:
        if not name.startswith("module_list.11"):
            assert torch.equal(states["anchor_weights"][name], source.unflatten(anchors)[name])
    # What anchors with other classes do cannot be compared, so they are not refined.
    row = records.select("head", "positions", "sees", "anchors_see", "conditioned", "refined").unique().rows()
    assert row == [("new", "mapped", "none", "none", False, False)]
    # A body is a copy whatever its head is.
    zero_shot = scores.filter(finetune_epochs=0)
    assert zero_shot.filter(method="best_anchor")["novelty"].to_list() == pytest.approx([0.0], abs=1e-3)
    assert zero_shot.filter(method="samples", ensemble=1)["novelty"].to_list() == records["novelty"].to_list()
    assert records["novelty"].min() > 0.001
    assert records["error_overlap"].is_null().all()
    assert set(scores["method"]) >= {"zoo", "reconstruction", "anchors", "layer_noise", "interpolation", "average"}


def test_a_bandwidth_for_a_new_head_is_chosen_without_labels(draw):
    _, records, _, _, samples = draw(
        Target(NetworkConfig(), FIGURES), bandwidth=[3.0, 0.01, 1.0], bandwidth_samples=3, least_novelty=0.0001
    )
    trials = pl.read_parquet(samples.path("bandwidths.parquet"))
    assert trials["validation_accuracy"].is_null().all()
    new = trials.filter(pl.col("sampling_novelty") >= 0.0001)
    assert trials.filter("chosen")["sampling_novelty"].item() == new["sampling_novelty"].min()
    assert set(records["sees"]) == {"none"}


@pytest.fixture
def large_images(tmp_path):
    """Random images of 32x32 pixels and four classes, as CNN-l takes them."""
    generator = np.random.default_rng(0)
    for name, count in (("train", 40), ("test", 20)):
        images = generator.integers(0, 255, (count, 32, 32), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(count) % 4)
    paths = {name: str(tmp_path / f"{name}.npz") for name in ("train", "test")}
    return FilesConfig(source="npz", classes=4, **paths)


def test_another_architecture_gets_its_own_positions(arm, draw, large_images):
    store, slices, backbone = arm
    target = Target(NetworkConfig(architecture="cnn-l"), large_images)
    populations, records, layout, scores, _ = draw(target)
    network = build_network(target.network, 1, 4, 32)
    network.load_state_dict(layout.unflatten(populations["samples"][0]), strict=True)
    table = read_tokens(store.open(slices[0].tokens))
    model, config = load_backbone(backbone)
    names = sorted(set(records["made_of"].explode()))
    rows = torch.cat([table.pick_rows("train", 1, [name[2:]]) for name in names])
    latents = encode_models(model, table.layout, table.load(rows), config.window)
    mapped = latents[:, map_tokens(table.layout, layout)]
    torch.testing.assert_close(populations["anchors"], decode_models(model, layout, mapped, config.window))
    assert torch.equal(populations["anchor_weights"], fit_weights(table.layout, layout, table.load(rows)))
    assert records.select("head", "positions").unique().rows() == [("decoded", "mapped")]
    assert records["novelty"].is_null().all()  # no training model has this architecture
    assert scores["novelty"].is_null().all()
    assert scores["accuracy"].is_finite().all()


def test_a_backbone_without_positions_for_the_target_says_so(arm, draw, tiny_backbone_config):
    store, slices, _ = arm
    few = tiny_backbone_config.model_copy(update={"max_positions": (100, 10, 40), "positions": "learned"})
    backbone = pretrain(few, slices, 0, store)
    target = Target(NetworkConfig(architecture="mlp", width=64), LETTERS)
    with pytest.raises(ConfigError, match="max_positions"):
        draw_samples(SAMPLING, target, backbone.ref, slices, [0], 0, store, SERIAL)


def test_without_anchors_samples_come_from_the_statistics_of_all_latents(arm, draw):
    store, slices, backbone = arm
    target = Target(NetworkConfig(), LETTERS)
    populations, records, layout, scores, samples = draw(target, anchors=0, sampler="gaussian", bandwidth=0.0)
    assert len(populations["anchors"]) == len(populations["anchor_weights"]) == 0
    assert samples.manifest.counts["anchors"] == 0
    assert samples.manifest.counts["models_that_latents_are_from"] == 3
    assert set(records["anchor_choice"]) == {"none"}
    assert records["made_of"].list.len().max() == 0
    assert records["nearest_anchor"].is_null().all()
    assert not {"anchors", "decoded_noise", "layer_noise", "flat_noise", "best_anchor", "average"} & set(
        scores["method"]
    )
    table = read_tokens(store.open(slices[0].tokens))
    used = pl.read_parquet(backbone.path("composition.parquet"))["model"].unique().sort().to_list()
    model, config = load_backbone(backbone)
    rows = torch.cat([table.pick_rows("train", 1, [name]) for name in used])
    latents = encode_models(model, layout, table.load(rows), config.window)
    means = torch.stack(
        [latents[:, layout.positions_T3[:, 1] == layer].mean(dim=(0, 1)) for layer in range(len(layout.layers))]
    )
    expected = decode_models(model, layout, means[layout.positions_T3[:, 1]][None], config.window)
    torch.testing.assert_close(populations["samples"][:1], expected)


@pytest.fixture(scope="module")
def resnets(make_store, tiny_tokens_config, tiny_backbone_config):
    """A backbone on four very narrow ResNet-18, and what they are."""
    store = make_store()
    zoo = ZooConfig(
        name="resnets",
        images=LETTERS,
        network=NetworkConfig(architecture="resnet18", activation="relu", width=4),
        models=4,
        epochs=1,
        keep_epochs=1,
    )
    train_zoo(zoo, store, SERIAL)
    fractions = {"train_fraction": 0.7, "validation_fraction": 0.15}  # two, one and one
    tokens = build_tokens(tiny_tokens_config.model_copy(update=fractions), zoo, store)
    slices = [TokenSlice(tokens.ref, SliceConfig(zoo="resnets", models=2))]
    anywhere = tiny_backbone_config.model_copy(update={"positions": "sinusoidal"})
    return store, slices, pretrain(anywhere, slices, 0, store), zoo


def test_batch_norms_of_samples_are_conditioned_on_images(resnets):
    store, slices, backbone, zoo = resnets
    target = Target(zoo.network, LETTERS, slices[0].tokens)
    samples = draw_samples(SAMPLING, target, backbone.ref, slices, [0], 0, store, SERIAL)
    populations, records, layout = read_populations(samples)
    row = records.select("sees", "anchors_see", "conditioned", "head", "positions").unique().rows()
    assert row == [("images", "images", True, "decoded", "own")]
    scores = score_samples(EVALUATION, SAMPLING, target, samples.ref, 0, store, SERIAL)
    frame = pl.read_parquet(scores.path("scores.parquet"))
    assert set(frame["sees"]) == {"images", "labels"}
    assert set(frame.filter(sees="labels")["method"]) == {
        *("selected", "decoded_noise", "layer_noise", "flat_noise", "best_anchor", "best_model")
    }
    # With fresh statistics, mean 0 and variance 1, the same weights would be other networks.
    blind = layout.model_copy(update={"running_statistics": "out"})
    first, unconditioned = (
        score_models(ModelSet(zoo.network, LETTERS, of, populations["samples"]), "val", SERIAL)
        for of in (layout, blind)
    )
    assert [score.loss for score in first] != [score.loss for score in unconditioned]
    assert records["validation_accuracy"].to_list() == [score.accuracy for score in first]


def test_a_wider_resnet_is_sampled_from_a_narrow_one(resnets):
    store, slices, backbone, zoo = resnets
    wide = zoo.network.model_copy(update={"width": 8})
    target = Target(wide, LETTERS)
    populations, records, layout = read_populations(
        draw_samples(SAMPLING, target, backbone.ref, slices, [0], 0, store, SERIAL)
    )
    assert layout.weights > 3 * read_tokens(store.open(slices[0].tokens)).layout.weights
    assert set(records["positions"]) == {"mapped"}
    assert set(records["sees"]) == {"images"}
    assert populations["samples"].isfinite().all()
    assert not torch.equal(populations["samples"][0], populations["samples"][1])
