"""The samples stage on a real tiny backbone."""

import polars as pl
import pytest
import torch

from mzsane.backbone.inference import decode_models, encode_models, load_backbone
from mzsane.backbone.pretrain import pretrain
from mzsane.config import ExecutionConfig, SamplingConfig, SliceConfig
from mzsane.evaluation.scoring import ModelSet, score_models
from mzsane.sampling.draw import Target, draw_samples, read_populations
from mzsane.sampling.samplers import SAMPLERS
from mzsane.tokens.build import plan_tokens
from mzsane.tokens.composition import TokenSlice
from mzsane.tokens.store import read_tokens

SERIAL = ExecutionConfig(processes=1)
SAMPLING = SamplingConfig(anchors=2, samples=12, keep=3, bandwidth=0.2)


@pytest.fixture(scope="module")
def arm(make_store, tiny_zoo_config, tiny_tokens_config, tiny_backbone_config):
    store = make_store()
    tokens = plan_tokens(tiny_tokens_config, tiny_zoo_config).ref
    slices = [TokenSlice(tokens, SliceConfig(zoo="tiny", models=3))]
    backbone = pretrain(tiny_backbone_config, slices, 0, store)
    target = Target(tiny_zoo_config.network, tiny_zoo_config.images, tokens)
    samples = draw_samples(SAMPLING, target, backbone.ref, slices, [0], 0, store, SERIAL)
    return store, slices, backbone, target, samples


def test_anchors_are_training_models_of_the_composition(arm):
    store, slices, backbone, _, samples = arm
    used = set(pl.read_parquet(backbone.path("composition.parquet"))["model"])
    _, records, _ = read_populations(samples)
    models = {name.split("/")[1] for name in records["made_of"].explode()}
    assert models <= used
    table = read_tokens(store.open(slices[0].tokens))
    assert used <= set(table.index.filter(pl.col("split") == "train")["model"])


def test_populations_are_what_they_are_called(arm):
    store, slices, backbone, _, samples = arm
    populations, records, layout = read_populations(samples)
    table = read_tokens(store.open(slices[0].tokens))
    model, config = load_backbone(backbone)
    test_rows = table.pick_rows("test", last_epochs=1)
    assert torch.equal(populations["originals"], table.load(test_rows))
    latents = encode_models(model, table.layout, populations["originals"], config.window)
    assert torch.equal(populations["reconstruction"], decode_models(model, table.layout, latents, config.window))
    assert populations["samples"].shape == (12, layout.weights)
    assert len(records) == 12
    for i, name in enumerate(sorted(set(records["made_of"].explode()))):
        row = table.pick_rows("train", last_epochs=1, models=[name.split("/")[1]])
        assert torch.equal(populations["anchor_weights"][i], table.load(row)[0])


def test_the_nearest_anchor_is_told(arm):
    populations, records, _ = read_populations(arm[-1])
    for sample, nearest, distance in records.select("sample", "nearest_anchor", "nearest_distance").rows():
        distances = (populations["samples"][sample] - populations["anchor_weights"]).norm(dim=1)
        assert distance == pytest.approx(float(distances.min()), rel=1e-4)
        assert float(distances[nearest]) == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_draws_models(arm, sampler):
    store, slices, backbone, target, _ = arm
    config = SAMPLING.model_copy(update={"sampler": sampler, "samples": 3, "keep": 1})
    populations, records, layout = read_populations(
        draw_samples(config, target, backbone.ref, slices, [0], 0, store, SERIAL)
    )
    assert populations["samples"].shape == (3, layout.weights)
    assert populations["samples"].isfinite().all()
    assert records["sampler"].to_list() == [sampler] * 3


def test_ranks_come_from_validation_images(arm):
    _, _, _, target, samples = arm
    populations, records, layout = read_populations(samples)
    models = ModelSet(target.network, target.images, layout, populations["samples"])
    validation = [score.accuracy for score in score_models(models, "val", SERIAL)]
    assert records["validation_accuracy"].to_list() == validation
    in_order = records.sort("rank")["validation_accuracy"].to_list()
    assert in_order == sorted(validation, reverse=True)
    assert sorted(records["rank"]) == list(range(1, 13))


def test_another_seed_draws_other_samples(arm):
    store, slices, backbone, target, samples = arm
    other = draw_samples(SAMPLING, target, backbone.ref, slices, [0], 1, store, SERIAL)
    first, second = read_populations(samples)[0]["samples"], read_populations(other)[0]["samples"]
    assert other.ref != samples.ref
    assert not torch.equal(first, second)
